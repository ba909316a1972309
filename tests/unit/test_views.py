"""The nine views: geometry, padding, and that a whole CT and a strip give the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference.intensity import window
from inference.views import (
    CROP_MM,
    PLANES,
    REFERENCE_VIEWS,
    VIEWS,
    VIT_B_32_VIEWS,
    block_of,
    draw_views,
    normalise,
)

SPACING = (2.0, 0.7, 0.7)


def _ball(radius_mm: float, shape: tuple[int, int, int] = (31, 96, 96)) -> tuple[np.ndarray, np.ndarray]:
    """A ball of 30 HU in lung of -850 HU, in the middle, and its mask."""
    at = np.indices(shape).transpose(1, 2, 3, 0) - (np.array(shape) - 1) / 2
    mask = np.linalg.norm(at * SPACING, axis=-1) <= radius_mm
    return np.where(mask, 30.0, -850.0).astype(np.float32), mask


def test_planes_are_the_three_orthogonal_ones_and_two_of_each_turn() -> None:
    normals = np.cross(PLANES[:, 0], PLANES[:, 1])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    half = np.sqrt(0.5)
    expected = {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    expected |= {(half, half, 0), (half, -half, 0), (half, 0, half), (half, 0, -half)}
    expected |= {(0, half, half), (0, half, -half)}
    found = {
        tuple(np.round(normal if normal[np.flatnonzero(np.abs(normal) > 1e-9)[0]] > 0 else -normal, 6) + 0.0)
        for normal in normals
    }
    assert found == {tuple(np.round(normal, 6)) for normal in expected}
    assert len(PLANES) == VIEWS


def test_the_axial_view_has_the_size_in_mm() -> None:
    hu, mask = _ball(8)
    views = draw_views(block_of(hu, SPACING, mask), REFERENCE_VIEWS)
    assert views.shape == (9, 3, 64, 64)
    pixel = CROP_MM / 64
    grey, zoomed, shown = views[0]
    for picture, side in ((grey > 0.4, pixel), (zoomed > 0.4, pixel / 2), (shown > 0.5, pixel / 2)):
        diameter = 2 * np.sqrt(float(picture.sum()) / np.pi) * side
        assert diameter == pytest.approx(16, abs=0.8)


def test_nothing_is_shown_beyond_the_slices_of_the_mask_or_the_array() -> None:
    hu, mask = _ball(8)
    views = draw_views(block_of(hu, SPACING, mask), REFERENCE_VIEWS)
    coronal = views[1, 0]  # rows along z
    rows = np.flatnonzero(coronal.numpy().any(1))
    depth = mask.any((1, 2)).sum() * SPACING[0]
    assert (rows[-1] - rows[0] + 1) * CROP_MM / 64 == pytest.approx(depth, abs=1)
    small = draw_views(block_of(hu[:, 30:66, 30:66], SPACING, mask[:, 30:66, 30:66]), REFERENCE_VIEWS)
    assert float(small[0, 0, 0].max()) == 0  # air; 0 HU would be 0.67
    assert float(views[0, 0, 0].min()) == pytest.approx(float(window(np.array([-850.0]))[0]), abs=1e-5)


def test_a_whole_ct_and_a_strip_of_its_slices_look_alike() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(-700, 200, (40, 200, 220)).astype(np.float32)
    mask = np.zeros(hu.shape, dtype=bool)
    mask[18:24, 90:104, 120:131] = True
    whole = draw_views(block_of(hu, SPACING, mask), REFERENCE_VIEWS)
    strip = np.s_[18:24, 97 - 48 : 97 + 48, 125 - 48 : 125 + 48]
    cut = draw_views(block_of(hu[strip], SPACING, mask[strip]), REFERENCE_VIEWS)
    # the diagonal planes reach no farther than 25 mm along any axis
    torch.testing.assert_close(whole, cut, rtol=0, atol=1e-4)


def test_turns_reflect_and_shifts_move() -> None:
    rng = np.random.default_rng(1)
    hu = rng.normal(-500, 300, (9, 96, 96)).astype(np.float32)
    block = block_of(hu, SPACING, None)
    plain = draw_views(block, REFERENCE_VIEWS, views=np.array([0]))
    mirrored = draw_views(block, REFERENCE_VIEWS, views=np.array([0]), turn=np.diag([1.0, 1.0, -1.0]))
    torch.testing.assert_close(mirrored, plain.flip(-1), rtol=0, atol=1e-3)
    pixel = CROP_MM / 64
    moved = draw_views(block, REFERENCE_VIEWS, views=np.array([0]), shift_mm=(0, 0, 4 * pixel))
    torch.testing.assert_close(moved[:, 0, :, :-4], plain[:, 0, :, 4:], rtol=0, atol=1e-3)


def test_without_a_mask_all_slices_and_an_empty_mask_channel() -> None:
    hu, _ = _ball(8)
    views = draw_views(block_of(hu, SPACING, None), REFERENCE_VIEWS)
    assert float(views[:, 2].abs().max()) == 0
    assert float(views[1, 0].min(1).values.max()) > 0


def test_pretrained_towers_get_three_copies_at_their_size() -> None:
    hu, mask = _ball(6)
    views = draw_views(block_of(hu, SPACING, mask), VIT_B_32_VIEWS)
    assert views.shape == (9, 3, 224, 224)
    torch.testing.assert_close(views[:, 0], views[:, 2])
    scaled = normalise(torch.full((1, 3, 2, 2), 0.4815), VIT_B_32_VIEWS)
    assert float(scaled[0, 0, 0, 0]) == pytest.approx(0, abs=1e-6)


def test_wrong_input_is_refused() -> None:
    hu, mask = _ball(6)
    with pytest.raises(ValueError, match="empty mask"):
        block_of(hu, SPACING, np.zeros_like(mask))
    with pytest.raises(ValueError, match="same shape"):
        block_of(hu, SPACING, mask[1:])
