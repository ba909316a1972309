"""Which destinations get what came of a study.

Results go to all. The report that a study was not analysed goes to whom it concerns, by `not_analysed` of the
destination: where all studies are routed to the node, a mammogram needs no word on lung nodules. What is kept
here is recorded, stands on the study's page, and goes out by an operator's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from inference.select import CT_STORAGE
from pacs_node import audit
from pacs_node.config import DestinationSettings
from pacs_node.db import Instance, Job, Series

_WHY = {
    "ct": 'the study has no CT images, and not_analysed = "ct"',
    "none": 'not_analysed = "none"',
}


def recipients(
    session: Session, study_id: int, destinations: Sequence[DestinationSettings], *, analysed: bool
) -> tuple[DestinationSettings, ...]:
    """Return those of the destinations that get what came of a study.

    Parameters
    ----------
    study_id
        Row of the study.
    analysed
        Whether it is a result; False: the report that says why there is none.
    """
    if analysed or all(item.not_analysed == "all" for item in destinations):
        return tuple(destinations)
    wanted = {"all", "ct"} if _has_ct(session, study_id) else {"all"}
    return tuple(item for item in destinations if item.not_analysed in wanted)


def note_kept_back(
    session: Session, job: Job, destinations: Sequence[DestinationSettings], *, at: datetime, actor: str
) -> None:
    """Record to which destinations the report of a job does not go, and why."""
    for item in destinations:
        audit.record(
            session,
            audit.Event.REPORT_KEPT,
            at=at,
            actor=actor,
            study_uid=job.series.study.study_uid,
            destination=item.name,
            job=job.id,
            reason=_WHY[item.not_analysed],
        )


def _has_ct(session: Session, study_id: int) -> bool:
    """By modality or by SOP class: a sender may have one of them wrong."""
    images = exists().where(Instance.series_id == Series.id, Instance.sop_class_uid.in_(CT_STORAGE))
    query = select(Series.id).where(Series.study_id == study_id, or_(Series.modality == "CT", images))
    return session.execute(query.limit(1)).first() is not None
