from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference.evaluate.metaimage import LEAST_HU, MetaImageError, read_metaimage
from inference.types import SourceFrame, Volume
from tests.metaimage import write_metaimage

NAME = "1.3.6.1.4.1.14519.5.2.1.6279.6001.100225287222365663678666836860"


@pytest.fixture
def volume() -> Volume:
    array = np.random.default_rng(0).integers(-1000, 400, (5, 6, 7)).astype(np.int16)
    affine = np.array([[0, 0, 0.7, -120.5], [0, 0.8, 0, -90.25], [1.25, 0, 0, -300.0], [0, 0, 0, 1]])
    return Volume(array, affine, "f", "st", "se", (SourceFrame("c", "i"),) * 5)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("msb", [False, True])
def test_what_was_written_comes_back(
    volume: Volume, tmp_path: Path, compressed: bool, local: bool, msb: bool
) -> None:
    path = tmp_path / (f"{NAME}.mha" if local else f"{NAME}.mhd")
    read = read_metaimage(write_metaimage(volume, path, compressed=compressed, local=local, msb=msb))
    assert np.array_equal(read.array, volume.array)
    assert read.array.dtype == np.int16
    assert np.allclose(read.affine_index_to_lps, volume.affine_index_to_lps)
    assert read.spacing_mm == pytest.approx((1.25, 0.8, 0.7))
    assert read.series_uid == NAME
    assert len({frame.sop_instance_uid for frame in read.frames}) == 5


def test_a_scan_turned_in_the_plane_is_turned_back(volume: Volume, tmp_path: Path) -> None:
    path = write_metaimage(volume, tmp_path / "a.mhd", turned=True)
    assert "TransformMatrix = -1 0 0 0 -1 0 0 0 1" in path.read_text()
    read = read_metaimage(path)
    assert np.array_equal(read.array, volume.array)
    assert np.allclose(read.affine_index_to_lps, volume.affine_index_to_lps)


def test_what_lies_outside_the_field_of_view_is_air(volume: Volume, tmp_path: Path) -> None:
    volume.array[0, 0, 0] = -3024
    assert read_metaimage(write_metaimage(volume, tmp_path / "a.mhd")).array[0, 0, 0] == LEAST_HU


def test_floats_stay_floats_and_unsigned_do_not_wrap(volume: Volume, tmp_path: Path) -> None:
    floats = read_metaimage(write_metaimage(volume, tmp_path / "a.mhd", element="MET_FLOAT"))
    assert floats.array.dtype == np.float32
    high = Volume(
        np.full((5, 6, 7), 40000, np.int32), volume.affine_index_to_lps, "f", "s", "s", volume.frames
    )
    read = read_metaimage(write_metaimage(high, tmp_path / "b.mhd", element="MET_USHORT"))
    assert read.array.dtype == np.int16
    assert read.array.max() == np.iinfo(np.int16).max


def _edited(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("NDims = 3", "NDims = 2", "no three-dimensional"),
        ("MET_SHORT", "MET_LONG_LONG", "isn't known"),
        ("DimSize = 7 6 5", "DimSize = 7 6 500", "bytes of voxels"),
        ("DimSize = 7 6 5", "DimSize = 0 6 5", "is no volume"),
        ("DimSize = 7 6 5", "DimSize = 9999 9999 9999", "is no volume"),
        ("ElementSpacing = 0.7", "ElementSpacing = x", "ElementSpacing isn't 3 numbers"),
        ("ElementSpacing = 0.700000", "ElementSpacing = 0", "degenerate"),
        ("= a.raw", "= ../a.raw", "beside it"),
        ("= a.raw", "= /etc/hostname", "beside it"),
        ("= a.raw", "= LIST", "beside it"),
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1", "TransformMatrix = 0 1 0 1 0 0 0 0 1", "aren't axial"),
        ("CompressedData = False", "CompressedData = True", "damaged"),
    ],
)
def test_what_is_wrong_is_said(volume: Volume, tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = _edited(write_metaimage(volume, tmp_path / "a.mhd"), old, new)
    with pytest.raises(MetaImageError, match=reason):
        read_metaimage(path)


def test_no_metaimage_and_missing_voxels(volume: Volume, tmp_path: Path) -> None:
    junk = tmp_path / "junk.mhd"
    junk.write_bytes(bytes(range(256)))
    with pytest.raises(MetaImageError, match="no three-dimensional"):
        read_metaimage(junk)
    path = write_metaimage(volume, tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    with pytest.raises(FileNotFoundError):
        read_metaimage(path)
