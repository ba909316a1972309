"""The slices for scrolling: which ones, where in the patient, and an outline that encloses the mask."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from dicom_sr import stacks
from dicom_sr.stacks import MARGIN, MOST_PIXELS, MOST_SLICES, SliceStack, outline_path, render_stacks
from inference.types import Finding, SourceFrame, Volume
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_finding, make_volume


def enclosed(path: str) -> float:
    """Area within an outline; holes count negative."""
    total = 0
    for part in re.findall(r"M(\d+) (\d+)([^Mz]*)z", path):
        x, y = int(part[0]), int(part[1])
        for axis, far in re.findall(r"([hv])(-?\d+)", part[2]):
            if axis == "h":
                total -= y * int(far)
                x += int(far)
            else:
                y += int(far)
    return total


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_outline_encloses_the_mask(mask: NDArray[np.bool_]) -> None:
    path = outline_path(mask)
    assert enclosed(path) == mask.sum()
    assert bool(path) == bool(mask.any())
    assert re.fullmatch(r"(M\d+ \d+([hv]-?[1-9]\d*)+z)*", path)


def test_the_outline_of_one_pixel_is_its_four_edges() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[2, 3] = True
    assert outline_path(mask) == "M3 2h1v1h-1v-1z"


def volume_of(array: NDArray[np.int16], spacing_mm: tuple[float, float, float], *, up: bool = True) -> Volume:
    affine = np.diag([spacing_mm[0] if up else -spacing_mm[0], spacing_mm[1], spacing_mm[2], 1.0])
    affine = affine[[2, 1, 0, 3]]  # the first axis of the array is the patient's z, the last one x
    frames = tuple(SourceFrame("1.2", f"1.2.{n}") for n in range(len(array)))
    return Volume(array, affine, "1.3", "1.4", "1.5", frames, spacing_mm[0])


def finding_of(volume: Volume, mask: NDArray[np.bool_], origin: tuple[int, int, int], key: int) -> Finding:
    """A finding with this mask; `key` is an index of the volume."""
    base = make_finding(make_volume(make_ct_series(16, matrix=64)))
    middle = (origin[1] + mask.shape[1] / 2, origin[2] + mask.shape[2] / 2)
    return replace(base, mask=mask, origin=origin, key_slice=key, key_point=middle)


def one(volume: Volume, finding: Finding, directory: Path) -> tuple[SliceStack, NDArray[np.uint8]]:
    (stack,) = render_stacks(volume, [finding], directory)
    with Image.open(stack.path) as image:
        return stack, np.asarray(image.convert("L"))


@pytest.mark.parametrize("up", [True, False])
def test_slices_of_the_mask_and_some_more_from_head_to_foot(tmp_path: Path, up: bool) -> None:
    array = np.full((20, 60, 60), -1000, dtype=np.int16)
    volume = volume_of(array, (2.0, 1.0, 1.0), up=up)
    stack, picture = one(volume, finding_of(volume, np.ones((4, 5, 5), bool), (8, 20, 30), 9), tmp_path)
    assert [one.index for one in stack.slices] == sorted(range(8 - MARGIN, 12 + MARGIN), reverse=up)
    heights = [one.z_mm for one in stack.slices]
    assert heights == sorted(heights, reverse=True)
    assert stack.slices[stack.key].index == 9
    assert {one.index for one in stack.slices if one.outline} == {8, 9, 10, 11}
    assert picture.shape == (stack.rows * len(stack.slices), stack.columns * 2)
    assert (stack.rows, stack.columns, stack.pixel_mm) == (50, 50, (1.0, 1.0))


def test_the_outline_lies_where_the_bright_voxels_are(tmp_path: Path) -> None:
    """Also in a stored orientation that has to be turned, with pixels that are not square."""
    hu = np.full((12, 48, 48), -1000, dtype=np.int16)
    series = make_ct_series(
        12, matrix=48, hu=hu, orientation=(0, 1, 0, -1, 0, 0), pixel_spacing_mm=(2.0, 1.5)
    )
    volume = make_volume(series)
    mask = np.zeros((1, 6, 6), dtype=bool)
    mask[0, :3, :4] = mask[0, 3:, :1] = True
    array = volume.array.copy()
    array[5, 20:26, 22:28][mask[0]] = 200
    volume = replace(volume, array=array)
    stack, picture = one(volume, finding_of(volume, mask, (5, 20, 22), 5), tmp_path)
    assert stack.rows != stack.columns
    top = stack.key * stack.rows
    lung = picture[top : top + stack.rows, : stack.columns]
    assert outline_path(lung > 128) == stack.slices[stack.key].outline
    soft = picture[top : top + stack.rows, stack.columns :]
    assert outline_path(soft > 128) == stack.slices[stack.key].outline


def test_at_the_edge_there_is_air_beyond(tmp_path: Path) -> None:
    array = np.full((3, 40, 40), 100, dtype=np.int16)
    volume = volume_of(array, (2.0, 1.0, 1.0))
    stack, picture = one(volume, finding_of(volume, np.ones((1, 2, 2), bool), (0, 0, 38), 0), tmp_path)
    assert len(stack.slices) == 3
    assert set(np.unique(picture[: stack.rows, : stack.columns])) == {60, 246}
    assert enclosed(stack.slices[stack.key].outline) == 4


def test_a_thick_stack_of_thin_slices_stays_small(tmp_path: Path) -> None:
    """More noise than a CT has: it is what can't be packed."""
    noise = np.random.default_rng(1).normal(40, 100, (90, 170, 170)).astype(np.int16)
    volume = volume_of(noise, (0.5, 0.5, 0.5))
    mask = np.ones((60, 60, 60), dtype=bool)
    stack, _ = one(volume, finding_of(volume, mask, (15, 50, 50), 46), tmp_path)
    assert len(stack.slices) <= MOST_SLICES
    assert stack.slices[stack.key].index == 46
    assert max(stack.rows, stack.columns) == MOST_PIXELS
    assert stack.path.stat().st_size < 300_000
    assert enclosed(stack.slices[stack.key].outline) * 0.5**2 * (100 / MOST_PIXELS) ** 2 == pytest.approx(
        900, rel=0.05
    )


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    volume = make_volume(make_ct_series(16, matrix=64))
    first, second = (one(volume, make_finding(volume), tmp_path / name)[0] for name in "ab")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.describe() == second.describe()
    assert first.describe()["file"] == "nodule-01-slices.webp"
    assert [window["name"] for window in first.describe()["windows"]] == [name for name, _ in stacks.WINDOWS]
