"""What ended for good and waits for a person: failed analyses and deliveries, each with its cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from pacs_node import breaker, jobs
from pacs_node.db import Artifact, Delivery, Job, Series, Study
from pacs_node.states import DeliveryState, JobState

ANALYSIS = "analysis"
"""In place of a destination: the study itself could not be analysed."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One object that was not delivered, or one study that was not analysed.

    Parameters
    ----------
    place
        Name of the destination, or `ANALYSIS`.
    what
        Form of the object, e.g. ``seg``; kind of the job.
    cause
        Why it ended: a sentence of ours.
    at
        When it was made, and how often it was tried.
    """

    row: int
    study_uid: str
    place: str
    what: str
    cause: str
    at: datetime
    attempts: int


def destinations_with_results(session: Session) -> list[str]:
    """Names of destinations that results were made for, from one to the next in the index."""
    found: list[str] = []
    while True:
        following = select(func.min(Delivery.destination))
        if found:
            following = following.where(Delivery.destination > found[-1])
        name: str | None = session.execute(following).scalar_one()
        if name is None:
            return found
        found.append(name)


def failed_everywhere(session: Session) -> ColumnElement[bool]:
    """Condition for the deliveries that failed: one range of the index for each destination."""
    return and_(
        Delivery.destination.in_(destinations_with_results(session)), Delivery.state == DeliveryState.FAILED
    )


def dead_letters(
    session: Session, place: str | None = None, study_uid: str | None = None
) -> list[DeadLetter]:
    """All of them, the oldest first; narrowed to a destination (or `ANALYSIS`) or a study."""
    found = [
        DeadLetter(job.id, uid, ANALYSIS, job.kind, _cause(job), job.created_at, job.attempts)
        for job, uid in session.execute(
            select(Job, Study.study_uid)
            .join(Series, Job.series_id == Series.id)
            .join(Study, Series.study_id == Study.id)
            .where(Job.state == JobState.FAILED)
        ).tuples()
    ]
    deliveries = (
        select(Delivery, Artifact, Study.study_uid)
        .join(Artifact, Delivery.artifact_id == Artifact.id)
        .join(Job, Artifact.job_id == Job.id)
        .join(Series, Job.series_id == Series.id)
        .join(Study, Series.study_id == Study.id)
        .where(failed_everywhere(session))
    )
    found += [
        DeadLetter(
            row.id, uid, row.destination, artifact.form, row.status or "", row.created_at, row.attempts
        )
        for row, artifact, uid in session.execute(deliveries).tuples()
    ]
    wanted = (item for item in found if place in {None, item.place} and study_uid in {None, item.study_uid})
    return sorted(wanted, key=lambda item: (item.at, item.place, item.row))


def _cause(job: Job) -> str:
    """Why it failed; the reason of a report "not analysed" is what it was to say."""
    return (job.last_error if job.kind == jobs.REFUSAL else job.reason) or job.last_error or ""


def requeue(session: Session, letters: Sequence[DeadLetter], *, at: datetime, actor: str) -> int:
    """Give them another chance, at an operator's word; return how many still were dead letters.

    A delivery goes out as the same bytes and has its whole time again; an analysis has fresh attempts, unless
    later images or a better series have made it needless.
    """
    count = 0
    for letter in letters:
        if letter.place == ANALYSIS:
            job = session.get_one(Job, letter.row)
            if job.state is JobState.FAILED and job in jobs.requeueable(session, job.series.study):
                jobs.requeue(session, job, at=at, actor=actor)
                count += 1
            continue
        delivery = session.get_one(Delivery, letter.row)
        if delivery.state is DeliveryState.FAILED:
            jobs.deliver_again(session, delivery, at=at, actor=actor, status="requeued by an operator")
            breaker.probe_now(session, delivery.destination, at)
            count += 1
    return count
