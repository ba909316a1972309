"""Who was turned away, in the audit record: the first time at once, then once a minute with a count.

Without that a stranger could fill the record, and keep the listener busy with it, as fast as it can connect;
and a PACS that tries again and again on a full disk would take the last room, that of the ballast.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from pacs_node import audit, db
from pacs_node.clock import Clock
from pacs_node.gate_visitor import Visitor

logger = logging.getLogger(__name__)

INTERVAL_S = 60.0
MAX_KINDS = 200
"""Different refusals in one interval; what is beyond counts as one of many senders."""

_OTHERS = "many different senders"


class _Kind(NamedTuple):
    visitor: Visitor
    reason: str
    #: that its objects were answered with; empty where it was the association that was refused
    status: str = ""


@dataclass(slots=True)
class _Count:
    new: int = 0
    written: float | None = field(default=None)


class RefusalRecord:
    """Writes refusals to the audit record from a thread of its own.

    Parameters
    ----------
    database, clock
        Where the events go, and their times.
    interval
        Seconds between two events about the same sender and reason.
    """

    def __init__(self, database: db.Database, clock: Clock, interval: float = INTERVAL_S) -> None:
        self._database = database
        self._clock = clock
        self._interval = interval
        self._counts: dict[_Kind, _Count] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="refusals", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def add(self, visitor: Visitor, reason: str, status: str = "") -> None:
        """Count a refused association, or with a status an object; never waits for the database."""
        kind = _Kind(visitor, reason, status)
        with self._changed:
            if kind not in self._counts and len(self._counts) >= MAX_KINDS:
                kind = _Kind(Visitor("", "", ""), _OTHERS, status)
            self._counts.setdefault(kind, _Count()).new += 1
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._stopping:
                    self._changed.wait_for(lambda: self._stopping or bool(self._due()), self._interval)
                stopping = self._stopping
                due = self._take()
            if due:
                self._write(due)
            if stopping:
                return

    def _due(self) -> list[_Kind]:
        now = time.monotonic()
        return [
            kind
            for kind, count in self._counts.items()
            if count.new
            and (self._stopping or count.written is None or now - count.written >= self._interval)
        ]

    def _take(self) -> list[tuple[_Kind, int]]:
        """Take what is to be written now, and forget who has been quiet for an interval."""
        now = time.monotonic()
        due = []
        for kind in self._due():
            due.append((kind, self._counts[kind].new))
            self._counts[kind] = _Count(0, now)
        for kind, count in list(self._counts.items()):
            if not count.new and count.written is not None and now - count.written >= self._interval:
                del self._counts[kind]
        return due

    def _write(self, due: list[tuple[_Kind, int]]) -> None:
        for kind, count in due:
            logger.warning(_event(kind).value[0], extra={**_objects(kind), "count": count})
        try:
            with self._database.write() as session:
                for kind, count in due:
                    audit.record(
                        session,
                        _event(kind),
                        at=self._clock(),
                        actor="listener",
                        outcome=audit.Outcome.MINOR_FAILURE,
                        **_objects(kind),
                        count=count,
                    )
        except SQLAlchemyError:
            logger.exception("refusals could not be recorded; they are counted on")
            with self._changed:
                for kind, count in due:
                    self._counts.setdefault(kind, _Count(0, time.monotonic())).new += count


def _event(kind: _Kind) -> audit.Event:
    return audit.Event.INSTANCE_REFUSED if kind.status else audit.Event.ASSOCIATION_REFUSED


def _objects(kind: _Kind) -> dict[str, str]:
    visitor = kind.visitor
    named = {
        "calling_ae": visitor.calling_ae,
        "called_ae": visitor.called_ae,
        "address": visitor.address,
        "certificate": visitor.certificate,
        "status": kind.status,
    }
    return {key: value for key, value in named.items() if value} | {"reason": kind.reason}
