"""A radiologist's verdicts on the findings of a study, given on its page."""

from __future__ import annotations

from math import isfinite
from typing import Any
from urllib.parse import quote

from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from inference.uids import derived_uid
from pacs_node import feedback
from pacs_node.accounts import Permission
from pacs_node.clock import Clock
from pacs_node.db import Database, Job
from pacs_node.db_feedback import RejectReason, VerdictKind
from pacs_node.feedback import (
    ATTENUATIONS,
    LONGEST_MM,
    LONGEST_TEXT,
    MOST_SLICES,
    REASON_WORDS,
    SUSPICION,
    FeedbackError,
    NewVerdict,
)
from pacs_node.queries import LARGEST_ID
from pacs_node.web.guard import Rule, form_of, known_visitor

_REASONS = [reason for reason in RejectReason if reason is not RejectReason.NOT_STATED]


def feedback_values(session: Session, job_id: int | None) -> dict[str, Any]:
    """What the study page shows of verdicts and asks for a new one."""
    return {
        "feedback": None if job_id is None else feedback.study_feedback(session, job_id),
        "reject_reasons": [(reason.value, REASON_WORDS[reason]) for reason in _REASONS],
        "attenuations": ATTENUATIONS,
        "suspicion": SUSPICION,
        "longest_text": LONGEST_TEXT,
    }


class FeedbackPages:
    """The view that takes verdicts.

    Parameters
    ----------
    database
        Written to.
    clock
        Source of time.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Its route."""
        return (Rule("POST", "/studies/{study_uid}/verdicts", Permission.JUDGE, self.judge),)

    def judge(self, request: Request) -> Response:
        """Record a verdict on a finding, or a nodule that was missed."""
        who, form, now = known_visitor(request), form_of(request), self._clock()
        uid = request.path_params["study_uid"]
        with self._database.write() as session:
            job = feedback.result_of(session, uid, _whole(form, "job", LARGEST_ID) or 0)
            if job is None:
                raise HTTPException(404, "This study has no such result.")
            try:
                new = _verdict(session, job, form, f"{uid} {now.isoformat()}")
                feedback.record(session, job, new, at=now, actor=who.actor, address=who.address)
            except FeedbackError as error:
                raise HTTPException(400, str(error)) from None
        return RedirectResponse(f"/studies/{quote(uid, safe='')}#verdicts", 303)


def _verdict(session: Session, job: Job, form: dict[str, str], unique: str) -> NewVerdict:
    try:
        kind = VerdictKind(form.get("verdict", ""))
        reason = RejectReason(form["reason"]) if form.get("reason") else None
    except ValueError:
        raise FeedbackError("There is no such verdict or reason.") from None
    text = form.get("text", "").strip()
    if kind is VerdictKind.MISSED:
        place = _whole(form, "slice", MOST_SLICES)
        changes = {"slice": place} if place else {}
        return NewVerdict(derived_uid("missed nodule", unique), kind, text=text, changes=changes)
    tracking_uid = form.get("tracking_uid", "")
    changes = _changes(session, job, tracking_uid, form) if kind is VerdictKind.EDITED else {}
    rejected = kind is VerdictKind.REJECTED
    if rejected and reason is RejectReason.NOT_STATED:
        raise FeedbackError("State the reason.")
    return NewVerdict(tracking_uid, kind, reason if rejected else None, text, changes)


def _changes(session: Session, job: Job, tracking_uid: str, form: dict[str, str]) -> dict[str, Any]:
    """The values of the form that differ from the finding's."""
    length, value = form.get("long_axis_mm", "").strip().replace(",", "."), None
    if length:
        try:
            value = round(float(length), 1)
        except ValueError:
            raise FeedbackError("The long axis must be a number of millimetres.") from None
        if not isfinite(value) or not 0 < value <= LONGEST_MM:
            raise FeedbackError(f"The long axis must be more than 0 and at most {LONGEST_MM:.0f} mm.")
    attenuation = form.get("attenuation", "")
    if attenuation and attenuation not in ATTENUATIONS:
        raise FeedbackError("There is no such attenuation type.")
    suspicion = _whole(form, "suspicion", max(SUSPICION))
    return feedback.differing(
        session, job, tracking_uid, long_axis_mm=value, attenuation=attenuation, suspicion=suspicion
    )


def _whole(form: dict[str, str], name: str, most: int) -> int | None:
    text = form.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19 or not 0 < int(text) <= most:
        raise HTTPException(400, f"The {name} must be a whole number from 1 to {most}.")
    return int(text)
