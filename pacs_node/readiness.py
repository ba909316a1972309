"""Whether the node can take images and analyse them, and what keeps it from that.

Anybody may ask, so nothing is told but the part, yes or no, and a sentence of ours.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pacs_node.backlog import waiting
from pacs_node.config import ListenerSettings, Settings
from pacs_node.db import Database, Job, Study
from pacs_node.overview import disk_space
from pacs_node.states import JobState
from pacs_node.versions import pipeline_in_use

_STUCK = timedelta(minutes=10)
_ANSWER_S = 2.0
_OWN = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what it may listen on


@dataclass(frozen=True, slots=True)
class Check:
    """One part.

    Parameters
    ----------
    why
        Why not; empty where it is ready.
    numbers
        What was measured.
    """

    name: str
    why: str = ""
    numbers: tuple[tuple[str, int], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it is ready."""
        return not self.why


def readiness(database: Database, settings: Settings, now: datetime) -> tuple[Check, ...]:
    """Look at each part; never raises for what is wrong with one."""
    parts = (*_of_database(database, settings, now), _disk(settings), _models(settings))
    return (*parts, _listener(settings.listener))


def _listener(listener: ListenerSettings) -> Check:
    """Have somebody at the gate hang up: the system accepts connections also for a process that is deaf.

    Nothing is said, so nobody is refused.
    """
    host = _OWN.get(listener.host, listener.host)
    try:
        with socket.create_connection((host, listener.port), _ANSWER_S) as connection:
            connection.settimeout(_ANSWER_S)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
    except OSError as error:
        why = "it accepts and doesn't answer" if isinstance(error, TimeoutError) else "nobody listens"
        return Check("listener", f"{why} on port {listener.port}")
    return Check("listener")


def _of_database(database: Database, settings: Settings, now: datetime) -> tuple[Check, ...]:
    try:
        with database.read() as session:
            session.execute(select(Study.id).limit(1)).first()
            return (Check("database"), _intake(session, settings, now), _worker(session, now))
    except SQLAlchemyError as error:
        return (Check("database", f"it doesn't answer ({type(error).__name__})"),)


def _intake(session: Session, settings: Settings, now: datetime) -> Check:
    excess = waiting(session).excess(settings.backlog, now)
    return Check("intake", "" if excess is None else f"associations are rejected: {excess}")


def _worker(session: Session, now: datetime) -> Check:
    """No part says that it lives: that a job waits for long and none runs is the sign that no worker does."""
    oldest: datetime | None = session.execute(
        select(func.min(Job.created_at)).where(Job.state == JobState.QUEUED, Job.not_before <= now)
    ).scalar_one()
    running = select(func.count()).select_from(Job).where(Job.state == JobState.RUNNING)
    waits_long = oldest is not None and now - oldest > _STUCK
    stuck = waits_long and session.execute(running).scalar_one() == 0
    return Check("worker", "a job has waited for ten minutes and none is running" if stuck else "")


def _disk(settings: Settings) -> Check:
    try:
        disk = disk_space(Path(settings.storage.directory), settings.storage.reserve_mb << 20)
    except OSError as error:
        return Check("disk", f"the storage directory can't be read ({type(error).__name__})")
    numbers = (("free_mb", disk.free >> 20), ("reserve_mb", disk.reserve >> 20))
    return Check("disk", "below the reserve: objects are refused (A700)" if disk.low else "", numbers)


def _models(settings: Settings) -> Check:
    usable = not isinstance(pipeline_in_use(settings), str)
    return Check("models", "" if usable else "the models of the profile can't be used; ask the doctor")
