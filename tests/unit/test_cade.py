from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.cade import candidates, describe, detect, probability
from inference.lungs import RIGHT, Lungs
from inference.registry import DETECTION, load_pipeline
from inference.segment import grow
from inference.types import SourceFrame, Volume

Mask = NDArray[np.bool_]
SPACING = (2.0, 0.8, 0.8)
SHAPE = (40, 100, 100)


def mm() -> tuple[NDArray[np.floating], ...]:
    """Coordinates (z, y, x) in mm from the middle of the grid."""
    z, y, x = ((np.arange(n) - (n - 1) / 2) * d for n, d in zip(SHAPE, SPACING, strict=True))
    return z[:, None, None], y[None, :, None], x[None, None, :]


def ball(diameter: float, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mask:
    z, y, x = mm()
    return np.asarray((z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 < (diameter / 2) ** 2)


def tube(radius: float, y0: float = 0.0) -> Mask:
    """Along x through the whole grid."""
    z, y, x = mm()
    return np.asarray((z**2 + (y - y0) ** 2 + 0 * x) < radius**2)


def lung(*shapes: tuple[Mask, float], noise: float = 15.0) -> Volume:
    """Parenchyma with shapes of given HU."""
    hu = np.full(SHAPE, -860.0)
    for mask, value in shapes:
        hu[mask] = value
    hu += np.random.default_rng(0).normal(0, noise, SHAPE)
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    affine[2, 0], affine[1, 1], affine[0, 2] = SPACING
    frames = tuple(SourceFrame("1.2", str(z)) for z in range(SHAPE[0]))
    return Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine, "1", "2", "3", frames)


def everywhere() -> Lungs:
    return Lungs(np.full(SHAPE, RIGHT, np.uint8), (1000.0, 0.0))


def dice(mask: Mask, found: Mask, origin: tuple[int, int, int]) -> float:
    whole = np.zeros(SHAPE, np.bool_)
    whole[tuple(slice(o, o + n) for o, n in zip(origin, found.shape, strict=True))] = found
    return float(2 * (whole & mask).sum() / (whole.sum() + mask.sum()))


PARAMETERS = load_pipeline("classical").card(DETECTION).parameters


@pytest.mark.parametrize("diameter", [7.0, 10.0, 16.0, 28.0])
@pytest.mark.parametrize("hu", [20.0, -600.0])
def test_a_ball_is_found_and_cut_at_its_edge(diameter: float, hu: float) -> None:
    truth = ball(diameter, (1.0, -4.0, 6.0))
    found = detect(lung((truth, hu)), everywhere(), PARAMETERS)
    assert len(found) == 1
    assert dice(truth, found[0].mask, found[0].origin) > 0.85
    assert found[0].score > 0.5


def test_part_solid_nodule_keeps_its_ground_glass_part() -> None:
    whole = ball(18.0)
    found = detect(lung((whole, -580.0), (ball(9.0), 10.0)), everywhere(), PARAMETERS)
    assert len(found) == 1
    assert dice(whole, found[0].mask, found[0].origin) > 0.8


def test_a_vessel_alone_is_no_nodule() -> None:
    assert detect(lung((tube(2.0), 30.0)), everywhere(), PARAMETERS) == ()


def test_the_vessel_is_taken_off_the_nodule() -> None:
    nodule, vessel = ball(12.0), tube(1.4)
    found = detect(lung((vessel, 30.0), (nodule, 30.0)), everywhere(), PARAMETERS)
    assert len(found) == 1
    assert dice(nodule, found[0].mask, found[0].origin) > 0.85
    assert found[0].mask.shape[2] * SPACING[2] < 20


def test_nodule_on_the_edge_of_the_field_stays_inside_it() -> None:
    labels = everywhere().labels.copy()
    labels[:, :, 60:] = 0
    wall = labels == 0
    nodule = ball(14.0, (0.0, 0.0, 4.0))
    found = detect(lung((wall, 40.0), (nodule, 40.0)), Lungs(labels, (500.0, 0.0)), PARAMETERS)
    assert len(found) == 1
    assert found[0].origin[2] + found[0].mask.shape[2] <= 60
    assert dice(nodule & ~wall, found[0].mask, found[0].origin) > 0.8


def test_two_nodules_give_two_masks_that_never_overlap() -> None:
    first, second = ball(12.0, (0.0, -8.0, 0.0)), ball(9.0, (0.0, 8.0, 0.0))
    found = detect(lung((first, 20.0), (second, 20.0)), everywhere(), PARAMETERS)
    assert len(found) == 2
    count = np.zeros(SHAPE, int)
    for candidate in found:
        count[candidate.slices()] += candidate.mask
    assert count.max() == 1
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_nothing_in_noise() -> None:
    assert detect(lung(noise=35.0), everywhere(), PARAMETERS) == ()


def test_limits_of_the_card_hold() -> None:
    shapes = [(ball(10.0, (0.0, y, x)), 20.0) for y in (-25.0, 0.0, 25.0) for x in (-25.0, 0.0, 25.0)]
    volume, lungs = lung(*shapes), everywhere()
    assert len(detect(volume, lungs, PARAMETERS)) == 9
    assert len(detect(volume, lungs, {**PARAMETERS, "max_findings": 4})) == 4
    assert detect(volume, lungs, {**PARAMETERS, "min_diameter_mm": 12.0}) == ()
    assert detect(volume, lungs, {**PARAMETERS, "max_diameter_mm": 8.0}) == ()
    assert detect(volume, lungs, {**PARAMETERS, "min_slices": 6.0}) == ()
    assert detect(volume, lungs, {**PARAMETERS, "min_probability": 1.0}) == ()


def test_generator_is_wide_and_repeats_itself() -> None:
    volume = lung((ball(10.0), 20.0), (tube(2.0, 15.0), 30.0))
    first, second = candidates(volume, everywhere()), candidates(volume, everywhere())
    assert [c.origin for c in first] == [c.origin for c in second]
    assert [dict(c.features) for c in first] == [dict(c.features) for c in second]
    assert len(first) >= len(detect(volume, everywhere(), PARAMETERS)) == 1


def test_float_volume_gives_the_same_masks() -> None:
    volume = lung((ball(10.0), 20.0))
    as_float = replace(volume, array=volume.array.astype(np.float32))
    for one, other in zip(
        detect(volume, everywhere(), PARAMETERS), detect(as_float, everywhere(), PARAMETERS), strict=True
    ):
        assert np.array_equal(one.mask, other.mask)


def test_grow_finds_nothing_in_parenchyma_and_notices_a_leak() -> None:
    empty, field = lung(), np.ones(SHAPE, np.bool_)
    seed = np.array([20.0, 50.0, 50.0])
    assert grow(empty.array, field, seed, 5.0, SPACING) is None
    slab = lung((np.abs(mm()[1] + 0 * mm()[0] + 0 * mm()[2]) < 6, 30.0))
    found = grow(slab.array, field, seed, 5.0, SPACING)
    assert found is not None
    assert found.leaked


def test_shape_numbers_of_ball_and_rod() -> None:
    volume = lung((ball(14.0), 20.0))
    found = grow(volume.array, np.ones(SHAPE, np.bool_), np.array([19.5, 49.5, 49.5]), 7.0, SPACING)
    assert found is not None
    numbers = describe(found, SPACING)
    assert numbers["diameter_mm"] == pytest.approx(14, abs=0.7)
    assert numbers["inscribed_mm"] == pytest.approx(7, abs=1.2)
    assert 0.85 < numbers["solidity"] < 1.05
    assert max(numbers["elongation"], numbers["flatness"]) < 1.15
    rod = replace(found, mask=np.ones((3, 4, 30), np.bool_))
    assert describe(rod, SPACING)["elongation"] > 3


def test_probability_is_logistic_in_the_terms() -> None:
    features = {
        "diameter_mm": 8.0,
        "elongation": 1.0,
        "flatness": 1.0,
        "solidity": 1.0,
        "attached": 0.0,
        "border": 0.0,
        "roundness": 0.5,
        "contrast_hu": 500.0,
        "response_hu": 500.0,
    }
    flat = {key: 0.0 for key in PARAMETERS if key.startswith("weight_")}
    assert probability(features, {**flat, "intercept": 0.0}) == 0.5
    assert probability(features, {**flat, "intercept": 0.0, "weight_roundness": 2.0}) == pytest.approx(
        1 / (1 + np.exp(-1.0))
    )
