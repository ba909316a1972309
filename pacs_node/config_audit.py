"""Settings of the audit record."""

from __future__ import annotations

import socket

from pydantic import Field, model_validator

from pacs_node.config_listener import Port, Section


class AuditSettings(Section):
    """What becomes of the audit record outside the database."""

    source_id: str = Field(
        "", max_length=64, description="Name of this node in audit messages; empty: the machine's."
    )
    site: str = Field("", max_length=64, description="Name of the site in audit messages; empty: none.")
    heads_file: str = Field(
        "audit-heads.jsonl",
        description="Each hour the last row's number and hash are appended to it; pacs-node audit verify "
        "compares, so that a record that was cut off shows. Relative to the storage directory; best on "
        "another machine's disk.",
    )
    syslog_host: str = Field(
        "", description="Server that gets each event (RFC 5424 over TLS, RFC 5425); empty: none does."
    )
    syslog_port: Port = Field(6514, description="Its TCP port.")
    syslog_ca_file: str = Field("", description="Whose certificate it must show (PEM).")
    syslog_certificate_file: str = Field(
        "", description="Our certificate towards it (PEM); empty: we show none."
    )
    syslog_key_file: str = Field("", description="Private key of that certificate (PEM, no password).")

    @model_validator(mode="after")
    def _syslog_is_whole(self) -> AuditSettings:
        if self.syslog_host and not self.syslog_ca_file:
            raise ValueError("syslog_host needs syslog_ca_file: events are sent by TLS only")
        if bool(self.syslog_certificate_file) != bool(self.syslog_key_file):
            raise ValueError("syslog_certificate_file and syslog_key_file need each other")
        return self

    def origin_name(self) -> str:
        """Return what the node is called in audit messages."""
        return self.source_id or socket.gethostname()
