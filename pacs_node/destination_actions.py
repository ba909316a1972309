"""What an operator does with a destination, from the page or by the API, with an event in the audit record.

Each runs in the caller's write transaction: when it raises, nothing of it stays, the event included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from pacs_node import audit, breaker
from pacs_node.audit import Event
from pacs_node.config import DestinationSettings
from pacs_node.db import Delivery
from pacs_node.dead_letters import dead_letters, requeue
from pacs_node.operator_actions import NothingToDoError, UnknownDestinationError, Word, check_reason
from pacs_node.states import DeliveryState


def configured(destinations: Sequence[DestinationSettings], name: str) -> DestinationSettings:
    """The destination of this name.

    Raises
    ------
    UnknownDestinationError
        There is none.
    """
    for item in destinations:
        if item.name == name:
            return item
    raise UnknownDestinationError("There is no such destination.")


def note(session: Session, action: str, name: str, word: Word, **objects: Any) -> None:
    """Record that somebody had something done with a destination."""
    audit.record(
        session,
        Event.OPERATOR_ACTED,
        at=word.at,
        actor=word.actor,
        action=action,
        destination=name,
        reason=word.reason or None,
        address=word.address,
        **objects,
    )


def try_now(session: Session, name: str, word: Word) -> None:
    """Let the next attempt be due at once: an open breaker becomes half open, what waits need not wait."""
    note(session, "try again", name, word)
    breaker.probe_now(session, name, word.at)
    session.execute(
        update(Delivery)
        .where(Delivery.destination == name, Delivery.state == DeliveryState.PENDING)
        .where(Delivery.next_attempt_at > word.at)
        .values(next_attempt_at=word.at)
        .execution_options(synchronize_session=False)
    )


def send_failed(session: Session, place: str, word: Word, cause: str | None = None) -> int:
    """Give what failed for good another chance; return how many objects or analyses.

    Parameters
    ----------
    place
        Name of the destination, or `pacs_node.dead_letters.ANALYSIS`.
    cause
        Only those that failed for it; None: all.

    Raises
    ------
    ActionError
        Why not.
    """
    check_reason(word.reason)
    letters = [item for item in dead_letters(session, place) if cause in {None, item.cause}]
    count = requeue(session, letters, at=word.at, actor=word.actor)
    if not count:
        raise NothingToDoError("Nothing of that has failed.")
    note(session, "send failed", place, word, count=count)
    return count
