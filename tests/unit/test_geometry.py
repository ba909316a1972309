"""Geometry verdict: order by position, one reason with its measured value, tolerances."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.geometry import DUPLICATE_MM, Grid, has_no_gaps, judge_geometry
from tests.ct_factory import CORONAL, SAGITTAL, make_ct_series, make_enhanced_ct

OBLIQUE = (1.0, 0.0, 0.0, 0.0, 0.965926, 0.258819)
FEET_FIRST = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


def refusal(headers: list[Dataset]) -> UnsuitableSeriesError:
    with pytest.raises(UnsuitableSeriesError) as caught:
        judge_geometry(headers)
    return caught.value


def positions(grid: Grid, headers: list[Dataset]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """LPS of voxel (z, 0, 0) by the affine, and Image Position (Patient) of the slice's own header."""
    by_uid = {header.SOPInstanceUID: header for header in headers}
    index = np.array([[z, 0, 0, 1] for z in range(grid.shape[0])])
    named = [list(map(float, by_uid[f.sop_instance_uid].ImagePositionPatient)) for f in grid.frames]
    return (index @ grid.affine_index_to_lps.T)[:, :3], np.array(named)


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 2**16),
    spacing=st.sampled_from([0.625, 1.0, 2.5, 3.0, 5.0]),
    orientation=st.sampled_from([(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), OBLIQUE, FEET_FIRST]),
    pixels=st.tuples(st.floats(0.4, 1.0), st.floats(0.4, 1.0)),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
)
def test_affine_maps_every_slice_to_its_own_position_in_any_order(
    seed: int,
    spacing: float,
    orientation: tuple[float, ...],
    pixels: tuple[float, float],
    origin: tuple[float, float, float],
) -> None:
    n = max(50, int(150 / spacing) + 1)
    headers = make_ct_series(
        n, matrix=4, spacing_mm=spacing, orientation=orientation, pixel_spacing_mm=pixels, origin_mm=origin
    )
    expected = judge_geometry(headers)
    shuffled = random.Random(seed).sample(headers, n) + headers[:3]
    grid = judge_geometry(shuffled)
    np.testing.assert_array_equal(grid.affine_index_to_lps, expected.affine_index_to_lps)
    assert grid.frames == expected.frames
    assert grid.shape == (n, 4, 4)
    by_affine, by_header = positions(grid, headers)
    np.testing.assert_allclose(by_affine, by_header, atol=0.01)
    np.testing.assert_allclose(grid.spacing_mm, (spacing, *pixels), rtol=1e-4)
    # The far corner, from first principles (PS3.3 equation C.7.6.2.1-1).
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    corner = by_header[0] + 3 * pixels[0] * column + 3 * pixels[1] * row
    np.testing.assert_allclose((grid.affine_index_to_lps @ [0, 3, 3, 1])[:3], corner, atol=0.01)


def test_slices_go_along_the_normal_not_by_instance_number() -> None:
    headers = make_ct_series(60, matrix=4, spacing_mm=3)
    for header in headers:
        header.InstanceNumber = 61 - header.InstanceNumber
    grid = judge_geometry(headers)
    assert [f.sop_instance_uid for f in grid.frames] == [h.SOPInstanceUID for h in headers]
    assert grid.affine_index_to_lps[2, 0] == pytest.approx(3)


def test_normal_pointing_to_the_feet_descends_in_z() -> None:
    headers = make_ct_series(60, matrix=4, spacing_mm=3, orientation=FEET_FIRST)
    assert judge_geometry(headers).affine_index_to_lps[2, 0] == pytest.approx(-3)


@pytest.mark.parametrize("legacy", [False, True])
def test_multiframe_has_the_grid_of_its_single_frames(legacy: bool) -> None:
    singles = make_ct_series(matrix=4)
    expected = judge_geometry(singles)
    enhanced = make_enhanced_ct(random.Random(1).sample(singles, len(singles)), legacy=legacy)
    grid = judge_geometry([enhanced])
    np.testing.assert_array_equal(grid.affine_index_to_lps, expected.affine_index_to_lps)
    assert {frame.sop_instance_uid for frame in grid.frames} == {enhanced.SOPInstanceUID}
    numbers = [frame.frame_number for frame in grid.frames]
    assert sorted(n for n in numbers if n) == list(range(1, 65))
    groups = enhanced.PerFrameFunctionalGroupsSequence
    heights = [groups[n - 1].PlanePositionSequence[0].ImagePositionPatient[2] for n in numbers if n]
    assert heights == sorted(heights)


@pytest.mark.parametrize(
    ("code", "words", "change"),
    [
        (ReasonCode.TOO_FEW_SLICES, "5 slices", {"n_slices": 5}),
        (ReasonCode.TOO_FEW_SLICES, "1 slice,", {"n_slices": 1}),
        (ReasonCode.TOO_FEW_SLICES, "49 slices", {"n_slices": 49, "spacing_mm": 5}),
        (ReasonCode.TOO_SHORT, "64 mm", {"spacing_mm": 1}),
        (ReasonCode.TOO_THICK, "8.00 mm", {"n_slices": 40, "spacing_mm": 8}),
        (ReasonCode.TOO_THICK, "7.00 mm", {"spacing_mm": 7, "thickness_mm": 1}),
        (ReasonCode.TOO_THICK, "6.00 mm", {"thickness_mm": 6}),
        (ReasonCode.GAP, "about 2 missing", {"drop": [20, 21]}),
        (ReasonCode.GAP, "3.00 mm", {"jitter_mm": 0.3}),
        (ReasonCode.DUPLICATE, "1 pair(s)", {"duplicates": [3]}),
        (ReasonCode.DUPLICATE, "64 pair(s)", {"duplicates": range(64)}),
        (ReasonCode.TILT, "12.0 degrees", {"tilt_degrees": 12}),
        (ReasonCode.TILT, "0.5 degrees", {"tilt_degrees": 0.5}),
        (ReasonCode.NOT_AXIAL, "0.00", {"orientation": CORONAL}),
        (ReasonCode.NOT_AXIAL, "0.00", {"orientation": SAGITTAL}),
        (ReasonCode.MIXED_PATIENT, "2 different patients", {"mixed_patient": True}),
        (ReasonCode.MIXED_GEOMETRY, "frame of reference", {"mixed_frame_of_reference": True}),
    ],
)
def test_refusals_name_the_code_and_the_measured_value(
    code: ReasonCode, words: str, change: dict[str, Any]
) -> None:
    headers = make_ct_series(**{"matrix": 4, **change})
    reason = refusal(random.Random(5).sample(headers, len(headers)))
    assert (reason.code, words in reason.sentence) == (code, True), reason.sentence
    assert "SYNTHETIC" not in reason.sentence


def change_one(keyword: str, value: Any) -> list[Dataset]:
    headers = make_ct_series(matrix=4)
    if value is None:
        delattr(headers[7], keyword)
    else:
        setattr(headers[7], keyword, value)
    return headers


@pytest.mark.parametrize(
    ("code", "keyword", "value"),
    [
        (ReasonCode.MIXED_GEOMETRY, "PixelSpacing", [5.0, 5.1]),
        (ReasonCode.MIXED_GEOMETRY, "Rows", 8),
        (ReasonCode.MIXED_GEOMETRY, "ImageOrientationPatient", [1, 0, 0, 0, 0.9962, 0.0872]),
        (ReasonCode.MIXED_GEOMETRY, "ImageOrientationPatient", [-1, 0, 0, 0, -1, 0]),
        (ReasonCode.MIXED_PATIENT, "StudyInstanceUID", "2.25.1"),
        (ReasonCode.TILT, "ImagePositionPatient", [-157.0, -150.0, -72.5]),
        (ReasonCode.TILT, "GantryDetectorTilt", 10),
        (ReasonCode.NO_GEOMETRY, "ImagePositionPatient", None),
        (ReasonCode.NO_GEOMETRY, "ImagePositionPatient", [1, 2]),
        (ReasonCode.NO_GEOMETRY, "ImageOrientationPatient", None),
        (ReasonCode.NO_GEOMETRY, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        (ReasonCode.NO_GEOMETRY, "ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        (ReasonCode.NO_GEOMETRY, "PixelSpacing", None),
        (ReasonCode.NO_GEOMETRY, "PixelSpacing", [0, 0]),
        (ReasonCode.NO_GEOMETRY, "FrameOfReferenceUID", None),
        (ReasonCode.NO_GEOMETRY, "SOPInstanceUID", None),
        (ReasonCode.NO_GEOMETRY, "Columns", 0),
    ],
)
def test_one_odd_slice_is_enough(code: ReasonCode, keyword: str, value: Any) -> None:
    assert refusal(change_one(keyword, value)).code == code


@pytest.mark.parametrize("jitter", [0.01, 0.05])
def test_rounded_positions_are_accepted(jitter: float) -> None:
    headers = make_ct_series(300, matrix=4, spacing_mm=0.625, jitter_mm=jitter)
    by_affine, by_header = positions(judge_geometry(headers), headers)
    assert np.abs(by_affine - by_header).max() <= 2 * jitter


def test_positions_written_with_one_decimal_are_accepted() -> None:
    headers = make_ct_series(300, matrix=4, spacing_mm=0.625)
    for header in headers:
        header.ImagePositionPatient = [round(float(v), 1) for v in header.ImagePositionPatient]
    assert judge_geometry(headers).spacing_mm[0] == pytest.approx(0.625, abs=1e-3)


def test_missing_thin_slice_is_seen_among_rounded_positions() -> None:
    headers = make_ct_series(300, matrix=4, spacing_mm=0.625, jitter_mm=0.05, drop=[140])
    assert refusal(headers).code == ReasonCode.GAP


def test_spacing_that_drifts_is_no_grid() -> None:
    headers = make_ct_series(100, matrix=4, spacing_mm=2)
    for i, header in enumerate(headers):
        header.ImagePositionPatient = [0.0, 0.0, 2.0 * i + 0.0015 * i * i]
    assert refusal(headers).code == ReasonCode.GAP


def test_same_image_twice_counts_once_but_a_changed_one_is_a_conflict() -> None:
    headers = make_ct_series(matrix=4)
    assert judge_geometry([*headers, *headers]).shape[0] == 64
    changed = deepcopy(headers[9])
    changed.InstanceNumber = 777
    assert refusal([*headers, changed]).code == ReasonCode.CONFLICT


def test_multiframe_must_be_alone_and_describe_every_frame() -> None:
    singles = make_ct_series(matrix=4)
    enhanced = make_enhanced_ct(singles)
    assert refusal([enhanced, singles[0]]).code == ReasonCode.MIXED_GEOMETRY
    enhanced.NumberOfFrames = 65
    assert refusal([enhanced]).code == ReasonCode.NO_GEOMETRY
    del enhanced.PerFrameFunctionalGroupsSequence
    assert refusal([enhanced]).code == ReasonCode.NO_GEOMETRY


def test_enhanced_with_the_same_stack_twice_is_a_duplicate() -> None:
    enhanced = make_enhanced_ct(make_ct_series(matrix=4) + make_ct_series(matrix=4, seed="b"))
    assert refusal([enhanced]).code == ReasonCode.DUPLICATE


def test_limits_are_inclusive() -> None:
    assert judge_geometry(make_ct_series(50, matrix=4, spacing_mm=3.0)).extent_mm == pytest.approx(150)
    assert judge_geometry(make_ct_series(50, matrix=4, spacing_mm=5.0)).thickness_mm == 5.0


def test_has_no_gaps_while_slices_arrive() -> None:
    headers = make_ct_series(matrix=4)
    assert has_no_gaps(headers)
    assert has_no_gaps(headers[10:30])
    assert has_no_gaps([make_enhanced_ct(headers)])
    assert not has_no_gaps([*headers[:5], *headers[6:]])
    assert not has_no_gaps([*headers[::2], *headers[1:11:2]])
    assert not has_no_gaps(headers[:1])
    assert not has_no_gaps([])
    assert not has_no_gaps(change_one("ImagePositionPatient", None))


def test_two_images_nearer_than_the_limit_are_duplicates() -> None:
    headers = make_ct_series(matrix=4, spacing_mm=2.5)
    headers[30].ImagePositionPatient = [
        *headers[29].ImagePositionPatient[:2],
        headers[29].ImagePositionPatient[2] + DUPLICATE_MM / 2,
    ]
    assert refusal(headers).code == ReasonCode.DUPLICATE


def test_nothing_at_all_has_no_geometry() -> None:
    assert refusal([]).code == ReasonCode.NO_GEOMETRY
