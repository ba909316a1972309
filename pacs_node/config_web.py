"""Settings of the administrator's page."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from pacs_node.config_listener import Hours, Port, Section, is_loopback


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value)) if value else ""
    except ValueError:
        raise ValueError("an address is needed, such as 10.1.2.3, not a name") from None


class WebSettings(Section):
    """The administrator's page."""

    enabled: bool = Field(True, description="Serve the page.")
    host: str = Field(
        "127.0.0.1", description="Address to listen on; beyond loopback only with TLS or behind a proxy."
    )
    port: Port = Field(8080, description="TCP port.")
    names: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Host names that browsers use for the page, beside host and localhost.",
    )
    tls_certificate_file: str = Field(
        "", description="Certificate of the page (PEM, with those up to its authority): it speaks HTTPS only."
    )
    tls_key_file: str = Field("", description="Private key of that certificate (PEM, no password).")
    proxy_address: Annotated[str, AfterValidator(_address)] = Field(
        "",
        description="Address of the reverse proxy that speaks HTTPS to browsers and passes X-Forwarded-For "
        "on: only it may connect. Its way to the page is not encrypted unless TLS is set up here too.",
    )
    metrics_token_file: str = Field(
        "",
        description="File with the bearer token that GET /metrics (Prometheus) wants; empty: it answers to "
        "this machine only, and behind a proxy to nobody.",
    )
    api_requests_per_minute: int = Field(
        600, ge=0, le=1_000_000, description="Requests of one token of the JSON API; 0: no limit."
    )
    idle_minutes: float = Field(
        15.0, gt=0, le=1440, description="A session without a click ends after this time."
    )
    session_hours: Hours = Field(12.0, description="Any session ends after this time.")

    @model_validator(mode="after")
    def _tls_is_whole(self) -> WebSettings:
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise ValueError("tls_certificate_file and tls_key_file need each other")
        return self

    @model_validator(mode="after")
    def _passwords_are_encrypted(self) -> WebSettings:
        if not is_loopback(self.host) and not self.is_https:
            raise ValueError(
                f"host {self.host!r} is reachable from outside, where passwords and patient data would cross "
                "the network unencrypted: set tls_certificate_file and tls_key_file, or proxy_address, "
                'or host = "127.0.0.1"'
            )
        return self

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the page by HTTPS."""
        return bool(self.tls_certificate_file or self.proxy_address)


class OidcSettings(Section):
    """Log in to the page with the accounts of an OpenID Connect provider, beside the page's own."""

    issuer: str = Field(
        "",
        description="Issuer of the provider (https; http on this machine only), as its discovery document "
        "names it; empty: there is none, and only the page's own accounts log in.",
    )
    client_id: str = Field("", description="How the provider knows this node.")
    client_secret_file: str = Field(
        "", description="File with the client's secret; empty: a public client, by PKCE alone."
    )
    page_url: str = Field(
        "",
        description="Address of the page in browsers, such as https://node.example; the provider must allow "
        "it with /oidc/callback as redirect URI.",
    )
    name: str = Field(
        "single sign-on", min_length=1, max_length=40, description="What the button of the login page says."
    )
    scopes: tuple[str, ...] = Field(
        ("openid", "profile"), strict=False, description="What the provider is asked for; openid is needed."
    )
    name_claim: str = Field(
        "preferred_username", min_length=1, description="Claim of the ID token that names a new account."
    )
    role_claim: str = Field(
        "groups",
        min_length=1,
        description="Claim of the ID token with groups or roles; dots lead into objects: realm_access.roles.",
    )
    roles: dict[str, Literal["viewer", "reader", "operator", "auditor", "administrator"]] = Field(
        {},
        description="Group to role; who is in none of these groups gets no way in, who is in several gets "
        "the first of administrator, operator, auditor, reader, viewer.",
    )
    ca_file: str = Field("", description="Whom to trust for the provider's TLS (PEM); empty: the system's.")
    session_hours: Annotated[float, Field(gt=0, le=24)] = Field(
        2.0,
        description="After this time the provider is asked again: so long somebody whom it no longer knows "
        "keeps a session.",
    )

    @model_validator(mode="after")
    def _is_whole(self) -> OidcSettings:
        if not self.issuer:
            return self
        for key, value in (("issuer", self.issuer), ("page_url", self.page_url)):
            if not is_safe_url(value):
                raise ValueError(f"{key} must be https://..., or http://... on this machine, without ? and #")
        if self.page_url.rstrip("/").count("/") != 2:
            raise ValueError("page_url is the page's scheme, host and port only: https://node.example")
        if not self.client_id or not self.roles:
            raise ValueError(
                'a provider needs client_id and roles, such as roles = {"ct-readers" = "viewer"}'
            )
        if "openid" not in self.scopes:
            raise ValueError("scopes must have openid")
        return self

    @property
    def redirect_uri(self) -> str:
        """Where the provider sends browsers back to."""
        return f"{self.page_url.rstrip('/')}/oidc/callback"


def is_safe_url(url: str) -> bool:
    """Whether an address is reached by TLS, or does not leave this machine."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or parts.query or parts.fragment or parts.username is not None or not url.isprintable():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
