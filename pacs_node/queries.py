"""Read-only questions to the database that the page and ``pacs-node status`` both ask.

Nothing here opens a file or writes a row. Answers are plain frozen values, so that a page can be made
after the transaction has ended: with SQLite a long reader holds up the listener.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from pacs_node.db import Artifact, Delivery, Job, Series, Study
from pacs_node.db_feedback import AnalysisSummary
from pacs_node.jobs import NOT_ANALYSED, REFUSAL
from pacs_node.states import JobState, SeriesState
from pacs_node.study_state import WORST_FIRST, delivery_word, shown_job, study_word
from pacs_node.study_state import DeliveryWord as DeliveryWord  # noqa: PLC0414 - asked for here too
from pacs_node.study_state import StudyWord as StudyWord  # noqa: PLC0414
from pacs_node.timeline import TimelineLine as TimelineLine  # noqa: PLC0414 - asked for here too
from pacs_node.timeline import timeline as timeline  # noqa: PLC0414

_CHUNK = 500
LARGEST_ID = 2**63 - 1
"""Of a row; SQLite can't compare with a larger number."""


class Tone(StrEnum):
    """How much attention something needs; the page shows it as a sign and a colour beside the word."""

    DONE = "done"
    BUSY = "busy"
    NOTICE = "notice"
    FAILED = "failed"


_STUDY_TONES = {
    StudyWord.ANALYSED: Tone.DONE,
    StudyWord.NOT_ANALYSED: Tone.NOTICE,
    StudyWord.NOTHING_TO_ANALYSE: Tone.NOTICE,
    StudyWord.CANCELLED: Tone.NOTICE,
    StudyWord.FAILED: Tone.FAILED,
}
_DELIVERY_TONES = {
    DeliveryWord.FAILING: Tone.NOTICE,
    DeliveryWord.FAILED: Tone.FAILED,
    DeliveryWord.SENT: Tone.DONE,
    DeliveryWord.VISIBLE: Tone.DONE,
}


@dataclass(frozen=True, slots=True)
class DeliverySummary:
    """What became of the results of one job, over all destinations: the worst of them counts.

    Parameters
    ----------
    word
        The state.
    detail
        Destination and reason where something is wrong, else empty.
    since
        When the last object was sent or verified; of a failing one, when the next attempt is due.
    """

    word: DeliveryWord
    detail: str
    since: datetime

    @property
    def tone(self) -> Tone:
        """How much attention it needs."""
        return delivery_tone(self.word)


@dataclass(frozen=True, slots=True)
class StudyState:
    """Where a study is, in words.

    Parameters
    ----------
    word
        The state.
    detail
        What is known beyond the word: a reason code with its sentence, or a count. No patient data.
    since
        When it got there; of a study that is being received, when the last image came.
    delivery
        What became of the results, None where there are none.
    result_path
        Of the shown job's ``result.json``, relative to the storage directory; None where there is none.
    """

    word: StudyWord
    detail: str
    since: datetime
    delivery: DeliverySummary | None = None
    result_path: str | None = None

    @property
    def sentence(self) -> str:
        """All of it in one line, without times."""
        parts = [_reason(self.word, self.detail)]
        if self.delivery is not None:
            parts.append(_reason(self.delivery.word, self.delivery.detail))
        return "; ".join(parts)

    @property
    def tone(self) -> Tone:
        """How much attention it needs."""
        return study_tone(self.word)

    @property
    def finished(self) -> bool:
        """Whether nothing will change by itself any more."""
        return self.tone is not Tone.BUSY and (
            self.delivery is None or self.delivery.word in {DeliveryWord.VISIBLE, DeliveryWord.FAILED}
        )


@dataclass(frozen=True, slots=True)
class StudyLine:
    """One row of the list of studies; the texts are as the sender wrote them."""

    id: int
    study_uid: str
    patient_id: str
    patient_name: str
    accession_number: str
    study_date: str
    description: str
    received_at: datetime
    n_images: int
    modalities: tuple[str, ...]
    state: StudyState
    #: nodules that the analysis found, None where that isn't known
    n_findings: int | None = None
    #: category of the node's own reading, or ``undetermined``; empty where the result doesn't say
    lung_rads: str = ""


def find_studies(session: Session, key: str) -> list[Study]:
    """Studies with this Study Instance UID, accession number or patient ID; the newest first."""
    if not key:
        return []
    same = or_(Study.study_uid == key, Study.accession_number == key, Study.patient_id == key)
    return list(session.execute(select(Study).where(same).order_by(Study.id.desc())).scalars())


def study_lines(session: Session, studies: Sequence[Study]) -> tuple[StudyLine, ...]:
    """Rows of the list for these studies, in their order."""
    states = study_states(session, studies)
    series = _series_by_study(session, [study.id for study in studies])
    found = _findings_by_job(session, [study.shown_job_id for study in studies])
    return tuple(
        StudyLine(
            id=study.id,
            study_uid=study.study_uid,
            patient_id=study.patient_id,
            patient_name=study.patient_name,
            accession_number=study.accession_number,
            study_date=study.study_date,
            description=study.description,
            received_at=study.first_received_at,
            n_images=sum(row.n_instances for row in series[study.id]),
            modalities=tuple(sorted({row.modality for row in series[study.id] if row.modality})),
            state=states[study.id],
            n_findings=found.get(study.shown_job_id, (None, ""))[0],
            lung_rads=found.get(study.shown_job_id, (None, ""))[1],
        )
        for study in studies
    )


def _findings_by_job(
    session: Session, job_ids: Sequence[int | None]
) -> dict[int | None, tuple[int | None, str]]:
    """The number of findings and the Lung-RADS category of each job that has them in columns."""
    query = select(AnalysisSummary.job_id, AnalysisSummary.n_findings, AnalysisSummary.lung_rads)
    rows = session.execute(query.where(AnalysisSummary.job_id.in_(job_ids))).tuples()
    return {job_id: (count, lung_rads or "") for job_id, count, lung_rads in rows}


def study_state(session: Session, study: Study) -> StudyState:
    """Where one study is."""
    return study_states(session, [study])[study.id]


def study_states(session: Session, studies: Sequence[Study]) -> dict[int, StudyState]:
    """Where each of the studies is, by row id; few queries for many studies."""
    states: dict[int, StudyState] = {}
    for start in range(0, len(studies), _CHUNK):
        chunk = studies[start : start + _CHUNK]
        ids = [study.id for study in chunk]
        series = _series_by_study(session, ids)
        jobs = _jobs_by_study(session, ids)
        shown = {key: shown_job(rows) for key, rows in jobs.items()}
        job_ids = [job.id for job in shown.values() if job is not None]
        deliveries = _deliveries_by_job(session, job_ids)
        results = _results_by_job(session, job_ids)
        for study in chunk:
            job = shown.get(study.id)
            states[study.id] = _state(
                study,
                series[study.id],
                job,
                _summary(deliveries[job.id]) if job is not None else None,
                results.get(job.id) if job is not None else None,
            )
    return states


def _series_by_study(session: Session, study_ids: Sequence[int]) -> defaultdict[int, list[Series]]:
    found: defaultdict[int, list[Series]] = defaultdict(list)
    rows = session.execute(select(Series).where(Series.study_id.in_(study_ids)).order_by(Series.id))
    for row in rows.scalars():
        found[row.study_id].append(row)
    return found


def _jobs_by_study(session: Session, study_ids: Sequence[int]) -> defaultdict[int, list[Job]]:
    found: defaultdict[int, list[Job]] = defaultdict(list)
    query = select(Series.study_id, Job).join(Series, Job.series_id == Series.id)
    for study_id, job in session.execute(query.where(Series.study_id.in_(study_ids)).order_by(Job.id)):
        found[study_id].append(job)
    return found


def _deliveries_by_job(session: Session, job_ids: Sequence[int]) -> defaultdict[int, list[Delivery]]:
    found: defaultdict[int, list[Delivery]] = defaultdict(list)
    query = select(Artifact.job_id, Delivery).join(Artifact, Delivery.artifact_id == Artifact.id)
    for job_id, delivery in session.execute(query.where(Artifact.job_id.in_(job_ids)).order_by(Delivery.id)):
        found[job_id].append(delivery)
    return found


def _results_by_job(session: Session, job_ids: Sequence[int]) -> dict[int, str | None]:
    query = select(Artifact.job_id, Artifact.path).where(
        Artifact.job_id.in_(job_ids), Artifact.kind == "json"
    )
    return {row.job_id: row.path for row in session.execute(query)}


def _state(
    study: Study,
    series: Sequence[Series],
    job: Job | None,
    delivery: DeliverySummary | None,
    result_path: str | None,
) -> StudyState:
    last_image = max((row.last_received_at for row in series), default=study.first_received_at)
    word = study_word((row.state for row in series), job)
    if word is StudyWord.RECEIVING:
        images = _counted(sum(row.n_instances for row in series), "image")
        n_open = sum(row.state == SeriesState.RECEIVING for row in series)
        return StudyState(word, f"{images} so far, {n_open} of {len(series)} series open", last_image)
    if word is StudyWord.RECEIVED:
        return StudyState(word, "a series is being chosen", last_image)
    if job is None:
        reasons = "; ".join(dict.fromkeys(_reason(row.reason_code, row.reason) for row in series))
        return StudyState(word, reasons, last_image)
    detail, since = _job_words(job)
    return StudyState(word, detail, since, delivery, result_path)


def _job_words(job: Job) -> tuple[str, datetime]:
    """What is known of a job beyond its word, and when it got there."""
    report = job.kind == REFUSAL
    why = _reason(job.reason_code, job.reason)
    ended = job.finished_at or job.created_at
    if job.state == JobState.RUNNING:
        detail = f"the report that says why not: {why}" if report else f"attempt {job.attempts}"
        return detail, job.started_at or job.created_at
    if job.state == JobState.QUEUED:
        return f"the report that says why not: {why}" if report else job.last_error or "", job.created_at
    if job.state == JobState.FAILED:
        return (job.last_error if report else why) or job.last_error or "", ended
    if job.state == JobState.CANCELLED:
        return why_cancelled(job), ended
    return why if job.outcome == NOT_ANALYSED else "", ended


def why_cancelled(job: Job) -> str:
    """The cause in a word, and the sentence: ``held: asked Dr Miller first``; empty if it isn't cancelled."""
    return _reason(job.cancelled_because, job.cancelled_reason)


def _summary(deliveries: Sequence[Delivery]) -> DeliverySummary | None:
    if not deliveries:
        return None
    by_word: defaultdict[DeliveryWord, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        by_word[delivery_word(delivery)].append(delivery)
    word = next(word for word in WORST_FIRST if by_word[word])
    rows = by_word[word]
    if word in {DeliveryWord.FAILED, DeliveryWord.FAILING}:
        detail = "; ".join(sorted({f"{row.destination}: {row.status or 'no status'}" for row in rows}))
        return DeliverySummary(word, detail, max(row.next_attempt_at for row in rows))
    times = [row.verified_at or row.sent_at or row.created_at for row in rows]
    return DeliverySummary(word, "", max(times))


def study_tone(word: StudyWord) -> Tone:
    """How much attention a study needs."""
    return _STUDY_TONES.get(word, Tone.BUSY)


def delivery_tone(word: DeliveryWord) -> Tone:
    """How much attention a delivery needs."""
    return _DELIVERY_TONES.get(word, Tone.BUSY)


def _reason(code: str | None, sentence: str | None) -> str:
    return ": ".join(part for part in (code, sentence) if part)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
