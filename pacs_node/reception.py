"""What the node writes down about a received instance: who it is and whether it is new."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from sqlalchemy import Connection, Dialect, or_, select
from sqlalchemy.orm import Session, configure_mappers

from inference.decode import MALFORMED_FILE
from inference.uids import is_uid
from pacs_node import audit, lifecycle, pieces, quick_rows
from pacs_node.dataset_head import read_head
from pacs_node.db import Artifact, Conflict, Database, Instance, Job, Series, Study
from pacs_node.errors import UnreadableInstanceError
from pacs_node.spool import StoredFile, data_set_digest
from pacs_node.states import CancelCause, JobState, SeriesState
from pacs_node.study_state import StudyWord

HEAD_BYTES = 4 << 20
"""Of a data set, in which its identity must stand."""

_ACTOR = "listener"
_LAST_TAG = 0x0020000E
_INFLATED_HEAD = 1 << 20
_TEXT_BYTES = 1024
"""Of a text in a row, in UTF-8. Whatever PS3.5 6.2 allows fits: a PN has 3 x 64 characters of up to 4 bytes.
PostgreSQL keeps no NUL and takes no more than 2704 bytes into an index."""

_TEXTS = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "accession_number": "AccessionNumber",
    "study_date": "StudyDate",
    "study_description": "StudyDescription",
    "series_description": "SeriesDescription",
    "modality": "Modality",
}
_UIDS = {
    0x00080016: "SOPClassUID",
    0x00080018: "SOPInstanceUID",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
}
_TAGS = frozenset(
    (*_UIDS, *(tag for tag in map(tag_for_keyword, ["SpecificCharacterSet", *_TEXTS.values()]) if tag))
)


@dataclass(frozen=True, slots=True)
class Identity:
    """The identifying attributes of an instance; texts are empty where absent."""

    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_description: str = ""
    series_description: str = ""
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A durable instance and how it came."""

    identity: Identity
    stored: StoredFile
    transfer_syntax_uid: str
    calling_ae: str
    at: datetime


class Reception(Enum):
    """What an instance turned out to be."""

    NEW = "new"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    OWN_RESULT = "own result"
    #: not recorded: another series has an instance of this UID
    ELSEWHERE = "elsewhere"


def read_identity(dataset: bytes, transfer_syntax_uid: str) -> Identity:
    """Read the identifying attributes; nothing behind (0020,000E) is parsed.

    Raises
    ------
    UnreadableInstanceError
        The bytes are no data set in that transfer syntax, or a UID is missing or malformed.
    """
    try:
        head = _read_head(dataset, transfer_syntax_uid)
        texts = _texts(tuple(element for element in head if element.tag not in _UIDS))
    except MALFORMED_FILE as error:
        raise UnreadableInstanceError(f"the data set can't be parsed ({type(error).__name__})") from error
    found = {int(element.tag): element.value or b"" for element in head}
    uids = []
    for tag, keyword in _UIDS.items():
        uids.append(found.get(tag, b"").decode("ascii", "replace").rstrip("\0 "))
        if not is_uid(uids[-1]):
            raise UnreadableInstanceError(f"{keyword} is missing or no valid UID")
    sop_class, sop_instance, study, series = uids
    return Identity(sop_class, sop_instance, study, series, **texts)


def _read_head(dataset: bytes, transfer_syntax_uid: str) -> list[RawDataElement]:
    if transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        dataset = zlib.decompressobj(-zlib.MAX_WBITS).decompress(dataset, _INFLATED_HEAD)
    return read_head(
        dataset,
        _TAGS,
        _LAST_TAG,
        implicit=transfer_syntax_uid == ImplicitVRLittleEndian,
        little_endian=transfer_syntax_uid != ExplicitVRBigEndian,
    )


@lru_cache(maxsize=32)
def _texts(elements: tuple[RawDataElement, ...]) -> dict[str, str]:
    """Decode the texts, which are the same in all slices of a series."""
    head = Dataset({element.tag: element for element in elements})
    return {name: _kept(str(head.get(keyword) or "")) for name, keyword in _TEXTS.items()}


def _kept(text: str) -> str:
    """Cut a text to what any database takes, also into an index."""
    return text.replace("\0", "").encode("utf-8", "replace")[:_TEXT_BYTES].decode("utf-8", "ignore")


def record_instance(
    session: Session,
    identity: Identity,
    stored: StoredFile,
    *,
    directory: Path,
    transfer_syntax_uid: str,
    association_id: int | None,
    calling_ae: str,
    at: datetime,
) -> Reception:
    """Write the rows of a received instance.

    A new instance (re-)opens its series. The same bytes again change nothing. Other bytes under a
    known SOP Instance UID are kept beside the first and judged when the series closes; a series that waits
    for its analysis is opened again for that. A SOP Instance UID that another series or study has is not
    recorded at all: the sender must be told, as its study could never be complete. A result of ours that
    comes back needs no row; other bytes under its UID are an instance like any other.
    """
    known = session.execute(
        select(Instance).where(Instance.sop_instance_uid == identity.sop_instance_uid)
    ).scalar_one_or_none()
    if known is not None and known.sha256 == stored.sha256:
        # the file is back where it had been removed
        known.path = stored.path
        if known.damaged_at is not None:
            known.damaged_at = None
            known.series.last_received_at = at
            if known.series.state is not SeriesState.RECEIVING:
                _reopen(session, known.series, at=at, reason="a damaged image came again")
        return Reception.DUPLICATE
    own = select(Artifact.path).where(Artifact.sop_instance_uid == identity.sop_instance_uid)
    result = session.execute(own).first()
    is_ours = result is not None and _has_bytes(directory, result.path, stored)
    if is_ours and not _is_conflict(session, known, stored):
        return Reception.OWN_RESULT
    if known is not None:
        place = known.series.study.study_uid, known.series.series_uid
        if place != (identity.study_uid, identity.series_uid):
            return Reception.ELSEWHERE
        return _record_conflict(session, known, stored, transfer_syntax_uid, at)
    series = _series(session, identity, calling_ae, at)
    session.add(
        Instance(
            series=series,
            association_id=association_id,
            sop_instance_uid=identity.sop_instance_uid,
            sop_class_uid=identity.sop_class_uid,
            transfer_syntax_uid=transfer_syntax_uid,
            sha256=stored.sha256,
            size=stored.size,
            path=stored.path,
            received_at=at,
        )
    )
    # not as it was read: others are counted by statements
    series.n_instances = Series.n_instances + 1
    series.last_received_at = at
    session.flush()
    if series.state is not SeriesState.RECEIVING:
        _reopen(session, series, at=at, reason="late instance")
    if result is not None:
        what = "other bytes under the UID of a result of this node; they are kept"
        _record_two_contents(session, series, identity.sop_instance_uid, at, what)
    return Reception.NEW


def _has_bytes(directory: Path, path: str | None, stored: StoredFile) -> bool:
    """Whether a result of ours has the data set that was received; where it can't be told, it has not."""
    try:
        return path is not None and data_set_digest(directory / path) == stored.sha256
    except OSError:
        return False


def _is_conflict(session: Session, known: Instance | None, stored: StoredFile) -> bool:
    """Whether these bytes are kept already beside the first under their UID."""
    if known is None:
        return False
    seen = select(Conflict.id).where(Conflict.instance_id == known.id, Conflict.sha256 == stored.sha256)
    return session.execute(seen).first() is not None


def prepare(dialect: Dialect) -> None:
    """Do now what the first object of a process would else wait for, some 30 ms of the processor."""
    configure_mappers()
    quick_rows.prepare(dialect)


def record_arrivals(
    connection: Connection, arrivals: Sequence[Arrival], association_ids: Sequence[int], directory: Path
) -> list[Reception]:
    """Write the rows of some instances, in their order.

    Parameters
    ----------
    connection
        In a transaction that has the write lock.
    association_ids
        By which association each one came.
    directory
        The storage directory: results of ours may be coming back.
    """
    return [
        Reception.NEW
        if _add_to_open_series(connection, arrival, association_id)
        else _record_otherwise(connection, arrival, association_id, directory)
        for arrival, association_id in zip(arrivals, association_ids, strict=True)
    ]


def _record_otherwise(
    connection: Connection, arrival: Arrival, association_id: int, directory: Path
) -> Reception:
    with Session(connection) as session:
        outcome = record_instance(
            session,
            arrival.identity,
            arrival.stored,
            directory=directory,
            transfer_syntax_uid=arrival.transfer_syntax_uid,
            association_id=association_id,
            calling_ae=arrival.calling_ae,
            at=arrival.at,
        )
        session.flush()
    return outcome


def _add_to_open_series(connection: Connection, arrival: Arrival, association_id: int) -> bool:
    identity, stored = arrival.identity, arrival.stored
    return quick_rows.add_to_open_series(
        connection,
        {
            "study_uid": identity.study_uid,
            "in_series": identity.series_uid,
            "association_id": association_id,
            "sop_instance_uid": identity.sop_instance_uid,
            "sop_class_uid": identity.sop_class_uid,
            "transfer_syntax_uid": arrival.transfer_syntax_uid,
            "sha256": stored.sha256,
            "size": stored.size,
            "path": stored.path,
        },
        arrival.at,
    )


def is_recorded(session: Session, path: str, sop_instance_uid: str | None = None) -> bool:
    """Whether a row names this stored file.

    Parameters
    ----------
    sop_instance_uid
        Of the object in it, where that can be read: without it all rows are read.
    """
    instances, conflicts = (select(table.id).where(table.path == path) for table in (Instance, Conflict))
    if sop_instance_uid is not None:
        instances = instances.where(Instance.sop_instance_uid == sop_instance_uid)
    return any(session.execute(rows.limit(1)).first() is not None for rows in (instances, conflicts))


def recorded_paths(database: Database) -> set[str]:
    """Return the stored files that a row names; one that gets its row meanwhile may be missing."""
    named: set[str] = set()
    for table in (Instance, Conflict):
        for piece in pieces.ranges(database, table.id):
            with database.read() as session:
                paths = session.scalars(select(table.path).where(piece, table.path.is_not(None)))
                named.update(path for path in paths if path is not None)
    return named


def _reopen(session: Session, series: Series, *, at: datetime, reason: str) -> None:
    lifecycle.move_series(
        session, series, SeriesState.RECEIVING, at=at, actor=_ACTOR, reason_code=None, reason=reason
    )


def _record_conflict(
    session: Session, known: Instance, stored: StoredFile, transfer_syntax_uid: str, at: datetime
) -> Reception:
    if not _is_conflict(session, known, stored):
        session.add(
            Conflict(
                instance=known,
                transfer_syntax_uid=transfer_syntax_uid,
                sha256=stored.sha256,
                path=stored.path,
                received_at=at,
            )
        )
        what = "other bytes under a known SOP Instance UID; both are kept"
        _record_two_contents(session, known.series, known.sop_instance_uid, at, what)
        if _is_to_be_analysed(session, known.series):
            known.series.last_received_at = at
            _reopen(session, known.series, at=at, reason="conflicting instance")
    return Reception.CONFLICT


def _record_two_contents(
    session: Session, series: Series, sop_instance_uid: str, at: datetime, reason: str
) -> None:
    audit.record(
        session,
        audit.Event.INSTANCE_CONFLICT,
        at=at,
        actor=_ACTOR,
        study_uid=series.study.study_uid,
        outcome=audit.Outcome.MINOR_FAILURE,
        series_uid=series.series_uid,
        sop_instance_uid=sop_instance_uid,
        reason=reason,
    )


def _is_to_be_analysed(session: Session, series: Series) -> bool:
    """Whether the series was closed but has no result yet: then a doubt still comes in time."""
    waits = or_(Job.state.in_([JobState.QUEUED, JobState.RUNNING]), Job.cancelled_because == CancelCause.HELD)
    unfinished = select(Job.id).where(Job.series_id == series.id, waits)
    return series.state is SeriesState.COMPLETE or (
        series.state is SeriesState.QUEUED and session.execute(unfinished).first() is not None
    )


def _series(session: Session, identity: Identity, calling_ae: str, at: datetime) -> Series:
    study = session.execute(select(Study).where(Study.study_uid == identity.study_uid)).scalar_one_or_none()
    if study is None:
        study = Study(
            study_uid=identity.study_uid,
            patient_id=identity.patient_id,
            patient_name=identity.patient_name,
            accession_number=identity.accession_number,
            study_date=identity.study_date,
            description=identity.study_description,
            first_received_at=at,
        )
        session.add(study)
        session.flush()
    series = session.execute(
        select(Series).where(Series.study_id == study.id, Series.series_uid == identity.series_uid)
    ).scalar_one_or_none()
    if series is None:
        series = Series(
            study=study,
            series_uid=identity.series_uid,
            modality=identity.modality,
            description=identity.series_description,
            calling_ae=calling_ae,
            n_instances=0,
            last_received_at=at,
            state=SeriesState.RECEIVING,
        )
        session.add(series)
        study.state, study.delivery, study.shown_job_id = StudyWord.RECEIVING, None, None
        session.flush()
        audit.record(
            session,
            audit.Event.SERIES_ARRIVED,
            at=at,
            actor=_ACTOR,
            study_uid=identity.study_uid,
            series_uid=identity.series_uid,
            modality=identity.modality,
            calling_ae=calling_ae,
        )
    return series
