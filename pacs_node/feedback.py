"""What radiologists say of findings: verdicts are added, never changed; the latest of a finding holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.db import Job, Series, Study
from pacs_node.db_feedback import Nodule, RejectReason, ReturnedObject, Verdict, VerdictKind, VerdictSource
from pacs_node.errors import NodeError
from pacs_node.summaries import monday

LONGEST_TEXT = 200
LONGEST_MM = 300.0
MOST_SLICES = 100_000
ATTENUATIONS = ("solid", "part-solid", "ground-glass")
SUSPICION = {
    1: "highly unlikely",
    2: "moderately unlikely",
    3: "indeterminate",
    4: "moderately suspicious",
    5: "highly suspicious",
}
"""The readers' scale of malignancy of LIDC-IDRI (Armato et al., Med Phys 38:915-931, 2011)."""
REASON_WORDS = {
    RejectReason.VESSEL: "vessel",
    RejectReason.SCAR: "scar",
    RejectReason.PLEURAL_THICKENING: "pleural thickening",
    RejectReason.LYMPH_NODE: "lymph node",
    RejectReason.ARTEFACT: "artefact",
    RejectReason.NOT_A_NODULE: "not a nodule",
    RejectReason.OTHER: "other",
    RejectReason.NOT_STATED: "left out of the report that came back",
}


class FeedbackError(NodeError):
    """A verdict that can't be recorded; the text says why."""


@dataclass(frozen=True, slots=True)
class NewVerdict:
    """What is said of one finding.

    Parameters
    ----------
    tracking_uid
        Of the finding; of a nodule that was missed, one of its own.
    changes
        See `pacs_node.db_feedback.Verdict`.
    observer
        Who verified the document, as it says.
    sop_instance_uid
        The object that it was read from.
    """

    tracking_uid: str
    kind: VerdictKind
    reason: RejectReason | None = None
    text: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    source: VerdictSource = VerdictSource.PAGE
    observer: str = ""
    sop_instance_uid: str | None = None


def record(
    session: Session, job: Job, new: NewVerdict, *, at: datetime, actor: str, **objects: Any
) -> Verdict:
    """Add a verdict and its audit event inside the caller's write transaction.

    Parameters
    ----------
    job
        Whose result is judged.
    actor
        Who says it: an account, or the part of the node that read it from an object.
    **objects
        More for the audit event: the address, the AE title.

    Raises
    ------
    FeedbackError
        It contradicts itself, or names a finding that the job doesn't have.
    """
    check(new)
    standing = latest(session, job.series.study_id, new.tracking_uid)
    known = select(Nodule.id).where(Nodule.job_id == job.id, Nodule.tracking_uid == new.tracking_uid)
    found = session.execute(known).first() is not None
    if new.kind is VerdictKind.MISSED:
        if found:
            raise FeedbackError("What was found was not missed.")
    elif not found and (standing is None or new.kind is not VerdictKind.WITHDRAWN):
        raise FeedbackError("This result has no such finding.")
    if new.kind is VerdictKind.WITHDRAWN and (standing is None or standing.kind == VerdictKind.WITHDRAWN):
        raise FeedbackError("There is no verdict that could be withdrawn.")
    row = Verdict(
        at=at,
        week=monday(at),
        study_id=job.series.study_id,
        job_id=job.id,
        pipeline_version=job.pipeline_version,
        tracking_uid=new.tracking_uid,
        kind=new.kind.value,
        reason=new.reason and new.reason.value,
        text=new.text,
        changes=new.changes,
        source=new.source.value,
        actor=actor,
        observer=new.observer,
        sop_instance_uid=new.sop_instance_uid,
    )
    session.add(row)
    session.flush()
    # neither free text nor the observer's name: what is in the record stays for ever
    audit.record(
        session,
        audit.Event.VERDICT_GIVEN,
        at=at,
        actor=actor,
        study_uid=job.series.study.study_uid,
        verdict=row.id,
        job=job.id,
        tracking_uid=new.tracking_uid,
        kind=new.kind.value,
        reason_code=new.reason and new.reason.value,
        changes=new.changes or None,
        source=new.source.value,
        sop_instance_uid=new.sop_instance_uid,
        **objects,
    )
    return row


def check(new: NewVerdict) -> None:
    """Hold a verdict against itself.

    Raises
    ------
    FeedbackError
        A rejection without a reason, an edit without a change, a missed nodule without a word.
    """
    if len(new.text) > LONGEST_TEXT or not (new.text.isprintable()):
        raise FeedbackError(f"The text must be one line of at most {LONGEST_TEXT} characters.")
    if (new.kind is VerdictKind.REJECTED) != (new.reason is not None):
        raise FeedbackError("A rejection needs a reason, and nothing else has one.")
    if new.reason is RejectReason.OTHER and not new.text:
        raise FeedbackError("Say in a few words what it is.")
    if new.kind is VerdictKind.EDITED and not new.changes:
        raise FeedbackError("An edit needs a value that differs.")
    if new.kind is VerdictKind.MISSED and not (new.text and new.changes):
        raise FeedbackError("Say where the nodule lies and, in a few words, what it is.")
    if new.kind in {VerdictKind.ACCEPTED, VerdictKind.WITHDRAWN} and new.changes:
        raise FeedbackError("Nothing is changed by this.")


def result_of(session: Session, study_uid: str, job_id: int) -> Job | None:
    """Return the job whose result is judged; None if the study has no such one."""
    query = select(Job).join(Series, Job.series_id == Series.id).join(Study, Series.study_id == Study.id)
    return session.execute(query.where(Job.id == job_id, Study.study_uid == study_uid)).scalar_one_or_none()


def differing(
    session: Session,
    job: Job,
    tracking_uid: str,
    *,
    long_axis_mm: float | None = None,
    attenuation: str = "",
    suspicion: int | None = None,
) -> dict[str, Any]:
    """Those values of an edit that the finding doesn't have already; empty if there is no such finding."""
    query = select(Nodule).where(Nodule.job_id == job.id, Nodule.tracking_uid == tracking_uid)
    nodule = session.execute(query).scalar_one_or_none()
    changes: dict[str, Any] = {}
    if nodule is None:
        return changes
    known = None if nodule.long_axis_mm is None else round(nodule.long_axis_mm, 1)
    if long_axis_mm is not None and round(long_axis_mm, 1) != known:
        changes["long_axis_mm"] = round(long_axis_mm, 1)
    if attenuation and attenuation != nodule.attenuation:
        changes["attenuation"] = attenuation
    return changes | ({"suspicion": suspicion} if suspicion else {})


def latest(session: Session, study_id: int, tracking_uid: str) -> Verdict | None:
    """The verdict of a finding that holds."""
    query = (
        select(Verdict)
        .where(Verdict.study_id == study_id, Verdict.tracking_uid == tracking_uid)
        .order_by(Verdict.id.desc())
        .limit(1)
    )
    return session.execute(query).scalar_one_or_none()


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """One verdict for people."""

    at: datetime
    kind: VerdictKind
    #: reason or changes in words
    detail: str
    text: str
    source: VerdictSource
    actor: str
    observer: str


@dataclass(frozen=True, slots=True)
class JudgedNodule:
    """A finding, or a nodule that was missed, and what was said of it; the newest verdict first."""

    tracking_uid: str
    #: as in SEG and report; empty if missed
    name: str
    site: str
    attenuation: str
    long_axis_mm: float | None
    verdicts: tuple[VerdictLine, ...]

    @property
    def standing(self) -> VerdictLine | None:
        """The verdict that holds."""
        first = self.verdicts[0] if self.verdicts else None
        return None if first is None or first.kind is VerdictKind.WITHDRAWN else first


@dataclass(frozen=True, slots=True)
class ReturnedLine:
    """An edited SEG or report that came back."""

    looked_at: datetime
    modality: str
    calling_ae: str
    n_verdicts: int
    status: str


@dataclass(frozen=True, slots=True)
class StudyFeedback:
    """What was said of the findings of one job, what it has missed, and what came back of the study."""

    job_id: int
    nodules: tuple[JudgedNodule, ...]
    missed: tuple[JudgedNodule, ...]
    returned: tuple[ReturnedLine, ...] = ()

    @property
    def judged(self) -> int:
        """How many of the findings have a verdict."""
        return sum(nodule.standing is not None for nodule in self.nodules)


def study_feedback(session: Session, job_id: int) -> StudyFeedback | None:
    """Ask for the findings of a job with their verdicts.

    Returns
    -------
    StudyFeedback or None
        None if there is no such job, or its result was not read yet.
    """
    job = session.get(Job, job_id)
    if job is None:
        return None
    rows = session.execute(
        select(Verdict).where(Verdict.study_id == job.series.study_id).order_by(Verdict.id.desc())
    ).scalars()
    said: dict[str, list[Verdict]] = {}
    for row in rows:
        said.setdefault(row.tracking_uid, []).append(row)
    nodules = (
        session.execute(select(Nodule).where(Nodule.job_id == job_id).order_by(Nodule.number)).scalars().all()
    )
    missed = [uid for uid, verdicts in said.items() if any(v.kind == VerdictKind.MISSED for v in verdicts)]
    return StudyFeedback(
        job_id,
        tuple(
            JudgedNodule(
                nodule.tracking_uid,
                nodule.tracking_id,
                nodule.site,
                nodule.attenuation,
                nodule.long_axis_mm,
                tuple(map(_line, said.get(nodule.tracking_uid, ()))),
            )
            for nodule in nodules
        ),
        tuple(JudgedNodule(uid, "", "", "", None, tuple(map(_line, said[uid]))) for uid in reversed(missed)),
        _returned(session, job.series.study_id),
    )


def _returned(session: Session, study_id: int) -> tuple[ReturnedLine, ...]:
    """What came back of our results, the oldest first; objects that speak of none are not told."""
    rows = session.execute(
        select(ReturnedObject, Series.modality, Series.calling_ae)
        .join(Series, ReturnedObject.series_id == Series.id)
        .where(Series.study_id == study_id, ReturnedObject.job_id.is_not(None))
        .order_by(ReturnedObject.instance_id)
    ).tuples()
    return tuple(
        ReturnedLine(row.looked_at, modality, calling_ae, row.n_verdicts, row.status)
        for row, modality, calling_ae in rows
    )


def judged_counts(session: Session, study_ids: Sequence[int]) -> dict[int, dict[VerdictKind, int]]:
    """How many verdicts of each kind hold, by study; for a page of the list of studies."""
    newest = (
        select(func.max(Verdict.id))
        .where(Verdict.study_id.in_(study_ids))
        .group_by(Verdict.study_id, Verdict.tracking_uid)
    )
    rows = session.execute(
        select(Verdict.study_id, Verdict.kind, func.count())
        .where(Verdict.id.in_(newest), Verdict.kind != VerdictKind.WITHDRAWN.value)
        .group_by(Verdict.study_id, Verdict.kind)
    )
    found: dict[int, dict[VerdictKind, int]] = {}
    for study_id, kind, count in rows.tuples():
        found.setdefault(study_id, {})[VerdictKind(kind)] = count
    return found


def _line(row: Verdict) -> VerdictLine:
    reason = REASON_WORDS[RejectReason(row.reason)] if row.reason else ""
    return VerdictLine(
        row.at,
        VerdictKind(row.kind),
        reason or changes_in_words(row.changes),
        row.text,
        VerdictSource(row.source),
        row.actor,
        row.observer,
    )


def changes_in_words(changes: dict[str, Any]) -> str:
    """The changes of an edit, or the place of a missed nodule, for a line of text."""
    names = {
        "long_axis_mm": "long axis {:.1f} mm",
        "short_axis_mm": "short axis {:.1f} mm",
        "volume_mm3": "volume {:.0f} mm³",
        "malignancy": "malignancy {:.0%}",
        "attenuation": "{}",
        "dice": "Dice {:.2f} with our mask",
        "volume_change": "volume {:+.0%}",
        "slice": "slice {}",
    }
    said = [words.format(changes[name]) for name, words in names.items() if name in changes]
    if "suspicion" in changes:
        said.append(f"malignancy {changes['suspicion']} of 5 ({SUSPICION[changes['suspicion']]})")
    return ", ".join(said)
