"""The ticker. APScheduler only says when; what is due stands in our tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import NamedTuple

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy.exc import OperationalError

from inference.registry import load_pipeline
from pacs_node import audit_chain, jobs
from pacs_node.clock import Clock, utc_now
from pacs_node.commitment_scp import Reporter
from pacs_node.config import Settings
from pacs_node.db import Database, Job, is_full
from pacs_node.drift import Drift
from pacs_node.intake import Intake
from pacs_node.leases import LeaseWatch
from pacs_node.missed import MissedStudies
from pacs_node.reader import confined_reader
from pacs_node.reconcile import Reconciler, open_archive
from pacs_node.retention import Retention
from pacs_node.returned import ReturnedObjects
from pacs_node.storage import open_database, open_spool
from pacs_node.summaries import Summaries
from pacs_node.watch import CHAIN_SECONDS, DISK_SECONDS, ChainWatch, DiskWatch

logger = logging.getLogger(__name__)

INTAKE_SECONDS = 1
RECLAIM_SECONDS = 5
RETENTION_SECONDS = 3600
COMMITMENT_SECONDS = 1
ARCHIVE_SECONDS = 2
MISSED_SECONDS = 60
HEAD_SECONDS = 3600
SUMMARY_SECONDS = 2
DRIFT_SECONDS = 3600

_COUNT_QUESTION_S = 15.0
_LIST_QUESTION_S = 300.0


class Task(NamedTuple):
    """What is done every so many seconds; a task that takes longer holds up no other."""

    tick: Callable[[], object]
    seconds: float
    #: also when the node starts: one that is restarted more often than each hour does it too
    at_start: bool = False


def run_schedule(
    database: Database,
    intake: Intake,
    retention: Retention,
    stop: Event,
    *,
    clock: Clock = utc_now,
    more: Sequence[Task] = (),
) -> None:
    """Tick until `stop` is set: close and judge series, take back lost leases, apply retention, do `more`."""
    watch = LeaseWatch(Job)

    def reclaim() -> None:
        nonlocal watch
        try:
            with database.write() as session:
                count = jobs.reclaim(session, watch, at=clock(), actor="schedule")
        except OperationalError as error:
            if is_full(error):
                # who holds a lease can't renew it either: its time counts anew
                watch = LeaseWatch(Job)
            raise
        if count:
            logger.warning("took back lost leases", extra={"count": count})

    scheduler = BackgroundScheduler(
        jobstores={"default": MemoryJobStore()},
        # a tick that comes late still comes: nothing is lost to a busy machine
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        timezone="UTC",
    )
    scheduler.add_job(intake.tick, "interval", seconds=INTAKE_SECONDS)
    scheduler.add_job(reclaim, "interval", seconds=RECLAIM_SECONDS)
    scheduler.add_job(retention.purge, "interval", seconds=RETENTION_SECONDS)
    for task in more:
        first = {"next_run_time": utc_now()} if task.at_start else {}
        scheduler.add_job(task.tick, "interval", seconds=task.seconds, **first)
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=True)


def archive_tasks(settings: Settings, database: Database) -> Iterator[Task]:
    """What the archive is asked, if one is named.

    Raises
    ------
    ConfigurationError
        A file of its destination can't be used.
    """
    chosen = settings.archive
    counting = open_archive(settings, min(chosen.answer_seconds, _COUNT_QUESTION_S))
    if counting is not None and chosen.count_images:
        settle = timedelta(seconds=settings.completeness.settle_seconds)
        yield Task(Reconciler(database, counting, settle).tick, ARCHIVE_SECONDS)
    listing = open_archive(settings, _LIST_QUESTION_S)
    if listing is not None and chosen.list_missed:
        yield Task(MissedStudies(database, listing, chosen).tick, MISSED_SECONDS)


def head_task(settings: Settings, database: Database, clock: Clock = utc_now) -> Task:
    """Note the end of the audit record outside the database."""
    path = Path(settings.audit.heads_file)

    def note() -> None:
        try:
            with database.read() as session:
                audit_chain.note_head(session, path, clock())
        except OSError as error:
            logger.warning("the audit head could not be noted", extra={"error": error.strerror})

    return Task(note, HEAD_SECONDS, at_start=True)


def run(settings: Settings, stop: Event) -> None:
    """Tick until `stop` is set, as the settings say."""
    database, spool = open_database(settings), open_spool(settings)
    version = load_pipeline(settings.pipeline.profile, models=Path(settings.pipeline.models)).version
    summaries = Summaries(database, Path(settings.storage.directory))
    intake = Intake(
        database,
        spool,
        settings.completeness,
        version,
        reader=confined_reader(),
        archive=settings.archive,
        returned=ReturnedObjects(database, spool, confined_reader(), summaries),
    )
    reporter = Reporter(database, settings)
    tasks = [Task(reporter.tick, COMMITMENT_SECONDS), *archive_tasks(settings, database)]
    tasks += [head_task(settings, database), Task(summaries.tick, SUMMARY_SECONDS)]
    tasks.append(Task(Drift(database, settings.drift).tick, DRIFT_SECONDS, at_start=True))
    disk = DiskWatch(database, Path(settings.storage.directory), settings.storage.reserve_mb)
    chain = ChainWatch(database, Path(settings.audit.heads_file), stop)
    tasks += [Task(disk.tick, DISK_SECONDS), Task(chain.tick, CHAIN_SECONDS)]
    retention = Retention(database, spool, settings.retention, unproved=settings.unproved)
    run_schedule(database, intake, retention, stop, more=tasks)
    reporter.stop()
    database.dispose()
