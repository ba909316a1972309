"""The mask of one candidate, grown on the source grid and freed from vessels and pleura.

The threshold lies about half-way between the candidate and the parenchyma around it, so that solid and
ground-glass nodules are cut at their own edge; an opening with a ball in proportion to the candidate
takes the vessels off (Kostis et al., IEEE TMI 22:1259-1274, 2003).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.types import Index

PARENCHYMA_HU = -860.0
OPENING_SHARE = 0.42
THRESHOLD_SHARES = (0.45, 0.65)  # of the way from parenchyma to core; the second where the first runs out
MOST_SPREAD = 6.0
SUBSOLID_MARGIN_HU = 190.0
HALO_MM = 2.0
HAZE_HU = -760.0

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Segment:
    """A grown mask and what it was cut from.

    Parameters
    ----------
    mask
        bool, cropped to `origin`, on the source grid.
    origin
        Index in the volume of ``mask[0, 0, 0]``.
    inscribed_mm
        Radius of the largest ball inside.
    attached
        Share of the surface that was cut from a vessel or other tissue of the same density, 0..1.
    border
        Share of the surface that lies on the edge of the lung field, 0..1.
    contrast_hu
        Mean inside less mean of the parenchyma around.
    leaked
        It fills the box in which it was grown: not a nodule of this scale.
    """

    mask: Mask
    origin: Index
    inscribed_mm: float
    attached: float
    border: float
    contrast_hu: float
    leaked: bool


@dataclass(frozen=True)
class _Box:
    """A piece of the volume around a seed."""

    hu: Floats
    field: Mask
    seed: tuple[int, int, int]
    distance: Floats  # from the seed, mm
    spacing: tuple[float, float, float]


def grow(
    array: NDArray[np.int16] | Floats,
    field: Mask,
    seed: NDArray[np.float64],
    radius_mm: float,
    spacing_mm: tuple[float, float, float],
) -> Segment | None:
    """Grow the mask of a blob.

    Parameters
    ----------
    array
        HU, shape (z, y, x).
    field
        Lung field, bool, same shape.
    seed
        Blob centre, fractional index (z, y, x).
    radius_mm
        Radius that the blob's scale suggests.
    spacing_mm
        Voxel pitch (z, y, x).

    Returns
    -------
    Segment or None
        None where nothing stands out from the parenchyma at the seed.
    """
    where = _window(array.shape, seed, 2.2 * radius_mm + 7, spacing_mm)
    box = _cut_box(array, field, where, seed, spacing_mm)
    near = (box.distance <= max(0.5 * radius_mm, 0.75 * max(spacing_mm))) & box.field
    dark = box.hu[box.field & (box.hu < -600)]
    if not near.any():
        return None
    background = float(np.median(dark)) if dark.size > 50 else PARENCHYMA_HU
    core_hu = min(float(np.percentile(box.hu[near], 75)), 60.0)
    if core_hu < background + 120:
        return None
    chosen = None
    for share in THRESHOLD_SHARES:
        region = _region(box, background + share * (core_hu - background), radius_mm)
        chosen = chosen or region
        if region is not None and not region.leaked and region.spread < MOST_SPREAD:
            chosen = region
            break
    if chosen is None:
        return None
    if core_hu > background + 3 * SUBSOLID_MARGIN_HU and _hazy_rim(chosen, box):
        soft = _region(box, background + SUBSOLID_MARGIN_HU, radius_mm)
        chosen = soft if soft is not None and _has_halo(chosen, soft, box) else chosen
    return _describe(chosen, box, (where[0].start, where[1].start, where[2].start))


@dataclass(frozen=True)
class _Region:
    """An opened region in a box, the tissue it was cut from, and its inscribed radius."""

    opened: Mask
    tissue: Mask
    inscribed_mm: float
    voxel_mm3: float

    @property
    def spread(self) -> float:
        """Volume in largest inscribed balls: 1 for a ball, much more for a tree of vessels."""
        return float(self.opened.sum() * self.voxel_mm3 / (4 / 3 * np.pi * self.inscribed_mm**3))

    @property
    def leaked(self) -> bool:
        """Whether the region reaches an in-plane face of its box."""
        planes = (self.opened[:, 0], self.opened[:, -1], self.opened[:, :, 0], self.opened[:, :, -1])
        return any(bool(plane.any()) for plane in planes)


def _window(
    shape: tuple[int, ...], seed: NDArray[np.float64], half_mm: float, spacing: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    z, y, x = (
        slice(max(round(float(at - half_mm / d)), 0), min(round(float(at + half_mm / d)) + 1, size))
        for at, d, size in zip(seed, spacing, shape, strict=True)
    )
    return z, y, x


def _cut_box(
    array: NDArray[np.int16] | Floats,
    field: Mask,
    where: tuple[slice, slice, slice],
    seed: NDArray[np.float64],
    spacing: tuple[float, float, float],
) -> _Box:
    hu = np.clip(array[where].astype(np.float32), -1024, 400)
    # noise of sharp kernels; no more than half a voxel of blur
    hu = ndimage.gaussian_filter(hu, [min(0.6 / d, 0.8) if d < 2 else 0.0 for d in spacing], mode="nearest")
    parts = [
        ((np.arange(s.start, s.stop) - at) * d).astype(np.float32) ** 2
        for s, at, d in zip(where, seed, spacing, strict=True)
    ]
    distance = np.sqrt(parts[0][:, None, None] + parts[1][None, :, None] + parts[2][None, None, :])
    at = tuple(
        int(np.clip(round(float(v)) - s.start, 0, s.stop - s.start - 1))
        for v, s in zip(seed, where, strict=True)
    )
    return _Box(hu, field[where], (at[0], at[1], at[2]), distance, spacing)


def _region(box: _Box, threshold: float, radius_mm: float) -> _Region | None:
    """Tissue above the threshold that belongs to the seed, opened in proportion to its thickness."""
    tissue = (box.hu > threshold) & box.field
    labels, _ = ndimage.label(tissue)
    reach = np.where(tissue, box.distance, np.inf)
    nearest = np.unravel_index(int(reach.argmin()), reach.shape)
    if reach[nearest] > max(0.6 * radius_mm, 1.5 * max(box.spacing)):
        return None
    label = int(labels[nearest])
    place = tuple(  # one voxel of margin: nothing outside the piece matters from here on
        slice(max(p.start - 1, 0), p.stop + 1)
        for p in ndimage.find_objects(labels, max_label=label)[label - 1]
    )
    tissue = np.zeros_like(tissue)
    tissue[place] = ndimage.binary_fill_holes(labels[place] == label)
    opened, inscribed = _open(tissue[place], box.distance[place], radius_mm, box.spacing)
    if opened is None:
        return None
    whole = np.zeros_like(tissue)
    whole[place] = opened
    return _Region(whole, tissue, inscribed, float(np.prod(box.spacing)))


def _open(
    tissue: Mask, distance: Floats, radius_mm: float, spacing: tuple[float, float, float]
) -> tuple[Mask | None, float]:
    """Open with a ball of a share of the thickness near the seed; that part, and the thickness."""
    depth = ndimage.distance_transform_edt(np.pad(tissue, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    central = np.where(distance <= max(0.8 * radius_mm, 1.2 * max(spacing)), depth, 0)
    peak = np.unravel_index(int(central.argmax()), central.shape)
    inscribed = float(central[peak])
    if inscribed <= 0:
        return None, 0.0
    cut = OPENING_SHARE * inscribed
    labels, _ = ndimage.label(depth > cut)
    label = int(labels[peak])
    place = tuple(
        slice(max(p.start - int(1.1 * cut / d) - 1, 0), p.stop + int(1.1 * cut / d) + 1)
        for p, d in zip(ndimage.find_objects(labels, max_label=label)[label - 1], spacing, strict=True)
    )
    near = ndimage.distance_transform_edt(labels[place] != label, sampling=spacing) <= 1.1 * cut
    opened = np.zeros_like(tissue)
    opened[place] = tissue[place] & near
    return opened, inscribed


def _hazy_rim(firm: _Region, box: _Box) -> bool:
    """Whether a band beyond the partial-volume edge is as dense as ground glass."""
    once = ndimage.binary_dilation(firm.opened, iterations=2)
    band = ndimage.binary_dilation(once, iterations=2) & ~once & box.field & ~firm.tissue
    return bool(band.any() and np.median(box.hu[band]) > HAZE_HU)


def _has_halo(firm: _Region, soft: _Region, box: _Box) -> bool:
    """Whether the softer region is a ground-glass halo, and not vessels or partial volume."""
    if soft.leaked or soft.inscribed_mm < firm.inscribed_mm + HALO_MM:
        return False
    volume = float(np.prod(box.spacing))
    radius = [(3 * region.opened.sum() * volume / (4 * np.pi)) ** (1 / 3) for region in (firm, soft)]
    shell = soft.opened & ~ndimage.binary_dilation(firm.opened)
    return bool(radius[1] > radius[0] + HALO_MM and shell.any() and -760 < box.hu[shell].mean() < -350)


def _describe(region: _Region, box: _Box, corner: Index) -> Segment | None:
    if not region.opened.any():
        return None
    (tight,) = ndimage.find_objects(region.opened.astype(np.uint8))
    wide = tuple(slice(max(s.start - 5, 0), s.stop + 5) for s in tight)
    opened, tissue, field = (part[wide] for part in (region.opened, region.tissue, box.field))
    hu = box.hu[wide]
    surface = opened & ~ndimage.binary_erosion(opened, border_value=1)
    area = max(int(surface.sum()), 1)
    once = ndimage.binary_dilation(opened)
    ring = ndimage.binary_dilation(once, iterations=2) & ~once & field & ~tissue
    around = float(hu[ring].mean()) if ring.any() else PARENCHYMA_HU
    other = ndimage.binary_dilation(tissue & ~opened)
    outside = ndimage.binary_dilation(~field)
    z, y, x = (int(s.start) + c for s, c in zip(tight, corner, strict=True))
    return Segment(
        mask=np.ascontiguousarray(region.opened[tight]),
        origin=(z, y, x),
        inscribed_mm=region.inscribed_mm,
        attached=float((surface & other).sum() / area),
        border=float((surface & outside).sum() / area),
        contrast_hu=float(hu[opened].mean()) - around,
        leaked=region.leaked,
    )
