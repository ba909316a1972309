"""Marks against lesions by the rules of LUNA16, and the FROC curve.

The rules (Setio et al., Med Image Anal 42:1-13, 2017, and its evaluation script): a mark hits a lesion when
it lies closer to the lesion's centre than its radius; further marks on a lesion that is hit count neither way
and the highest score counts; marks on an excluded finding count neither way; of each scan the 100 highest
marks are taken; a lesion without a mark is missed at every threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
from numpy.typing import NDArray

from inference.evaluate.metrics import Estimate, Floats, PatientBootstrap
from inference.types import Point, Volume

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which LUNA16 reads the curve."""
MOST_MARKS = 100
UNKNOWN_DIAMETER_MM = 10.0
"""What LUNA16 takes for a diameter below 0."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place that the pipeline points at: LPS mm, and a score that ranks it."""

    centre_lps: Point
    score: float


@dataclass(frozen=True, slots=True)
class Sphere:
    """A lesion known by centre (LPS mm) and diameter."""

    centre_lps: Point
    diameter_mm: float

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """Whether each LPS point (n, 3) lies closer to the centre than the radius."""
        diameter = self.diameter_mm if self.diameter_mm >= 0 else UNKNOWN_DIAMETER_MM
        gaps = np.linalg.norm(points.reshape(-1, 3) - np.array(self.centre_lps), axis=1)
        return np.asarray(gaps < diameter / 2)


@dataclass(frozen=True, slots=True)
class Box:
    """A lesion known by boxes on slices.

    Parameters
    ----------
    low, high
        Fractional voxel index (z, y, x) of the corners; voxel centres are whole numbers.
    volume
        The volume of the indices.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    volume: Volume

    @property
    def centre_lps(self) -> Point:
        """Its middle, LPS mm."""
        x, y, z = self.volume.index_to_lps((np.array(self.low) + np.array(self.high)) / 2)
        return float(x), float(y), float(z)

    @property
    def diameter_mm(self) -> float:
        """Mean of its two edges in the slice."""
        edges = (np.array(self.high) - np.array(self.low)) * np.array(self.volume.spacing_mm)
        return float(edges[1:].mean())

    def contains(self, points: Floats) -> NDArray[np.bool_]:
        """Whether each LPS point (n, 3) lies in the box."""
        index = self.volume.lps_to_index(points.reshape(-1, 3))
        return np.asarray(((index >= np.array(self.low)) & (index <= np.array(self.high))).all(axis=1))


Lesion = Sphere | Box


@dataclass(frozen=True, slots=True)
class ScanMatch:
    """What became of the marks of one scan.

    Parameters
    ----------
    scan, patient
        Names.
    hits
        For each lesion the highest score of a mark on it, None where it was missed.
    hit_marks
        For each lesion the index of that mark, None where it was missed.
    false_scores
        Scores of the marks on nothing.
    ignored
        Marks on excluded findings and further marks on a lesion.
    """

    scan: str
    patient: str
    hits: tuple[float | None, ...]
    hit_marks: tuple[int | None, ...]
    false_scores: tuple[float, ...]
    ignored: int


def match(
    marks: Sequence[Mark],
    lesions: Sequence[Lesion],
    excluded: Sequence[Lesion] = (),
    *,
    scan: str = "",
    patient: str = "",
) -> ScanMatch:
    """Apply the rules to one scan.

    Parameters
    ----------
    marks
        In any order; the `MOST_MARKS` highest count.
    lesions, excluded
        What must be found, and what counts neither way.
    """
    order = sorted(range(len(marks)), key=lambda number: -marks[number].score)[:MOST_MARKS]
    points = np.array([marks[number].centre_lps for number in order], np.float64).reshape(-1, 3)
    free = np.ones(len(order), np.bool_)
    hits: list[float | None] = []
    hit_marks: list[int | None] = []
    for lesion in lesions:
        on_it = np.flatnonzero(lesion.contains(points))
        free[on_it] = False
        first = order[on_it[0]] if len(on_it) else None  # marks are in falling order
        hits.append(None if first is None else marks[first].score)
        hit_marks.append(first)
    extra = int((~free).sum()) - len({number for number in hit_marks if number is not None})
    for finding in excluded:
        on_it = np.flatnonzero(finding.contains(points) & free)
        free[on_it] = False
        extra += len(on_it)
    false = tuple(marks[order[at]].score for at in np.flatnonzero(free))
    return ScanMatch(scan, patient, tuple(hits), tuple(hit_marks), false, extra)


@dataclass(frozen=True, slots=True)
class FrocCurve:
    """Mean false positives per scan and sensitivity at falling thresholds; begins at (0, 0)."""

    false_per_scan: Floats
    sensitivity: Floats
    thresholds: Floats

    def at(self, rate: float) -> float:
        """Sensitivity at a rate of false positives; linear between points, flat behind the last."""
        if isnan(self.sensitivity[-1]):
            return nan
        return float(np.interp(rate, self.false_per_scan, self.sensitivity))

    def score(self) -> float:
        """Mean sensitivity at `RATES` (the CPM of LUNA16)."""
        return float(np.mean([self.at(rate) for rate in RATES]))


class Froc:
    """The matches of a set of scans, ready for weights.

    Parameters
    ----------
    matches
        One for each scan, those without lesions too.
    """

    def __init__(self, matches: Sequence[ScanMatch]) -> None:
        self.matches = tuple(matches)
        scan, score, hit = [], [], []
        for number, one in enumerate(self.matches):
            found = [value for value in one.hits if value is not None]
            scan += [number] * (len(found) + len(one.false_scores))
            score += [*found, *one.false_scores]
            hit += [True] * len(found) + [False] * len(one.false_scores)
        order = np.argsort(-np.array(score, np.float64), kind="stable")
        self._scan = np.array(scan, np.intp)[order]
        self._score = np.array(score, np.float64)[order]
        self._hit = np.array(hit, np.bool_)[order]
        self._lesions = np.array([len(one.hits) for one in self.matches], np.float64)
        steps = np.flatnonzero(np.diff(self._score))  # equal scores share one threshold
        self._last = np.append(steps, len(order) - 1) if len(order) else steps

    def curve(self, weights: Floats | None = None) -> FrocCurve:
        """The curve; `weights` (scans,) of a resample."""
        of = np.ones(len(self.matches)) if weights is None else weights
        weight = of[self._scan]
        lesions, scans = float(of @ self._lesions), float(of.sum())
        true = np.cumsum(weight * self._hit)[self._last]
        false = np.cumsum(weight * ~self._hit)[self._last]
        sensitivity = true / lesions if lesions else np.full(len(true), nan)
        start = 0.0 if lesions else nan
        return FrocCurve(
            np.concatenate([[0.0], false / max(scans, 1e-12)]),
            np.concatenate([[start], sensitivity]),
            np.concatenate([[np.inf], self._score[self._last]]),
        )

    def bootstrap(self, *, resamples: int, seed: int) -> PatientBootstrap:
        """Resamples of the patients of these scans."""
        return PatientBootstrap([one.patient for one in self.matches], resamples=resamples, seed=seed)

    def score(self, bootstrap: PatientBootstrap) -> Estimate:
        """CPM with its interval."""
        return bootstrap.estimate(lambda weights: self.curve(weights).score())

    def sensitivity(self, rate: float, bootstrap: PatientBootstrap) -> Estimate:
        """Sensitivity at a rate of false positives with its interval."""
        return bootstrap.estimate(lambda weights: self.curve(weights).at(rate))

    def found(self, bootstrap: PatientBootstrap) -> Estimate:
        """Share of the lesions that any mark hits."""
        hit = np.array([sum(value is not None for value in one.hits) for one in self.matches], np.float64)

        def statistic(weights: Floats) -> float:
            lesions = float(weights @ self._lesions)
            return float(weights @ hit) / lesions if lesions else nan

        return bootstrap.estimate(statistic)

    def false_per_scan(self, bootstrap: PatientBootstrap) -> Estimate:
        """Mean number of marks on nothing, all scores."""
        return bootstrap.mean([len(one.false_scores) for one in self.matches])
