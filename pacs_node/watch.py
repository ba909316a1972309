"""Looks at the node itself from time to time, and records what changed: the disk, and the audit record."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

from sqlalchemy import select

from pacs_node import audit, audit_chain
from pacs_node.audit_chain import HeadsUnreadableError, Verdict
from pacs_node.clock import Clock, utc_now
from pacs_node.db import AuditEvent, Database, Errand

logger = logging.getLogger(__name__)

DISK_SECONDS = 30
CHAIN_SECONDS = 600

_ACTOR = "schedule"
_LOW, _ENOUGH = 1.5, 1.75
_EACH = timedelta(hours=24)
_LEASE = timedelta(hours=6)
_ERRAND = "check of the audit record"
#: left to others after each piece of rows
_PAUSE_S = 0.02


def free_bytes(directory: Path) -> int:
    """Bytes that are free where a directory lies."""
    return shutil.disk_usage(directory).free


class DiskWatch:
    """Records when little room is left, before the listener refuses anything, and when there is enough again.

    Parameters
    ----------
    directory
        The storage directory.
    reserve_mb
        Of the settings: below it nothing is received.
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        reserve_mb: int,
        free: Callable[[Path], int] = free_bytes,
        clock: Clock = utc_now,
    ) -> None:
        self._database, self._directory, self._reserve_mb = database, directory, reserve_mb
        self._free, self._clock = free, clock
        self._low: bool | None = None

    def tick(self) -> None:
        """Look once."""
        if self._low is None:
            self._low = self._was_low()
        free_mb = self._free(self._directory) >> 20
        limit = (_ENOUGH if self._low else _LOW) * self._reserve_mb
        if (free_mb < limit) is self._low:
            return
        low = not self._low
        event = audit.Event.DISK_LOW if low else audit.Event.DISK_ENOUGH
        outcome = audit.Outcome.MINOR_FAILURE if low else audit.Outcome.SUCCESS
        with self._database.write() as session:
            audit.record(
                session,
                event,
                at=self._clock(),
                actor=_ACTOR,
                outcome=outcome,
                free_mb=free_mb,
                reserve_mb=self._reserve_mb,
            )
        self._low = low

    def _was_low(self) -> bool:
        """What was recorded last, also by a process before this one."""
        names = [audit.Event.DISK_LOW.value[0], audit.Event.DISK_ENOUGH.value[0]]
        with self._database.read() as session:
            latest = [
                session.execute(
                    select(AuditEvent.seq)
                    .where(AuditEvent.event == name)
                    .order_by(AuditEvent.at.desc(), AuditEvent.seq.desc())
                    .limit(1)
                ).scalar()
                or 0
                for name in names
            ]
        return latest[0] > latest[1]


class _StoppedError(Exception):
    """The node stops; the check is done later."""


class ChainWatch:
    """Checks the whole audit record once a day, in short transactions, and records what it found.

    Parameters
    ----------
    heads_file
        Heads noted earlier; need not exist.
    stop
        Ends a check that is under way.
    """

    def __init__(self, database: Database, heads_file: Path, stop: Event, clock: Clock = utc_now) -> None:
        self._database, self._heads_file, self._stop, self._clock = database, heads_file, stop, clock

    def tick(self) -> Verdict | None:
        """Check if a day has passed since the last time and nobody else does."""
        if not self._claim():
            return None
        try:
            heads = audit_chain.read_heads(self._heads_file) if self._heads_file.exists() else []
            verdict = audit_chain.verify_in_pieces(self._database, heads, self._pause)
        except _StoppedError:
            self._next(self._clock(), "stopped")
            return None
        except HeadsUnreadableError as error:
            verdict = Verdict(0, None, f"the noted heads can't be read: {error}", 0)
        self._finish(verdict)
        return verdict

    def _pause(self, _rows: int) -> None:
        if self._stop.wait(_PAUSE_S):
            raise _StoppedError

    def _claim(self) -> bool:
        now = self._clock()
        with self._database.read() as session:
            errand = session.get(Errand, _ERRAND)
            if errand is not None and errand.due_at > now:
                return False
        with self._database.write() as session:
            errand = session.get(Errand, _ERRAND)
            if errand is None:
                errand = Errand(name=_ERRAND, due_at=now)
                session.add(errand)
            if errand.due_at > now:
                return False
            errand.due_at, errand.started_at = now + _LEASE, now
            return True

    def _next(self, due_at: datetime, status: str) -> None:
        with self._database.write() as session:
            errand = session.get_one(Errand, _ERRAND)
            errand.due_at, errand.status = due_at, status

    def _finish(self, verdict: Verdict) -> None:
        now, bad = self._clock(), bool(verdict.why)
        if bad:
            logger.critical("the audit record is not whole", extra={"first_bad": verdict.first_bad})
        with self._database.write() as session:
            errand = session.get_one(Errand, _ERRAND)
            errand.due_at, errand.finished_at = now + _EACH, now
            errand.status = verdict.why or f"{verdict.rows} rows fit"
            audit.record(
                session,
                audit.Event.AUDIT_CHECKED,
                at=now,
                actor=_ACTOR,
                outcome=audit.Outcome.SERIOUS_FAILURE if bad else audit.Outcome.SUCCESS,
                rows=verdict.rows,
                first_bad=verdict.first_bad,
                reason=verdict.why or None,
            )
