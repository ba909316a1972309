"""Rows of received instances, written for many at once by one thread.

The listener answers when file and row are durable. An association waits for its row, so the instances of
several associations share a transaction, and one that comes alone has its own at once. The file says by its
name which bytes it must have and by its file meta information who sent it: what a killed listener left
without a row, unanswered, gets its row at the next start.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pacs_node import db, reception
from pacs_node.clock import Clock, utc_now
from pacs_node.damage import DiskFailedError, is_disk_failure
from pacs_node.errors import NodeError, UnreadableInstanceError
from pacs_node.reception import Arrival, Reception
from pacs_node.spool import FoundFile, Spool

logger = logging.getLogger(__name__)

HEAD_BYTES = 4 << 20
"""Of a data set, in which its identity must stand."""

_LINGER_S = 0.05
_RETRY_S = 1.0
_WAIT_S = 20.0
_AT_ONCE = 200
_MOST_WAITING = 1000
_LOST = "lost"


class RowsMissingError(NodeError):
    """Rows of instances that came before could not be written in time."""


@dataclass(eq=False, slots=True)
class Origin:
    """An association that brings instances; its row is written with the first of them."""

    calling_ae: str
    address: str
    opened_at: datetime
    row: int | None = None

    def row_in(self, session: Session) -> int:
        """Return the row's id; a new one counts only once the transaction is committed."""
        if self.row is not None:
            return self.row
        row = db.Association(calling_ae=self.calling_ae, address=self.address, opened_at=self.opened_at)
        session.add(row)
        session.flush()
        return row.id


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What came by an association: an instance, or its end."""

    origin: Origin
    what: Arrival | tuple[str, datetime]


class Recorder:
    """Writes rows for what is durable already.

    Parameters
    ----------
    database, spool
        Where the rows go and the files are.
    clock
        Source of the times of what is found at the start.
    on_trouble
        Called with each error of the disk or the database; see `report`.
    """

    def __init__(
        self,
        database: db.Database,
        spool: Spool,
        clock: Clock = utc_now,
        on_trouble: Callable[[Exception], None] | None = None,
    ) -> None:
        self.database = database
        self.spool = spool
        self.clock = clock
        self._on_trouble = on_trouble
        self._broken = False
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._added = self._written = self._failures = 0
        #: SOP Instance UID -> who has it, and the digest of the bytes; until its row is written
        self._claimed: dict[str, tuple[object, str]] = {}
        self._unwritten: set[str] = set()
        self._urgent = False
        self._stopping = False
        self._trouble: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, once; what can't be written is found at the next start."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    @contextmanager
    def claim(self, sop_instance_uid: str, digest: str) -> Iterator[None]:
        """Have an instance for oneself; whoever had it before has its row by then.

        Raises
        ------
        RowsMissingError
            Somebody has it for too long.
        """
        mine = object()
        with self._changed:
            if sop_instance_uid in self._claimed:
                self._hurry()
            if not self._changed.wait_for(lambda: sop_instance_uid not in self._claimed, _WAIT_S):
                raise RowsMissingError("the same instance is being received")
            self._claimed[sop_instance_uid] = (mine, digest)
        try:
            yield
        finally:
            with self._changed:
                owner, _ = self._claimed.get(sop_instance_uid, (None, ""))
                if owner is mine and sop_instance_uid not in self._unwritten:
                    del self._claimed[sop_instance_uid]
                    self._changed.notify_all()

    def add(self, origin: Origin, arrival: Arrival) -> None:
        """Have the row of a durable, claimed instance written soon; the claim lasts until then."""
        with self._changed:
            self._unwritten.add(arrival.identity.sop_instance_uid)
        self._put(_Waiting(origin, arrival))

    def end(self, origin: Origin, ending: str) -> None:
        """Have the end of an association written, behind its instances."""
        self._put(_Waiting(origin, (ending, self.clock())))

    def _put(self, item: _Waiting) -> None:
        with self._changed:
            self._waiting.append(item)
            self._added += 1
            # enough to begin with, or nothing was there and the thread sleeps
            if len(self._waiting) in {1, _AT_ONCE}:
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until the rows of all that was added are written.

        Raises
        ------
        SQLAlchemyError
            They can't be written now; they are tried again.
        RowsMissingError
            It takes too long.
        """
        with self._changed:
            target, failures = self._added, self._failures
            if self._written < target:
                self._hurry()
            self._changed.wait_for(lambda: self._written >= target or self._failures > failures, _WAIT_S)
            if self._written >= target:
                return
            if self._trouble is not None:
                raise self._trouble
            raise RowsMissingError("the database is too slow")

    def report(self, error: Exception) -> None:
        """Pass a trouble with the disk or the database on; after one that loses data nothing is taken."""
        self._broken = self._broken or is_disk_failure(error)
        if self._on_trouble is not None:
            self._on_trouble(error)

    def check(self) -> None:
        """Wait where too many rows are missing; raises as `flush` where they can't be written.

        Raises
        ------
        DiskFailedError
            The disk has failed before: nothing is taken any more.
        """
        if self._broken:
            raise DiskFailedError("the disk has failed")
        if self._trouble is not None or len(self._waiting) > _MOST_WAITING:
            self.flush()

    def _hurry(self) -> None:
        self._urgent = True
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                # others may join
                self._changed.wait_for(self._enough, _LINGER_S)
                batch = self._waiting[:_AT_ONCE]
                self._urgent = len(self._waiting) > _AT_ONCE
            if not self._tried(batch):
                with self._changed:
                    if self._stopping:
                        return
                    self._changed.wait_for(lambda: self._stopping or self._urgent, _RETRY_S)

    def _enough(self) -> bool:
        return self._urgent or self._stopping or len(self._waiting) >= _AT_ONCE

    def _tried(self, batch: Sequence[_Waiting]) -> bool:
        try:
            self._write(batch)
        except (SQLAlchemyError, OSError) as error:
            logger.exception("rows of received instances could not be written; they are tried again")
            with self._changed:
                self._trouble = error
                self._failures += 1
                self._changed.notify_all()
            self.report(error)
            return False
        with self._changed:
            self._trouble = None
            del self._waiting[: len(batch)]
            self._written += len(batch)
            for item in batch:
                if isinstance(item.what, Arrival):
                    self._unwritten.discard(item.what.identity.sop_instance_uid)
                    self._claimed.pop(item.what.identity.sop_instance_uid, None)
            self._changed.notify_all()
        return True

    def _write(self, batch: Sequence[_Waiting]) -> None:
        arrivals = [(item.origin, item.what) for item in batch if isinstance(item.what, Arrival)]
        with self.database.write() as session:
            rows = {origin: origin.row_in(session) for origin in dict.fromkeys(o for o, _ in arrivals)}
            outcomes = reception.record_arrivals(
                session, [arrival for _, arrival in arrivals], [rows[origin] for origin, _ in arrivals]
            )
            for item in batch:
                row = rows.get(item.origin, item.origin.row)
                if not isinstance(item.what, Arrival) and row is not None:
                    ending, at = item.what
                    session.execute(
                        update(db.Association)
                        .where(db.Association.id == row)
                        .values(closed_at=at, ending=ending)
                    )
        for origin, row in rows.items():
            origin.row = row
        for (_, arrival), outcome in zip(arrivals, outcomes, strict=True):
            if outcome in {Reception.OWN_RESULT, Reception.ELSEWHERE}:
                self.spool.remove(arrival.stored.path)

    def recover(self, files: Iterable[str]) -> int:
        """Write the rows of those stored files that have none, or remove what isn't what its name says.

        Parameters
        ----------
        files
            Their relative paths.

        Returns
        -------
        int
            How many there were.
        """
        with self.database.read() as session:
            named = reception.recorded_paths(session)
        origins: dict[str, Origin] = {}
        count = 0
        for path in files:
            if path not in named:
                self._recover(path, origins)
                count += 1
        for origin in origins.values():
            self.end(origin, _LOST)
        return count

    def _recover(self, path: str, origins: dict[str, Origin]) -> None:
        try:
            found = self.spool.find(path, HEAD_BYTES)
            if found is None:
                self._remove(path)
                return
            identity = reception.read_identity(found.head, found.transfer_syntax_uid)
        except UnreadableInstanceError:
            self._remove(path)
            return
        except FileNotFoundError:
            return
        now = self.clock()
        origin = origins.setdefault(found.source_ae, Origin(found.source_ae, "", now))
        with self.claim(identity.sop_instance_uid, found.stored.sha256):
            if not self._is_recorded(path):
                self.add(origin, _arrival(identity, found, now))
                logger.info("a file without a row is recorded", extra={"path": path})

    def _is_recorded(self, path: str) -> bool:
        with self.database.read() as session:
            return reception.is_recorded(session, path)

    def _remove(self, path: str) -> None:
        """Remove what nobody was told success for, unless its bytes are arriving just now."""
        with self._changed, self.database.write() as session:
            arriving = {digest for _, digest in self._claimed.values()}
            if not reception.is_recorded(session, path) and not any(digest in path for digest in arriving):
                self.spool.remove(path)
                logger.info("removed a damaged file without a row", extra={"path": path})


def _arrival(identity: reception.Identity, found: FoundFile, at: datetime) -> Arrival:
    return Arrival(identity, found.stored, found.transfer_syntax_uid, found.source_ae, at)


def recover_store(database: db.Database, spool: Spool, clock: Clock = utc_now) -> int:
    """Do what a listener does at its start, and wait until it is done; how many files had no row."""
    recorder = Recorder(database, spool, clock)
    recorder.start()
    try:
        spool.sweep()
        count = recorder.recover(list(spool.stored()))
        recorder.flush()
    finally:
        recorder.stop()
    return count
