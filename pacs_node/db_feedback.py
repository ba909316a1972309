"""Tables of what analyses found, in columns, and of what radiologists say of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from pacs_node.db import Base, Job

UNDETERMINED = "undetermined"
"""Lung-RADS category of a result that says why it has none."""


class SummaryOutcome(StrEnum):
    """What a job that ended says of its study."""

    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"
    FAILED = "failed"
    #: its series was unsuitable and another one took its place: it says nothing
    PASSED_ON = "passed_on"


class VerdictKind(StrEnum):
    """What somebody says of a finding, or of what was not found."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    EDITED = "edited"
    #: a nodule that the analysis has not found
    MISSED = "missed"
    #: the verdict before it no longer stands
    WITHDRAWN = "withdrawn"


class RejectReason(StrEnum):
    """Why a finding is no nodule."""

    VESSEL = "vessel"
    SCAR = "scar"
    PLEURAL_THICKENING = "pleural_thickening"
    LYMPH_NODE = "lymph_node"
    ARTEFACT = "artefact"
    NOT_A_NODULE = "not_a_nodule"
    OTHER = "other"
    #: it is left out of a report that came back
    NOT_STATED = "not_stated"


class VerdictSource(StrEnum):
    """How a verdict came here."""

    PAGE = "page"
    #: a program, by the JSON API
    API = "api"
    SR = "sr"
    SEG = "seg"


class AnalysisSummary(Base):
    """One job that ended, from its ``result.json``; texts are empty and numbers None where it doesn't say."""

    __tablename__ = "analysis_summary"
    __table_args__ = (
        Index("analysis_summary_use", "pipeline_version", "finished_at"),
        Index("analysis_summary_week", "week"),
        Index("analysis_summary_lung_rads", "lung_rads", "job_id"),
    )

    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), primary_key=True, autoincrement=False)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    finished_at: Mapped[datetime]
    #: Monday of the week in which it ended, UTC, e.g. ``2026-03-02``
    week: Mapped[str]
    #: a value of `SummaryOutcome`
    outcome: Mapped[str]
    reason_code: Mapped[str]
    pipeline_version: Mapped[str]
    #: manufacturer and model
    scanner: Mapped[str]
    kernel: Mapped[str]
    slice_thickness_mm: Mapped[float | None]
    n_findings: Mapped[int | None]
    n_solid: Mapped[int | None]
    n_part_solid: Mapped[int | None]
    n_ground_glass: Mapped[int | None]
    #: largest mean diameter
    largest_mm: Mapped[float | None]
    #: highest of the image alone, 0..1
    malignancy: Mapped[float | None]
    #: category of the node's own reading, with its modifier; ``undetermined``, or empty if it doesn't say.
    #: None: not read since the column is there
    lung_rads: Mapped[str | None]


class Nodule(Base):
    """One finding of a job; lengths in mm, volume in mm3, probabilities 0..1."""

    __tablename__ = "nodule"
    __table_args__ = (
        UniqueConstraint("job_id", "tracking_uid"),
        Index("nodule_by_size", "mean_diameter_mm", "malignancy", "attenuation", "job_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), index=True)
    number: Mapped[int]
    tracking_uid: Mapped[str] = mapped_column(index=True)
    tracking_id: Mapped[str]
    #: in words
    site: Mapped[str]
    attenuation: Mapped[str]
    long_axis_mm: Mapped[float | None]
    short_axis_mm: Mapped[float | None]
    mean_diameter_mm: Mapped[float | None]
    volume_mm3: Mapped[float | None]
    detection_probability: Mapped[float | None]
    malignancy: Mapped[float | None]
    malignancy_fused: Mapped[float | None]


class PipelineCards(Base):
    """The model cards of a pipeline version, as its first result names them."""

    __tablename__ = "pipeline_cards"

    pipeline_version: Mapped[str] = mapped_column(primary_key=True)
    #: as in ``result.json``, ``models``
    cards: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class Verdict(Base):
    """What a radiologist says of a finding. Rows are never changed; the latest of a tracking UID holds."""

    __tablename__ = "verdict"
    __table_args__ = (Index("verdict_of", "study_id", "tracking_uid", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    #: Monday of its week, UTC
    week: Mapped[str] = mapped_column(index=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    #: whose result is judged
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), index=True)
    pipeline_version: Mapped[str]
    #: of the finding; of a nodule that was missed, one of its own
    tracking_uid: Mapped[str]
    #: a value of `VerdictKind`
    kind: Mapped[str]
    #: a value of `RejectReason`; None unless rejected
    reason: Mapped[str | None]
    text: Mapped[str]
    #: of an edit: new values by the names of `Nodule`, ``dice`` and ``volume_change``;
    #: of a missed nodule: where it lies
    changes: Mapped[dict[str, Any]]
    #: a value of `VerdictSource`
    source: Mapped[str]
    #: account, or AE title of the sender
    actor: Mapped[str]
    #: who verified the document, as it says
    observer: Mapped[str]
    #: the object that it was read from
    sop_instance_uid: Mapped[str | None]


class ReturnedObject(Base):
    """A SEG or SR that came from elsewhere and was looked at once, whether it speaks of a result of ours."""

    __tablename__ = "returned_object"

    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id"), primary_key=True, autoincrement=False)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    looked_at: Mapped[datetime]
    #: None: it doesn't speak of one
    job_id: Mapped[int | None] = mapped_column(ForeignKey("job.id"))
    #: verdicts that were read from it
    n_verdicts: Mapped[int]
    #: what came of it, in words
    status: Mapped[str]


class DriftReading(Base):
    """The latest comparison of recent results with earlier ones; one row."""

    __tablename__ = "drift_reading"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    #: see `pacs_node.drift`
    content: Mapped[dict[str, Any]]


#: the jobs that ended last are looked for again and again
Index("job_finished", Job.__table__.c.finished_at)
