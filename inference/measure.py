"""Measurements on a mask, in patient millimetres, and what follows from them: type and side.

Diameters run between points of the sub-pixel outline, as a reader places a caliper on the edge: n pixels
side by side measure n pixel pitches, not n - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from inference.boxes import box_of
from inference.lungs import LEFT, RIGHT
from inference.types import Attenuation, Index, Laterality, Measurements, Site, Volume

SURFACE_BLUR = 0.8  # voxels
SURVIVES = 0.7
SOLID_HU = -350.0
SOLID_SHARE = 0.80
GROUND_GLASS_SHARE = 0.08
MIN_SOLID_CORE_MM3 = 8.0

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Line = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that is read off one mask.

    Parameters
    ----------
    measurements
        Sizes and HU.
    key_slice
        First-axis index in the volume of the slice of largest area.
    key_point
        (y, x) of a voxel centre deep inside the mask on that slice, volume index units.
    long_axis, short_axis
        End points (y, x) on the key slice, volume index units.
    """

    measurements: Measurements
    key_slice: int
    key_point: tuple[float, float]
    long_axis: Line
    short_axis: Line


def measure(volume: Volume, mask: Mask, origin: Index) -> Measured:
    """Measure one mask.

    Parameters
    ----------
    volume
        The source.
    mask
        bool, shape (z, y, x), cropped.
    origin
        Index in the volume of ``mask[0, 0, 0]``.

    Raises
    ------
    ValueError
        The mask is empty or reaches outside the volume.
    """
    where = box_of(mask, origin, volume.array.shape)
    hu = volume.array[where][mask].astype(np.float64)
    row = int(mask.sum(axis=(1, 2)).argmax())
    plane = mask[row]
    key = origin[0] + row
    long_axis, short_axis = _axes(plane, volume)
    shift = np.array(origin[1:], float)
    long_mm = _length_mm(long_axis, volume)
    short_mm = min(_length_mm(short_axis, volume), long_mm)  # they are equal on a disc, but for rounding
    measurements = Measurements(
        volume_mm3=float(mask.sum() * volume.voxel_volume_mm3),
        long_axis_mm=long_mm,
        short_axis_mm=short_mm,
        mean_diameter_mm=(long_mm + short_mm) / 2,
        max_3d_diameter_mm=max(_max_3d_mm(mask, volume), long_mm),
        mean_hu=float(hu.mean()),
        sd_hu=float(hu.std()),
        min_hu=float(hu.min()),
        max_hu=float(hu.max()),
    )
    return Measured(
        measurements,
        key,
        _deepest(plane, volume, shift),
        _as_line(long_axis + shift),
        _as_line(short_axis + shift),
    )


def _in_plane(volume: Volume) -> Floats:
    """Columns: mm (x, y, z LPS) of one step along y and along x of the array, shape (3, 2)."""
    return np.asarray(volume.affine_index_to_lps[:3, 1:3])


def _length_mm(line: Floats, volume: Volume) -> float:
    return float(np.linalg.norm(_in_plane(volume) @ (line[1] - line[0])))


def _axes(plane: Mask, volume: Volume) -> tuple[Floats, Floats]:
    """Long and short axis of a 2D mask, each two (y, x) points in index units of `plane`, shape (2, 2)."""
    hull = _outline(plane)
    steps = _in_plane(volume)
    points = hull @ steps.T  # (n, 3) mm
    gaps = np.linalg.norm(points[:, None] - points[None], axis=2)
    first, second = np.unravel_index(int(gaps.argmax()), gaps.shape)
    along = (points[second] - points[first]) / gaps[first, second]
    normal = np.cross(steps[:, 0], steps[:, 1])
    across = np.cross(normal / np.linalg.norm(normal), along)
    flat = np.column_stack([points @ along, points @ across])  # (n, 2) mm
    low, high = _widest_chord(flat)
    # back to (y, x) indices: the chord lies in the plane, so least squares is exact
    ends = np.array([low, high])
    offset = points[0] - flat[0, 0] * along - flat[0, 1] * across
    lps = ends[:, :1] * along + ends[:, 1:] * across + offset
    short_axis = np.linalg.lstsq(steps, lps.T, rcond=None)[0].T
    return hull[[first, second]], np.asarray(short_axis)


def _outline(plane: Mask) -> Floats:
    """Convex hull of the sub-pixel outline of a 2D mask, in order, (n, 2) (y, x)."""
    points = _surface(plane)
    return np.asarray(points[ConvexHull(points).vertices])


def _surface(mask: Mask) -> Floats:
    """Points of the surface of a mask of any rank, (n, rank), in index units.

    Where the slightly blurred mask crosses one half between two voxel centres. On the raw mask every
    greatest distance would catch the worst steps on both ends (+0.6 pixel on a disc); a mask too small
    to survive the blur is taken raw, which puts its surface on the voxel faces.
    """
    solid = np.pad(mask, 3).astype(np.float64)
    blurred = ndimage.gaussian_filter(solid, SURFACE_BLUR)
    field = blurred if blurred.max() > SURVIVES and (blurred > 0.5).sum() > 0.5 * mask.sum() else solid
    points = []
    for axis in range(mask.ndim):
        low = field[tuple(slice(-1) if a == axis else slice(None) for a in range(mask.ndim))]
        high = field[tuple(slice(1, None) if a == axis else slice(None) for a in range(mask.ndim))]
        crossed = (low > 0.5) != (high > 0.5)
        at = np.argwhere(crossed).astype(np.float64)
        at[:, axis] += (0.5 - low[crossed]) / (high[crossed] - low[crossed])
        points.append(at)
    return np.concatenate(points) - 3


def _widest_chord(polygon: Floats) -> tuple[Floats, Floats]:
    """The longest chord of a convex polygon (n, 2) parallel to its second axis."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    best: tuple[float, Floats, Floats] | None = None
    for at in np.linspace(polygon[:, 0].min(), polygon[:, 0].max(), 129)[1:-1]:
        run = end[:, 0] - start[:, 0]
        crossing = (start[:, 0] - at) * (end[:, 0] - at) <= 0
        crossing &= np.abs(run) > 1e-12
        share = (at - start[crossing, 0]) / run[crossing]
        height = start[crossing, 1] + share * (end[crossing, 1] - start[crossing, 1])
        length = float(height.max() - height.min())
        if best is None or length > best[0]:
            best = (length, np.array([at, height.min()]), np.array([at, height.max()]))
    if best is None:
        raise ValueError("the outline has no extent")
    return best[1], best[2]


def _max_3d_mm(mask: Mask, volume: Volume) -> float:
    """Greatest distance between two points of the surface, mm."""
    points = _surface(mask) @ volume.affine_index_to_lps[:3, :3].T
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _deepest(plane: Mask, volume: Volume, shift: Floats) -> tuple[float, float]:
    """The pixel farthest from the outline, nearest to the centre of mass among equals."""
    pitch = volume.spacing_mm[1:]
    depth = ndimage.distance_transform_edt(np.pad(plane, 1), sampling=pitch)[1:-1, 1:-1]
    options = np.argwhere(depth > depth.max() - 0.25 * min(pitch))
    centre = np.argwhere(plane).mean(axis=0)
    nearest = options[np.linalg.norm((options - centre) * np.array(pitch), axis=1).argmin()]
    return float(nearest[0] + shift[0]), float(nearest[1] + shift[1])


def _as_line(points: Floats) -> Line:
    (y0, x0), (y1, x1) = points.tolist()
    return (y0, x0), (y1, x1)


def attenuation(volume: Volume, mask: Mask, origin: Index) -> Attenuation:
    """Solid, part-solid or ground-glass by the share of the interior above `SOLID_HU`.

    The interior is the mask less its outermost pixels, which partial volume makes darker; HU are
    averaged over 3 x 3 pixels against noise.
    """
    where = tuple(slice(o, o + n) for o, n in zip(origin, mask.shape, strict=True))
    hu = ndimage.uniform_filter(volume.array[where].astype(np.float32), (1, 3, 3), mode="nearest")
    interior = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 1)[None])
    if interior.sum() < 0.15 * mask.sum():
        interior = mask
    share = float((hu[interior] > SOLID_HU).mean())
    core_mm3 = float((hu[interior] > SOLID_HU).sum() * volume.voxel_volume_mm3)
    if share >= SOLID_SHARE:
        return Attenuation.SOLID
    if share < GROUND_GLASS_SHARE or core_mm3 < MIN_SOLID_CORE_MM3:
        return Attenuation.GROUND_GLASS
    return Attenuation.PART_SOLID


def solid_part_mm(volume: Volume, mask: Mask, origin: Index) -> float | None:
    """Mean diameter of the largest solid part of a nodule, mm; None without one.

    Mean of long and short axis on the slice where the part is largest, as guidelines measure it. Solid are HU
    above `SOLID_HU` in the mask, averaged over 3 x 3 pixels against noise.
    """
    where = tuple(slice(o, o + n) for o, n in zip(origin, mask.shape, strict=True))
    hu = ndimage.uniform_filter(volume.array[where].astype(np.float32), (1, 3, 3), mode="nearest")
    parts, count = ndimage.label(mask & (hu > SOLID_HU))
    if not count:
        return None
    part = parts == 1 + int(np.bincount(parts.ravel())[1:].argmax())
    plane = part[int(part.sum(axis=(1, 2)).argmax())]
    long_axis, short_axis = _axes(plane, volume)
    long_mm = _length_mm(long_axis, volume)
    return (long_mm + min(_length_mm(short_axis, volume), long_mm)) / 2


def site(labels: NDArray[np.uint8], mask: Mask, origin: Index) -> Site:
    """The side of the lung label under most of the mask. The lobe needs a model: it stays None."""
    where = tuple(slice(o, o + n) for o, n in zip(origin, mask.shape, strict=True))
    counts = np.bincount(labels[where][mask], minlength=3)
    if counts[RIGHT] == counts[LEFT] == 0:
        return Site()
    return Site(Laterality.RIGHT if counts[RIGHT] >= counts[LEFT] else Laterality.LEFT)
