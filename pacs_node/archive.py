"""What an archive can be asked, and how it fails.

Two implementations: `pacs_node.archive_dimse.DimseArchive` (C-FIND) and
`pacs_node.archive_web.DicomWebArchive` (QIDO-RS). What they answer is the archive's word: a number may be
wrong, a filter may not be heeded. Callers check what can be checked and wait no longer than they are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from pacs_node.destinations import OutcomeKind

MAX_MATCHES = 20_000
"""Of one question; more is no answer that a person could use."""


class ArchiveError(Exception):
    """The archive gave no usable answer; the text is a sentence of ours.

    Parameters
    ----------
    kind
        TRANSIENT where asking again can help, PERMANENT where only a person can.
    """

    def __init__(self, kind: OutcomeKind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class StudyFilter(NamedTuple):
    """Which studies are meant; empty texts mean any. `description` may have * and ?."""

    first: date
    last: date
    modality: str
    description: str = ""
    ae_title: str = ""

    def takes(self, study: FoundStudy) -> bool:
        """Whether a study is meant; an archive may answer more than it was asked."""
        day = study.study_date
        return (
            f"{self.first:%Y%m%d}" <= day <= f"{self.last:%Y%m%d}"
            and (not study.modalities or self.modality in study.modalities)
            and fnmatchcase(study.description.upper(), self.description.upper() or "*")
            and (not self.ae_title or self.ae_title in study.ae_titles)
        )


@dataclass(frozen=True, slots=True)
class FoundStudy:
    """A study as the archive describes it; empty where it says nothing. No patient data.

    Parameters
    ----------
    study_date
        YYYYMMDD.
    ae_titles
        Retrieve AE Titles (0008,0054).
    """

    study_uid: str
    study_date: str
    accession_number: str
    description: str
    modalities: tuple[str, ...]
    ae_titles: tuple[str, ...]
    n_instances: int | None


class Archive(Protocol):
    """A PACS that is asked; every method raises `ArchiveError` where no usable answer comes."""

    @property
    def name(self) -> str:
        """The name of the destination in the configuration."""
        ...

    def count(self, study_uid: str, series_uid: str) -> int:
        """How many instances it has of a series; 0 where it knows none, or doesn't say."""
        ...

    def studies(self, wanted: StudyFilter) -> list[FoundStudy]:
        """The studies that it has; the caller applies the filter again."""
        ...

    def modalities(self, study_uid: str) -> set[str]:
        """The modalities of the series of a study, for an archive that doesn't say them with the study."""
        ...


def day_of(text: str) -> date | None:
    """A DICOM date (PS3.5 6.2, DA); None where it is none."""
    try:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None
