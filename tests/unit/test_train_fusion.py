"""The synthetic records are what their docstring says, and a short training learns to use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from inference.datasets.lidc_crops import NoduleCrop
from inference.fusion import EMBEDDING, SYNTHETIC_STATEMENT, Fusion, ImageEvidence
from inference.record import ITEMS, ClinicalRecord, Smoking
from inference.registry import FUSION, load_pipeline
from inference.train.fusion import card, fit_line, loss_of, run
from inference.train.fusion_data import Drawer, Samples, measured_diameters, read_export
from inference.train.records import RecordSource, base_population, score, with_gaps

# the records


@pytest.fixture(scope="module")
def source() -> RecordSource:
    return RecordSource(0, 40_000)


def test_the_log_ratio_is_one(source: RecordSource) -> None:
    """A likelihood ratio has the mean 1 under the base population; its slope in s is 1."""
    assert np.exp(source.log_ratio).mean() == pytest.approx(1.0)
    s = score(source.pool)
    assert np.ptp(source.log_ratio - s) < 1e-9


def test_the_drawn_records_differ_by_the_published_coefficients(source: RecordSource) -> None:
    count = 40_000
    truth = np.arange(2 * count) < count
    people, _ = source.draw(truth, np.random.default_rng(1))

    def log_odds(flag: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> float:
        share = flag[chosen].mean()
        return float(np.log(share / (1 - share)))

    ever = people.status > 0
    for flag, coefficient in (("female", 0.6011), ("family", 0.296109), ("cancer", 1.3388)):
        column = getattr(people, flag) > 0  # independent of all else in the base population
        assert log_odds(column, truth) - log_odds(column, ~truth) == pytest.approx(coefficient, abs=0.06)
    smokers = people.emphysema[ever] > 0
    found = log_odds(smokers, truth[ever]) - log_odds(smokers, ~truth[ever])
    assert found == pytest.approx(0.2953, abs=0.06)


def test_published_coefficients() -> None:
    people = base_population(4, np.random.default_rng(0)).take(np.zeros(4, np.intp))
    base = {"age": 62.0, "female": 0.0, "status": 0.0, "cigarettes": 0.0, "smoked": 0.0, "quit": 0.0}
    base |= {"family": 0.0, "cancer": 0.0, "emphysema": 0.0}

    def s(**changes: float) -> float:
        row = {name: np.array([value]) for name, value in {**base, **changes}.items()}
        return float(score(type(people)(**row))[0])

    assert s() == 0.0
    assert s(age=72) == pytest.approx(0.286687)
    # a smoker of 20 a day for 27 years: ever 0.7917, current 0.2597431, intensity, quit time -(-10)
    smoker = s(status=2, cigarettes=20, smoked=27)
    assert smoker == pytest.approx(0.7917 + 0.2597431 - 1.822606 * (0.5 - 0.4021541613) + 0.308572)
    former = s(status=1, cigarettes=20, smoked=27, quit=12)
    assert former == pytest.approx(smoker - 0.2597431 - 12 * 0.0308572)


def test_every_drawn_record_is_valid_and_complete() -> None:
    people = base_population(2000, np.random.default_rng(3))
    assert (people.smoked[people.status > 0] >= 5).all()
    assert (people.quit <= people.age).all()
    for row in range(len(people)):
        record = people.record(row)
        expected = set(ITEMS) if record.smoking is Smoking.FORMER else set(ITEMS) - {"years_quit"}
        assert set(record.items()) == expected


def test_gaps() -> None:
    record = base_population(1, np.random.default_rng(4)).record(0)
    rng = np.random.default_rng(0)
    assert with_gaps(record, 0.0, rng) == record
    assert with_gaps(record, 1.0, rng).is_empty
    left = np.mean([len(with_gaps(record, 0.25, rng).items()) for _ in range(400)])
    assert left / len(record.items()) == pytest.approx(0.75, abs=0.03)


def test_patients_have_one_record_each(source: RecordSource) -> None:
    patient = np.array([0, 0, 1, 2, 2, 2])
    samples = Samples(
        patient=patient,
        names=("a", "b", "c"),
        malignant=np.array([True, False, False, False, False, False]),
        logit=np.zeros(6),
        embedding=np.zeros((6, EMBEDDING), np.float32),
        facts=(),
        patient_malignant=np.array([True, False, False]),
    )
    draw = Drawer(source, None, 0).draw(samples, 0.0)
    for one in range(3):
        rows = draw.table[torch.from_numpy(patient == one)]
        assert (rows == rows[0]).all()
    assert draw.text is None
    assert len(set(draw.log_ratio.tolist())) == 3


# the export


def export(path: Path, *, patients: int = 200, seed: int = 0, **changes: Any) -> Path:
    """Embeddings and logits as CADx would export them: good on unseen patients, perfect on TRAIN."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(1, patients + 1):
        split = "test" if number % 10 < 3 else "val" if number % 10 < 5 else "train"
        for nodule in range(2):
            malignant = number % 3 == 0 and nodule == 0
            latent = rng.normal() + 1.5 * malignant
            logit = 8 * (malignant - 0.5) if split == "train" else 1.5 * (latent - 0.75) - 1.6
            embedding = rng.normal(size=EMBEDDING) / 16
            embedding[0] += latent / 8
            name = f"P-{number:04d}"
            rows.append((name, f"{name}_{nodule:02d}", split, logit, embedding, 4.0 if malignant else 2.0))
    names = ("patient", "nodule", "split", "image_logit", "embedding", "malignancy")
    columns: dict[str, Any] = {
        name: np.array(c) for name, c in zip(names, zip(*rows, strict=True), strict=True)
    }
    np.savez(path, **{**columns, **changes})
    return path


def test_read_export(tmp_path: Path) -> None:
    parts = read_export(export(tmp_path / "x.npz"))
    assert {name: len(one.names) for name, one in parts.items()} == {"train": 100, "val": 40, "test": 60}
    train = parts["train"]
    assert train.patient_malignant.sum() == train.malignant.sum()
    assert not train.facts
    assert set(train.names).isdisjoint(parts["test"].names)


def test_a_rating_of_three_and_a_missing_one_are_left_out(tmp_path: Path) -> None:
    rating = np.where(np.arange(400) % 2 == 0, 3.0, 2.0)
    rating[1] = np.nan
    parts = read_export(export(tmp_path / "x.npz", malignancy=rating))
    assert sum(len(one.malignant) for one in parts.values()) == 199


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embedding": np.zeros((400, 7))}, "don't belong together"),
        ({"malignancy": np.zeros(3)}, "don't belong together"),
        ({"split": np.array(["train", "test"] * 200)}, "two splits"),
    ],
)
def test_exports_that_can_t_be_used(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_export(export(tmp_path / "x.npz", **changes))


def test_an_export_without_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", patient=np.array(["a"]))
    with pytest.raises(ValueError, match="has no nodule, split"):
        read_export(tmp_path / "x.npz")


def test_diameters_come_by_name(tmp_path: Path) -> None:
    path = export(tmp_path / "x.npz")
    names = np.load(path)["nodule"].tolist()
    parts = read_export(path, {name: 5.0 + number for number, name in enumerate(names)})
    assert len(parts["val"].facts) == len(parts["val"].malignant)
    assert {fact.count for fact in parts["val"].facts} == {2}
    with pytest.raises(ValueError, match="no diameter of 400 nodules"):
        read_export(path, {})


def test_diameter_of_a_crop() -> None:
    z, y, x = np.ogrid[:9, :96, :96]
    ball = ((z - 4) * 2.0) ** 2 + ((y - 48) * 0.7) ** 2 + ((x - 48) * 0.7) ** 2 < 8**2
    crop = NoduleCrop("P-1", 3, np.zeros((9, 96, 96), np.uint8), ball.astype(np.uint8), 1, (2.0, 0.7, 0.7))
    assert measured_diameters([crop]) == {"P-1_03": pytest.approx(16.0, abs=0.7)}
    assert measured_diameters([NoduleCrop("P-1", 3, crop.image, crop.mask_bits, 1, None)]) == {}


# calibration


def test_line() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    truth = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    assert fit_line(2 * logit + 1, truth) == pytest.approx((0.5, -0.5), abs=0.05)
    assert fit_line(logit / 2, truth, logit / 2) == pytest.approx((1.0, 0.0), abs=0.06)
    assert loss_of(logit, truth) < loss_of(logit + 1, truth)


# training


def test_a_short_training(tmp_path: Path) -> None:
    path = export(tmp_path / "x.npz")
    report = run(
        read_export(path), tmp_path / "f.safetensors", None, epochs=6, seed=0, pool=20_000, resamples=8
    )
    assert report["statement"] == SYNTHETIC_STATEMENT
    assert json.loads((tmp_path / "f.json").read_text()) == report
    rows = report["test"]
    image, record, both = (rows[name]["auroc"] for name in ("image", "record", "image and record"))
    assert image > 0.75
    assert record > 0.52  # the record alone tells something, after a few epochs
    assert both > image + 0.01
    # a record that says nothing may not help
    blind = rows["image and a record drawn without regard to the truth"]["auroc"]
    assert blind < image + 0.01
    assert rows["image"]["low"] <= image <= rows["image"]["high"]
    assert "image and record text" not in rows
    (tmp_path / "f.toml").write_text(card(report, "f.safetensors", "short"))
    pipeline = load_pipeline("short", folder=tmp_path)
    assert "synthetic records" in pipeline.card(FUSION).limits
    assert f"image and record: area under the ROC curve {both:.3f}" in " ".join(
        pipeline.card(FUSION).performance
    )
    fusion = Fusion.load(*pipeline.weights(FUSION))
    seen = ImageEvidence(0.25, np.zeros(EMBEDDING, np.float32))
    assert fusion.probability(seen, ClinicalRecord()) == 0.25
    heavy = ClinicalRecord(age_years=75, smoking=Smoking.CURRENT, pack_years=80, cancer_history=True)
    light = ClinicalRecord(age_years=45, smoking=Smoking.NEVER, cancer_history=False)
    assert fusion.probability(seen, heavy) > fusion.probability(seen, light) + 0.05


def test_training_again_gives_the_same_weights(tmp_path: Path) -> None:
    parts = read_export(export(tmp_path / "x.npz", patients=60))
    digests = {
        run(parts, tmp_path / f"{name}.safetensors", None, epochs=1, seed=3, pool=2_000, resamples=0)[
            "weights_sha256"
        ]
        for name in ("a", "b")
    }
    assert len(digests) == 1
