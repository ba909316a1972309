"""Windows are cut where they should be, and what is put back lies where it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference.windows import cut, paste, theta


def _ramp(rows: int, columns: int) -> torch.Tensor:
    """Channel 0 holds the row of each pixel, channel 1 its column."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([y, x]).float()[None]


def test_the_middle_of_a_window_is_its_centre() -> None:
    affine = theta(torch.tensor([[20.0, 33.5]]), torch.tensor([16.0]), (50, 70))
    window = cut(_ramp(50, 70), affine, 8)
    # 8 pixels on 16: the middles of the inner four are 1 pixel from the centre
    assert window[0, 0, 3:5, 0].tolist() == pytest.approx([19, 21], abs=1e-4)
    assert window[0, 1, 0, 3:5].tolist() == pytest.approx([32.5, 34.5], abs=1e-4)


def test_a_turn_is_that_of_x_and_y_of_the_window() -> None:
    quarter = torch.tensor([[[0.0, -1.0], [1.0, 0.0]]])  # x of the window is y of the slice
    affine = theta(torch.tensor([[20.0, 30.0]]), torch.tensor([8.0]), (50, 70), quarter)
    window = cut(_ramp(50, 70), affine, 8)
    assert torch.all(window[0, 0].diff(dim=1) > 0.99)
    assert torch.all(window[0, 1].diff(dim=0) < -0.99)


def test_outside_the_slice_it_is_mirrored() -> None:
    affine = theta(torch.tensor([[0.0, 10.0]]), torch.tensor([8.0]), (20, 20))
    rows = cut(_ramp(20, 20), affine, 8)[0, 0, :, 0]
    assert rows.tolist() == pytest.approx([2.5, 1.5, 0.5, 0, 0.5, 1.5, 2.5, 3.5], abs=0.51)
    assert rows.min() >= 0


def test_paste_undoes_cut() -> None:
    rng = np.random.default_rng(0)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(rng.normal(size=(2, 1, 6, 6))).float(), size=(60, 60), mode="bicubic"
    )
    affine = theta(torch.tensor([[31.0, 22.5], [30.0, 30.0]]), torch.tensor([24.0, 30.0]), (60, 60))
    back = paste(cut(smooth, affine, 96), affine, (60, 60), -7.0)
    assert torch.allclose(back[0, 0, 21:41, 12:33], smooth[0, 0, 21:41, 12:33], atol=0.02)
    assert torch.all(back[0, 0, :17] == -7.0)
    assert torch.all(back[1, 0, :, 47:] == -7.0)
