"""What waits for a person: analyses that were held, images in doubt, and what failed for good, by cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node.db import Conflict, Instance, Series, Study
from pacs_node.dead_letters import DeadLetter

MOST = 200


@dataclass(frozen=True, slots=True)
class HeldStudy:
    """An analysis that an operator stopped until somebody requeues it."""

    study_uid: str
    accession_number: str
    study_date: str
    description: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class DoubtfulStudy:
    """A study with images that came again with another content under the same UID."""

    study_uid: str
    accession_number: str
    study_date: str
    n_images: int
    last_at: datetime


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """What failed at one place for one cause.

    Parameters
    ----------
    place
        Destination, or `pacs_node.dead_letters.ANALYSIS`.
    count
        Objects, or analyses.
    study_uids
        Of all of them, each once, the newest first.
    first_at, last_at
        When the oldest and the newest was made.
    """

    place: str
    cause: str
    count: int
    study_uids: tuple[str, ...]
    first_at: datetime
    last_at: datetime


def held_studies(session: Session) -> list[HeldStudy]:
    """All that an operator stopped, the latest first; at most `MOST`."""
    held = select(Study).where(Study.held_reason.is_not(None)).order_by(Study.held_at.desc()).limit(MOST)
    return [
        HeldStudy(
            study.study_uid,
            study.accession_number,
            study.study_date,
            study.description,
            study.held_reason or "",
            study.held_at or study.first_received_at,
        )
        for study in session.scalars(held)
    ]


def doubtful_studies(session: Session) -> list[DoubtfulStudy]:
    """All with images in doubt, the latest first; at most `MOST`."""
    last = func.max(Conflict.received_at)
    query = (
        select(Study.study_uid, Study.accession_number, Study.study_date, func.count(), last)
        .join(Series, Series.study_id == Study.id)
        .join(Instance, Instance.series_id == Series.id)
        .join(Conflict, Conflict.instance_id == Instance.id)
        .where(Conflict.same_content.is_not(True))
        .group_by(Study.id, Study.study_uid, Study.accession_number, Study.study_date)
        .order_by(last.desc())
        .limit(MOST)
    )
    return [DoubtfulStudy(*row) for row in session.execute(query).tuples()]


def failed_groups(letters: Sequence[DeadLetter]) -> list[FailedGroup]:
    """Dead letters by place and cause, the largest group first."""
    together: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        together.setdefault((letter.place, letter.cause), []).append(letter)
    groups = []
    for (place, cause), rows in together.items():
        newest = sorted(rows, key=lambda row: row.at, reverse=True)
        uids = tuple(dict.fromkeys(row.study_uid for row in newest))
        groups.append(FailedGroup(place, cause, len(rows), uids, newest[-1].at, newest[0].at))
    return sorted(groups, key=lambda group: (-group.count, group.place, group.cause))
