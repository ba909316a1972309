"""What an operator does with a study, with the reason in the audit record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import audit, delivery, jobs
from pacs_node.audit import Event
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database, Job, Study
from pacs_node.errors import StaleStateError
from pacs_node.sessions import Visitor
from pacs_node.states import JobState
from pacs_node.web.guard import form_of, known_visitor

LONGEST_REASON = 200

Change = Callable[[Session, Study, Visitor], tuple[int, str]]
"""Does it; returns how many rows it changed and what to say where that is none."""


class Actions:
    """Views that change a study.

    Parameters
    ----------
    database
        Written to.
    settings
        The destinations.
    clock
        Source of time.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._destinations = settings.destinations
        self._clock = clock

    def requeue(self, request: Request) -> Response:
        """Analyse again what failed, was cancelled or is held."""

        def change(session: Session, study: Study, who: Visitor) -> tuple[int, str]:
            found = jobs.requeueable(session, study.study_uid)
            for job in found:
                jobs.requeue(session, job, at=self._clock(), actor=who.actor)
            return len(found), "No analysis of this study has failed or is held."

        return self._do(request, "requeue", change)

    def hold(self, request: Request) -> Response:
        """Stop what is queued or being analysed until somebody requeues it."""
        reason = _reason(request)

        def change(session: Session, study: Study, who: Visitor) -> tuple[int, str]:
            ids = [series.id for series in study.series]
            unfinished = session.execute(
                select(Job.id).where(
                    Job.series_id.in_(ids), Job.state.in_([JobState.QUEUED, JobState.RUNNING])
                )
            ).all()
            for series in study.series:
                jobs.cancel_unfinished(
                    session, series, at=self._clock(), actor=who.actor, reason=f"held: {reason}"
                )
            return len(unfinished), "Nothing of this study is queued or being analysed."

        return self._do(request, "hold", change)

    def send(self, request: Request) -> Response:
        """Send the results again: the same bytes."""
        name = form_of(request).get("destination", "")
        wanted = [item for item in self._destinations if name in {"", item.name}]
        if not wanted:
            raise HTTPException(400, "There is no such destination.")

        def change(session: Session, study: Study, who: Visitor) -> tuple[int, str]:
            places = [(item.name, item.forms) for item in wanted]
            count = delivery.resend_study(session, study.study_uid, places, at=self._clock(), actor=who.actor)
            return count, "This study has no result that could be sent."

        return self._do(request, "send", change, destination=name or "all")

    def _do(self, request: Request, action: str, change: Change, **objects: Any) -> Response:
        who, reason = known_visitor(request), _reason(request)
        uid = request.path_params["study_uid"]
        try:
            with self._database.write() as session:
                study = session.execute(select(Study).where(Study.study_uid == uid)).scalar_one_or_none()
                if study is None:
                    raise HTTPException(404, "No study with this UID has arrived here.")
                audit.record(
                    session,
                    Event.OPERATOR_ACTED,
                    at=self._clock(),
                    actor=who.actor,
                    study_uid=uid,
                    action=action,
                    reason=reason,
                    address=who.address,
                    **objects,
                )
                count, nothing = change(session, study, who)
                if not count:
                    raise HTTPException(409, nothing)
        except StaleStateError:
            raise HTTPException(409, "This study changed at the same moment. Look at it again.") from None
        return RedirectResponse(f"/studies/{quote(uid, safe='')}", 303)


def _reason(request: Request) -> str:
    reason = form_of(request).get("reason", "").strip()
    if not reason or len(reason) > LONGEST_REASON or not reason.isprintable():
        raise HTTPException(400, f"A reason is needed, in one line of at most {LONGEST_REASON} characters.")
    return reason
