"""The audit record page by page, the newest first, and as an export that holds no transaction open.

Where SQLite has no write-ahead log, nobody writes while somebody reads: a transaction reads `_PIECE` rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from pacs_node.audit_export import COLUMNS, FORMATS, Selection, csv_line, entries_among
from pacs_node.audit_message import Origin
from pacs_node.db import AuditEvent, Database

_PIECE = 1000


@dataclass(frozen=True, slots=True)
class Last:
    """The end of the record: number and hash of the last row."""

    seq: int
    hash: str


def last_row(session: Session) -> Last | None:
    """Return the end of the record, None while it is empty."""
    newest = session.execute(
        select(AuditEvent.seq, AuditEvent.hash).order_by(AuditEvent.seq.desc()).limit(1)
    ).first()
    return None if newest is None else Last(newest.seq, newest.hash)


def newest_first(
    session: Session, selection: Selection, before: int | None, limit: int
) -> Sequence[AuditEvent]:
    """Return rows of a selection that come after row `before` in a list of the newest first.

    Each selection has an index in the order of time, so a page costs the same wherever it is.
    """
    query = select(AuditEvent).where(*selection.criteria())
    if before is not None:
        at = session.execute(select(AuditEvent.at).where(AuditEvent.seq == before)).scalar_one_or_none()
        if at is None:
            return ()
        query = query.where(tuple_(AuditEvent.at, AuditEvent.seq) < (at, before))
    newest = query.order_by(AuditEvent.at.desc(), AuditEvent.seq.desc()).limit(limit)
    return session.execute(newest).scalars().all()


def export(database: Database, selection: Selection, form: str, origin: Origin, until: int) -> Iterator[str]:
    """Yield the lines of an export with their ends, in pieces with a short transaction each.

    Parameters
    ----------
    form
        A key of `pacs_node.audit_export.FORMATS`: ``jsonl``; ``csv`` with a heading; ``dicom``, an audit
        message (PS3.15 A.5) on each line; ``fhir``, a FHIR R4 AuditEvent on each line (ndjson).
    until
        Number of the last row that may be in it: rows that are added meanwhile are not.
    """
    if form == "csv":
        yield csv_line([*COLUMNS]) + "\n"
    write, after = FORMATS[form], selection.after_seq
    while after < until:
        with database.read() as session:
            piece = list(
                entries_among(session, replace(selection, after_seq=after), min(_PIECE, until - after))
            )
        for entry in piece:
            yield write(entry, origin) + "\n"
        after += _PIECE
