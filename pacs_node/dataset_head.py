"""The first elements of a data set that nobody has looked at yet, read without building what stands between.

A library that makes an object of every element can be made to fill the memory by a few megabytes of empty
items. This reader walks over sequences instead: its memory is that of the values asked for, and depth, number
of elements and length of a value have limits.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

MAX_DEPTH = 64
"""Sequences within sequences, as in DCMTK."""
MAX_ELEMENTS = 100_000
MAX_VALUE_BYTES = 1 << 16
"""Of an element that is asked for."""

_SHORT = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH"),
        *(b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class HeadError(ValueError):
    """The bytes are no data set, or one beyond the limits; the text is a sentence of ours."""


class _Reader:
    """Walks over encoded elements (PS3.5 7.1)."""

    def __init__(self, data: bytes, *, implicit: bool, little_endian: bool) -> None:
        self._data = data
        self._little_endian = little_endian
        order = "<" if little_endian else ">"
        self._explicit = struct.Struct(f"{order}HH2sH").unpack_from
        self._long = struct.Struct(f"{order}L").unpack_from
        self._at = 0
        self._left = MAX_ELEMENTS
        # as pydicom does: some senders encode otherwise than they say
        self._implicit = implicit and not _is_vr(data[4:6])

    def collect(self, wanted: Collection[int], last: int) -> list[RawDataElement]:
        found = []
        data, explicit, implicit = self._data, self._explicit, self._implicit
        size = len(data)
        while size - self._at >= 8:
            start = self._at + 8
            group, element, vr, length = explicit(data, self._at)
            tag = group << 16 | element
            if not implicit and vr in _SHORT and group != 0xFFFE and self._left > 0:
                # what nearly all are: no call for each of them
                self._left -= 1
            else:
                tag, vr, length, as_implicit = self._head(implicit=implicit)
                start = self._at
                if length == _UNDEFINED and tag <= last:
                    self._skip_items(implicit=as_implicit or vr == b"UN")
                    continue
            if tag > last:
                break
            self._at = start + length
            if tag in wanted:
                if length > MAX_VALUE_BYTES or self._at > size:
                    raise HeadError("an identifying element is too long, or cut off")
                found.append(self._element(tag, vr, data[start : self._at]))
        return found

    def _element(self, tag: int, vr: bytes, value: bytes) -> RawDataElement:
        name = vr.decode("ascii") if vr else dictionary_VR(tag)
        return RawDataElement(
            BaseTag(tag), name, len(value), value, 0, not vr, self._little_endian, is_raw=True
        )

    def _head(self, *, implicit: bool) -> tuple[int, bytes, int, bool]:
        """Read tag, VR (empty where implicit) and length; whether the element is in Implicit VR."""
        self._left -= 1
        if self._left < 0:
            raise HeadError(f"more than {MAX_ELEMENTS} elements before those that identify it")
        data, at = self._data, self._at
        if len(data) - at < 8:
            raise HeadError("the data set ends within a sequence")
        group, element, vr, length = self._explicit(data, at)
        if not implicit and vr in _SHORT and group != 0xFFFE:
            self._at = at + 8
            return group << 16 | element, vr, length, False
        if implicit or group == 0xFFFE or not _is_vr(vr):
            self._at = at + 8
            return group << 16 | element, b"", int(self._long(data, at + 4)[0]), True
        if vr not in _LONG:
            self._at = at + 8
            return group << 16 | element, vr, length, False
        if len(data) - at < 12:
            raise HeadError("the data set ends within an element")
        self._at = at + 12
        return group << 16 | element, vr, int(self._long(data, at + 8)[0]), False

    def _skip_items(self, *, implicit: bool) -> None:
        """Walk over a sequence of undefined length; what has a length is stepped over."""
        # one entry for each sequence and each item that is open: is it an item, and its encoding
        open_: list[tuple[bool, bool]] = [(False, implicit)]
        while open_:
            in_item, implicit = open_[-1]
            tag, vr, length, is_implicit = self._head(implicit=implicit)
            if tag == (_ITEM_END if in_item else _SEQUENCE_END):
                open_.pop()
            elif in_item == (tag in {_ITEM, _ITEM_END, _SEQUENCE_END}):
                raise HeadError("a sequence with something else than items")
            elif length != _UNDEFINED:
                self._at += length
            elif len(open_) >= 2 * MAX_DEPTH:
                raise HeadError(f"sequences nested more than {MAX_DEPTH} deep")
            elif in_item:
                open_.append((False, is_implicit or vr == b"UN"))
            else:
                open_.append((True, implicit))


def read_head(
    data: bytes, wanted: Collection[int], last: int, *, implicit: bool, little_endian: bool
) -> list[RawDataElement]:
    """Read some elements of the beginning of a data set.

    Parameters
    ----------
    data
        Encoded, without file meta information; may be cut off anywhere behind what is asked for.
    wanted
        Tags of elements that aren't sequences.
    last
        The first tag behind this one ends the reading.
    implicit, little_endian
        Of the transfer syntax (PS3.5 annex A). An element that is in the other VR encoding is read so.

    Returns
    -------
    list of RawDataElement
        Those of `wanted` that are there, not yet converted, in their order; they don't say where they stood.

    Raises
    ------
    HeadError
        The bytes are no data set, or it has more depth, elements or bytes in a value than the limits.
    """
    return _Reader(data, implicit=implicit, little_endian=little_endian).collect(wanted, last)


def _is_vr(letters: bytes) -> bool:
    return b"AA" <= letters <= b"ZZ" and letters.isalpha() and letters.isupper()
