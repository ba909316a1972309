"""The ticker. APScheduler only says when; what is due stands in our tables."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from inference.registry import load_pipeline
from pacs_node import jobs
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings
from pacs_node.db import Database, Job
from pacs_node.intake import Intake
from pacs_node.leases import LeaseWatch
from pacs_node.retention import Retention
from pacs_node.storage import open_database, open_spool

logger = logging.getLogger(__name__)

INTAKE_SECONDS = 1
RECLAIM_SECONDS = 5
RETENTION_SECONDS = 3600


def run_schedule(
    database: Database, intake: Intake, retention: Retention, stop: Event, clock: Clock = utc_now
) -> None:
    """Tick until `stop` is set: close and judge series, take back lost leases, apply retention."""
    watch = LeaseWatch(Job)

    def reclaim() -> None:
        with database.write() as session:
            count = jobs.reclaim(session, watch, at=clock(), actor="schedule")
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
    scheduler.start()
    stop.wait()
    scheduler.shutdown(wait=True)


def run(settings: Settings, stop: Event) -> None:
    """Tick until `stop` is set, as the settings say."""
    database, spool = open_database(settings), open_spool(settings)
    version = load_pipeline(settings.pipeline.profile, models=Path(settings.pipeline.models)).version
    intake = Intake(database, spool, settings.completeness, version)
    run_schedule(database, intake, Retention(database, spool, settings.retention), stop)
    database.dispose()
