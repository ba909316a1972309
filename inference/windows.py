"""Square fields of view in mm on slices: cut out at a fixed number of pixels, and masks put back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def theta(centres: Tensor, sides: Tensor, shape: tuple[int, int], turn: Tensor | None = None) -> Tensor:
    """Affine map of `torch.nn.functional.affine_grid` from a window to the slice it lies on.

    Parameters
    ----------
    centres
        (y, x) of the middle of each window, pixels of the slice (0 is the middle of the first pixel), (n, 2).
    sides
        Length of each window's side, pixels of the slice, (n,).
    shape
        (rows, columns) of the slice.
    turn
        Orthogonal matrices (n, 2, 2) that map (x, y) in the window to (x, y) in the slice; None for none.

    Returns
    -------
    torch.Tensor
        Shape (n, 2, 3).
    """
    height, width = shape
    size = centres.new_tensor([width, height])
    matrix = torch.eye(2, dtype=centres.dtype).expand(len(centres), 2, 2) if turn is None else turn
    scaled = matrix * sides[:, None, None] / size[:, None]
    shift = (2 * centres.flip(1) + 1) / size - 1
    return torch.cat([scaled, shift[:, :, None]], dim=2)


def cut(slices: Tensor, affine: Tensor, pixels: int) -> Tensor:
    """Resample windows bilinearly; outside the slice it is mirrored.

    Parameters
    ----------
    slices
        Float, shape (n, c, rows, columns).
    affine
        From `theta`, shape (n, 2, 3).

    Returns
    -------
    torch.Tensor
        Shape (n, c, pixels, pixels).
    """
    grid = functional.affine_grid(affine, [len(slices), 1, pixels, pixels], align_corners=False)
    return functional.grid_sample(
        slices, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


def paste(windows: Tensor, affine: Tensor, shape: tuple[int, int], outside: float) -> Tensor:
    """Bring values of windows back onto their slices: the inverse of `cut`.

    Parameters
    ----------
    windows
        Float, shape (n, c, pixels, pixels).
    affine
        The map that cut them, without a turn.
    shape
        (rows, columns) of the slices.
    outside
        Value where the window doesn't reach.

    Returns
    -------
    torch.Tensor
        Shape (n, c, rows, columns).
    """
    scale = torch.diagonal(affine[:, :, :2], dim1=1, dim2=2)
    inverse = torch.cat([torch.diag_embed(1 / scale), (-affine[:, :, 2] / scale)[:, :, None]], dim=2)
    grid = functional.affine_grid(inverse, [len(windows), 1, *shape], align_corners=False)
    inside = functional.grid_sample(
        windows - outside, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return inside + outside
