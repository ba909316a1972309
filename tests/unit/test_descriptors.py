"""Numbers of a mask against drawn shapes."""

from __future__ import annotations

import numpy as np
import pytest

from inference.descriptors import NAMES, describe

SPACING = (1.0, 0.5, 0.5)


def _described(mask: np.ndarray, hu: np.ndarray | None = None) -> dict[str, float]:
    grey = np.where(mask, 40.0, -850.0) if hu is None else hu
    return dict(zip(NAMES, describe(grey, mask, SPACING).tolist(), strict=True))


def _ellipsoid(z: float, y: float, x: float) -> np.ndarray:
    at = np.indices((41, 80, 80)).transpose(1, 2, 3, 0) - np.array([20, 39.5, 39.5])
    return np.asarray(np.linalg.norm(at * SPACING / np.array([z, y, x]), axis=-1) <= 1)


def test_a_ball_has_its_size_and_is_round() -> None:
    found = _described(_ellipsoid(8, 8, 8))
    assert 10 * found["diameter"] == pytest.approx(16, abs=0.3)
    assert np.exp(found["log diameter"]) == pytest.approx(16, abs=0.3)
    assert np.exp(found["log volume"]) == pytest.approx(4 / 3 * np.pi * 512, rel=0.03)
    assert np.exp(found["log extent along z"]) == pytest.approx(15, abs=0.1)
    assert found["axis ratio"] == pytest.approx(1, abs=0.02)
    assert found["solidity"] > 0.95
    assert found["radius variation"] < 0.04
    assert found["mean HU"] == pytest.approx(0.04)
    assert found["HU of the surroundings"] == pytest.approx(-0.85)
    assert found["deviation of HU"] == pytest.approx(0, abs=1e-6)


def test_form_and_density_show() -> None:
    ball, long = _described(_ellipsoid(8, 8, 8)), _described(_ellipsoid(8, 4, 12))
    assert long["axis ratio"] == pytest.approx(1 / 3, abs=0.03)
    assert long["inscribed share"] < ball["inscribed share"]
    mask = _ellipsoid(8, 8, 8)
    star = mask.copy()
    star[:, 39:41, 10:70] |= np.asarray(mask.any((1, 2)))[:, None, None]
    spiky = _described(star)
    assert spiky["solidity"] < 0.8 < ball["solidity"]
    assert spiky["circularity"] > 1.5 * ball["circularity"]
    assert spiky["radius variation"] > 5 * ball["radius variation"]
    hu = np.where(mask, -600.0, -850.0)
    hu[20, 38:42, 38:42] = 600
    ground = _described(mask, hu)
    assert ground["share below -300 HU"] > 0.95
    assert ground["maximum HU"] == pytest.approx(0.6)
    assert ground["edge gradient"] < ball["edge gradient"]


@pytest.mark.parametrize("pixels", [1, 2])
def test_the_smallest_masks_have_finite_numbers(pixels: int) -> None:
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 10, 10 : 10 + pixels] = True
    assert np.isfinite(describe(np.full(mask.shape, -500.0), mask, SPACING)).all()


def test_a_mask_that_fills_the_picture_has_finite_numbers() -> None:
    mask = np.ones((2, 8, 8), dtype=bool)
    assert np.isfinite(describe(np.zeros(mask.shape), mask, SPACING)).all()


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="empty mask"):
        describe(np.zeros((2, 4, 4)), np.zeros((2, 4, 4), dtype=bool), SPACING)
