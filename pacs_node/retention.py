"""Removes old images and results. Nothing that is undelivered, unverified or in work is touched."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, exists, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.clock import Clock, utc_now
from pacs_node.config import RetentionSettings
from pacs_node.db import Artifact, Conflict, Database, Delivery, Instance, Job, Series, Study
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState, JobState, SeriesState

logger = logging.getLogger(__name__)

_ACTOR = "retention"


class Retention:
    """Applies the retention settings.

    Parameters
    ----------
    database, spool
        Rows keep their identity and lose their path; files are deleted after the rows say so.
    settings
        Days to keep; 0 keeps for ever.
    clock
        Source of time.
    """

    def __init__(
        self, database: Database, spool: Spool, settings: RetentionSettings, clock: Clock = utc_now
    ) -> None:
        self._database = database
        self._spool = spool
        self._settings = settings
        self._clock = clock

    def purge(self) -> int:
        """Remove what is due; return the number of files."""
        removed = 0
        for images, days in ((True, self._settings.images_days), (False, self._settings.results_days)):
            if not days:
                continue
            with self._database.read() as session:
                due = session.execute(self._finished(images=images)).scalars().all()
            for study_id in due:
                try:
                    removed += self._purge(study_id, images=images)
                except (OSError, SQLAlchemyError):
                    # one study that can't be purged must not keep the others
                    logger.exception("study could not be purged", extra={"study": study_id})
        return removed

    def _has_images(self) -> ColumnElement[bool]:
        return exists().where(
            Series.study_id == Study.id, Instance.series_id == Series.id, Instance.path.is_not(None)
        )

    def _has_results(self) -> ColumnElement[bool]:
        return exists().where(
            Series.study_id == Study.id,
            Job.series_id == Series.id,
            Artifact.job_id == Job.id,
            Artifact.path.is_not(None),
        )

    def _finished(self, *, images: bool) -> Select[tuple[int]]:
        """Studies whose series, jobs and deliveries are all at an end, the last series long ago."""
        days = self._settings.images_days if images else self._settings.results_days
        series_open = exists().where(
            Series.study_id == Study.id, Series.state.in_([SeriesState.RECEIVING, SeriesState.COMPLETE])
        )
        job_open = exists().where(
            Series.study_id == Study.id,
            Job.series_id == Series.id,
            Job.state.in_([JobState.QUEUED, JobState.RUNNING, JobState.FAILED]),
        )
        undelivered = exists().where(
            Series.study_id == Study.id,
            Job.series_id == Series.id,
            Artifact.job_id == Job.id,
            Delivery.artifact_id == Artifact.id,
            Delivery.state != DeliveryState.COMMITTED,
        )
        last = select(func.max(Series.last_received_at)).where(Series.study_id == Study.id).scalar_subquery()
        has_files = self._has_images() if images else self._has_results()
        return select(Study.id).where(
            has_files, ~series_open, ~job_open, ~undelivered, last < self._clock() - timedelta(days=days)
        )

    def _purge(self, study_id: int, *, images: bool) -> int:
        with self._database.write() as session:
            still_due = self._finished(images=images).where(Study.id == study_id)
            if session.execute(still_due).first() is None:
                # something has arrived since the list was made
                return 0
            study = session.get_one(Study, study_id)
            rows = _rows(session, study_id, images=images)
            paths = [row.path for row in rows if row.path is not None]
            for row in rows:
                row.path = None
            audit.record(
                session,
                audit.Event.IMAGES_REMOVED if images else audit.Event.RESULTS_REMOVED,
                at=self._clock(),
                actor=_ACTOR,
                study_uid=study.study_uid,
                files=len(paths),
            )
        # after the commit: a crash here leaves a file without a row, never a row without its file; under
        # the write lock: the same image may be coming again, and then it keeps its file
        with self._database.write() as session:
            kept = {row.path for row in _rows(session, study_id, images=images)}
            for path in paths:
                if path not in kept:
                    self._spool.remove(path)
        logger.info("removed", extra={"study": study_id, "files": len(paths)})
        return len(paths)


def _rows(session: Session, study_id: int, *, images: bool) -> Sequence[Instance | Conflict | Artifact]:
    return _image_rows(session, study_id) if images else _result_rows(session, study_id)


def _image_rows(session: Session, study_id: int) -> list[Instance | Conflict]:
    instances = session.execute(
        select(Instance).join(Series, Instance.series_id == Series.id).where(Series.study_id == study_id)
    ).scalars()
    conflicts = session.execute(
        select(Conflict)
        .join(Instance, Conflict.instance_id == Instance.id)
        .join(Series, Instance.series_id == Series.id)
        .where(Series.study_id == study_id)
    ).scalars()
    return [*instances, *conflicts]


def _result_rows(session: Session, study_id: int) -> list[Artifact]:
    return list(
        session.execute(
            select(Artifact)
            .join(Job, Artifact.job_id == Job.id)
            .join(Series, Job.series_id == Series.id)
            .where(Series.study_id == study_id)
        ).scalars()
    )
