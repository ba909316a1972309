"""Verdicts from edited results that come back: which SEG or report speaks of one of ours, and what it says.

An object counts as one of ours, edited, if it lies in the same study and has the tracking UID of one of our
findings, or is a verified report, or one of another maker, that names ours as its predecessor. It is read in
a child that may die of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from dicom_sr.context import MANUFACTURER
from inference.errors import UnsuitableSeriesError
from inference.uids import is_uid
from pacs_node import feedback
from pacs_node.clock import Clock, utc_now
from pacs_node.db import Artifact, Database, Instance, Job, Series
from pacs_node.db_feedback import (
    Nodule,
    RejectReason,
    ReturnedObject,
    Verdict,
    VerdictKind,
    VerdictSource,
)
from pacs_node.feedback import NewVerdict
from pacs_node.reader import Reader, ReaderFailedError
from pacs_node.returned_files import REPORTS, SEGMENTATIONS
from pacs_node.spool import Spool
from pacs_node.states import SeriesState
from pacs_node.summaries import Summaries

logger = logging.getLogger(__name__)

_TRIES = 3
_SAME = {"long_axis_mm": 0.05, "short_axis_mm": 0.05, "volume_mm3": 0.5, "malignancy": 0.0005}
"""Numbers that differ by no more are the same: a report holds them to one decimal."""
_DECIMALS = {"long_axis_mm": 1, "short_axis_mm": 1, "volume_mm3": 1, "malignancy": 3}


@dataclass(frozen=True, slots=True)
class _Received:
    """A SEG or report that nobody has looked at yet."""

    instance_id: int
    series_id: int
    study_id: int
    sop_instance_uid: str
    calling_ae: str
    path: str | None


@dataclass(frozen=True, slots=True)
class _Reading:
    """What an object says, and whose result it speaks of."""

    received: _Received
    said: dict[str, Any]
    job_id: int
    #: it names an object of that result as what it replaces
    supersedes: bool

    @property
    def source(self) -> VerdictSource:
        return VerdictSource(self.said["kind"])


class ReturnedObjects:
    """Looks at SEG and reports from elsewhere, once each.

    Parameters
    ----------
    database, spool
        Where the node keeps rows and files.
    reader
        Opens the received files.
    summaries
        Knows the findings of finished jobs.
    clock
        The time of day.
    """

    def __init__(
        self, database: Database, spool: Spool, reader: Reader, summaries: Summaries, clock: Clock = utc_now
    ) -> None:
        self._database = database
        self._spool = spool
        self._reader = reader
        self._summaries = summaries
        self._clock = clock

    def look_at(self, study_id: int) -> frozenset[str]:
        """Record what the closed series of a study say of our results.

        Returns
        -------
        frozenset of str
            Series Instance UIDs of those that speak of them: nothing is to be answered there.
        """
        with self._database.read() as session:
            waiting = _unseen(session, study_id)
        if waiting:
            # a result that was made a moment ago has its rows before anything is said of it
            self._summaries.read_study(study_id)
        for received in waiting:
            self._look_at(received)
        with self._database.read() as session:
            uids = session.scalars(
                select(Series.series_uid)
                .join(ReturnedObject, ReturnedObject.series_id == Series.id)
                .where(Series.study_id == study_id, ReturnedObject.job_id.is_not(None))
            )
            return frozenset(uids)

    def _look_at(self, received: _Received) -> None:
        reading, status = None, "removed before it was read"
        verdicts: list[NewVerdict] = []
        if received.path is not None:
            try:
                said = self._patiently(self._reader.returned, self._spool.absolute(received.path))
                reading = self._recognised(received, said)
                status = "speaks of no result of this node"
                if reading is not None:
                    verdicts, status = self._verdicts(reading)
            except UnsuitableSeriesError as error:
                status = error.sentence
            except ReaderFailedError:
                status = "It could not be read."
        with self._database.write() as session:
            count = self._record(session, received, reading, verdicts)
            session.add(
                ReturnedObject(
                    instance_id=received.instance_id,
                    series_id=received.series_id,
                    looked_at=self._clock(),
                    job_id=None if reading is None else reading.job_id,
                    n_verdicts=count,
                    status=status[:1000],
                )
            )
        if reading is not None:
            logger.info("an edited result came back", extra={"job": reading.job_id, "verdicts": count})

    def _patiently(self, read: Any, *paths: Path) -> dict[str, Any]:
        """Read; a child that ended for a reason that isn't the file's is no answer yet."""
        for _ in range(_TRIES - 1):
            try:
                return dict(read(*paths))
            except ReaderFailedError as error:
                logger.warning("reading again", extra={"error": str(error)})
        return dict(read(*paths))

    def _recognised(self, received: _Received, said: dict[str, Any]) -> _Reading | None:
        """Whose result it speaks of, None if of none."""
        if not said["kind"]:
            return None
        uids = [uid for uid in said["nodules"] if is_uid(uid)]
        with self._database.read() as session:
            named = _job_of_artifacts(session, received.study_id, said["references"])
            tracked = _job_of_findings(session, received.study_id, uids)
        if tracked is not None:
            return _Reading(received, said, tracked, supersedes=named == tracked)
        if named is None or said["kind"] != VerdictSource.SR:
            return None
        # a later result of a node like this one names its predecessor too, but nobody has said anything
        machine = said["manufacturer"] == MANUFACTURER and not said["verified"]
        return None if machine else _Reading(received, said, named, supersedes=True)

    def _verdicts(self, reading: _Reading) -> tuple[list[NewVerdict], str]:
        """What an object says, and a sentence on what could not be told."""
        report = reading.source is VerdictSource.SR
        with self._database.read() as session:
            ours = _own_object(session, reading.job_id, "sr" if report else "seg", reading.said["references"])
            known = set(session.scalars(select(Nodule.tracking_uid).where(Nodule.job_id == reading.job_id)))
        if ours is None:
            return [], "Our own object was removed: nothing to hold it against."
        path = self._spool.absolute(ours)
        note = "read"
        if report:
            found = [*_of_values(reading, self._patiently(self._reader.returned, path)["nodules"])]
        else:
            try:
                theirs = self._spool.absolute(reading.received.path or "")
                found = [*_of_masks(reading, self._patiently(self._reader.masks, path, theirs))]
            except UnsuitableSeriesError as error:
                found, note = [], error.sentence
        found += [*_left_out(reading, known), *_missed(reading, known)]
        return found, note

    def _record(
        self,
        session: Session,
        received: _Received,
        reading: _Reading | None,
        verdicts: Sequence[NewVerdict],
    ) -> int:
        if reading is None:
            return 0
        job = session.get_one(Job, reading.job_id)
        actor, count = f"ae:{received.calling_ae}", 0
        for new in verdicts:
            standing = feedback.latest(session, received.study_id, new.tracking_uid)
            if standing is not None:
                new = _joined(standing, new)  # noqa: PLW2901 - the same verdict, with what was said before
                if _is_said(standing, new):
                    continue
            feedback.record(session, job, new, at=self._clock(), actor=actor, calling_ae=received.calling_ae)
            count += 1
        return count


def _unseen(session: Session, study_id: int) -> list[_Received]:
    rows = session.execute(
        select(Instance, Series.calling_ae)
        .join(Series, Instance.series_id == Series.id)
        .outerjoin(ReturnedObject, ReturnedObject.instance_id == Instance.id)
        .where(
            Series.study_id == study_id,
            Series.state != SeriesState.RECEIVING,
            Instance.sop_class_uid.in_([*REPORTS, *SEGMENTATIONS]),
            ReturnedObject.instance_id.is_(None),
        )
        # a SEG before the report that refers to it, as they are sent
        .order_by(Instance.id)
    )
    return [
        _Received(row.id, row.series_id, study_id, row.sop_instance_uid, calling_ae, row.path)
        for row, calling_ae in rows.tuples()
    ]


def _job_of_artifacts(session: Session, study_id: int, sop_instance_uids: Sequence[str]) -> int | None:
    """The newest job of the study that made one of the named objects."""
    query = (
        select(func.max(Artifact.job_id))
        .join(Job, Artifact.job_id == Job.id)
        .join(Series, Job.series_id == Series.id)
        .where(Series.study_id == study_id, Artifact.sop_instance_uid.in_(sop_instance_uids))
    )
    return session.execute(query).scalar_one()


def _job_of_findings(session: Session, study_id: int, tracking_uids: Sequence[str]) -> int | None:
    """The newest job of the study that has one of these findings."""
    query = (
        select(func.max(Nodule.job_id))
        .join(Job, Nodule.job_id == Job.id)
        .join(Series, Job.series_id == Series.id)
        .where(Series.study_id == study_id, Nodule.tracking_uid.in_(tracking_uids))
    )
    return session.execute(query).scalar_one()


def _own_object(session: Session, job_id: int, kind: str, named: Sequence[str]) -> str | None:
    """File of our SEG or report: the one that is named, else the standard form."""
    rows = session.execute(
        select(Artifact).where(Artifact.job_id == job_id, Artifact.kind == kind, Artifact.path.is_not(None))
    ).scalars()
    kept = sorted(rows, key=lambda row: (row.sop_instance_uid not in named, row.encoding != "", row.id))
    return kept[0].path if kept else None


def _of_values(reading: _Reading, ours: Mapping[str, Any]) -> Iterator[NewVerdict]:
    """Edited where a value differs from our report; accepted where none does and somebody verified it."""
    said = reading.said
    for uid, nodule in ours.items():
        if uid not in said["nodules"]:
            continue
        changes = _changes(nodule["values"], said["nodules"][uid]["values"])
        if changes:
            yield _verdict(reading, uid, VerdictKind.EDITED, changes=changes)
        elif said["verified"]:
            yield _verdict(reading, uid, VerdictKind.ACCEPTED)


def _changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in theirs.items():
        before = ours.get(name)
        if name in _SAME:
            if before is None or abs(value - before) > _SAME[name]:
                changed[name] = round(value, _DECIMALS[name])
        elif value != before:
            changed[name] = value
    return changed


def _of_masks(reading: _Reading, masks: Mapping[str, Mapping[str, float]]) -> Iterator[NewVerdict]:
    for uid, voxels in masks.items():
        ours, theirs, both = voxels["ours"], voxels["theirs"], voxels["both"]
        if ours == theirs == both or not ours:
            continue
        changes = {
            "dice": round(2 * both / (ours + theirs), 4),
            "volume_change": round(theirs / ours - 1, 4),
        }
        yield _verdict(reading, uid, VerdictKind.EDITED, changes=changes)


def _left_out(reading: _Reading, known: set[str]) -> Iterator[NewVerdict]:
    """Findings of ours that an object lacks which takes the place of ours, and calls itself complete."""
    if reading.supersedes and reading.said.get("complete", True):
        for uid in sorted(known - reading.said["nodules"].keys()):
            yield _verdict(reading, uid, VerdictKind.REJECTED, reason=RejectReason.NOT_STATED)


def _missed(reading: _Reading, known: set[str]) -> Iterator[NewVerdict]:
    for uid, nodule in reading.said["nodules"].items():
        if uid in known or not nodule["is_nodule"] or not is_uid(uid):
            continue
        place = {"image": nodule["image"]} if is_uid(nodule["image"]) else {}
        values = _changes({}, nodule.get("values", {}))
        name = "".join(c for c in nodule["name"] if c.isprintable())[: feedback.LONGEST_TEXT]
        changes = {"object": reading.received.sop_instance_uid, **place, **values}
        yield _verdict(reading, uid, VerdictKind.MISSED, changes=changes, text=name or "nodule")


def _verdict(reading: _Reading, uid: str, kind: VerdictKind, **more: Any) -> NewVerdict:
    return NewVerdict(
        uid,
        kind,
        source=reading.source,
        observer=", ".join(reading.said.get("observers", ())),
        sop_instance_uid=reading.received.sop_instance_uid,
        **more,
    )


def _joined(standing: Verdict, new: NewVerdict) -> NewVerdict:
    """A SEG tells of the mask, a report of the numbers: together they are one edit."""
    sources = {standing.source, new.source.value}
    parts = {VerdictSource.SR.value, VerdictSource.SEG.value}
    if new.kind is VerdictKind.EDITED and standing.kind == VerdictKind.EDITED and sources == parts:
        return replace(new, changes={**standing.changes, **new.changes})
    return new


def _is_said(standing: Verdict, new: NewVerdict) -> bool:
    """Whether a verdict adds nothing to the one that holds."""
    same = standing.kind == new.kind and standing.reason == (new.reason and new.reason.value)
    if same and (new.kind is VerdictKind.MISSED or standing.changes == new.changes):
        return True
    # who corrects an outline and then signs the report with it has not withdrawn the correction
    return (
        new.kind is VerdictKind.ACCEPTED
        and standing.kind == VerdictKind.EDITED
        and standing.source == VerdictSource.SEG
    )
