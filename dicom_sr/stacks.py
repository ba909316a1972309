"""The slices of each finding for scrolling: one small grey picture of them all, and the outline as a path.

A picture holds the slices from head to foot, one below the other, each in the lung window and beside it in
the mediastinal window. The outline is kept apart, as the ``d`` of an SVG path for each slice, so that a
viewer can leave it out. Turned as in `dicom_sr.keyimages`. No text is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_sr.keyimages import BACK, LEFT_OF_PATIENT, LUNG_WINDOW, View, windowed
from inference.types import Finding, Volume

MEDIASTINAL_WINDOW = (-160.0, 240.0)
WINDOWS = (("lung", LUNG_WINDOW), ("mediastinum", MEDIASTINAL_WINDOW))
"""What stands side by side, lower and upper HU of each."""

MARGIN = 3
"""Slices beyond those that the mask touches, on both sides."""

MOST_SLICES = 30
MOST_PIXELS = 76
"""Of one side of a slice: larger parts are scaled down, so that a picture stays small."""

LEAST_SIDE_MM = 50.0


@dataclass(frozen=True, slots=True)
class StackSlice:
    """One slice of a stack.

    Parameters
    ----------
    index
        First-axis index in the volume.
    z_mm
        LPS z of the slice at the finding's key point.
    outline
        ``d`` of an SVG path along the edges of the mask's pixels, in pixels of the stack; empty where the
        mask has none.
    """

    index: int
    z_mm: float
    outline: str


@dataclass(frozen=True, slots=True)
class SliceStack:
    """One written picture and what is to be known of it.

    Parameters
    ----------
    rows, columns
        Of one slice, pixels; the picture has ``rows * len(slices)`` by ``columns * len(WINDOWS)``.
    pixel_mm
        Distance of rows and of columns.
    key
        Place of the key slice in `slices`.
    slices
        From head to foot; where there would be more than `MOST_SLICES`, every second, third ...
    """

    path: Path
    tracking_id: str
    rows: int
    columns: int
    pixel_mm: tuple[float, float]
    key: int
    slices: tuple[StackSlice, ...]

    def describe(self) -> dict[str, Any]:
        """The stack as ``result.json`` has it."""
        return {
            "file": self.path.name,
            "rows": self.rows,
            "columns": self.columns,
            "pixel_mm": [round(value, 4) for value in self.pixel_mm],
            "windows": [{"name": name, "low": low, "high": high} for name, (low, high) in WINDOWS],
            "key": self.key,
            "slices": [
                {"index": one.index, "z_mm": round(one.z_mm, 2), "outline": one.outline}
                for one in self.slices
            ],
        }


def render_stacks(volume: Volume, findings: Sequence[Finding], directory: Path) -> tuple[SliceStack, ...]:
    """Write one lossless WebP for each finding: ``nodule-01-slices.webp`` ...

    Returns
    -------
    tuple of SliceStack
        In the order of the findings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    return tuple(
        render_stack(volume, finding, directory / f"nodule-{number:02d}-slices.webp")
        for number, finding in enumerate(findings, start=1)
    )


def render_stack(volume: Volume, finding: Finding, path: Path) -> SliceStack:
    """Write the lossless WebP of one finding."""
    steps = volume.affine_index_to_lps[:3, :3]
    view = View.of(steps[:, 1], steps[:, 2], down=BACK, right=LEFT_OF_PATIENT)
    chosen = _chosen(volume, finding)
    where = _Part.around(view.turn(_mask(volume, finding)), view)
    strips, slices = [], []
    for z in chosen:
        plane = where.cut(view.turn(np.asarray(volume.array[z], dtype=np.float32)), fill=-1000.0)
        hu = where.scaled(plane)
        mask = where.cut(view.turn(_mask(volume, finding, z)), fill=0)
        strips.append(np.hstack([windowed(hu, window) for _, window in WINDOWS]))
        z_mm = float(volume.index_to_lps((z, *finding.key_point))[2])
        slices.append(StackSlice(z, z_mm, outline_path(where.scaled_mask(mask))))
    Image.fromarray(np.vstack(strips)).save(path, lossless=True, quality=60, method=4)
    key = chosen.index(finding.key_slice)
    return SliceStack(path, finding.tracking_id, *where.size, where.pixel_mm(view), key, tuple(slices))


def _chosen(volume: Volume, finding: Finding) -> list[int]:
    """Slices of the mask and some beyond it, head first, the key slice always among them."""
    first = max(0, finding.origin[0] - MARGIN)
    stop = min(len(volume.array), finding.origin[0] + finding.mask.shape[0] + MARGIN)
    step = -(-(stop - first) // MOST_SLICES)
    chosen = list(range(first + (finding.key_slice - first) % step, stop, step))
    return chosen[::-1] if volume.affine_index_to_lps[2, 0] > 0 else chosen


def _mask(volume: Volume, finding: Finding, z: int | None = None) -> NDArray[np.bool_]:
    """A whole plane of the mask: of one slice, or of all together."""
    out = np.zeros(volume.array.shape[1:], dtype=bool)
    depth, rows, columns = finding.slices()
    if z is None:
        out[rows, columns] = finding.mask.any(axis=0)
    elif depth.start <= z < depth.stop:
        out[rows, columns] = finding.mask[z - depth.start]
    return out


@dataclass(frozen=True, slots=True)
class _Part:
    """A rectangle of a turned plane; it may reach beyond the plane.

    Parameters
    ----------
    corner, shape
        First row and column, and how many.
    size
        Rows and columns after scaling.
    """

    corner: tuple[int, int]
    shape: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def around(cls, mask: NDArray[np.bool_], view: View) -> _Part:
        """The square, in mm, around a mask with some of what is beside it."""
        spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
        extents = [(s[-1] - s[0] + 1) * mm for s, mm in zip(spans, view.spacing_mm, strict=True)]
        side = max(LEAST_SIDE_MM, 1.5 * float(max(extents)))
        rows, columns = (max(1, round(side / mm)) for mm in view.spacing_mm)
        top, left = (
            round(float(s[0] + s[-1] + 1 - n) / 2) for s, n in zip(spans, (rows, columns), strict=True)
        )
        scale = min(1.0, MOST_PIXELS / max(rows, columns))
        return cls(
            (top, left), (rows, columns), (max(1, round(rows * scale)), max(1, round(columns * scale)))
        )

    def pixel_mm(self, view: View) -> tuple[float, float]:
        rows, columns = (n * mm / s for n, mm, s in zip(self.shape, view.spacing_mm, self.size, strict=True))
        return rows, columns

    def cut(self, plane: NDArray[Any], *, fill: float) -> NDArray[Any]:
        out = np.full(self.shape, fill, dtype=plane.dtype)
        ends = [min(o + n, limit) for o, n, limit in zip(self.corner, self.shape, plane.shape, strict=True)]
        (top, left), (bottom, right) = (max(0, o) for o in self.corner), ends
        if top < bottom and left < right:
            row, column = top - self.corner[0], left - self.corner[1]
            out[row : row + bottom - top, column : column + right - left] = plane[top:bottom, left:right]
        return out

    def scaled(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.size == self.shape:
            return plane
        return np.asarray(Image.fromarray(plane).resize(self.size[::-1], Image.Resampling.BICUBIC))

    def scaled_mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        picture = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(picture.resize(self.size[::-1], Image.Resampling.NEAREST)) > 0


def outline_path(mask: NDArray[np.bool_]) -> str:
    """``d`` of an SVG path along the outer edges of a mask's pixels, holes too.

    Parameters
    ----------
    mask
        Shape (rows, columns). Pixel (row, column) covers the square from (column, row) to (column + 1,
        row + 1) of the path's coordinates.
    """
    around = np.pad(mask, 1)
    inside = around[1:-1, 1:-1]
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # clockwise around each pixel, so that the mask is always on the right
    for beyond, (x0, y0), (x1, y1) in (
        (around[:-2, 1:-1], (0, 0), (1, 0)),
        (around[1:-1, 2:], (1, 0), (1, 1)),
        (around[2:, 1:-1], (1, 1), (0, 1)),
        (around[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for row, column in np.argwhere(inside & ~beyond).tolist():
            edges.setdefault((column + x0, row + y0), []).append((column + x1, row + y1))
    parts = []
    while edges:
        parts.append(_loop(edges))
    return "".join(parts)


def _loop(edges: dict[tuple[int, int], list[tuple[int, int]]]) -> str:
    """Take one closed way out of the edges and write it."""
    start = at = next(iter(edges))
    corners = [start]
    while True:
        following = edges[at].pop()
        if not edges[at]:
            del edges[at]
        corners.append(following)
        at = following
        if at == start:
            return _written(corners)


def _written(corners: Sequence[tuple[int, int]]) -> str:
    runs: list[list[int]] = []  # [0 across or 1 down, how far]
    for (x0, y0), (x1, y1) in pairwise(corners):
        axis, far = (0, x1 - x0) if y0 == y1 else (1, y1 - y0)
        if runs and runs[-1][0] == axis:
            runs[-1][1] += far
        else:
            runs.append([axis, far])
    return f"M{corners[0][0]} {corners[0][1]}" + "".join(f"{'hv'[axis]}{far}" for axis, far in runs) + "z"
