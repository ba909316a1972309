"""Pleural contact of balls whose gap to the edge of the lung is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from inference.evaluate.pleura import Case, fit, summary
from inference.lungs import LEFT, RIGHT, Lungs, find_lungs
from inference.phantom import Attachment, NoduleSpec, make_phantom
from inference.pleura import REACH_MM, PleuralContact, attachment_probability, pleural_contact
from inference.types import Index, SourceFrame, Volume

SPACING = (1.25, 0.8, 0.8)
SHAPE = (48, 100, 120)
WALL = 20
"""First column of the right lung; the left one begins at column 60, without anything between them."""


def volume() -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(SPACING[::-1])[:, ::-1]
    frames = tuple(SourceFrame("1.2", str(z)) for z in range(SHAPE[0]))
    return Volume(np.zeros(SHAPE, np.int16), affine, "1", "2", "3", frames)


def lungs() -> Lungs:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 10:90, WALL:60] = RIGHT
    labels[:, 10:90, 60:110] = LEFT
    return Lungs(labels, (2000.0, 2000.0))


def ball(
    gap_mm: float, diameter: float = 10.0, *, column: float | None = None
) -> tuple[NDArray[np.bool_], Index]:
    """A ball whose surface lies `gap_mm` from the wall, cut by it; cropped, with its origin."""
    x = WALL - 0.5 + (gap_mm + diameter / 2) / SPACING[2] if column is None else column
    axes = np.ogrid[tuple(slice(size) for size in SHAPE)]
    steps = zip(axes, (24, 50, x), SPACING, strict=True)
    mask = np.asarray(sum(((a - c) * d) ** 2 for a, c, d in steps) < diameter**2 / 4) & (axes[2] >= WALL)
    (place,) = ndimage.find_objects(mask.astype(np.uint8))
    return mask[place], (place[0].start, place[1].start, place[2].start)


def contact(gap_mm: float, diameter: float = 10.0) -> PleuralContact:
    found = pleural_contact(volume(), lungs(), *ball(gap_mm, diameter))
    assert found is not None
    return found


@pytest.mark.parametrize("gap", [3.0, 5.0, 8.0, 11.0])
def test_distance(gap: float) -> None:
    found = contact(gap)
    assert found.distance_mm == pytest.approx(gap, abs=0.6)
    assert found.contact_mm2 == 0.0
    assert not found.attached


@pytest.mark.parametrize("diameter", [6.0, 10.0, 20.0])
def test_a_ball_cut_by_the_wall(diameter: float) -> None:
    found = contact(-0.3 * diameter, diameter)
    assert found.distance_mm == 0.0
    assert found.attached
    # the cut is a disc, and of the rest a ring is within reach
    height = 0.3 * diameter
    disc = math.pi * height * (diameter - height)
    assert disc < found.contact_mm2 < disc + 1.25 * math.pi * diameter * REACH_MM + 0.3 * disc
    assert 0 < found.contact_share < 1


def test_the_nearer_the_likelier() -> None:
    chances = [contact(gap).probability for gap in (-2.0, 0.5, 1.5, 2.5, 4.0)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.9
    assert chances[-1] < 0.01
    assert 0 < attachment_probability(-1e9) <= 1
    assert 0 <= attachment_probability(1e9) < 1e-6


def test_the_other_lung_is_across_the_pleura() -> None:
    """The two lungs touch each other: a nodule at that border is at the pleura."""
    found = pleural_contact(volume(), lungs(), *ball(0.0, column=60 + 5.5 / 0.8))
    assert found is not None
    assert found.attached


def test_far_from_any_edge_the_search_goes_on() -> None:
    labels = np.zeros((64, 160, 160), np.uint8)
    labels[2:62, 2:158, 2:158] = LEFT
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    frames = tuple(SourceFrame("1.2", str(z)) for z in range(64))
    big = Volume(np.zeros(labels.shape, np.int16), affine, "1", "2", "3", frames)
    found = pleural_contact(big, Lungs(labels, (0.0, 4000.0)), np.ones((1, 1, 1), bool), (32, 80, 80))
    assert found is not None
    assert found.distance_mm == pytest.approx(29.7, abs=0.6)


def test_no_pleura_to_measure_to() -> None:
    assert pleural_contact(volume(), lungs(), np.ones((2, 2, 2), bool), (5, 2, 2)) is None
    with pytest.raises(ValueError, match="empty"):
        pleural_contact(volume(), lungs(), np.zeros((2, 2, 2), bool), (5, 50, 50))
    with pytest.raises(ValueError, match="outside"):
        pleural_contact(volume(), lungs(), np.ones((2, 2, 2), bool), (47, 50, 50))


def test_drawn_nodules_through_the_lung_field_that_is_found() -> None:
    specs = (
        NoduleSpec(16.0, attachment=Attachment.JUXTAPLEURAL),
        NoduleSpec(12.0),
        NoduleSpec(9.0, attachment=Attachment.JUXTAVASCULAR),
    )
    phantom = make_phantom(7, (100, 200, 200), (3.0, 1.76, 1.76), specs)
    field = find_lungs(phantom.volume)
    outside = ndimage.binary_dilation(phantom.truth == 0)
    for nodule in phantom.nodules:
        mask = phantom.truth == nodule.label
        (place,) = ndimage.find_objects(mask.astype(np.uint8))
        found = pleural_contact(
            phantom.volume, field, mask[place], (place[0].start, place[1].start, place[2].start)
        )
        assert found is not None
        assert found.attached == bool((mask & outside).any())


def case(depth: float, *, attached: bool, gap: float | None = None) -> Case:
    kind = "drawn" if gap is None else "ball"
    return Case(1, kind, gap, 8.0, attached, max(depth, 0.0), depth, 0.0, attachment_probability(depth))


def test_fit_and_summary() -> None:
    rng = np.random.default_rng(0)
    cases = [case(float(d), attached=True) for d in rng.normal(-1, 0.5, 40)]
    cases += [case(float(d), attached=False) for d in rng.uniform(3, 20, 40)]
    weights = fit([*cases, case(5.0, attached=True, gap=1.5)])  # a gap of 0 to 2 mm isn't fitted
    assert weights == fit(cases)
    assert 0.0 < weights["half_mm"] < 3.0
    assert weights["per_mm"] > 0
    report = summary([*cases, case(3.1, attached=False, gap=2.5), case(-1.0, attached=False, gap=3.5)])
    called = report["called_attached"]
    assert isinstance(called, dict)
    assert called["drawn, touching the pleura"]["of"] == 40
    assert called["ball, gap 3.5 mm"] == {"attached": 1, "of": 1}
    assert isinstance(report["wrong"], list)
    assert any(wrong["gap_mm"] == 3.5 for wrong in report["wrong"])
