"""What ``pacs-node doctor`` finds out about the queue and the outbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError

from pacs_node import breaker
from pacs_node.backlog import waiting
from pacs_node.clock_guard import doubt
from pacs_node.config import Settings
from pacs_node.db import Breaker, Database
from pacs_node.dead_letters import dead_letters
from pacs_node.doctor_findings import Finding, Level
from pacs_node.errors import ConfigurationError
from pacs_node.storage import existing_database


def check_queue(settings: Settings, now: datetime) -> Iterator[Finding]:
    """What waits, destinations that aren't reached, and what has failed for good."""
    try:
        with existing_database(settings) as database:
            if database is not None:
                yield from list(_look(database, settings, now))
    except ConfigurationError:  # said by check_database
        return
    except DatabaseError as error:
        todo = "start this version of the node once: it brings the database up to date"
        yield Finding(Level.WARNING, "queue", f"can't be read ({error.orig})", todo)


def _look(database: Database, settings: Settings, now: datetime) -> Iterator[Finding]:
    with database.read() as session:
        waits = waiting(session)
        rows = session.execute(select(Breaker).order_by(Breaker.destination)).scalars()
        away = [(row.destination, known) for row in rows if (known := breaker.away(row)) is not None]
        jump = doubt(session)
        failed = Counter((item.place, item.cause) for item in dead_letters(session))
    excess = waits.excess(settings.backlog, now)
    sentence = f"{waits.jobs} jobs wait or run, {waits.size >> 20} MiB of images without a result"
    if excess is None:
        yield Finding(Level.GOOD, "queue", sentence)
    else:
        todo = (
            "see whether a worker runs (pacs-node status, the log); new associations are rejected until then"
        )
        yield Finding(Level.PROBLEM, "queue", excess, todo)
    if jump is not None:
        todo = "let it follow a time server, or set it; if right: pacs-node retention --clock-is-right REASON"
        yield Finding(Level.PROBLEM, "retention", f"the clock went {jump}: nothing is removed", todo)
    for name, known in away:
        yield Finding(
            Level.PROBLEM,
            f"destination {name}",
            f"not reached since {known.since:%Y-%m-%d %H:%M:%S} UTC: {known.reason}; "
            f"tried again at {known.next_probe_at:%H:%M:%S}",
            f"see pacs-node echo {name}; results wait and go by themselves when it answers",
        )
    for (place, cause), count in sorted(failed.items()):
        todo = f"after the cause is gone: pacs-node failed --to {place} --requeue"
        yield Finding(Level.WARNING, "failed", f"{count} for {place}: {cause or 'no cause was noted'}", todo)
