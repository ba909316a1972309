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
from sqlalchemy.orm import Session

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

    def criteria(self) -> Iterator[ColumnElement[bool]]:
        """Yield what a row of it fulfils, for a query's ``where``."""
        yield AuditEvent.seq > self.after_seq
        if self.since is not None:
            yield AuditEvent.at >= self.since
        if self.until is not None:
            yield AuditEvent.at < self.until
        for column, value in (
            (AuditEvent.study_uid, self.study_uid),
            (AuditEvent.actor, self.actor),
            (AuditEvent.event, self.event),
        ):
            if value is not None:
                yield column == value


def _query(selection: Selection) -> Select[tuple[AuditEvent, str, str]]:
    return (
        select(AuditEvent, Study.patient_id, Study.accession_number)
        .outerjoin(Study, Study.study_uid == AuditEvent.study_uid)
        .where(*selection.criteria())
        .order_by(AuditEvent.seq)
    )


def entries(session: Session, selection: Selection, limit: int | None = None) -> Iterator[Entry]:
    """Yield the rows of a selection in their order."""
    query = _query(selection).limit(limit).execution_options(yield_per=_PIECE)
    for row, patient_id, accession_number in session.execute(query):
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


def lines(session: Session, selection: Selection, form: str, origin: Origin) -> Iterator[str]:
    """Yield the lines of an export without their ends.

    Parameters
    ----------
    form
        A key of `FORMATS`: ``jsonl``; ``csv`` with a heading; ``dicom``, an audit message (PS3.15 A.5) on
        each line; ``fhir``, a FHIR R4 AuditEvent on each line (ndjson).
    """
    write = FORMATS[form]
    if form == "csv":
        yield csv_line([*COLUMNS])
    for entry in entries(session, selection):
        yield write(entry, origin)
