"""Nine 2D views of the 50 mm crop around a nodule.

Three orthogonal planes through the centre and two planes of each of three rotations by 45 degrees, as in
Zhuang et al. (arXiv 2504.21344). Two things differ on purpose. What lies outside the given voxels is air:
the published code pads with 0 HU, which looks like tissue. And nothing above or below the slices of the mask
is shown, so that a nodule in a whole CT and one cut out as a strip of its own slices look alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.intensity import window

CROP_MM: Final = 50.0
ZOOM_MM: Final = 25.0
VIEWS: Final = 9
AIR: Final = 0.0
"""Grey value of air after windowing."""

Spacing = tuple[float, float, float]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ViewSize:
    """How views are drawn.

    Parameters
    ----------
    pixels
        Side, pixels.
    has_zoom
        True: the channels are the 50 mm view, its middle 25 mm at twice the resolution, and the mask there.
        False: three copies of the 50 mm view, as pretrained towers expect.
    mean, deviation
        Of the channels after windowing to 0..1.
    """

    pixels: int
    has_zoom: bool
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


REFERENCE_VIEWS: Final = ViewSize(64, True, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VIT_B_32_VIEWS: Final = ViewSize(224, False, (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758))


def _plane_axes() -> NDArray[np.float64]:
    """Unit vectors (z, y, x) along the rows and columns of the nine planes, shape (9, 2, 3)."""
    z, y, x = np.eye(3)
    half = np.sqrt(0.5)
    planes = [(y, x), (z, x), (z, y)]
    for first, second, other in ((z, x, y), (z, y, x), (y, x, z)):
        one, two = half * (first + second), half * (second - first)
        planes += [(one, other), (two, other)]
    return np.array(planes)


PLANES: Final = _plane_axes()
"""Axial, coronal and sagittal first; rows and columns of each plane in the order of the vectors."""


@dataclass(frozen=True, slots=True)
class Block:
    """The voxels from which views are drawn.

    Parameters
    ----------
    grey
        float32, shape (2, z, y, x): windowed to 0..1, and the mask as 0 or 1.
    spacing_mm
        Voxel pitch (z, y, x).
    centre
        Middle of the crop, fractional index (z, y, x) in the block.
    """

    grey: Floats
    spacing_mm: Spacing
    centre: tuple[float, float, float]


def block_of(
    hu: NDArray[Any], spacing_mm: Spacing, mask: Mask | None, centre: tuple[float, float, float] | None = None
) -> Block:
    """Cut what the views may show out of an array.

    Parameters
    ----------
    hu
        Whole CT or strip, HU, shape (z, y, x).
    spacing_mm
        Voxel pitch (z, y, x).
    mask
        bool, same shape. Only the slices on which it has voxels are kept. None where there is none: then all
        slices are kept and the mask is shown empty.
    centre
        Fractional index (z, y, x); None for the middle of the mask's box (of the array without a mask).

    Raises
    ------
    ValueError
        Shapes differ, or the mask is empty.
    """
    if hu.ndim != 3 or (mask is not None and mask.shape != hu.shape):
        raise ValueError("array and mask must be of the same shape (z, y, x)")
    first, stop = 0, len(hu)
    if mask is not None:
        box = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if not len(box[0]):
            raise ValueError("an empty mask has no views")
        first, stop = int(box[0][0]), int(box[0][-1]) + 1
        if centre is None:
            z, y, x = (float(indices[0] + indices[-1]) / 2 for indices in box)
            centre = (z, y, x)
    if centre is None:
        z, y, x = ((n - 1) / 2 for n in hu.shape)
        centre = (z, y, x)
    # half a diagonal of the crop and a voxel to interpolate
    reach = [CROP_MM * 0.75 / pitch + 2 for pitch in spacing_mm[1:]]
    low = [max(0, int(c - r)) for c, r in zip(centre[1:], reach, strict=True)]
    high = [max(lo + 1, int(c + r) + 1) for c, r, lo in zip(centre[1:], reach, low, strict=True)]
    where = np.s_[first:stop, low[0] : high[0], low[1] : high[1]]
    part = window(hu[where])
    shown = np.zeros_like(part) if mask is None else mask[where].astype(np.float32)
    moved = (centre[0] - first, centre[1] - low[0], centre[2] - low[1])
    return Block(np.stack([part, shown]), spacing_mm, moved)


def draw_views(
    block: Block,
    size: ViewSize,
    *,
    views: NDArray[np.int64] | None = None,
    turn: NDArray[np.float64] | None = None,
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Draw views of a block.

    Parameters
    ----------
    block
        From `block_of`.
    size
        Pixels and channels.
    views
        Which of the nine, by number; None for all.
    turn
        Shape (3, 3), applied to the plane vectors (z, y, x): rotation, reflection and scale, for training.
    shift_mm
        Moves the centre, for training.

    Returns
    -------
    torch.Tensor
        float32, shape (views, 3, pixels, pixels), not yet normalised: grey 0..1, mask 0..1.
    """
    planes = PLANES if views is None else PLANES[views]
    if turn is not None:
        planes = planes @ turn.T
    axes = torch.from_numpy((planes / np.asarray(block.spacing_mm)).astype(np.float32))  # voxels per mm
    steps = (torch.arange(size.pixels) + 0.5) / size.pixels - 0.5  # of the crop's side
    rows, columns = axes[:, None, None, 0], axes[:, None, None, 1]
    unit = steps[:, None, None] * rows + steps[None, :, None] * columns  # (views, rows, columns, 3)
    middle = np.asarray(block.centre) + np.asarray(shift_mm) / np.asarray(block.spacing_mm)
    scales = (CROP_MM, ZOOM_MM) if size.has_zoom else (CROP_MM,)
    index = torch.stack([unit * scale for scale in scales]) + torch.from_numpy(middle.astype(np.float32))
    drawn = _interpolate(torch.from_numpy(block.grey), index)
    if not size.has_zoom:
        return drawn[0, 0].unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    return torch.stack([drawn[0, 0], drawn[0, 1], drawn[1, 1]], dim=1)


def _interpolate(grey: Tensor, index: Tensor) -> Tensor:
    """Linear interpolation; 0 outside the voxels, whose outer half counts as inside.

    Parameters
    ----------
    grey
        Shape (channels, z, y, x).
    index
        Shape (..., 3), fractional (z, y, x).

    Returns
    -------
    torch.Tensor
        Shape (channels, ...).
    """
    shape = torch.tensor(grey.shape[1:], dtype=torch.float32)
    inside = ((index >= -0.5) & (index <= shape - 0.5)).all(-1)
    place = (2 * index + 1) / shape - 1  # -1..1 from edge to edge of the voxels
    flat = place.flip(-1).reshape(1, 1, 1, -1, 3)
    values = functional.grid_sample(
        grey.unsqueeze(0), flat, mode="bilinear", padding_mode="border", align_corners=False
    )
    return values.reshape(len(grey), *index.shape[:-1]) * inside


def normalise(views: Tensor, size: ViewSize) -> Tensor:
    """Scale channels as the tower expects; the third of three different channels is the mask."""
    mean = views.new_tensor(size.mean).view(3, 1, 1)
    return (views - mean) / views.new_tensor(size.deviation).view(3, 1, 1)
