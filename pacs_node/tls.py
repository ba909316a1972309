"""TLS as DICOM asks for it (PS3.15 B.12, BCP 195): version 1.2 or newer, both sides with a certificate."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pacs_node.errors import ConfigurationError

_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x17, 0x18, 0xA0


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one side.

    Parameters
    ----------
    certificate
        Our certificate, followed by those between it and its authority.
    key
        Its private key, not encrypted.
    authorities
        Whom we trust: certificates of authorities, or the peers' own.
    """

    certificate: str
    key: str
    authorities: str


def server_context(files: TlsFiles, section: str) -> ssl.SSLContext:
    """Context of a listener that asks each peer for its certificate.

    Parameters
    ----------
    section
        Where the settings stand, for the message of an error.

    Raises
    ------
    ConfigurationError
        A file can't be read or doesn't fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, files, section)
    return context


def client_context(files: TlsFiles, section: str) -> ssl.SSLContext:
    """Context that shows our certificate to a peer and checks the peer's, its name too.

    Raises
    ------
    ConfigurationError
        A file can't be read or doesn't fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, files, section)
    return context


def page_context(certificate: str, key: str, section: str = "web") -> ssl.SSLContext:
    """Context of the page: TLS 1.2 or newer, browsers need no certificate.

    Raises
    ------
    ConfigurationError
        A file can't be read or doesn't fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, certificate, key, section)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles, section: str) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # a certificate that stands in the file itself is trusted, also without its authority
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load_own(context, files.certificate, files.key, section)
    _need_file(files.authorities, section)
    try:
        context.load_verify_locations(cafile=files.authorities)
    except OSError as error:
        raise ConfigurationError(
            f"{section}: {files.authorities!r} holds no certificate ({_why(error)})"
        ) from None


def _load_own(context: ssl.SSLContext, certificate: str, key: str, section: str) -> None:
    _need_file(certificate, section)
    _need_file(key, section)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        pair = f"{certificate!r} and {key!r}"
        raise ConfigurationError(
            f"{section}: {pair} are no certificate with its key ({_why(error)})"
        ) from None


def _need_file(path: str, section: str) -> None:
    if not Path(path).is_file():
        raise ConfigurationError(f"{section}: {path!r}: no such file")


def _no_password() -> str:
    """Answer OpenSSL, which would otherwise ask at the terminal and wait."""
    raise ValueError("the key is encrypted")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or error)


def fingerprint(connection: ssl.SSLSocket) -> str:
    """SHA-256 of the peer's certificate, lower-case hexadecimal; empty where it showed none."""
    certificate = connection.getpeercert(binary_form=True)
    return hashlib.sha256(certificate).hexdigest() if certificate else ""


def peer_certificate_ends(
    context: ssl.SSLContext, host: str, port: int, server_name: str, timeout: float = 10.0
) -> datetime:
    """Connect to a peer and read until when its certificate is valid.

    Raises
    ------
    OSError
        It doesn't answer, speaks no TLS (`ssl.SSLError`), or is not trusted (`ssl.SSLCertVerificationError`).
    """
    with (
        socket.create_connection((host, port), timeout) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as connection,
    ):
        ends = (connection.getpeercert() or {}).get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(ends)), UTC)


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is valid (RFC 5280 4.1.2.5), and the SHA-256 of it."""

    begins: datetime
    ends: datetime
    sha256: str


def read_validity(path: Path) -> Validity:
    """Read when the first certificate of a PEM file is valid.

    Raises
    ------
    ValueError
        The file holds no certificate.
    OSError
        It can't be read.
    """
    text = path.read_text(encoding="ascii", errors="replace")
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find("-----END CERTIFICATE-----", begin)
    if begin < 0 or end < 0:
        raise ValueError("no certificate in PEM form")
    der = ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n")
    try:
        begins, ends = _times(der)
    except (IndexError, StopIteration) as error:
        raise ValueError("the certificate is damaged") from error
    return Validity(begins, ends, hashlib.sha256(der).hexdigest())


def _times(certificate: bytes) -> tuple[datetime, datetime]:
    """RFC 5280 4.1: Certificate, tbsCertificate, [version], serial, signature, issuer, validity."""
    _, body = next(_elements(certificate))
    _, to_be_signed = next(_elements(body))
    fields = [(tag, value) for tag, value in _elements(to_be_signed) if tag != _VERSION]
    tag, validity = fields[3]
    if tag != _SEQUENCE:
        raise ValueError("the certificate has no validity where it must stand")
    begins, ends = (_time(tag, value) for tag, value in _elements(validity))
    return begins, ends


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element of a DER sequence (X.690 8.1)."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("a time of another kind")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
