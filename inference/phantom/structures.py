"""What looks like a nodule and is none, with its truth.

Scars, bronchi, mucus plugs, bone islands, plaques and emphysema are drawn with random numbers of their own,
so that a phantom with them shows the same body, vessels, nodules and noise as one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.phantom.anatomy import LABEL_FIRST_NODULE, LABEL_LEFT_LUNG, LABEL_RIGHT_LUNG
from inference.phantom.nodules import Scene
from inference.phantom.paint import Array, Grid, capsule, occupancy
from inference.phantom.trees import Branch
from inference.types import Index, Point

Mask = NDArray[np.bool_]
_Piece = tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]
"""A round cone: start and end (z, y, x) in mm, radii there."""

EMPHYSEMA_HU = -968.0
_TRIES = 60
_GAP_MM = 6.0


class StructureKind(StrEnum):
    """What was drawn."""

    SCAR = "scar"
    BRONCHUS = "bronchus"
    MUCUS_PLUG = "mucus plug"
    BONE_ISLAND = "bone island"
    PLAQUE = "pleural plaque"
    EMPHYSEMA = "emphysema"


SIZES_MM = {
    StructureKind.SCAR: (10.0, 50.0),
    StructureKind.BRONCHUS: (4.0, 14.0),
    StructureKind.MUCUS_PLUG: (3.0, 12.0),
    StructureKind.BONE_ISLAND: (4.0, 15.0),
    StructureKind.PLAQUE: (8.0, 60.0),
}
"""Least and greatest `StructureSpec.size_mm`."""


@dataclass(frozen=True)
class StructureSpec:
    """What to draw; the place is drawn from the seed.

    Parameters
    ----------
    kind
        Not `StructureKind.EMPHYSEMA`, which has no place: it is an argument of `make_phantom`.
    size_mm
        Length of a scar, outer diameter of a bronchus or mucus plug, diameter of a bone island, width of a
        plaque; within `SIZES_MM`.
    """

    kind: StructureKind
    size_mm: float

    def __post_init__(self) -> None:
        if self.kind not in SIZES_MM:
            raise ValueError(f"{self.kind} is no structure with a place")
        low, high = SIZES_MM[self.kind]
        if not low <= self.size_mm <= high:
            raise ValueError(f"a phantom {self.kind} measures {low:g} to {high:g} mm, not {self.size_mm}")


@dataclass(frozen=True)
class PhantomStructure:
    """The truth of one drawn structure.

    Parameters
    ----------
    kind
        What it is.
    mask
        bool, cropped.
    origin
        Index in the volume of ``mask[0, 0, 0]``.
    centre_lps
        Patient coordinates of the centre of the mask, mm.
    """

    kind: StructureKind
    mask: Mask
    origin: Index
    centre_lps: Point

    def slices(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in the volume."""
        z, y, x = (slice(o, o + n) for o, n in zip(self.origin, self.mask.shape, strict=True))
        return z, y, x


def random_structures(rng: np.random.Generator, count: int) -> tuple[StructureSpec, ...]:
    """Draw structures of all kinds with a place, half of them in the lower third of their sizes."""
    kinds = tuple(SIZES_MM)
    specs = []
    for _ in range(count):
        kind = kinds[rng.integers(len(kinds))]
        low, high = SIZES_MM[kind]
        specs.append(StructureSpec(kind, float(np.round(low + (high - low) * rng.uniform() ** 1.6, 1))))
    return tuple(specs)


def draw_emphysema(scene: Scene, share: float) -> PhantomStructure:
    """Empty `share` of the parenchyma, most of it in the upper parts (centrilobular), in place."""
    values, grid = scene.values, scene.grid
    lungs = _lungs(scene.labels)
    holes = scene.rng.standard_normal(grid.shape, dtype=np.float32)
    for axis, spacing in enumerate(grid.spacing_mm):
        ndimage.gaussian_filter1d(holes, 1.7 / spacing, axis=axis, output=holes)
    holes /= holes.std()
    heights = np.linspace(-0.6, 0.6, grid.shape[0], dtype=np.float32)
    holes += heights[:, None, None]
    parenchyma = lungs & (values < -650)
    limit = np.quantile(holes[parenchyma], 1 - share)
    mask = parenchyma & (holes > limit)
    filled = np.clip((holes - limit) / np.float32(0.35), 0, 1) ** np.float32(0.5)
    values[mask] += filled[mask] * (np.float32(EMPHYSEMA_HU) - values[mask])
    return _truth(StructureKind.EMPHYSEMA, mask, (0, 0, 0), grid)


def draw_structures(
    scene: Scene, specs: Sequence[StructureSpec], vessels: Sequence[Branch]
) -> tuple[PhantomStructure, ...]:
    """Paint the structures into the scene, apart from nodules and each other, and return their truth.

    Raises
    ------
    ValueError
        There is no room for one.
    """
    if not specs:
        return ()
    painters: dict[StructureKind, Callable[[_Site, float], Iterator[_Stroke]]] = {
        StructureKind.SCAR: _scars,
        StructureKind.BRONCHUS: _bronchi,
        StructureKind.MUCUS_PLUG: _bronchi,
        StructureKind.BONE_ISLAND: _bone_islands,
        StructureKind.PLAQUE: _plaques,
    }
    site = _Site(scene, _depth(scene), vessels)
    taken = scene.labels >= LABEL_FIRST_NODULE
    margin = tuple(int(np.ceil(_GAP_MM / d)) for d in scene.grid.spacing_mm)
    drawn = []
    for spec in specs:
        for _, stroke in zip(range(_TRIES), painters[spec.kind](site, spec.size_mm), strict=False):
            wide = tuple(
                slice(max(s.start - m, 0), s.stop + m) for s, m in zip(stroke.box, margin, strict=True)
            )
            if stroke.mask.sum() > 8 and not taken[wide].any():
                break
        else:
            raise ValueError(f"no room in the phantom for a {spec.size_mm:g} mm {spec.kind}")
        stroke.paint(scene.values, hollow=spec.kind is StructureKind.BRONCHUS)
        taken[stroke.box] |= stroke.mask
        drawn.append(_truth(spec.kind, stroke.mask, tuple(s.start for s in stroke.box), scene.grid))
    return tuple(drawn)


@dataclass(frozen=True)
class _Stroke:
    """One drawing before it is painted: occupancy in a box, its HU, and the occupancy of a lumen."""

    box: tuple[slice, slice, slice]
    filled: Array
    hu: float
    mask: Mask
    lumen: Array | None = None

    def paint(self, values: Array, *, hollow: bool) -> None:
        """Mix it into `values`; `hollow` opens the lumen."""
        part = values[self.box]
        part += self.filled * np.maximum(np.float32(self.hu) - part, 0)
        if hollow and self.lumen is not None:
            part += self.lumen * (np.float32(-975) - part)


@dataclass(frozen=True)
class _Site:
    """Where structures are drawn: the scene, the depth below the pleura in mm and the vessels."""

    scene: Scene
    depth: Array
    vessels: Sequence[Branch]

    def near_pleura(self, low: float, high: float) -> Iterator[NDArray[np.float64]]:
        """Points (z, y, x) in mm in the lung, between `low` and `high` below the pleura, at random."""
        grid = self.scene.grid
        index = np.argwhere((self.depth > low) & (self.depth < high))
        edge = np.array(grid.shape) * 0.06
        index = index[((index > edge) & (index < np.array(grid.shape) - edge)).all(axis=1)]
        for number in self.scene.rng.permutation(len(index))[:_TRIES]:
            yield index[number] * np.array(grid.spacing_mm) + np.array(grid.origin_mm)

    def inward(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Unit direction from a point near the pleura to the depth of the lung."""
        grid = self.scene.grid
        box = grid.box(point - 12, point + 12)
        if box is None:
            raise ValueError("a point outside the grid has no depth")
        part = self.depth[box]
        steps = np.argwhere(part >= part.max() * 0.9).mean(axis=0) + np.array([s.start for s in box])
        towards = steps * np.array(grid.spacing_mm) + np.array(grid.origin_mm) - point
        return np.asarray(towards / (np.linalg.norm(towards) + 1e-9))


def _lungs(labels: NDArray[np.uint8]) -> Mask:
    return np.asarray((labels == LABEL_RIGHT_LUNG) | (labels == LABEL_LEFT_LUNG))


def _depth(scene: Scene) -> Array:
    """Distance in mm to the nearest voxel outside lungs, airways and nodules; 0 outside."""
    inside = scene.labels > 0
    return np.asarray(
        ndimage.distance_transform_edt(inside, sampling=scene.grid.spacing_mm), dtype=np.float32
    )


def _scars(site: _Site, length: float) -> Iterator[_Stroke]:
    """Bent bands of 2 to 4 mm from the pleura inwards, with two short side strands."""
    rng = site.scene.rng
    thick = float(np.clip(length / 18, 1.2, 2.2))
    for start in site.near_pleura(0.5, 2.5):
        direction = site.inward(start)
        points = [start - 1.5 * direction]
        for _ in range(4):
            direction = direction + 0.3 * rng.standard_normal(3)
            direction /= np.linalg.norm(direction)
            points.append(points[-1] + length / 4 * direction)
        pieces = [(a, b, (thick, 0.7 * thick)) for a, b in pairwise(points)]
        for joint in points[1:3]:
            side = rng.standard_normal(3)
            pieces.append((joint, joint + 0.3 * length * side / np.linalg.norm(side), (0.6 * thick, 0.5)))
        stroke = _tube(site.scene, pieces, 15.0)
        if stroke is not None:
            yield stroke


def _bronchi(site: _Site, diameter: float) -> Iterator[_Stroke]:
    """Thick-walled tubes beside the arteries of the lung; a mucus plug is one without a lumen."""
    rng = site.scene.rng
    options = [b for b in site.vessels if 0.8 < b.radii[1] < 2.4 and np.linalg.norm(b.end - b.start) > 6]
    for number in rng.permutation(len(options)):
        branch = options[number]
        axis = branch.end - branch.start
        beside = np.cross(axis, rng.standard_normal(3))
        beside *= (diameter / 2 + branch.radii[0]) / (np.linalg.norm(beside) + 1e-9)
        # no longer than four diameters: beyond that it would be an airway tree
        piece = axis * min(1.0, 4 * diameter / float(np.linalg.norm(axis)))
        start, end = branch.start + beside, branch.start + beside + piece
        wall = max(0.18 * diameter, 0.9)
        stroke = _tube(site.scene, [(start, end, (diameter / 2, 0.45 * diameter))], 25.0, wall)
        if stroke is not None:
            yield stroke


def _tube(scene: Scene, pieces: Sequence[_Piece], hu: float, wall: float | None = None) -> _Stroke | None:
    """Round cones in one box, in lung only; None where half of it would lie elsewhere."""
    ends = np.array([point for start, end, _ in pieces for point in (start, end)])
    pad = max(max(radii) for _, _, radii in pieces) + 2 * max(scene.grid.spacing_mm)
    box = scene.grid.box(ends.min(axis=0) - pad, ends.max(axis=0) + pad)
    if box is None:
        return None
    whole = _cones(scene.grid, box, pieces)
    lumen = None
    if wall is not None:
        # longer than the wall: no cap closes it
        opened = [(a - (b - a), b + (b - a), (r[0] - wall, r[1] - wall)) for a, b, r in pieces]
        lumen = _cones(scene.grid, box, opened) * (whole > 0)
    lung = _lungs(scene.labels[box])
    if not whole.any() or whole[lung].sum() < 0.5 * whole.sum():
        return None
    filled = whole * lung
    return _Stroke(box, filled, hu, filled > 0.5, None if lumen is None else lumen * lung)


def _cones(grid: Grid, box: tuple[slice, slice, slice], pieces: Sequence[_Piece]) -> Array:
    """Occupancy in `box` of the union of round cones, each of which reaches into it."""
    whole = np.zeros([s.stop - s.start for s in box], np.float32)
    for start, end, radii in pieces:
        found = capsule(grid, start, end, radii)
        if found is not None:
            place, filled = found
            shared = [(max(p.start, b.start), min(p.stop, b.stop)) for p, b in zip(place, box, strict=True)]
            to = tuple(
                slice(low - b.start, high - b.start) for (low, high), b in zip(shared, box, strict=True)
            )
            of = tuple(
                slice(low - p.start, high - p.start) for (low, high), p in zip(shared, place, strict=True)
            )
            np.maximum(whole[to], filled[of], out=whole[to])
    return whole


def _bone_islands(site: _Site, diameter: float) -> Iterator[_Stroke]:
    """Dense balls in bone at the pleura: sclerosis of a rib or a spur that bulges into the lung."""
    scene, radius = site.scene, diameter / 2
    grid = scene.grid
    for point in site.near_pleura(0.3, 1.6):
        outward = -site.inward(point)
        box = grid.box(point + 2 * outward - 5, point + 2 * outward + 5)
        if box is None or (scene.values[box] > 250).mean() < 0.1:
            continue
        centre = point + 0.45 * radius * outward
        box = grid.box(centre - radius - 2, centre + radius + 2)
        if box is None:
            continue
        z, y, x = (axis - np.float32(m) for axis, m in zip(grid.coordinates(box), centre, strict=True))
        distance: Array = np.sqrt(z * z + y * y + x * x) - np.float32(radius)
        yield _Stroke(box, occupancy(distance, grid.spacing_mm[2]), 800.0, distance < 0)


def _plaques(site: _Site, across: float) -> Iterator[_Stroke]:
    """Lenses of soft tissue on the pleura, a seventh as thick as wide, 2 mm at least."""
    scene, grid = site.scene, site.scene.grid
    thick = max(across / 7, 2.0)
    for point in site.near_pleura(0.3, 1.6):
        box = grid.box(point - across / 2 - 2, point + across / 2 + 2)
        if box is None:
            continue
        z, y, x = (axis - np.float32(m) for axis, m in zip(grid.coordinates(box), point, strict=True))
        depth = site.depth[box]
        apart2 = (z * z + y * y + x * x) / np.float32((across / 2) ** 2)
        lens: Array = np.maximum(1 - apart2, np.float32(-1)).astype(np.float32)
        distance: Array = depth - np.float32(thick) * lens
        lung = _lungs(scene.labels[box])
        yield _Stroke(box, occupancy(distance, grid.spacing_mm[2]) * lung, 40.0, (distance < 0) & lung)


def _truth(kind: StructureKind, mask: Mask, corner: Sequence[int], grid: Grid) -> PhantomStructure:
    """Crop the mask and give it its place."""
    (tight,) = ndimage.find_objects(mask.astype(np.uint8)) or (None,)
    if tight is None:
        raise ValueError(f"nothing was drawn for a {kind}")
    z, y, x = (int(s.start) + int(c) for s, c in zip(tight, corner, strict=True))
    middle = np.argwhere(mask[tight]).mean(axis=0) + np.array([z, y, x])
    centre = middle * np.array(grid.spacing_mm) + np.array(grid.origin_mm)
    return PhantomStructure(
        kind,
        np.ascontiguousarray(mask[tight]),
        (z, y, x),
        (float(centre[2]), float(centre[1]), float(centre[0])),
    )
