"""What is written of a nodule for the fusion, its losses, and short trainings that learn to use records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress

from inference.cadx import CadxReading
from inference.datasets.lidc_crops import RATINGS, Split
from inference.fusion import (
    EMBEDDING,
    MECHANISMS,
    SYNTHETIC_STATEMENT,
    Fusion,
    ImageEvidence,
    ImageParts,
)
from inference.fusion.attributes import ATTRIBUTES, Attributes
from inference.fusion.contrast import Contrast
from inference.fusion.distilled import Distilled
from inference.fusion.mechanism import VIEWS
from inference.record import ClinicalRecord, Smoking
from inference.registry import FUSION, load_pipeline
from inference.train import fusion_ablation, fusion_learn
from inference.train.cadx_data import Nodule
from inference.train.fusion import card, run
from inference.train.fusion_ablation import Plan, ablation, markdown
from inference.train.fusion_data import Drawer, read_features
from inference.train.fusion_features import features, longest_diameter_mm
from inference.train.fusion_learn import fit_line, loss_of
from inference.train.fusion_losses import Batch, attribute_loss, contrast_loss, taught_loss
from inference.train.records import Dependence, RecordSource
from tests.fusion_nodules import many, words, write_features


@pytest.fixture(scope="module")
def source() -> RecordSource:
    return RecordSource(0, 5_000)


# the features


def test_read_features(tmp_path: Path) -> None:
    parts = read_features(write_features(tmp_path / "x.npz"))
    assert {name: len(one.names) for name, one in parts.items()} == {"train": 100, "val": 40, "test": 60}
    train = parts["train"]
    assert train.patient_malignant.sum() == train.malignant.sum()
    assert {fact.count for fact in train.facts} == {2}
    assert all(8 <= fact.diameter_mm < 11 for fact in train.facts)
    assert train.views.shape == (200, VIEWS, EMBEDDING)
    assert set(train.names).isdisjoint(parts["test"].names)
    some = train.drawn(np.array([5, 5, 0]))
    assert some.names == ("0", "1", "2")
    assert some.facts == (train.facts[5], train.facts[5], train.facts[0])
    assert some.patient_chance[2] == train.patient_chance[train.patient[0]]


def test_a_rating_of_three_and_a_missing_one_are_left_out(tmp_path: Path) -> None:
    rating = np.where(np.arange(400) % 2 == 0, 3.0, 2.0)
    rating[1] = np.nan
    parts = read_features(write_features(tmp_path / "x.npz", malignancy=rating))
    assert sum(len(one.malignant) for one in parts.values()) == 199


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embedding": np.zeros((400, 7))}, "don't belong together"),
        ({"malignancy": np.zeros(3)}, "don't belong together"),
        ({"split": np.array(["train", "test"] * 200)}, "two splits"),
    ],
)
def test_features_that_can_t_be_used(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_features(write_features(tmp_path / "x.npz", **changes))


def test_features_without_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", patient=np.array(["a"]))
    with pytest.raises(ValueError, match="has no nodule, split"):
        read_features(tmp_path / "x.npz")


def ball(name: str, radius_mm: float) -> Nodule:
    z, y, x = np.ogrid[:9, :96, :96]
    mask = ((z - 4) * 2.0) ** 2 + ((y - 48) * 0.7) ** 2 + ((x - 48) * 0.7) ** 2 < radius_mm**2
    ratings = np.stack([np.full(9, 2, np.float32), np.full(9, 5, np.float32)])
    spacings = ((1.0, 0.7, 0.7), (2.0, 0.7, 0.7))
    return Nodule(
        name, name[:3], Split.VAL, np.zeros(mask.shape, np.int16), mask[None], spacings, ratings, {}
    )


def test_what_is_written_of_a_nodule() -> None:
    class Reader:
        """Says how many voxels it was shown, of which spacing."""

        def read(self, hu: Any, spacing_mm: Any, mask: Any) -> CadxReading:
            assert hu.shape == mask.shape
            embedding = np.full(EMBEDDING, mask.sum(), np.float32)
            views = np.full((VIEWS, EMBEDDING), spacing_mm[0], np.float32)
            return CadxReading(0.5, float(mask.sum()), (), {}, embedding, views, {}, {})

    nodules = [ball("P-1_00", 8), ball("P-1_01", 4), ball("P-2_00", 0)]
    found = features(nodules, Reader())
    assert found["nodule"].tolist() == ["P-1_00", "P-1_01"]  # an empty mask is nothing to read
    assert found["image_logit"].tolist() == [one.consensus.sum() for one in nodules[:2]]
    assert (found["views"] == 2.0).all()  # as the collection states the spacing
    assert found["malignancy"].tolist() == [3.5, 3.5]
    assert found["diameter_mm"][0] == pytest.approx(16.0, abs=0.7)
    assert np.isnan(longest_diameter_mm(nodules[2]))


# calibration


def test_line() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, 20_000)
    truth = rng.random(len(logit)) < 1 / (1 + np.exp(-logit))
    assert fit_line(2 * logit + 1, truth) == pytest.approx((0.5, -0.5), abs=0.05)
    assert fit_line(logit / 2, truth, logit / 2) == pytest.approx((1.0, 0.0), abs=0.06)
    assert loss_of(logit, truth) < loss_of(logit + 1, truth)


# losses


def batch(image: ImageParts, source: RecordSource) -> Batch:
    samples = many(len(image.embedding))
    draw = Drawer(source, words, 0).draw(samples, 0.0)
    truth = torch.from_numpy(samples.malignant).float()
    return Batch(image, draw.parts(), torch.zeros(len(truth)), truth, torch.from_numpy(samples.ratings))


def falls(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> tuple[float, float]:
    """A loss before and after 30 steps on itself."""
    network.eval()
    optimizer, first = torch.optim.AdamW(network.parameters(), lr=1e-2), loss().item()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]  # torch types it so
        optimizer.step()
    return first, loss().item()


def test_what_single_mechanisms_learn_beside(source: RecordSource) -> None:
    generator = torch.Generator().manual_seed(0)
    image = ImageParts(torch.randn(30, EMBEDDING, generator=generator), None)
    given = batch(image, source)
    torch.manual_seed(0)
    contrast, attributes, student = Contrast(), Attributes(), Distilled()
    first, last = falls(contrast, lambda: contrast_loss(contrast, given))
    assert last < first - 0.2
    near = (contrast.embed_image(image) @ contrast.embed_record(given.record).T).detach()
    same = given.truth[:, None] == given.truth[None]
    assert near[same].mean() > near[~same].mean() + 0.3
    ratings = torch.full((30, 9), 2.0)
    ratings[:15, RATINGS.index("spiculation")] = 5.0
    falls(attributes, lambda: attribute_loss(attributes, image, ratings))
    told = attributes.attribute_logits(image)[:, ATTRIBUTES.index("spiculation")].sigmoid()
    assert told[:15].mean().item() == pytest.approx(1.0, abs=0.15)
    assert told[15:].mean().item() == pytest.approx(0.25, abs=0.15)
    taught = 2 * given.truth - 1
    _, left = falls(student, lambda: taught_loss(student, given, student(image, given.record), taught))
    assert left < 0.05


def test_a_teacher_s_own_answer_teaches_nothing(source: RecordSource) -> None:
    given = batch(ImageParts(torch.zeros(9, EMBEDDING), None), source)
    student = Distilled().eval()
    answer = student(given.image, given.record).detach()
    alone = replace(given, image=None)
    assert taught_loss(student, alone, answer, answer).item() == 0.0


# training


def test_a_short_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_learn, "REHEARSED", 1600)
    monkeypatch.setattr(fusion_learn, "REHEARSALS", 8)
    parts = read_features(write_features(tmp_path / "x.npz"))
    report = run(parts, tmp_path / "f.safetensors", None, epochs=4, seed=0, pool=20_000, resamples=8)
    assert report["statement"] == SYNTHETIC_STATEMENT
    assert json.loads((tmp_path / "f.json").read_text()) == report
    rows = report["test"]
    image, record, both = (rows[name]["auroc"] for name in ("image", "record", "image and record"))
    assert image > 0.75
    assert record > 0.52  # the record alone tells something, after a few epochs
    assert both > image + 0.01
    assert rows["image and record"]["gain"] == pytest.approx(both - image)
    # a record that says nothing may not help
    assert rows["image and a record drawn without regard to the truth"]["gain"] < 0.01
    assert rows["image"]["auroc_low"] <= image <= rows["image"]["auroc_high"]
    assert "image and record text" not in rows
    (tmp_path / "f.toml").write_text(card(report, "f.safetensors", "short"))
    pipeline = load_pipeline("short", folder=tmp_path)
    assert pipeline.card(FUSION).mechanism == "joint-embedding"
    assert "synthetic records" in pipeline.card(FUSION).limits
    assert f"image and record: area under the ROC curve {both:.3f}" in " ".join(
        pipeline.card(FUSION).performance
    )
    fusion = Fusion.load(*pipeline.weights(FUSION), mechanism=pipeline.card(FUSION).mechanism)
    seen = ImageEvidence(0.25, np.zeros(EMBEDDING, np.float32), np.zeros((VIEWS, EMBEDDING), np.float32))
    assert fusion.probability(seen, ClinicalRecord()) == 0.25
    heavy = ClinicalRecord(age_years=75, smoking=Smoking.CURRENT, pack_years=80, cancer_history=True)
    light = ClinicalRecord(age_years=45, smoking=Smoking.NEVER, cancer_history=False)
    assert fusion.probability(seen, heavy) > fusion.probability(seen, light) + 0.05


def test_the_short_form_of_the_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_learn, "REHEARSED", 400)
    monkeypatch.setattr(fusion_learn, "REHEARSALS", 2)
    parts = read_features(write_features(tmp_path / "x.npz", patients=100))
    plan = Plan(epochs=1, seeds=1, pool=5_000, resamples=10, dependences=(Dependence.OUTCOME,))
    with Progress(disable=True) as progress:
        report = ablation(parts, words, plan, progress=progress)
    found = report["records"]["outcome"]
    assert set(found["mechanisms"]) == set(MECHANISMS)
    for one in found["mechanisms"].values():
        assert one["largest_change_without_record"] == 0.0
        assert one["none"]["auroc"] == found["image"]["auroc"]
        assert one["none"]["gain"] == one["none"]["gain_low"] == one["none"]["gain_high"] == 0.0
        assert one["full"]["auroc"] != found["image"]["auroc"]
        assert one["record alone"]["auroc"] <= found["exact ratio of the record"]["auroc"] + 0.02
    assert "image-only student" in found["mechanisms"]["distilled"]
    fusion_ablation.write(report, tmp_path)
    assert json.loads((tmp_path / "ablation.json").read_text()) == report
    text = (tmp_path / "ablation.md").read_text()
    assert text == markdown(report)
    assert SYNTHETIC_STATEMENT in text
    assert [f"| {kind.number} {name} |" in text for name, kind in MECHANISMS.items()] == [True] * 6
    assert (tmp_path / "ablation-outcome.png").stat().st_size > 10_000


def test_training_again_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion_learn, "REHEARSED", 200)
    monkeypatch.setattr(fusion_learn, "REHEARSALS", 2)
    parts = read_features(write_features(tmp_path / "x.npz", patients=60))
    digests = {
        run(parts, tmp_path / f"{name}.safetensors", None, epochs=1, seed=3, pool=2_000, resamples=0)[
            "weights_sha256"
        ]
        for name in ("a", "b")
    }
    assert len(digests) == 1
