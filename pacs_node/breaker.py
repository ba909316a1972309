"""A breaker for each destination: one that nobody reaches is asked seldom, and by one object only.

Closed: everything is sent as it falls due. After `FAILURES` attempts in a row that reached nobody it opens:
nothing is sent until its wait is over. Then it is half open: the object that was tried least goes as a
probe. An answer closes the breaker, a refusal too; silence opens it again, for twice as long. The state
stands in a row, so it outlives the process and everybody can see it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.db import Breaker
from pacs_node.destinations import Outcome, OutcomeKind

FAILURES = 3

#: a proxy answers for a receiver that it doesn't reach: 502, 503 and 504 of RFC 9110
_NOBODY = frozenset({None, 502, 503, 504})


_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Waits:
    """Exponential waits with full jitter, so that a peer that comes back is not stormed.

    Parameters
    ----------
    first, longest
        Upper ends of the first wait and of all, seconds; the wait is a random part of it, at least a tenth.
    """

    first: float
    longest: float

    def after(self, failures: int) -> timedelta:
        """Wait before the next attempt, after this many (from 1) in a row have failed."""
        upper = min(self.longest, self.first * 2.0 ** min(failures - 1, 32))
        return timedelta(seconds=_random.uniform(0.1 * upper, upper))


class Position(StrEnum):
    """Whether objects may be sent."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class Away:
    """A destination that isn't reached: since when, why, and when it is tried again."""

    since: datetime
    reason: str
    next_probe_at: datetime


def position(row: Breaker | None, now: datetime, longest: timedelta) -> Position:
    """Say what a breaker allows now.

    Parameters
    ----------
    longest
        The longest wait that there is: with a later end the clock was set back, and the wait is over.
    """
    if row is None or row.open_until is None:
        return Position.CLOSED
    return Position.OPEN if now < row.open_until <= now + longest else Position.HALF_OPEN


def away(row: Breaker | None) -> Away | None:
    """Read what is known of a destination that isn't reached; None where nothing is wrong."""
    if row is None or row.open_until is None or row.since is None:
        return None
    return Away(row.since, row.reason or "", row.open_until)


def nobody_answered(outcomes: Sequence[Outcome]) -> bool:
    """Whether an attempt reached nobody at all."""
    return bool(outcomes) and all(
        outcome.kind is OutcomeKind.TRANSIENT and outcome.status in _NOBODY for outcome in outcomes
    )


def note_answer(session: Session, destination: str, *, at: datetime, actor: str) -> None:
    """The destination has answered, whatever it said: close its breaker."""
    row = session.get(Breaker, destination)
    if row is None or not row.failures:
        return
    if row.open_until is not None:
        audit.record(
            session,
            audit.Event.DESTINATION_BACK,
            at=at,
            actor=actor,
            destination=destination,
            attempts=row.failures,
        )
    row.failures, row.since, row.open_until, row.reason = 0, None, None, None


def probe_now(session: Session, destination: str, at: datetime) -> None:
    """Let the next probe be due at once, at an operator's word."""
    row = session.get(Breaker, destination)
    if row is not None and row.open_until is not None:
        row.open_until = min(row.open_until, at)


def note_silence(
    session: Session, destination: str, reason: str, waits: Waits, *, at: datetime, actor: str
) -> bool:
    """Count an attempt that reached nobody; return whether the breaker is open now."""
    row = session.get(Breaker, destination)
    if row is None:
        row = Breaker(destination=destination, failures=0)
        session.add(row)
    row.failures += 1
    row.since = row.since or at
    row.reason = reason
    if row.failures < FAILURES:
        return False
    if row.open_until is None:
        audit.record(
            session,
            audit.Event.DESTINATION_AWAY,
            at=at,
            actor=actor,
            outcome=audit.Outcome.MINOR_FAILURE,
            destination=destination,
            reason=reason,
        )
    row.open_until = at + waits.after(row.failures - FAILURES + 1)
    return True
