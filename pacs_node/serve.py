"""Runs the parts of a node as child processes and starts again what dies."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pacs_node import audit, leases, logs, preflight
from pacs_node.ballast import Ballast
from pacs_node.clock import utc_now
from pacs_node.config import Settings
from pacs_node.db import is_full
from pacs_node.engines import exit_with_parent
from pacs_node.errors import ConfigurationError
from pacs_node.storage import only_one, open_database

logger = logging.getLogger(__name__)

#: part -> module with ``run(settings, stop)``; resolved in the child, so the listener loads no torch
PARTS = {
    "listener": "pacs_node.listener",
    "worker": "pacs_node.worker",
    "delivery": "pacs_node.delivery",
    "schedule": "pacs_node.schedule",
    "web": "pacs_node.web.app",
    "syslog": "pacs_node.audit_syslog",
    "mllp": "pacs_node.mllp",
    "notify": "pacs_node.notify",
}

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
_STABLE_SECONDS = 60.0
_STOP_SECONDS = 20.0
_ROOM_SECONDS = 5.0


def run_part(part: str, settings: Settings, stop: Event | None = None) -> None:
    """Run one part in this process until SIGTERM or SIGINT.

    Parameters
    ----------
    part
        A key of `PARTS`.
    stop
        Ends the part when set; by default made here and set by the signals.

    Raises
    ------
    ConfigurationError
        The storage can't be used.
    """
    stop = stop or Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    at, late = utc_now(), None
    if not _record(settings, audit.Event.NODE_STARTED, part, at):
        # a part that runs is worth more than the row that says so
        late = Thread(target=_record_late, args=(settings, part, at, stop), name="started", daemon=True)
        late.start()
    importlib.import_module(PARTS[part]).run(settings, stop)
    if late is not None:
        late.join()
    _record(settings, audit.Event.NODE_STOPPED, part, utc_now())


def _record(settings: Settings, event: audit.Event, part: str, at: datetime) -> bool:
    """Record a start or an end; false if the disk is full."""
    database = open_database(settings)
    try:
        with database.write() as session:
            audit.record(session, event, at=at, actor=part, pid=os.getpid())
    except OperationalError as error:
        if not is_full(error):
            raise
        logger.critical("the disk is full: this can't be recorded", extra={"event": event.value[0]})
        return False
    finally:
        database.dispose()
    return True


def _record_late(settings: Settings, part: str, at: datetime, stop: Event) -> None:
    """Record a start as soon as there is room, or at the end at last."""
    over = False
    while not over:
        over = stop.wait(_ROOM_SECONDS)
        try:
            over = _record(settings, audit.Event.NODE_STARTED, part, at) or over
        except (SQLAlchemyError, ConfigurationError):
            logger.exception("a start could not be recorded")


def _child(part: str, settings: Settings) -> None:
    logs.configure()
    exit_with_parent()
    try:
        run_part(part, settings)
    except Exception:
        # multiprocessing would print the text of the error, which may quote a data set
        logger.exception("part failed")
        raise SystemExit(1) from None


@dataclass
class _Part:
    name: str
    process: BaseProcess
    started: float
    wait_seconds: float = _FIRST_WAIT
    restart_at: float | None = None


class Supervisor:
    """Keeps all parts running.

    Parameters
    ----------
    settings
        For every part.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._parts: list[_Part] = []

    def run(self, stop: Event) -> None:
        """Start the parts, restart those that die, and stop them all when `stop` is set."""
        with only_one(self._settings):
            preflight.check(self._settings, self._names())
            self._run(stop)

    def _names(self) -> list[str]:
        wanted = {
            "web": self._settings.web.enabled,
            "syslog": bool(self._settings.audit.syslog_host),
            "notify": bool(self._settings.notify.channels),
            "mllp": self._settings.mllp.enabled,
        }
        return [name for name in PARTS if wanted.get(name, True)]

    def _run(self, stop: Event) -> None:
        # first of all: without room nothing below can be written
        storage = self._settings.storage
        ballast = Ballast(Path(storage.directory), storage.ballast_mb << 20)
        ballast.look()
        self._give_up_leases()
        self._parts = [_Part(name, self._start(name), time.monotonic()) for name in self._names()]
        while not stop.is_set():
            ballast.look()
            wait([part.process.sentinel for part in self._parts if part.restart_at is None], timeout=0.5)
            for part in self._parts:
                self._look_after(part)
        self._stop_all()

    def _give_up_leases(self) -> None:
        database = open_database(self._settings)
        try:
            with database.write() as session:
                leases.give_up_leases_of_serve(session)
        except OperationalError as error:
            if not is_full(error):
                raise
            # nobody renews them: they are lost a little later
            logger.critical("the disk is full: leases of before could not be given up")
        finally:
            database.dispose()

    def _start(self, name: str) -> BaseProcess:
        process = self._context.Process(target=_child, args=(name, self._settings), name=name)
        process.start()
        return process

    def _look_after(self, part: _Part) -> None:
        now = time.monotonic()
        if part.restart_at is not None:
            if now >= part.restart_at:
                part.process, part.started, part.restart_at = self._start(part.name), now, None
            return
        if part.process.is_alive():
            return
        stable = now - part.started > _STABLE_SECONDS
        part.wait_seconds = _FIRST_WAIT if stable else min(2 * part.wait_seconds, _LONGEST_WAIT)
        part.restart_at = now + part.wait_seconds
        logger.error(
            "part died and will be started again",
            extra={"died": part.name, "exit_code": part.process.exitcode, "in_seconds": part.wait_seconds},
        )

    def _stop_all(self) -> None:
        for part in self._parts:
            part.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for part in self._parts:
            part.process.join(max(0.0, deadline - time.monotonic()))
            if part.process.is_alive():
                part.process.kill()
                part.process.join()


def serve(settings: Settings) -> None:
    """Run a whole node until SIGTERM or SIGINT.

    Raises
    ------
    ConfigurationError
        The configuration can't work on this machine, or another ``serve`` has the storage.
    """
    stop = Event()

    def on_signal(_number: int, _frame: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    Supervisor(settings).run(stop)
