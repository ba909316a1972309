"""A short training of the CADx network on drawn nodules, its calibration and what it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inference.datasets.lidc_crops import RATINGS, NoduleCrop
from inference.descriptors import NAMES
from inference.evaluate.lidc_crops import BoxPrompt, CropReading, Place
from inference.openclip_model import REFERENCE, build_clip
from inference.prompts import PAIRS
from inference.train import cadx, cadx_calibrate, cadx_data, cadx_negatives, cadx_shift
from inference.train.cadx_data import RATED, Readings, draw_nodule, nodules_of, read_negatives, truth_of
from inference.train.text import text_state
from inference.types import SourceFrame, Volume
from inference.views import REFERENCE_VIEWS
from inference.weights import write_weights

COUNT = 44


def _crop(number: int) -> NoduleCrop:
    """Large bright or small faint, rated accordingly; patients of training (1, 11, ...) and validation."""
    rng = np.random.default_rng(number)
    is_large = number % 2 == 0
    radius = rng.uniform(9, 14) if is_large else rng.uniform(3, 5)
    at = np.indices((4, 96, 96)).transpose(1, 2, 3, 0) - np.array([1.5, 47.5, 47.5])
    mask = np.linalg.norm(at * (2.0, 1.0, 1.0), axis=-1) <= radius
    image = np.where(mask, 200, 30) + rng.normal(0, 5, mask.shape)
    low, high = (2.0, 5.0) if is_large else (5.0, 1.0)
    ratings = dict.fromkeys(RATINGS, low) | {"malignancy": high, "spiculation": high, "calcification": 6.0}
    patient = f"LIDC-IDRI-{10 * number + (5 if number % 4 > 1 else 1):04d}"
    bits = mask.astype(np.uint8) * (1 if number % 3 else 7)
    return NoduleCrop(
        patient, 0, image.clip(0, 255).astype(np.uint8), bits, 1, (2.0, 0.7, 0.7), ratings, is_trusted=True
    )


def _nodules() -> list[cadx_data.Nodule]:
    crops = [_crop(number) for number in range(COUNT)]
    hounsfield = {crop.name: (crop.image.astype(np.int16) * 5 - 1000) for crop in crops}
    return nodules_of(crops, hounsfield, Readings({}, {}))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("text") / "text.safetensors"
    write_weights(text_state(build_clip(REFERENCE)), path, {})
    return path


def _prepared(text: Path) -> cadx.Trainee:
    torch.manual_seed(0)
    return cadx.prepare(text, np.zeros(len(NAMES), np.float32), np.ones(len(NAMES), np.float32))


def test_a_truth_is_the_readers_mean_and_share() -> None:
    rows = np.full((4, len(RATINGS)), 3, np.float32)
    rows[:, RATINGS.index("malignancy")] = (1, 2, 4, 5)
    rows[:, RATINGS.index("spiculation")] = (1, 1, 1, 4)
    crop = _crop(0)
    (nodule,) = nodules_of([crop], {crop.name: crop.image.astype(np.int16)}, Readings({crop.name: rows}, {}))
    truth = truth_of(nodule)
    assert truth.malignancy == pytest.approx(0.5)
    spiculation = [PAIRS[index].feature for index in RATED].index("spiculation")
    assert truth.pairs[spiculation] == pytest.approx(0.25)
    assert truth.weight > truth_of(_nodules()[0]).weight > 0


def test_drawing_is_seeded_and_varies() -> None:
    nodule = _nodules()[3]
    first, again, other = (
        draw_nodule(nodule, REFERENCE_VIEWS, 3, np.random.default_rng(seed), masked=True)
        for seed in (1, 1, 2)
    )
    torch.testing.assert_close(first.views, again.views, rtol=0, atol=0)
    assert not torch.equal(first.views, other.views)
    bare = draw_nodule(nodule, REFERENCE_VIEWS, 3, np.random.default_rng(1), masked=False)
    assert not bare.has_mask
    assert float(bare.views[:, 2].abs().max()) == 0
    assert float(first.views[:, 2].max()) > 0.5


def test_captions_that_are_true_of_a_nodule_count_as_its_own() -> None:
    truths = [truth_of(nodule) for nodule in _nodules()[:3]]  # large, small, large
    mentioned = np.zeros((3, len(RATED)), np.int64)
    spiculation = [PAIRS[index].feature for index in RATED].index("spiculation")
    mentioned[:, spiculation] = (1, -1, 1)
    hits = cadx.matches(truths, mentioned)
    torch.testing.assert_close(hits, torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]))
    right, wrong = cadx.contrast(20 * hits, hits), cadx.contrast(-20 * hits, hits)
    assert right < wrong


def test_what_is_only_known_as_no_nodule_may_be_any_other_structure() -> None:
    logits = torch.tensor([[0.0, 9.0, 9.0, 0.0, 0.0, 0.0]])
    assert cadx.structure_loss(logits, torch.tensor([-1])) < 0.01
    assert cadx.structure_loss(logits, torch.tensor([0])) > 5
    assert cadx.structure_loss(logits, torch.tensor([1])) == pytest.approx(np.log(2), abs=0.01)


def _write_negatives(path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = [
        ("drawn", name, rng.normal(-500, 300, cadx_negatives.SHAPE).astype(np.int16))
        for name in ("vessel", "bone", "")
    ]
    cadx_negatives.write(examples, path)


def test_a_short_training_learns_stops_resumes_and_calibrates(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cadx, "MASKED", 8)
    monkeypatch.setattr(cadx, "UNMASKED", 2)
    monkeypatch.setattr(cadx, "NEGATIVES", 3)
    nodules = _nodules()
    _write_negatives(tmp_path / "negatives.npz")
    negatives = read_negatives(tmp_path / "negatives.npz")
    assert negatives.structure.tolist() == [1, 4, -1]
    learnt = [one for one in nodules if one.split == "train"]
    held = [one for one in nodules if one.split == "val"]
    assert {one.patient for one in learnt}.isdisjoint(one.patient for one in held)
    assert learnt
    assert held
    shown, checkpoint = cadx.show(held), tmp_path / "run.ckpt"
    run = cadx.start(_prepared(text))
    frozen = run.trainee.network.clip.token_embedding.weight.clone()
    adapters = [p for name, p in run.trainee.named_parameters() if name.endswith(".up")]
    cadx.train(run, learnt, shown, negatives, minutes=0.05, seed=0, checkpoint=checkpoint)
    assert run.step >= 1
    torch.testing.assert_close(run.trainee.network.clip.token_embedding.weight, frozen)
    assert all(p.detach().abs().max() > 0 for p in adapters)
    other = cadx.start(_prepared(text))
    other.resume(checkpoint)
    assert (other.step, other.seconds) == (run.step, run.seconds)
    for mine, theirs in zip(run.average.parameters(), other.average.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    states = cadx_calibrate.load_members([checkpoint], text)
    members = cadx_calibrate.rebuild(states, text)
    linear = cadx_calibrate.fit_linear(cadx.show(learnt))
    scores = cadx_calibrate.score(members, shown, linear)
    slope, offset = cadx_calibrate.fit_malignancy(scores)
    found = cadx_calibrate.report(scores, (slope, offset), 5)
    # size alone tells these drawn nodules apart
    assert float(found["all"]["AUROC median, 3 left out"].split()[0]) > 0.95
    assert found["nodules"] == len(held)
    assert len(cadx_calibrate.fit_ranks("margin", scores)) == 5
    assert cadx_calibrate.prototypes(members[0], shown).shape == (len(NAMES), 2, 256)


def test_the_linear_model_tells_large_from_small() -> None:
    shown = cadx.show(_nodules()[:12])
    linear = cadx_calibrate.fit_linear(shown)
    logits = cadx_calibrate.linear_logit(shown.described, linear)
    assert logits[::2].min() > logits[1::2].max()


def test_proportional_odds_find_what_was_drawn() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 4000)
    thresholds = np.array([2.0, 0.5, -1.0, -2.5])
    noise = rng.logistic(size=4000)
    ratings = 1 + (1.5 * logits[:, None] + thresholds + noise[:, None] > 0).sum(1)
    found = cadx_calibrate.proportional_odds(logits, ratings, np.ones(4000), 5)
    np.testing.assert_allclose(found, [1.5, *thresholds], atol=0.15)


class _HalfModels:
    """Outlines every second column of what is bright, nothing of every fifth nodule; reads off the area."""

    def segment(
        self,
        crop: NoduleCrop,
        sentence: str,
        *,
        centre: Place | None = None,
        box: BoxPrompt | None = None,
        key_slice: int | None = None,
    ) -> np.ndarray:
        assert (sentence, box, key_slice) == ("lung nodule", None, None)
        assert centre is not None
        assert not crop.ratings
        if int(crop.patient[-4:]) // 10 % 5 == 0:
            return np.zeros(crop.image.shape, np.bool_)
        return np.asarray((crop.image > 120) & (np.arange(96) % 2 == 0))

    def classify(self, crop: NoduleCrop, mask: np.ndarray) -> CropReading:
        assert not crop.ratings
        area = float(mask.sum())
        return CropReading(area / (area + 2000), {})


def test_the_shift_takes_back_what_the_segmenters_masks_take_from_malignancy() -> None:
    crops = [_crop(number) for number in range(COUNT)]
    pairs = cadx_shift.read_pairs(crops, _HalfModels(), seed=0)
    assert len(pairs.patients) == sum(int(crop.patient[-4:]) // 10 % 5 != 0 for crop in crops) < COUNT
    assert cadx_shift.find_shift(pairs.drawn, pairs.found) == pytest.approx(np.log(2), abs=0.1)
    same = cadx_shift.shifted(pairs.found, 0.7)
    np.testing.assert_allclose(np.log(same / (1 - same)), np.log(pairs.found / (1 - pairs.found)) + 0.7)
    told = cadx_shift.describe(pairs, resamples=20, seed=0)
    assert told["nodules"] == str(len(pairs.patients))
    assert float(told["shift"].split()[0]) == pytest.approx(np.log(2), abs=0.1)
    assert {name.split(",")[0] for name in told} >= {"log loss", "Brier score", "calibration error"}


def test_negatives_keep_their_place_in_the_middle() -> None:
    array = np.full((40, 120, 120), -850, np.int16)
    array[20, 60, 60] = 1000
    volume = Volume(
        array,
        np.diag([1.25, 0.7, 0.7, 1.0]),
        "1.2",
        "1.3",
        "1.4",
        tuple(SourceFrame("1", f"1.{i}") for i in range(40)),
    )
    found = cadx_negatives.block(volume, (20, 60, 60))
    assert found.shape == cadx_negatives.SHAPE
    assert np.unravel_index(found.argmax(), found.shape)[0] == 5
    assert cadx_negatives.block(volume, (0, 0, 0))[0, 0, 0] == -1000
