"""Verdicts of radiologists: those that a program gives, such as a viewer, and all of them for one."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Query
from pydantic import Field
from sqlalchemy.orm import Session
from starlette.requests import Request

from inference.uids import derived_uid
from pacs_node import feedback
from pacs_node.accounts import Permission
from pacs_node.agreement import verdict_rows
from pacs_node.audit import Event
from pacs_node.clock import Clock
from pacs_node.db import Database, Job
from pacs_node.db_feedback import RejectReason, VerdictKind, VerdictSource
from pacs_node.feedback import LONGEST_MM, LONGEST_TEXT, MOST_SLICES, FeedbackError
from pacs_node.operator_actions import Word
from pacs_node.study_search import NoduleKind
from pacs_node.web.api.acting import PROBLEMS, Key, act
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.api.record_schemas import Changed
from pacs_node.web.api.studies import StudyUid
from pacs_node.web.api.values import Answer, AskedPage, Objects, RowId, Sent, SentNumber, Text, Uid
from pacs_node.web.guard import Looks


class Rejection(StrEnum):
    """Why a finding is no nodule."""

    VESSEL = RejectReason.VESSEL
    SCAR = RejectReason.SCAR
    PLEURAL_THICKENING = RejectReason.PLEURAL_THICKENING
    LYMPH_NODE = RejectReason.LYMPH_NODE
    ARTEFACT = RejectReason.ARTEFACT
    NOT_A_NODULE = RejectReason.NOT_A_NODULE
    OTHER = RejectReason.OTHER


class NewVerdict(Sent):
    """What is said of a finding, or of a nodule that was missed. No patient data: it stands for ever."""

    job_id: Annotated[RowId, SentNumber]
    """The result that is judged: `feedback.job_id` of the study."""
    kind: Annotated[VerdictKind, Field(strict=False)]
    tracking_uid: Uid | None = None
    """Of the finding; null only where it was missed. What was said of that is withdrawn by its UID."""
    reason: Annotated[Rejection | None, Field(strict=False)] = None
    """Of a rejection, which needs one; `other` needs a text."""
    text: Annotated[str, Field(max_length=LONGEST_TEXT, json_schema_extra={"format": "one-line"})] = ""
    """One line of characters that can be seen; what a missed nodule is."""
    long_axis_mm: Annotated[float | None, Field(gt=0, le=LONGEST_MM, allow_inf_nan=False)] = None
    """Of an edit: as it should be."""
    attenuation: Annotated[NoduleKind | None, Field(strict=False)] = None
    """Of an edit: as it should be."""
    suspicion: Annotated[int | None, Field(ge=1, le=5), SentNumber] = None
    """Of an edit: 1 highly unlikely to 5 highly suspicious, the scale of LIDC-IDRI."""
    slice: Annotated[int | None, Field(ge=1, le=MOST_SLICES), SentNumber] = None
    """Of a missed nodule: number of the slice, from 1."""


class VerdictsAsked(AskedPage):
    """Which verdicts."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class GivenVerdict(Answer):
    """A verdict with its study; its free text stands with the study only."""

    id: int
    at: datetime
    study_uid: str
    job_id: int = Field(validation_alias="job")
    pipeline_version: str
    tracking_uid: str
    kind: VerdictKind
    reason: str
    """Of a rejection, else empty."""
    changes: Objects
    """New values of an edit; where a missed nodule lies."""
    source: VerdictSource
    actor: Text
    sop_instance_uid: str
    """Of the object that it was read from, else empty."""
    holds: bool
    """No later verdict of the finding has taken its place."""


class VerdictPage(Answer):
    """Verdicts, the oldest first."""

    verdicts: tuple[GivenVerdict, ...]
    next_cursor: str | None
    """`cursor` of the next page; null on the last."""


class Verdicts:
    """The operations and what they need.

    Parameters
    ----------
    looks
        Records who took verdicts out.
    """

    def __init__(self, database: Database, clock: Clock, looks: Looks) -> None:
        self._database, self._clock, self._looks = database, clock, looks

    def operations(self) -> tuple[Operation, ...]:
        """Return both."""
        problems = (*PROBLEMS, Code.NO_RESULT, Code.VERDICT)
        path = "/studies/{study_uid}/verdicts"
        return (
            Operation("POST", path, Permission.JUDGE, self.judge_finding, problems),
            Operation("GET", "/verdicts", Permission.LOOK, self.list_verdicts),
        )

    def list_verdicts(self, request: Request, asked: Annotated[VerdictsAsked, Query()]) -> VerdictPage:
        """All verdicts ever given, the oldest first."""
        self._looks.note_by(client_of(request), Event.VERDICTS_EXPORTED, asked, every=True)
        with self._database.read() as session:
            found = [*verdict_rows(session, asked.row or 0, asked.limit + 1)]
        shown = found[: asked.limit]
        return VerdictPage(
            verdicts=tuple(GivenVerdict.model_validate(row) for row in shown),
            next_cursor=str(shown[-1]["id"]) if len(found) > asked.limit else None,
        )

    def judge_finding(
        self, request: Request, study_uid: StudyUid, body: NewVerdict, key: Key = None
    ) -> Changed:
        """Accept, reject or edit a finding, name a missed nodule, or withdraw what was said."""

        def record(session: Session, word: Word) -> int:
            job = feedback.result_of(session, study_uid, body.job_id)
            if job is None:
                raise ProblemError(Code.NO_RESULT)
            try:
                new = _verdict(session, job, body, f"{study_uid} {word.at.isoformat()}")
                feedback.record(session, job, new, at=word.at, actor=word.actor, address=word.address)
            except FeedbackError as error:
                raise ProblemError(Code.VERDICT, str(error)) from None
            return 1

        return act(self._database, request, body, key, record, at=self._clock())


def _verdict(session: Session, job: Job, body: NewVerdict, unique: str) -> feedback.NewVerdict:
    missed = body.kind is VerdictKind.MISSED
    if missed != (body.tracking_uid is None):
        raise FeedbackError("A missed nodule has no tracking UID yet, and every other verdict needs one.")
    uid = body.tracking_uid or derived_uid("missed nodule", unique)
    return feedback.NewVerdict(
        uid,
        body.kind,
        None if body.reason is None else RejectReason(body.reason.value),
        body.text,
        _changes(session, job, uid, body),
        source=VerdictSource.API,
    )


def _changes(session: Session, job: Job, uid: str, body: NewVerdict) -> dict[str, Any]:
    edit = (body.long_axis_mm, body.attenuation, body.suspicion)
    if body.kind is not VerdictKind.EDITED and any(value is not None for value in edit):
        raise FeedbackError("Only an edit has new values.")
    if body.kind is not VerdictKind.MISSED and body.slice is not None:
        raise FeedbackError("Only a missed nodule has a slice.")
    if body.kind is VerdictKind.MISSED:
        return {} if body.slice is None else {"slice": body.slice}
    return feedback.differing(
        session,
        job,
        uid,
        long_axis_mm=body.long_axis_mm,
        attenuation="" if body.attenuation is None else body.attenuation.value,
        suspicion=body.suspicion,
    )
