"""Who stands at the gate, what is answered, and what may be asked for at all."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from pacs_node import gate_pdu
from pacs_node.gate_pdu import Rejection

_DICOM = "1.2.840.10008.3.1.1.1"
"""Application Context Name (PS3.7 annex A.2.1)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may take before it is an association.

    Parameters
    ----------
    request_seconds
        From the connection to the last byte of its association request.
    tls_seconds
        From the connection to the end of the TLS handshake.
    per_address, pending
        Connections without a finished request, of one address and of all. One more drops the oldest: who
        sends its request at once is not displaced by those who send none.
    """

    request_seconds: float = 10.0
    tls_seconds: float = 5.0
    per_address: int = 16
    pending: int = 512


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks for an association.

    Parameters
    ----------
    calling_ae, called_ae
        As the request says; empty where it didn't come so far.
    address
        Of the peer, without a zone; an IPv4 address also where it came mapped into IPv6.
    certificate
        SHA-256 of its TLS certificate, lower-case hexadecimal; empty without TLS.
    """

    calling_ae: str
    called_ae: str
    address: str
    certificate: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a visitor is not admitted: the answer to give, None for an abort, and a sentence for the record."""

    answer: Rejection | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Admitted:
    """A connection whose sender is known.

    Parameters
    ----------
    connection
        Blocking; no byte behind the association request has been read.
    address
        As ``accept`` gave it.
    request
        The bytes of the A-ASSOCIATE-RQ.
    """

    connection: socket.socket
    address: tuple[str, int]
    visitor: Visitor
    request: bytes


def objection(request: bytearray) -> Refusal | None:
    """Why nobody may ask for an association so (PS3.8 7.1.1.2, 9.3.2)."""
    versions, context = gate_pdu.read_offer(request)
    if not versions & 1:
        return Refusal(Rejection.PROTOCOL_UNKNOWN, "another version of the upper layer protocol")
    if context != _DICOM:
        return Refusal(Rejection.CONTEXT_UNKNOWN, "another application context than DICOM's, or none")
    return None


def host_of(text: str) -> str:
    """Write an address as the configuration does: no zone, IPv4 not mapped."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
