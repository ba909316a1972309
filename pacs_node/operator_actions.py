"""What an operator does with a study, from the page or by the API, with the reason in the audit record.

Each runs in the caller's write transaction: when it raises, nothing of it stays, the event included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node import audit, delivery, jobs
from pacs_node.audit import Event
from pacs_node.config import DestinationSettings
from pacs_node.db import Job, Series, Study
from pacs_node.errors import NodeError

LONGEST_REASON = 200


class ActionError(NodeError):
    """It can't be done; the text says why."""


class BadReasonError(ActionError):
    """No reason was given, or one that is no line of text."""


class UnknownStudyError(ActionError):
    """No such study has arrived."""


class UnknownDestinationError(ActionError):
    """No such destination is configured."""


class NothingToDoError(ActionError):
    """The study is not in a state for it."""


@dataclass(frozen=True, slots=True)
class Word:
    """An operator's word.

    Parameters
    ----------
    actor
        Who, as the audit record names them.
    address
        Where from.
    reason
        Why, in one line.
    """

    actor: str
    address: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Possible:
    """What a study's state allows at this moment.

    Parameters
    ----------
    send
        Names of the destinations that want something of its latest result.
    """

    requeue: bool
    hold: bool
    send: tuple[str, ...]


def possible(session: Session, study_uid: str, destinations: Sequence[DestinationSettings]) -> Possible:
    """Return what can be done with a study that has arrived; `requeue`, `hold` and `send` ask again."""
    study = session.execute(select(Study).where(Study.study_uid == study_uid)).scalar_one()
    unfinished = select(Job.id).join(Series, Job.series_id == Series.id).where(Series.study_id == study.id)
    return Possible(
        requeue=study.held_reason is not None or bool(jobs.requeueable(session, study)),
        hold=session.execute(unfinished.where(jobs.is_unfinished()).limit(1)).first() is not None,
        send=delivery.takers(session, study_uid, [(item.name, item.forms) for item in destinations]),
    )


def requeue(session: Session, study_uid: str, word: Word) -> int:
    """Analyse again what failed or is held; return the number of jobs.

    Raises
    ------
    ActionError
        Why not.
    StaleStateError
        A job changed at the same moment.
    """

    def change(study: Study) -> int:
        return jobs.requeue_study(session, study, at=word.at, actor=word.actor)

    nothing = "No analysis of this study has failed or is held."
    return _do(session, study_uid, "requeue", word, change, nothing=nothing)


def hold(session: Session, study_uid: str, word: Word) -> int:
    """Stop what is queued or being analysed until somebody requeues it; return the number of jobs.

    Raises
    ------
    ActionError
        Why not.
    StaleStateError
        A job changed at the same moment.
    """

    def change(study: Study) -> int:
        return jobs.hold(session, study, word.reason, at=word.at, actor=word.actor)

    nothing = "Nothing of this study is queued or being analysed."
    return _do(session, study_uid, "hold", word, change, nothing=nothing)


def send(
    session: Session, study_uid: str, word: Word, destinations: Sequence[DestinationSettings], name: str = ""
) -> int:
    """Send the results again, the same bytes; return the number of objects.

    Parameters
    ----------
    destinations
        Those that are configured.
    name
        Of the one to send to; empty: all.

    Raises
    ------
    ActionError
        Why not.
    StaleStateError
        An object is being sent at this moment.
    """
    wanted = [item for item in destinations if name in {"", item.name}]
    if not wanted:
        raise UnknownDestinationError("There is no such destination.")

    def change(study: Study) -> int:
        places = [(item.name, item.forms) for item in wanted]
        return delivery.resend_study(session, study.study_uid, places, at=word.at, actor=word.actor)

    nothing = "This study has no result that could be sent."
    return _do(session, study_uid, "send", word, change, nothing=nothing, destination=name or "all")


def check_reason(reason: str) -> None:
    """Refuse a reason that can't stand in the audit record.

    Raises
    ------
    BadReasonError
        There is none, or it is no line of text.
    """
    if not reason or reason != reason.strip() or len(reason) > LONGEST_REASON or not reason.isprintable():
        raise BadReasonError(f"A reason is needed, in one line of at most {LONGEST_REASON} characters.")


def _do(
    session: Session,
    study_uid: str,
    action: str,
    word: Word,
    change: Callable[[Study], int],
    *,
    nothing: str,
    **objects: Any,
) -> int:
    check_reason(word.reason)
    study = session.execute(select(Study).where(Study.study_uid == study_uid)).scalar_one_or_none()
    if study is None:
        raise UnknownStudyError("No study with this UID has arrived here.")
    audit.record(
        session,
        Event.OPERATOR_ACTED,
        at=word.at,
        actor=word.actor,
        study_uid=study_uid,
        action=action,
        reason=word.reason,
        address=word.address,
        **objects,
    )
    count = change(study)
    if not count:
        raise NothingToDoError(nothing)
    return count
