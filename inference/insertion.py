"""Real nodules pasted into real lungs: whole scans of known truth, for training and for FROC curves.

A nodule is cut from its strip along the readers' agreement and laid into a chest at a free, a juxtavascular
or a juxtapleural place, on the grid and with the slice profile and the noise of that scan. Attenuation
follows the parenchyma: what lies between parenchyma and water in the strip lies at the same share between the
parenchyma of the new place and water, so ground glass stays ground glass. After Pezeshk et al., Seamless
lesion insertion for data augmentation in CAD training, IEEE TMI 36:1005-1015, 2017 (their blending solves a
Poisson equation; here it is the agreement, softened by a pixel).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.datasets.lidc_crops import NoduleCrop
from inference.lungs import Lungs
from inference.types import Index, Point, Volume
from inference.uids import derived_uid

PARENCHYMA_HU = -860.0
TISSUE_HU = -500.0
"""Above this, inside the lung field, lies a vessel or other tissue."""

MIN_READERS = 2
PLACE_GRID_MM = 2.5
LEAST_VISIBLE = 0.7
"""Share of a nodule that must lie inside the lung field and be denser than what was there."""

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Place(StrEnum):
    """What a pasted nodule touches."""

    FREE = "free"
    JUXTAVASCULAR = "juxtavascular"
    JUXTAPLEURAL = "juxtapleural"


@dataclass(frozen=True, slots=True)
class Implant:
    """A nodule that can be pasted.

    Parameters
    ----------
    name, patient
        Of the strip.
    hu
        float32, shape (z, y, x); the first and the last slice repeat their neighbours.
    agreement
        float32, same shape, 0..1: share of the readers that drew the voxel.
    alpha
        float32, same shape, 0..1: how much of the voxel is pasted; 0 on the first and the last slice.
    spacing_mm
        (z, y, x).
    centre
        Fractional index of the nodule's centre.
    diameter_mm
        Of the sphere with the volume that half of the readers drew.
    parenchyma_hu, noise_hu
        Median and noise of the lung around it.
    readers
        How many drew it.
    """

    name: str
    patient: str
    hu: Singles
    agreement: Singles
    alpha: Singles
    spacing_mm: tuple[float, float, float]
    centre: tuple[float, float, float]
    diameter_mm: float
    parenchyma_hu: float
    noise_hu: float
    readers: int


@dataclass(frozen=True, slots=True)
class Pose:
    """How a nodule is turned: rotation (3, 3) in (z, y, x), may reflect; and enlarged."""

    rotation: Floats
    scale: float = 1.0


@dataclass(frozen=True)
class Background:
    """A chest CT to paste into.

    Parameters
    ----------
    name
        Of the scan.
    volume, lungs
        The scan and its lung field.
    known
        Lesions that it has: LPS centre and radius, mm. Nothing is pasted there, and marks there count neither
        way.
    """

    name: str
    volume: Volume
    lungs: Lungs
    known: tuple[tuple[Point, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Inserted:
    """The truth about one pasted nodule: where, how large (sphere of equal volume), from which strip."""

    centre_lps: Point
    diameter_mm: float
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class Case:
    """A scan with pasted nodules; `excluded` are the background's own lesions: LPS centre, radius mm."""

    name: str
    volume: Volume
    lesions: tuple[Inserted, ...]
    excluded: tuple[tuple[Point, float], ...]


def make_implant(crop: NoduleCrop, hu: NDArray[Any]) -> Implant | None:
    """Cut a nodule from its strip.

    Parameters
    ----------
    crop
        The strip and its readers.
    hu
        Its HU, shape (n, 96, 96), as `inference.intensity.HounsfieldEstimate` gives them.

    Returns
    -------
    Implant or None
        None where fewer than `MIN_READERS` drew it, half of them agree nowhere or its spacing is unknown.
    """
    if crop.spacing_mm is None or crop.readers < MIN_READERS:
        return None
    agreement = crop.agreement()
    consensus = agreement >= 0.5
    if not consensus.any():
        return None
    values = np.asarray(hu, np.float32)
    lung = (values < -600) & (agreement == 0)
    steps = np.diff(values, axis=2)[lung[:, :, 1:] & lung[:, :, :-1]]
    noise = float(np.median(np.abs(steps)) / 0.6745 / 2**0.5) if steps.size > 30 else 30.0
    alpha = ndimage.gaussian_filter(ndimage.maximum_filter(agreement, (1, 3, 3)), (0, 0.7, 0.7))
    rows, columns = (np.flatnonzero((alpha > 0.01).any(axis)) for axis in ((0, 2), (0, 1)))
    inner = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    ends = ((1, 1), (0, 0), (0, 0))
    drawn = np.pad(agreement[inner], ends)
    volume_mm3 = float(consensus.sum() * np.prod(crop.spacing_mm))
    z, y, x = (float(v) for v in ndimage.center_of_mass(drawn))
    return Implant(
        name=crop.name,
        patient=crop.patient,
        hu=np.pad(values[inner], ends, mode="edge"),
        agreement=drawn,
        alpha=np.pad(alpha[inner], ends).astype(np.float32),
        spacing_mm=crop.spacing_mm,
        centre=(z, y, x),
        diameter_mm=(6 * volume_mm3 / np.pi) ** (1 / 3),
        parenchyma_hu=float(np.median(values[lung])) if lung.sum() > 30 else PARENCHYMA_HU,
        noise_hu=noise,
        readers=crop.readers,
    )


def random_pose(rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.25)) -> Pose:
    """Any turn about z, a tilt of up to 15 degrees, flips of all axes, a size of log-uniform `scale`."""
    angles = np.array([rng.uniform(0, 360), rng.uniform(-15, 15), rng.uniform(-15, 15)]) * np.pi / 180
    rotation = np.diag(rng.choice((-1.0, 1.0), 3))
    for axis, angle in enumerate(angles):
        i, j = ((1, 2), (0, 2), (0, 1))[axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    return Pose(rotation, float(np.exp(rng.uniform(*np.log(scale)))))


@dataclass(frozen=True, slots=True)
class Canvas:
    """What is pasted into.

    Parameters
    ----------
    array
        HU, float32, shape (z, y, x); changed by `paste`.
    field
        Lung field, bool, same shape.
    spacing_mm
        (z, y, x).
    """

    array: Singles
    field: Mask
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Pasted:
    """What became of a nodule.

    Parameters
    ----------
    centre
        Fractional index.
    diameter_mm
        Of what is visible.
    mask, origin
        What of it half of the readers drew and is visible, and the index of its first voxel.
    """

    centre: Floats
    diameter_mm: float
    mask: Mask
    origin: Index


def paste(
    canvas: Canvas, implant: Implant, centre: Floats, pose: Pose, rng: np.random.Generator
) -> Pasted | None:
    """Paste a nodule in place.

    Parameters
    ----------
    canvas
        Its array is changed. What would lie outside the lung field is not pasted.
    implant, pose
        What, and how turned.
    centre
        Where: fractional index.
    rng
        Draws the noise.

    Returns
    -------
    Pasted or None
        None, and nothing is changed, where less than `LEAST_VISIBLE` would stand out from the lung field.
    """
    array, pitch = canvas.array, np.array(canvas.spacing_mm)
    reach = pose.scale * np.linalg.norm(np.array(implant.alpha.shape) * np.array(implant.spacing_mm)) / 2
    low = np.maximum(np.floor(centre - reach / pitch).astype(int), 0)
    high = np.minimum(np.ceil(centre + reach / pitch).astype(int) + 1, array.shape)
    if (high <= low).any():
        return None
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    hu, agreement, alpha = _sample(implant, pose, [np.arange(s.start, s.stop) for s in box], centre, pitch)
    inside, around = canvas.field[box], array[box]
    lung = around[inside & (around < -600)]
    parenchyma = float(np.median(lung)) if lung.size > 30 else PARENCHYMA_HU
    # below water attenuation is a share of lung and water: it moves with the lung around
    moved = np.where(hu < 0, hu * (parenchyma / implant.parenchyma_hu), hu)
    missing = max(_noise(around, inside) ** 2 - (0.7 * implant.noise_hu) ** 2, 0.0) ** 0.5
    total, visible = float(agreement.sum()), agreement * (inside & (around < np.minimum(moved, 0) - 100))
    if total <= 0 or visible.sum() < LEAST_VISIBLE * total:
        return None
    moved += rng.normal(0, 1, moved.shape) * missing
    # a vessel that runs through is brighter than ground glass and stays
    moved = np.where(around > moved + 150, around, moved)
    around += (alpha * inside * (moved - around)).astype(np.float32)
    share = float(visible.sum()) / total
    at = np.array([float((visible * grid).sum() / visible.sum()) for grid in np.indices(visible.shape)])
    first: Index = (int(low[0]), int(low[1]), int(low[2]))
    return Pasted(at + low, implant.diameter_mm * pose.scale * share ** (1 / 3), visible >= 0.5, first)


def _sample(
    implant: Implant, pose: Pose, axes: list[NDArray[np.int_]], centre: Floats, pitch: Floats
) -> tuple[Singles, Singles, Singles]:
    """HU, agreement and alpha of the turned nodule on a box, each the mean over the slice's thickness."""
    own = implant.spacing_mm[0] * pose.scale
    parts = max(1, min(8, round(float(pitch[0]) / own)))  # thicker slices blur it
    to_source = pose.rotation.T / pose.scale / np.array(implant.spacing_mm)[:, None]
    hu, agreement, alpha = (np.zeros([len(axis) for axis in axes], np.float32) for _ in range(3))
    for part in range(parts):
        shift = (part + 0.5) / parts - 0.5
        z, y, x = np.meshgrid(axes[0] + shift, axes[1], axes[2], indexing="ij", sparse=True)
        offsets = [(v - c) * p for v, c, p in zip((z, y, x), centre, pitch, strict=True)]
        at = [
            sum((row[k] * offsets[k] for k in range(3)), np.float64(middle))
            for row, middle in zip(to_source, implant.centre, strict=True)
        ]
        weight = ndimage.map_coordinates(implant.alpha, at, order=1, mode="constant")
        hu += weight * ndimage.map_coordinates(implant.hu, at, order=1, mode="nearest")
        agreement += ndimage.map_coordinates(implant.agreement, at, order=1, mode="constant")
        alpha += weight
    hu = np.where(alpha > 1e-4, hu / np.maximum(alpha, 1e-4), PARENCHYMA_HU)
    return hu.astype(np.float32), agreement / np.float32(parts), alpha / np.float32(parts)


def _noise(array: Singles, field: Mask) -> float:
    """Noise of the lung in a box: from differences of neighbours, robust against vessels."""
    lung = field & (array < -600)
    steps = np.diff(array, axis=2)[lung[:, :, 1:] & lung[:, :, :-1]]
    return float(np.median(np.abs(steps)) / 0.6745 / 2**0.5) if steps.size > 30 else 0.0


class Places:
    """Where in a lung field a nodule may lie.

    Parameters
    ----------
    array, field, spacing_mm
        HU, lung field and spacing (z, y, x).
    """

    def __init__(self, array: NDArray[Any], field: Mask, spacing_mm: tuple[float, float, float]) -> None:
        steps = [max(1, round(PLACE_GRID_MM / s)) for s in spacing_mm]
        every = tuple(slice(step // 2, None, step) for step in steps)
        coarse, inside = array[every], field[every]
        sampling = [step * s for step, s in zip(steps, spacing_mm, strict=True)]
        depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=sampling)[1:-1, 1:-1, 1:-1]
        tissue = inside & (coarse > TISSUE_HU)
        gap = ndimage.distance_transform_edt(~tissue, sampling=sampling) if tissue.any() else depth
        found = np.argwhere(inside)
        self.points = found * np.array(steps) + np.array([step // 2 for step in steps])
        self.millimetres = self.points * np.array(spacing_mm)
        self.depth = depth[inside]
        self.gap = gap[inside]

    def fitting(self, place: Place, radius_mm: float) -> Mask:
        """Which of `points` are such a place for a nodule of this radius."""
        if place is Place.JUXTAPLEURAL:
            return (self.depth > 0.4 * radius_mm) & (self.depth < 0.9 * radius_mm + 1)
        inner = self.depth > radius_mm + 2
        if place is Place.JUXTAVASCULAR:
            return inner & (self.gap > 0.8 * radius_mm) & (self.gap < radius_mm + 1)
        return inner & (self.gap > radius_mm + 2)

    def choose(
        self,
        rng: np.random.Generator,
        place: Place,
        radius_mm: float,
        avoid: Sequence[tuple[Floats, float]] = (),
        within: tuple[Floats, float] | None = None,
    ) -> Floats | None:
        """Draw a place, fractional index; None where there is no room.

        Parameters
        ----------
        avoid
            Centres (mm from the first voxel, (z, y, x)) and radii of what must not be touched.
        within
            Centre and radius of the ball in which the place must lie; None for anywhere.
        """
        fits = self.fitting(place, radius_mm)
        if within is not None:
            fits &= np.linalg.norm(self.millimetres - within[0], axis=1) < within[1]
        for centre, radius in avoid:
            fits &= np.linalg.norm(self.millimetres - centre, axis=1) > radius + radius_mm + 5
        options = np.flatnonzero(fits)
        if not len(options):
            return None
        return np.asarray(self.points[rng.choice(options)] + rng.uniform(-0.5, 0.5, 3), np.float64)


PLACES: tuple[tuple[Place, float], ...] = (
    (Place.FREE, 0.5),
    (Place.JUXTAVASCULAR, 0.25),
    (Place.JUXTAPLEURAL, 0.25),
)
"""How often each is tried."""

TRIES = 6
"""Places of a kind that are tried for a nodule."""


def random_place(rng: np.random.Generator) -> Place:
    """Draw by `PLACES`."""
    kinds, shares = zip(*PLACES, strict=True)
    return Place(kinds[int(rng.choice(len(kinds), p=shares))])


def make_case(
    seed: int,
    background: Background,
    implants: Sequence[Implant],
    *,
    count: int = 8,
    scale: tuple[float, float] = (0.8, 1.25),
    smallest_mm: float = 3.0,
    places: Places | None = None,
) -> Case:
    """Paste nodules into a scan; the same arguments give the same voxels.

    Parameters
    ----------
    seed
        Draws nodules, places, poses and noise.
    background
        Where to.
    implants
        What to draw from, without repetition within the case.
    count
        How many; fewer where there is no room.
    scale
        Bounds of the random enlargement.
    smallest_mm
        No nodule is made smaller than this (an implant that would be is not drawn).
    places
        Of the background, where they are known already: saves a second.

    Returns
    -------
    Case
        Its volume has a series UID of its own.
    """
    rng = np.random.default_rng(seed)
    volume, spacing = background.volume, background.volume.spacing_mm
    field = background.lungs.labels > 0
    places = places or Places(volume.array, field, spacing)
    canvas = Canvas(volume.array.astype(np.float32), field, spacing)
    taken = [
        (volume.lps_to_index(centre) * np.array(spacing), radius + 5.0) for centre, radius in background.known
    ]
    lesions: list[Inserted] = []
    for number in rng.permutation(len(implants)):
        if len(lesions) >= count:
            break
        implant, pose, place = implants[number], random_pose(rng, scale), random_place(rng)
        radius = implant.diameter_mm * pose.scale / 2
        if 2 * radius < smallest_mm:
            continue
        pasted = None
        for _ in range(TRIES):
            at = places.choose(rng, place, radius, taken)
            pasted = None if at is None else paste(canvas, implant, at, pose, rng)
            if at is None or pasted is not None:
                break
        if pasted is None:
            continue
        taken.append((pasted.centre * np.array(spacing), radius))
        x, y, z = (float(v) for v in volume.index_to_lps(pasted.centre))
        lesions.append(Inserted((x, y, z), pasted.diameter_mm, implant.name, place))
    hu = np.clip(np.rint(canvas.array), -1024, 3071).astype(np.int16)
    uid = derived_uid("insertion", background.volume.series_uid, str(seed), *(one.name for one in lesions))
    name = f"{background.name}/{seed}"
    return Case(name, replace(volume, array=hu, series_uid=uid), tuple(lesions), background.known)
