"""Rows of received instances: whoever waits for its own writes those of all that wait.

The listener answers when file and row are durable. Associations that wait at the same time share a
transaction, and one that comes alone has its own at once, in its own thread.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, insert, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from pacs_node import db, reception
from pacs_node.clock import Clock, utc_now
from pacs_node.connections import WRITE
from pacs_node.errors import DiskFailedError, NodeError
from pacs_node.reception import Arrival, Reception
from pacs_node.row_errors import Blame, blame, is_disk_failure
from pacs_node.spool import Spool

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
_WAIT_S = 20.0


class RowsMissingError(NodeError):
    """Rows of instances could not be written in time."""


@dataclass(eq=False, slots=True)
class Origin:
    """An association that brings instances; its row is written with the first of them."""

    calling_ae: str
    address: str
    opened_at: datetime
    row: int | None = None

    def row_in(self, connection: Connection) -> int:
        """Return the row's id; a new one counts only once the transaction is committed."""
        if self.row is not None:
            return self.row
        new = insert(db.Association).values(
            calling_ae=self.calling_ae, address=self.address, opened_at=self.opened_at
        )
        return int(connection.execute(new.returning(db.Association.id)).scalar_one())


_End = tuple[Origin, str, datetime]


@dataclass(eq=False, slots=True)
class _Waiting:
    """An instance that waits for its row, and what became of it."""

    origin: Origin
    arrival: Arrival
    outcome: Reception | None = None
    trouble: Exception | None = None


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
        self._writer = database.engine.execution_options(**{WRITE: True})
        self._connection: Connection | None = None
        self.spool = spool
        self.clock = clock
        self._on_trouble = on_trouble
        self._broken = False
        self._changed = threading.Condition()
        #: somebody has its turn
        self._writing = False
        self._waiting: list[_Waiting] = []
        self._ends: list[_End] = []
        self._trouble: Exception | None = None
        self._released = threading.Condition()
        #: SOP Instance UID -> digest of the bytes that somebody is making durable
        self._claimed: dict[str, str] = {}
        #: something waits that no association waits for
        self._left = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow_up, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to write what nobody waits for, and again what could not be written."""
        reception.prepare(self._writer.dialect)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, once; what can't be written is found at the next start."""
        self._stopping.set()
        self._left.set()
        self._thread.join()
        with self._changed:
            self._changed.wait_for(lambda: not self._writing, _WAIT_S)
            self._hang_up()

    @contextmanager
    def claim(self, sop_instance_uid: str, digest: str) -> Iterator[None]:
        """Have an instance for oneself.

        Raises
        ------
        RowsMissingError
            Somebody has it for too long.
        """
        with self._released:
            if not self._released.wait_for(lambda: sop_instance_uid not in self._claimed, _WAIT_S):
                raise RowsMissingError("the same instance is being received")
            self._claimed[sop_instance_uid] = digest
        try:
            yield
        finally:
            with self._released:
                del self._claimed[sop_instance_uid]
                self._released.notify_all()

    @contextmanager
    def nothing_arrives(self) -> Iterator[Collection[str]]:
        """Have nobody claim another instance; the digests of what is arriving just now."""
        with self._released:
            yield self._claimed.values()

    def add(self, origin: Origin, arrival: Arrival) -> int:
        """Have the row of a durable instance written with the others; how many wait now."""
        self._waiting.append(_Waiting(origin, arrival))
        return len(self._waiting)

    def record(self, origin: Origin, arrival: Arrival) -> Reception:
        """Write the row of a durable, claimed instance; it is committed on return.

        After an error it is tried again later: the sender will have been told to keep the instance.

        Raises
        ------
        SQLAlchemyError, OSError, RowsMissingError
            It could not be written in time, or retention has removed the file meanwhile.
        """
        item = _Waiting(origin, arrival)
        self._waiting.append(item)
        self._write(item)
        if item.outcome is None:
            raise item.trouble or RowsMissingError("the database is too slow")
        return item.outcome

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs that writes what nobody waits for."""
        return self._thread.is_alive()

    def end(self, origin: Origin, ending: str) -> None:
        """Have the end of an association written soon, behind its instances."""
        self._ends.append((origin, ending, self.clock()))
        self._left.set()

    def flush(self) -> None:
        """Write all that waits.

        Raises
        ------
        SQLAlchemyError, OSError, RowsMissingError
            It can't be written now; it is tried again.
        """
        self._write()
        if self._trouble is not None:
            raise self._trouble

    def report(self, error: Exception) -> None:
        """Pass a trouble with the disk or the database on; after one that loses data nothing is taken."""
        self._broken = self._broken or is_disk_failure(error)
        if self._on_trouble is not None:
            self._on_trouble(error)

    def check(self) -> None:
        """Look whether an instance can be taken; raises as `flush` where rows can't be written.

        Raises
        ------
        DiskFailedError
            The disk has failed before: nothing is taken any more.
        """
        if self._broken:
            raise DiskFailedError("the disk has failed")
        if self._trouble is not None:
            self.flush()

    def _follow_up(self) -> None:
        while not self._stopping.is_set():
            self._left.wait()
            if self._trouble is not None:
                self._stopping.wait(_RETRY_S)
            self._left.clear()
            self._write()

    def _write(self, item: _Waiting | None = None) -> None:
        """Write all that waits, unless somebody has seen to the item before it was our turn."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._writing or _is_settled(item), _WAIT_S):
                self._trouble = RowsMissingError("the database is too slow")
                return
            if _is_settled(item):
                return
            self._writing = True
        try:
            self._write_all()
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write_all(self) -> None:
        items, ends = self._waiting[:], self._ends[:]
        error = self._attempt(items, ends)
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            # a server that was restarted: on a new connection all may be well
            error = self._attempt(items, ends)
        if error is not None and self._is_of_all(error):
            self._try_again_later(error, items)
            return
        if error is not None and not self._write_one_by_one(items, ends):
            return
        self._trouble = None
        del self._waiting[: len(items)], self._ends[: len(ends)]
        for item in items:
            if item.outcome in {Reception.OWN_RESULT, Reception.ELSEWHERE}:
                self.spool.remove(item.arrival.stored.path)

    def _write_one_by_one(self, items: Sequence[_Waiting], ends: Sequence[_End]) -> bool:
        """Write those that can be written; one that never can be is refused, and holds up nobody else."""
        for item in items:
            error = self._attempt([item], [])
            if error is not None and self._is_of_all(error):
                self._try_again_later(error, [other for other in items if other.outcome is None])
                return False
            if error is not None:
                logger.error("the row of an instance can't be written; its file stays", exc_info=error)
                item.trouble = error
        for end in ends:
            error = self._attempt([], [end])
            if error is not None and self._is_of_all(error):
                self._try_again_later(error, [])
                return False
            if error is not None:
                logger.error("the end of an association can't be written", exc_info=error)
        return True

    def _attempt(self, items: Sequence[_Waiting], ends: Sequence[_End]) -> Exception | None:
        """Write all in one transaction; return what kept it from that."""
        try:
            self._commit(items, ends)
        except (SQLAlchemyError, OSError, NodeError) as error:
            self._hang_up()
            return error
        except Exception as error:  # noqa: BLE001 - whatever one of them raises must not hold up all others
            self._hang_up()
            unforeseen = RowsMissingError(f"a fault of this software ({type(error).__name__})")
            unforeseen.__cause__ = error
            return unforeseen
        return None

    def _is_of_all(self, error: Exception) -> bool:
        """Whether nothing can be written now, so that it is no fault of what was to be."""
        found = blame(error)
        return found is Blame.ALL or (found is Blame.UNKNOWN and not self._can_write())

    def _can_write(self) -> bool:
        """Try it with a row that goes again."""
        try:
            with self._writer.connect() as connection, connection.begin():
                row = Origin("", "", self.clock()).row_in(connection)
                connection.execute(delete(db.Association).where(db.Association.id == row))
        except (SQLAlchemyError, OSError):
            return False
        return True

    def _try_again_later(self, error: Exception, items: Sequence[_Waiting]) -> None:
        logger.error("rows of received instances could not be written; they are tried again", exc_info=error)
        self._trouble = error
        for item in items:
            item.trouble = error
        self._left.set()
        self.report(error)

    def _commit(self, items: Sequence[_Waiting], ends: Sequence[_End]) -> None:
        if not items and all(origin.row is None for origin, _, _ in ends):
            return
        rows: dict[Origin, int] = {}
        # kept: to take one from the pool each time would take a fifth of the time of a commit
        connection = self._connection = self._connection or self._writer.connect()
        with connection.begin():
            there = [item for item in items if self._is_there(item)]
            for item in there:
                rows[item.origin] = rows.get(item.origin) or item.origin.row_in(connection)
            outcomes = reception.record_arrivals(
                connection,
                [item.arrival for item in there],
                [rows[item.origin] for item in there],
                self.spool.directory,
            )
            for origin, ending, at in ends:
                row = rows.get(origin, origin.row)
                connection.execute(
                    update(db.Association).where(db.Association.id == row).values(closed_at=at, ending=ending)
                )
        for origin, row in rows.items():
            origin.row = row
        for item, outcome in zip(there, outcomes, strict=True):
            item.outcome = outcome

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _is_there(self, item: _Waiting) -> bool:
        """Whether retention, which has the write lock then, has not removed its file as an old copy."""
        path = item.arrival.stored.path
        if os.path.exists(f"{self.spool.directory}/{path}"):  # noqa: PTH110 - of each object that comes
            return True
        item.trouble = FileNotFoundError(path)
        return False


def _is_settled(item: _Waiting | None) -> bool:
    return item is not None and (item.outcome is not None or item.trouble is not None)
