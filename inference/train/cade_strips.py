"""Nodules ready to be sampled: grey values, soft targets and what else is in the picture."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.datasets.lidc_crops import SIDE, NoduleCrop
from inference.intensity import HounsfieldEstimate, window

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

OTHERS: Final = ("chest wall", "vessel", "bone")
"""Structures with a rule; label = position + 1."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One nodule, ready to be sampled.

    Parameters
    ----------
    crop
        As read.
    grey
        -1000..500 HU as 0..255, shape (n, 96, 96).
    target
        Mean of agreement and consensus of the readers, 0..255, same shape: 128 and more is the consensus.
    structures
        0 or position in `OTHERS` + 1, same shape.
    diameter_mm
        Of the circle with the area of the consensus on its largest slice.
    centre
        (y, x) of the consensus, pixels.
    weight
        How often it is drawn, in relation.
    has_ends
        The strip goes on beyond the nodule along z, and only its middle is known.
    """

    crop: NoduleCrop
    grey: Bytes
    target: Bytes
    structures: Bytes
    diameter_mm: float
    centre: tuple[float, float]
    weight: float
    has_ends: bool = False

    @property
    def pitch_mm(self) -> float:
        """Distance of neighbouring pixels, mm."""
        return pitch_of(self.crop)


def pitch_of(crop: NoduleCrop) -> float:
    """Pixel distance, mm; 0.68 (the median of the collection) where it isn't known."""
    return crop.spacing_mm[1] if crop.spacing_mm else 0.68


def build_strip(crop: NoduleCrop, estimate: HounsfieldEstimate) -> Strip | None:
    """Prepare a nodule; None where half of the readers agree on no voxel."""
    agreement = crop.agreement()
    consensus = agreement >= 0.5
    if not consensus.any():
        return None
    hu = estimate.hounsfield(crop.image)
    diameter, centre = _measured(consensus, pitch_of(crop))
    return Strip(
        crop=crop,
        grey=np.asarray(np.round(255 * window(hu)), dtype=np.uint8),
        target=np.asarray(np.round(127.5 * (agreement + consensus)), dtype=np.uint8),
        structures=label_structures(hu, agreement > 0, pitch_of(crop)),
        diameter_mm=diameter,
        centre=centre,
        weight={1: 0.5, 2: 0.7}.get(crop.readers, 1.0),
    )


def _measured(mask: NDArray[np.bool_], pitch_mm: float) -> tuple[float, tuple[float, float]]:
    """Diameter of the disc with the greatest area of a slice, mm, and the middle (y, x), pixels."""
    area = mask.sum((1, 2)).max() * pitch_mm**2
    _, rows, columns = np.nonzero(mask)
    return float(2 * np.sqrt(area / np.pi)), (float(rows.mean()), float(columns.mean()))


def read_cubes(cubes: Path, table: Path) -> tuple[Strip, ...]:
    """Read nodules in cubes of 51 x 51 x 51 mm, which show where a nodule ends along z.

    Parameters
    ----------
    cubes
        NumPy archive: ``name``; ``image`` uint8, (n, 51, 51, 51), axes (z, y, x), 1 mm,
        HU = value / 255 * 1600 - 1200; ``mask`` of one reader, bits packed.
    table
        CSV with ``name`` and ``patient``.

    Returns
    -------
    tuple of Strip
        Each cube three times: with all slices, every second and every third one. Only its middle of 51 mm is
        image, the rest is mirrored.
    """
    with table.open(encoding="utf-8", newline="") as stream:
        patients = {row["name"]: row["patient"] for row in csv.DictReader(stream)}
    with np.load(cubes, allow_pickle=False) as archive:
        names, images, packed = archive["name"], archive["image"], archive["mask"]
    strips: list[Strip] = []
    for number, (name, image, bits) in enumerate(zip(names, images, packed, strict=True)):
        mask = np.unpackbits(bits)[: image.size].reshape(image.shape)
        strips += [_cube_strip(patients[str(name)], number, image, mask, step) for step in (1, 2, 3)]
    return tuple(strips)


def _cube_strip(patient: str, number: int, image: Bytes, mask: Bytes, step: int) -> Strip:
    """Every ``step``-th slice of a cube, from 5 of them below the nodule to 5 above."""
    slices = np.flatnonzero(mask.any((1, 2)))
    middle = int(slices[mask[slices].sum((1, 2)).argmax()])
    chosen = np.arange(middle % step, len(image), step)
    near = (chosen >= slices[0] - 5 * step) & (chosen <= slices[-1] + 5 * step)
    before = (SIDE - image.shape[1]) // 2
    edges = ((0, 0), *((before, SIDE - image.shape[1] - before),) * 2)
    grey = np.pad(image[chosen[near]], edges, mode="symmetric")
    bits = np.pad(mask[chosen[near]], edges)
    diameter, centre = _measured(bits > 0, 1.0)
    return Strip(
        crop=NoduleCrop(patient, 1000 + number, grey, bits, 1, (float(step), 1.0, 1.0)),
        grey=np.asarray(np.round(255 * window(grey / 255.0 * 1600 - 1200)), dtype=np.uint8),
        target=np.asarray(255 * bits, dtype=np.uint8),
        structures=np.zeros_like(bits),
        diameter_mm=diameter,
        centre=centre,
        weight=0.7,
        has_ends=True,
    )


def label_structures(hu: Floats, nodule: NDArray[np.bool_], pitch_mm: float) -> Bytes:
    """Other structures by simple rules, slice by slice.

    Chest wall (and mediastinum): soft tissue of at least 200 mm2 that touches the border of the crop. Bone:
    above 220 HU within it. Vessel: any other soft tissue of 5 to 400 mm2. Never within 1.5 mm of the nodule.

    Parameters
    ----------
    hu
        Shape (n, 96, 96).
    nodule
        What any reader drew.

    Returns
    -------
    numpy.ndarray
        uint8, same shape: 0 or position in `OTHERS` + 1.
    """
    out = np.zeros(hu.shape, np.uint8)
    margin = max(1, round(1.5 / pitch_mm))
    for index, one in enumerate(hu):
        free = ~ndimage.binary_dilation(nodule[index], iterations=margin) if nodule[index].any() else True
        parts, count = ndimage.label((one > -400) & free)
        if not count:
            continue
        area = np.bincount(parts.ravel()) * pitch_mm**2
        edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        is_wall = np.zeros(count + 1, bool)
        is_wall[edge] = True
        is_wall &= area >= 200
        is_vessel = ~is_wall & (area >= 5) & (area <= 400)
        is_wall[0] = is_vessel[0] = False
        out[index][is_wall[parts]] = 1
        out[index][is_vessel[parts]] = 2
        bones, number = ndimage.label((one > 220) & is_wall[parts])
        is_bone = np.bincount(bones.ravel(), minlength=number + 1) * pitch_mm**2 >= 12
        is_bone[0] = False
        out[index][is_bone[bones]] = 3
    return out
