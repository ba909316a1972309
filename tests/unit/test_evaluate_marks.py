from __future__ import annotations

from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from inference.evaluate.marks import (
    MOST_MARKS,
    RATES,
    Box,
    Froc,
    Mark,
    ScanMatch,
    Sphere,
    match,
)
from inference.types import SourceFrame, Volume


def mark(x: float, score: float) -> Mark:
    return Mark((x, 0.0, 0.0), score)


def test_a_hit_lies_closer_than_the_radius() -> None:
    lesion = Sphere((0.0, 0.0, 0.0), 10.0)
    assert match([mark(4.99, 0.5)], [lesion]).hits == (0.5,)
    edge = match([mark(5.0, 0.5)], [lesion])
    assert edge.hits == (None,)
    assert edge.false_scores == (0.5,)


def test_a_negative_diameter_counts_as_10_mm() -> None:
    assert match([mark(4.9, 0.5)], [Sphere((0.0, 0.0, 0.0), -1.0)]).hits == (0.5,)


def test_further_marks_on_a_lesion_count_neither_way_and_the_highest_score_counts() -> None:
    found = match([mark(1, 0.2), mark(2, 0.7), mark(30, 0.9)], [Sphere((0.0, 0.0, 0.0), 10.0)])
    assert found.hits == (0.7,)
    assert found.hit_marks == (1,)
    assert found.false_scores == (0.9,)
    assert found.ignored == 1


def test_marks_on_excluded_findings_count_neither_way() -> None:
    found = match([mark(30, 0.9)], [Sphere((0.0, 0.0, 0.0), 10.0)], [Sphere((30.0, 0.0, 0.0), 10.0)])
    assert (found.hits, found.false_scores, found.ignored) == ((None,), (), 1)


def test_a_mark_on_a_lesion_and_an_excluded_finding_hits() -> None:
    found = match([mark(3, 0.9)], [Sphere((0.0, 0.0, 0.0), 10.0)], [Sphere((5.0, 0.0, 0.0), 10.0)])
    assert (found.hits, found.ignored) == ((0.9,), 0)


def test_only_the_hundred_highest_marks_count() -> None:
    marks = [mark(1000 + number, 0.5 + number / 1000) for number in range(MOST_MARKS)]
    found = match([mark(0, 0.1), *marks], [Sphere((0.0, 0.0, 0.0), 10.0)])
    assert found.hits == (None,)
    assert len(found.false_scores) == MOST_MARKS


def test_box_on_slices() -> None:
    # rows run along -y and slices down: indices must go through the affine
    affine = np.array([[0, 0, 0.5, -10.0], [0, -0.5, 0, 20.0], [-2.0, 0, 0, 100.0], [0, 0, 0, 1]], np.float64)
    volume = Volume(np.zeros((10, 40, 40), np.int16), affine, "f", "st", "se", (SourceFrame("c", "i"),) * 10)
    box = Box((2.5, 9.5, 19.5), (4.5, 19.5, 29.5), volume)
    assert box.centre_lps == pytest.approx((-10 + 24.5 / 2, 20 - 14.5 / 2, 93.0))
    assert box.diameter_mm == pytest.approx(5.0)
    inside, outside = volume.index_to_lps(np.array([[3.0, 10.0, 29.0], [5.0, 10.0, 29.0]]))
    assert box.contains(np.array([inside, outside])).tolist() == [True, False]


def scan(name: str, hits: tuple[float | None, ...], false: tuple[float, ...]) -> ScanMatch:
    return ScanMatch(name, name, hits, tuple(None for _ in hits), false, 0)


def test_curve_and_score_that_can_be_counted_by_hand() -> None:
    # two scans, four lesions; by falling score: hit, false, hit, false, hit; one lesion is never found
    froc = Froc([scan("a", (0.9, 0.5), (0.8,)), scan("b", (0.7, None), (0.6,))])
    curve = froc.curve()
    assert curve.false_per_scan.tolist() == [0, 0, 0.5, 0.5, 1.0, 1.0]
    assert curve.sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.5, 0.75]
    read = [curve.at(rate) for rate in RATES]
    # linear between (0, 1/4) and (1/2, 1/4), then steps; flat behind the last point
    assert read == [0.25, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert curve.score() == pytest.approx(np.mean(read))


def test_equal_scores_share_one_threshold() -> None:
    curve = Froc([scan("a", (0.5, 0.5), (0.5, 0.5))]).curve()
    assert curve.false_per_scan.tolist() == [0, 2]
    assert curve.sensitivity.tolist() == [0, 1]
    assert curve.at(1.0) == 0.5


def test_scans_without_marks_or_lesions_count_as_scans() -> None:
    froc = Froc([scan("a", (0.9,), (0.95,)), scan("b", (), ()), scan("c", (), ())])
    assert froc.curve().false_per_scan.max() == pytest.approx(1 / 3)
    nothing = Froc([scan("a", (), ())])
    assert isnan(nothing.curve().score())
    assert Froc([scan("a", (None,), ())]).curve().score() == 0


def test_interval_comes_from_whole_patients() -> None:
    good = [scan(f"g{n}", (0.9, 0.8), ()) for n in range(10)]
    bad = [scan(f"b{n}", (None, None), (0.95,)) for n in range(10)]
    froc = Froc([*good, *bad])
    found = froc.found(froc.bootstrap(resamples=300, seed=0))
    assert found.value == 0.5
    assert 0.2 < found.low < 0.4 < 0.6 < found.high < 0.8
    twice = Froc([replace(one, patient=f"p{number // 2}") for number, one in enumerate((*good, *bad))])
    wider = twice.found(twice.bootstrap(resamples=300, seed=0))
    assert wider.high - wider.low > found.high - found.low


def test_no_ranking_beats_one_that_puts_lesions_first() -> None:
    rng = np.random.default_rng(0)
    hits, false = rng.random(30), rng.random(60)
    random = Froc([scan("a", tuple(hits), tuple(false))]).curve().score()
    first = Froc([scan("a", tuple(hits + 1), tuple(false))]).curve().score()
    assert random < 0.5
    assert first == 1
