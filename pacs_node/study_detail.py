"""Everything that the database knows of one study."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_sr.profiles import Form
from pacs_node.db import Artifact, Conflict, Delivery, Instance, Job, Series, Study
from pacs_node.jobs import ANALYSIS, NOT_ANALYSED
from pacs_node.queries import (
    DeliveryWord,
    StudyLine,
    TimelineLine,
    Tone,
    delivery_tone,
    study_lines,
    timeline,
    why_cancelled,
)
from pacs_node.states import DeliveryState, JobState, SeriesState
from pacs_node.study_state import delivery_word

_JOB_TONES = {
    JobState.SUCCEEDED: Tone.DONE,
    JobState.FAILED: Tone.FAILED,
    JobState.CANCELLED: Tone.NOTICE,
}


@dataclass(frozen=True, slots=True)
class SeriesLine:
    """One received series and what was decided about it.

    Parameters
    ----------
    number
        1-based, in the order of arrival; the timeline uses it too.
    verdict
        ``chosen``, ``set aside`` or the state it is in until then.
    n_conflicts
        Images that came with other bytes under a known UID.
    """

    number: int
    series_uid: str
    modality: str
    description: str
    calling_ae: str
    n_images: int
    last_received_at: datetime
    verdict: str
    reason_code: str
    reason: str
    n_conflicts: int


@dataclass(frozen=True, slots=True)
class FileLine:
    """A file that a job made; `path` is relative to the storage directory, None once removed by retention."""

    id: int
    kind: str
    #: kind and encoding for people, e.g. ``SEG (all frames)``
    words: str
    name: str
    path: str | None
    sha256: str
    sop_instance_uid: str | None


@dataclass(frozen=True, slots=True)
class JobLine:
    """One analysis, or the report that says why there was none."""

    id: int
    series_number: int
    kind: str
    state: JobState
    tone: Tone
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str
    reason: str
    last_error: str
    pipeline_version: str
    input_digest: str
    files: tuple[FileLine, ...]

    def kept(self, kind: str) -> tuple[FileLine, ...]:
        """Its files of one kind that are still there."""
        return tuple(file for file in self.files if file.kind == kind and file.path is not None)


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """One object on its way to one destination; `next_attempt_at` only where it will be tried again."""

    #: kind and encoding for people
    words: str
    job_id: int
    destination: str
    word: DeliveryWord
    tone: Tone
    attempts: int
    status: str
    sent_at: datetime | None
    verified_at: datetime | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class StudyDetail:
    """One study; jobs and deliveries are the newest first."""

    line: StudyLine
    series: tuple[SeriesLine, ...]
    jobs: tuple[JobLine, ...]
    deliveries: tuple[DeliveryLine, ...]
    timeline: tuple[TimelineLine, ...]

    @property
    def shown_job(self) -> JobLine | None:
        """The newest job that made files."""
        return next((job for job in self.jobs if job.files), None)


def study_detail(session: Session, study_uid: str) -> StudyDetail | None:
    """Ask for all of a study; None if there is none with this UID."""
    study = session.execute(select(Study).where(Study.study_uid == study_uid)).scalar_one_or_none()
    if study is None:
        return None
    series = (
        session.execute(select(Series).where(Series.study_id == study.id).order_by(Series.id)).scalars().all()
    )
    numbers = {row.id: number for number, row in enumerate(series, start=1)}
    jobs = (
        session.execute(select(Job).where(Job.series_id.in_(numbers)).order_by(Job.id.desc())).scalars().all()
    )
    files = _files(session, [job.id for job in jobs])
    conflicts = _conflicts(session, list(numbers))
    analysed = {job.series_id for job in jobs if job.kind == ANALYSIS and job.state != JobState.CANCELLED}
    return StudyDetail(
        line=study_lines(session, [study])[0],
        series=tuple(
            _series_line(row, numbers[row.id], conflicts.get(row.id, 0), tried=row.id in analysed)
            for row in series
        ),
        jobs=tuple(_job_line(job, numbers[job.series_id], files[job.id]) for job in jobs),
        deliveries=_deliveries(session, [job.id for job in jobs]),
        timeline=timeline(session, study_uid),
    )


def _series_line(row: Series, number: int, n_conflicts: int, *, tried: bool) -> SeriesLine:
    if row.state == SeriesState.INELIGIBLE:
        verdict = "set aside after a look at its pixels" if tried else "set aside"
    elif row.state == SeriesState.QUEUED:
        verdict = "chosen"
    else:
        verdict = "arriving" if row.state == SeriesState.RECEIVING else "complete"
    return SeriesLine(
        number=number,
        series_uid=row.series_uid,
        modality=row.modality,
        description=row.description,
        calling_ae=row.calling_ae,
        n_images=row.n_instances,
        last_received_at=row.last_received_at,
        verdict=verdict,
        reason_code=row.reason_code or "",
        reason=row.reason or "",
        n_conflicts=n_conflicts,
    )


def _conflicts(session: Session, series_ids: list[int]) -> dict[int, int]:
    query = (
        select(Instance.series_id, func.count())
        .join(Conflict, Conflict.instance_id == Instance.id)
        .where(Instance.series_id.in_(series_ids), Conflict.same_content.is_not(True))
        .group_by(Instance.series_id)
    )
    return dict(session.execute(query).tuples().all())


def _files(session: Session, job_ids: list[int]) -> defaultdict[int, list[FileLine]]:
    """Files by job; where an operator had a job done again, a name stands for the newest file."""
    found: defaultdict[int, dict[str, FileLine]] = defaultdict(dict)
    rows = session.execute(select(Artifact).where(Artifact.job_id.in_(job_ids)).order_by(Artifact.id))
    for row in rows.scalars():
        name = PurePosixPath(row.path).name if row.path else f"{row.kind} {row.id}"
        found[row.job_id][name] = FileLine(
            row.id, row.kind, _words(row), name, row.path, row.sha256, row.sop_instance_uid
        )
    return defaultdict(list, {job_id: list(files.values()) for job_id, files in found.items()})


def _job_line(job: Job, series_number: int, files: list[FileLine]) -> JobLine:
    not_analysed = job.state == JobState.SUCCEEDED and job.outcome == NOT_ANALYSED
    return JobLine(
        id=job.id,
        series_number=series_number,
        kind=job.kind,
        state=job.state,
        tone=Tone.NOTICE if not_analysed else _JOB_TONES.get(job.state, Tone.BUSY),
        attempts=job.attempts,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        outcome=(job.outcome or "").replace("_", " "),
        reason=why_cancelled(job) or ": ".join(part for part in (job.reason_code, job.reason) if part),
        last_error=job.last_error or "",
        pipeline_version=job.pipeline_version,
        input_digest=job.input_digest,
        files=tuple(files),
    )


def _deliveries(session: Session, job_ids: list[int]) -> tuple[DeliveryLine, ...]:
    query = (
        select(Delivery, Artifact)
        .join(Artifact, Delivery.artifact_id == Artifact.id)
        .where(Artifact.job_id.in_(job_ids))
        .order_by(Artifact.job_id.desc(), Delivery.destination, Delivery.id)
    )
    return tuple(
        DeliveryLine(
            words=_words(artifact),
            job_id=artifact.job_id,
            destination=row.destination,
            word=delivery_word(row),
            tone=delivery_tone(delivery_word(row)),
            attempts=row.attempts,
            status=row.status or "",
            sent_at=row.sent_at,
            verified_at=row.verified_at,
            next_attempt_at=row.next_attempt_at if row.state == DeliveryState.PENDING else None,
        )
        for row, artifact in session.execute(query).tuples()
    )


def _words(artifact: Artifact) -> str:
    return Form.parse(artifact.form).words if artifact.sop_instance_uid else artifact.kind.upper()
