"""Figures of an evaluation and their intervals.

Every statistic takes weights, one for each sample. A bootstrap resample draws patients with replacement, so
it is nothing but other weights: a patient drawn twice counts twice with all of its samples (Efron and
Tibshirani, An Introduction to the Bootstrap, 1993, ch. 8: resample the independent units). Where a statistic
is undefined, e.g. an area under the curve with one class only, it is NaN, and the report says "not defined".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isnan, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

RESAMPLES = 1000
SEED = 20240501
LEVEL = 0.95
BINS = 10
SENSITIVITY = 0.90
NORMAL_95 = 1.959963984540054

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Statistic = Callable[[Floats], float]
"""Weights (n,) to a figure."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval.

    Parameters
    ----------
    value
        NaN where it is not defined on these samples.
    low, high
        95 % interval: percentiles of the resamples, NaN without `value`.
    samples, patients
        How many were counted.
    undefined
        Share of the resamples in which the figure was not defined; they are left out of the interval.
    """

    value: float
    low: float
    high: float
    samples: int
    patients: int
    undefined: float = 0.0

    @property
    def defined(self) -> bool:
        """Whether there is a figure at all."""
        return not isnan(self.value)

    def magnitude(self) -> Estimate:
        """The figure without its sign."""
        ends = sorted((abs(self.low), abs(self.high)))
        low = 0.0 if self.low <= 0 <= self.high else ends[0]
        return replace(self, value=abs(self.value), low=low, high=ends[1])

    def text(self, digits: int = 3) -> str:
        """Such as ``0.912 (0.871-0.944)``."""
        if not self.defined:
            return "not defined"
        value, low, high = (
            f"{round(number, digits) + 0.0:.{digits}f}" for number in (self.value, self.low, self.high)
        )
        return value if isnan(self.low) else f"{value} ({low} to {high})"


class PatientBootstrap:
    """Resamples of whole patients, drawn once and used for every figure of the same samples.

    Parameters
    ----------
    patients
        Patient of each sample, n items.
    resamples
        How many; 0 gives figures without intervals.
    seed
        The same seed and patients always give the same resamples. The order of the samples doesn't matter.
    """

    def __init__(self, patients: Sequence[str], *, resamples: int = RESAMPLES, seed: int = SEED) -> None:
        self.patients = tuple(patients)
        names, member = np.unique(np.array(self.patients, dtype=str), return_inverse=True)
        self._count = len(names)
        draws = np.random.default_rng(seed).integers(0, max(self._count, 1), (resamples, self._count))
        counts = np.zeros((resamples, self._count), np.uint16)
        for row, draw in zip(counts, draws, strict=True):
            np.add.at(row, draw, 1)
        self._counts, self._member = counts, member

    def estimate(self, statistic: Statistic) -> Estimate:
        """Value and interval of a statistic of the weights.

        Parameters
        ----------
        statistic
            Called with weights of shape (n,), float64, first all ones.
        """
        samples = len(self.patients)
        if not samples:
            return Estimate(nan, nan, nan, 0, 0)
        value = float(statistic(np.ones(samples)))
        drawn = np.array([statistic(row[self._member].astype(np.float64)) for row in self._counts])
        found = drawn[~np.isnan(drawn)] if not isnan(value) else drawn[:0]
        low = high = nan
        if len(found):
            low, high = (float(q) for q in np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
        undefined = 1 - len(found) / len(drawn) if len(drawn) else 0.0
        return Estimate(value, low, high, samples, self._count, undefined)

    def mean(self, values: ArrayLike) -> Estimate:
        """Mean of one number for each sample."""
        array = np.asarray(values, dtype=np.float64)
        return self.estimate(lambda weights: weighted_mean(array, weights))


def weighted_mean(values: Floats, weights: Floats) -> float:
    """Mean, NaN without weight."""
    total = float(weights.sum())
    return float(values @ weights) / total if total else nan


# classification


def _both_classes(labels: Mask, weights: Floats) -> bool:
    return bool(weights[labels].sum() > 0 and weights[~labels].sum() > 0)


def auroc(labels: Mask, scores: Floats, weights: Floats | None = None) -> float:
    """Area under the ROC curve.

    Parameters
    ----------
    labels
        bool (n,), True for the positive class.
    scores
        Shape (n,), higher for positive.
    weights
        Shape (n,), None for ones.

    Returns
    -------
    float
        NaN unless both classes are there.
    """
    of = np.ones(len(labels)) if weights is None else weights
    return float(roc_auc_score(labels, scores, sample_weight=of)) if _both_classes(labels, of) else nan


def auprc(labels: Mask, scores: Floats, weights: Floats | None = None) -> float:
    """Area under the precision-recall curve as average precision; NaN unless both classes are there."""
    of = np.ones(len(labels)) if weights is None else weights
    if not _both_classes(labels, of):
        return nan
    return float(average_precision_score(labels, scores, sample_weight=of))


def weighted_auroc(classes: NDArray[np.intp], scores: Floats, weights: Floats | None = None) -> float:
    """Mean over the classes of the one-against-rest AUROC, weighted by the classes' frequency.

    With two classes and probabilities it is the ordinary AUROC.

    Parameters
    ----------
    classes
        int (n,), each in 0..k-1.
    scores
        Shape (n, k).

    Returns
    -------
    float
        Over the classes that occur; NaN where only one does.
    """
    of = np.ones(len(classes)) if weights is None else weights
    areas, shares = [], []
    for number in range(scores.shape[1]):
        area = auroc(classes == number, scores[:, number], of)
        if not isnan(area):
            areas.append(area)
            shares.append(float(of[classes == number].sum()))
    return float(np.average(areas, weights=shares)) if areas else nan


def operating_point(
    labels: Mask, scores: Floats, *, sensitivity: float = SENSITIVITY, weights: Floats | None = None
) -> tuple[float, float]:
    """Specificity and threshold where at least `sensitivity` of the positives are called positive.

    The threshold is chosen on these very samples, as for a published "specificity at 0.90 sensitivity".

    Returns
    -------
    tuple of float
        Specificity and the highest such threshold (score >= threshold is positive); NaN unless both classes
        are there.
    """
    of = np.ones(len(labels)) if weights is None else weights
    if not _both_classes(labels, of):
        return nan, nan
    # samples of weight 0 only add thresholds
    here = of > 0
    false, true, thresholds = roc_curve(
        labels[here], scores[here], sample_weight=of[here], drop_intermediate=False
    )
    first = int(np.argmax(true >= sensitivity - 1e-12))
    return float(1 - false[first]), float(thresholds[first])


def brier(labels: Mask, probabilities: Floats, weights: Floats | None = None) -> float:
    """Mean squared difference of probability and outcome; NaN without samples."""
    of = np.ones(len(labels)) if weights is None else weights
    if not of.sum():
        return nan
    return float(brier_score_loss(labels, probabilities, sample_weight=of, pos_label=True))


@dataclass(frozen=True, slots=True)
class Calibration:
    """One row for each non-empty bin: mean probability, share of positives, weight."""

    predicted: Floats
    observed: Floats
    weight: Floats


def calibration_curve(
    labels: Mask, probabilities: Floats, *, bins: int = BINS, weights: Floats | None = None
) -> Calibration:
    """Reliability diagram over `bins` bins of equal width; a probability of 1 lies in the last."""
    of = np.ones(len(labels)) if weights is None else weights
    place = np.minimum((np.asarray(probabilities) * bins).astype(int), bins - 1)
    weight = np.bincount(place, of, bins).astype(np.float64)
    used = weight > 0
    predicted = np.bincount(place, of * probabilities, bins)[used] / weight[used]
    observed = np.bincount(place, of * labels, bins)[used] / weight[used]
    return Calibration(predicted, observed, weight[used])


def calibration_error(
    labels: Mask, probabilities: Floats, *, bins: int = BINS, weights: Floats | None = None
) -> float:
    """Expected calibration error over bins of equal width (Guo et al., ICML 2017); NaN without samples."""
    curve = calibration_curve(labels, probabilities, bins=bins, weights=weights)
    total = float(curve.weight.sum())
    if not total:
        return nan
    return float(np.abs(curve.predicted - curve.observed) @ curve.weight) / total


def least_calibration_error(
    probabilities: Floats, patients: int, *, bins: int = BINS, draws: int = RESAMPLES, seed: int = SEED
) -> Estimate:
    """What `calibration_error` finds in a perfect model: few samples in a bin miss its mean by chance.

    Outcomes are drawn with the probabilities themselves: mean and 95 % range, NaN without samples.

    Parameters
    ----------
    probabilities
        Shape (n,).
    patients
        Told on only.
    """
    samples = len(probabilities)
    if not samples:
        return Estimate(nan, nan, nan, 0, 0)
    drawn = np.random.default_rng(seed).random((draws, samples)) < probabilities
    found = [calibration_error(labels, probabilities, bins=bins) for labels in drawn]
    low, high = (float(q) for q in np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)))
    return Estimate(float(np.mean(found)), low, high, samples, patients)


def roc_points(labels: Mask, scores: Floats) -> tuple[Floats, Floats]:
    """False-positive and true-positive rate for a plot."""
    false, true, _ = roc_curve(labels, scores)
    return np.asarray(false), np.asarray(true)


def precision_recall_points(labels: Mask, scores: Floats) -> tuple[Floats, Floats]:
    """Recall and precision for a plot."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.asarray(recall), np.asarray(precision)


# overlap


def dice(first: Mask, second: Mask) -> float:
    """Dice coefficient of two masks of the same shape and any rank; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def iou(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks of the same shape; 1 where both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def readers_with_each_other(masks: Sequence[Mask]) -> tuple[float, float]:
    """Mean Dice of all pairs of readers, and of each reader with the 50 % consensus of the others.

    Returns
    -------
    tuple of float
        NaN for fewer than two readers.
    """
    if len(masks) < 2:
        return nan, nan
    pairs = [dice(one, two) for one, two in combinations(masks, 2)]
    others = [
        dice(mask, consensus([other for at, other in enumerate(masks) if at != number]))
        for number, mask in enumerate(masks)
    ]
    return float(np.mean(pairs)), float(np.mean(others))


def consensus(masks: Sequence[Mask]) -> Mask:
    """Voxels that at least half of the masks hold (pylidc's 50 % consensus)."""
    return np.asarray(np.mean(masks, axis=0) >= 0.5)


# agreement


@dataclass(frozen=True, slots=True)
class Agreement:
    """Bland and Altman's bias and limits of agreement (Lancet 327:307-310, 1986).

    Parameters
    ----------
    bias
        Mean of measured - true.
    lower, upper
        Bias -/+ 1.96 standard deviations (n - 1).
    furthest
        The larger of the two limits, without sign.
    """

    bias: Estimate
    lower: Estimate
    upper: Estimate
    furthest: Estimate


def bland_altman(differences: ArrayLike, bootstrap: PatientBootstrap) -> Agreement:
    """Agreement of two measurements.

    Parameters
    ----------
    differences
        Measured - true, shape (n,), in any unit; for volumes in per cent of their mean.
    bootstrap
        Of the patients of these n samples.
    """
    values = np.asarray(differences, np.float64)

    def limit(sign: float) -> Statistic:
        return lambda weights: weighted_mean(values, weights) + sign * NORMAL_95 * _deviation(values, weights)

    return Agreement(
        bootstrap.mean(values),
        bootstrap.estimate(limit(-1.0)),
        bootstrap.estimate(limit(1.0)),
        bootstrap.estimate(lambda weights: max(abs(limit(-1.0)(weights)), abs(limit(1.0)(weights)))),
    )


def _deviation(values: Floats, weights: Floats) -> float:
    """Standard deviation with n - 1; NaN for fewer than two samples."""
    total = float(weights.sum())
    if total < 2:
        return nan
    mean = weighted_mean(values, weights)
    return sqrt(float(weights @ (values - mean) ** 2) / (total - 1))
