"""Settings of the administrator's page."""

from __future__ import annotations

import ipaddress
from typing import Annotated

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
