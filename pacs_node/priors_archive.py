"""Fetches an earlier chest CT from an archive: which series, all of it, and of nobody else.

What an archive says of a study is a hint; what counts is in the images that came. Two sources:
`pacs_node.priors_web` (QIDO-RS and WADO-RS) and `pacs_node.priors_dimse` (C-FIND and C-GET or C-MOVE).
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from threading import Event
from typing import NamedTuple, Protocol

from inference import geometry
from inference.errors import UnsuitableSeriesError
from inference.same_patient import Identity, strangers
from inference.select import THIN_MM, WHOLE_LUNG_MM
from inference.uids import is_uid
from pacs_node.archive import ArchiveError
from pacs_node.destinations import OutcomeKind
from pacs_node.priors_store import PriorFolder
from pacs_node.reader import Reader
from pacs_node.reader_tasks import ImageFacts
from pacs_node.request import PriorFiles

IN_TIME = "it did not answer, or send, in time"
_MOST_SERIES = 12
_MOST_TRIES = 2
_ELSEWHERE = re.compile(
    r"abdom|pelvi|head|brain|skull|cran|sinus|neck|spine|kidney|renal|knee|\bhip|ankle|foot|hand|wrist|elbow"
    r"|shoulder|facial|orbit|leg\b|femur|tibia"
)
_CHEST = re.compile(r"chest|thora|torax|lung|pulm|card|heart|coron|body|trunk|torso|screen|\bcap\b|\btap\b")


@dataclass(frozen=True, slots=True)
class FoundExamination:
    """A study as the archive describes it; empty where it says nothing.

    Parameters
    ----------
    day
        Study Date; None where it isn't one.
    identity
        Whom it is of, as far as the archive says it.
    """

    study_uid: str
    day: date | None
    identity: Identity
    modalities: tuple[str, ...] = ()
    description: str = ""

    @property
    def may_be_chest(self) -> bool:
        """Whether it may be a CT of the chest: it is of CT, and its description speaks of nothing else."""
        words = self.description.casefold()
        elsewhere = _ELSEWHERE.search(words) and not _CHEST.search(words)
        return (not self.modalities or "CT" in self.modalities) and not elsewhere


class FoundSeries(NamedTuple):
    """A series as the archive describes it; `n_images` is 0 where it doesn't say."""

    series_uid: str
    modality: str
    n_images: int


class Patience:
    """How long a study waits; `left` raises when it is over, or nobody waits any more.

    Parameters
    ----------
    seconds
        From now on.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._until = monotonic() + seconds
        self._monotonic = monotonic
        self.over = Event()
        """Set by whoever waits no longer."""

    def left(self) -> float:
        """Return the seconds that are left.

        Raises
        ------
        ArchiveError
            None are.
        """
        seconds = self._until - self._monotonic()
        if seconds <= 0 or self.over.is_set():
            raise ArchiveError(OutcomeKind.TRANSIENT, IN_TIME)
        return seconds


class PriorSource(Protocol):
    """An archive that gives images out; every method raises `ArchiveError` where it doesn't."""

    @property
    def name(self) -> str:
        """The name of the destination in the configuration."""
        ...

    def examinations(self, patient_id: str, first: date, last: date) -> list[FoundExamination]:
        """The studies of a patient ID between two days; the caller applies the filter again."""
        ...

    def series(self, study_uid: str) -> list[FoundSeries]:
        """The series of a study."""
        ...

    def images(self, study_uid: str, series_uid: str) -> list[str]:
        """The SOP Instance UIDs of a series."""
        ...

    def fetch(
        self, study_uid: str, series_uid: str, images: Sequence[str], folder: PriorFolder, patience: Patience
    ) -> list[Path]:
        """Fetch one image, or where there are more, the series; what came may be fewer or others."""
        ...


class RefusedError(Exception):
    """The examination is not one of this patient, or can't be used; the text is a clause, no patient data.

    Parameters
    ----------
    stranger
        Whether it may be another patient's.
    """

    def __init__(self, clause: str, *, stranger: bool = False) -> None:
        super().__init__(clause)
        self.stranger = stranger


@dataclass(frozen=True, slots=True)
class _Candidate:
    series_uid: str
    images: tuple[str, ...]
    facts: ImageFacts

    @property
    def score(self) -> tuple[float, ...]:
        """As `inference.select` ranks series, by what one image tells; larger is better."""
        thickness = self.facts.thickness_mm or THIN_MM
        covered = thickness * len(self.images)
        return (thickness <= THIN_MM, covered >= WHOLE_LUNG_MM, -round(thickness, 1), self.facts.softness)


class Fetcher:
    """Fetches examinations of one patient.

    Parameters
    ----------
    source
        Gives them out.
    reader
        Opens what came.
    now
        Whom the images that are analysed are of.
    folder, patience
        Where they go, and how long it may take.
    """

    def __init__(
        self, source: PriorSource, reader: Reader, now: Identity, folder: PriorFolder, patience: Patience
    ) -> None:
        self._source, self._reader, self._now = source, reader, now
        self._folder, self._patience = folder, patience

    @property
    def source(self) -> str:
        """Name of the archive."""
        return self._source.name

    def fetch(self, study_uid: str) -> PriorFiles:
        """Fetch the series of a study that would be analysed, and hold it against the patient.

        Of each series one image is looked at; then the best are fetched whole, until one is suitable by its
        headers (`inference.select`).

        Raises
        ------
        RefusedError
            Another patient's, incomplete, or without a suitable series.
        ArchiveError, OSError, OutOfSpaceError
            It could not be fetched.
        """
        clause = "it has no series that is suitable"
        for one in self._candidates(study_uid)[:_MOST_TRIES]:
            paths = self._source.fetch(study_uid, one.series_uid, one.images, self._folder, self._patience)
            try:
                day = check_images(
                    self._reader,
                    self._now,
                    paths,
                    study_uid=study_uid,
                    series_uid=one.series_uid,
                    expected=one.images,
                )
            except RefusedError as error:
                self._folder.discard(paths)
                if error.stranger:
                    raise
                clause = str(error)
                continue
            name = self._source.name
            return PriorFiles(tuple(paths), study_uid, one.series_uid, day, name, digest_of(paths))
        raise RefusedError(clause)

    def _candidates(self, study_uid: str) -> list[_Candidate]:
        """The series whose images could be of one, the best first."""
        rows = [
            row
            for row in self._source.series(study_uid)
            if row.modality in ("CT", "") and (not row.n_images or row.n_images >= geometry.MIN_SLICES)
        ]
        rows.sort(key=lambda row: row.n_images, reverse=True)
        found = [
            self._look(study_uid, row.series_uid) for row in rows[:_MOST_SERIES] if is_uid(row.series_uid)
        ]
        return sorted(filter(None, found), key=lambda one: one.score, reverse=True)

    def _look(self, study_uid: str, series_uid: str) -> _Candidate | None:
        """Look at one image of a series; None where it is none to analyse."""
        self._patience.left()
        images = tuple(sorted(set(filter(is_uid, self._source.images(study_uid, series_uid)))))
        if len(images) < geometry.MIN_SLICES:
            return None
        middle = [images[len(images) // 2]]
        paths = self._source.fetch(study_uid, series_uid, middle, self._folder, self._patience)
        facts = _described(self._reader, paths)
        self._folder.discard(paths)
        read = [one for one in facts if one is not None]
        if read and (reason := strangers(self._now, [one.identity for one in read])):
            raise RefusedError(f"it has {reason}", stranger=True)
        if len(read) != 1 or read[0].code is not None:
            return None
        return _Candidate(series_uid, images, read[0])


def check_images(
    reader: Reader,
    now: Identity,
    paths: Sequence[Path],
    *,
    study_uid: str,
    series_uid: str,
    expected: Sequence[str] = (),
) -> date:
    """Hold every image against the patient and the series that it is to be of; return its day.

    Parameters
    ----------
    expected
        SOP Instance UIDs that must all be there; none: whatever is there.

    Raises
    ------
    RefusedError
        Where one is not.
    """
    facts = _described(reader, paths)
    read = [one for one in facts if one is not None]
    if reason := strangers(now, [one.identity for one in read]):
        raise RefusedError(f"it has {reason}", stranger=reason != "no readable image")
    if len(read) < len(facts):
        raise RefusedError("some of its images can't be read")
    if {(one.study_uid, one.series_uid) for one in read} != {(study_uid, series_uid)}:
        raise RefusedError("its images are of another study or series")
    come = {one.sop_instance_uid for one in read}
    if expected and come != set(expected):
        raise RefusedError(f"only {len(come & set(expected))} of its {len(expected)} images came")
    days = {one.day for one in read}
    day = days.pop()
    if days or day is None:
        raise RefusedError("its images have no study date, or several")
    verdict = reader.judge(series_uid, paths).verdict
    if not verdict.suitable:
        raise RefusedError(f"it is not suitable ({verdict.sentence.rstrip('.')})")
    return day


def digest_of(paths: Sequence[Path]) -> str:
    """SHA-256 over the files, whatever their names and order."""
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(sorted(digests)).encode("ascii")).hexdigest()


def _described(reader: Reader, paths: Sequence[Path]) -> list[ImageFacts | None]:
    try:
        return reader.describe(paths)
    except UnsuitableSeriesError as error:
        raise RefusedError(f"its images can't be read ({error.sentence.rstrip('.')})") from error
