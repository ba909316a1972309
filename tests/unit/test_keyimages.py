from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicom_sr.keyimages import (
    BACK,
    FOOT,
    LEFT_OF_PATIENT,
    MAIN,
    OUTLINE,
    ZOOM,
    View,
    caption_lines,
    render_key_images,
    render_overview,
)
from inference.types import Attenuation, Finding, Volume
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_finding, make_findings, make_volume

ORIENTATIONS = [
    (1, 0, 0, 0, 1, 0),
    (-1, 0, 0, 0, 1, 0),
    (1, 0, 0, 0, -1, 0),
    (-1, 0, 0, 0, -1, 0),
    (0, 1, 0, 1, 0, 0),
    (0, -1, 0, 1, 0, 0),
]


def quiet_volume(orientation: tuple[int, ...] = ORIENTATIONS[0], *, reverse: bool = False) -> Volume:
    """Air everywhere, 20 slices, in any stored orientation; non-square pixels."""
    hu = np.full((20, 48, 48), -1000, dtype=np.int16)
    series = make_ct_series(20, matrix=48, hu=hu, orientation=orientation, pixel_spacing_mm=(4.0, 3.0))
    return make_volume(series[::-1] if reverse else series)


def with_bright(volume: Volume, lps: NDArray[np.float64]) -> Volume:
    """One bright voxel block at a place in the patient."""
    z, y, x = np.round(volume.lps_to_index(lps)).astype(int)
    array = volume.array.copy()
    array[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 1000
    return replace(volume, array=array)


def middle(volume: Volume) -> NDArray[np.float64]:
    return volume.index_to_lps((10.0, 24.0, 24.0))


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def bright_part(path: Path, box: tuple[int, int, int, int]) -> tuple[float, float]:
    """Mean (row, column) of white pixels in a part of a picture, relative to the part's middle."""
    left, top, right, bottom = box
    grey = pixels(path)[top:bottom, left:right].astype(int)
    white = (grey.min(axis=2) > 200) & (np.ptp(grey, axis=2) < 10)
    white[: grey.shape[0] // 20] = white[-grey.shape[0] // 6 :] = False  # letters, scale bar
    middle_rows = slice(grey.shape[0] * 45 // 100, grey.shape[0] * 55 // 100)
    white[middle_rows, : grey.shape[1] // 12] = white[middle_rows, -grey.shape[1] // 12 :] = False
    rows, columns = np.nonzero(white)
    assert len(rows) > 50
    return rows.mean() - grey.shape[0] / 2, columns.mean() - grey.shape[1] / 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_right_of_the_patient_is_left_and_front_is_up(
    orientation: tuple[int, ...], reverse: bool, tmp_path: Path
) -> None:
    volume = quiet_volume(orientation, reverse=reverse)
    right_front = middle(volume) + np.array([-30.0, -40.0, 0.0])
    volume = with_bright(volume, right_front)
    (image,) = render_key_images(volume, [make_finding(volume, (9, 22, 22))], tmp_path)
    row, column = bright_part(image.path, (0, 0, MAIN, MAIN))
    assert row < -100
    assert column < -70


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_overview_has_head_up_and_right_on_the_left(
    orientation: tuple[int, ...], reverse: bool, tmp_path: Path
) -> None:
    volume = quiet_volume(orientation, reverse=reverse)
    volume = with_bright(volume, middle(volume) + np.array([-40.0, 0.0, 17.5]))
    path = render_overview(volume, [], tmp_path / "o.png")
    height, width, _ = pixels(path).shape
    row, column = bright_part(path, (0, 0, width, height - 92))
    assert row < -50
    assert column < -100


def test_view_keeps_millimetres_with_their_axis() -> None:
    view = View.of(np.array([3.0, 0, 0]), np.array([0, -5.0, 0]), down=BACK, right=LEFT_OF_PATIENT)
    assert (view.transpose, view.flip_rows, view.flip_columns) == (True, True, False)
    assert view.spacing_mm == (5.0, 3.0)
    plane = np.arange(6).reshape(2, 3)
    assert view.turn(plane).tolist() == [[2, 5], [1, 4], [0, 3]]
    coronal = View.of(np.array([0, 0, 2.5]), np.array([1.0, 0, 0]), down=FOOT, right=LEFT_OF_PATIENT)
    assert (coronal.transpose, coronal.flip_rows, coronal.flip_columns) == (False, True, False)


def outline_pixels(path: Path, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    left, top, right, bottom = box
    picture = pixels(path)[top:bottom, left:right]
    return np.asarray((picture == np.array(OUTLINE)).all(axis=2))


def test_the_outline_encloses_the_mask(tmp_path: Path) -> None:
    volume = quiet_volume()
    mask = np.ones((1, 5, 6), dtype=bool)  # 20 mm high, 18 mm wide
    finding = make_finding(volume, (10, 20, 20), mask=mask, key_slice=10)
    (image,) = render_key_images(volume, [finding], tmp_path)
    plain = outline_pixels(image.path, (MAIN + 2, 0, MAIN + ZOOM, ZOOM - 2))
    outlined = outline_pixels(image.path, (MAIN, ZOOM, MAIN + ZOOM, 2 * ZOOM))
    assert not plain.any()
    rows, columns = np.nonzero(outlined)
    per_mm = ZOOM / 50
    assert np.ptp(rows) + 1 - 4 == pytest.approx(20 * per_mm, abs=1.5)
    assert np.ptp(columns) + 1 - 4 == pytest.approx(18 * per_mm, abs=1.5)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(ZOOM / 2, abs=1.5)


def test_a_large_finding_fits_into_the_enlargement(tmp_path: Path) -> None:
    volume = quiet_volume()
    mask = np.ones((1, 20, 30), dtype=bool)  # 80 x 90 mm
    finding = make_finding(volume, (10, 10, 10), mask=mask, key_slice=10)
    (image,) = render_key_images(volume, [finding], tmp_path)
    outlined = outline_pixels(image.path, (MAIN, ZOOM, MAIN + ZOOM, 2 * ZOOM))
    rows, columns = np.nonzero(outlined)
    assert 0 < rows.min() < rows.max() < ZOOM - 1
    assert 2 < columns.min() < columns.max() < ZOOM - 1


def test_a_finding_at_the_edge_of_the_picture(tmp_path: Path) -> None:
    volume = quiet_volume()
    corner = make_finding(volume, (0, 0, 0), key_slice=1)
    opposite = make_finding(volume, (17, 44, 43), name="Nodule 2", key_slice=18)
    images = render_key_images(volume, [corner, opposite], tmp_path)
    assert [i.slice_index for i in images] == [1, 18]
    assert all(outline_pixels(i.path, (MAIN, ZOOM, MAIN + ZOOM, 2 * ZOOM)).any() for i in images)


def test_files_captions_and_order(tmp_path: Path) -> None:
    volume = make_volume(make_ct_series(16))
    findings = make_findings(volume, 3)
    images = render_key_images(volume, findings, tmp_path / "new" / "folder", note="SYNTHETIC")
    assert [i.path.name for i in images] == ["nodule-01.png", "nodule-02.png", "nodule-03.png"]
    assert [i.tracking_id for i in images] == ["Nodule 1", "Nodule 2", "Nodule 3"]
    assert images[0].slice_index == findings[0].key_slice
    for image in images:
        assert "Research use only, not for primary diagnosis." in image.caption
        assert "not reviewed by a physician" in image.caption
        assert "SYNTHETIC" in image.caption
    assert "8.0 x 6.2 mm, 1500 mm3, solid, right upper lobe" in images[0].caption
    assert "Slice 10 of 16, z = -67.5 mm" in images[0].caption


def test_caption_leaves_out_what_is_not_known() -> None:
    volume = quiet_volume()
    finding: Finding = make_finding(volume, attenuation=None)
    assert str(Attenuation.SOLID) not in caption_lines(volume, finding)[0]


def test_the_same_input_gives_the_same_picture(tmp_path: Path) -> None:
    volume = make_volume(make_ct_series(16))
    findings = make_findings(volume, 2)
    digests = []
    for name in ("a", "b"):
        images = render_key_images(volume, findings, tmp_path / name)
        overview = render_overview(volume, findings, tmp_path / name / "overview.png")
        content = b"".join(p.read_bytes() for p in (*(i.path for i in images), overview))
        digests.append(hashlib.sha256(content).hexdigest())
    assert digests[0] == digests[1]


def test_overview_outlines_every_finding(tmp_path: Path) -> None:
    volume = make_volume(make_ct_series(16))
    findings = make_findings(volume, 3)
    empty = render_overview(volume, [], tmp_path / "none.png")
    path = render_overview(volume, findings, tmp_path / "three.png")
    height, width, _ = pixels(path).shape
    box = (0, 0, width, height - 92)
    assert not outline_pixels(empty, box).any()
    columns = np.flatnonzero(outline_pixels(path, box).any(axis=0))
    assert np.count_nonzero(np.diff(columns) > 8) >= 2
