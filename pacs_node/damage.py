"""What a disk that failed has kept: after an end that was none, the latest images are read again.

An error of ``fsync`` says that something is lost and not what; asked again, the system says that all is well.
So the listener ends at the first one, acknowledges nothing more, and at its next start holds what came
shortly before against its SHA-256.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError

from pacs_node import audit, db
from pacs_node.clock import Clock
from pacs_node.errors import NodeError
from pacs_node.spool import Spool

logger = logging.getLogger(__name__)

WINDOW = timedelta(minutes=15)
"""Before the last image that came; the system writes to the disk within a minute."""

_ACTOR = "listener"


class DiskFailedError(NodeError):
    """The disk said that it has not kept what was written."""


def is_disk_failure(error: BaseException) -> bool:
    """Whether an error means that what was written may be lost; a disk that is full loses nothing."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return str(getattr(cause, "sqlite_errorname", "")).startswith("SQLITE_IOERR")
    return isinstance(cause, OSError) and cause.errno == errno.EIO


def ended_badly(database: db.Database) -> datetime | None:
    """When the listener before this one started, if it did not end as it should; None if it did."""
    events = (
        select(db.AuditEvent.event, db.AuditEvent.at)
        .where(
            db.AuditEvent.actor == _ACTOR,
            db.AuditEvent.event.in_([audit.Event.NODE_STARTED.value[0], audit.Event.NODE_STOPPED.value[0]]),
        )
        .order_by(db.AuditEvent.seq.desc())
        .limit(2)
    )
    with database.read() as session:
        rows = session.execute(events).tuples().all()
    # the last one is this start
    if len(rows) < 2 or rows[1][0] != audit.Event.NODE_STARTED.value[0]:
        return None
    return rows[1][1]


def remove_damaged(database: db.Database, spool: Spool, since: datetime, clock: Clock) -> int:
    """Read the latest images again and give up those that have other bytes than were acknowledged.

    The row of such an image stays, without a file: its sender can bring it again, and what is not there is
    never analysed as if it were whole.

    Returns
    -------
    int
        How many were damaged.
    """
    damaged = [row_id for row_id, path in _latest(database, since) if not _is_whole(spool, path)]
    for row_id in damaged:
        with database.write() as session:
            instance = session.get_one(db.Instance, row_id)
            if instance.path is None:
                continue
            spool.remove(instance.path)
            instance.path = None
            audit.record(
                session,
                audit.Event.IMAGES_REMOVED,
                at=clock(),
                actor=_ACTOR,
                study_uid=instance.series.study.study_uid,
                outcome=audit.Outcome.SERIOUS_FAILURE,
                sop_instance_uid=instance.sop_instance_uid,
                reason="the disk has other bytes than were received",
            )
    if damaged:
        logger.critical("images were damaged on the disk", extra={"count": len(damaged)})
    return len(damaged)


def _latest(database: db.Database, since: datetime) -> Iterator[tuple[int, str]]:
    with database.read() as session:
        last = session.execute(select(func.max(db.Instance.received_at))).scalar()
        if last is None:
            return
        rows = session.execute(
            select(db.Instance.id, db.Instance.path).where(
                db.Instance.received_at >= max(since, last - WINDOW), db.Instance.path.is_not(None)
            )
        ).tuples()
        found = [(row_id, path) for row_id, path in rows if path is not None]
    yield from found


def _is_whole(spool: Spool, path: str) -> bool:
    try:
        _forget_cached(spool, path)
        return spool.find(path, 0) is not None
    except OSError:
        return False


def _forget_cached(spool: Spool, path: str) -> None:
    """What the disk has counts, not what memory still knows of it."""
    descriptor = os.open(spool.absolute(path), os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
