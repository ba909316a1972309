"""Where a study and its results are, in a word each, and those words in its row, for the filters of lists.

The words follow from the rows of series, jobs and deliveries. `restate` writes them into the row of the study
in the transaction that changes one of those, so a filter over 100,000 studies asks one index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node.db import Artifact, Delivery, Job, Series, Study
from pacs_node.states import DeliveryState, JobOutcome, JobState, SeriesState


class StudyWord(StrEnum):
    """Where a study is on its way."""

    RECEIVING = "receiving"
    RECEIVED = "received"
    QUEUED = "queued"
    ANALYSING = "analysing"
    ANALYSED = "analysed"
    NOT_ANALYSED = "not analysed"
    NOTHING_TO_ANALYSE = "nothing to analyse"
    CANCELLED = "cancelled"
    FAILED = "failed"


class DeliveryWord(StrEnum):
    """Where the results of a study are on their way."""

    WAITING = "waiting to be sent"
    SENDING = "being sent"
    FAILING = "delivery failing"
    FAILED = "delivery failed"
    SENT = "sent, not verified"
    VISIBLE = "visible in PACS"


#: of the results of one study the first of these that one of them has
WORST_FIRST = (
    DeliveryWord.FAILED,
    DeliveryWord.FAILING,
    DeliveryWord.SENDING,
    DeliveryWord.WAITING,
    DeliveryWord.SENT,
    DeliveryWord.VISIBLE,
)
_SPEAKS_FIRST = (
    {JobState.RUNNING},
    {JobState.QUEUED},
    {JobState.SUCCEEDED, JobState.FAILED},
    {JobState.CANCELLED},
)
_JOB_WORDS = {
    JobState.RUNNING: StudyWord.ANALYSING,
    JobState.QUEUED: StudyWord.QUEUED,
    JobState.FAILED: StudyWord.FAILED,
    JobState.CANCELLED: StudyWord.CANCELLED,
}


class JobFacts(Protocol):
    """What is asked of a job."""

    @property
    def id(self) -> int:
        """Row number."""

    @property
    def state(self) -> JobState:
        """Its state."""

    @property
    def outcome(self) -> str | None:
        """A `JobOutcome` once it has succeeded."""


class DeliveryFacts(Protocol):
    """What is asked of a delivery."""

    @property
    def state(self) -> DeliveryState:
        """Its state."""

    @property
    def attempts(self) -> int:
        """How often it was tried."""

    @property
    def created_at(self) -> datetime:
        """When it was made."""

    @property
    def next_attempt_at(self) -> datetime:
        """When it is due."""


_Job = TypeVar("_Job", bound=JobFacts)


def shown_job(jobs: Sequence[_Job]) -> _Job | None:
    """The one that speaks for the study: what runs, else what waits, else the last that ended.

    Parameters
    ----------
    jobs
        In the order of their numbers.
    """
    for states in _SPEAKS_FIRST:
        for job in reversed(jobs):
            if job.state in states:
                return job
    return None


def study_word(series: Iterable[SeriesState], job: JobFacts | None) -> StudyWord:
    """Where a study is.

    Parameters
    ----------
    series
        States of all its series.
    job
        Its `shown_job`.
    """
    states = set(series)
    if SeriesState.RECEIVING in states:
        return StudyWord.RECEIVING
    if SeriesState.COMPLETE in states:
        return StudyWord.RECEIVED
    if job is None:
        return StudyWord.NOTHING_TO_ANALYSE
    if job.state is not JobState.SUCCEEDED:
        return _JOB_WORDS[job.state]
    return StudyWord.NOT_ANALYSED if job.outcome == JobOutcome.NOT_ANALYSED else StudyWord.ANALYSED


def delivery_word(delivery: DeliveryFacts) -> DeliveryWord:
    """The state of one delivery as a word."""
    if delivery.state == DeliveryState.PENDING:
        # both times are equal until an attempt has moved the next one
        fresh = delivery.next_attempt_at == delivery.created_at
        return DeliveryWord.WAITING if fresh or not delivery.attempts else DeliveryWord.FAILING
    return {
        DeliveryState.SENDING: DeliveryWord.SENDING,
        DeliveryState.SENT: DeliveryWord.SENT,
        DeliveryState.COMMITTED: DeliveryWord.VISIBLE,
        DeliveryState.FAILED: DeliveryWord.FAILED,
    }[delivery.state]


def worst_word(deliveries: Iterable[DeliveryFacts]) -> DeliveryWord | None:
    """Where the results of one job are, over all destinations; None without deliveries."""
    words = {delivery_word(delivery) for delivery in deliveries}
    return next((word for word in WORST_FIRST if word in words), None)


def restate(session: Session, study: Study) -> None:
    """Bring the words in the row of a study up to date, in the caller's write transaction."""
    series = session.scalars(select(Series.state).where(Series.study_id == study.id)).all()
    jobs = session.execute(
        select(Job.id, Job.state, Job.outcome)
        .join(Series, Job.series_id == Series.id)
        .where(Series.study_id == study.id)
        .order_by(Job.id)
    ).all()
    job: JobFacts | None = shown_job(jobs)
    study.state = study_word(series, job)
    # until its series are closed nothing is said of results, as on the page
    told = job is not None and study.state not in {StudyWord.RECEIVING, StudyWord.RECEIVED}
    study.shown_job_id = job.id if job is not None and told else None
    study.delivery = None
    if study.shown_job_id is not None:
        rows = session.execute(
            select(Delivery.state, Delivery.attempts, Delivery.created_at, Delivery.next_attempt_at)
            .join(Artifact, Delivery.artifact_id == Artifact.id)
            .where(Artifact.job_id == study.shown_job_id)
        ).all()
        study.delivery = worst_word(rows)
    session.flush()
