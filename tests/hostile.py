"""Data sets that nobody should send: each is one CT slice with something wrong, built by code.

`CORPUS` maps a name to the object; the names say what is wrong. Those whose head is wrong must be refused by
the listener, the others may be stored and must end in a verdict with a reason.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from tests.ct_factory import make_ct_series
from tests.small_node import encoded

UNDEFINED = 0xFFFFFFFF
SLICES, MATRIX = 52, 8
_LONG = (b"OB", b"OW", b"SQ", b"UN", b"UT")
_SOP_CLASS, _SOP_INSTANCE, _NAME, _CHARSET = 0x00080016, 0x00080018, 0x00100010, 0x00080005
_BEHIND = 0x00200013


@dataclass(frozen=True)
class Hostile:
    """A data set as it goes over the wire."""

    data: bytes
    #: the head is in order, so that the listener stores it
    storable: bool
    syntax: UID = ExplicitVRLittleEndian
    sop_instance: str = ""


@cache
def series() -> tuple[Dataset, ...]:
    """A harmless series; the hostile slices belong to it."""
    return tuple(
        make_ct_series(SLICES, matrix=MATRIX, pixel_spacing_mm=(40.0, 40.0), spacing_mm=3.0, seed="hostile")
    )


@cache
def plain() -> bytes:
    """Its first slice."""
    return encoded(series()[0])[0]


def element(tag: int, vr: bytes, value: bytes = b"", length: int | None = None) -> bytes:
    """An element in Explicit VR Little Endian; its length may lie."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return head + (struct.pack("<xxL", size) if vr in _LONG else struct.pack("<H", size & 0xFFFF)) + value


def nested(depth: int, tag: int, *, undefined: bool) -> bytes:
    """Sequences within sequences."""
    if undefined:
        opening = element(tag, b"SQ", length=UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
        closing = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
        return opening * depth + closing * depth
    inner = b""
    for _ in range(depth):
        inner = element(tag, b"SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner)
    return inner


def items(count: int, tag: int) -> bytes:
    """A sequence of empty items."""
    return element(tag, b"SQ", struct.pack("<HHL", 0xFFFE, 0xE000, 0) * count)


def elements(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(tag, start, end) of the elements of a harmless data set."""
    at = 0
    while at < len(data):
        group, number, vr = struct.unpack_from("<HH2s", data, at)
        long = vr in _LONG
        (length,) = struct.unpack_from("<L" if long else "<H", data, at + (8 if long else 6))
        end = at + (12 if long else 8) + length
        yield group << 16 | number, at, end
        at = end


def slice_with(tag: int, new: bytes, *, instead: bool = True) -> bytes:
    """The first slice with an element replaced, or put before that tag's place."""
    data = plain()
    for found, start, end in elements(data):
        if found >= tag:
            return data[:start] + new + data[end if instead and found == tag else start :]
    return data + new


def changed(**values: object) -> bytes:
    """The first slice with other values, as pydicom writes them."""
    ds = deepcopy(series()[0])
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return encoded(ds)[0]


def text(tag: int, vr: bytes, value: str | bytes) -> bytes:
    """The first slice with the text of one element replaced."""
    raw = value.encode() if isinstance(value, str) else value
    return slice_with(tag, element(tag, vr, raw + b" " * (len(raw) % 2)))


def deflated(inflated: bytes) -> bytes:
    """As the deflated syntax has it."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(inflated) + packer.flush()


def compressed(syntax: UID, frame: bytes) -> Hostile:
    """The first slice with a frame that may be anything."""
    pixels = element(0x7FE00010, b"OB", encapsulate([frame]), UNDEFINED)
    return Hostile(slice_with(0x7FE00010, pixels), storable=True, syntax=syntax)


def _heads() -> Iterator[tuple[str, bytes]]:
    """Wrong before the series UID: none of these is stored."""
    whole = plain()
    odd = 0x00080006
    for depth in (65, 400, 5000):
        yield f"head nested {depth} deep", slice_with(odd, nested(depth, 0x00081140, undefined=True))
    yield (
        "head of 150 000 items",
        slice_with(
            odd,
            element(0x00081140, b"SQ", length=UNDEFINED) + struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 150_000,
        ),
    )
    yield "head of 150 000 elements", slice_with(odd, element(0x00080008, b"CS") * 150_000)
    yield "head with an endless sequence", slice_with(odd, element(0x00081140, b"SQ", length=UNDEFINED))
    yield (
        "head with a sequence of no items",
        slice_with(odd, element(0x00081140, b"SQ", b"no item at all..", UNDEFINED)),
    )
    yield "uid of 1 MB", slice_with(_SOP_INSTANCE, element(_SOP_INSTANCE, b"UN", b"1" * 1_000_000))
    yield "uid of 64 KB", slice_with(_SOP_INSTANCE, element(_SOP_INSTANCE, b"UI", b"1" * 65_000))
    for name, uid in (
        ("empty", ""),
        ("of a path", "../../../etc/passwd"),
        ("of 65 digits", "1" * 65),
        ("with a slash", "1.2/3"),
        ("with NUL inside", "1.2\0.3"),
        ("with a newline", "1.2\n3"),
        ("with a quote", "1.2';--"),
        ("of two values", "1.2\\1.3"),
        ("of a digit that is none", "1.\N{ARABIC-INDIC DIGIT TWO}"),
        ("of a percent sign", "%s%n%x"),
    ):
        yield f"uid {name}", text(_SOP_INSTANCE, b"UI", uid)
    yield "uid of bytes", text(_SOP_INSTANCE, b"UI", bytes(range(128, 140)))
    yield "uid as a double", slice_with(_SOP_INSTANCE, element(_SOP_INSTANCE, b"FD", bytes(8)))
    yield "length beyond the end", slice_with(odd, element(odd, b"UN", length=0x7FFFFFFF))
    yield "length of 0xFFFFFFFE", slice_with(odd, element(odd, b"UN", length=0xFFFFFFFE))
    yield "no series uid", slice_with(0x0020000E, b"")
    for size in (0, 1, 7, 9, 40, 100):
        yield f"only {size} bytes", whole[:size]
    yield "zeros", bytes(4000)
    yield "ones", b"\xff" * 4000
    yield "noise", random.Random(1).randbytes(4000)
    yield "html", b"<html><script>alert(1)</script>" * 100
    yield "a program", b"MZ" + bytes(60) + b"PE\0\0" + bytes(3000)
    yield "a script", b"#!/bin/sh\nrm -rf /\n" * 100
    yield "with a preamble of its own", b"MZ" + bytes(126) + b"DICM" + whole
    yield "big endian", b"".join(whole[i : i + 2][::-1] for i in range(0, len(whole) - 1, 2))


def _behind() -> Iterator[tuple[str, bytes]]:
    """Wrong behind the series UID, or in a text: these are stored."""
    for depth in (65, 400):
        for undefined in (True, False):
            kind = "undefined" if undefined else "defined"
            wrong = nested(depth, 0x00201115, undefined=undefined)
            yield f"nested {depth} deep, {kind} lengths", slice_with(_BEHIND, wrong, instead=False)
    yield "20 000 items", slice_with(_BEHIND, items(20_000, 0x00201115), instead=False)
    yield "20 000 elements", slice_with(_BEHIND, element(0x00201041, b"DS") * 20_000, instead=False)
    yield "an endless sequence", slice_with(_BEHIND, element(0x00201115, b"SQ", length=UNDEFINED))
    yield "a length beyond the end", slice_with(_BEHIND, element(0x00201041, b"UT", length=0x7FFFFFFF))
    yield "a uid of odd length", slice_with(_SOP_INSTANCE, element(_SOP_INSTANCE, b"UI", b"1.2", 3))
    yield "odd lengths", slice_with(0x00200032, element(0x00200032, b"DS", b"1\\2\\3", 5))
    yield "a VR that is none", slice_with(_BEHIND, element(_BEHIND, b"ZZ", b"1 "))
    yield "numbers as doubles", slice_with(_BEHIND, element(_BEHIND, b"FD", struct.pack("<d", 1e308)))
    yield "a cut off value", plain()[:700]
    for name, charset in (("unknown", "ISO_IR 999"), ("many", "\\".join(["ISO 2022 IR 87"] * 300))):
        yield f"{name} character sets", text(_CHARSET, b"CS", charset)
    yield "a name of escapes", text(_NAME, b"PN", b"\x1b$B\x1b(J\x1b%G\xff\xfe^\x1b[31m\r\n\0")
    yield "a name of 60 KB", text(_NAME, b"PN", "^=" * 30_000)
    for value in ("nan", "inf", "-inf", "1e308", "-1e308", "1e-308", "1e400", "x", "", "1\\2", "0x10"):
        yield f"position {value!r}", text(0x00200032, b"DS", f"{value}\\0\\0" if "\\" not in value else value)
    yield "position of 30 000 values", text(0x00200032, b"DS", "\\".join(["1"] * 30_000))
    for value in ("nan\\nan", "0\\0", "-1\\1", "1e308\\1e308", "1e-308\\1e-308", "1", ""):
        yield f"spacing {value!r}", text(0x00280030, b"DS", value)
    for value in ("0\\0\\0\\0\\0\\0", "nan\\0\\0\\0\\1\\0", "1e308\\0\\0\\0\\1\\0", "1\\0\\0\\1\\0\\0"):
        yield f"orientation {value!r}", text(0x00200037, b"DS", value)
    for value in ("nan", "1e308", "0", "-1e9", "x"):
        yield f"slope {value!r}", text(0x00281053, b"DS", value)
    for rows in (0, 9, 65535):
        yield f"{rows} rows", changed(Rows=rows, Columns=65535 if rows == 65535 else MATRIX)
    yield "negative rows", slice_with(0x00280010, element(0x00280010, b"SS", struct.pack("<h", -1)))
    for count in ("2147483647", "-1", "0", "1" + "0" * 14):
        yield (
            f"{count} frames",
            slice_with(0x00280008, element(0x00280008, b"IS", count.encode().ljust(16)), instead=False),
        )
    for bits in (0, 1, 7, 12, 32, 64, 65535):
        yield f"{bits} bits allocated", changed(BitsAllocated=bits)
    for size in (0, 2, 2 * MATRIX * MATRIX - 2, 2 * MATRIX * MATRIX + 2, 100_000):
        yield f"pixel data of {size} bytes", changed(PixelData=bytes(size))
    yield (
        "fragments in a native syntax",
        slice_with(0x7FE00010, element(0x7FE00010, b"OB", encapsulate([b"\0" * 128]), UNDEFINED)),
    )
    yield "instance number of 300 digits", text(_BEHIND, b"IS", "9" * 300)


def _compressed() -> Iterator[tuple[str, Hostile]]:
    size = struct.pack(">HHIIIIIIIIH", 47, 0, 1 << 31, 1 << 31, 0, 0, 1 << 31, 1 << 31, 0, 0, 1)
    yield (
        "jpeg 2000 of 2**62 pixels",
        compressed(JPEG2000Lossless, b"\xff\x4f\xff\x51" + size + b"\x0f\x01\x01" + b"\xff\xd9"),
    )
    head = b"\xff\xd8\xff\xf7" + struct.pack(">HBHHB", 11, 16, 65535, 65535, 1) + b"\x01\x11\x00"
    yield "jpeg-ls of 2**32 pixels", compressed(JPEGLSLossless, head + b"\xff\xd9")
    yield "jpeg-ls without anything", compressed(JPEGLSLossless, b"\xff\xd8\xff\xd9")
    yield (
        "rle with segments elsewhere",
        compressed(RLELossless, struct.pack("<16L", 2, 64, 1 << 31, *[0] * 13)),
    )
    yield "rle of 2**32 segments", compressed(RLELossless, struct.pack("<16L", *[UNDEFINED] * 16))
    whole = plain()
    for name, data, storable in (
        ("zeros deflated", deflated(bytes(4_000_000)), False),
        ("deflated and cut off", deflated(whole)[:300], False),
        ("not deflated", whole, False),
        ("deflated noise behind the head", deflated(whole) + bytes(10_000), True),
    ):
        yield name, Hostile(data, storable, DeflatedExplicitVRLittleEndian)


_ODD = {"a uid of odd length": "1.2"}

CORPUS: dict[str, Hostile] = {
    **{name: Hostile(data, storable=False) for name, data in _heads()},
    **{name: Hostile(data, storable=True, sop_instance=_ODD.get(name, "")) for name, data in _behind()},
    **dict(_compressed()),
}
"""What is wrong -> the object."""


def bombs() -> dict[str, Hostile]:
    """Those that take much time or memory to make or to read; for the long form."""
    zeros = element(0x00211010, b"OB", bytes(1_150_000_000))
    return {
        "1.5 GB of zeros deflated": Hostile(
            deflated(slice_with(_BEHIND, zeros, instead=False)),
            storable=True,
            syntax=DeflatedExplicitVRLittleEndian,
        ),
        "4 000 000 items": Hostile(
            slice_with(_BEHIND, items(4_000_000, 0x00201115), instead=False), storable=True
        ),
        "4 000 000 elements": Hostile(
            slice_with(_BEHIND, element(0x00201041, b"DS") * 4_000_000, instead=False), storable=True
        ),
        "nested 50 000 deep": Hostile(
            slice_with(_BEHIND, nested(50_000, 0x00201115, undefined=True), instead=False), storable=True
        ),
    }
