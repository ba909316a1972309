from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from inference.detector import Detection
from inference.evaluate.luna16 import Luna16, evaluate, read_findings, read_series, scans
from inference.evaluate.marks import Mark
from inference.evaluate.report import Options, write
from inference.evaluate.scan_marks import marker, marks_of_stack
from inference.phantom import NoduleSpec, Phantom, make_phantom
from inference.registry import load_pipeline
from inference.types import Volume
from tests.metaimage import write_metaimage

if TYPE_CHECKING:
    from inference.stack import Stack

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(7, (75, 128, 128), (4.0, 2.75, 2.75), (NoduleSpec(24.0), NoduleSpec(18.0)))


@pytest.fixture
def data(phantom: Phantom, tmp_path: Path) -> Luna16:
    (tmp_path / "subset0").mkdir()
    write_metaimage(phantom.volume, tmp_path / "subset0" / "1.2.3.mhd", compressed=True)
    rows = "".join(
        f"1.2.3,{n.centre_lps[0]},{n.centre_lps[1]},{n.centre_lps[2]},{n.diameter_mm}\n"
        for n in phantom.nodules
    )
    (tmp_path / "annotations.csv").write_text(HEADER + rows)
    return Luna16(tmp_path, tmp_path / "annotations.csv")


def options(tmp_path: Path) -> Options:
    return Options(tmp_path, "pacs-node evaluate luna16", resamples=20)


def test_a_phantom_written_as_luna16_through_the_classical_pipeline(data: Luna16, tmp_path: Path) -> None:
    pipeline = load_pipeline("classical")
    made = evaluate(data, pipeline, marker(pipeline), options(tmp_path))
    facts = json.loads(write(made, tmp_path)[0].read_text())
    assert facts["figures"]["lesions"] == 2
    assert facts["figures"]["found_by_any_mark"]["value"] == 1
    assert facts["figures"]["mean_sensitivity"]["value"] > 0.8
    assert facts["figures"]["not_analysed"] == {}
    assert (tmp_path / "froc.png").exists()


def test_the_lists_decide(data: Luna16, phantom: Phantom, tmp_path: Path) -> None:
    first, second = (n.centre_lps for n in phantom.nodules)
    far = (500.0, 0.0, 0.0)

    def mark(volume: Volume) -> Sequence[Mark]:
        assert np.array_equal(volume.array, phantom.volume.array)
        assert np.allclose(volume.affine_index_to_lps, phantom.volume.affine_index_to_lps, atol=1e-3)
        return [Mark(first, 0.9), Mark(far, 0.8), Mark(second, 0.7)]

    def figures(of: Luna16) -> tuple[float, float]:
        found = evaluate(of, load_pipeline("classical"), mark, options(tmp_path)).figures
        return found["mean_sensitivity"].value, found["false_per_scan_of_all_marks"].value

    assert figures(data) == pytest.approx(((0.5 * 3 + 4) / 7, 1))
    excluded = tmp_path / "excluded.csv"
    excluded.write_text(f"{HEADER}1.2.3,500,0,0,-1\n")
    assert figures(replace(data, excluded=excluded)) == pytest.approx((1.0, 0))


def test_a_scan_that_cannot_be_analysed_counts_as_missed_and_is_named(data: Luna16, tmp_path: Path) -> None:
    (tmp_path / "subset0" / "1.2.3.zraw").write_bytes(b"junk")
    made = evaluate(data, load_pipeline("classical"), lambda _volume: [], options(tmp_path))
    assert made.figures["found_by_any_mark"].value == 0
    assert "damaged" in made.figures["not_analysed"]["1.2.3"]
    assert "Not analysed" in write(made, tmp_path)[1].read_text()


def test_only_listed_scans_count_and_all_of_them_must_be_there(data: Luna16, tmp_path: Path) -> None:
    series = tmp_path / "seriesuids.csv"
    series.write_text("seriesuid\n1.2.3\n1.2.3\n")
    assert read_series(series) == ("1.2.3",)
    assert list(scans(replace(data, series=series))) == ["1.2.3"]
    series.write_text("1.2.3\n9.9.9\n")
    with pytest.raises(ValueError, match=r"1 of 2 listed scans aren't in .*9\.9\.9"):
        scans(replace(data, series=series))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.mhd"):
        scans(replace(data, images=tmp_path / "empty"))


def test_a_damaged_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text("seriesuid,coordX\n1,2\n")
    with pytest.raises(ValueError, match="no column coordY, coordZ, diameter_mm"):
        read_findings(path)
    path.write_text(f"{HEADER}1.2.3,1,2,3,4\n1.2.3,1,x,3,4\n")
    with pytest.raises(ValueError, match="line 3"):
        read_findings(path)


def test_marks_of_the_trained_stack_are_all_detections_that_look_like_a_nodule(phantom: Phantom) -> None:
    class Reader:
        def structures(
            self, hu: object, spacing_mm: object, place: tuple[float, float, float], extent_mm: float
        ) -> dict[str, float]:
            assert (hu is phantom.volume.array, spacing_mm, extent_mm) == (
                True,
                phantom.volume.spacing_mm,
                9.0,
            )
            return {"nodule": 0.0 if place[0] == 3.0 else 0.4}

    class Detector:
        def detect(self, *_asked: object) -> tuple[Detection, ...]:
            places = [(-1.0, 5.0, 500.0), (3.0, 1.0, 1.0), (4.0, 1.0, 1.0)]
            return tuple(
                Detection(place, 9.0, probability, (place[0], 0.0, 0.0))
                for place, probability in zip(places, (0.9, 0.5, 0.01), strict=True)
            )

    stack = SimpleNamespace(
        reader=Reader(), detector=Detector(), parameters={"min_likeness": 0.3, "min_probability": 0.6}
    )
    found = marks_of_stack(cast("Stack", stack), phantom.volume)
    assert [(mark.centre_lps[0], mark.score) for mark in found] == [(-1.0, 0.9), (4.0, 0.01)]
