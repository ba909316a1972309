"""The synthetic records are what their docstring says, and know no more of the images than it says."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from inference.datasets.lidc_crops import RATINGS
from inference.evaluate.metrics import auroc
from inference.fusion import EMBEDDING, TABLE
from inference.record import ITEMS, Smoking
from inference.record import RATINGS as REFUSED
from inference.train.fusion_data import Drawer, Samples, read_features
from inference.train.records import (
    Dependence,
    Population,
    RecordSource,
    base_population,
    disease_chance,
    score,
    with_gaps,
)
from tests.fusion_nodules import many, words, write_features

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
    plain = read_features(write_features(tmp_path / "a.npz"))["train"]
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
