"""Whether two files under one SOP Instance UID hold the same object."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian

from inference.compare import same_content
from tests.ct_factory import LOSSLESS, LOSSY, NATIVE, make_ct_series
from tests.small_objects import write_sr


def save(ds: Dataset, path: Path) -> Path:
    ds.save_as(path, enforce_file_format=True)
    return path


def ct(path: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    """12 bits in 16, which every codec here can hold."""
    (ds,) = make_ct_series(1, transfer_syntax=syntax, bits_stored=12, signed=False)
    return save(ds, path)


@pytest.mark.parametrize("first", [NATIVE[0], LOSSLESS[0]])
@pytest.mark.parametrize("second", [*NATIVE, *LOSSLESS])
def test_the_encoding_does_not_matter(tmp_path: Path, first: str, second: str) -> None:
    assert same_content(ct(tmp_path / "a", first), ct(tmp_path / "b", second))


@pytest.mark.parametrize("syntax", LOSSY)
def test_a_lossy_copy_is_another_object(tmp_path: Path, syntax: str) -> None:
    assert not same_content(ct(tmp_path / "a"), ct(tmp_path / "b", syntax))


def altered(ds: Dataset, how: str) -> None:
    if how == "pixel":
        ds.PixelData = bytes([ds.PixelData[0] ^ 1]) + ds.PixelData[1:]
    elif how == "added":
        ds.PatientComments = "x"
    elif how == "removed":
        del ds.KVP
    elif how == "rows":
        ds.Rows, ds.Columns = ds.Rows * 2, ds.Columns // 2
    elif how == "no pixels":
        del ds.PixelData
    elif how == "cut":
        ds.PixelData = ds.PixelData[:-2]
    else:
        setattr(ds, how, "7")


@pytest.mark.parametrize(
    "how",
    [
        "pixel",
        "added",
        "removed",
        "rows",
        "no pixels",
        "cut",
        "PatientID",
        "InstanceNumber",
        "SeriesDescription",
    ],
)
def test_any_other_difference_matters(tmp_path: Path, how: str) -> None:
    first = ct(tmp_path / "a")
    ds = dcmread(first)
    altered(ds, how)
    second = save(ds, tmp_path / "b")
    assert not same_content(first, second)
    assert not same_content(second, first)


def test_what_a_lossless_encoder_notes_down_does_not_matter(tmp_path: Path) -> None:
    """DCMTK's dcmcjpeg adds a Derivation Description; some writers add group lengths."""
    first = ct(tmp_path / "a")
    ds = dcmread(first)
    ds.DerivationDescription = "Lossless JPEG compression, selection value 1"
    ds.add_new(0x00080000, "UL", 412)
    assert same_content(first, save(ds, tmp_path / "b"))


def test_padding_behind_the_data_set_does_not_matter(tmp_path: Path) -> None:
    first = ct(tmp_path / "a")
    ds = dcmread(first)
    ds.DataSetTrailingPadding = bytes(20)
    assert same_content(first, save(ds, tmp_path / "b"))


def test_objects_without_pixels(tmp_path: Path) -> None:
    first = write_sr(tmp_path / "a")
    assert same_content(first, write_sr(tmp_path / "b"))
    assert not same_content(first, write_sr(tmp_path / "c", text="Another."))


def test_what_cannot_be_read_is_not_the_same(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"\0" * 500)
    good = ct(tmp_path / "a")
    assert not same_content(bad, bad)
    assert not same_content(good, bad)
    assert not same_content(good, tmp_path / "missing")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"\x08\x00\x90\x00PN", b"\x08\x00\x90\x00QN", id="unknown VR"),
        pytest.param(b"\x28\x00\x10\x00US\x02", b"\x28\x00\x10\x00US\x01", id="odd length"),
        pytest.param(b"\x20\x00\x13\x00IS\x02\x001 ", b"\x20\x00\x13\x00IS\x02\x00xy", id="not a number"),
        pytest.param(b"\xe0\x7f\x10\x00OW", b"\xe0\x7f\x10\x00OA", id="unknown VR of pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_element_is_a_difference(tmp_path: Path, old: bytes, new: bytes) -> None:
    first, second = ct(tmp_path / "a"), tmp_path / "b"
    content = first.read_bytes()
    assert content.count(old) == 1
    second.write_bytes(content.replace(old, new))
    assert not same_content(first, second)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield ct(tmp_path / "a"), tmp_path / "b"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(132, 1400), st.integers(0, 255)), min_size=1, max_size=5))
def test_no_damage_leaves_by_an_exception(pair: tuple[Path, Path], damage: list[tuple[int, int]]) -> None:
    first, second = pair
    data = bytearray(first.read_bytes())
    for at, value in damage:
        data[at] = value
    second.write_bytes(data)
    assert same_content(first, second) in {True, False}
