"""Keeps what messages told of patients, and gives it out for a study."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from inference.record import RecordCode, Sex
from inference.record_person import Person, SourcedRecord, silent
from pacs_node import audit
from pacs_node.db import Database
from pacs_node.db_record import ClinicalFactRow, ClinicalMessageRow
from pacs_node.hl7_message import WRONG_TYPE, ClinicalMessage, RefusedError
from pacs_node.record_facts import Fact, reading_of

SOURCE = "HL7"
_UNITS = {"pack_years": "pack-years", "years_quit": "years"}
_MOST_FACTS = 2_000


def keep(session: Session, message: ClinicalMessage, *, address: str, at: datetime) -> bool:
    """Write a message down inside the caller's write transaction.

    Returns
    -------
    bool
        False where it was there already.

    Raises
    ------
    RefusedError
        Another message of this sender has its control ID.
    """
    key = (ClinicalMessageRow.sender == message.sender, ClinicalMessageRow.control_id == message.control_id)
    known = session.execute(select(ClinicalMessageRow).where(*key)).scalar_one_or_none()
    if known is not None:
        if known.digest == message.digest:
            return False
        words = "MSH-10 was used before, for another message."
        raise RefusedError("AE", WRONG_TYPE, words, message.control_id)
    row = ClinicalMessageRow(
        received_at=at,
        sender=message.sender,
        address=address,
        control_id=message.control_id,
        kind=message.kind,
        digest=message.digest,
        patient_id=message.person.patient_id,
        birth_date=message.person.birth_date,
        sex=message.person.sex or "",
    )
    row.facts = [
        ClinicalFactRow(
            accession_number=one.accession_number,
            item=one.fact.item,
            value=one.fact.value,
            unit=_UNITS.get(one.fact.item, ""),
            on_date=one.fact.on and one.fact.on.isoformat(),
            source=one.fact.source,
        )
        for one in message.facts
    ]
    session.add(row)
    audit.record(
        session,
        audit.Event.RECORD_TOLD,
        at=at,
        actor="mllp",
        kind=message.kind,
        address=address,
        facts=len(message.facts),
        left_out=message.left_out or None,
    )
    return True


def forget(session: Session, before: datetime) -> int:
    """Remove what was told before a time; return how many messages."""
    old = select(ClinicalMessageRow.id).where(ClinicalMessageRow.received_at < before)
    session.execute(delete(ClinicalFactRow).where(ClinicalFactRow.message_id.in_(old)))
    found = session.execute(delete(ClinicalMessageRow).where(ClinicalMessageRow.received_at < before))
    return int(getattr(found, "rowcount", 0))


class ToldByMessages:
    """What the messages in the database told.

    Parameters
    ----------
    database
        Read for each study.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_order(self, patient_id: str, accession_number: str, seen: date) -> Sequence[SourcedRecord]:
        """Return what was told with the order of the study; nothing where it has no accession number."""
        if not accession_number.strip():
            return ()
        here = ClinicalFactRow.accession_number == accession_number.strip()
        return self._told(patient_id, seen, here, f"{SOURCE} order")

    def of_patient(self, patient_id: str, accession_number: str, seen: date) -> Sequence[SourcedRecord]:
        """Return what was told of the patient otherwise."""
        other = ClinicalFactRow.accession_number != (accession_number.strip() or "-")
        return self._told(patient_id, seen, other, SOURCE)

    def _told(self, patient_id: str, seen: date, which: object, source: str) -> Sequence[SourcedRecord]:
        if not patient_id.strip():
            return ()
        query = (
            select(ClinicalFactRow, ClinicalMessageRow)
            .join(ClinicalMessageRow)
            .where(ClinicalMessageRow.patient_id == patient_id.strip(), which)  # type: ignore[arg-type]
            .order_by(ClinicalMessageRow.id.desc(), ClinicalFactRow.id)
            .limit(_MOST_FACTS)
        )
        with self._database.read() as session:
            rows = [(fact, message) for fact, message in session.execute(query)]
        if not rows:
            return ()
        people = {(row.birth_date, row.sex) for _, row in rows}
        if len(people) > 1:
            words = f"{source}: messages of this patient ID differ in birth date or sex; none was used."
            return (silent(source, RecordCode.AMBIGUOUS, words),)
        born, sex = people.pop()
        person = Person(patient_id.strip(), born, Sex(sex) if sex else None)
        facts = _latest(rows)
        return (SourcedRecord(source, person, reading_of(facts, person, seen, source)),)


def _latest(rows: Sequence[tuple[ClinicalFactRow, ClinicalMessageRow]]) -> list[Fact]:
    """Of each item what the last message says that tells it: a correction replaces what was wrong."""
    last: dict[str, int] = {}
    for fact, message in rows:
        last[fact.item] = max(last.get(fact.item, 0), message.id)
    return [
        Fact(row.item, row.value, date.fromisoformat(row.on_date) if row.on_date else None, row.source)
        for row, message in rows
        if message.id == last[row.item]
    ]
