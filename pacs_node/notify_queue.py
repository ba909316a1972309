"""Messages that wait: rows that outlive every process, tried until somebody takes them or time is over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, delete, func, or_, select
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.breaker import Waits
from pacs_node.db import AuditEvent, Database
from pacs_node.db_notices import Notice, NoticePosition
from pacs_node.notify_messages import Message, message_of, topic_of

ACTOR = "notify"
BATCH = 20
"""Messages that are sent in one go."""

_READ = 1000
_POSITION = "audit"
_LEASE = timedelta(minutes=5)
_KEPT = timedelta(days=30)
_WAITS = Waits(30.0, 3600.0)
#: a clock that was set back must not let a message wait for ever
_LONGEST = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is told, by what, and how it is worded.

    Parameters
    ----------
    topics, channels
        Of `pacs_node.config_notify`.
    news
        Events older than this are not told.
    """

    topics: Collection[str]
    channels: Sequence[str]
    node: str
    page_url: str
    news: timedelta


class Collector:
    """Reads the audit record from where it stopped, and writes messages down.

    Parameters
    ----------
    database
        With the record. A first start begins at its end: what was before is not told.
    """

    def __init__(self, database: Database, wanted: Wanted) -> None:
        self._database, self._wanted = database, wanted
        self._seen: int | None = None

    def collect(self, at: datetime) -> int:
        """Look once; return how many rows of the record were read."""
        if self._seen is None:
            self._seen = self._begin()
        with self._database.read() as session:
            news = select(AuditEvent).where(AuditEvent.seq > self._seen).order_by(AuditEvent.seq).limit(_READ)
            rows = session.execute(news).scalars().all()
        if not rows:
            return 0
        told = [(row, topic) for row in rows if (topic := topic_of(row)) in self._wanted.topics]
        told = [(row, topic) for row, topic in told if at - row.at <= self._wanted.news]
        # the position needs no write of its own for what is not told, but must not fall far behind
        if told or len(rows) == _READ:
            self._keep(told, rows[-1].seq, at)
        self._seen = rows[-1].seq
        return len(rows)

    def _begin(self) -> int:
        with self._database.read() as session:
            row = session.get(NoticePosition, _POSITION)
            if row is not None:
                return row.seq
        with self._database.write() as session:
            row = session.get(NoticePosition, _POSITION)
            if row is None:
                last = session.execute(select(func.max(AuditEvent.seq))).scalar() or 0
                row = NoticePosition(name=_POSITION, seq=last)
                session.add(row)
            return row.seq

    def _keep(self, told: Sequence[tuple[AuditEvent, str | None]], seq: int, at: datetime) -> None:
        with self._database.write() as session:
            position = session.get_one(NoticePosition, _POSITION)
            for row, topic in told:
                if row.seq <= position.seq:  # another process was here
                    continue
                message = message_of(row, str(topic), self._wanted.node, self._wanted.page_url)
                for channel in self._wanted.channels:
                    session.add(_notice(row.seq, channel, message, at))
            position.seq = max(position.seq, seq)
            session.execute(delete(Notice).where(Notice.sent_at < at - _KEPT))
            session.execute(delete(Notice).where(Notice.failed_at < at - _KEPT))


def _notice(seq: int, channel: str, message: Message, at: datetime) -> Notice:
    return Notice(
        seq=seq,
        channel=channel,
        topic=message.topic,
        message_id=message.message_id,
        body=message.body,
        created_at=at,
        attempts=0,
        next_attempt_at=at,
    )


def _due(channel: str, at: datetime) -> Select[tuple[Notice]]:
    return (
        select(Notice)
        .where(
            Notice.channel == channel,
            or_(Notice.next_attempt_at <= at, Notice.next_attempt_at > at + _LONGEST),
        )
        .order_by(Notice.id)
        .limit(BATCH)
    )


def claim(database: Database, channel: str, at: datetime) -> list[Notice]:
    """Take what is due; whoever dies with it leaves it to others after five minutes."""
    with database.read() as session:
        if session.execute(_due(channel, at)).first() is None:
            return []
    with database.write() as session:
        rows = list(session.execute(_due(channel, at)).scalars())
        for row in rows:
            row.next_attempt_at = at + _LEASE
            row.attempts += 1
        return rows


def note_sent(database: Database, rows: Sequence[Notice], status: str, at: datetime) -> None:
    """They were taken."""
    with database.write() as session:
        for row in rows:
            kept = session.get_one(Notice, row.id)
            kept.next_attempt_at, kept.sent_at, kept.failed_at, kept.status = None, at, None, status
        _record(session, rows, audit.Outcome.SUCCESS, status, at)


def note_failed(
    database: Database, rows: Sequence[Notice], status: str, give_up: timedelta, at: datetime
) -> None:
    """They were not taken: later again, or given up."""
    with database.write() as session:
        given_up = []
        for row in rows:
            kept = session.get_one(Notice, row.id)
            kept.status = status
            if at - kept.created_at < give_up:
                kept.next_attempt_at = at + _WAITS.after(kept.attempts)
            else:
                kept.next_attempt_at, kept.failed_at = None, at
                given_up.append(kept)
        if given_up:
            _record(session, given_up, audit.Outcome.MINOR_FAILURE, f"given up: {status}", at)


def _record(
    session: Session, rows: Sequence[Notice], outcome: audit.Outcome, status: str, at: datetime
) -> None:
    if rows:
        audit.record(
            session,
            audit.Event.NOTIFIED,
            at=at,
            actor=ACTOR,
            outcome=outcome,
            channel=rows[0].channel,
            told_rows=[row.seq for row in rows],
            reason=status,
        )


def requeue(database: Database, at: datetime) -> int:
    """Give what was given up another chance; return how many."""
    with database.write() as session:
        rows = session.execute(select(Notice).where(Notice.failed_at.is_not(None))).scalars().all()
        for row in rows:
            row.failed_at, row.next_attempt_at, row.created_at = None, at, at
        return len(rows)


@dataclass(frozen=True, slots=True)
class Backlog:
    """How it stands with a channel."""

    waiting: int
    oldest: datetime | None
    failed: int
    status: str | None


def backlog(session: Session, channel: str) -> Backlog:
    """Look at the rows of a channel."""
    waits = (Notice.channel == channel, Notice.next_attempt_at.is_not(None))
    waiting, oldest = session.execute(select(func.count(), func.min(Notice.created_at)).where(*waits)).one()
    gone = (Notice.channel == channel, Notice.failed_at.is_not(None))
    failed = session.execute(select(func.count()).select_from(Notice).where(*gone)).scalar_one()
    last = select(Notice.status).where(
        Notice.channel == channel, Notice.status.is_not(None), Notice.sent_at.is_(None)
    )
    status = session.execute(last.order_by(Notice.id.desc()).limit(1)).scalar()
    return Backlog(waiting, oldest, failed, status)
