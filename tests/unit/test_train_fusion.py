"""The synthetic records are what their docstring says, and short trainings learn to use them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.ensemble import HistGradientBoostingClassifier

from inference.cadx import CadxReading
from inference.datasets.lidc_crops import RATINGS, Split
from inference.evaluate.metrics import auroc
from inference.fusion import (
    EMBEDDING,
    MECHANISMS,
    SYNTHETIC_STATEMENT,
    TABLE,
    Fusion,
    ImageEvidence,
    ImageParts,
    NoduleFacts,
)
from inference.fusion.attributes import ATTRIBUTES, Attributes
from inference.fusion.contrast import Contrast
from inference.fusion.distilled import Distilled
from inference.fusion.mechanism import VIEWS
from inference.record import ITEMS, ClinicalRecord, Smoking
from inference.record import RATINGS as REFUSED
from inference.registry import FUSION, load_pipeline
from inference.train import fusion_ablation, fusion_learn
from inference.train.cadx_data import Nodule
from inference.train.fusion import card, run
from inference.train.fusion_ablation import Plan, ablation, markdown
from inference.train.fusion_data import Drawer, Samples, read_features
from inference.train.fusion_features import features, longest_diameter_mm
from inference.train.fusion_learn import fit_line, loss_of
from inference.train.fusion_losses import Batch, attribute_loss, contrast_loss, taught_loss
from inference.train.records import (
    Dependence,
    Population,
    RecordSource,
    base_population,
    disease_chance,
    score,
    with_gaps,
)

Floats = NDArray[np.float64]

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


def columns(people: Population) -> Floats:
    """All that is drawn of each person."""
    return np.stack([getattr(people, item.name) for item in fields(Population)], axis=1)


def test_a_reader_of_records_gains_no_more_than_is_documented(source: RecordSource) -> None:
    """Boosted trees that see everything reach the exact ratio's area, and it leaves nothing to learn."""
    rng = np.random.default_rng(5)
    truth = rng.random(24_000) < 0.4
    people, ratio = source.draw(truth, rng)
    rows, learnt = columns(people), np.arange(len(truth)) < 16_000
    with_ratio = np.column_stack([rows, ratio])
    told, ceiling = [], auroc(truth[~learnt], ratio[~learnt])
    for seen in (rows, with_ratio):
        trees = HistGradientBoostingClassifier(max_iter=40, random_state=0).fit(seen[learnt], truth[learnt])
        told.append(auroc(truth[~learnt], trees.decision_function(seen[~learnt])))
    assert 0.65 < ceiling < 0.8
    assert ceiling - 0.03 < told[0] < ceiling + 0.005
    assert told[1] < ceiling + 0.005


def test_a_record_of_nobody_tells_nothing(source: RecordSource) -> None:
    samples = many(2000)
    draw = Drawer(source, None, 0).draw(samples, 0.0, brock=False, blind=True)
    for column in range(len(TABLE)):
        assert auroc(samples.malignant, draw.table[:, column].double().numpy()) == pytest.approx(
            0.5, abs=0.05
        )
    assert auroc(samples.malignant, draw.log_ratio) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("dependence", Dependence)
def test_patients_have_one_record_each(source: RecordSource, dependence: Dependence) -> None:
    patient = np.array([0, 0, 1, 2, 2, 2])
    samples = replace(
        many(6),
        patient=patient,
        names=("a", "b", "c"),
        patient_malignant=np.array([True, False, False]),
        patient_chance=np.array([0.9, 0.5, 0.1]),
    )
    draw = Drawer(source, words, 0, dependence).draw(samples, 0.3, brock=False)
    assert draw.text is not None
    for one in range(3):
        mine = torch.from_numpy(patient == one)
        for rows in (draw.table[mine], draw.text[mine]):
            assert (rows == rows[0]).all()
    assert len(set(draw.log_ratio.tolist())) == 3


def test_one_bit_of_the_truth_is_all_that_a_record_gets(source: RecordSource) -> None:
    """Everything that is known of the nodules may change: the records stay, unless that bit does."""
    samples = many(60)
    rng = np.random.default_rng(1)
    others = replace(
        samples,
        logit=rng.normal(size=60),
        embedding=rng.normal(size=(60, EMBEDDING)).astype(np.float32),
        ratings=rng.uniform(1, 5, (60, 9)).astype(np.float32),
        malignant=~samples.malignant,
        patient_chance=1 - samples.patient_chance,
    )
    turned = replace(samples, patient_malignant=~samples.patient_malignant)

    def table(of: Samples) -> torch.Tensor:
        return Drawer(source, None, 0).draw(of, 0.2, brock=False).table

    assert torch.equal(table(samples), table(others))
    assert not torch.equal(table(samples), table(turned))


def test_records_made_of_ratings_never_see_the_label(source: RecordSource, tmp_path: Path) -> None:
    """The rating of malignancy turned round, in both places where it stands: not one item changes."""
    plain = read_features(write(tmp_path / "a.npz"))["train"]
    with np.load(tmp_path / "a.npz") as archive:
        found = {name: archive[name] for name in archive.files}
    ratings = found["ratings"].copy()
    ratings[:, RATINGS.index("malignancy")] = 6 - ratings[:, RATINGS.index("malignancy")]
    np.savez(tmp_path / "b.npz", **{**found, "malignancy": 6 - found["malignancy"], "ratings": ratings})
    turned = read_features(tmp_path / "b.npz")["train"]
    assert (plain.malignant != turned.malignant).all()
    draws = [Drawer(source, words, 0, Dependence.RATINGS).draw(one, 0.2) for one in (plain, turned)]
    assert torch.equal(draws[0].table, draws[1].table)
    assert draws[0].text is not None
    assert draws[1].text is not None
    assert torch.equal(draws[0].text, draws[1].text)
    other = Drawer(source, words, 0).draw(turned, 0.2)
    assert not torch.equal(other.table, Drawer(source, words, 0).draw(plain, 0.2).table)


def test_no_item_and_no_word_of_a_record_is_a_rating() -> None:
    known = {name.lower() for name in (*ITEMS, *TABLE)}
    assert known.isdisjoint(REFUSED)
    people = base_population(300, np.random.default_rng(6))
    said = " ".join(people.record(row).sentence() for row in range(len(people))).lower()
    assert not [name for name in (*REFUSED, "malignan", "benign", "suspicious", "nodule") if name in said]


@pytest.mark.parametrize(
    ("diameters", "spiculation", "texture", "chance"),
    [
        ([10.0], [1.0], [5.0], 0.5),
        ([10.0, 5.0], [1.0, 1.0], [5.0, 5.0], 0.5),  # the worst nodule counts
        ([10.0], [3.0], [5.0], 1 / (1 + np.exp(-2 * 0.7729335))),
        ([10.0], [2.9], [3.0], 1 / (1 + np.exp(-2 * 0.377))),
        ([40.0], [1.0], [1.0], 1 / (1 + np.exp(-2 * (5.385484 * 0.5 - 0.1276)))),
    ],
)
def test_disease_chance(
    diameters: list[float], spiculation: list[float], texture: list[float], chance: float
) -> None:
    found = disease_chance(np.array(diameters), np.array(spiculation), np.array(texture))
    assert found == pytest.approx(chance)


# the features


def words(sentences: Sequence[str]) -> NDArray[np.float32]:
    """Another vector for another sentence."""
    rows = [np.random.default_rng(zlib.crc32(text.encode())).normal(size=EMBEDDING) for text in sentences]
    return np.array(np.reshape(rows, (-1, EMBEDDING)) / 16, np.float32)


def many(count: int) -> Samples:
    """Patients of one nodule each, every third malignant."""
    malignant = np.arange(count) % 3 == 0
    return Samples(
        patient=np.arange(count),
        names=tuple(f"{number:04d}" for number in range(count)),
        malignant=malignant,
        logit=np.zeros(count),
        embedding=np.zeros((count, EMBEDDING), np.float32),
        views=np.zeros((count, VIEWS, EMBEDDING), np.float32),
        ratings=np.full((count, 9), 2, np.float32),
        facts=(NoduleFacts(8.0, 1),) * count,
        patient_malignant=malignant,
        patient_chance=np.linspace(0.1, 0.9, count),
    )


def write(path: Path, *, patients: int = 200, seed: int = 0, **changes: Any) -> Path:
    """Features as CADx would give them: good on unseen patients, perfect on TRAIN."""
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
            views = np.abs(rng.normal(size=(VIEWS, EMBEDDING)))
            views[:, 0] += latent
            ratings = np.full(9, 4.0 if malignant else 2.0)
            name, size = f"P-{number:04d}", 8 + 3 * rng.random()
            row = (name, f"{name}_{nodule:02d}", split, logit, embedding, views, ratings, ratings[-1], size)
            rows.append(row)
    arrays = ("patient", "nodule", "split", "image_logit", "embedding", "views", "ratings", "malignancy")
    found: dict[str, Any] = {
        name: np.array(c) for name, c in zip((*arrays, "diameter_mm"), zip(*rows, strict=True), strict=True)
    }
    np.savez(path, **{**found, **changes})
    return path


def test_read_features(tmp_path: Path) -> None:
    parts = read_features(write(tmp_path / "x.npz"))
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
    parts = read_features(write(tmp_path / "x.npz", malignancy=rating))
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
        read_features(write(tmp_path / "x.npz", **changes))


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
    parts = read_features(write(tmp_path / "x.npz"))
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
    monkeypatch.setattr(fusion_learn, "REHEARSALS", 6)
    parts = read_features(write(tmp_path / "x.npz", patients=100))
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
    parts = read_features(write(tmp_path / "x.npz", patients=60))
    digests = {
        run(parts, tmp_path / f"{name}.safetensors", None, epochs=1, seed=3, pool=2_000, resamples=0)[
            "weights_sha256"
        ]
        for name in ("a", "b")
    }
    assert len(digests) == 1
