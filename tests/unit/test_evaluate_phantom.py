from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from inference.analyse import analyse
from inference.evaluate import phantom as subject
from inference.evaluate.report import Options, write
from inference.measure import measure
from inference.phantom import NoduleSpec, Phantom, make_phantom
from inference.registry import load_pipeline
from inference.types import Result


@pytest.fixture(scope="module")
def drawn() -> Phantom:
    return make_phantom(7, (75, 128, 128), (4.0, 2.75, 2.75), (NoduleSpec(24.0), NoduleSpec(18.0)))


@pytest.fixture(scope="module")
def result(drawn: Phantom) -> Result:
    return analyse(drawn.volume, load_pipeline("classical"), input_digest="d")


@pytest.fixture
def outcome(drawn: Phantom, result: Result) -> subject.CaseOutcome:
    return subject.compare(drawn, result)


def test_sizes_of_found_nodules_are_compared_with_the_truth(outcome: subject.CaseOutcome) -> None:
    for nodule in outcome.nodules:
        assert nodule.found
        assert nodule.true_diameter_mm == pytest.approx((6 * nodule.true_volume_mm3 / np.pi) ** (1 / 3))
        assert nodule.true_diameter_mm == pytest.approx(nodule.diameter_mm, rel=0.15)
        assert nodule.measured_volume_mm3 == pytest.approx(nodule.true_volume_mm3, rel=0.5)
        assert nodule.true_axes_mm == pytest.approx(nodule.true_diameter_mm, rel=0.15)
    assert [value is not None for value in outcome.match.hits] == [True, True]
    assert len(outcome.match.false_scores) == outcome.false_positives


def test_the_drawn_voxels_themselves_are_without_error(
    drawn: Phantom, result: Result, tmp_path: Path
) -> None:
    ideal = []
    for finding, nodule in zip(result.findings, drawn.nodules, strict=False):
        truth = drawn.truth == nodule.label
        z, y, x = ndimage.find_objects(truth.astype(np.uint8))[0]
        mask, origin = truth[z, y, x], (z.start, y.start, x.start)
        sizes = measure(drawn.volume, mask, origin).measurements
        ideal.append(replace(finding, mask=mask, origin=origin, measurements=sizes))
    perfect = subject.compare(drawn, replace(result, findings=tuple(ideal)))
    options = Options(tmp_path, "c", resamples=20)
    made = subject.make_report([perfect], load_pipeline("classical"), options, first_seed=7, seconds=1.0)
    for name in ("diameter_mm", "sphere_diameter_mm", "volume_per_cent"):
        assert made.figures[name]["bias"].value == pytest.approx(0, abs=1e-9)
    mixed, own = (
        made.figures[name]["bias"].value
        for name in ("axes_against_sphere_mm", "drawn_axes_against_sphere_mm")
    )
    assert mixed == pytest.approx(own)


def test_the_report_has_the_targets_and_the_pictures(outcome: subject.CaseOutcome, tmp_path: Path) -> None:
    options = Options(tmp_path, "pacs-node evaluate phantom", resamples=50)
    made = subject.make_report(
        [outcome, outcome], load_pipeline("classical"), options, first_seed=7, seconds=1.0
    )
    in_json, in_words = write(made, tmp_path)
    facts = json.loads(in_json.read_text())
    mixed = [n.diameter_error_mm for n in outcome.nodules if n.diameter_error_mm is not None]
    assert facts["figures"]["axes_against_sphere_mm"]["bias"]["value"] == pytest.approx(np.mean(mixed))
    errors = [
        error + n.true_diameter_mm - n.true_axes_mm for n, error in zip(outcome.nodules, mixed, strict=True)
    ]
    assert facts["figures"]["diameter_mm"]["bias"]["value"] == pytest.approx(np.mean(errors))
    bias, limit = facts["targets"]
    assert bias["measured"]["value"] == pytest.approx(abs(np.mean(errors)))
    assert bias["met"] is (bias["measured"]["value"] <= 0.3)
    assert limit["measured"]["value"] >= bias["measured"]["value"]
    pictures = {"bland_altman_diameter.png", "bland_altman_volume.png", "froc.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    assert all(f"]({name})" in in_words.read_text() for name in pictures)


def test_without_found_nodules_sizes_are_not_defined(drawn: Phantom, result: Result, tmp_path: Path) -> None:
    nothing = subject.compare(drawn, replace(result, findings=()))
    options = Options(tmp_path, "c", resamples=20)
    made = subject.make_report([nothing], load_pipeline("classical"), options, first_seed=7, seconds=1.0)
    assert [target.met for target in made.targets] == [None, None]
    assert "not defined" in write(made, tmp_path)[1].read_text()
