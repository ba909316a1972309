"""Tables and transactions; how they begin: `pacs_node.connections`.

Times are UTC. A transaction either reads (`Database.read`) or writes (`Database.write`); a write
takes the lock at its start, so it never fails half-way because another process was faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    JSON,
    URL,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.types import TypeDecorator

from pacs_node.connections import WRITE, make_engine
from pacs_node.connections import is_full as is_full  # noqa: PLC0414 - asked for here too
from pacs_node.connections import journal_mode as journal_mode  # noqa: PLC0414
from pacs_node.states import CancelCause, DeliveryState, JobState, SeriesState


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware datetime, stored as naive UTC (SQLite keeps no zone)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - signature of the base
        """Refuse naive values and convert to UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - signature of the base
        """Add the zone again."""
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """Declarative base of all tables."""

    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, str: String}  # noqa: RUF012 - SQLAlchemy reads it


def _state(kind: type[StrEnum]) -> Enum:
    """A column that holds only the states of `kind`; the database checks it too."""
    return Enum(
        kind,
        name=f"{kind.__name__.lower()}_known",
        native_enum=False,
        create_constraint=True,
        validate_strings=True,
        values_callable=lambda states: [state.value for state in states],
    )


SEARCHED = ("patient_id", "patient_name", "accession_number", "study_uid")
"""Columns of a study that `Study.search` holds; whoever changes or erases one writes that too.

SQLite's index of it follows by triggers, but keeps parts of three letters of what was erased until it is
merged: ``INSERT INTO study_words(study_words) VALUES ('optimize')``.
"""


def folded(*texts: str) -> str:
    """What a search compares: without case, each text on a line of its own."""
    return "\n".join(text.casefold().replace("\n", " ").replace("\0", " ") for text in texts)


def _search_text(context: DefaultExecutionContext) -> str:
    values = context.get_current_parameters()  # type: ignore[no-untyped-call] # SQLAlchemy has it untyped
    return folded(*(values[name] for name in SEARCHED))


class Association(Base):
    """One DICOM association in which instances arrived."""

    __tablename__ = "association"

    id: Mapped[int] = mapped_column(primary_key=True)
    calling_ae: Mapped[str]
    address: Mapped[str]
    opened_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    #: released, aborted or lost (the node stopped meanwhile)
    ending: Mapped[str | None]


class Study(Base):
    """One study; the patient's identity stands here and nowhere else."""

    __tablename__ = "study"
    __table_args__ = (
        Index("study_by_state", "state", "first_received_at"),
        Index("study_by_delivery", "delivery", "first_received_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_uid: Mapped[str] = mapped_column(unique=True)
    patient_id: Mapped[str] = mapped_column(index=True)
    patient_name: Mapped[str] = mapped_column(index=True)
    accession_number: Mapped[str] = mapped_column(index=True)
    study_date: Mapped[str] = mapped_column(index=True)
    description: Mapped[str]
    first_received_at: Mapped[datetime] = mapped_column(index=True)
    #: `SEARCHED` for a search: see `folded`
    search: Mapped[str] = mapped_column(default=_search_text)
    #: where it and its results are, in the words of `pacs_node.study_state`, which keeps them
    state: Mapped[str] = mapped_column(default="receiving", server_default="receiving")
    delivery: Mapped[str | None]
    #: the job that speaks for it
    shown_job_id: Mapped[int | None] = mapped_column(index=True)
    #: why an operator stopped its analysis; None unless it is held until somebody requeues it
    held_reason: Mapped[str | None]
    held_at: Mapped[datetime | None]
    series: Mapped[list[Series]] = relationship(back_populates="study", order_by="Series.id")


class Series(Base):
    """One series of a study and what was decided about it."""

    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("study_id", "series_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    series_uid: Mapped[str] = mapped_column(index=True)
    modality: Mapped[str]
    description: Mapped[str]
    calling_ae: Mapped[str]
    n_instances: Mapped[int] = mapped_column(default=0)
    last_received_at: Mapped[datetime]
    state: Mapped[SeriesState] = mapped_column(_state(SeriesState), index=True)
    #: which signal closed it: see `pacs_node.completeness.Signal`
    closed_by: Mapped[str | None]
    #: how many instances it had when its sender asked us to commit to every one of them
    promised_instances: Mapped[int | None]
    #: how many instances the archive has; None where it couldn't say
    archive_instances: Mapped[int | None]
    #: when the archive was asked last
    archive_asked_at: Mapped[datetime | None]
    #: what came of it, in words; None until it was asked
    archive_answer: Mapped[str | None]
    reason_code: Mapped[str | None]
    reason: Mapped[str | None]
    #: place among the suitable series of the study, 0 is the best; None if unsuitable
    rank: Mapped[int | None]
    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list[Instance]] = relationship(
        back_populates="series", order_by="Instance.sop_instance_uid"
    )


class Instance(Base):
    """One received instance. `path` is relative to the storage directory, None once the file was removed."""

    __tablename__ = "instance"

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    association_id: Mapped[int | None] = mapped_column(ForeignKey("association.id"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(unique=True)
    sop_class_uid: Mapped[str]
    transfer_syntax_uid: Mapped[str]
    #: of the data set as it was sent
    sha256: Mapped[str]
    size: Mapped[int]
    path: Mapped[str | None]
    received_at: Mapped[datetime]
    #: when its file was given up as damaged before its series was analysed; None once it came again
    damaged_at: Mapped[datetime | None]
    series: Mapped[Series] = relationship(back_populates="instances")


class Conflict(Base):
    """Other bytes under a SOP Instance UID that was known already. Both are kept."""

    __tablename__ = "conflict"
    __table_args__ = (UniqueConstraint("instance_id", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id"), index=True)
    transfer_syntax_uid: Mapped[str]
    sha256: Mapped[str]
    path: Mapped[str | None]
    received_at: Mapped[datetime]
    #: None: not compared yet; True: the same content in another encoding; False: another content
    same_content: Mapped[bool | None]
    instance: Mapped[Instance] = relationship()


class Job(Base):
    """One analysis of one series. The unique key makes a re-send find the job that exists."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("series_id", "input_digest", "pipeline_version", "kind"),
        Index("job_queue", "state", "id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    #: analysis, or refusal: only the report that says why not
    kind: Mapped[str]
    input_digest: Mapped[str]
    pipeline_version: Mapped[str]
    state: Mapped[JobState] = mapped_column(_state(JobState))
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    not_before: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    #: analysed or not_analysed, once succeeded; failed jobs have a report too
    outcome: Mapped[str | None]
    #: of a refusal: what its report says, from its beginning; of an analysis: why it came to nothing
    reason_code: Mapped[str | None]
    reason: Mapped[str | None]
    #: set while it is cancelled, and only then
    cancelled_because: Mapped[CancelCause | None] = mapped_column(_state(CancelCause))
    #: the same as a sentence, or an operator's words
    cancelled_reason: Mapped[str | None]
    #: why the last attempt didn't end the job
    last_error: Mapped[str | None]
    series: Mapped[Series] = relationship()
    artifacts: Mapped[list[Artifact]] = relationship(back_populates="job", order_by="Artifact.id")


class Artifact(Base):
    """A file that a job made; `path` is relative to the storage directory."""

    __tablename__ = "artifact"

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("job.id"), index=True)
    #: seg, sr, sc, pdf, json, html or png
    kind: Mapped[str]
    #: what differs from the standard form, as in `dicom_sr.profiles`; empty for that one and for other files
    encoding: Mapped[str] = mapped_column(default="", server_default="")
    path: Mapped[str | None]
    sha256: Mapped[str]
    #: None where the file is no DICOM object
    sop_instance_uid: Mapped[str | None] = mapped_column(unique=True)
    sop_class_uid: Mapped[str | None]
    series_uid: Mapped[str | None]
    job: Mapped[Job] = relationship(back_populates="artifacts")

    @property
    def form(self) -> str:
        """Name of its form, as in `dicom_sr.profiles`."""
        return f"{self.kind}:{self.encoding}" if self.encoding else self.kind


class Delivery(Base):
    """The outbox: one object for one destination, the same bytes at each attempt."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("artifact_id", "destination"),
        Index("delivery_queue", "destination", "state", "next_attempt_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    artifact_id: Mapped[int] = mapped_column(ForeignKey("artifact.id"), index=True)
    destination: Mapped[str]
    state: Mapped[DeliveryState] = mapped_column(_state(DeliveryState))
    attempts: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime]
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    sent_at: Mapped[datetime | None]
    verified_at: Mapped[datetime | None]
    #: how often the destination was asked for it since it was sent
    checks: Mapped[int] = mapped_column(default=0)
    #: last DIMSE or HTTP status and what it means
    status: Mapped[str | None]
    artifact: Mapped[Artifact] = relationship()


class Breaker(Base):
    """What is known of a destination that isn't reached; see `pacs_node.breaker`."""

    __tablename__ = "breaker"

    destination: Mapped[str] = mapped_column(primary_key=True)
    #: attempts in a row that reached nobody
    failures: Mapped[int]
    #: when the first of them was
    since: Mapped[datetime | None]
    #: nothing is sent before; None while it is closed
    open_until: Mapped[datetime | None]
    reason: Mapped[str | None]


class CommitmentRequest(Base):
    """A sender asked whether its objects are safe here (PS3.4 J.3.2); it is owed a report."""

    __tablename__ = "commitment_request"
    __table_args__ = (UniqueConstraint("calling_ae", "transaction_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    transaction_uid: Mapped[str]
    calling_ae: Mapped[str]
    called_ae: Mapped[str]
    #: of the association that brought it
    address: Mapped[str]
    #: SOP Class UID and SOP Instance UID of each, in the order of the request
    objects: Mapped[list[list[str]]] = mapped_column(JSON)
    requested_at: Mapped[datetime]
    attempts: Mapped[int] = mapped_column(default=0)
    #: of the next report; None once the sender has taken it, or it was given up
    next_attempt_at: Mapped[datetime | None] = mapped_column(index=True)
    reported_at: Mapped[datetime | None]
    #: of the report that was taken: objects that are not safe here
    refused: Mapped[int | None]
    #: what came of the last attempt
    status: Mapped[str | None]


class Commitment(Base):
    """We asked a destination whether it keeps our results; its report comes later, on any association."""

    __tablename__ = "commitment"

    id: Mapped[int] = mapped_column(primary_key=True)
    destination: Mapped[str]
    transaction_uid: Mapped[str] = mapped_column(unique=True)
    asked_at: Mapped[datetime]
    #: without a report until then it counts as refused
    expires_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    items: Mapped[list[CommitmentItem]] = relationship(
        back_populates="commitment", order_by="CommitmentItem.id"
    )


class CommitmentItem(Base):
    """One object of a commitment."""

    __tablename__ = "commitment_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    commitment_id: Mapped[int] = mapped_column(ForeignKey("commitment.id"), index=True)
    sop_class_uid: Mapped[str]
    sop_instance_uid: Mapped[str] = mapped_column(index=True)
    #: None until the destination has reported
    committed: Mapped[bool | None]
    #: (0008,1197) where it refused
    failure_reason: Mapped[int | None]
    commitment: Mapped[Commitment] = relationship(back_populates="items")


class MissedStudy(Base):
    """A study that the archive has and the node had not received when it asked. No patient data."""

    __tablename__ = "missed_study"
    __table_args__ = (UniqueConstraint("archive", "study_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    #: name of the destination that was asked
    archive: Mapped[str]
    study_uid: Mapped[str] = mapped_column(index=True)
    accession_number: Mapped[str]
    study_date: Mapped[str]
    description: Mapped[str]
    #: joined by a backslash
    modalities: Mapped[str]
    n_instances: Mapped[int | None]
    noticed_at: Mapped[datetime] = mapped_column(index=True)
    #: when the archive named it last
    seen_at: Mapped[datetime]
    #: when it was found to have come after all
    arrived_at: Mapped[datetime | None]


class Errand(Base):
    """What is to be done from time to time, and when it is due: outlives every process."""

    __tablename__ = "errand"

    name: Mapped[str] = mapped_column(primary_key=True)
    due_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: what came of it, in words
    status: Mapped[str | None]


_FAILED = text("outcome > 0")


class AuditEvent(Base):
    """Append-only, hash-chained record of every transition and access; no patient data, only UIDs."""

    __tablename__ = "audit_event"
    # the lists that are asked for, the newest first
    __table_args__ = (
        Index("audit_event_by_event", "event", "at"),
        Index("audit_event_by_actor", "actor", "at"),
        Index("audit_event_by_both", "actor", "event", "at"),
        Index("audit_event_failures", "at", sqlite_where=_FAILED, postgresql_where=_FAILED),
    )

    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str]
    event: Mapped[str]
    #: DCM code of the event type, PS3.15 A.5.3
    code: Mapped[str]
    #: 0 success, 4 minor, 8 serious, 12 major failure (PS3.15 A.5.2)
    outcome: Mapped[int]
    study_uid: Mapped[str | None] = mapped_column(index=True)
    objects: Mapped[dict[str, Any]]
    previous_hash: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)


class Database:
    """Engine and transactions.

    Parameters
    ----------
    url
        SQLAlchemy URL of a SQLite file, or of a PostgreSQL database.
    """

    def __init__(self, url: str | URL) -> None:
        self.engine = make_engine(url)
        self._writer = self.engine.execution_options(**{WRITE: True})

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that sees one state of the database and changes nothing."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that holds the write lock from its start; commits unless an error leaves it."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def upgrade(self) -> None:
        """Bring the schema to the newest version."""
        config = Config()
        config.set_main_option("script_location", "pacs_node:migrations")
        config.attributes["engine"] = self._writer
        command.upgrade(config, "head")

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite; else it is PostgreSQL."""
        return self.engine.dialect.name == "sqlite"

    def check(self) -> str:
        """Return ``ok`` or what SQLite's quick check found; PostgreSQL checks its pages itself."""
        with self.read() as session:
            if not self.is_sqlite:
                return "ok"
            return str(session.execute(text("PRAGMA quick_check")).scalar_one())

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def sqlite_url(directory: Path) -> str:
    """URL of the node's own database file."""
    return f"sqlite:///{directory / 'node.db'}"
