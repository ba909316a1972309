"""What the viewer check sees in a picture, on pictures drawn here: no browser."""

from __future__ import annotations

import base64
import hashlib
import http.client
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from conformance.viewer import broken
from conformance.viewer import build as ohif
from conformance.viewer.picture import (
    Box,
    Fit,
    View,
    covered_by,
    faults_of_image,
    faults_of_marker,
    faults_of_overlay,
)
from conformance.viewer.site import site
from conformance.viewer.source import analysed_images
from conformance.viewer.study import Nodule, Slice, Study
from dicom_sr.part10 import save
from dicom_sr.report import build_report
from dicom_sr.seg import build_seg
from tests.ct_factory import make_ct_series, write_series
from tests.finding_factory import make_context, make_findings, make_result, make_volume, without_pixels

ROWS, COLUMNS = 40, 50
SIZE = (210, 400)


def make_study() -> Study:
    rng = np.random.default_rng(1)
    slices = tuple(
        Slice(
            f"1.{n}",
            10 - n,
            np.array([0.0, 0.0, 3.0 * n]),
            rng.normal(-500, 300, (ROWS, COLUMNS)).astype("f4"),
        )
        for n in range(4)
    )
    mask = np.zeros((ROWS, COLUMNS), dtype=np.bool_)
    mask[8:18, 30:44] = True
    nodule = Nodule("N1", {"1.2": mask}, key_image="1.2", point=(37.0, 13.0), long_axis_mm=9.0)
    along = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
    return Study("2.25.1", "A^B", "ID-1", slices, *along, (0.8, 0.6), (nodule,))


STUDY = make_study()
MASK = STUDY.nodules[0].masks["1.2"]
NOTHING = np.zeros_like(MASK)


def draw(number: int = 2, mask: NDArray[np.bool_] = MASK, *, turned: bool = False) -> View:
    """The viewport with a slice and a mask on it, as a viewer should show them."""
    hu = STUDY.slices[number].hu
    fit = Fit.of(STUDY, SIZE)
    grey = np.clip((hu + 1500) / 2000, 0, 1).astype("f4") * 255
    shown = fit.draw(grey[:, ::-1] if turned else grey)
    picture = np.repeat(shown[:, :, None], 3, axis=2)
    picture[fit.draw_mask(mask)] = (250, 120, 90)
    covered = np.zeros(SIZE, dtype=np.bool_)
    return View(picture.astype(np.uint8), covered, 10 - number, (-500.0, 2000.0), ("R", "A"))


def ring(x: float, y: float) -> View:
    """The key slice with a marker, its centre at a place of the viewport."""
    view = draw(mask=NOTHING)
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    away = np.hypot(rows + 0.5 - y, columns + 0.5 - x)
    view.picture[(away > 5) & (away < 7)] = (0, 255, 0)
    return view


def test_the_image_fills_the_height_of_the_viewport() -> None:
    fit = Fit.of(STUDY, SIZE)
    # 40 rows of 0.8 mm fill 210 pixels; 50 columns of 0.6 mm are centred
    assert fit.scale_y == pytest.approx(5.25)
    assert fit.scale_x == pytest.approx(5.25 * 0.6 / 0.8)
    assert fit.top == 0
    assert fit.left == pytest.approx((400 - 50 * fit.scale_x) / 2)


def test_a_right_picture_has_no_faults() -> None:
    view = draw()
    assert faults_of_image(view, STUDY) == []
    assert faults_of_overlay(view, STUDY, "N1") == []


def test_the_image_of_another_slice_is_noticed() -> None:
    assert "more like slice 2" in faults_of_image(replace(draw(1), instance_number=8), STUDY)
    assert faults_of_image(replace(draw(), instance_number=99), STUDY) == [
        "instance 99 isn't one of the series"
    ]


def test_an_image_turned_round_is_noticed() -> None:
    assert "more like its mirror image" in faults_of_image(draw(turned=True), STUDY)
    upside_down = replace(draw(), picture=draw().picture[::-1])
    assert "more like itself upside down" in faults_of_image(upside_down, STUDY)


def test_wrong_markers_are_noticed() -> None:
    assert faults_of_image(replace(draw(), markers=("L", "A")), STUDY) == [
        "marked ('L', 'A') at the left and the top, should be ('R', 'A')"
    ]


@pytest.mark.parametrize(
    "mask", [MASK[:, ::-1], MASK[::-1], np.roll(MASK, 3, axis=1), MASK | MASK[:, ::-1]],
    ids=["mirrored", "upside down", "three pixels aside", "one too many"],
)  # fmt: skip
def test_an_overlay_elsewhere_is_noticed(mask: NDArray[np.bool_]) -> None:
    (fault,) = faults_of_overlay(draw(mask=mask), STUDY, "N1")
    assert fault.startswith("the overlay lies elsewhere")


def test_an_outline_around_a_small_mask_is_no_fault_but_another_place_is() -> None:
    small = np.zeros_like(MASK)
    small[10:12, 33:35] = True
    study = replace(STUDY, nodules=(replace(STUDY.nodules[0], masks={"1.2": small}),))
    shown = binary_dilation(Fit.of(STUDY, SIZE).draw_mask(small), iterations=2)
    view = draw(mask=NOTHING)
    outlined, away = view.picture.copy(), view.picture.copy()
    outlined[shown] = (250, 120, 90)
    away[np.roll(shown, 3, axis=1)] = (250, 120, 90)
    assert faults_of_overlay(replace(view, picture=outlined), study, "N1") == []
    (fault,) = faults_of_overlay(replace(view, picture=away), study, "N1")
    assert fault.startswith("the overlay lies elsewhere")


def test_a_study_is_listed_by_what_names_the_patient() -> None:
    assert STUDY.listed_as() == ["A", "ID-1"]
    assert replace(STUDY, patient_name="").listed_as() == ["ID-1"]


def test_only_the_images_of_the_analysed_series_are_taken(tmp_path: Path) -> None:
    headers = make_ct_series(16)
    volume = make_volume(headers)
    write_series(headers, tmp_path / "ct" / "one" / "dicom")
    write_series(make_ct_series(2, seed="other"), tmp_path / "ct" / "other")
    (tmp_path / "ct" / "LICENSE").write_text("CC BY 3.0")
    seg = build_seg(volume, make_findings(volume, 1), without_pixels(headers), make_context())
    save(seg, tmp_path / "seg.dcm")
    found = analysed_images(tmp_path / "ct", tmp_path / "seg.dcm")
    assert {path.parent.parent.name for path in found} == {"one"}
    assert len(found) == 16


def test_no_overlay_and_the_wrong_slice_are_noticed() -> None:
    assert faults_of_overlay(draw(mask=NOTHING), STUDY, "N1") == ["no overlay"]
    assert faults_of_overlay(draw(1), STUDY, "N1") == ["instance 9 has nothing of N1"]


def test_writing_over_the_image_is_no_overlay() -> None:
    view = draw(mask=MASK | MASK[::-1])
    fit = Fit.of(STUDY, SIZE)
    y, x = (ROWS - 18) * fit.scale_y, fit.left + 30 * fit.scale_x
    covered = covered_by([Box(x + 5, y + 7, 14 * fit.scale_x, 10 * fit.scale_y)], Box(5, 7, 400, 210))
    assert faults_of_overlay(replace(view, covered=covered), STUDY, "N1") == []


def test_the_drawn_nodule_counts_too() -> None:
    def faults(drawn: NDArray[np.bool_]) -> list[str]:
        nodule = replace(STUDY.nodules[0], drawn={"1.2": drawn})
        return faults_of_overlay(draw(), replace(STUDY, nodules=(nodule,)), "N1")

    assert faults(MASK) == faults(MASK | np.roll(MASK, 3, axis=0)) == []
    assert faults(MASK[:, ::-1]) == ["the overlay isn't where N1 was drawn: 0% of it lies there"]
    (fault,) = faults(np.roll(MASK, 5, axis=0))
    assert "51% of it" in fault


def test_a_marker_beside_its_point_is_noticed() -> None:
    fit = Fit.of(STUDY, SIZE)
    x, y = fit.left + 37 * fit.scale_x, fit.top + 13 * fit.scale_y
    assert faults_of_marker(ring(x, y), STUDY, "N1") == []
    (fault,) = faults_of_marker(ring(x + 3, y), STUDY, "N1")
    assert "pixels beside its point" in fault
    assert faults_of_marker(draw(mask=NOTHING), STUDY, "N1") == ["nothing marks N1"]
    assert "shows instance 9" in faults_of_marker(draw(1), STUDY, "N1")[0]


def test_broken_objects_are_broken_as_they_say() -> None:
    series = make_ct_series(16)
    volume, context = make_volume(series), make_context()
    findings = make_findings(volume)
    headers = without_pixels(series)
    seg = build_seg(volume, findings, headers, context)
    report = build_report(volume, make_result(volume, findings, context), seg, headers, context)
    frames = seg.pixel_array.copy()
    broken.mirror(seg)
    assert (seg.pixel_array == frames[:, :, ::-1]).all()
    assert (frames != frames[:, :, ::-1]).any()
    broken.turn_over(seg)
    assert (seg.pixel_array == frames[:, ::-1, ::-1]).all()
    broken.forget_series(seg)
    assert "ReferencedSeriesSequence" not in seg
    before = str(report).count("Measurement Group")
    broken.rename_concept(report)
    assert str(report).count("Measurement group") == before > 0


def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / ohif.ARCHIVE
    archive.write_bytes(b"something else")
    expected = base64.b64encode(hashlib.sha512(b"something else").digest()).decode()
    with pytest.raises(
        ohif.BuildUnavailableError, match=f"is not @ohif/app {ohif.VERSION}: sha512-"
    ) as error:
        ohif.ohif_build(tmp_path)
    assert expected in str(error.value)


def test_the_site_serves_the_build_and_nothing_beside_it(tmp_path: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    (build / "index.html").write_text("the viewer")
    (tmp_path / "secret.txt").write_text("secret")
    with site(build, "http://127.0.0.1:9") as address:

        def get(path: str) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=10)
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            return answer.status, body

        assert get("/viewer?StudyInstanceUIDs=1") == (200, b"the viewer")
        assert get("/../secret.txt")[0] == 404
        assert get("/absent.js")[0] == 404
        assert get("/app-config.js")[1].startswith(b"window.config = {")
