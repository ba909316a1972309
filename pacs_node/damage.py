"""What a disk that failed has kept: after an end that was none, the latest images are read again.

An error of ``fsync`` says that something is lost and not what; asked again, the system says that all is well.
So the listener ends at the first one, acknowledges nothing more, and at its next start holds what came
shortly before against its SHA-256.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node import audit, db, jobs, pieces
from pacs_node.clock import Clock
from pacs_node.spool import Spool
from pacs_node.states import SeriesState

logger = logging.getLogger(__name__)

WINDOW = timedelta(minutes=15)
"""Before the last image that came; the system writes to the disk within a minute."""

_ACTOR = "listener"
_WAITS_S = (1.0, 5.0)
"""Before what couldn't be read is tried again: descriptors and memory come back, a disk may not."""


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


def give_up_damaged(
    database: db.Database,
    spool: Spool,
    since: datetime,
    clock: Clock,
    pause: Callable[[float], object] = time.sleep,
) -> int:
    """Read the latest images again and give up those that have other bytes than were acknowledged.

    The row of such an image stays, without a file: its sender can bring it again, and what is not there is
    never analysed as if it were whole. Its file is set aside. What can't be read is left as it is: that
    says nothing of what the disk has, and is recorded.

    Parameters
    ----------
    pause
        Waits some seconds before what couldn't be read is tried again.

    Returns
    -------
    int
        How many were damaged.
    """
    damaged = 0
    latest = _latest(database, since)
    for wait in (*_WAITS_S, None):
        unread: list[_Image] = []
        for image in latest:
            try:
                damaged += not _is_whole(spool, image.path) and _give_up(database, spool, image, clock)
            except OSError as error:
                logger.warning("an image can't be checked", extra={"path": image.path, "why": error.strerror})
                unread.append(image)
        if not unread:
            break
        latest = unread
        if wait is not None:
            pause(wait)
    else:
        _record_unread(database, latest, clock)
    if damaged:
        logger.critical("images were damaged on the disk", extra={"count": damaged})
    return damaged


def _give_up(database: db.Database, spool: Spool, image: _Image, clock: Clock) -> bool:
    """Take the file from the row, then set it aside: killed in between, the next start does the latter.

    Each time under the write lock and with a second look: the same bytes may be coming again just now.
    """
    with database.write() as session:
        row = session.get_one(db.Instance, image.row_id)
        if row.path is None or _is_whole(spool, image.path):
            return False
        row.path = None
        _judge_without(session, row, clock())
        what = "the disk has other bytes than were received; they are set aside"
        _record(session, audit.Event.IMAGES_REMOVED, image, clock, what, files=1)
    with database.write() as session:
        row = session.get_one(db.Instance, image.row_id)
        if row.path is None and spool.absolute(image.path).exists() and not _is_whole(spool, image.path):
            kept = spool.set_aside(image.path)
            logger.error("a damaged image is set aside", extra={"path": image.path, "as": kept})
    return True


def _judge_without(session: Session, row: db.Instance, at: datetime) -> None:
    """Have its series judged without it, and once more when it comes again; a result that is made stays."""
    series = row.series
    if jobs.is_analysed(session, series):
        return
    row.damaged_at = at
    # also a series that is open again, by a late or conflicting image, may have a job that waits
    if series.state in {SeriesState.QUEUED, SeriesState.RECEIVING}:
        jobs.judge_again(session, series, "images were damaged on the disk", at=at, actor=_ACTOR)


def _record_unread(database: db.Database, images: Sequence[_Image], clock: Clock) -> None:
    logger.critical("images could not be checked; they stay", extra={"count": len(images)})
    with database.write() as session:
        for image in images:
            what = "it could not be checked whether the disk has it; it stays"
            _record(session, audit.Event.IMAGE_UNCHECKED, image, clock, what)


def _record(
    session: Session, event: audit.Event, image: _Image, clock: Clock, reason: str, **objects: int
) -> None:
    audit.record(
        session,
        event,
        at=clock(),
        actor=_ACTOR,
        study_uid=image.study_uid,
        outcome=audit.Outcome.SERIOUS_FAILURE,
        sop_instance_uid=image.sop_instance_uid,
        reason=reason,
        **objects,
    )


class _Image(NamedTuple):
    row_id: int
    path: str
    sop_instance_uid: str
    study_uid: str


def _latest(database: db.Database, since: datetime) -> list[_Image]:
    instance = db.Instance
    times: list[datetime] = []
    for piece in pieces.ranges(database, instance.id):
        with database.read() as session:
            times += filter(
                None, [session.execute(select(func.max(instance.received_at)).where(piece)).scalar()]
            )
    if not times:
        return []
    begin, found = max(since, max(times) - WINDOW), []
    for piece in pieces.ranges(database, instance.id):
        with database.read() as session:
            rows = session.execute(
                select(instance.id, instance.path, instance.sop_instance_uid, db.Study.study_uid)
                .join(db.Series, instance.series_id == db.Series.id)
                .join(db.Study, db.Series.study_id == db.Study.id)
                .where(piece, instance.received_at >= begin, instance.path.is_not(None))
                .order_by(instance.id)
            ).tuples()
            found += [
                _Image(row_id, path, uid, study) for row_id, path, uid, study in rows if path is not None
            ]
    return found


def _is_whole(spool: Spool, path: str) -> bool:
    """Whether a file has the bytes that its name says; one that isn't there has not.

    Raises
    ------
    OSError
        It can't be read to its end.
    """
    try:
        _forget_cached(spool, path)
        return spool.find(path, 0) is not None
    except FileNotFoundError:
        return False


def _forget_cached(spool: Spool, path: str) -> None:
    """What the disk has counts, not what memory still knows of it."""
    descriptor = os.open(spool.absolute(path), os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
