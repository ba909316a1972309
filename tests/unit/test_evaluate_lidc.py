from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from inference.datasets.lidc_crops import NoduleCrop, read_crops
from inference.evaluate import lidc_crops, lidc_prompts, lidc_report
from inference.evaluate.lidc_crops import JITTER_MM, BoxPrompt, CropReading, Place
from inference.evaluate.lidc_run import SENTENCES, Collection, Named, evaluate
from inference.evaluate.report import Options, write
from inference.prompts import PAIRS, PLACES, SIZES, STRUCTURES, pair
from inference.types import ModelCard
from tests.lidc_collection import LUNG, SOLID, SUBSOLID, VESSEL, WALL, collection, write_collection

CARD = ModelCard("Oracle", "1", "crops", "s", "i", "l", "licence", "data", (), "cd" * 32)
Mask = NDArray[np.bool_]
FALLING = ("margin", "calcification")  # the more malignant, the less
PLANE = np.ones((1, 3, 3), np.bool_)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lidc_prompts, "MOST_PAIRS", 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write_collection(tmp_path_factory.mktemp("lidc"), collection())


@pytest.fixture(scope="module")
def crops(files: tuple[Path, Path, Path]) -> tuple[NoduleCrop, ...]:
    return read_crops(*files)


@dataclass
class Oracle:
    """Reads grey values and the sentence; notes what it was given."""

    seen: list[tuple[NoduleCrop, str, Place | None, BoxPrompt | None]] = field(default_factory=list)
    deaf: bool = False
    worn: int = 0

    def segment(
        self,
        crop: NoduleCrop,
        sentence: str,
        *,
        centre: Place | None = None,
        box: BoxPrompt | None = None,
        key_slice: int | None = None,
    ) -> Mask:
        self.seen.append((crop, sentence, centre, box))
        found = self._named(crop.image.astype(float), SENTENCES[0] if self.deaf else sentence)
        if box is not None and key_slice is not None:
            y, x = np.ogrid[:96, :96]
            found[key_slice] &= (y > box[0]) & (y < box[2]) & (x > box[1]) & (x < box[3])
        return np.asarray(ndimage.binary_erosion(found, PLANE, self.worn) if self.worn else found)

    def _named(self, image: NDArray[np.float64], sentence: str) -> Mask:
        if sentence == STRUCTURES["vessel"][0]:
            return np.abs(image - VESSEL) < 5
        if sentence == STRUCTURES["chest wall"][0]:
            return np.abs(image - WALL) < 5
        solid, faint = image >= SOLID - 5, np.abs(image - SUBSOLID - 12) < 16
        if sentence in pair("texture").positive:
            return solid
        if sentence in pair("texture").negative:
            return faint
        labels, count = ndimage.label(ndimage.binary_opening(solid | faint, PLANE))
        parts = [labels == number for number in range(1, count + 1)]
        if sentence in SENTENCES or not parts:
            return solid | faint
        size = {"large": -1, "small": 1}
        axis = {"top": (1, 1), "bottom": (1, -1), "left": (2, 1), "right": (2, -1)}
        for name, sentences in {**SIZES, **PLACES}.items():
            if sentence in sentences and name in size:
                return min(parts, key=lambda part: size[name] * int(part.sum()))
            if sentence in sentences:
                of, sign = axis[name]
                return min(parts, key=lambda part: sign * float(np.argwhere(part)[:, of].mean()))
        raise AssertionError(sentence)

    def classify(self, crop: NoduleCrop, mask: Mask) -> CropReading:
        grey = float(np.median(crop.image[mask]))
        score = float(np.clip((grey - (SOLID if grey >= SOLID else SUBSOLID)) / 20, 0, 1))
        right = {one.feature: 1 - score if one.feature in FALLING else score for one in PAIRS}
        return CropReading(score, {"trained": right, "unseen": dict.fromkeys(right, 0.5)})


def run(crops: tuple[NoduleCrop, ...], models: Oracle) -> list[lidc_crops.CropOutcome]:
    return list(lidc_crops.evaluate_crops(crops, models, sentences=SENTENCES, seed=3))


def test_an_oracle_is_perfect_in_every_frame(crops: tuple[NoduleCrop, ...]) -> None:
    outcomes = run(crops, Oracle())
    assert {round(o.dice, 6) for one in outcomes for o in one.overlaps.values()} == {1.0}
    assert {round(o.iou, 6) for one in outcomes for o in one.overlaps.values()} == {1.0}
    several = [one for one in outcomes if one.readers >= 3]
    assert 0 < len(several) < len(outcomes)
    assert all(set(one.overlaps) == set(lidc_report.FRAMES) for one in several)
    assert all(set(one.overlaps) == {"centred"} for one in outcomes if one.readers < 3)


def test_a_worse_mask_gives_the_dice_that_it_has(crops: tuple[NoduleCrop, ...]) -> None:
    for one, crop in zip(run(crops, Oracle(worn=1)), crops, strict=True):
        truth = crop.consensus()
        worn = ndimage.binary_erosion(truth, PLANE)
        expected = 2 * worn.sum() / (worn.sum() + truth.sum())
        assert one.overlaps["centred"].dice == pytest.approx(expected)


def test_models_never_see_the_truth(crops: tuple[NoduleCrop, ...]) -> None:
    models = Oracle()
    run(crops, models)
    lidc_prompts.evaluate_prompts(crops, models, seed=3)
    assert len(models.seen) > 5 * len(crops)
    for crop, *_ in models.seen:
        assert not crop.mask_bits.any()
        assert (crop.readers, dict(crop.ratings), crop.is_trusted) == (0, {}, False)


def test_candidates_lie_within_the_jitter_and_in_the_middle_of_the_crop(
    crops: tuple[NoduleCrop, ...],
) -> None:
    gaps = []
    for seed in range(40):
        frame = lidc_crops.centred_frame(crops[1], lidc_crops.generator(seed, crops[1].name))
        assert frame.centre is not None
        assert np.abs(np.array(frame.centre) - 48).max() <= 0.5
        centre = np.argwhere(frame.truth(crops[1].consensus()))[:, 1:].mean(axis=0)
        gaps.append(float(np.linalg.norm(centre - frame.centre)) * 0.7)
    assert max(gaps) <= JITTER_MM
    assert np.mean(gaps) == pytest.approx(JITTER_MM * 2 / 3, abs=0.6)  # even on the disc


def test_anywhere_is_anywhere_and_shows_the_nodule_once(crops: tuple[NoduleCrop, ...]) -> None:
    places = []
    for seed in range(60):
        frame = lidc_crops.anywhere_frame(crops[1], lidc_crops.generator(seed, crops[1].name))
        assert frame.centre is None
        truth = frame.truth(crops[1].consensus())
        assert truth.sum() == crops[1].consensus().sum()
        assert np.array_equal(frame.crop.image >= SOLID, truth)
        assert np.array_equal(frame.back(truth), crops[1].consensus())
        places.append(np.argwhere(truth)[:, 1:].mean(axis=0))
    assert np.ptp(places, axis=0).min() > 50


def test_a_model_that_guesses_the_middle_gains_nothing_anywhere(crops: tuple[NoduleCrop, ...]) -> None:
    class Middle(Oracle):
        def segment(self, crop: NoduleCrop, _sentence: str, **_told: object) -> Mask:  # type: ignore[override]  # ignores all it is told
            mask = np.zeros(crop.image.shape, np.bool_)
            mask[:, 41:56, 41:56] = True
            return mask

    outcomes = [one for one in run(crops, Middle()) if one.readers >= 3]
    dice = {key: np.mean([one.overlaps[key].dice for one in outcomes]) for key in ("stored", "anywhere")}
    assert dice["stored"] > 0.6
    assert dice["anywhere"] < 0.25


def test_offsets_do_not_depend_on_which_others_are_evaluated(crops: tuple[NoduleCrop, ...]) -> None:
    all_of_them, one = Oracle(), Oracle()
    run(crops, all_of_them)
    run(crops[5:6], one)
    wanted = [seen for seen in all_of_them.seen if seen[0].name == crops[5].name]
    assert all(
        np.array_equal(a[0].image, b[0].image) and a[2] == b[2] for a, b in zip(wanted, one.seen, strict=True)
    )


def test_a_mask_of_another_shape_or_type_and_a_wrong_probability_are_refused(
    crops: tuple[NoduleCrop, ...],
) -> None:
    class Wrong(Oracle):
        def segment(self, crop: NoduleCrop, _sentence: str, **_told: object) -> Mask:  # type: ignore[override]  # ignores all it is told
            return np.zeros_like(crop.image)

    with pytest.raises(ValueError, match="mask of uint8"):
        run(crops[:1], Wrong())
    with pytest.raises(ValueError, match=r"outside 0\.\.1: \[1\.2\]"):
        lidc_crops.checked(CropReading(1.2, {"trained": {"margin": 0.5}}))


def test_the_right_sentence_names_the_nodule_and_the_wrong_one_something_else(
    crops: tuple[NoduleCrop, ...],
) -> None:
    outcomes = lidc_prompts.evaluate_prompts(crops, Oracle(), seed=3)
    details = Counter((one.kind, one.detail) for one in outcomes)
    assert set(details) == {
        (lidc_prompts.ANOTHER, "chest wall"),
        (lidc_prompts.ANOTHER, "vessel"),
        (lidc_prompts.SECOND, "texture"),
        (lidc_prompts.SECOND, "size"),
        (lidc_prompts.SECOND, "place"),
    }
    made = [count for (kind, _), count in details.items() if kind == lidc_prompts.SECOND]
    assert made == [lidc_prompts.MOST_PAIRS] * 3
    for kind, least in ((lidc_prompts.ANOTHER, 0.999), (lidc_prompts.SECOND, 0.85)):
        drops = [one.drop for one in outcomes if one.kind == kind]
        assert np.mean(drops) > least, kind


def test_a_model_that_does_not_listen_loses_nothing(crops: tuple[NoduleCrop, ...]) -> None:
    outcomes = lidc_prompts.evaluate_prompts(crops, Oracle(deaf=True), seed=3)
    assert [one.drop for one in outcomes] == pytest.approx([0.0] * len(outcomes))


def test_a_pasted_nodule_has_the_grey_of_its_new_crop(crops: tuple[NoduleCrop, ...]) -> None:
    dim = replace(crops[1], image=(crops[1].image // 2).astype(np.uint8))
    two = lidc_prompts.paste(dim, crops[3], "place", np.random.default_rng(0))
    assert two is not None
    first, second = two.masks
    assert not (first & second).any()
    inner = ndimage.binary_erosion(second, PLANE, 2)
    expected = (crops[3].image[crops[3].consensus()].mean() - LUNG) / 2 + LUNG / 2
    assert two.crop.image[inner].mean() == pytest.approx(expected, abs=3)
    assert np.array_equal(two.crop.image[first], dim.image[first])


def test_no_room_no_pair() -> None:
    crop = NoduleCrop(
        "LIDC-IDRI-0001", 0, np.full((1, 96, 96), 9, np.uint8), np.zeros((1, 96, 96), np.uint8), 4, None
    )
    crop.mask_bits[:, 40:50, 40:50] = 15
    assert lidc_prompts.paste(crop, crop, "place", np.random.default_rng(0)) is None


def test_labels_follow_the_definitions(crops: tuple[NoduleCrop, ...]) -> None:
    outcomes = [replace(one, is_trusted=at != 0) for at, one in enumerate(run(crops, Oracle()))]
    left_out = lidc_report.malignancy(outcomes, three_is_benign=False)
    benign = lidc_report.malignancy(outcomes, three_is_benign=True)
    scores = [one.ratings["malignancy"] for one in outcomes[1:]]
    assert len(left_out.labels) == sum(score != 3 for score in scores)
    assert len(benign.labels) == len(scores)
    assert left_out.labels.sum() == benign.labels.sum() == sum(score > 3 for score in scores)


def options(out: Path) -> Options:
    return Options(out, "pacs-node evaluate lidc-crops", resamples=40, seed=3)


def named(models: Oracle) -> Named:
    return Named(models, (CARD,), "oracle-1")


def test_the_whole_report(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    made = evaluate(Collection(*files), named(Oracle()), options(tmp_path))
    facts = json.loads(write(made, tmp_path)[0].read_text())
    met = {target["name"]: target["met"] for target in facts["targets"]}
    features = facts["figures"]["features"]
    assert len(met) == 14
    # the grey of the oracle ranks as the ratings do but for texture, and is not calibrated
    assert [name for name, value in met.items() if not value] == [
        "calibration error, score 3 left out",
        "sentence pair AUROC: texture",
    ]
    assert features["spiculation"]["trained"]["value"] == 1
    assert features["spiculation"]["unseen"]["value"] == 0.5
    assert features["internal_structure"]["trained"]["value"] is None  # one class only
    assert facts["figures"]["readers"]["dice_with_each_other"]["value"] == 1
    groups = facts["figures"]["subgroups"]
    assert (
        sum(groups[f"drawn by {n} reader{'s' if n > 1 else ''}"]["dice"]["samples"] for n in range(1, 5))
        == 24
    )
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "dice.png",
        "roc.png",
        "precision_recall.png",
        "calibration.png",
    }
    with (tmp_path / "nodules.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 24
    assert [file["name"] for file in facts["data"]["files"]] == [path.name for path in files]
    assert any("no test" in line for line in facts["limits"])


def test_a_part_of_the_patients_and_a_limit(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    only = Collection(*files, split="test").read(3)
    assert {int(crop.patient[-4:]) % 10 for crop in only} == {0}
    made = evaluate(Collection(*files, split="test"), named(Oracle()), options(tmp_path))
    assert not any("no test" in line for line in made.limits)
    few = Collection(*files, limit=5).read(3)
    assert len(few) == 5
    again = Collection(*files, limit=5).read(3)
    assert [crop.name for crop in few] == [crop.name for crop in again]
    with pytest.raises(ValueError, match="no nodule of the split 'hidden'"):
        Collection(*files, split="hidden").read(3)
