"""Painting of simple shapes into a voxel grid with soft edges (partial volume)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """A grid centred on the patient origin; x to the left, y to the back, z to the head (LPS), mm.

    Parameters
    ----------
    shape
        (z, y, x).
    spacing_mm
        Voxel pitch along (z, y, x).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Patient coordinate (z, y, x) of voxel (0, 0, 0)."""
        z, y, x = (-(n - 1) / 2 * d for n, d in zip(self.shape, self.spacing_mm, strict=True))
        return z, y, x

    def axis(self, number: int) -> Array:
        """Coordinates of the voxel centres along one axis, float32, mm."""
        steps = np.arange(self.shape[number], dtype=np.float32)
        return steps * np.float32(self.spacing_mm[number]) + np.float32(self.origin_mm[number])

    def affine_index_to_lps(self) -> NDArray[np.float64]:
        """Map of the array index (z, y, x, 1) to LPS (x, y, z, 1), shape (4, 4)."""
        affine = np.zeros((4, 4))
        for row, number in enumerate((2, 1, 0)):
            affine[row, number] = self.spacing_mm[number]
            affine[row, 3] = self.origin_mm[number]
        affine[3, 3] = 1.0
        return affine

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[slice, slice, slice] | None:
        """Index slices that cover the mm box (z, y, x) `low`..`high`, None where it lies outside."""
        slices = []
        for number in range(3):
            first = (float(low[number]) - self.origin_mm[number]) / self.spacing_mm[number]
            last = (float(high[number]) - self.origin_mm[number]) / self.spacing_mm[number]
            start = max(int(np.floor(first)), 0)
            stop = min(int(np.ceil(last)) + 1, self.shape[number])
            if start >= stop:
                return None
            slices.append(slice(start, stop))
        return slices[0], slices[1], slices[2]

    def coordinates(self, box: tuple[slice, slice, slice]) -> tuple[Array, Array, Array]:
        """Open (broadcastable) z, y, x coordinates in mm of the voxels in `box`."""
        z, y, x = (self.axis(number)[box[number]] for number in range(3))
        return z[:, None, None], y[None, :, None], x[None, None, :]


def occupancy(distance_mm: Array, width_mm: float) -> Array:
    """Filled fraction of a voxel at the signed `distance_mm` (negative inside) of a surface."""
    return np.asarray(np.clip(np.float32(0.5) - distance_mm * np.float32(1.0 / width_mm), 0, 1))


def blend(values: Array, distance_mm: Array, hu: float | Array, width_mm: float) -> None:
    """Mix `hu` into `values` in place where the shape with signed `distance_mm` fills the voxel."""
    values += occupancy(distance_mm, width_mm) * (hu - values)


@dataclass(frozen=True)
class Canvas:
    """One axial slice to draw on.

    Parameters
    ----------
    z
        Its height, mm.
    y, x
        Coordinates in mm of its pixels, both of the shape of `values`.
    values
        HU, float32, changed in place.
    width
        Width of the soft edges, mm.
    """

    z: float
    y: Array
    x: Array
    values: Array
    width: float

    def blend(self, distance_mm: Array, hu: float | Array) -> None:
        """Draw the shape with the signed `distance_mm` in `hu`."""
        blend(self.values, distance_mm, hu, self.width)

    def cut(self, rows: slice, columns: slice) -> Canvas:
        """A view of a part of the slice."""
        part = np.s_[rows, columns]
        return Canvas(self.z, self.y[part], self.x[part], self.values[part], self.width)


def capsule_distance(
    at: tuple[Array, Array, Array],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    radii: tuple[float, float],
) -> Array:
    """Signed distance in mm of the points `at` (z, y, x) to a round cone from `start` to `end`."""
    z, y, x = at
    axis = (end - start).astype(np.float32)
    length2 = float(axis @ axis) or 1e-6
    dz, dy, dx = z - np.float32(start[0]), y - np.float32(start[1]), x - np.float32(start[2])
    along = np.clip((dz * axis[0] + dy * axis[1] + dx * axis[2]) / np.float32(length2), 0, 1)
    squared = (dz - along * axis[0]) ** 2 + (dy - along * axis[1]) ** 2 + (dx - along * axis[2]) ** 2
    radius = np.float32(radii[0]) + along * np.float32(radii[1] - radii[0])
    return np.asarray(np.sqrt(squared) - radius, dtype=np.float32)


def capsule(
    grid: Grid, start: NDArray[np.float64], end: NDArray[np.float64], radii: tuple[float, float]
) -> tuple[tuple[slice, slice, slice], Array] | None:
    """Box and occupancy of a round cone, None where it lies outside the grid.

    A structure thinner than a voxel fills only the matching fraction of it.
    """
    pad = max(radii) + max(grid.spacing_mm)
    box = grid.box(np.minimum(start, end) - pad, np.maximum(start, end) + pad)
    if box is None:
        return None
    width = grid.spacing_mm[2]
    filled = occupancy(capsule_distance(grid.coordinates(box), start, end, radii), width)
    thin = min(1.0, np.pi * max(radii) ** 2 / width**2)
    return box, filled * np.float32(thin)


def paint_path(
    values: Array, grid: Grid, path: NDArray[np.float64], radii: NDArray[np.float64], hu: float
) -> None:
    """Paint a tube along `path` ((n, 3), (z, y, x) mm) with one radius for each point, in place."""
    for number in range(len(path) - 1):
        pair = (float(radii[number]), float(radii[number + 1]))
        found = capsule(grid, path[number], path[number + 1], pair)
        if found is not None:
            box, filled = found
            values[box] += filled * (np.float32(hu) - values[box])


def mark_path(filled: Array, grid: Grid, path: NDArray[np.float64], radii: NDArray[np.float64]) -> None:
    """Raise the occupancy map `filled` along a tube, in place (overlaps never add up)."""
    for number in range(len(path) - 1):
        pair = (float(radii[number]), float(radii[number + 1]))
        found = capsule(grid, path[number], path[number + 1], pair)
        if found is not None:
            box, part = found
            np.maximum(filled[box], part, out=filled[box])
