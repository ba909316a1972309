"""Removes old images and results. Nothing that is undelivered, unverified or in work is touched.

The rows stay and lose their path: they say what there was. Results that no row names, of attempts that came
to nothing and of a node that was killed here, go too; received objects don't: they may be acknowledged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pacs_node import audit, pieces
from pacs_node.clock import Clock, clock_is_synchronised, utc_now
from pacs_node.clock_guard import ClockGuard
from pacs_node.config import RetentionSettings
from pacs_node.db import Artifact, Conflict, Database, Delivery, Instance, Job, Series, Study
from pacs_node.spool import DAMAGED, Spool
from pacs_node.states import DeliveryState, JobState, SeriesState
from pacs_node.storage import undisturbed

logger = logging.getLogger(__name__)

_ACTOR = "retention"
_YOUNG_SECONDS = 3600.0
_STUDIES = 200
"""Looked at in one transaction: some 60 000 rows of images."""


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
    unproved
        Names of the destinations that are never asked whether they have it (``verify = "none"``).
    synchronised
        See `pacs_node.clock_guard.ClockGuard`.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        settings: RetentionSettings,
        clock: Clock = utc_now,
        *,
        unproved: Collection[str] = (),
        synchronised: Callable[[], bool | None] = clock_is_synchronised,
    ) -> None:
        self._guard = ClockGuard(database, clock, synchronised)
        self._unproved = tuple(unproved)
        self._database = database
        self._spool = spool
        self._settings = settings
        self._clock = clock

    def purge(self) -> int:
        """Remove what is due; return the number of files.

        Nothing is removed while a backup is made, and while the clock is doubted.
        """
        if not self._guard.trusts():
            return 0
        with undisturbed(self._spool.directory, wait=False) as free:
            return self._remove_all() if free else 0

    def _remove_all(self) -> int:
        removed = self._sweep()
        for images, days in ((True, self._settings.images_days), (False, self._settings.results_days)):
            if not days:
                continue
            for study_id in self._due(images=images):
                try:
                    removed += self._purge(study_id, images=images)
                except (OSError, SQLAlchemyError):
                    # one study that can't be purged must not keep the others
                    logger.exception("study could not be purged", extra={"study": study_id})
        return removed

    def _due(self, *, images: bool) -> list[int]:
        """List the finished studies; `_purge` looks at each once more."""
        due: list[int] = []
        for piece in pieces.ranges(self._database, Study.id, _STUDIES):
            with self._database.read() as session:
                due += session.scalars(self._finished(images=images).where(piece))
        return due

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
            ~self._is_delivered(),
        )
        # what nobody has answered for yet, a study that was held among them, may still be wanted
        work = exists().where(Series.study_id == Study.id, Job.series_id == Series.id)
        answered = work.where(Job.state == JobState.SUCCEEDED)
        waits = or_(Study.held_reason.is_not(None), and_(work, ~answered))
        last = select(func.max(Series.last_received_at)).where(Series.study_id == Study.id).scalar_subquery()
        has_files = self._has_images() if images else self._has_results()
        return select(Study.id).where(
            has_files,
            ~series_open,
            ~job_open,
            ~waits,
            ~undelivered,
            last < self._clock() - timedelta(days=days),
        )

    def _is_delivered(self) -> ColumnElement[bool]:
        """Whether a delivery is at its end: found there, or sent long ago where nobody is asked."""
        days = self._settings.unverified_days
        by_choice = and_(
            Delivery.state == DeliveryState.SENT,
            Delivery.destination.in_(self._unproved if days else ()),
            Delivery.sent_at < self._clock() - timedelta(days=days),
        )
        return or_(Delivery.state == DeliveryState.COMMITTED, by_choice)

    def _sweep(self) -> int:
        """Remove results that no row names, and old damaged images; return how many."""
        removed = 0
        try:
            for path in self._leftovers():
                self._spool.remove(path)
                removed += 1
        except (OSError, SQLAlchemyError):
            logger.exception("files without a row could not be removed")
        return removed

    def _leftovers(self) -> list[str]:
        # in this order: what gets its row after the list was made is in work, or named when the rows are read
        files = list(_old_files(self._spool.directory, "results", _YOUNG_SECONDS))
        with self._database.read() as session:
            held = session.execute(
                select(Job.id, Job.lease_token).where(
                    Job.state == JobState.RUNNING, Job.lease_token.is_not(None)
                )
            ).tuples()
            in_work = tuple(attempt_folder(job_id, str(token)) + "/" for job_id, token in held)
        named: set[str | None] = set()
        for piece in pieces.ranges(self._database, Artifact.id):
            with self._database.read() as session:
                named.update(session.scalars(select(Artifact.path).where(piece)))
        left = [path for path in files if path not in named and not path.startswith(in_work)]
        if not self._settings.images_days:
            return left
        # images of somebody, though nothing can be made of them
        days = timedelta(days=self._settings.images_days)
        return [*left, *_old_files(self._spool.directory, DAMAGED, days.total_seconds())]

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


def attempt_folder(job_id: int, lease_token: str) -> str:
    """Where an attempt at a job writes, relative to the storage directory: no two share one."""
    return f"results/{job_id:08d}/{lease_token.rpartition(':')[2][:12]}"


def _old_files(directory: Path, folder: str, seconds: float) -> Iterator[str]:
    """Relative paths of files in a folder that are older than some seconds."""
    limit = time.time() - seconds
    for path in (directory / folder).rglob("*"):
        try:
            if path.is_file() and path.stat().st_mtime < limit:
                yield str(path.relative_to(directory))
        except FileNotFoundError:
            continue


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
