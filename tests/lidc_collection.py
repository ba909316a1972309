"""A small collection in the three-file format of LIDC-IDRI strips, drawn so that grey values tell the truth.

Lung is 20, chest wall 160, vessels 140; a solid nodule is 194 to 210 by its malignancy, a subsolid one 94 to
110. A model that reads grey values and the sentence is an oracle; it never needs masks or ratings.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inference.datasets.lidc_crops import RATINGS

SIDE = 96
LUNG, SUBSOLID, VESSEL, WALL, SOLID = 20, 90, 140, 160, 190
COLUMNS = (
    "patient",
    "nodule",
    "slices",
    "raters_with_mask",
    "match_cost",
    "n_annotations",
    "pixel_spacing",
    "slice_thickness",
)


@dataclass(frozen=True)
class Drawn:
    """One nodule to write."""

    patient: str
    nodule: int
    radius: int
    malignancy: float
    texture: float = 5.0
    readers: int = 4
    trusted: bool = True
    slices: int = 3


def collection(count: int = 24, *, seed: int = 0) -> list[Drawn]:
    """Nodules of many kinds, two for each patient, none of a patient whose number % 5 is 3."""
    rng = np.random.default_rng(seed)
    numbers = [number for number in range(1, 4 * count) if number % 5 != 3]
    return [
        Drawn(
            patient=f"LIDC-IDRI-{numbers[at // 2]:04d}",
            nodule=at % 2,
            radius=int(rng.integers(4, 12)),
            malignancy=float(rng.choice([1, 2, 2.5, 3, 3.5, 4, 5])),
            texture=2.0 if at % 4 == 0 else 5.0,
            readers=1 + at % 4 if at % 3 == 0 else 4,
            slices=3 + at % 3,
        )
        for at in range(count)
    ]


def disc(radius: float, centre: tuple[float, float] = (48, 48)) -> NDArray[np.bool_]:
    y, x = np.ogrid[:SIDE, :SIDE]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


def picture(drawn: Drawn) -> NDArray[np.uint8]:
    image = np.full((drawn.slices, SIDE, SIDE), LUNG, np.uint8)
    image[:, :, :20] = WALL
    image[:, 10:18, 70:76] = VESSEL
    image[:, disc(drawn.radius)] = (SUBSOLID if drawn.texture < 4 else SOLID) + 4 * drawn.malignancy
    return image


def bits(drawn: Drawn) -> NDArray[np.uint8]:
    found = np.zeros((drawn.slices, SIDE, SIDE), np.uint8)
    for reader in range(drawn.readers):
        found[:, disc(drawn.radius)] |= np.uint8(1 << reader)
    return found


def write_collection(directory: Path, nodules: Sequence[Drawn]) -> tuple[Path, Path, Path]:
    """Write the tar, the NumPy archive and the CSV; return their paths."""
    images, masks, table = (
        directory / name for name in ("slices_images.tar", "slices_masks.npz", "slices_nodules.csv")
    )
    rows: dict[str, list[NDArray[np.generic] | str | int]] = {
        "patient": [],
        "nodule": [],
        "slice": [],
        "mask_bits": [],
    }
    with tarfile.open(images, "w") as archive:
        for drawn in nodules:
            stream = io.BytesIO()
            Image.fromarray(picture(drawn).reshape(-1, SIDE)).save(stream, "PNG")
            member = tarfile.TarInfo(f"{drawn.patient}_{drawn.nodule:02d}.png")
            member.size = stream.tell()
            stream.seek(0)
            archive.addfile(member, stream)
            for number, one in enumerate(bits(drawn)):
                for key, value in zip(rows, (drawn.patient, drawn.nodule, number, one), strict=True):
                    rows[key].append(value)
    np.savez_compressed(
        masks,
        patient=np.array(rows["patient"]),
        nodule=np.array(rows["nodule"], np.int16),
        slice=np.array(rows["slice"], np.int16),
        mask_bits=np.array(rows["mask_bits"], np.uint8),
    )
    with table.open("w", encoding="utf-8", newline="") as stream_of_rows:
        writer = csv.DictWriter(
            stream_of_rows,
            (*COLUMNS, *(f"{name}_median" for name in RATINGS)),
        )
        writer.writeheader()
        writer.writerows(_row(drawn) for drawn in nodules)
    return images, masks, table


def _row(drawn: Drawn) -> dict[str, str | int | float]:
    high = drawn.malignancy > 3
    medians = {
        "subtlety": 5 if high else 2,
        "internalStructure": 1,
        "calcification": 6 if high else 3,
        "sphericity": 4,
        "margin": 2 if high else 5,
        "lobulation": 4 if high else 1,
        "spiculation": 5 if high else 1,
        "texture": drawn.texture,
        "malignancy": drawn.malignancy,
    }
    return {
        "patient": drawn.patient,
        "nodule": drawn.nodule,
        "slices": drawn.slices,
        "raters_with_mask": drawn.readers,
        "match_cost": 0.1 if drawn.trusted else 0.9,
        "n_annotations": drawn.readers,
        "pixel_spacing": 0.7,
        "slice_thickness": 1.25,
        **{f"{name}_median": value for name, value in medians.items()},
    }
