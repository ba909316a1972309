"""The audit record page by page, the newest first, and as an export that holds no transaction open.

A transaction that reads for minutes would keep the node from writing where SQLite has no write-ahead log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node.audit_export import COLUMNS, FORMATS, Selection, csv_line, entries
from pacs_node.audit_message import Origin
from pacs_node.db import AuditEvent, Database

_PIECE = 2000


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
    """Return rows of a selection with a smaller number than `before`, the newest first."""
    query = select(AuditEvent).where(*selection.criteria()).order_by(AuditEvent.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEvent.seq < before)
    return session.execute(query).scalars().all()


def row_count(session: Session) -> int:
    """Return how many rows there are."""
    return session.execute(select(func.count(AuditEvent.seq))).scalar_one()


def export(database: Database, selection: Selection, form: str, origin: Origin, until: int) -> Iterator[str]:
    """Yield the lines of an export with their ends, in pieces that each have a transaction of their own.

    Parameters
    ----------
    form
        A key of `pacs_node.audit_export.FORMATS`.
    until
        Number of the last row that may be in it: rows that are added meanwhile are not.
    """
    if form == "csv":
        yield csv_line([*COLUMNS]) + "\n"
    write = FORMATS[form]
    while True:
        with database.read() as session:
            piece = list(entries(session, selection, _PIECE))
        for entry in piece:
            if entry.seq > until:
                return
            yield write(entry, origin) + "\n"
        if len(piece) < _PIECE:
            return
        selection = replace(selection, after_seq=piece[-1].seq)
