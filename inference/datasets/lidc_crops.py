"""LIDC-IDRI nodules as strips of 96 x 96 slices with the masks and ratings of up to four readers.

A collection is three files: a tar of PNG strips (``PATIENT_NN.png``, the n slices of one nodule stacked
downwards, 8 bit, min-max scaled per slice), a NumPy archive of mask bits, and a CSV of spacing and ratings.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 96
MAX_MATCH_COST = 0.4
RATINGS = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)

Bits = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Split(StrEnum):
    """Patient-disjoint parts of the collection."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    HIDDEN = "hidden"


def split_of(patient: str) -> Split:
    """The part a patient belongs to, from the number that ends the identifier.

    Hidden (number % 5 == 3) is kept for acceptance; test (number % 10 == 0) is for reported figures only;
    val (number % 10 == 5) is for selection and calibration.

    Raises
    ------
    ValueError
        The identifier ends in no number.
    """
    number = int(patient.rsplit("-", 1)[-1])
    if number % 5 == 3:
        return Split.HIDDEN
    if number % 10 == 0:
        return Split.TEST
    return Split.VAL if number % 10 == 5 else Split.TRAIN


@dataclass(frozen=True, slots=True)
class NoduleCrop:
    """One nodule as its readers drew it.

    Parameters
    ----------
    patient, nodule
        Its name: ``LIDC-IDRI-0001`` and the running number there.
    image
        uint8, shape (n, 96, 96), axes (z, y, x): each slice scaled from its own minimum to its maximum.
    mask_bits
        uint8, shape (n, 96, 96): bit r is set where reader r drew the voxel.
    readers
        How many readers drew it.
    spacing_mm
        (z, y, x); z is the slice thickness of the scan. None where the collection doesn't know.
    ratings
        Median of the readers by name (`RATINGS`), as far as known. Truth, never an input at inference.
    is_trusted
        The match of drawing and ratings is certain.
    """

    patient: str
    nodule: int
    image: NDArray[np.uint8]
    mask_bits: Bits
    readers: int
    spacing_mm: tuple[float, float, float] | None
    ratings: Mapping[str, float] = field(default_factory=dict)
    is_trusted: bool = False

    @property
    def name(self) -> str:
        """``PATIENT_NN``, as its PNG is called."""
        return f"{self.patient}_{self.nodule:02d}"

    def reader_masks(self) -> Mask:
        """Masks of the readers who drew it, bool, shape (readers, n, 96, 96)."""
        bits = [bit for bit in range(8) if (self.mask_bits & (1 << bit)).any()]
        return np.stack([(self.mask_bits & (1 << bit)) > 0 for bit in bits])

    def agreement(self) -> NDArray[np.float32]:
        """Share of its readers that drew each voxel, float32, shape (n, 96, 96)."""
        return np.asarray(self.reader_masks().mean(0, dtype=np.float32))

    def consensus(self) -> Mask:
        """What at least half of its readers drew, bool, shape (n, 96, 96)."""
        return np.asarray(self.agreement() >= 0.5)


def read_crops(images: Path, masks: Path, table: Path) -> tuple[NoduleCrop, ...]:
    """Read a collection.

    Parameters
    ----------
    images, masks, table
        The tar, the NumPy archive and the CSV.

    Returns
    -------
    tuple of NoduleCrop
        In the order of the table.

    Raises
    ------
    ValueError
        The three files don't belong together: a strip is missing or has another number of slices than its
        masks.
    OSError
        A file can't be read.
    """
    strips = dict(_read_strips(images))
    bits = _read_bits(masks)
    crops: list[NoduleCrop] = []
    with table.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            name = f"{row['patient']}_{int(row['nodule']):02d}"
            if name not in strips or name not in bits:
                raise ValueError(f"{table.name} names {name}, which has no strip or no masks")
            if strips[name].shape != bits[name].shape:
                raise ValueError(f"{name}: {len(strips[name])} slices but {len(bits[name])} masks")
            crops.append(_crop(row, strips[name], bits[name]))
    return tuple(crops)


def _read_strips(images: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    with tarfile.open(images) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            if stream is None or not member.name.endswith(".png"):
                continue
            with Image.open(io.BytesIO(stream.read())) as picture:
                strip = np.asarray(picture.convert("L"), dtype=np.uint8)
            if strip.shape[1] != SIDE or strip.shape[0] % SIDE:
                raise ValueError(f"{member.name}: {strip.shape} is no column of {SIDE} x {SIDE} slices")
            yield Path(member.name).stem, strip.reshape(-1, SIDE, SIDE)


def _read_bits(masks: Path) -> dict[str, Bits]:
    with np.load(masks, allow_pickle=False) as archive:
        patients, nodules = archive["patient"], archive["nodule"]
        slices, bits = archive["slice"], archive["mask_bits"]
    order = np.lexsort((slices, nodules, patients))
    names = np.array([f"{p}_{n:02d}" for p, n in zip(patients[order], nodules[order], strict=True)])
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    return {
        str(names[start]): bits[order[start:stop]]
        for start, stop in zip(starts, np.r_[starts[1:], len(names)], strict=True)
    }


def _crop(row: Mapping[str, str], image: NDArray[np.uint8], bits: Bits) -> NoduleCrop:
    ratings = {name: float(row[f"{name}_median"]) for name in RATINGS if row.get(f"{name}_median")}
    readers = sum(bool((bits & (1 << bit)).any()) for bit in range(8))
    pitch, thickness = row.get("pixel_spacing"), row.get("slice_thickness")
    return NoduleCrop(
        patient=row["patient"],
        nodule=int(row["nodule"]),
        image=image,
        mask_bits=bits,
        readers=readers,
        spacing_mm=(float(thickness), float(pitch), float(pitch)) if pitch and thickness else None,
        ratings=ratings,
        is_trusted=bool(ratings)
        and float(row.get("match_cost") or "inf") < MAX_MATCH_COST
        and row.get("raters_with_mask") == row.get("n_annotations"),
    )
