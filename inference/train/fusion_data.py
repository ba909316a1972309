"""What `inference.train.fusion` trains on: nodules exported by CADx and synthetic records for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.datasets.lidc_crops import NoduleCrop
from inference.fusion import EMBEDDING, NoduleFacts, TextTower, table_rows
from inference.measure import measure
from inference.train.records import RecordSource, with_gaps
from inference.types import SourceFrame, Volume

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """Nodules of one split whose rating isn't 3, n items each.

    Parameters
    ----------
    patient
        Index into the sorted patients of the split.
    names
        Of these patients.
    malignant
        bool: rated above 3.
    logit
        Of the image alone, as exported.
    embedding
        float32, shape (n, 256).
    facts
        For Brock; empty where the export knows no diameters.
    patient_malignant
        bool, one for each patient: has a malignant nodule.
    """

    patient: NDArray[np.intp]
    names: tuple[str, ...]
    malignant: NDArray[np.bool_]
    logit: Floats
    embedding: NDArray[np.float32]
    facts: tuple[NoduleFacts, ...]
    patient_malignant: NDArray[np.bool_]


def read_export(path: Path, diameters: Mapping[str, float] | None = None) -> dict[str, Samples]:
    """Read the NPZ that the training of CADx exports.

    Parameters
    ----------
    path
        Arrays ``patient``, ``nodule`` (name), ``split`` (train, val, test), ``image_logit``, ``embedding``
        (n, 256) and ``malignancy`` (mean rating, NaN where not rated).
    diameters
        Longest diameter in mm by name of the nodule, for Brock; None leaves Brock out.

    Raises
    ------
    ValueError
        An array is missing or of another length, a patient is in two splits, or a nodule has no diameter.
    """
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    needed = ("patient", "nodule", "split", "image_logit", "embedding", "malignancy")
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(f"{path.name} has no {', '.join(missing)}")
    count = len(found["patient"])
    if any(len(found[name]) != count for name in needed) or found["embedding"].shape[1:] != (EMBEDDING,):
        raise ValueError(f"the arrays of {path.name} don't belong together")
    pairs = {(str(p), str(s)) for p, s in zip(found["patient"], found["split"], strict=True)}
    if len({patient for patient, _ in pairs}) != len(pairs):
        raise ValueError(f"{path.name} has a patient in two splits")
    if diameters is not None:
        unknown = [name for name in found["nodule"].tolist() if name not in diameters]
        if unknown:
            raise ValueError(f"no diameter of {len(unknown)} nodules, such as {unknown[0]}")
        found["diameter_mm"] = np.array([diameters[name] for name in found["nodule"].tolist()])
    return {name: _samples(found, np.char.equal(found["split"], name)) for name in ("train", "val", "test")}


def _samples(found: dict[str, NDArray[Any]], here: NDArray[np.bool_]) -> Samples:
    rating = found["malignancy"].astype(float)
    used = here & np.isfinite(rating) & (rating != 3)
    names, patient = np.unique(found["patient"][used], return_inverse=True)
    malignant = rating[used] > 3
    of_patient = np.zeros(len(names), bool)
    np.logical_or.at(of_patient, patient, malignant)
    facts: tuple[NoduleFacts, ...] = ()
    if "diameter_mm" in found:
        every, counts = np.unique(found["patient"][here], return_counts=True)
        number = dict(zip(every.tolist(), counts.tolist(), strict=True))
        facts = tuple(
            NoduleFacts(float(diameter), number[name])
            for diameter, name in zip(
                found["diameter_mm"][used], found["patient"][used].tolist(), strict=True
            )
        )
    return Samples(
        patient,
        tuple(names.tolist()),
        malignant,
        found["image_logit"][used].astype(float),
        found["embedding"][used].astype(np.float32),
        facts,
        of_patient,
    )


def measured_diameters(crops: Sequence[NoduleCrop]) -> dict[str, float]:
    """Longest diameter of each nodule's consensus mask by name, mm, measured as a finding's."""
    found = {}
    for crop in crops:
        mask = crop.consensus()
        if crop.spacing_mm is None or not mask.any():
            continue
        affine = np.eye(4)
        affine[:3, :3] = np.diag(crop.spacing_mm[::-1])[:, ::-1]
        frames = tuple(SourceFrame("", str(number)) for number in range(len(mask)))
        grid = Volume(np.zeros(mask.shape, np.int16), affine, "", "", "", frames)
        found[crop.name] = measure(grid, mask, (0, 0, 0)).measurements.long_axis_mm
    return found


@dataclass(frozen=True)
class Draw:
    """Records of n nodules as the network takes them.

    Parameters
    ----------
    table, text
        float32, shapes (n, len(TABLE)) and (n, 256); no text without a text tower.
    has_record
        bool, shape (n,): at least one item is known.
    log_ratio
        Exact log likelihood ratio of each nodule's complete record, shape (n,).
    """

    table: Tensor
    text: Tensor | None
    has_record: Tensor
    log_ratio: Floats

    def rows(self, at: Tensor) -> Draw:
        """The records of these nodules."""
        text = None if self.text is None else self.text[at]
        return Draw(self.table[at], text, self.has_record[at], self.log_ratio[at.numpy()])


class Drawer:
    """Draws records for samples; the same seed gives the same draws."""

    def __init__(self, source: RecordSource, tower: TextTower | None, seed: int) -> None:
        self._source, self._tower = source, tower
        self._rng = np.random.default_rng(seed)

    def draw(self, samples: Samples, missing: float, *, brock: bool = True, blind: bool = False) -> Draw:
        """One record for each patient, an item missing with the chance `missing`.

        Parameters
        ----------
        brock
            False leaves Brock's estimate out of the table: it also knows the size of the nodule.
        blind
            True draws without regard to the truth.
        """
        truth = samples.patient_malignant & (not blind)
        people, log_ratio = self._source.draw(truth, self._rng)
        records = [with_gaps(people.record(row), missing, self._rng) for row in range(len(people))]
        mine = [records[row] for row in samples.patient]
        facts: Sequence[NoduleFacts | None] = samples.facts if brock and samples.facts else [None] * len(mine)
        text = None
        if self._tower is not None:
            read = self._tower([record.sentence() for record in records])  # (patients, 256)
            text = torch.from_numpy(read[samples.patient])
        known = torch.tensor([not record.is_empty for record in mine])
        return Draw(torch.from_numpy(table_rows(mine, facts)), text, known, log_ratio[samples.patient])
