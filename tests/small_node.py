"""A node without network and without models: rows, files and a clock that tests set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    SegmentationStorage,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from inference.uids import derived_uid
from pacs_node import jobs
from pacs_node.config import ArchiveSettings, CompletenessSettings
from pacs_node.db import Association, Database, Delivery, Job, Series
from pacs_node.intake import Intake
from pacs_node.jobs import NewArtifact
from pacs_node.leases import LeaseWatch
from pacs_node.reader import OpenReader
from pacs_node.reception import Reception, read_identity, record_instance
from pacs_node.returned import ReturnedObjects
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState, JobState, SeriesState
from pacs_node.summaries import Summaries
from tests.ct_factory import make_ct_series

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
VERSION = "pipeline-1"


class TestClock:
    """A clock that stands until it is moved."""

    __test__ = False

    def __init__(self) -> None:
        self.now = START
        self._passed = timedelta(0)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **span: float) -> datetime:
        """Let ``timedelta(**span)`` pass and return the new time."""
        self._passed += timedelta(**span)
        self.now += timedelta(**span)
        return self.now

    def set(self, **span: float) -> None:
        """Set it forward, or back, without any time passing."""
        self.now += timedelta(**span)

    def ticks(self) -> float:
        """Seconds that have passed, however it was set."""
        return self._passed.total_seconds()


#: limits of `inference.geometry` in tests of the node, so that a suitable series has a dozen slices
SMALL_LIMITS = {"MIN_SLICES": 12, "MIN_EXTENT_MM": 36.0}


def chest(n_slices: int = 12, **options: Any) -> list[Dataset]:
    """A series that is just suitable under `SMALL_LIMITS`: 36 mm in 12 slices of 8 x 8."""
    smallest: dict[str, Any] = {"matrix": 8, "pixel_spacing_mm": (40.0, 40.0), "spacing_mm": 3.0}
    return make_ct_series(n_slices, **smallest | options)


def encoded(ds: Dataset) -> tuple[bytes, str]:
    """The data set as it goes over the wire, and its transfer syntax."""
    buffer = BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    meta = dcmread(buffer, stop_before_pixels=True).file_meta
    at = 128 + 4 + 12 + int(meta.FileMetaInformationGroupLength)
    return buffer.getvalue()[at:], str(meta.TransferSyntaxUID)


@dataclass
class SmallNode:
    """Database, spool and intake of one node, with the steps that other processes would do."""

    database: Database
    spool: Spool
    clock: TestClock
    settle_seconds: float = 10.0
    quiet_seconds: float = 60.0
    archive: ArchiveSettings | None = None
    intake: Intake = field(init=False)
    watch: LeaseWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = LeaseWatch(Job, self.clock.ticks)
        self.restart_intake()

    def restart_intake(self) -> None:
        """What a new process knows: nothing but rows and files."""
        settings = CompletenessSettings(settle_seconds=self.settle_seconds, quiet_seconds=self.quiet_seconds)
        self.intake = Intake(
            self.database,
            self.spool,
            settings,
            VERSION,
            reader=OpenReader(),
            archive=self.archive,
            returned=ReturnedObjects(
                self.database,
                self.spool,
                OpenReader(),
                Summaries(self.database, self.spool.directory),
                self.clock,
            ),
            clock=self.clock,
            monotonic=self.clock.ticks,
        )

    def receive(self, *datasets: Dataset, association_id: int | None = None) -> list[Reception]:
        """Do what the listener does with each instance."""
        with self.database.write() as session:
            return [self._receive(session, ds, association_id) for ds in datasets]

    def _receive(self, session: Session, ds: Dataset, association_id: int | None) -> Reception:
        data, syntax = encoded(ds)
        identity = read_identity(data, syntax)
        stored = self.spool.write(
            data,
            sop_class_uid=identity.sop_class_uid,
            sop_instance_uid=identity.sop_instance_uid,
            transfer_syntax_uid=syntax,
        )
        return record_instance(
            session,
            identity,
            stored,
            directory=self.spool.directory,
            transfer_syntax_uid=syntax,
            association_id=association_id,
            calling_ae="PACS",
            at=self.clock(),
        )

    def queue(self, seed: str = "a") -> None:
        """Put one job into the queue for a series of one slice: what intake does, without its judgement."""
        (ds,) = make_ct_series(1, matrix=8, seed=seed)
        self.receive(ds)
        with self.database.write() as session:
            series = session.execute(
                select(Series).where(Series.series_uid == str(ds.SeriesInstanceUID))
            ).scalar_one()
            series.state, series.rank = SeriesState.QUEUED, 0
            jobs.enqueue(
                session,
                series,
                kind=jobs.ANALYSIS,
                input_digest=jobs.input_digest(series),
                pipeline_version=VERSION,
                at=self.clock(),
                actor="intake",
            )

    def open_association(self) -> int:
        """Add the row of an open association."""
        with self.database.write() as session:
            row = Association(calling_ae="PACS", address="127.0.0.1", opened_at=self.clock())
            session.add(row)
            session.flush()
            return row.id

    def close_association(self, association_id: int, ending: str = "released") -> None:
        """End it."""
        with self.database.write() as session:
            association = session.get_one(Association, association_id)
            association.closed_at, association.ending = self.clock(), ending

    def settle(self) -> None:
        """Let the short silence pass, then tick."""
        self.clock.forward(seconds=self.settle_seconds + 1)
        self.intake.tick()

    def quiet(self) -> None:
        """Let the long silence pass, then tick."""
        self.clock.forward(seconds=self.quiet_seconds + 1)
        self.intake.tick()

    def states(self) -> dict[str, tuple[SeriesState, str | None]]:
        """State and reason code of each series, by UID."""
        with self.database.read() as session:
            rows = session.execute(select(Series)).scalars().all()
            return {row.series_uid: (row.state, row.reason_code) for row in rows}

    def all_jobs(self) -> list[Job]:
        """All jobs, in order."""
        with self.database.read() as session:
            rows = session.execute(select(Job).order_by(Job.id)).scalars().all()
            for row in rows:
                assert row.series.study is not None
            return list(rows)

    def all_deliveries(self) -> list[Delivery]:
        """All deliveries, in order."""
        with self.database.read() as session:
            rows = session.execute(select(Delivery).order_by(Delivery.id)).scalars().all()
            for row in rows:
                assert row.artifact.job.series.study is not None
            return list(rows)

    def claim(self) -> tuple[Job, str]:
        """Claim the next job as a worker does."""
        with self.database.write() as session:
            claimed = jobs.claim(session, at=self.clock(), actor="worker")
            assert claimed is not None
            assert claimed[0].series.study is not None
            return claimed

    def reclaim(self) -> int:
        """Take back lost leases as the scheduler does."""
        with self.database.write() as session:
            return jobs.reclaim(session, self.watch, at=self.clock(), actor="schedule")

    def lose_leases(self) -> int:
        """Let a whole lease pass under the scheduler's eyes."""
        self.reclaim()
        self.clock.forward(seconds=31)
        return self.reclaim()

    def finish(
        self,
        job: Job,
        token: str,
        artifacts: Iterable[NewArtifact] = (),
        *,
        state: JobState = JobState.SUCCEEDED,
        outcome: str | None = jobs.ANALYSED,
        destinations: Iterable[tuple[str, tuple[str, ...]]] = (("fake", ("seg", "sr")),),
    ) -> None:
        """End a job as a worker does."""
        with self.database.write() as session:
            jobs.finish(
                session,
                session.get_one(Job, job.id),
                token,
                at=self.clock(),
                actor="worker",
                state=state,
                outcome=outcome,
                artifacts=list(artifacts),
                destinations=list(destinations),
            )

    def result(self, job: Job, kinds: Iterable[str] = ("seg", "sr")) -> list[NewArtifact]:
        """Write one tiny object of each kind, or form such as ``sr:enhanced``, and describe it."""
        return [self._object(job, kind) for kind in kinds]

    def _object(self, job: Job, form: str) -> NewArtifact:
        kind, _, encoding = form.partition(":")
        study_uid = job.series.study.study_uid
        path = self.spool.directory / "results" / f"{job.id:08d}" / f"{form}.dcm"
        uid = derived_uid(job.series.series_uid, job.input_digest, form)
        ds = write_object(path, kind, study_uid=study_uid, sop_instance_uid=uid)
        return NewArtifact(
            kind=kind,
            path=str(path.relative_to(self.spool.directory)),
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            sop_instance_uid=uid,
            sop_class_uid=str(ds.SOPClassUID),
            series_uid=str(ds.SeriesInstanceUID),
            encoding=encoding,
        )

    def delivery_states(self) -> dict[str, DeliveryState]:
        """State of each delivery by kind of object."""
        return {row.artifact.kind: row.state for row in self.all_deliveries()}


def write_object(
    path: Path, kind: str, *, study_uid: str, sop_instance_uid: str, text: str = "Synthetic."
) -> Dataset:
    """Write the smallest file that a destination takes for a SEG or an SR."""
    ds = Dataset()
    ds.SOPClassUID = SegmentationStorage if kind == "seg" else Comprehensive3DSRStorage
    ds.SOPInstanceUID = sop_instance_uid
    ds.StudyInstanceUID = study_uid
    ds.SeriesInstanceUID = derived_uid(sop_instance_uid, "series")
    ds.Modality = kind.upper()
    ds.TextValue = text
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return ds
