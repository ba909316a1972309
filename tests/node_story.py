"""Writes the rows that a study leaves behind on its way, through the node's own functions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import event, select

from inference.uids import derived_uid
from pacs_node import audit, jobs, lifecycle
from pacs_node.db import Artifact, Association, Database, Delivery, Job, Series, Study
from pacs_node.reception import Identity, record_instance
from pacs_node.spool import StoredFile
from pacs_node.states import DeliveryState, JobState, SeriesState

START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
DESTINATIONS = (("pacs", ("seg", "sr")),)
VERSION = "classical-1.0+abcdef"


@dataclass
class Story:
    """One study and what happens to it; each step takes some time."""

    database: Database
    directory: Path
    name: str = "a"
    now: datetime = START
    patient_id: str = "PID-1"
    patient_name: str = "Doe^Jane"
    accession_number: str = "ACC-1"
    study_date: str = "20260302"
    description: str = "CT Thorax"
    series_description: str = "Thorax 1.0 B"
    modality: str = "CT"
    calling_ae: str = "PACS"
    _tokens: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # durability is proved elsewhere; here it would only take time
        if self.database.is_sqlite:
            event.listen(self.database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
        self.database.dispose()

    @property
    def study_uid(self) -> str:
        return derived_uid("story study", self.name)

    def series_uid(self, series: int) -> str:
        return derived_uid("story series", self.name, str(series))

    def wait(self, seconds: float) -> Story:
        self.now += timedelta(seconds=seconds)
        return self

    def receive(self, n_images: int = 3, series: int = 1, *, first: int = 0, **texts: str) -> Story:
        with self.database.write() as session:
            association = Association(
                calling_ae=self.calling_ae, address="127.0.0.1", opened_at=self.now, closed_at=self.now
            )
            session.add(association)
            session.flush()
            for number in range(first, first + n_images):
                uid = derived_uid("story image", self.name, str(series), str(number))
                stored = StoredFile(f"instances/{uid}.dcm", hashlib.sha256(uid.encode()).hexdigest(), 1)
                self.wait(0.1)
                record_instance(
                    session,
                    self._identity(uid, series, texts),
                    stored,
                    directory=self.directory,
                    transfer_syntax_uid="1.2.840.10008.1.2.1",
                    association_id=association.id,
                    calling_ae=self.calling_ae,
                    at=self.now,
                )
        return self

    def _identity(self, uid: str, series: int, texts: dict[str, str]) -> Identity:
        values = {
            "patient_id": self.patient_id,
            "patient_name": self.patient_name,
            "accession_number": self.accession_number,
            "study_date": self.study_date,
            "study_description": self.description,
            "series_description": self.series_description,
            "modality": self.modality,
        } | texts
        return Identity("1.2.840.10008.5.1.4.1.1.2", uid, self.study_uid, self.series_uid(series), **values)

    def close(self, series: int = 1, closed_by: str = "settled") -> Story:
        self.wait(10)
        with self.database.write() as session:
            row = session.execute(select(Series).where(Series.series_uid == self.series_uid(series)))
            lifecycle.move_series(
                session,
                row.scalar_one(),
                SeriesState.COMPLETE,
                at=self.now,
                actor="intake",
                closed_by=closed_by,
            )
        return self

    def set_aside(self, series: int, code: str, sentence: str) -> Story:
        with self.database.write() as session:
            row = session.execute(select(Series).where(Series.series_uid == self.series_uid(series)))
            lifecycle.move_series(
                session,
                row.scalar_one(),
                SeriesState.INELIGIBLE,
                at=self.now,
                actor="intake",
                reason_code=code,
                reason=sentence,
            )
        return self

    def queue(self, series: int = 1, *, refusal: tuple[str, str] | None = None) -> Story:
        code, sentence = refusal or (None, None)
        with self.database.write() as session:
            query = select(Series).where(Series.series_uid == self.series_uid(series))
            row = session.execute(query).scalar_one()
            jobs.enqueue(
                session,
                row,
                kind=jobs.REFUSAL if refusal else jobs.ANALYSIS,
                input_digest=jobs.input_digest(row),
                pipeline_version=VERSION,
                at=self.now,
                actor="intake",
                reason_code=code,
                reason=sentence,
            )
            if not refusal:
                lifecycle.move_series(session, row, SeriesState.QUEUED, at=self.now, actor="intake")
        return self

    def start(self) -> Story:
        self.wait(4)
        with self.database.write() as session:
            claimed = jobs.claim(session, at=self.now, actor="worker")
            assert claimed is not None
            job, token = claimed
            self._tokens[job.id] = token
        return self

    def interrupt(self, error: str) -> Story:
        self.wait(20)
        with self.database.write() as session:
            job_id, token = self._tokens.popitem()
            job = session.get_one(Job, job_id)
            jobs.retry(session, job, token, at=self.now, actor="worker", reason=error)
        return self.wait(5)

    def finish(
        self,
        *,
        result: dict[str, Any] | str | None = None,
        reason: tuple[str, str] | None = None,
        failed: bool = False,
        kinds: tuple[str, ...] = ("seg", "sr", "json", "html", "png"),
        destinations: tuple[tuple[str, tuple[str, ...]], ...] = DESTINATIONS,
    ) -> Story:
        """End the running job; its files are written so that they can be served."""
        self.wait(60)
        code, sentence = reason or (None, None)
        job_id, token = self._tokens.popitem()
        with self.database.write() as session:
            jobs.finish(
                session,
                session.get_one(Job, job_id),
                token,
                at=self.now,
                actor="worker",
                state=JobState.FAILED if failed else JobState.SUCCEEDED,
                outcome=jobs.NOT_ANALYSED if reason else jobs.ANALYSED,
                artifacts=[self._artifact(job_id, kind, result) for kind in kinds],
                destinations=destinations,
                reason_code=code,
                reason=sentence,
            )
        return self

    def _artifact(self, job_id: int, kind: str, result: dict[str, Any] | str | None) -> jobs.NewArtifact:
        contents = {
            "seg": b"\0" * 128 + b"DICM seg",
            "sr": b"\0" * 128 + b"DICM sr",
            "json": (result if isinstance(result, str) else json.dumps(result or {})).encode(),
            "html": b"<!doctype html><html lang=en><title>Report</title><p>Report",
            "png": b"\x89PNG\r\n\x1a\n",
        }
        names = {"seg": "seg.dcm", "sr": "sr.dcm", "json": "result.json", "html": "report.html"}
        path = Path("results") / f"{job_id:08d}" / names.get(kind, "nodule-01.png")
        target = self.directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.write_bytes(contents[kind])
        dicom = kind in {"seg", "sr"}
        return jobs.NewArtifact(
            kind=kind,
            path=str(path),
            sha256=hashlib.sha256(contents[kind]).hexdigest(),
            sop_instance_uid=derived_uid("story result", self.name, str(job_id), kind) if dicom else None,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.66.4" if dicom else None,
            series_uid=derived_uid("story result series", self.name, kind) if dicom else None,
        )

    def deliver(self, state: DeliveryState, *, status: str = "0000 success", **values: Any) -> Story:
        """Move every delivery of the study on: sending, then `state`."""
        self._move(DeliveryState.SENDING, only=DeliveryState.PENDING, count=True)
        self.wait(2)
        if state is DeliveryState.COMMITTED:
            self._move(DeliveryState.SENT, sent_at=self.now, status=status)
            self.wait(3)
            self._move(state, only=DeliveryState.SENT, verified_at=self.now, status="found")
        elif state is DeliveryState.SENT:
            self._move(state, sent_at=self.now, status=status)
        elif state is DeliveryState.PENDING:
            self._move(state, status=status, next_attempt_at=self.now + timedelta(seconds=30), **values)
        elif state is DeliveryState.FAILED:
            self._move(state, status=status)
        return self

    def _move(
        self,
        state: DeliveryState,
        *,
        only: DeliveryState = DeliveryState.SENDING,
        count: bool = False,
        **values: Any,
    ) -> None:
        query = (
            select(Delivery)
            .join(Artifact, Delivery.artifact_id == Artifact.id)
            .join(Job, Artifact.job_id == Job.id)
            .join(Series, Job.series_id == Series.id)
            .join(Study, Series.study_id == Study.id)
            .where(Study.study_uid == self.study_uid, Delivery.state == only)
        )
        with self.database.write() as session:
            for delivery in session.execute(query.order_by(Delivery.id)).scalars().all():
                if count:
                    values["attempts"] = delivery.attempts + 1
                lifecycle.move_delivery(session, delivery, state, at=self.now, actor="delivery", **values)

    def refuse_association(self, calling_ae: str, address: str, called_ae: str = "CTNODE") -> Story:
        with self.database.write() as session:
            audit.record(
                session,
                audit.Event.ASSOCIATION_REFUSED,
                at=self.now,
                actor="listener",
                outcome=audit.Outcome.MINOR_FAILURE,
                calling_ae=calling_ae,
                called_ae=called_ae,
                address=address,
            )
        return self


def analysed(story: Story, result: dict[str, Any] | str | None = None) -> Story:
    """The whole way to the finished analysis."""
    return story.receive().close().queue().start().finish(result=result)
