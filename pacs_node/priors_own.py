"""Earlier examinations that the node has received itself: images that are still there, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node import jobs
from pacs_node.archive import day_of
from pacs_node.db import Artifact, Job, Series, Study
from pacs_node.request import KeptResult
from pacs_node.states import SeriesState

_LABEL_MAP = "labelmap"


@dataclass(frozen=True, slots=True)
class OwnPrior:
    """The series of an earlier study that was, or would be, analysed.

    Parameters
    ----------
    files
        Its instances; empty where retention has removed them.
    """

    study_uid: str
    series_uid: str
    day: date
    files: tuple[Path, ...]
    input_digest: str
    result: KeptResult | None


def own_priors(
    session: Session, directory: Path, study_uid: str, patient_id: str, *, first: date, before: date
) -> list[OwnPrior]:
    """Return the patient ID's other studies of a span of days, the latest first; nobody has read an image.

    Parameters
    ----------
    directory
        The storage directory.
    study_uid
        The study to leave out.
    """
    rows = session.execute(
        select(Study)
        .where(
            Study.patient_id == patient_id,
            Study.study_uid != study_uid,
            Study.study_date >= f"{first:%Y%m%d}",
            Study.study_date < f"{before:%Y%m%d}",
        )
        .order_by(Study.study_date.desc(), Study.id.desc())
    ).scalars()
    found = (_of_study(session, directory, study) for study in rows)
    return [one for one in found if one is not None]


def _of_study(session: Session, directory: Path, study: Study) -> OwnPrior | None:
    day = day_of(study.study_date)
    analysed = (
        select(Job)
        .join(Series, Job.series_id == Series.id)
        .where(Series.study_id == study.id, Job.kind == jobs.ANALYSIS, Job.outcome == jobs.ANALYSED)
        .order_by(Job.finished_at.desc(), Job.id.desc())
        .limit(1)
    )
    job = session.execute(analysed).scalar_one_or_none()
    chosen = [row for row in study.series if row.state is SeriesState.QUEUED and row.rank is not None]
    series = job.series if job is not None else min(chosen, key=lambda row: row.rank or 0, default=None)
    if day is None or series is None:
        return None
    paths = [directory / row.path for row in series.instances if row.path is not None]
    whole = len(paths) == len(series.instances) and all(path.exists() for path in paths)
    return OwnPrior(
        study.study_uid,
        series.series_uid,
        day,
        tuple(paths) if whole else (),
        jobs.input_digest(series) if job is None else job.input_digest,
        None if job is None else _result(directory, job),
    )


def _result(directory: Path, job: Job) -> KeptResult | None:
    """The files of a result that say what was found; None where they were removed."""
    kept: dict[str, list[Artifact]] = {"json": [], "seg": []}
    for row in job.artifacts:
        if row.kind in kept and row.path is not None and (directory / row.path).exists():
            kept[row.kind].append(row)
    if not kept["json"]:
        return None
    masks = sorted(kept["seg"], key=lambda row: (_LABEL_MAP in row.encoding, row.id))
    seg = next((row.path for row in masks if row.path is not None), None)
    return KeptResult(directory / str(kept["json"][-1].path), None if seg is None else directory / seg)
