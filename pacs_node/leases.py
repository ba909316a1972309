"""Who holds a job or a delivery: tokens, heartbeats, and leases that nobody renews any more.

Whoever holds a row's token may change it: the token stands in the condition of each change, so a holder
that stood still finds `StaleStateError`. The time of day doesn't say whether a holder is gone: a lease is
lost when the reclaimer has seen it unrenewed for `LEASE` of its own monotonic clock. So a clock that jumps
loses none.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from threading import Event, Thread

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from pacs_node.clock import Clock
from pacs_node.db import Database, Delivery, Job
from pacs_node.errors import StaleStateError
from pacs_node.states import DeliveryState, JobState

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)
HEARTBEAT_SECONDS = 5.0

Held = type[Job] | type[Delivery]


def new_token() -> str:
    """Return a lease token; its first word says whether a part of ``serve`` or a part alone holds it."""
    holder = "serve" if multiprocessing.parent_process() is not None else "alone"
    return f"{holder}:{uuid.uuid4().hex}"


class LeaseWatch:
    """What one reclaimer has seen of the leases of one table.

    Parameters
    ----------
    table
        Whose rows are watched.
    ticks
        A clock that never jumps, seconds.
    """

    def __init__(self, table: Held, ticks: Callable[[], float] = time.monotonic) -> None:
        self._table = table
        self._ticks = ticks
        #: row -> its lease, and since when it has stood there unchanged
        self._seen: dict[int, tuple[tuple[str, datetime | None], float]] = {}

    def lost(self, session: Session, *conditions: object) -> list[tuple[int, str]]:
        """Look at the held rows; return row and token of those that nobody renews.

        A lease without an end was given up (`give_up_leases_of_serve`) and is lost at once.

        Parameters
        ----------
        *conditions
            SQL expressions that narrow which rows are looked at, the same at each call.
        """
        table, now = self._table, self._ticks()
        held = select(table.id, table.lease_token, table.lease_expires_at).where(
            # first of all the state: by it the few are found among all that ever were
            _is_held(table),
            table.lease_token.is_not(None),
            *conditions,  # type: ignore[arg-type]  # columns of either table
        )
        leases = {row: (str(token), expires) for row, token, expires in session.execute(held).tuples()}
        before = self._seen
        self._seen = {
            row: before[row] if row in before and before[row][0] == lease else (lease, now)
            for row, lease in leases.items()
        }
        return [
            (row, lease[0])
            for row, (lease, since) in self._seen.items()
            if lease[1] is None or now - since > LEASE.total_seconds()
        ]


def give_up_leases_of_serve(session: Session) -> None:
    """Let every lease that a part of ``serve`` holds be lost at once.

    For the start of ``serve``, which has made sure that no other is alive on the same storage.
    """
    for table in (Job, Delivery):
        session.execute(
            update(table)
            .where(_is_held(table), table.lease_token.startswith("serve:"))
            .values(lease_expires_at=None)
        )


def _is_held(table: Held) -> ColumnElement[bool]:
    return Job.state == JobState.RUNNING if table is Job else Delivery.state == DeliveryState.SENDING


def extend(session: Session, table: Held, ids: Sequence[int], token: str, at: datetime) -> None:
    """Extend leases that `token` still holds; raise `StaleStateError` if one was lost."""
    result = session.execute(
        update(table)
        .where(table.id.in_(ids), table.lease_token == token)
        .values(lease_expires_at=at + LEASE)
        .execution_options(synchronize_session=False)
    )
    if not isinstance(result, CursorResult) or result.rowcount != len(ids):
        raise StaleStateError("lease lost")


@contextmanager
def heartbeat(
    database: Database, table: Held, ids: Sequence[int], token: str, clock: Clock
) -> Iterator[Event]:
    """Keep leases alive while the body runs; the yielded event is set when one is lost."""
    stop, lost = Event(), Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                with database.write() as session:
                    extend(session, table, ids, token, clock())
            except StaleStateError:
                lost.set()
                return
            except SQLAlchemyError:
                # a busy or full disk; the lease lasts for several beats
                logger.exception("heartbeat failed")

    thread = Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield lost
    finally:
        stop.set()
        thread.join()
