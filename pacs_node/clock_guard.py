"""Doubts a clock that has jumped forward, before anything is removed by it.

A node looks each hour and notes the time. A time that is days later than the last noted one is a node that
was off, or a clock that is wrong: nothing in the node can tell which, and what is removed doesn't come back.
So the kernel is asked whether the clock follows a time server, and an operator where it doesn't say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.clock import Clock, clock_is_synchronised, utc_now
from pacs_node.db import Database, Errand

logger = logging.getLogger(__name__)

LONGEST_GAP = timedelta(days=2)
"""Between two looks; so what is removed by a wrong clock goes two days too early at most."""

_ACTOR = "schedule"
_MARK = "look at the clock"


class ClockGuard:
    """Looks at the clock of a node.

    Parameters
    ----------
    clock
        The time that may be wrong.
    synchronised
        Whether the system says that it follows a time server; None where it doesn't say.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock = utc_now,
        synchronised: Callable[[], bool | None] = clock_is_synchronised,
    ) -> None:
        self._database, self._clock, self._synchronised = database, clock, synchronised

    def trusts(self) -> bool:
        """Look once; whether something may be removed by this clock. A doubt is recorded once."""
        right = self._synchronised() is True
        with self._database.write() as session:
            now = self._clock()
            mark = session.get(Errand, _MARK)
            if mark is None:
                mark = Errand(name=_MARK, due_at=now, finished_at=now)
                session.add(mark)
            seen = mark.finished_at or now
            if right or now - seen <= LONGEST_GAP:
                if mark.status is not None:
                    _record(session, audit.Event.CLOCK_TRUSTED, now, _ACTOR, reason="seen to be right")
                _note(mark, now)
                return True
            if mark.status is None:
                mark.status = f"from {seen:%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC"
                logger.critical("the clock is doubted: nothing is removed", extra={"jump": mark.status})
                _record(session, audit.Event.CLOCK_DOUBTED, now, _ACTOR, reason=mark.status)
            return False


def doubt(session: Session) -> str | None:
    """Return how the clock went when it was doubted; None where it isn't."""
    mark = session.get(Errand, _MARK)
    return None if mark is None else mark.status


def release(session: Session, at: datetime, actor: str, reason: str) -> bool:
    """Let the clock be right at an operator's word; False where it isn't doubted."""
    mark = session.get(Errand, _MARK)
    if mark is None or mark.status is None:
        return False
    _note(mark, at)
    _record(session, audit.Event.CLOCK_TRUSTED, at, actor, reason=reason)
    return True


def _note(mark: Errand, now: datetime) -> None:
    mark.finished_at, mark.status = now, None


def _record(session: Session, event: audit.Event, at: datetime, actor: str, *, reason: str) -> None:
    outcome = audit.Outcome.SUCCESS if event is audit.Event.CLOCK_TRUSTED else audit.Outcome.SERIOUS_FAILURE
    audit.record(session, event, at=at, actor=actor, outcome=outcome, reason=reason)
