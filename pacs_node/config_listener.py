"""Settings of the front door: where the node listens, and who may send."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pacs_node.tls import TlsFiles


def _ae_title(value: str) -> str:
    """PS3.5 6.2 AE: up to 16 characters, no backslash or control character, not only spaces."""
    if (
        not value.strip()
        or len(value) > 16
        or "\\" in value
        or not value.isascii()
        or not value.isprintable()
    ):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return value.strip()


AETitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
# the upper limits keep every time that is computed from a setting within what a datetime can hold
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Hours = Annotated[float, Field(gt=0, le=8_760)]
Days = Annotated[float, Field(ge=0, le=36_500)]


class Section(BaseModel):
    """A table of the configuration file: nothing unknown in it, nothing changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ListenerSettings(Section):
    """The DICOM listener: where the PACS sends its studies."""

    ae_title: AETitle = Field("CTNODE", description="AE title that the PACS calls.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 means every interface.")
    port: Port = Field(11112, description="TCP port to listen on.")
    allow_plaintext: bool = Field(
        False,
        description="Patient data cross the network unencrypted: must be set to listen beyond loopback "
        "without TLS.",
    )
    tls_certificate_file: str = Field(
        "", description="Certificate of the node (PEM); with the next two the listener speaks only TLS."
    )
    tls_key_file: str = Field("", description="Private key of that certificate (PEM, no password).")
    tls_client_ca_file: str = Field(
        "", description="Whose certificates senders may show (PEM): authorities, or the senders' own."
    )
    max_associations: int = Field(
        32, ge=1, le=1000, description="Simultaneous associations; more are rejected as transient."
    )
    max_pdu_bytes: int = Field(
        131072, ge=4096, le=1048576, description="Largest PDU that is offered to peers."
    )
    max_object_mb: int = Field(
        4096,
        ge=1,
        le=1_048_576,
        description="Largest object; a larger one is answered A700, nothing is kept.",
    )
    acse_timeout_seconds: Seconds = Field(
        10.0, description="For the whole association request, from the connection to its last byte."
    )
    dimse_timeout_seconds: Seconds = Field(
        30.0, description="For the next part of a message, beyond the time that 1 KiB/s would take."
    )
    network_timeout_seconds: Seconds = Field(
        60.0, description="An idle association is aborted after this time."
    )
    association_minutes: float = Field(
        30.0,
        gt=0,
        le=1440,
        description="For a whole association; it is aborted then, and keeps what it brought.",
    )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> ListenerSettings:
        files = (self.tls_certificate_file, self.tls_key_file, self.tls_client_ca_file)
        if any(files) and not all(files):
            raise ValueError("TLS needs all three: tls_certificate_file, tls_key_file and tls_client_ca_file")
        return self

    @model_validator(mode="after")
    def _plaintext_is_a_decision(self) -> ListenerSettings:
        if not is_loopback(self.host) and not self.allow_plaintext and not self.tls_certificate_file:
            raise ValueError(
                f"host {self.host!r} is reachable from outside and TLS is not set up: set "
                "tls_certificate_file, tls_key_file and tls_client_ca_file, "
                "or allow_plaintext = true if the network is protected, "
                'or host = "127.0.0.1"'
            )
        return self

    def tls_files(self) -> TlsFiles | None:
        """Return the files for TLS, None where the listener speaks plain TCP."""
        if not self.tls_certificate_file:
            return None
        return TlsFiles(self.tls_certificate_file, self.tls_key_file, self.tls_client_ca_file)


class BacklogSettings(Section):
    """How much may wait for analysis; beyond it new associations are rejected as transient."""

    max_jobs: int = Field(1000, ge=0, le=1_000_000, description="Jobs that wait or run; 0: no limit.")
    max_mb: int = Field(
        200_000,
        ge=0,
        le=1_000_000_000,
        description="Images of studies that are not analysed yet; 0: no limit.",
    )
    max_hours: float = Field(
        48.0, ge=0, le=8_760, description="Age of the oldest job that waits; 0: no limit."
    )


def network(value: str) -> str:
    """Check an address or a network.

    Raises
    ------
    ValueError
        It is neither.
    """
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        raise ValueError(
            f"{error}; write an address such as 10.1.2.3 or a network such as 10.1.2.0/24"
        ) from None


def _fingerprint(value: str) -> str:
    digits = value.replace(":", "").lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError("a SHA-256 has 64 hexadecimal digits, with or without colons")
    return digits


class Caller(Section):
    """One peer that may send. Everybody else is refused."""

    ae_title: AETitle = Field(description="Calling AE title of the sender.")
    address: Annotated[str, AfterValidator(network)] = Field(
        description="Address or network of the sender, e.g. 10.1.2.3 or 10.1.2.0/24."
    )

    called_ae_title: AETitle | None = Field(
        None, description="AE title that this sender calls; absent means the listener's."
    )
    certificate_sha256: Annotated[str, AfterValidator(_fingerprint)] | None = Field(
        None,
        description="SHA-256 of its TLS certificate, hexadecimal; absent means any that the listener trusts.",
    )
    report_port: Port | None = Field(
        None,
        description="Where it takes storage commitment reports; absent means the port of a destination "
        "with its AE title, or else the association that asked. Every caller that asks is answered, and "
        "'committed' holds only as long as retention.images_days keeps images: this node is no archive.",
    )
    report_host: str | None = Field(
        None, min_length=1, description="Host of that port; absent means where the sender called from."
    )

    @model_validator(mode="after")
    def _host_goes_with_a_port(self) -> Caller:
        if self.report_host is not None and self.report_port is None:
            raise ValueError("report_host needs report_port")
        return self

    def admits(self, ae_title: str, address: str) -> bool:
        """Whether this calling AE title from this address is the sender's."""
        return ae_title == self.ae_title and self.is_from(address)

    def is_from(self, address: str) -> bool:
        """Whether this address is the sender's."""
        return ipaddress.ip_address(address) in ipaddress.ip_network(self.address)


def out_of_reach(host: str, callers: Iterable[Caller]) -> Iterator[str]:
    """Say which senders can't come to a listener that only this machine reaches."""
    away = sorted({one.address for one in callers if not ipaddress.ip_network(one.address).is_loopback})
    if away and is_loopback(host):
        yield (
            f"who sends from {', '.join(away)} can't come in: the listener is reached from this machine only;"
            " set listener.host, and TLS or listener.allow_plaintext"
        )
