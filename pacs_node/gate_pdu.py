"""What the gate knows of the DICOM upper layer (PS3.8 9.3): lengths, who asks, and for what."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntEnum

Bytes = bytes | bytearray | memoryview

HEADER_BYTES = 6
REQUEST_HEAD_BYTES = 74
"""Up to where the two AE titles of an A-ASSOCIATE-RQ stand (PS3.8 table 9-11)."""

MAX_REQUEST_BYTES = 1 << 20
"""Of the variable part of an A-ASSOCIATE-RQ; real ones have some kilobytes."""

MAX_COMMAND_BYTES = 1 << 16
"""Of the command set of one message (PS3.7 6.3); real ones have some hundred bytes."""

_HEADER = struct.Struct(">BxL")
_REJECTION = struct.Struct(">BxLxBBB")
_ABORTION = struct.Struct(">BxLxxBB")
_ITEM = struct.Struct(">BxH")
_APPLICATION_CONTEXT = 0x10
_TLS_HANDSHAKE = 0x16
_COMMAND, _LAST = 0x01, 0x02


class PduType(IntEnum):
    """PS3.8 9.3.1."""

    ASSOCIATE_RQ = 1
    ASSOCIATE_AC = 2
    ASSOCIATE_RJ = 3
    P_DATA = 4
    RELEASE_RQ = 5
    RELEASE_RP = 6
    ABORT = 7


_LARGEST: dict[int, int] = {PduType.RELEASE_RQ: 4, PduType.RELEASE_RP: 4, PduType.ABORT: 4}


class Rejection(Enum):
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

    CALLING_AE_UNKNOWN = (1, 1, 3)
    CALLED_AE_UNKNOWN = (1, 1, 7)
    LIMIT_EXCEEDED = (2, 3, 2)
    CONTEXT_UNKNOWN = (1, 1, 2)
    PROTOCOL_UNKNOWN = (1, 2, 2)


class PduError(ValueError):
    """Bytes that this listener doesn't take; the text is a sentence of ours."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The AE titles of an association request, without padding; what isn't ASCII is escaped."""

    called_ae: str
    calling_ae: str


def request_length(header: Bytes) -> int:
    """Length of the whole A-ASSOCIATE-RQ that begins with these six bytes.

    Raises
    ------
    PduError
        It is another PDU, none at all, or larger than `MAX_REQUEST_BYTES`.
    """
    kind, length = _HEADER.unpack(header)
    if kind == _TLS_HANDSHAKE:
        raise PduError("the peer speaks TLS, this listener doesn't")
    if kind != PduType.ASSOCIATE_RQ:
        raise PduError("the first bytes are no association request")
    if not REQUEST_HEAD_BYTES - HEADER_BYTES <= length <= MAX_REQUEST_BYTES:
        raise PduError(f"an association request of {length} bytes; at most {MAX_REQUEST_BYTES} are taken")
    return HEADER_BYTES + int(length)


def read_request_head(data: Bytes) -> RequestHead:
    """Read the AE titles of an A-ASSOCIATE-RQ.

    Parameters
    ----------
    data
        Its first `REQUEST_HEAD_BYTES` bytes, or more.
    """
    called, calling = (
        bytes(data[start : start + 16]).decode("ascii", "backslashreplace").strip(" \0") for start in (10, 26)
    )
    return RequestHead(called, calling)


def read_offer(request: Bytes) -> tuple[int, str]:
    """Protocol versions, one bit each, and Application Context Name of an A-ASSOCIATE-RQ (PS3.8 9.3.2).

    Returns
    -------
    tuple
        Of which the name is empty where there is none, or where the items don't end where the request does.
    """
    at, versions = REQUEST_HEAD_BYTES, int.from_bytes(request[6:8], "big")
    while at + _ITEM.size <= len(request):
        kind, length = _ITEM.unpack_from(request, at)
        at += _ITEM.size
        if kind == _APPLICATION_CONTEXT:
            return versions, bytes(request[at : at + length]).decode("ascii", "replace").strip(" \0")
        at += length
    return versions, ""


def checked_header(header: Bytes, max_p_data: int) -> tuple[int, int]:
    """Read the six bytes before a PDU of an established association: its type and what length follows.

    Parameters
    ----------
    max_p_data
        The largest P-DATA-TF that was offered to the peer (PS3.8 D.1), bytes after the header.

    Raises
    ------
    PduError
        The PDU is longer than its type allows, or is none that a requestor sends then.
    """
    kind, length = read_header(header)
    largest = max_p_data if kind == PduType.P_DATA else _LARGEST.get(kind)
    if largest is None:
        raise PduError(f"a PDU of type {kind:02X}H on an established association")
    if length > largest:
        raise PduError(f"a PDU of type {kind:02X}H with {length} bytes; at most {largest} are taken")
    return kind, length


def rejection(answer: Rejection) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return _REJECTION.pack(PduType.ASSOCIATE_RJ, 4, *answer.value)


def abortion(*, by_user: bool = False) -> bytes:
    """A-ABORT (PS3.8 9.3.8): by the service user, or by the provider for an invalid PDU parameter value."""
    return _ABORTION.pack(PduType.ABORT, 4, 0 if by_user else 2, 0 if by_user else 6)


def release() -> bytes:
    """A-RELEASE-RP (PS3.8 9.3.7)."""
    return _ABORTION.pack(PduType.RELEASE_RP, 4, 0, 0)


def read_header(header: Bytes) -> tuple[int, int]:
    """Type of a PDU and length of what follows its six bytes."""
    kind: int
    length: int
    kind, length = _HEADER.unpack(header)
    return kind, length


def fragments(body: memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """Context, message control header and bytes of each value of a P-DATA-TF (PS3.8 9.3.5, annex E.2).

    Raises
    ------
    PduError
        A value doesn't end where the PDU ends, or is empty.
    """
    at = 0
    while at < len(body):
        if len(body) - at < 6:
            raise PduError("a presentation data value without its head")
        length = int.from_bytes(body[at : at + 4], "big")
        if not 2 <= length <= len(body) - at - 4:
            raise PduError("a presentation data value of another length than it says")
        yield body[at + 4], body[at + 5], body[at + 6 : at + 4 + length]
        at += 4 + length
    if not body:
        raise PduError("a P-DATA-TF without values")


def p_data(context_id: int, data: bytes, max_length: int, *, is_command: bool = True) -> bytes:
    """Wrap a command set or data set in as many P-DATA-TF as the peer's maximum length needs (PS3.8 9.3.5).

    Parameters
    ----------
    max_length
        Of the variable part of a PDU; 0 for no limit.
    is_command
        False for a data set.

    Raises
    ------
    PduError
        The maximum leaves no room for a byte.
    """
    step = len(data) if max_length == 0 else max_length - 6
    if step < 1:
        raise PduError(f"a maximum PDU length of {max_length} bytes leaves no room for an answer")
    pdus = bytearray()
    for start in range(0, len(data), step):
        part = data[start : start + step]
        control = (_COMMAND if is_command else 0) | (_LAST if start + step >= len(data) else 0)
        pdus += _HEADER.pack(PduType.P_DATA, len(part) + 6)
        pdus += struct.pack(">LBB", len(part) + 2, context_id, control) + part
    return bytes(pdus)
