"""The lung field of a chest CT: right and left by patient coordinates, with what disease took from it.

Thresholding and morphology on a grid of about 2 mm, in the order of Hu, Hoffman and Reinhardt (IEEE TMI
20:490-498, 2001): air inside the body, airways out, sides apart, outline repaired. The repair closes the
outline with a ball, a wide one along the ribs (a pleural mass belongs to the lung field), a narrow one
along the mediastinum (the heart does not).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.types import Volume

RIGHT, LEFT = 1, 2

GRID_MM = 2.0
WIDE_GRID_MM = 5.0
AIR_HU = -400.0
BODY_HU = -300.0
OUTSIDE_HU = -920.0
MIN_VOLUME_ML = 400.0
MIN_SMALLER_SIDE_ML = 40.0
MIN_ONE_SIDED_ML = 800.0
MIN_EXTENT_MM = 100.0
COSTAL_CLOSING_MM = 36.0
MEDIASTINAL_CLOSING_MM = 9.0
COSTAL_DEPTH_MM = 60.0

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Lungs:
    """The repaired lung field on the grid of the volume.

    Parameters
    ----------
    labels
        uint8, shape (z, y, x): 0 outside, `RIGHT`, `LEFT` (sides of the patient). Vessels and nodules
        are inside, trachea and main bronchi outside.
    aerated_ml
        Volume of the aerated lung before the repair, (right, left), millilitres.
    warnings
        Sentences for the reader.
    """

    labels: NDArray[np.uint8]
    aerated_ml: tuple[float, float]
    warnings: tuple[str, ...] = ()

    def bounds(self) -> tuple[slice, slice, slice]:
        """The smallest box that holds the field."""
        floor = self.labels.max(axis=0)
        over = (self.labels.any(axis=(1, 2)), floor.any(axis=1), floor.any(axis=0))
        ends = [np.flatnonzero(one)[[0, -1]] for one in over]
        z, y, x = (slice(int(first), int(last) + 1) for first, last in ends)
        return z, y, x


def _box(mask: Mask) -> tuple[slice, slice, slice]:
    (found,) = ndimage.find_objects(mask.astype(np.uint8))
    z, y, x = found
    return z, y, x


@dataclass(frozen=True)
class _Grid:
    """How the coarse grid lies on the source grid: block sizes and turns into (z up, y back, x left)."""

    source_shape: tuple[int, ...]
    blocks: tuple[int, ...]
    order: tuple[int, ...]
    flips: tuple[int, ...]
    spacing: tuple[float, float, float]

    @property
    def voxel_ml(self) -> float:
        """Volume of one coarse voxel, ml."""
        return float(np.prod(self.spacing)) / 1000


def find_lungs(volume: Volume) -> Lungs:
    """Find the lung field.

    Parameters
    ----------
    volume
        A CT in HU in any axis order; sides come from the affine.

    Raises
    ------
    UnsuitableSeriesError
        `ReasonCode.NOT_CHEST`: too little aerated lung, on one side only, or over too short a distance.
    """
    coarse, grid = _coarsen(volume)
    inside = _inside_body(coarse)
    air = inside & (coarse < AIR_HU)
    air &= ~_airways(air, coarse, grid)
    lungs = _lung_components(air, coarse, grid)
    sides = _split_sides(lungs, inside, grid)
    aerated = (float((sides == RIGHT).sum() * grid.voxel_ml), float((sides == LEFT).sum() * grid.voxel_ml))
    warnings = _require_chest(sides, aerated, grid)
    sides = _repair(sides, coarse, inside, grid)
    return Lungs(_to_source(sides, grid), aerated, warnings)


def _coarsen(volume: Volume) -> tuple[Floats, _Grid]:
    """Block means, turned so that z ascends to the head, y to the back and x to the left."""
    blocks = tuple(max(1, round(GRID_MM / spacing)) for spacing in volume.spacing_mm)
    array = volume.array
    bz, by, bx = blocks
    ny, nx = (-(-size // block) for size, block in zip(array.shape[1:], (by, bx), strict=True))
    starts = range(0, array.shape[0], bz)
    coarse = np.empty((len(starts), ny, nx), np.float32)
    pad = ((0, ny * by - array.shape[1]), (0, nx * bx - array.shape[2]))
    for row, start in enumerate(starts):
        plane = np.pad(array[start : start + bz].mean(axis=0, dtype=np.float32), pad, mode="edge")
        coarse[row] = plane.reshape(ny, by, nx, bx).mean(axis=(1, 3))
    np.clip(coarse, -1024, 1500, out=coarse)
    directions = volume.affine_index_to_lps[:3, :3] / np.array(volume.spacing_mm)
    order = _axis_order(directions)
    flips = tuple(
        number for number, axis in enumerate(order) if directions[2 - number, axis] < 0
    )  # patient axis of turned axis 0, 1, 2: z, y, x
    z, y, x = (volume.spacing_mm[axis] * blocks[axis] for axis in order)
    grid = _Grid(array.shape, blocks, order, flips, (z, y, x))
    return np.ascontiguousarray(np.flip(coarse.transpose(order), flips)), grid


def _axis_order(directions: NDArray[np.float64]) -> tuple[int, ...]:
    """Array axes that run mostly along patient z, y and x."""
    weights = np.abs(directions)
    z = int(weights[2].argmax())
    y = int(max((axis for axis in range(3) if axis != z), key=lambda axis: weights[1, axis]))
    return z, y, 3 - z - y


def _inside_body(coarse: Floats) -> Mask:
    """The body with everything it encloses on axial slices; a table is not part of it."""
    tissue = ndimage.binary_opening(coarse > BODY_HU, np.ones((1, 3, 3), bool))
    labels, count = ndimage.label(tissue)
    if count == 0:
        return np.zeros(coarse.shape, np.bool_)
    body = labels == int(np.bincount(labels.ravel())[1:].argmax()) + 1
    inside = np.empty_like(body)
    for number, plane in enumerate(body):
        sealed = plane.copy()
        for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            sealed[edge] |= _lung_on_edge(plane[edge], coarse[number][edge])
        inside[number] = ndimage.binary_fill_holes(sealed)
    labels, _ = ndimage.label(inside)
    return np.asarray(inside & np.isin(labels, np.unique(labels[body])))


def _lung_on_edge(body: Mask, hu: Floats) -> Mask:
    """Gaps in the body along an image edge that hold lung: a field of view smaller than the chest."""
    gaps, _ = ndimage.label(~body)
    lung = np.zeros_like(body)
    for gap, (place,) in enumerate(ndimage.find_objects(gaps), start=1):
        enclosed = place.start > 0 and place.stop < len(body)
        if enclosed and OUTSIDE_HU < float(np.median(hu[place])) < -500:
            lung |= gaps == gap
    return lung


def _airways(air: Mask, coarse: Floats, grid: _Grid) -> Mask:
    """Trachea and main bronchi, followed from the highest slice down while they stay small."""
    found = np.zeros_like(air)
    used = np.flatnonzero(air.any(axis=(1, 2)))
    if len(used) == 0:
        return found
    previous: Mask | None = None
    missed, limit = 0, 0.0
    for z in range(int(used[-1]), int(used[-1] - 0.65 * len(used)), -1):
        if previous is None:
            previous = _trachea_section(air[z] & (coarse[z] < -700), grid)
        else:
            section = _next_section(previous, air[z], coarse[z], limit)
            missed = missed + 1 if section is None else 0
            if missed > 2 and float(found.any(axis=(1, 2)).sum()) * grid.spacing[0] > 60:
                break
            previous = None if missed > 2 else previous if section is None else section
        if previous is not None and not missed:
            found[z] = previous
            limit = min(
                max(limit, 1.5 * float(previous.sum()) + 20), 800 / (grid.spacing[1] * grid.spacing[2])
            )
    return ndimage.binary_dilation(found, ndimage.generate_binary_structure(3, 1)) & air


def _next_section(previous: Mask, air: Mask, hu: Floats, limit: float) -> Mask | None:
    """The airway one slice lower: gas that overlaps the section above and hasn't run into the lung."""
    for threshold in (-700, -850, -900, -940):
        labels, _ = ndimage.label(air & (hu < threshold))
        below = np.unique(labels[previous])
        areas = np.bincount(labels.ravel())
        kept = [int(label) for label in below if label and areas[label] < limit]
        if kept:
            return np.isin(labels, kept)
    return None


def _trachea_section(gas: Mask, grid: _Grid) -> Mask | None:
    """The round gas-filled section nearest to the midline of the slice, if there is one."""
    labels, _ = ndimage.label(gas)
    areas = np.bincount(labels.ravel())[1:] * grid.spacing[1] * grid.spacing[2]
    best, nearest = None, 60.0
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        section = labels[place] == label
        height, width = section.shape[0] * grid.spacing[1], section.shape[1] * grid.spacing[2]
        off = abs((place[1].start + place[1].stop - gas.shape[1]) / 2) * grid.spacing[2]
        is_round = section.mean() > 0.55 and 0.5 < height / width < 2.2
        if 60 < areas[label - 1] < 700 and is_round and off < nearest:
            best, nearest = labels == label, off
    return best


def _lung_components(air: Mask, coarse: Floats, grid: _Grid) -> Mask:
    """Air that is lung: large enough, and not as empty as gas in the bowel."""
    labels, count = ndimage.label(air)
    if count == 0:
        return air
    volumes = np.bincount(labels.ravel())[1:] * grid.voxel_ml
    places = ndimage.find_objects(labels)
    largest = int(volumes.argmax())
    reach = places[largest][0]
    lowest = reach.start + 0.25 * (reach.stop - reach.start)
    kept = []
    for number in np.flatnonzero(volumes > 5.0):
        place = places[number]
        part = labels[place] == number + 1
        core = ndimage.binary_erosion(part)
        hu = coarse[place][core if core.any() else part]
        # lung has vessels, gas in the bowel has none; a small piece far down is bowel too
        is_gas = np.percentile(hu, 90) < -935 or (volumes[number] < 800 and np.median(hu) < -945)
        is_low = volumes[number] < 100 and (place[0].start + place[0].stop) / 2 < lowest
        if not is_gas and not is_low:
            kept.append(int(number) + 1)
    return np.isin(labels, kept)


def _split_sides(lungs: Mask, inside: Mask, grid: _Grid) -> NDArray[np.uint8]:
    """Label right and left; lungs that touch in front of the heart are cut where they are thinnest."""
    sides = np.zeros(lungs.shape, np.uint8)
    if not lungs.any():
        return sides
    middle = float(np.nonzero(inside[lungs.any(axis=(1, 2))])[2].mean())
    labels, _ = ndimage.label(lungs)
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[place] == label
        x = np.arange(place[2].start, place[2].stop)
        across = part.sum(axis=(0, 1))
        left_share = float(across[x > middle].sum() / across.sum())
        if part.sum() * grid.voxel_ml > 300 and 0.15 < left_share < 0.85:
            sides[place][part] = _cut(part, middle - place[2].start)[part]
        else:
            sides[place][part] = LEFT if left_share > 0.5 else RIGHT
    return sides


def _cut(part: Mask, middle: float) -> NDArray[np.uint8]:
    """Labels of both sides of one piece that spans both: the parts of its eroded core, grown back."""
    depth = ndimage.distance_transform_cdt(part, "chessboard")
    for shell in range(1, 8):
        labels, count = ndimage.label(depth > shell)
        if count < 2:
            continue
        sizes = np.bincount(labels.ravel())[1:]
        first, second = (np.argsort(sizes)[::-1] + 1)[:2]
        if sizes[second - 1] < 0.12 * sizes.sum():
            continue
        centres = [np.nonzero(labels == label)[2].mean() for label in (first, second)]
        if (centres[0] - middle) * (centres[1] - middle) < 0:
            seeds = np.zeros(part.shape, np.uint8)
            seeds[labels == first] = LEFT if centres[0] > middle else RIGHT
            seeds[labels == second] = LEFT if centres[1] > middle else RIGHT
            nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
            return np.asarray(seeds[tuple(nearest)])
    plane = np.where(np.arange(part.shape[2]) > middle, LEFT, RIGHT).astype(np.uint8)
    return np.broadcast_to(plane, part.shape)


def _require_chest(sides: NDArray[np.uint8], aerated: tuple[float, float], grid: _Grid) -> tuple[str, ...]:
    total, smaller, larger = sum(aerated), min(aerated), max(aerated)
    if total < MIN_VOLUME_ML:
        raise UnsuitableSeriesError(
            ReasonCode.NOT_CHEST,
            f"The series shows {total:.0f} ml of aerated lung; at least {MIN_VOLUME_ML:.0f} ml are needed.",
        )
    used = np.flatnonzero((sides > 0).sum(axis=(1, 2)) * grid.spacing[1] * grid.spacing[2] > 200)
    extent = 0.0 if len(used) == 0 else float(used[-1] - used[0] + 1) * grid.spacing[0]
    if extent < MIN_EXTENT_MM:
        raise UnsuitableSeriesError(
            ReasonCode.NOT_CHEST,
            f"The series shows {extent:.0f} mm of lung from foot to head; "
            f"at least {MIN_EXTENT_MM:.0f} mm are needed.",
        )
    if smaller >= MIN_SMALLER_SIDE_ML:
        return ()
    side = "right" if aerated[0] < aerated[1] else "left"
    if larger < MIN_ONE_SIDED_ML:
        raise UnsuitableSeriesError(
            ReasonCode.NOT_CHEST,
            f"The {side} side shows {smaller:.0f} ml of aerated lung and the other {larger:.0f} ml; "
            f"two lungs, or one of at least {MIN_ONE_SIDED_ML:.0f} ml, are needed.",
        )
    return (
        f"Only {smaller:.0f} ml of aerated lung on the {side} side: that side may not have been searched.",
    )


def _repair(sides: NDArray[np.uint8], coarse: Floats, inside: Mask, grid: _Grid) -> NDArray[np.uint8]:
    """Fill vessels, nodules and what consolidation or a pleural mass took from the outline."""
    costal = _near_ribs(sides > 0, grid)
    repaired = sides.copy()
    for side in (RIGHT, LEFT):
        if not (sides == side).any():
            continue
        place = _box(sides == side)
        lung = np.zeros_like(inside)
        lung[place] = sides[place] == side
        # no rib, and nothing without lung below it: that would be heart or liver
        above_lung = np.logical_or.accumulate(lung, axis=0)
        wide = _closing_gain(lung, COSTAL_CLOSING_MM, grid, max(1, round(WIDE_GRID_MM / grid.spacing[1])))
        added = wide & costal & above_lung & (coarse < 250)
        added |= _closing_gain(lung, MEDIASTINAL_CLOSING_MM, grid, 1)
        field = lung | (added & inside)
        place = _box(field)
        filled = ndimage.binary_fill_holes(field[place])
        part = repaired[place]
        part[filled & (part == 0)] = side
    return repaired


def _near_ribs(lungs: Mask, grid: _Grid) -> Mask:
    """Less than `COSTAL_DEPTH_MM` inside the convex outline of both lungs on each axial slice."""
    near = np.zeros_like(lungs)
    _, rows, columns = _box(lungs)  # no outline reaches further, but for the half pixel of its rim
    window = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in (rows, columns))
    inner = near[:, window[0], window[1]]
    y, x = (
        np.arange(s.start, s.start + n) * d
        for s, n, d in zip(window, inner.shape[1:], grid.spacing[1:], strict=True)
    )
    for number in np.flatnonzero(lungs.any(axis=(1, 2))):
        points = np.argwhere(lungs[number]) * np.array(grid.spacing[1:])
        try:
            faces = ConvexHull(points).equations
        except QhullError:  # a few pixels in a row have no hull
            continue
        height = np.full((len(y), len(x)), -np.inf)
        for slope_y, slope_x, offset in faces:
            np.maximum(height, (slope_y * y + offset)[:, None] + (slope_x * x)[None, :], out=height)
        inner[number] = (height <= 0.5 * grid.spacing[1]) & (height > -COSTAL_DEPTH_MM)
    return near


def _closing_gain(lung: Mask, radius_mm: float, grid: _Grid, every: int) -> Mask:
    """What closing with a ball adds, computed on every `every`-th pixel in plane."""
    place = _box(lung)
    spacing = (grid.spacing[0], every * grid.spacing[1], every * grid.spacing[2])
    thin = lung[place][:, ::every, ::every]
    margin = [(int(np.ceil(radius_mm / d)) + 1,) * 2 for d in spacing]
    padded = np.pad(thin, margin)
    grown = ndimage.distance_transform_edt(~padded, sampling=spacing) <= radius_mm
    closed = ndimage.distance_transform_edt(grown, sampling=spacing) > radius_mm
    inner = tuple(slice(low, -high) for low, high in margin)
    gain = (closed & ~padded)[inner]
    if every > 1:
        # the rim is an artefact of thinning; what is left lost its own rim to it
        gain = ndimage.binary_opening(gain, np.ones((1, 2, 2), bool))
        gain = ndimage.binary_dilation(gain, np.ones((1, 3, 3), bool))
        gain = np.repeat(np.repeat(gain, every, axis=1), every, axis=2)
    added = np.zeros_like(lung)
    added[place] = gain[:, : added[place].shape[1], : added[place].shape[2]]
    return added


def _to_source(sides: NDArray[np.uint8], grid: _Grid) -> NDArray[np.uint8]:
    """Turn back and interpolate the outline linearly onto the source grid, slice by slice."""
    turned = np.flip(sides, grid.flips).transpose(np.argsort(grid.order))
    labels = np.zeros(grid.source_shape, np.uint8)
    steps = [
        np.clip((np.arange(size) + 0.5) / block - 0.5, 0, coarse - 1)
        for size, block, coarse in zip(grid.source_shape, grid.blocks, turned.shape, strict=True)
    ]
    for side in (RIGHT, LEFT):
        if not (turned == side).any():
            continue
        place = tuple(
            slice(max(s.start - 1, 0), min(s.stop + 1, n))
            for s, n in zip(_box(turned == side), turned.shape, strict=True)
        )
        part = (turned[place] == side).astype(np.float32)
        # the source voxels between the samples of this part; all others are further off than its rim of zeros
        reach = [
            slice(int(np.searchsorted(at, s.start, "left")), int(np.searchsorted(at, s.stop - 1, "right")))
            for at, s in zip(steps, place, strict=True)
        ]
        z, y, x = (at[r] - s.start for at, r, s in zip(steps, reach, place, strict=True))
        down, across = _weights(y, part.shape[1]), _weights(x, part.shape[2]).T
        for number, at in enumerate(z, start=reach[0].start):
            low = int(at)
            high = min(low + 1, part.shape[0] - 1)
            plane = part[low] * (1 - (at - low)) + part[high] * (at - low)
            if plane.any():
                target = labels[number, reach[1], reach[2]]
                target[(down @ plane @ across > 0.5) & (target == 0)] = side
    return labels


def _weights(at: NDArray[np.float64], size: int) -> Floats:
    """Linear interpolation at the positions `at` of `size` samples, as a matrix."""
    weights: Floats = np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0).astype(np.float32)
    return weights
