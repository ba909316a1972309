"""The head of a data set: what pydicom would read, at the price of what is asked for."""

from __future__ import annotations

import struct
import tracemalloc
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from pacs_node.dataset_head import MAX_DEPTH, MAX_ELEMENTS, HeadError, read_head
from tests.ct_factory import NATIVE, make_ct_series
from tests.small_node import encoded

KEYWORDS = ("SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "PatientName", "SeriesInstanceUID")
WANTED = frozenset(filter(None, map(tag_for_keyword, KEYWORDS)))
LAST = 0x0020000E
UNDEFINED = 0xFFFFFFFF
_LENGTH = 0x00020000


def head(data: bytes, syntax: UID = ExplicitVRLittleEndian) -> Dataset:
    found = read_head(
        data, WANTED, LAST, implicit=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
    )
    return Dataset({element.tag: element for element in found})


def values(ds: Dataset) -> dict[str, str]:
    return {keyword: str(ds.get(keyword) or "") for keyword in KEYWORDS}


def data_sets() -> list[tuple[str, bytes, UID]]:
    """The files that pydicom brings with it, without their file meta information."""
    found = []
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm")):
        content = path.read_bytes()
        if content[128:132] != b"DICM":
            continue
        meta = read_file_meta_info(path)
        syntax = UID(meta.get("TransferSyntaxUID", ""))
        if syntax.is_transfer_syntax and syntax != DeflatedExplicitVRLittleEndian and _LENGTH in meta:
            found.append((path.name, content[144 + int(meta[_LENGTH].value) :], syntax))
    return found


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_it_reads_what_pydicom_reads() -> None:
    """On every file of pydicom's own tests, odd ones among them."""
    compared = 0
    for name, data, syntax in data_sets():
        expected = read_dataset(
            BytesIO(data),
            syntax.is_implicit_VR,
            syntax.is_little_endian,
            stop_when=lambda tag, _vr, _length: tag > LAST,
            specific_tags=sorted(WANTED),
        )
        assert values(head(data, syntax)) == values(expected), name
        compared += 1
    assert compared > 60


@pytest.mark.parametrize("syntax", [uid for uid in NATIVE if uid != DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", [True, False])
def test_sequences_are_stepped_over(syntax: UID, undefined: bool) -> None:
    (ds,) = make_ct_series(1, matrix=8, transfer_syntax=syntax)
    inner, outer = Dataset(), Dataset()
    inner.ReferencedSOPInstanceUID = "9.9"
    inner.SOPInstanceUID = "6.6.6"
    outer.SourceImageSequence = [inner, inner]
    outer.SeriesInstanceUID = "6.6.6"
    ds.ReferencedImageSequence = [outer, outer]
    for item in (ds, outer):
        for element in item:
            element.is_undefined_length = undefined and element.VR == "SQ"
    for item in (inner, outer):
        item.is_undefined_length_sequence_item = undefined
    data, _ = encoded(ds)
    assert values(head(data, syntax)) == values(ds)


def test_another_encoding_than_agreed_on_is_read_as_pydicom_does() -> None:
    (explicit,), (implicit,) = (
        make_ct_series(1, matrix=8, transfer_syntax=uid) for uid in (NATIVE[1], NATIVE[0])
    )
    assert values(head(encoded(explicit)[0], NATIVE[0])) == values(explicit)
    assert values(head(encoded(implicit)[0], NATIVE[1])) == values(implicit)


def opening(item: bool) -> bytes:
    """Begin a sequence, or an item, without an end."""
    if item:
        return struct.pack("<HHL", 0xFFFE, 0xE000, UNDEFINED)
    return struct.pack("<HH2sHL", 8, 0x1140, b"SQ", 0, UNDEFINED)


def closing(depth: int) -> bytes:
    return (struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)) * depth


def test_depth_has_a_limit() -> None:
    uid = struct.pack("<HH2sH4s", 0x20, 0xE, b"UI", 4, b"1.2\0")
    for depth, good in [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)]:
        data = (opening(item=False) + opening(item=True)) * depth + closing(depth) + uid
        if good:
            assert head(data).SeriesInstanceUID == "1.2"
        else:
            with pytest.raises(HeadError, match="nested"):
                head(data)


def test_the_number_of_elements_has_a_limit() -> None:
    with pytest.raises(HeadError, match=f"more than {MAX_ELEMENTS}"):
        head(struct.pack("<HH2sH", 8, 0x16, b"UI", 0) * (MAX_ELEMENTS + 1))


@pytest.mark.parametrize("length", [70_000, 0x7FFFFFFF, 200])
def test_a_value_is_not_longer_than_it_may_be_or_is(length: int) -> None:
    with pytest.raises(HeadError, match="too long, or cut off"):
        head(struct.pack("<HH2sHL", 8, 0x16, b"UN", 0, length) + bytes(min(length, 80_000) - 10))


def test_empty_items_take_no_memory() -> None:
    """pydicom takes 85 times the size of such a data set: 14 MB here."""
    items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 20_000
    data = opening(item=False) + items + closing(1)[8:] + struct.pack("<HH2sH4s", 8, 0x16, b"UI", 4, b"1.2\0")
    tracemalloc.start()
    assert head(data).SOPClassUID == "1.2"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 17


@pytest.mark.parametrize(
    "data",
    [
        opening(item=False) + opening(item=False),
        opening(item=False) + closing(1)[:8],
        opening(item=False) + opening(item=True) + opening(item=True),
        opening(item=False) + opening(item=True) + b"\x08",
        struct.pack("<HH2sH", 8, 0x1140, b"SQ", 0),
    ],
)
def test_what_is_no_sequence_is_refused(data: bytes) -> None:
    with pytest.raises(HeadError):
        head(data)
