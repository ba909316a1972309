"""What an analysis is asked for: one claimed job, as the rows and the settings say it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from dicom_sr.context import OtherSeries, Predecessor
from dicom_sr.profiles import union
from inference.errors import ReasonCode
from pacs_node import jobs
from pacs_node.completeness import lacks_images, sentence_of_lack
from pacs_node.config import Settings
from pacs_node.db import Artifact, Delivery, Job, Series
from pacs_node.recipients import recipients
from pacs_node.request import CaseRequest, Receiver, Refusal
from pacs_node.states import SeriesState

#: what the request says for `pipeline.examinations`
_SCREENING = {"by-header": None, "screening": True, "other": False}


def case_request(session: Session, job: Job, settings: Settings, *, confined: bool) -> CaseRequest:
    """Return what the analysis of a claimed job needs to know.

    Parameters
    ----------
    confined
        Whether the engine gives its rights away; see `pacs_node.engines`.

    Raises
    ------
    ValueError
        A refusal has no reason code that is known.
    """
    pipeline, directory = settings.pipeline, Path(settings.storage.directory)
    series = job.series
    study = series.study
    refusal = None
    if job.kind == jobs.REFUSAL:
        refusal = _own_refusal(job)
    elif job.attempts > pipeline.max_attempts:
        refusal = Refusal(
            ReasonCode.SOFTWARE_FAILURE, "The analysis stopped its process each time it was tried."
        )
    alternative = exists().where(
        Series.study_id == study.id,
        Series.state == SeriesState.INELIGIBLE,
        Series.rank > (series.rank or 0),
    )
    first = series.instances[0]
    told = recipients(session, study.id, settings.destinations, analysed=False)
    receivers = tuple(
        Receiver(item.name, item.profile, item.forms, told_why=item in told)
        for item in settings.destinations
        if item.forms
    )
    return CaseRequest(
        files=tuple(directory / row.path for row in series.instances if row.path is not None),
        out_dir=_fresh_directory(session, job, directory),
        profile=pipeline.profile,
        models=Path(pipeline.models),
        device=pipeline.device,
        input_digest=job.input_digest,
        created_at=job.created_at,
        identity={
            "SOPClassUID": first.sop_class_uid,
            "SOPInstanceUID": first.sop_instance_uid,
            "StudyInstanceUID": study.study_uid,
            "SeriesInstanceUID": series.series_uid,
            "PatientID": study.patient_id,
            "PatientName": study.patient_name,
            "AccessionNumber": study.accession_number,
            "StudyDate": study.study_date,
            "Modality": series.modality,
        },
        refusal=refusal,
        last_resort=not session.execute(select(alternative)).scalar_one(),
        predecessors=_predecessors(session, job),
        other_series=_other_series(study.series, series),
        forms=union(receiver.forms for receiver in receivers),
        receivers=receivers,
        notes=(sentence_of_lack(series),) if lacks_images(series) else (),
        wording=Path(wording) if (wording := pipeline.wording) else None,
        report_template=Path(own) if (own := pipeline.report_template) else None,
        confined=confined,
        screening=_SCREENING[pipeline.examinations],
        baseline=pipeline.without_prior == "baseline",
    )


def _own_refusal(job: Job) -> Refusal:
    if job.reason_code is None:
        raise ValueError(f"job {job.id} is a refusal without a reason code")
    return Refusal(ReasonCode(job.reason_code), job.reason or "")


def _fresh_directory(session: Session, job: Job, directory: Path) -> Path:
    """Name a folder for this attempt and remove those of attempts that came to nothing.

    An attempt never writes over files of another: a worker that has lost its lease may still be
    writing, and a requeued job may have an earlier report in the outbox.
    """
    home = directory / "results" / f"{job.id:08d}"
    paths = session.scalars(select(Artifact.path).where(Artifact.job_id == job.id))
    kept = {(directory / path).parent for path in paths if path is not None}
    for folder in home.glob("*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    return home / str(job.lease_token).rpartition(":")[2][:12]


def _predecessors(session: Session, job: Job) -> tuple[Predecessor, ...]:
    """SEG and SR of the study's latest earlier result: the new one says what it replaces.

    A report "not analysed" that went nowhere is replaced by nothing: no receiver could find it.
    """
    sent = exists().where(Delivery.artifact_id == Artifact.id)
    earlier = (
        select(Artifact)
        .join(Job, Artifact.job_id == Job.id)
        .join(Series, Job.series_id == Series.id)
        .where(
            Series.study_id == job.series.study_id, Job.id != job.id, Artifact.sop_instance_uid.is_not(None)
        )
        .where(or_(Job.outcome.is_distinct_from(jobs.NOT_ANALYSED), sent))
        .order_by(Job.finished_at.desc(), Artifact.job_id.desc(), Artifact.id)
    )
    rows = session.execute(earlier).scalars().all()
    return tuple(
        Predecessor(
            job.series.study.study_uid,
            row.series_uid or "",
            row.sop_class_uid or "",
            row.sop_instance_uid or "",
        )
        for row in rows
        if row.job_id == rows[0].job_id
    )


def _other_series(series: Sequence[Series], analysed: Series) -> tuple[OtherSeries, ...]:
    return tuple(
        OtherSeries(row.series_uid, row.modality, row.reason_code, row.reason or "")
        for row in series
        if row.id != analysed.id and row.reason_code is not None
    )
