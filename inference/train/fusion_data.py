"""What a fusion is trained on: nodules as CADx saw them, and synthetic records for their patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.datasets.lidc_crops import RATINGS
from inference.fusion import EMBEDDING, ImageParts, NoduleFacts, RecordParts, TextTower, table_rows
from inference.record import ClinicalRecord
from inference.train.records import Dependence, RecordSource, disease_chance, with_gaps

Floats = NDArray[np.float64]

PARTS = ("train", "val", "test")
_ARRAYS = (
    "patient",
    "nodule",
    "split",
    "image_logit",
    "embedding",
    "views",
    "ratings",
    "malignancy",
    "diameter_mm",
)


@dataclass(frozen=True)
class Samples:
    """Nodules of one split whose mean rating isn't 3, n items each.

    Parameters
    ----------
    patient
        Index into the sorted patients of the split.
    names
        Of these patients.
    malignant
        bool: rated above 3.
    logit
        Of the image alone.
    embedding, views
        float32, shapes (n, 256) and (n, 9, 256).
    ratings
        Means of the readers, shape (n, 9): targets, never inputs.
    facts
        For Brock.
    patient_malignant
        bool, one for each patient: has a malignant nodule.
    patient_chance
        One for each patient: `inference.train.records.disease_chance`, which reads no rating of malignancy.
    """

    patient: NDArray[np.intp]
    names: tuple[str, ...]
    malignant: NDArray[np.bool_]
    logit: Floats
    embedding: NDArray[np.float32]
    views: NDArray[np.float32]
    ratings: NDArray[np.float32]
    facts: tuple[NoduleFacts, ...]
    patient_malignant: NDArray[np.bool_]
    patient_chance: Floats

    @property
    def image(self) -> ImageParts:
        """What the mechanisms see of the images."""
        return ImageParts(torch.from_numpy(self.embedding), torch.from_numpy(self.views))

    def drawn(self, rows: NDArray[np.intp]) -> Samples:
        """Some nodules, each as a patient of its own."""
        return replace(
            self,
            patient=np.arange(len(rows)),
            names=tuple(f"{number}" for number in range(len(rows))),
            malignant=self.malignant[rows],
            logit=self.logit[rows],
            embedding=self.embedding[rows],
            views=self.views[rows],
            ratings=self.ratings[rows],
            facts=tuple(self.facts[row] for row in rows),
            patient_malignant=self.malignant[rows],
            patient_chance=self.patient_chance[self.patient[rows]],
        )


def read_features(path: Path) -> dict[str, Samples]:
    """Read the NPZ of `inference.train.fusion_features`.

    Returns
    -------
    dict
        The parts ``train``, ``val`` and ``test``, which share no patient.

    Raises
    ------
    ValueError
        An array is missing or of another shape, or a patient is in two splits.
    """
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    if missing := [name for name in _ARRAYS if name not in found]:
        raise ValueError(f"{path.name} has no {', '.join(missing)}")
    count = len(found["patient"])
    shapes = {"embedding": (EMBEDDING,), "views": (9, EMBEDDING), "ratings": (len(RATINGS),)}
    if any(found[name].shape != (count, *shapes.get(name, ())) for name in _ARRAYS):
        raise ValueError(f"the arrays of {path.name} don't belong together")
    pairs = {(str(p), str(s)) for p, s in zip(found["patient"], found["split"], strict=True)}
    if len({patient for patient, _ in pairs}) != len(pairs):
        raise ValueError(f"{path.name} has a patient in two splits")
    return {name: _samples(found, np.char.equal(found["split"], name)) for name in PARTS}


def _samples(found: dict[str, NDArray[Any]], here: NDArray[np.bool_]) -> Samples:
    rating = found["malignancy"].astype(float)
    used = here & np.isfinite(rating) & (rating != 3)
    names, patient = np.unique(found["patient"][used], return_inverse=True)
    malignant = rating[used] > 3
    of_patient = np.zeros(len(names), bool)
    np.logical_or.at(of_patient, patient, malignant)
    diameters = found["diameter_mm"].astype(float)
    every = {name: here & (found["patient"] == name) for name in names.tolist()}
    return Samples(
        patient=patient,
        names=tuple(names.tolist()),
        malignant=malignant,
        logit=found["image_logit"][used].astype(float),
        embedding=found["embedding"][used].astype(np.float32),
        views=found["views"][used].astype(np.float32),
        ratings=found["ratings"][used].astype(np.float32),
        facts=tuple(
            NoduleFacts(float(diameter), int(every[name].sum()))
            for diameter, name in zip(diameters[used], found["patient"][used].tolist(), strict=True)
        ),
        patient_malignant=of_patient,
        patient_chance=np.array([_chance(found, mine) for mine in every.values()]),
    )


def _chance(found: dict[str, NDArray[Any]], mine: NDArray[np.bool_]) -> float:
    """Of all rated nodules of one patient."""
    ratings = found["ratings"][mine].astype(float)
    spiculation, texture = (ratings[:, RATINGS.index(name)] for name in ("spiculation", "texture"))
    return disease_chance(found["diameter_mm"][mine].astype(float), spiculation, texture)


@dataclass(frozen=True)
class Draw:
    """Records of n nodules as a mechanism takes them.

    Parameters
    ----------
    table, text
        float32, shapes (n, len(TABLE)) and (n, 256); no text without a text tower.
    has_record
        bool, shape (n,): at least one item is known.
    log_ratio
        Exact log likelihood ratio of each nodule's complete record for the hidden state, shape (n,).
    """

    table: Tensor
    text: Tensor | None
    has_record: Tensor
    log_ratio: Floats

    def rows(self, at: Tensor) -> Draw:
        """The records of these nodules."""
        text = None if self.text is None else self.text[at]
        return Draw(self.table[at], text, self.has_record[at], self.log_ratio[at.numpy()])

    def parts(self, has_table: Tensor | None = None, has_text: Tensor | None = None) -> RecordParts:
        """For a mechanism; text and table count where something is known and the given rows say so."""
        table = self.has_record if has_table is None else self.has_record & has_table
        text = self.has_record if has_text is None else self.has_record & has_text
        return RecordParts(self.table, self.text, table, text)


class Drawer:
    """Draws records for samples; the same seed gives the same draws."""

    def __init__(
        self,
        source: RecordSource,
        tower: TextTower | None,
        seed: int,
        dependence: Dependence = Dependence.OUTCOME,
    ) -> None:
        self._source, self._tower, self._dependence = source, tower, dependence
        self._rng = np.random.default_rng(seed)

    def draw(self, samples: Samples, missing: float, *, brock: bool = True, blind: bool = False) -> Draw:
        """One record for each patient, an item missing with the chance `missing`.

        Parameters
        ----------
        brock
            False leaves Brock's estimate out of the table: it also knows the size of the nodule.
        blind
            True draws with `Dependence.NONE`.
        """
        return self.draw_both(samples, missing, brock=brock, blind=blind)[0]

    def draw_both(
        self, samples: Samples, missing: float, *, brock: bool = True, blind: bool = False
    ) -> tuple[Draw, Draw]:
        """As `draw`, and the same records with all of their items."""
        dependence = Dependence.NONE if blind else self._dependence
        people, log_ratio = self._source.draw(hidden_states(samples, dependence, self._rng), self._rng)
        whole = [people.record(row) for row in range(len(people))]
        gaps = [with_gaps(record, missing, self._rng) for record in whole]
        ratio = log_ratio[samples.patient]
        found = self._encoded(samples, gaps, ratio, brock=brock)
        return found, found if missing == 0 else self._encoded(samples, whole, ratio, brock=brock)

    def _encoded(
        self, samples: Samples, records: Sequence[ClinicalRecord], log_ratio: Floats, *, brock: bool
    ) -> Draw:
        mine = [records[row] for row in samples.patient]
        facts: Sequence[NoduleFacts | None] = samples.facts if brock else [None] * len(mine)
        text = None
        if self._tower is not None:
            read = self._tower([record.sentence() for record in records])  # (patients, 256)
            text = torch.from_numpy(read[samples.patient])
        known = torch.tensor([not record.is_empty for record in mine])
        return Draw(torch.from_numpy(table_rows(mine, facts)), text, known, log_ratio)


def hidden_states(samples: Samples, dependence: Dependence, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Whether each patient is drawn as diseased; see `inference.train.records`."""
    if dependence is Dependence.OUTCOME:
        return samples.patient_malignant
    if dependence is Dependence.RATINGS:
        return np.asarray(rng.random(len(samples.names)) < samples.patient_chance)
    return np.zeros(len(samples.names), bool)
