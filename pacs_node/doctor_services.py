"""What ``pacs-node doctor`` asks the services around the page: single sign-on, and who is notified."""

from __future__ import annotations

from collections.abc import Iterator

from pacs_node.config import Settings
from pacs_node.doctor_findings import Finding, Level
from pacs_node.errors import ConfigurationError
from pacs_node.oidc import Provider, read_secret
from pacs_node.oidc_metadata import OidcError


def check_oidc(settings: Settings) -> Iterator[Finding]:
    """Ask the provider of logins what it says of itself; nothing where none is set up."""
    about = "single sign-on"
    if not settings.oidc.issuer:
        return
    try:
        read_secret(settings.oidc)
        provider = Provider(settings.oidc)
        metadata, keys = provider.metadata(), provider.keys()
    except ConfigurationError as error:
        yield Finding(Level.PROBLEM, about, str(error), "write the client's secret into that file")
        return
    except OidcError as error:
        todo = f"see that {settings.oidc.issuer} answers from here, and is what the provider calls itself"
        yield Finding(Level.PROBLEM, about, f"{error} ({error.reason})", todo)
        return
    count = f"{len(keys)} key{'s' if len(keys) > 1 else ''}"
    yield Finding(Level.GOOD, about, f"{metadata.issuer} answers, {count} to check logins with")
    if not metadata.knows_pkce:
        todo = "let the provider take code_challenge_method S256, or see that it ignores what it doesn't know"
        yield Finding(Level.WARNING, about, "the provider doesn't say that it knows PKCE", todo)
