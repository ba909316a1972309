"""The audit record as lines: JSON Lines, CSV, DICOM audit messages, FHIR AuditEvents.

Rows are read in pieces: a record of millions needs no more memory than one of a thousand.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session, aliased

from pacs_node.audit_fhir import to_fhir
from pacs_node.audit_message import Entry, Origin, message_of
from pacs_node.audit_xml import to_xml
from pacs_node.db import AuditEvent, Study

_PIECE = 2000

COLUMNS = (
    "seq",
    "at",
    "actor",
    "event",
    "code",
    "outcome",
    "study_uid",
    "patient_id",
    "accession_number",
    "objects",
    "previous_hash",
    "hash",
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows; None asks for all. `until` is not itself in it."""

    since: datetime | None = None
    until: datetime | None = None
    study_uid: str | None = None
    actor: str | None = None
    event: str | None = None
    after_seq: int = 0
    failures: bool = False

    def criteria(self, rows: type[AuditEvent] = AuditEvent) -> Iterator[ColumnElement[bool]]:
        """Yield what a row of it fulfils, for a query's ``where``."""
        if self.after_seq:
            yield rows.seq > self.after_seq
        if self.since is not None:
            yield rows.at >= self.since
        if self.until is not None:
            yield rows.at < self.until
        for column, value in (
            (rows.study_uid, self.study_uid),
            (rows.actor, self.actor),
            (rows.event, self.event),
        ):
            if value is not None:
                # failures are few and have an index of their own: the joined text keeps to it
                yield (column.concat("") if self.failures else column) == value
        if self.failures:
            yield rows.outcome > 0


def _query(selection: Selection, rows: type[AuditEvent]) -> Select[tuple[AuditEvent, str, str]]:
    return (
        select(rows, Study.patient_id, Study.accession_number)
        .outerjoin(Study, Study.study_uid == rows.study_uid)
        .where(*selection.criteria(rows))
        .order_by(rows.seq)
    )


def entries(session: Session, selection: Selection, limit: int | None = None) -> Iterator[Entry]:
    """Yield the rows of a selection in their order."""
    return _entries(session, _query(selection, AuditEvent).limit(limit))


def entries_among(session: Session, selection: Selection, count: int) -> Iterator[Entry]:
    """Yield those of the first `count` rows after ``after_seq`` that belong to a selection.

    However seldom they are, no more than `count` rows are looked at: the answer comes soon.
    """
    # the limit keeps the planner from asking an index for all rows of an event, again for each piece
    some = (
        select(AuditEvent).where(AuditEvent.seq > selection.after_seq).order_by(AuditEvent.seq).limit(count)
    )
    return _entries(session, _query(selection, aliased(AuditEvent, some.subquery())))


def _entries(session: Session, query: Select[tuple[AuditEvent, str, str]]) -> Iterator[Entry]:
    for row, patient_id, accession_number in session.execute(query.execution_options(yield_per=_PIECE)):
        yield Entry(
            row.seq,
            row.at,
            row.actor,
            row.event,
            row.code,
            row.outcome,
            row.study_uid,
            row.objects,
            row.previous_hash,
            row.hash,
            patient_id,
            accession_number,
        )
        session.expunge(row)


def _row(entry: Entry) -> dict[str, object]:
    return asdict(entry) | {"at": entry.at.astimezone(UTC).isoformat(timespec="microseconds")}


def _json(entry: Entry, _origin: Origin) -> str:
    return json.dumps(_row(entry), ensure_ascii=True)


def _csv(entry: Entry, _origin: Origin) -> str:
    row = _row(entry) | {"objects": json.dumps(entry.objects, sort_keys=True, ensure_ascii=True)}
    return csv_line([_harmless(row[name]) for name in COLUMNS])


def csv_line(values: list[str]) -> str:
    """Return one line of a CSV file (RFC 4180) without its end."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()


def _harmless(value: object) -> str:
    """A cell that a spreadsheet doesn't take for a formula (OWASP, CSV injection)."""
    text = "" if value is None else str(value)
    text = "".join(
        character if character.isprintable() else f"[U+{ord(character):04X}]" for character in text
    )
    return f"'{text}" if text[:1] in {"=", "+", "-", "@"} else text


def _xml(entry: Entry, origin: Origin) -> str:
    # one message a line: an end of line within a value is escaped by the writer
    return to_xml(message_of(entry, origin)).decode("utf-8").replace("?>\n", "?>")


def _fhir(entry: Entry, origin: Origin) -> str:
    return json.dumps(to_fhir(message_of(entry, origin)), ensure_ascii=True)


#: name -> one line of an entry
FORMATS: dict[str, Callable[[Entry, Origin], str]] = {
    "jsonl": _json,
    "csv": _csv,
    "dicom": _xml,
    "fhir": _fhir,
}
