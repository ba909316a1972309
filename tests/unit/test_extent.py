from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.extent import corrected, without_stubs

SPACING = (2.0, 0.8, 0.8)
Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]


def ball(radius_mm: float, offset_mm: tuple[float, float, float] = (0, 0, 0)) -> Mask:
    axes = np.ogrid[-16:17, -40:41, -40:41]
    steps = zip(axes, SPACING, offset_mm, strict=True)
    return np.asarray(sum((at * pitch - shift) ** 2 for at, pitch, shift in steps) <= radius_mm**2)


def chest(*parts: tuple[Mask, float]) -> Volume:
    hu = np.random.default_rng(0).normal(-860, 25, ball(1).shape).astype(np.float32)
    for mask, level in parts:
        hu[mask] = level + np.random.default_rng(1).normal(0, 25, int(mask.sum()))
    return hu


def dice(one: Mask, other: Mask) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_a_wide_rim_of_ground_glass_belongs_to_its_core() -> None:
    core, whole = ball(5), ball(10)
    found = corrected(chest((whole, -560), (core, 20)), SPACING, core)
    assert dice(found, whole) > 0.93


def test_the_rim_ends_at_the_chest_wall() -> None:
    core, whole = ball(5), ball(10)
    wall = np.zeros_like(core)
    wall[..., 40 + round(12 / SPACING[2]) :] = True
    found = corrected(chest((whole, -560), (wall, 30), (core, 20)), SPACING, core)
    assert not (found & wall).any()
    assert dice(found, whole) > 0.85


@pytest.mark.parametrize("level", [30.0, -600.0], ids=["solid", "ground glass"])
def test_a_nodule_without_a_rim_stays(level: float) -> None:
    mask = ball(6)
    np.testing.assert_array_equal(corrected(chest((mask, level)), SPACING, mask), mask)


def test_haze_without_an_end_is_no_rim() -> None:
    core = ball(5)
    hazy = chest((np.ones_like(core), -560), (core, 20))
    np.testing.assert_array_equal(corrected(hazy, SPACING, core), core)


def test_a_vessel_beside_it_is_no_rim() -> None:
    core = ball(5)
    vessel = np.zeros_like(core)
    vessel[:, 38:43, 40:] = True
    assert not (corrected(chest((vessel, 20), (core, 20)), SPACING, core) & ~core).any()


def test_the_stub_of_a_vessel_is_taken_off() -> None:
    nodule, stub = ball(8), np.zeros_like(ball(8))
    stub[16, 39:42, 50:57] = True
    np.testing.assert_array_equal(without_stubs(nodule | stub, SPACING) & stub & ~ball(10), False)
    assert dice(without_stubs(nodule | stub, SPACING), nodule) > 0.99


def test_a_lobule_stays() -> None:
    lobulated = ball(8) | ball(5, (0, 0, 7))
    np.testing.assert_array_equal(without_stubs(lobulated, SPACING), lobulated)


def test_an_empty_mask_stays_empty() -> None:
    nothing = np.zeros_like(ball(1))
    assert not corrected(chest(), SPACING, nothing).any()
