"""Brings what analyses found into columns: read once from ``result.json`` when a job has ended.

The page and the statistics ask these rows; to open a file for each of 100,000 studies would take minutes.
Results that are older than the tables are read at the scheduler's start, a portion at a time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from pathlib import Path
from typing import Any

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from pacs_node.db import Artifact, Database, Job, Series
from pacs_node.db_feedback import UNDETERMINED, AnalysisSummary, Nodule, PipelineCards, SummaryOutcome
from pacs_node.states import JobOutcome, JobState

logger = logging.getLogger(__name__)

PORTION = 200
"""Jobs that one tick reads."""

_LARGEST_BYTES = 16 << 20
_OVERLAP = timedelta(hours=1)
_LOOK_AT_ALL = 1800
"""Ticks."""
_LONGEST_TEXT = 256
_NOT_ENDED = (JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class _Ended:
    """A job that ended and has no row yet."""

    job_id: int
    study_id: int
    finished_at: datetime
    state: JobState
    outcome: str | None
    reason_code: str
    pipeline_version: str
    #: of its ``result.json``: None if it made none; empty if it was removed
    path: str | None


def monday(at: datetime) -> str:
    """First day of the week of a time, UTC, as ``2026-03-02``."""
    day = at.astimezone(UTC).date()
    return (day - timedelta(days=day.weekday())).isoformat()


class Summaries:
    """Writes the rows of jobs that have ended.

    Parameters
    ----------
    database
        Holds jobs and rows.
    directory
        The storage directory.
    """

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        #: jobs that ended before have their rows; None: all are looked at
        self._since: datetime | None = None
        self._ticks = 0

    def tick(self) -> int:
        """Write the rows of the jobs that have none, at most `PORTION`; return how many."""
        if self._ticks % _LOOK_AT_ALL == 0:
            # whoever has set the clock meanwhile
            self._since = None
        self._ticks += 1
        with self._database.read() as session:
            due = _due(session, since=self._since)
        self._read(due)
        # the oldest come first: those before the last of them have their rows
        last = due[-1].finished_at if due else self._newest() if self._since is None else None
        if last is not None:
            self._since = last - _OVERLAP
        return len(due)

    def read_study(self, study_id: int) -> None:
        """Write the rows of one study now."""
        with self._database.read() as session:
            due = _due(session, study_id=study_id)
        self._read(due)

    def _read(self, due: Sequence[_Ended]) -> None:
        read = [(job, self._content(job)) for job in due]
        if read:
            with self._database.write() as session:
                for job, content in read:
                    _write(session, job, content)

    def _newest(self) -> datetime | None:
        newest = select(AnalysisSummary.finished_at).order_by(AnalysisSummary.job_id.desc()).limit(1)
        with self._database.read() as session:
            return session.scalar(newest)

    def _content(self, job: _Ended) -> dict[str, Any]:
        """What ``result.json`` holds; empty where it is gone or isn't one."""
        if not job.path:
            return {}
        path = self._directory / job.path
        try:
            if path.stat().st_size > _LARGEST_BYTES:
                return {}
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("a result can't be read", extra={"job": job.job_id, "error": type(error).__name__})
            return {}
        return found if isinstance(found, dict) else {}


def _due(session: Session, *, since: datetime | None = None, study_id: int | None = None) -> list[_Ended]:
    """Jobs without a row, or with one of an earlier end or schema; the oldest first."""
    query = (
        select(Job, Series.study_id)
        .join(Series, Job.series_id == Series.id)
        .outerjoin(
            AnalysisSummary,
            and_(AnalysisSummary.job_id == Job.id, AnalysisSummary.finished_at == Job.finished_at),
        )
        .where(
            # as a negation: SQLite would take the index over the states, which most jobs share
            Job.state.not_in(_NOT_ENDED),
            Job.finished_at.is_not(None),
            # a row of before migration 0011 is written anew
            or_(AnalysisSummary.job_id.is_(None), AnalysisSummary.lung_rads.is_(None)),
        )
        .order_by(Job.finished_at, Job.id)
        .limit(PORTION)
    )
    if since is not None:
        query = query.where(Job.finished_at >= since)
    if study_id is not None:
        query = query.where(Series.study_id == study_id)
    rows = session.execute(query).tuples().all()
    ids = [job.id for job, _ in rows]
    results = select(Artifact.job_id, Artifact.path).where(Artifact.job_id.in_(ids), Artifact.kind == "json")
    paths = {job_id: path or "" for job_id, path in session.execute(results.order_by(Artifact.id)).tuples()}
    return [
        _Ended(
            job.id,
            study_id,
            job.finished_at or job.created_at,
            job.state,
            job.outcome,
            job.reason_code or "",
            job.pipeline_version,
            paths.get(job.id),
        )
        for job, study_id in rows
    ]


def _outcome(job: _Ended) -> SummaryOutcome:
    if job.state is JobState.FAILED:
        return SummaryOutcome.FAILED
    if job.outcome == JobOutcome.ANALYSED.value:
        return SummaryOutcome.ANALYSED
    return SummaryOutcome.PASSED_ON if job.path is None else SummaryOutcome.NOT_ANALYSED


def _write(session: Session, job: _Ended, content: dict[str, Any]) -> None:
    before = session.get(AnalysisSummary, job.job_id)
    if before is not None and before.finished_at == job.finished_at and not content:
        # its file is gone: what was read of it before holds
        before.lung_rads = ""
        return
    # a job that an operator had done again ends anew
    for table in (Nodule, AnalysisSummary):
        session.execute(delete(table).where(table.job_id == job.job_id))
    outcome = _outcome(job)
    analysed = outcome is SummaryOutcome.ANALYSED
    findings = _mappings(content, "findings") if analysed else []
    nodules = [_nodule(job.job_id, number, item) for number, item in enumerate(findings, start=1)]
    nodules = list({row.tracking_uid: row for row in nodules if row.tracking_uid}.values())
    series = _mapping(_mapping(content, "series"), "analysed")
    known = analysed and bool(content)
    session.add(
        AnalysisSummary(
            job_id=job.job_id,
            study_id=job.study_id,
            finished_at=job.finished_at,
            week=monday(job.finished_at),
            outcome=outcome.value,
            reason_code=job.reason_code,
            pipeline_version=job.pipeline_version,
            scanner=_text(series, "scanner"),
            kernel=_text(series, "kernel"),
            slice_thickness_mm=_thickness(series),
            n_findings=len(findings) if known else None,
            n_solid=_count(findings, "solid") if known else None,
            n_part_solid=_count(findings, "part-solid") if known else None,
            n_ground_glass=_count(findings, "ground-glass") if known else None,
            largest_mm=max((row.mean_diameter_mm for row in nodules if row.mean_diameter_mm), default=None),
            malignancy=max((row.malignancy for row in nodules if row.malignancy is not None), default=None),
            lung_rads=_lung_rads(content) if analysed else "",
        )
    )
    session.add_all(nodules)
    cards = _mappings(content, "models")
    if cards and session.get(PipelineCards, job.pipeline_version) is None:
        session.add(PipelineCards(pipeline_version=job.pipeline_version, cards=cards))
    session.flush()


def _nodule(job_id: int, number: int, item: dict[str, Any]) -> Nodule:
    measured, malignancy = _mapping(item, "measurements"), _mapping(item, "malignancy")
    return Nodule(
        job_id=job_id,
        number=number,
        tracking_uid=_text(item, "tracking_uid"),
        tracking_id=_text(item, "tracking_id"),
        site=_text(_mapping(item, "site"), "words"),
        attenuation=_text(item, "attenuation"),
        long_axis_mm=_number(measured, "long_axis_mm"),
        short_axis_mm=_number(measured, "short_axis_mm"),
        mean_diameter_mm=_number(measured, "mean_diameter_mm"),
        volume_mm3=_number(measured, "volume_mm3"),
        detection_probability=_number(item, "detection_probability"),
        malignancy=_number(malignancy, "image_only"),
        malignancy_fused=_number(malignancy, "fused"),
    )


def _lung_rads(content: dict[str, Any]) -> str:
    """The category of the whole examination; empty if the result says nothing of it."""
    said = {_text(item, "name"): _text(item, "value") for item in _mappings(content, "observations")}
    return said.get("lung_rads") or (UNDETERMINED if "lung_rads_undetermined" in said else "")


def _thickness(series: dict[str, Any]) -> float | None:
    """Of the slices; their distance where the images don't say."""
    stated = _number(series, "slice_thickness_mm")
    spacing = series.get("spacing_mm")
    if stated is not None or not isinstance(spacing, list) or not spacing:
        return stated
    return _number({"z": spacing[0]}, "z")


def _count(findings: Sequence[dict[str, Any]], attenuation: str) -> int:
    return sum(item.get("attenuation") == attenuation for item in findings)


def _mapping(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _mappings(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = found.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(found: dict[str, Any], key: str) -> str:
    """A text that both databases can hold."""
    value = found.get(key)
    return value.replace("\0", "")[:_LONGEST_TEXT] if isinstance(value, str) else ""


def _number(found: dict[str, Any], key: str) -> float | None:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None
