"""Settings of the clinical record: the FHIR server that is asked, and the HL7 messages that are taken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pacs_node.config_listener import Port, Seconds, Section, is_loopback, network
from pacs_node.config_web import is_safe_url
from pacs_node.tls import TlsFiles

Item = Literal[
    "smoking",
    "pack_years",
    "years_quit",
    "quit_date",
    "emphysema",
    "family_history_lung_cancer",
]
"""What a site's own code may tell."""


def _coding(value: str) -> str:
    system, bar, code = value.rpartition("|")
    if not bar or not code.strip() or not (system + code).isprintable():
        raise ValueError('a code is "system|code", such as "http://loinc.org|72166-2" or "99LOCAL|SMK"')
    return value


Coding = Annotated[str, AfterValidator(_coding)]


class RecordSettings(Section):
    """The clinical record: what is asked about a patient before an analysis (docs/record.md)."""

    wait_seconds: Annotated[float, Field(gt=0, le=120)] = Field(
        10.0, description="The longest that a study waits for all sources; then it is analysed without them."
    )
    codes: dict[Coding, Item] = Field(
        {},
        description='The site\'s own codes, such as {"99LOCAL|SMK" = "smoking"}, for FHIR and HL7 alike.',
    )
    fhir_url: str = Field(
        "", description="Base address of the FHIR R4 server, https (http on this machine only); empty: none."
    )
    fhir_patient_system: str = Field(
        "", description="Identifier system of the Patient IDs in the images, such as urn:oid:1.2.3.4."
    )
    fhir_ca_file: str = Field(
        "", description="Whom to trust for its TLS (PEM); empty: the authorities of the system."
    )
    fhir_token_file: str = Field(
        "", description="File with a bearer token, read anew for each study; empty: none."
    )
    smart_client_id: str = Field(
        "", description="The node's name at the authorization server (SMART backend services); empty: none."
    )
    smart_key_file: str = Field(
        "", description="Private key (PEM, no password): RSA signs RS384, elliptic curve P-384 ES384."
    )
    smart_key_id: str = Field("", description="kid of that key, as registered.")
    smart_token_url: str = Field(
        "", description="Token endpoint; empty: as the server's .well-known/smart-configuration says."
    )
    smart_scope: str = Field(
        "system/Patient.rs system/Observation.rs system/Condition.rs system/FamilyMemberHistory.rs "
        "system/DiagnosticReport.rs",
        description="What is asked for.",
    )

    @model_validator(mode="after")
    def _fhir_is_whole(self) -> RecordSettings:
        named = (self.fhir_patient_system, self.fhir_token_file, self.smart_client_id)
        if not self.fhir_url:
            if any(named):
                raise ValueError("fhir_url is missing")
            return self
        for key in ("fhir_url", "smart_token_url"):
            value = getattr(self, key)
            if value and not is_safe_url(value):
                raise ValueError(f"{key} must be https://..., or http://... on this machine, without ? and #")
        if not self.fhir_patient_system or not self.fhir_patient_system.isprintable():
            raise ValueError("fhir_url needs fhir_patient_system: a number alone names no patient")
        if self.smart_client_id and self.fhir_token_file:
            raise ValueError("either fhir_token_file or smart_client_id, not both")
        if bool(self.smart_client_id) != bool(self.smart_key_file):
            raise ValueError("smart_client_id and smart_key_file need each other")
        return self


class MllpSettings(Section):
    """HL7 v2 messages by MLLP that tell the clinical record (docs/record.md)."""

    enabled: bool = Field(False, description="Whether messages are taken.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 means every interface.")
    port: Port = Field(2575, description="TCP port to listen on.")
    senders: tuple[Annotated[str, AfterValidator(network)], ...] = Field(
        (),
        strict=False,
        description="Addresses or networks that may send, such as 10.1.2.3 or 10.1.2.0/24; all others are "
        "refused.",
    )
    allow_plaintext: bool = Field(
        False,
        description="Patient data cross the network unencrypted: must be set to listen beyond loopback "
        "without TLS.",
    )
    tls_certificate_file: str = Field(
        "", description="Certificate of the node (PEM); with the next two it speaks only TLS."
    )
    tls_key_file: str = Field("", description="Private key of that certificate (PEM, no password).")
    tls_client_ca_file: str = Field(
        "", description="Whose certificates senders may show (PEM): authorities, or the senders' own."
    )
    accession_fields: tuple[Annotated[str, Field(pattern=r"^(IPC|OBR|ORC)-[1-9][0-9]?$")], ...] = Field(
        ("IPC-1", "OBR-18", "OBR-3", "ORC-3", "OBR-2", "ORC-2"),
        strict=False,
        min_length=1,
        description="Where the accession number of the images stands; the first that is filled counts.",
    )
    patient_authority: str = Field(
        "",
        description="Assigning authority (PID-3.4) of the images' Patient IDs; empty: PID-3 has one ID only.",
    )
    max_connections: int = Field(16, ge=1, le=256, description="Simultaneous senders; more are cut off.")
    max_message_kb: int = Field(1024, ge=1, le=16_384, description="Largest message.")
    message_seconds: Seconds = Field(
        10.0, description="For a whole message, from its first to its last byte."
    )
    idle_seconds: Seconds = Field(300.0, description="A connection without a message is closed after it.")
    keep_days: Annotated[float, Field(gt=0, le=3650)] = Field(
        90.0, description="What messages told is removed after this time."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> MllpSettings:
        files = (self.tls_certificate_file, self.tls_key_file, self.tls_client_ca_file)
        if any(files) and not all(files):
            raise ValueError("TLS needs all three: tls_certificate_file, tls_key_file and tls_client_ca_file")
        if self.enabled and not self.senders:
            raise ValueError("senders is empty: nobody could send")
        if not is_loopback(self.host) and not self.allow_plaintext and not self.tls_certificate_file:
            raise ValueError(
                f"host {self.host!r} is reachable from outside and TLS is not set up: set the three TLS "
                'files, or allow_plaintext = true if the network is protected, or host = "127.0.0.1"'
            )
        return self

    def tls_files(self) -> TlsFiles | None:
        """Return the files for TLS, None where plain TCP is spoken."""
        if not self.tls_certificate_file:
            return None
        return TlsFiles(self.tls_certificate_file, self.tls_key_file, self.tls_client_ca_file)
