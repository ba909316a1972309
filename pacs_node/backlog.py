"""Back-pressure: how much waits for analysis, and whether the listener may take more.

The gate must never wait for the database, so a thread measures and the gate looks at the last word.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event, Thread

from sqlalchemy import func, or_, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.clock import Clock, utc_now
from pacs_node.config_listener import BacklogSettings
from pacs_node.db import Database, Instance, Job, Series
from pacs_node.states import JobState, SeriesState

logger = logging.getLogger(__name__)

MEASURE_SECONDS = 2.0
_RESUME_BELOW = 0.9
_UNFINISHED = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for analysis.

    Parameters
    ----------
    jobs
        That wait or run.
    size
        Of the images of studies that have no result yet, bytes.
    oldest
        When the oldest job that waits was made.
    """

    jobs: int
    size: int
    oldest: datetime | None

    def excess(self, limits: BacklogSettings, now: datetime, share: float = 1.0) -> str | None:
        """Say which limit is reached, or `share` of it; None where none is."""
        if limits.max_jobs and self.jobs >= limits.max_jobs * share:
            return f"{self.jobs} jobs wait or run; the limit is {limits.max_jobs}"
        if limits.max_mb and self.size >= (limits.max_mb << 20) * share:
            return f"{self.size >> 20} MiB of images wait; the limit is {limits.max_mb}"
        limit = timedelta(hours=limits.max_hours)
        if limits.max_hours and self.oldest is not None and now - self.oldest >= limit * share:
            since = f"{self.oldest:%Y-%m-%d %H:%M} UTC"
            return f"a job has waited since {since}; the limit is {limits.max_hours:g} h"
        return None


def waiting(session: Session) -> Waiting:
    """Measure what waits."""
    jobs = session.scalar(select(func.count()).select_from(Job).where(Job.state.in_(_UNFINISHED)))
    unfinished = select(Job.series_id).where(Job.state.in_(_UNFINISHED))
    size = (
        select(func.sum(Instance.size))
        .join(Series, Instance.series_id == Series.id)
        .where(
            Instance.path.is_not(None),
            or_(Series.state.in_([SeriesState.RECEIVING, SeriesState.COMPLETE]), Series.id.in_(unfinished)),
        )
    )
    oldest = select(func.min(Job.created_at)).where(Job.state == JobState.QUEUED)
    return Waiting(jobs or 0, session.scalar(size) or 0, session.scalar(oldest))


class Backlog:
    """Measures every `MEASURE_SECONDS` in a thread of its own, and records when intake pauses and resumes.

    Attributes
    ----------
    reason
        Why nothing more is taken now; None while there is room.
    """

    def __init__(self, database: Database, limits: BacklogSettings, clock: Clock = utc_now) -> None:
        self.reason: str | None = None
        self._database = database
        self._limits = limits
        self._clock = clock
        self._stop = Event()
        self._thread = Thread(target=self._run, name="backlog", daemon=True)

    def start(self) -> None:
        """Measure once, then from time to time."""
        self.measure()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.wait(MEASURE_SECONDS):
            self.measure()

    def measure(self) -> None:
        """Look now; a database that can't be asked changes nothing."""
        now = self._clock()
        try:
            with self._database.read() as session:
                # what has paused resumes only with some room: not one association in, one out
                share = 1.0 if self.reason is None else _RESUME_BELOW
                reason = waiting(session).excess(self._limits, now, share)
            if (reason is None) != (self.reason is None):
                self._record(reason, now)
        except SQLAlchemyError:
            logger.exception("the backlog could not be measured")
            return
        self.reason = reason

    def _record(self, reason: str | None, now: datetime) -> None:
        logger.warning("intake", extra={"paused": reason is not None, "reason": reason})
        event = audit.Event.INTAKE_RESUMED if reason is None else audit.Event.INTAKE_PAUSED
        outcome = audit.Outcome.SUCCESS if reason is None else audit.Outcome.MINOR_FAILURE
        with self._database.write() as session:
            audit.record(session, event, at=now, actor="listener", outcome=outcome, reason=reason)
