"""What stands before a data set in its file (PS3.10 7.1): written without a library, and read again."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

from dicom_sr.part10 import IMPLEMENTATION_CLASS_UID, implementation_version_name
from pacs_node import __version__

IMPLEMENTATION_VERSION_NAME = implementation_version_name(__version__)

LARGEST = 4096
"""Bytes in which it must end."""

_PREAMBLE = bytes(128) + b"DICM"
_SHORT_ELEMENT = struct.Struct("<HH2sH")
_META_LENGTH = struct.Struct("<HH2sHL")


def file_head(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str = ""
) -> bytes:
    """Return what stands before a data set in its file (PS3.10 7.1).

    Who sent it stands there too, for an object whose row was not written in time.
    """
    before, behind = _around_instance(sop_class_uid, transfer_syntax_uid, source_ae)
    elements = before + _element(0x0003, b"UI", sop_instance_uid) + behind
    return _PREAMBLE + _META_LENGTH.pack(2, 0, b"UL", 4, len(elements)) + elements


@lru_cache(maxsize=64)
def _around_instance(sop_class_uid: str, transfer_syntax_uid: str, source_ae: str) -> tuple[bytes, bytes]:
    """Encode what stands before and behind the SOP Instance UID: the same in all slices of a series."""
    before = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
    behind = (
        _element(0x0010, b"UI", transfer_syntax_uid),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        _element(0x0016, b"AE", source_ae) if source_ae else b"",
    )
    return before + _element(0x0002, b"UI", sop_class_uid), b"".join(behind)


def _element(element: int, vr: bytes, text: str) -> bytes:
    """Group 0002 in Explicit VR Little Endian (PS3.5 7.1.2)."""
    value = text.encode("ascii", "replace")
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    return _SHORT_ELEMENT.pack(2, element, vr, len(value)) + value


class FileMeta(NamedTuple):
    """What was read, and where the data set begins."""

    #: of everything before the data set, bytes
    length: int
    #: element number in group 0002 -> value
    texts: dict[int, str]


def read_file_meta(data: bytes) -> FileMeta | None:
    """Read what `file_head` wrote, None where it is something else."""
    at = len(_PREAMBLE)
    if data[:at] != _PREAMBLE or len(data) < at + 12:
        return None
    end = at + 12 + int.from_bytes(data[at + 8 : at + 12], "little")
    at += 12
    texts: dict[int, str] = {}
    while at + 8 <= end <= len(data):
        _, element, vr, length = _SHORT_ELEMENT.unpack_from(data, at)
        if vr == b"OB":
            at += 4
            length = int.from_bytes(data[at + 4 : at + 8], "little")
        texts[element] = data[at + 8 : at + 8 + length].decode("ascii", "replace").rstrip("\0 ")
        at += 8 + length
    return FileMeta(end, texts) if at == end else None
