"""Command sets (PS3.7 6.3.1, annex E) of the operations that the listener serves."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pacs_node.gate_pdu import PduError

C_STORE, C_ECHO, C_CANCEL = 0x0001, 0x0030, 0x0FFF
N_EVENT_REPORT, N_ACTION = 0x0100, 0x0130
EVENT_REPORT_TAKEN = 0x8100
"""Field of the response to an N-EVENT-REPORT."""

UNRECOGNIZED_OPERATION = 0x0211
"""Status for what is no operation of this listener (PS3.7 C.5.24)."""

_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101
_AFFECTED_CLASS, _REQUESTED_CLASS, _FIELD, _MESSAGE_ID = 0x0002, 0x0003, 0x0100, 0x0110
_RESPONDED_TO, _DATA_SET_TYPE, _STATUS, _COMMENT, _AFFECTED_INSTANCE = 0x0120, 0x0800, 0x0900, 0x0902, 0x1000
_REQUESTED_INSTANCE, _EVENT_TYPE, _ACTION_TYPE = 0x1001, 0x1002, 0x1008
_DATA_SET = 0x0001
_ELEMENT = struct.Struct("<HHL")


@dataclass(frozen=True, slots=True)
class Command:
    """What a request asks for; UIDs are empty where they are absent.

    Parameters
    ----------
    type_id
        Event or Action Type ID.
    status
        Of a response.
    """

    field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str
    sop_instance_uid: str
    type_id: int | None = None
    status: int | None = None

    @property
    def is_request(self) -> bool:
        """Whether it asks, rather than answers."""
        return not self.field & _RESPONSE


def read_command(data: bytes | bytearray) -> Command:
    """Decode a command set: Implicit VR Little Endian, group 0000H only.

    Raises
    ------
    PduError
        It isn't one, or lacks what every command has.
    """
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _ELEMENT.size:
            raise PduError("a command set that ends within an element")
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += _ELEMENT.size
        if group != 0 or length > len(data) - at:
            raise PduError("a command set with an element that doesn't belong there")
        elements[element] = bytes(data[at : at + length])
        at += length
    field = _number(elements, _FIELD)
    # C-CANCEL and responses name the message they are about
    identifier = _MESSAGE_ID if _MESSAGE_ID in elements else _RESPONDED_TO
    return Command(
        field,
        _number(elements, identifier),
        _number(elements, _DATA_SET_TYPE) != _NO_DATA_SET,
        _uid(elements.get(_AFFECTED_CLASS, elements.get(_REQUESTED_CLASS, b""))),
        _uid(elements.get(_AFFECTED_INSTANCE, elements.get(_REQUESTED_INSTANCE, b""))),
        _optional_number(elements, _EVENT_TYPE if _EVENT_TYPE in elements else _ACTION_TYPE),
        _optional_number(elements, _STATUS),
    )


def _number(elements: dict[int, bytes], element: int) -> int:
    value = elements.get(element, b"")
    if len(value) != 2:
        raise PduError(f"a command set without (0000,{element:04X})")
    return int.from_bytes(value, "little")


def _optional_number(elements: dict[int, bytes], element: int) -> int | None:
    return _number(elements, element) if element in elements else None


def _uid(value: bytes) -> str:
    return value.decode("ascii", "backslashreplace").rstrip("\0 ")


def response(command: Command, status: int, comment: str = "") -> bytes:
    """Encode the answer to a request.

    Parameters
    ----------
    comment
        A sentence of ours for the sender's log, at most 64 characters are sent (PS3.7 C, Error Comment).
    """
    elements = {
        _FIELD: struct.pack("<H", command.field | _RESPONSE),
        _RESPONDED_TO: struct.pack("<H", command.message_id),
        _DATA_SET_TYPE: struct.pack("<H", _NO_DATA_SET),
        _STATUS: struct.pack("<H", status),
    }
    texts = {_AFFECTED_CLASS: command.sop_class_uid, _AFFECTED_INSTANCE: command.sop_instance_uid}
    return _encoded(elements, texts | {_COMMENT: comment})


def event_report(message_id: int, sop_class_uid: str, sop_instance_uid: str, event_type: int) -> bytes:
    """Encode an N-EVENT-REPORT request (PS3.7 10.3.1) that a data set follows."""
    elements = {
        _FIELD: struct.pack("<H", N_EVENT_REPORT),
        _MESSAGE_ID: struct.pack("<H", message_id),
        _DATA_SET_TYPE: struct.pack("<H", _DATA_SET),
        _EVENT_TYPE: struct.pack("<H", event_type),
    }
    return _encoded(elements, {_AFFECTED_CLASS: sop_class_uid, _AFFECTED_INSTANCE: sop_instance_uid})


def _encoded(elements: dict[int, bytes], texts: dict[int, str]) -> bytes:
    for element, text in texts.items():
        if text:
            value = text[:64].encode("ascii", "replace")
            elements[element] = value + (b" " if element == _COMMENT else b"\0") * (len(value) % 2)
    body = b"".join(
        _ELEMENT.pack(0, element, len(value)) + value for element, value in sorted(elements.items())
    )
    return _ELEMENT.pack(0, 0, 4) + struct.pack("<L", len(body)) + body
