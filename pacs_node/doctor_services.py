"""What ``pacs-node doctor`` asks the services around the node: logins, notices, clinical records."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy.exc import DatabaseError

from pacs_node.config import Settings
from pacs_node.doctor_findings import Finding, Level
from pacs_node.errors import ConfigurationError, SourceSilentError
from pacs_node.notify_channels import Mail, NotTakenError, open_channels
from pacs_node.notify_queue import Backlog, backlog
from pacs_node.oidc import Provider, read_secret
from pacs_node.oidc_metadata import OidcError
from pacs_node.record_fhir import FhirSource
from pacs_node.storage import existing_database

_LONG = timedelta(hours=1)


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


def check_notifications(settings: Settings, now: datetime, *, offline: bool) -> Iterator[Finding]:
    """Look whether those who are to be told can be told; no message is sent."""
    about = "notifications"
    if not settings.notify.channels:
        return
    try:
        channels = open_channels(settings.notify, settings.listener.ae_title)
        states = _backlogs(settings)
    except ConfigurationError as error:
        yield Finding(Level.PROBLEM, about, str(error), "correct the file or the setting named here")
        return
    except DatabaseError as error:
        todo = "start this version of the node once: it brings the database up to date"
        yield Finding(Level.WARNING, about, f"can't be read ({error.orig})", todo)
        return
    for name, mail in channels.items():
        if name in states:
            yield _waiting(f"{about} by {name}", states[name], now)
        if isinstance(mail, Mail) and not offline:
            try:
                yield Finding(Level.GOOD, f"{about} by {name}", mail.probe())
            except NotTakenError as error:
                todo = "check notify.mail_host and the keys after it, then: pacs-node notify test"
                yield Finding(Level.PROBLEM, f"{about} by {name}", f"can't log in: {error.status}", todo)


def _backlogs(settings: Settings) -> dict[str, Backlog]:
    with existing_database(settings) as database:
        if database is None:
            return {}
        with database.read() as session:
            return {name: backlog(session, name) for name in settings.notify.channels}


def _waiting(about: str, state: Backlog, now: datetime) -> Finding:
    sentence = f"{state.waiting} wait, {state.failed} given up"
    if state.oldest is not None and now - state.oldest > _LONG:
        sentence += f"; the oldest since {state.oldest:%Y-%m-%d %H:%M} UTC"
        todo = "see whether a node runs and the receiver answers: pacs-node notify test"
        return Finding(Level.PROBLEM, about, f"{sentence}; {state.status or 'never tried'}", todo)
    if state.failed:
        todo = "when the receiver answers: pacs-node notify status --requeue"
        return Finding(Level.WARNING, about, f"{sentence}; {state.status}", todo)
    return Finding(Level.GOOD, about, sentence)


def check_fhir(settings: Settings) -> Iterator[Finding]:
    """Ask the server of clinical records what it is; nothing where none is set up."""
    about = "clinical record"
    if not settings.record.fhir_url:
        return
    try:
        version = FhirSource(settings.record).capabilities()
    except ConfigurationError as error:
        yield Finding(Level.PROBLEM, about, str(error), "write the key or the token into that file")
        return
    except SourceSilentError as error:
        todo = (
            f"see that {settings.record.fhir_url} answers from here and lets the node in; studies don't wait"
        )
        yield Finding(Level.PROBLEM, about, f"the FHIR server can't be asked: {error}", todo)
        return
    words = f"{settings.record.fhir_url} answers, FHIR {version}"
    if version.startswith("4."):
        yield Finding(Level.GOOD, about, words)
    else:
        yield Finding(Level.WARNING, about, words, "give record.fhir_url the address of FHIR R4")
