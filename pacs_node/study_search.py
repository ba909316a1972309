"""The list of studies: filters, orders, and pages that cost the same however deep they are.

A page begins after the last study of the page before (keyset), never at a count of rows. Every order has an
index, and so has every part of three letters or more of what is searched (migration 0011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Select, func, select, text, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from pacs_node.db import Study, folded
from pacs_node.db_feedback import UNDETERMINED, AnalysisSummary, Nodule
from pacs_node.queries import LARGEST_ID, StudyLine, study_lines
from pacs_node.study_state import DeliveryWord, StudyWord

MOST_COUNTED = 1000
"""A count stops here: nobody pages through more."""

_FEW = 2000
"""Up to so many candidates are read by number; of more, a page is full sooner in the order of the list."""
_PART = 3
"""Letters in each part that the index knows."""
_MOST_PARTS = 64
"""Of a search; the rows that are found are compared with the whole of it."""
_BY_INDEX = text("SELECT rowid FROM study_words WHERE study_words MATCH :asked LIMIT :most")

#: the column with the number of an analysis, and those that are meant
_Jobs: TypeAlias = tuple[InstrumentedAttribute[int], Select[tuple[int]]]


class StudyOrder(StrEnum):
    """What the list is sorted by."""

    RECEIVED = "received"
    PATIENT = "patient"
    PATIENT_ID = "patient-id"
    ACCESSION = "accession"
    STUDY_DATE = "study-date"
    STATE = "state"


class NoduleKind(StrEnum):
    """Attenuation of a nodule, as results say it."""

    SOLID = "solid"
    PART_SOLID = "part-solid"
    GROUND_GLASS = "ground-glass"


class LungRads(StrEnum):
    """Categories of Lung-RADS v2022, each with and without the modifier S, and what has none."""

    INCOMPLETE = "0"
    NEGATIVE = "1"
    BENIGN = "2"
    PROBABLY_BENIGN = "3"
    SUSPICIOUS_4A = "4A"
    SUSPICIOUS_4B = "4B"
    SUSPICIOUS_4X = "4X"
    NONE = UNDETERMINED

    def jobs(self) -> _Jobs:
        """Analyses with it."""
        values = (self.value,) if self is LungRads.NONE else (self.value, f"{self.value}S")
        job_id = AnalysisSummary.job_id
        return job_id, select(job_id).where(AnalysisSummary.lung_rads.in_(values))


@dataclass(frozen=True, slots=True)
class FindingQuery:
    """Studies with one nodule that is all of this, in the analysis that speaks for the study.

    Parameters
    ----------
    mean_diameter_mm, malignancy
        At least; malignancy is 0..1, of the image alone. One that was not assessed is less than any.
    """

    mean_diameter_mm: float = 0.0
    malignancy: float = 0.0
    kind: NoduleKind | None = None

    def jobs(self) -> _Jobs:
        """Analyses with such a nodule, each once or more often."""
        found = select(Nodule.job_id)
        if self.mean_diameter_mm > 0:
            found = found.where(Nodule.mean_diameter_mm >= self.mean_diameter_mm)
        if self.malignancy > 0:
            found = found.where(Nodule.malignancy >= self.malignancy)
        if self.kind is not None:
            found = found.where(Nodule.attenuation == self.kind)
        return Nodule.job_id, found


_COLUMNS: dict[StudyOrder, tuple[InstrumentedAttribute[Any], ...]] = {
    StudyOrder.RECEIVED: (Study.first_received_at, Study.id),
    StudyOrder.PATIENT: (Study.patient_name, Study.id),
    StudyOrder.PATIENT_ID: (Study.patient_id, Study.id),
    StudyOrder.ACCESSION: (Study.accession_number, Study.id),
    StudyOrder.STUDY_DATE: (Study.study_date, Study.id),
    StudyOrder.STATE: (Study.state, Study.first_received_at, Study.id),
}


@dataclass(frozen=True, slots=True)
class StudyQuery:
    """Which studies, in which order; what is None or empty asks for all.

    Parameters
    ----------
    words
        All of them occur in patient ID, patient name, accession number or Study Instance UID, each anywhere
        in one of these; case doesn't matter.
    since, until
        When the first image came; `until` is not itself in it.
    first_day, last_day
        Study date as DICOM writes it, ``20260302``; both are in it.
    lung_rads
        What the node's own reading comes to, in the analysis that speaks for the study.
    """

    words: str = ""
    since: datetime | None = None
    until: datetime | None = None
    first_day: str = ""
    last_day: str = ""
    state: StudyWord | None = None
    delivery: DeliveryWord | None = None
    finding: FindingQuery | None = None
    lung_rads: LungRads | None = None
    order: StudyOrder = StudyOrder.RECEIVED
    descending: bool = True

    def criteria(self, session: Session) -> list[ColumnElement[bool]]:
        """What a row fulfils, for a query's ``where``; asks SQLite's index of the words first."""
        words = folded(self.words).split()
        found = [_holds(word) for word in words]
        few = _few_with(session, words)
        if few is not None:
            found.append(Study.id.in_(few))
        if self.since is not None:
            found.append(Study.first_received_at >= self.since)
        if self.until is not None:
            found.append(Study.first_received_at < self.until)
        if self.first_day:
            found.append(Study.study_date >= self.first_day)
        if self.last_day:
            found.append(Study.study_date <= self.last_day)
        if self.state is not None:
            found.append(Study.state == self.state)
        if self.delivery is not None:
            found.append(Study.delivery == self.delivery)
        found += [_analysed_as(session, asked.jobs()) for asked in (self.finding, self.lung_rads) if asked]
        return found


def _analysed_as(session: Session, jobs: _Jobs) -> ColumnElement[bool]:
    """Studies for which one of these analyses speaks."""
    job_id, chosen = jobs
    found = session.scalars(chosen.limit(_FEW + 1)).all()
    # of many: each study in the order of the list is asked whether it has one, until a page is full
    return (
        Study.shown_job_id.in_(found)
        if len(found) <= _FEW
        else chosen.where(job_id == Study.shown_job_id).exists()
    )


def _holds(word: str) -> ColumnElement[bool]:
    # PostgreSQL would read its whole index for a word that is shorter than what that knows
    column = Study.search if len(word) >= _PART else Study.search.concat("")
    return column.contains(word, autoescape=True)


def _few_with(session: Session, words: Sequence[str]) -> Sequence[int] | None:
    """Numbers of the studies that can have these words, by SQLite's index; None: too many, or no such index.

    PostgreSQL asks its own index when it is worth it.
    """
    whole = (word[at : at + _PART] for word in words for at in range(len(word) - _PART + 1))
    parts = list(dict.fromkeys(whole))[:_MOST_PARTS]
    if not parts or session.get_bind().dialect.name != "sqlite":
        return None
    asked = " AND ".join('"{}"'.format(part.replace('"', '""')) for part in parts)
    found = session.scalars(_BY_INDEX, {"asked": asked, "most": _FEW + 1}).all()
    return None if len(found) > _FEW else found


def list_studies(
    session: Session, query: StudyQuery, after_id: int | None = None, limit: int = 50
) -> tuple[StudyLine, ...]:
    """Studies of a query in its order.

    Parameters
    ----------
    after_id
        Only studies that follow this one in the order: the last `StudyLine.id` of the page before. There are
        none if it isn't there.
    limit
        The most lines to return.
    """
    columns = _COLUMNS[query.order]
    found = select(Study).where(*query.criteria(session))
    if after_id is not None:
        place = session.execute(select(*columns).where(Study.id == min(after_id, LARGEST_ID))).first()
        if place is None:
            return ()
        here, there = tuple_(*columns), tuple(place)
        found = found.where(here < there if query.descending else here > there)
    order = [column.desc() if query.descending else column.asc() for column in columns]
    studies = session.execute(found.order_by(*order).limit(limit)).scalars().all()
    return study_lines(session, studies)


def count_studies(session: Session, query: StudyQuery) -> int:
    """How many studies a query has; one more than `MOST_COUNTED` if there are more."""
    some: Select[tuple[int]] = select(Study.id).where(*query.criteria(session)).limit(MOST_COUNTED + 1)
    return session.execute(select(func.count()).select_from(some.subquery())).scalar_one()
