"""The queue: claims, attempts, and the transaction that ends a job; who owns one: `pacs_node.leases`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, exists, or_, select
from sqlalchemy.orm import Session

from dicom_sr.profiles import chosen, form_name
from pacs_node import audit, lifecycle
from pacs_node.db import Artifact, Delivery, Instance, Job, Series, Study
from pacs_node.errors import AnalysisFailedError
from pacs_node.leases import LEASE, LeaseWatch, new_token
from pacs_node.states import CancelCause, DeliveryState, JobOutcome, JobState, SeriesState
from pacs_node.study_state import restate

RETRY_WAIT = timedelta(seconds=5)

ANALYSIS = "analysis"
REFUSAL = "refusal"

ANALYSED = JobOutcome.ANALYSED.value
NOT_ANALYSED = JobOutcome.NOT_ANALYSED.value


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A file that a job made; `path` is relative to the storage directory."""

    kind: str
    path: str
    sha256: str
    sop_instance_uid: str | None = None
    sop_class_uid: str | None = None
    series_uid: str | None = None
    encoding: str = ""

    @property
    def form(self) -> str:
        """Name of its form, as in `dicom_sr.profiles`."""
        return form_name(self.kind, self.encoding)


def input_digest(series: Series) -> str:
    """SHA-256 over the instances of a series; the order in which they came doesn't matter."""
    digest = hashlib.sha256()
    for instance in sorted(series.instances, key=lambda row: row.sop_instance_uid):
        digest.update(f"{instance.sop_instance_uid} {instance.sha256}\n".encode("ascii"))
    return digest.hexdigest()


def enqueue(
    session: Session,
    series: Series,
    *,
    kind: str,
    input_digest: str,
    pipeline_version: str,
    at: datetime,
    actor: str,
    reason_code: str | None = None,
    reason: str | None = None,
) -> Job | None:
    """Add a job, or return None if the same work was queued before: a re-send changes nothing.

    Work that was cancelled is taken up again: what had made it needless (a better series) has gone.

    Raises
    ------
    ValueError
        A report "not analysed" without a code that says why.
    """
    if kind == REFUSAL and not reason_code:
        raise ValueError("a refusal without a reason code")
    same = _find(session, series, kind, input_digest, pipeline_version)
    if same is not None:
        if same.state is not JobState.CANCELLED:
            return None
        _restart(session, same, at=at, actor=actor, reason_code=reason_code, reason=reason)
        return same
    job = Job(
        series=series,
        kind=kind,
        input_digest=input_digest,
        pipeline_version=pipeline_version,
        state=JobState.QUEUED,
        attempts=0,
        created_at=at,
        not_before=at,
        reason_code=reason_code,
        reason=reason,
    )
    session.add(job)
    session.flush()
    restate(session, series.study)
    audit.record(
        session,
        audit.Event.JOB_CREATED,
        at=at,
        actor=actor,
        study_uid=series.study.study_uid,
        series_uid=series.series_uid,
        job=job.id,
        kind=kind,
        input_digest=input_digest,
        pipeline_version=pipeline_version,
        reason_code=reason_code,
        reason=reason,
    )
    return job


def _find(
    session: Session, series: Series, kind: str, input_digest: str, pipeline_version: str
) -> Job | None:
    same = select(Job).where(
        Job.series_id == series.id,
        Job.kind == kind,
        Job.input_digest == input_digest,
        Job.pipeline_version == pipeline_version,
    )
    return session.execute(same).scalar_one_or_none()


def _restart(session: Session, job: Job, *, at: datetime, actor: str, **values: str | None) -> None:
    lifecycle.move_job(
        session,
        job,
        JobState.QUEUED,
        at=at,
        actor=actor,
        attempts=0,
        not_before=at,
        finished_at=None,
        outcome=None,
        cancelled_because=None,
        cancelled_reason=None,
        **values,
    )


def is_due(at: datetime) -> ColumnElement[bool]:
    """Whether a job may be taken; one that would wait for longer than any does is due: the clock was set."""
    waits = and_(Job.not_before > at, Job.not_before <= at + RETRY_WAIT)
    return and_(Job.state == JobState.QUEUED, ~waits)


def claim(session: Session, *, at: datetime, actor: str) -> tuple[Job, str] | None:
    """Take the oldest job that is due; return it with the lease token, or None."""
    job = session.execute(select(Job).where(is_due(at)).order_by(Job.id).limit(1)).scalar_one_or_none()
    if job is None:
        return None
    token = new_token()
    lifecycle.move_job(
        session,
        job,
        JobState.RUNNING,
        at=at,
        actor=actor,
        attempts=job.attempts + 1,
        started_at=at,
        lease_token=token,
        lease_expires_at=at + LEASE,
    )
    return job, token


def finish(
    session: Session,
    job: Job,
    token: str,
    *,
    at: datetime,
    actor: str,
    state: JobState,
    outcome: str | None,
    artifacts: Sequence[NewArtifact],
    destinations: Sequence[tuple[str, Sequence[str]]],
    reason_code: str | None = None,
    reason: str | None = None,
) -> None:
    """End a job: state, artifacts, outbox and events in the caller's transaction.

    Parameters
    ----------
    state
        SUCCEEDED, or FAILED with the report that says so.
    destinations
        Name of each and the forms that it gets, e.g. ``seg`` and ``sr:enhanced``; see `dicom_sr.profiles`.

    Raises
    ------
    StaleStateError
        The lease was lost; nothing of this result may be kept.
    AnalysisFailedError
        An object exists with other bytes under the same UID; nothing may be kept either.
    """
    session.refresh(job.series)
    if job.series.state in {SeriesState.RECEIVING, SeriesState.COMPLETE}:
        # more slices have arrived: the job that sees all of them will speak
        late = "late instances arrived meanwhile"
        cancel(session, job, CancelCause.LATE, late, at=at, actor=actor, token=token)
        return
    said: dict[str, str | None] = {"reason_code": reason_code, "reason": reason}
    if job.kind == REFUSAL:
        # what its report says is its own, also when the report could not be made
        said = {} if state is JobState.SUCCEEDED else {"last_error": reason}
    lifecycle.move_job(
        session,
        job,
        state,
        at=at,
        actor=actor,
        token=token,
        finished_at=at,
        lease_token=None,
        lease_expires_at=None,
        outcome=outcome,
        **said,
    )
    made = {new.form for new in artifacts if new.sop_instance_uid is not None}
    for new in artifacts:
        artifact = _artifact(session, job, new)
        for name, wanted in destinations:
            if new.form in chosen(wanted, made):
                add_delivery(session, artifact, name, at=at, actor=actor)


def _artifact(session: Session, job: Job, new: NewArtifact) -> Artifact:
    """Add the row, or find it: a repeated result has the same bytes under the same UID."""
    same = select(Artifact).where(
        Artifact.sop_instance_uid == new.sop_instance_uid
        if new.sop_instance_uid is not None
        else (Artifact.job_id == job.id) & (Artifact.path == new.path)
    )
    known = session.execute(same).scalar_one_or_none()
    if known is not None:
        if known.sha256 != new.sha256 and new.sop_instance_uid is not None:
            raise AnalysisFailedError(f"{new.sop_instance_uid} exists with other bytes")
        known.sha256 = new.sha256
        return known
    artifact = Artifact(
        job=job,
        kind=new.kind,
        encoding=new.encoding,
        path=new.path,
        sha256=new.sha256,
        sop_instance_uid=new.sop_instance_uid,
        sop_class_uid=new.sop_class_uid,
        series_uid=new.series_uid,
    )
    session.add(artifact)
    session.flush()
    return artifact


def add_delivery(session: Session, artifact: Artifact, destination: str, *, at: datetime, actor: str) -> None:
    """Put an object into the outbox of a destination, unless it is there already."""
    known = select(Delivery.id).where(
        Delivery.artifact_id == artifact.id, Delivery.destination == destination
    )
    if session.execute(known).first() is not None:
        return
    session.add(
        Delivery(
            artifact=artifact,
            destination=destination,
            state=DeliveryState.PENDING,
            attempts=0,
            created_at=at,
            next_attempt_at=at,
        )
    )
    audit.record(
        session,
        audit.Event.DELIVERY_CREATED,
        at=at,
        actor=actor,
        study_uid=artifact.job.series.study.study_uid,
        destination=destination,
        kind=artifact.kind,
        encoding=artifact.encoding,
        sop_instance_uid=artifact.sop_instance_uid,
        sha256=artifact.sha256,
    )
    session.flush()
    restate(session, artifact.job.series.study)


def deliver_again(session: Session, delivery: Delivery, *, at: datetime, actor: str, status: str) -> None:
    """Have a delivery that was done or given up made anew, with all its attempts; an operator's word."""
    lifecycle.move_delivery(
        session,
        delivery,
        DeliveryState.PENDING,
        at=at,
        actor=actor,
        created_at=at,
        next_attempt_at=at,
        sent_at=None,
        verified_at=None,
        status=status,
    )


def pass_on(session: Session, job: Job, *, pipeline_version: str, at: datetime, actor: str) -> Job | None:
    """Queue the study's next best series after the pixels of this one turned out unsuitable.

    Returns
    -------
    Job or None
        That of the next best series, perhaps one that was analysed before. None if no suitable series is
        left: then the study ends with the report that says why.
    """
    removed = exists().where(Instance.series_id == Series.id, Instance.path.is_(None))
    alternatives = (
        select(Series)
        .where(
            Series.study_id == job.series.study_id,
            Series.state == SeriesState.INELIGIBLE,
            Series.rank > (job.series.rank or 0),
            ~removed,
        )
        .order_by(Series.rank)
    )
    for series in session.execute(alternatives).scalars().all():
        digest = input_digest(series)
        following = enqueue(
            session,
            series,
            kind=ANALYSIS,
            input_digest=digest,
            pipeline_version=pipeline_version,
            at=at,
            actor=actor,
        ) or _find(session, series, ANALYSIS, digest, pipeline_version)
        if following is not None and (following.state is JobState.QUEUED or following.outcome == ANALYSED):
            lifecycle.move_series(
                session, series, SeriesState.QUEUED, at=at, actor=actor, reason_code=None, reason=None
            )
            return following
    return None


def retry(
    session: Session,
    job: Job,
    token: str,
    *,
    at: datetime,
    actor: str,
    reason: str,
    attempts: int | None = None,
) -> None:
    """Put a running job back into the queue; `attempts` overwrites the count where one isn't its fault."""
    lifecycle.move_job(
        session,
        job,
        JobState.QUEUED,
        at=at,
        actor=actor,
        token=token,
        attempts=job.attempts if attempts is None else attempts,
        not_before=at + RETRY_WAIT,
        lease_token=None,
        lease_expires_at=None,
        last_error=reason,
    )


def cancel(
    session: Session,
    job: Job,
    cause: CancelCause,
    reason: str,
    *,
    at: datetime,
    actor: str,
    token: str | None = None,
) -> None:
    """Cancel a job; what its report was to say stays in its row, for when it is wanted again."""
    lifecycle.move_job(
        session,
        job,
        JobState.CANCELLED,
        at=at,
        actor=actor,
        token=token,
        finished_at=at,
        lease_token=None,
        lease_expires_at=None,
        cancelled_because=cause,
        cancelled_reason=reason,
    )


def cancel_unfinished(
    session: Session,
    series: Series,
    cause: CancelCause,
    reason: str,
    *,
    at: datetime,
    actor: str,
    kinds: Sequence[str] = (ANALYSIS, REFUSAL),
    but: str | None = None,
) -> None:
    """Cancel what is queued, running or held for a series and isn't wanted any more.

    Parameters
    ----------
    kinds
        Of the jobs to cancel.
    but
        Input digest of the work that is still wanted.
    """
    unfinished = select(Job).where(
        Job.series_id == series.id,
        or_(is_unfinished(), Job.cancelled_because == CancelCause.HELD),
        Job.kind.in_(kinds),
        Job.input_digest != (but or ""),
    )
    for job in session.execute(unfinished).scalars().all():
        if job.state is not JobState.CANCELLED:
            cancel(session, job, cause, reason, at=at, actor=actor)
            continue
        job.cancelled_because, job.cancelled_reason = cause, reason
        lifecycle.note_job(session, job, at=at, actor=actor, cancelled_because=cause, cancelled_reason=reason)


def is_unfinished() -> ColumnElement[bool]:
    """Whether a job is queued or running."""
    return Job.state.in_([JobState.QUEUED, JobState.RUNNING])


def hold(session: Session, study: Study, reason: str, *, at: datetime, actor: str) -> int:
    """Stop what is queued or running for a study, and what intake will queue for it; return how many stopped.

    The study stays held, whatever comes for it, until `requeue_study`.
    """
    stopped = select(Job).join(Series, Job.series_id == Series.id).where(Series.study_id == study.id)
    found = session.execute(stopped.where(is_unfinished())).scalars().all()
    for job in found:
        cancel(session, job, CancelCause.HELD, reason, at=at, actor=actor)
    if study.held_reason is None:
        study.held_at = at
    study.held_reason = reason
    return len(found)


def judge_again(session: Session, series: Series, reason: str, *, at: datetime, actor: str) -> None:
    """Open a series again: some of its images are gone, or are back."""
    cancel_unfinished(session, series, CancelCause.LATE, reason, at=at, actor=actor)
    if series.state is not SeriesState.RECEIVING:
        lifecycle.move_series(
            session, series, SeriesState.RECEIVING, at=at, actor=actor, reason_code=None, reason=reason
        )


def is_analysed(session: Session, series: Series) -> bool:
    """Whether there is a result of the images that a series has now."""
    done = select(Job.id).where(
        Job.series_id == series.id, Job.input_digest == input_digest(series), Job.outcome == ANALYSED
    )
    return session.execute(done).first() is not None


def reclaim(session: Session, watch: LeaseWatch, *, at: datetime, actor: str) -> int:
    """Requeue jobs whose worker is gone; return how many.

    A worker that was killed is not the job's fault, so a first lost lease costs an attempt like
    any other failure; the worker that takes the last attempt ends the job.

    Parameters
    ----------
    watch
        Over jobs, the same one at each call.
    """
    lost = watch.lost(session)
    for job_id, token in lost:
        lifecycle.move_job(
            session,
            session.get_one(Job, job_id),
            JobState.QUEUED,
            at=at,
            actor=actor,
            token=token,
            lease_token=None,
            lease_expires_at=None,
            last_error="the worker stopped; its lease ran out",
        )
    return len(lost)


def requeueable(session: Session, study: Study) -> Sequence[Job]:
    """Return what an operator may have done again: the work that is still wanted and has failed or is held.

    That is the newest analysis of each chosen series; where none is chosen and all are closed, the newest
    report that says why not. What was withdrawn, set aside or overtaken by late images is not: another one
    speaks.
    """
    rows = select(Job).join(Series, Job.series_id == Series.id).where(Series.study_id == study.id)
    held = Job.cancelled_because == CancelCause.HELD
    living = session.scalars(rows.where(or_(Job.state != JobState.CANCELLED, held)).order_by(Job.id)).all()
    chosen = {series.id for series in study.series if series.state is SeriesState.QUEUED}
    newest = {job.series_id: job for job in living if job.kind == ANALYSIS and job.series_id in chosen}
    wanted = list(newest.values())
    if all(series.state is SeriesState.INELIGIBLE for series in study.series):
        wanted = [job for job in living[-1:] if job.kind == REFUSAL]
    return [job for job in wanted if job.state in {JobState.FAILED, JobState.CANCELLED}]


def requeue(session: Session, job: Job, *, at: datetime, actor: str) -> None:
    """Give a failed or held job a fresh set of attempts, at an operator's word."""
    said = {} if job.kind == REFUSAL else {"reason_code": None, "reason": None}
    _restart(session, job, at=at, actor=actor, last_error="requeued by an operator", **said)


def requeue_study(session: Session, study: Study, *, at: datetime, actor: str) -> int:
    """Have a study analysed again that has failed or is held; return the number of jobs, 0 if it is neither.

    One that is held while images come counts as one: its job is made when they are all there.
    """
    found, was_held = requeueable(session, study), study.held_reason is not None
    study.held_reason = study.held_at = None
    for job in found:
        requeue(session, job, at=at, actor=actor)
    return len(found) or int(was_held)
