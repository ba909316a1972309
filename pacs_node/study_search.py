"""The list of studies: filters, orders, and pages that cost the same however deep they are.

A page begins after the last study of the page before (keyset), never at a count of rows. Every order has an
index; filters that no index answers look through 100,000 studies within the 300 ms that a page may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from pacs_node.db import Study, folded
from pacs_node.db_feedback import Nodule
from pacs_node.queries import LARGEST_ID, StudyLine, study_lines
from pacs_node.study_state import DeliveryWord, StudyWord

MOST_COUNTED = 10_000
"""A count stops here: nobody pages through more."""


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

    def criterion(self) -> ColumnElement[bool]:
        """What a study fulfils."""
        found = select(Nodule.job_id)
        if self.mean_diameter_mm > 0:
            found = found.where(Nodule.mean_diameter_mm >= self.mean_diameter_mm)
        if self.malignancy > 0:
            found = found.where(Nodule.malignancy >= self.malignancy)
        if self.kind is not None:
            found = found.where(Nodule.attenuation == self.kind)
        return Study.shown_job_id.in_(found)


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
    """

    words: str = ""
    since: datetime | None = None
    until: datetime | None = None
    first_day: str = ""
    last_day: str = ""
    state: StudyWord | None = None
    delivery: DeliveryWord | None = None
    finding: FindingQuery | None = None
    order: StudyOrder = StudyOrder.RECEIVED
    descending: bool = True

    def criteria(self) -> list[ColumnElement[bool]]:
        """What a row fulfils, for a query's ``where``."""
        found: list[ColumnElement[bool]] = [
            Study.search.contains(word, autoescape=True) for word in folded(self.words).split()
        ]
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
        if self.finding is not None:
            found.append(self.finding.criterion())
        return found


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
    found = select(Study).where(*query.criteria())
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
    some: Select[tuple[int]] = select(Study.id).where(*query.criteria()).limit(MOST_COUNTED + 1)
    return session.execute(select(func.count()).select_from(some.subquery())).scalar_one()
