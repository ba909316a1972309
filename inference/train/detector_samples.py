"""What `inference.train.detector` learns from: cubes of 80 mm cut with a random turn and zoom from a scene.

A scene is one of

- a real chest CT, into which real nodules are pasted (`inference.insertion`), its own lesions left out;
- a phantom with drawn nodules, others pasted in;
- an LIDC-IDRI strip: the nodule as it lies in its patient. A strip ends with its nodule; beyond, its slices
  are mirrored with the nodule taken out. Other nodules may be pasted in;
- an LIDC-IDRI cube of 51 mm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from inference.datasets.lidc_crops import NoduleCrop
from inference.detector import CELL_MM, GRID_MM, REFERENCE_MM, STRIDE, smooth_fine, window
from inference.evaluate.lidc import Cube, cube_field
from inference.insertion import Background, Canvas, Implant, Places, Pose, paste, random_place, random_pose
from inference.phantom import PhantomNodule
from inference.types import Volume

SIDE = 64
"""Voxels along an edge of a sample."""

SIZES_MM = (3.0, 5.0, 7.0, 10.0, 15.0, 25.0, 60.0)
SIZE_SHARES = (0.24, 0.24, 0.18, 0.15, 0.12, 0.07)
"""Bounds of classes of diameters and how often each is drawn."""

SCALE = (0.8, 1.25)
STRIP_REACH_MM = 45.0

Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass
class Scene:
    """Something to cut samples from.

    Parameters
    ----------
    array, lung, spacing_mm
        HU, int16 or float32, lung field and spacing, (z, y, x).
    lesions
        Nodules in it that are to be found: fractional index and diameter, mm, rows (z, y, x, d).
    unknown
        Places that are neither, rows like `lesions`.
    hard
        Indices of false peaks, (n, 3).
    """

    name: str
    array: NDArray[Any]
    lung: Mask
    spacing_mm: tuple[float, float, float]
    lesions: Floats
    unknown: Floats
    hard: Floats = field(default_factory=lambda: np.zeros((0, 3)))
    places: Places | None = None

    def room(self) -> Places:
        """Where nodules may be pasted."""
        if self.places is None:
            self.places = Places(self.array, self.lung, self.spacing_mm)
        return self.places


def scan_scene(background: Background) -> Scene:
    """A real chest; its own lesions are unknown."""
    volume = background.volume
    rows = [[*volume.lps_to_index(centre), 2 * radius] for centre, radius in background.known]
    return Scene(
        background.name,
        volume.array,
        background.lungs.labels > 0,
        volume.spacing_mm,
        np.zeros((0, 4)),
        np.array(rows, np.float64).reshape(-1, 4),
    )


def phantom_scene(volume: Volume, nodules: Sequence[PhantomNodule], lung: Mask) -> Scene:
    """A drawn chest with drawn nodules."""
    rows = [[*volume.lps_to_index(n.centre_lps), n.diameter_mm] for n in nodules]
    lesions = np.array(rows, np.float64).reshape(-1, 4)
    return Scene(volume.series_uid, volume.array, lung, volume.spacing_mm, lesions, np.zeros((0, 4)))


def cube_scene(cube: Cube) -> Scene:
    """A nodule in its patient, 51 mm at 1 mm."""
    centre = ndimage.center_of_mass(cube.truth)
    diameter = (6 * float(cube.truth.sum()) / np.pi) ** (1 / 3)
    lesions = np.array([[*centre, diameter]])
    lung = cube_field(cube.volume).labels > 0
    return Scene(cube.patient, cube.volume.array, lung, (1.0, 1.0, 1.0), lesions, np.zeros((0, 4)))


def strip_scene(crop: NoduleCrop, hu: NDArray[np.int16], implant: Implant | None) -> Scene | None:
    """A strip, extended by its mirrored slices without the nodule; None where no lung can be seen.

    Parameters
    ----------
    implant
        Of the same nodule; None where it is no sure nodule: then its place is unknown.
    """
    if crop.spacing_mm is None:
        return None
    drawn = crop.mask_bits > 0
    lung = np.stack([_lung_of_slice(a, d) for a, d in zip(hu, drawn, strict=True)])
    seen = hu[lung & (hu < -600) & ~drawn]
    if seen.size < 500:
        return None
    median, spread = float(np.median(seen)), float(np.median(np.abs(seen - np.median(seen)))) * 1.48
    rng = np.random.default_rng(int(hu[0, 0, 0]) + 2000)
    edge = ndimage.gaussian_filter(
        ndimage.binary_dilation(np.asarray(drawn.any(0)), iterations=2).astype(np.float32), 0.7
    )
    texture = ndimage.gaussian_filter(rng.normal(0, 1, hu.shape), (0, 0.6, 0.6))
    texture *= min(spread, 60.0) / texture.std()
    clean = (hu + edge * (median + texture - hu)).astype(np.int16)
    n, reach = len(hu), math.ceil(STRIP_REACH_MM / crop.spacing_mm[0])
    period = np.r_[np.arange(n), np.arange(n - 1, -1, -1)]
    order = period[np.arange(-reach, n + reach) % (2 * n)]
    array, field_ = clean[order], lung[order]
    array[reach : reach + n] = hu
    half = crop.agreement() >= 0.5
    centre = ndimage.center_of_mass(half if half.any() else drawn)
    extent = (6 * float(drawn.sum() * np.prod(crop.spacing_mm)) / np.pi) ** (1 / 3)
    row = np.array([[centre[0] + reach, centre[1], centre[2], implant.diameter_mm if implant else extent]])
    none = np.zeros((0, 4))
    lesions, unknown = (row, none) if implant else (none, row)
    return Scene(crop.name, array, field_, crop.spacing_mm, lesions, unknown)


def _lung_of_slice(hu: NDArray[np.int16], drawn: Mask) -> Mask:
    """Air, closed over vessels and nodules, and the drawn nodule."""
    air = np.pad(hu < -400, 8, mode="edge")
    closed = ndimage.distance_transform_edt(ndimage.distance_transform_edt(~air) <= 6) > 6
    return np.asarray(ndimage.binary_fill_holes(closed[8:-8, 8:-8] | (hu < -400)) | drawn)


@dataclass(frozen=True)
class Sample:
    """A cube to learn from.

    Parameters
    ----------
    hu
        int16, shape (64, 64, 64).
    counted
        bool, shape (32, 32, 32): cells in or near the lung field.
    lesions, unknown
        float32, rows (z, y, x, d): voxel index in the cube and diameter, mm.
    """

    hu: NDArray[np.int16]
    counted: Mask
    lesions: Singles
    unknown: Singles


class Bank:
    """Nodules to paste, drawn evenly over classes of size."""

    def __init__(self, implants: Sequence[Implant]) -> None:
        self._implants = list(implants)
        sizes = np.array([one.diameter_mm for one in implants])
        self._classes = [np.flatnonzero((sizes >= low) & (sizes < high)) for low, high in pairwise(SIZES_MM)]

    def draw(self, rng: np.random.Generator) -> Implant:
        """Draw one."""
        shares = np.array([share * bool(len(c)) for share, c in zip(SIZE_SHARES, self._classes, strict=True)])
        chosen = self._classes[int(rng.choice(len(shares), p=shares / shares.sum()))]
        return self._implants[int(rng.choice(chosen))]


def draw_sample(rng: np.random.Generator, scene: Scene, bank: Bank) -> Sample:
    """Cut one sample; see the module's text."""
    pitch = np.array(scene.spacing_mm)
    centre_mm, zoom = _choose_centre(rng, scene) * pitch, float(np.exp(rng.uniform(-0.25, 0.2)))
    half = SIDE / 2 * GRID_MM * zoom
    reach = half * np.array([1.3, 1.5, 1.5])
    low = np.maximum(np.floor((centre_mm - reach) / pitch).astype(int), 0)
    high = np.minimum(np.ceil((centre_mm + reach) / pitch).astype(int) + 1, scene.array.shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    canvas = Canvas(scene.array[box].astype(np.float32), scene.lung[box], scene.spacing_mm)
    lesions = [row.copy() for row in scene.lesions]
    for _ in range(int(rng.choice(4, p=(0.2, 0.4, 0.25, 0.15)))):
        found = _choose_place(rng, scene, bank, [*lesions, *scene.unknown], (centre_mm, 0.9 * half))
        if found is None:
            continue
        implant, pose, at = found
        pasted = paste(canvas, implant, at - low, pose, rng)
        if pasted is not None:
            lesions.append(np.array([*(pasted.centre + low), pasted.diameter_mm]))
    hu, counted, turn = _cut(rng, canvas, centre_mm - low * pitch, zoom)

    def inside(rows: Sequence[Floats]) -> Singles:
        table = np.array(rows, np.float64).reshape(-1, 4)
        at = ((table[:, :3] * pitch - centre_mm) @ turn) / (GRID_MM * zoom) + (SIDE - 1) / 2
        table = np.column_stack([at, table[:, 3] / zoom])
        keep = ((at > -8) & (at < SIDE + 8)).all(axis=1)
        return np.asarray(table[keep], np.float32)

    return Sample(hu, counted, inside(lesions), inside(list(scene.unknown)))


def _choose_centre(rng: np.random.Generator, scene: Scene) -> Floats:
    """Fractional index: near one of its own nodules, near a false peak, or anywhere in the lung."""
    jitter = rng.uniform(-18, 18, 3) / np.array(scene.spacing_mm)
    if len(scene.lesions) and rng.random() < 0.75:
        return np.asarray(scene.lesions[rng.integers(len(scene.lesions)), :3] + jitter)
    if len(scene.hard) and rng.random() < 0.5:
        return np.asarray(scene.hard[rng.integers(len(scene.hard))] + jitter)
    points = scene.room().points
    return np.asarray(points[rng.integers(len(points))] + jitter, np.float64)


def _choose_place(
    rng: np.random.Generator,
    scene: Scene,
    bank: Bank,
    taken: Sequence[Floats],
    view: tuple[Floats, float],
) -> tuple[Implant, Pose, Floats] | None:
    """Draw a nodule and where in the ball `view` (centre and radius, mm) it may lie: fractional index."""
    implant, pose, place = bank.draw(rng), random_pose(rng, SCALE), random_place(rng)
    pitch, radius = np.array(scene.spacing_mm), implant.diameter_mm * pose.scale / 2
    avoid = [(row[:3] * pitch, float(row[3]) / 2) for row in taken]
    at = scene.room().choose(rng, place, radius, avoid, view)
    return None if at is None else (implant, pose, at)


def _cut(
    rng: np.random.Generator, canvas: Canvas, centre_mm: Floats, zoom: float
) -> tuple[NDArray[np.int16], Mask, Floats]:
    """Sample the cube; returns HU, counted cells, and the turn (mm in the box = turn @ mm in the cube)."""
    turn = random_pose(rng).rotation
    hu = smooth_fine(torch.from_numpy(canvas.array), canvas.spacing_mm)
    offset = (torch.arange(SIDE) - (SIDE - 1) / 2) * GRID_MM * zoom
    grid = torch.stack(torch.meshgrid(offset, offset, offset, indexing="ij"), -1)  # (64, 64, 64, 3) z y x
    at = grid @ torch.from_numpy(turn.T.copy()).float() + torch.from_numpy(centre_mm).float()
    last = torch.tensor([(n - 1) * d for n, d in zip(canvas.array.shape, canvas.spacing_mm, strict=True)])
    at = (2 * at / last.clamp(min=1e-3) - 1).flip(-1)[None]  # grid_sample wants x y z in -1..1
    image = functional.grid_sample(hu[None, None], at, padding_mode="border", align_corners=True)[0, 0]
    cells = at[:, ::STRIDE, ::STRIDE, ::STRIDE]
    field_ = torch.from_numpy(canvas.field.astype(np.float32))[None, None]
    counted = functional.grid_sample(field_, cells, padding_mode="zeros", align_corners=True)
    counted = functional.max_pool3d(counted, 5, stride=1, padding=2)[0, 0] > 0.5
    return image.clamp(-1024, 3071).numpy().astype(np.int16), counted.numpy(), turn


def turned(rng: np.random.Generator, sample: Sample) -> Sample:
    """Flip along random axes and turn by a random quarter about z."""
    hu, counted = sample.hu, sample.counted
    lesions, unknown = sample.lesions.copy(), sample.unknown.copy()
    for axis in range(3):
        if rng.random() < 0.5:
            hu, counted = np.flip(hu, axis), np.flip(counted, axis)
            for rows in (lesions, unknown):
                rows[:, axis] = SIDE - 1 - rows[:, axis]
    if rng.random() < 0.5:
        hu, counted = hu.swapaxes(1, 2), counted.swapaxes(1, 2)
        lesions, unknown = lesions[:, [0, 2, 1, 3]], unknown[:, [0, 2, 1, 3]]
    return Sample(hu, counted, lesions, unknown)


def as_image(rng: np.random.Generator, samples: Sequence[Sample]) -> Tensor:
    """Network input (n, 1, 64, 64, 64) as another scanner would have given it."""
    cubes = [torch.from_numpy(np.ascontiguousarray(one.hu, np.float32)) for one in samples]
    return window(torch.stack([as_scanned(rng, cube) for cube in cubes]))


def as_scanned(rng: np.random.Generator, hu: Tensor, share: float = 1.0) -> Tensor:
    """HU (edge, edge, edge) with another slice thickness, kernel, noise, gain and offset.

    Parameters
    ----------
    share
        Of the odds that each is changed.

    Returns
    -------
    Tensor
        HU, shape (1, edge, edge, edge).
    """
    image, size = hu[None, None].contiguous(), hu.shape[0]
    if rng.random() < 0.35 * share:  # every second to fourth slice, as thick as their distance
        step = int(rng.integers(2, 5))
        phase = int(rng.integers(step))
        padded = functional.pad(image, (0, 0, 0, 0, phase, size % step + step), mode="replicate")
        thick = functional.avg_pool3d(padded, (step, 1, 1))
        fine = functional.interpolate(thick, scale_factor=(step, 1, 1), mode="trilinear")
        image = fine[:, :, phase : phase + size]
    if rng.random() < 0.35 * share:
        image = torch.lerp(image, _softened(image), float(rng.uniform(-0.35, 0.5)))  # below 0 sharper
    if rng.random() < 0.5 * share:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
        if rng.random() < 0.5:
            noise = 2.0 * _softened(noise)
        image = image + noise * float(rng.uniform(0, 50))
    return image[0] * float(rng.uniform(0.95, 1.05)) + float(rng.uniform(-30, 30))


def _softened(image: Tensor) -> Tensor:
    """Binomial smoothing in the slice."""
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    padded = functional.pad(image, (1, 1, 1, 1, 0, 0), mode="replicate")
    return functional.conv3d(padded, kernel[None, None, None])


def targets(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the network should give.

    Returns
    -------
    heat
        float32, shape (n, 32, 32, 32): 1 at centres, a Gaussian around.
    weight
        float32, same shape: 0 outside the lungs and at unknown places.
    size, sized
        Log of diameter / 8 mm, and where it counts.
    """
    cells = SIDE // STRIDE
    shape = (len(samples), cells, cells, cells)
    heat, size = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    weight, sized = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    grid = np.indices(shape[1:], np.float32) * STRIDE + (STRIDE - 1) / 2
    for number, sample in enumerate(samples):
        weight[number] = sample.counted
        for row in sample.unknown:
            gap = np.sqrt(sum((g - v) ** 2 for g, v in zip(grid, row, strict=False))) * GRID_MM
            weight[number][gap < row[3] / 2 + 4] = 0
        for row in sample.lesions:
            gap = np.sqrt(sum((g - v) ** 2 for g, v in zip(grid, row, strict=False))) * GRID_MM
            sigma = float(np.clip(0.2 * row[3], 1.8, 5.0))
            heat[number] = np.maximum(heat[number], np.exp(-0.5 * (gap / sigma) ** 2))
            core = gap < max(0.12 * float(row[3]), 0.0)
            nearest = np.unravel_index(int(gap.argmin()), gap.shape)
            core[nearest] |= gap[nearest] < CELL_MM
            heat[number][core] = 1
            weight[number][core] = 1
            near = gap < max(0.25 * float(row[3]), CELL_MM)
            size[number][near] = np.log(row[3] / REFERENCE_MM)
            sized[number][near] = 1
    return tuple(torch.from_numpy(a) for a in (heat, weight, size, sized))  # type: ignore[return-value]  # four
