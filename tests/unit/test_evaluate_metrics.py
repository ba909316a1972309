from __future__ import annotations

from math import isnan, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from inference.evaluate import metrics
from inference.evaluate.metrics import Estimate, PatientBootstrap

LABELS = np.array([False, False, True, False, True, True])
SCORES = np.array([0.1, 0.3, 0.35, 0.6, 0.7, 0.9])


def test_areas_of_a_case_that_can_be_counted_by_hand() -> None:
    # of 9 pairs one is the wrong way round
    assert metrics.auroc(LABELS, SCORES) == pytest.approx(8 / 9)
    # precision where recall rises: 1/1, 2/2, 3/4
    assert metrics.auprc(LABELS, SCORES) == pytest.approx((1 + 1 + 0.75) / 3)
    assert metrics.brier(LABELS, SCORES) == pytest.approx(np.mean((SCORES - LABELS) ** 2))


def test_areas_with_one_class_are_not_defined() -> None:
    every = np.ones(6, np.bool_)
    assert isnan(metrics.auroc(every, SCORES))
    assert isnan(metrics.auprc(~every, SCORES))
    assert isnan(metrics.operating_point(every, SCORES)[0])
    assert isnan(metrics.weighted_auroc(np.zeros(6, np.intp), np.zeros((6, 2))))


@given(
    labels=arrays(np.bool_, 12),
    scores=arrays(np.float64, 12, elements=st.floats(0, 1)),
    counts=arrays(np.int64, 12, elements=st.integers(0, 3)),
)
def test_a_weight_is_the_same_as_repeating_the_sample(
    labels: metrics.Mask, scores: metrics.Floats, counts: np.ndarray
) -> None:
    again, weights = np.repeat(np.arange(12), counts), counts.astype(np.float64)
    for statistic in (
        metrics.auroc,
        metrics.auprc,
        metrics.brier,
        lambda y, s, w=None: metrics.operating_point(y, s, weights=w)[0],
        lambda y, s, w=None: metrics.calibration_error(y, s, weights=w),
    ):
        repeated = statistic(labels[again], scores[again])
        assert statistic(labels, scores, weights) == pytest.approx(repeated, nan_ok=True)


def test_operating_point_keeps_the_sensitivity() -> None:
    labels = np.array([True] * 10 + [False] * 10)
    scores = np.r_[np.linspace(0.9, 0.5, 9), 0.05, np.linspace(0.0, 0.6, 10)]
    specificity, threshold = metrics.operating_point(labels, scores)
    assert (scores[labels] >= threshold).mean() == 0.9
    assert specificity == (scores[~labels] < threshold).mean() == 0.8
    assert metrics.operating_point(labels, scores, sensitivity=1.0)[0] < specificity


def test_weighted_auroc_weighs_by_frequency_and_is_the_plain_one_for_two_classes() -> None:
    two = np.column_stack([1 - SCORES, SCORES])
    assert metrics.weighted_auroc(LABELS.astype(np.intp), two) == pytest.approx(8 / 9)
    classes = np.array([0, 0, 0, 1, 1, 2])
    scores = np.eye(3)[classes]
    scores[classes == 2] = [1, 0, 0]  # the rare class is never recognised
    one = metrics.auroc(classes == 0, scores[:, 0])
    assert one < 1
    expected = (3 * one + 2 * 1.0 + 1 * metrics.auroc(classes == 2, scores[:, 2])) / 6
    assert metrics.weighted_auroc(classes, scores) == pytest.approx(expected)


def test_calibration_error_of_known_bins() -> None:
    probabilities = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    labels = np.array([False, False, True, True, False])
    # bins: 0.05 against 0 (weight 2), 0.9667 against 2/3 (weight 3)
    assert metrics.calibration_error(labels, probabilities) == pytest.approx((2 * 0.05 + 3 * 0.3) / 5)
    curve = metrics.calibration_curve(labels, probabilities)
    assert curve.weight.tolist() == [2, 3]
    perfect = np.repeat([0.2, 0.8], 10)
    right = np.r_[np.arange(10) < 2, np.arange(10) < 8]
    assert metrics.calibration_error(right, perfect) == pytest.approx(0)


def test_the_least_calibration_error_is_that_of_chance() -> None:
    rng = np.random.default_rng(0)
    few, many = (metrics.least_calibration_error(rng.random(n), 3) for n in (100, 10_000))
    # a bin of m samples around p misses its mean by sqrt(2 p (1 - p) / (pi m)) on average
    p = np.arange(0.05, 1, 0.1)
    for found, samples in ((few, 100), (many, 10_000)):
        expected = np.sqrt(2 * p * (1 - p) / (np.pi * samples / 10)).mean()
        assert found.value == pytest.approx(expected, rel=0.08)
        assert found.low < found.value < found.high
        assert (found.samples, found.patients) == (samples, 3)
    assert not metrics.least_calibration_error(np.zeros(0), 0).defined


def test_overlap() -> None:
    first, second = np.zeros((2, 4, 4), np.bool_), np.zeros((2, 4, 4), np.bool_)
    assert metrics.dice(first, second) == metrics.iou(first, second) == 1
    first[0, :2], second[0, 1:3] = True, True
    assert metrics.dice(first, second) == pytest.approx(0.5)
    assert metrics.iou(first, second) == pytest.approx(1 / 3)
    assert metrics.dice(first, np.zeros_like(first)) == 0


def test_readers_with_each_other() -> None:
    one, two = np.zeros((1, 2, 4), np.bool_), np.zeros((1, 2, 4), np.bool_)
    one[0, 0], two[0, 0, :2] = True, True
    pairs, others = metrics.readers_with_each_other([one, one, two])
    assert pairs == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    # the consensus of two readers is all that either drew
    assert others == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert isnan(metrics.readers_with_each_other([one])[0])


def test_bootstrap_draws_patients_not_samples() -> None:
    # one patient's hundred samples are one draw: the interval is as wide as that of two samples
    values = np.r_[np.zeros(100), np.ones(100)]
    patients = ["a"] * 100 + ["b"] * 100
    grouped = PatientBootstrap(patients, resamples=400).mean(values)
    single = PatientBootstrap([str(n) for n in range(200)], resamples=400).mean(values)
    assert grouped.value == single.value == 0.5
    assert (grouped.low, grouped.high) == (0.0, 1.0)
    assert 0.4 < single.low < single.high < 0.6
    assert (grouped.samples, grouped.patients) == (200, 2)


def test_bootstrap_is_seeded_and_order_of_samples_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    values, patients = rng.random(40), [str(n % 13) for n in range(40)]
    first = PatientBootstrap(patients, resamples=100, seed=1).mean(values)
    assert first == PatientBootstrap(patients, resamples=100, seed=1).mean(values)
    assert first != PatientBootstrap(patients, resamples=100, seed=2).mean(values)
    turned = PatientBootstrap(patients[::-1], resamples=100, seed=1).mean(values[::-1])
    assert turned.low == pytest.approx(first.low)
    assert turned.high == pytest.approx(first.high)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(1.0, 1.0, 40)
        found = PatientBootstrap([str(n) for n in range(40)], resamples=200, seed=seed).mean(values)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    labels, scores = np.array([True, False, False]), np.array([0.9, 0.1, 0.2])
    found = PatientBootstrap(["a", "b", "c"], resamples=300).estimate(
        lambda weights: metrics.auroc(labels, scores, weights)
    )
    assert found.value == 1
    # (2/3)^3 never draw the positive, (1/3)^3 nothing else
    assert found.undefined == pytest.approx((8 + 1) / 27, abs=0.08)


def test_figures_that_are_not_defined_say_so() -> None:
    nothing = PatientBootstrap([]).mean([])
    assert not nothing.defined
    assert nothing.text() == "not defined"
    one_class = PatientBootstrap(["a", "b"], resamples=10).estimate(lambda _weights: nan)
    assert isnan(one_class.low)
    assert Estimate(0.5, nan, nan, 3, 2).text() == "0.500"
    assert Estimate(0.9123, 0.8, 0.95, 3, 2).text() == "0.912 (0.800 to 0.950)"


def test_magnitude_of_an_interval_across_zero() -> None:
    assert Estimate(-0.2, -0.5, 0.1, 9, 9).magnitude() == Estimate(0.2, 0.0, 0.5, 9, 9)
    assert Estimate(-0.4, -0.5, -0.1, 9, 9).magnitude() == Estimate(0.4, 0.1, 0.5, 9, 9)


def test_bland_altman() -> None:
    differences = [0.0, 1.0, 2.0, 1.0]
    found = metrics.bland_altman(differences, PatientBootstrap(list("abcd"), resamples=200))
    deviation = float(np.std(differences, ddof=1))
    assert found.bias.value == 1
    assert found.upper.value == pytest.approx(1 + 1.96 * deviation, abs=1e-3)
    assert found.lower.value == pytest.approx(1 - 1.96 * deviation, abs=1e-3)
    assert found.furthest.value == pytest.approx(found.upper.value)
