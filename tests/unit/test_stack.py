"""The reference profile: the trained stages in a row on a drawn chest, with the weights of the package."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from inference.analyse import RATING_STATEMENT, UNTOLD, analyse
from inference.errors import ModelUnavailableError
from inference.load import load_series
from inference.phantom import NoduleSpec, Phantom, make_phantom
from inference.prompts import PAIRS, STRUCTURES
from inference.record import accept
from inference.registry import CLASSIFICATION, DETECTION, SEGMENTATION, TEXT, Pipeline, load_pipeline
from inference.stack import Stack, load_stack
from inference.types import Attenuation, Result

WEIGHTS_LIMIT = 60e6


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("reference")


@pytest.fixture(scope="module")
def stack(pipeline: Pipeline) -> Stack:
    return load_stack(pipeline)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    specs = (NoduleSpec(20.0), NoduleSpec(12.0), NoduleSpec(16.0, Attenuation.GROUND_GLASS))
    return make_phantom(7, (100, 200, 200), (3.0, 1.76, 1.76), specs)


@pytest.fixture(scope="module")
def result(phantom: Phantom, pipeline: Pipeline, stack: Stack) -> Result:
    return analyse(phantom.volume, pipeline, input_digest="digest", stack=stack)


def test_the_profile_has_every_stage_and_says_what_it_is(pipeline: Pipeline) -> None:
    assert {TEXT, DETECTION, SEGMENTATION, CLASSIFICATION} <= {card.task for card in pipeline.cards}
    for card in pipeline.cards:
        assert "Not for primary diagnosis" in card.intended_use
        assert card.performance
        assert card.weights_sha256


def test_all_weights_of_the_package_together_are_small() -> None:
    cards = resources.files("inference") / "cards"
    sizes = [len(one.read_bytes()) for one in cards.iterdir() if one.name.endswith(".safetensors")]
    assert 0 < sum(sizes) <= WEIGHTS_LIMIT


def test_the_largest_drawn_nodule_is_found_and_outlined(phantom: Phantom, result: Result) -> None:
    largest = max(phantom.nodules, key=lambda one: one.diameter_mm)
    truth = phantom.truth == largest.label
    overlaps = []
    for finding in result.findings:
        mask = np.zeros(truth.shape, bool)
        mask[finding.slices()] = finding.mask
        overlaps.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert max(overlaps, default=0) > 0.7


@pytest.mark.shared_data
@pytest.mark.slow
def test_a_mass_is_not_taken_for_bone(real_ct: Callable[[str], Path]) -> None:
    files = sorted(real_ct("Lung_Dx-A0001").rglob("*.dcm"))
    volume = load_series(files).volume
    first = analyse(volume, load_pipeline("reference"), input_digest="d").findings[0]
    assert first.measurements.long_axis_mm > 40
    # inside the boxes of the annotated carcinoma on these slices
    z, y, x = (part.mean() for part in np.nonzero(first.mask))
    z, y, x = (value + start for value, start in zip((z, y, x), first.origin, strict=True))
    assert 41 <= z <= 51
    assert 307 < y < 394
    assert 278 < x < 360


def test_every_finding_is_read(result: Result) -> None:
    ranked = {pair.feature for pair in PAIRS if pair.rating is not None} - {UNTOLD}
    assert result.findings
    for finding in result.findings:
        assert {feature.name for feature in finding.features} == ranked
        assert finding.malignancy is not None
        assert 0 < finding.malignancy.image_only < 1
        assert finding.malignancy.fused is None
        sources = {one.source.split()[0] for one in finding.descriptors}
        assert {"IBSI", "sentence", "structure", "radiomic"} <= sources
        likeness = [one.value for one in finding.descriptors if one.source == "structure sentence"]
        assert len(likeness) == len(STRUCTURES)
        assert sum(likeness) == pytest.approx(1, abs=1e-4)
    assert RATING_STATEMENT in result.warnings


def test_masks_share_no_voxel(phantom: Phantom, result: Result) -> None:
    count = np.zeros(phantom.volume.array.shape, np.uint8)
    for finding in result.findings:
        count[finding.slices()] += finding.mask
    assert count.max() == 1


def test_the_same_input_gives_the_same_result(
    phantom: Phantom, pipeline: Pipeline, stack: Stack, result: Result
) -> None:
    """Also with a record that says nothing."""
    nothing = accept({}, "test")
    again = analyse(phantom.volume, pipeline, input_digest="digest", stack=stack, record=nothing)
    assert [one.tracking_uid for one in again.findings] == [one.tracking_uid for one in result.findings]
    for one, other in zip(again.findings, result.findings, strict=True):
        assert (one.mask == other.mask).all()
        assert one.malignancy == other.malignancy
        assert one.features == other.features


def test_a_record_adds_a_fused_probability_beside_the_image_only_one(
    phantom: Phantom, pipeline: Pipeline, stack: Stack, result: Result
) -> None:
    if stack.fusion is None:
        pytest.skip("the profile has no model for the clinical record")
    record = accept({"age_years": 71, "smoking": "current", "pack_years": 40}, "test")
    with_record = analyse(phantom.volume, pipeline, input_digest="digest", stack=stack, record=record)
    for one, other in zip(with_record.findings, result.findings, strict=True):
        assert one.malignancy is not None
        assert other.malignancy is not None
        assert one.malignancy.image_only == other.malignancy.image_only
        assert one.malignancy.fused is not None


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    source = resources.files("inference") / "cards"
    for one in source.iterdir():
        if one.name.startswith("reference"):
            shutil.copyfile(str(one), tmp_path / one.name)
    return tmp_path


@pytest.mark.parametrize("fault", ["missing", "truncated", "altered", "pickle"])
def test_weights_that_are_not_the_recorded_ones_are_refused(copied: Path, fault: str) -> None:
    victim = next(copied.glob("reference-cade*.safetensors"))
    content = victim.read_bytes()
    if fault == "missing":
        victim.unlink()
    else:
        changed = {
            "truncated": content[: len(content) // 2],
            "altered": content[:-1] + bytes([content[-1] ^ 1]),
            "pickle": b"\x80\x04\x95" + content,
        }
        victim.write_bytes(changed[fault])
    with pytest.raises(ModelUnavailableError, match=victim.name):
        load_pipeline("reference", folder=copied)
