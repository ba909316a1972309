"""Whether the audit record still is what was written: each row by its hash, its end by heads kept elsewhere.

A chain of hashes names every row that was edited, removed from the middle or put in. What was cut off at the
end leaves a shorter chain that is whole; only a head that was noted before, outside the database, shows it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node.audit import GENESIS, row_hash
from pacs_node.db import AuditEvent, Database

_PIECE = 1000
_COLUMNS = select(*AuditEvent.__table__.columns).order_by(AuditEvent.seq)


@dataclass(frozen=True, slots=True)
class Head:
    """Number and hash of the last row at some time."""

    seq: int
    hash: str
    at: datetime


class HeadsUnreadableError(Exception):
    """A file of heads holds something else."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found.

    Parameters
    ----------
    rows
        How many fit, from the first one that was checked.
    first_bad
        Sequence number of the first row that doesn't fit or is missing; None if all is well.
    why
        In words; empty if all is well.
    heads
        How many noted heads were compared.
    first
        Number of the first row that was checked.
    """

    rows: int
    first_bad: int | None
    why: str
    heads: int
    first: int = 1


def verify(
    session: Session, heads: Iterable[Head] = (), progress: Callable[[int], None] = lambda _rows: None
) -> Verdict:
    """Check every row in its order, and that each noted head is among them; all in one transaction.

    Parameters
    ----------
    heads
        Noted earlier by `note_head`.
    progress
        Gets how many rows were checked since it was called before.
    """
    return _verify(lambda after: _piece(session, after), heads, progress)


def verify_in_pieces(
    database: Database,
    heads: Iterable[Head] = (),
    progress: Callable[[int], None] = lambda _rows: None,
    *,
    after: int = 0,
) -> Verdict:
    """Check as `verify` does, in short transactions of `_PIECE` rows.

    Where SQLite has no write-ahead log, nobody writes while somebody reads. Rows that are added meanwhile
    are checked too.

    Parameters
    ----------
    after
        Check the rows after this one only; it is taken as it is.
    """

    def piece(after: int) -> Sequence[AuditEvent]:
        with database.read() as session:
            return _piece(session, after)

    with database.read() as session:
        start = session.execute(select(AuditEvent.hash).where(AuditEvent.seq == after)).scalar()
    return _verify(piece, heads, progress, after, start or GENESIS)


def _piece(session: Session, after: int) -> Sequence[AuditEvent]:
    # the first piece has what was put in before the first row too
    query = _COLUMNS.where(AuditEvent.seq > after) if after else _COLUMNS
    found = session.execute(query.limit(_PIECE)).all()
    return cast(Sequence[AuditEvent], found)  # they have all of its columns, and cost a third


def _verify(
    piece_after: Callable[[int], Sequence[AuditEvent]],
    heads: Iterable[Head],
    progress: Callable[[int], None],
    after: int = 0,
    previous: str = GENESIS,
) -> Verdict:
    noted = {head.seq: head for head in heads if head.seq > after}
    checked = after
    while piece := piece_after(checked):
        for row in piece:
            why = _wrong(row, checked + 1, previous) or _moved(row, noted)
            if why:
                return Verdict(checked - after, checked + 1, why, len(noted), after + 1)
            previous, checked = row.hash, checked + 1
        progress(len(piece))
    last = max(noted, default=0)
    if last > checked:
        why = f"the record ends before it: row {last} was noted on {noted[last].at:%Y-%m-%d %H:%M} UTC"
        return Verdict(checked - after, checked + 1, why, len(noted), after + 1)
    return Verdict(checked - after, None, "", len(noted), after + 1)


def first_bad_row(session: Session) -> int | None:
    """Return the number of the first row that doesn't fit the chain, None if all fit; in one transaction."""
    return verify(session).first_bad


def _wrong(row: AuditEvent, expected: int, previous: str) -> str:
    if row.seq != expected:
        return f"it is missing: the next row is {row.seq}"
    if row.previous_hash != previous:
        return "it doesn't continue the row before it"
    return "" if row.hash == row_hash(row) else "its content was changed"


def _moved(row: AuditEvent, noted: dict[int, Head]) -> str:
    head = noted.get(row.seq)
    if head is None or head.hash == row.hash:
        return ""
    return f"another one stood here on {head.at:%Y-%m-%d %H:%M} UTC, when its hash was noted"


def note_head(session: Session, path: Path, at: datetime) -> bool:
    """Append the last row's number and hash to a file, unless nothing was recorded since the last time.

    Returns
    -------
    bool
        Whether a line was written.

    Raises
    ------
    OSError
        The file can't be written.
    """
    seq = session.execute(select(func.max(AuditEvent.seq))).scalar()
    if seq is None:
        return False
    value = session.execute(select(AuditEvent.hash).where(AuditEvent.seq == seq)).scalar_one()
    line = json.dumps({"seq": seq, "hash": value, "at": at.astimezone(UTC).isoformat(timespec="seconds")})
    with path.open("a+", encoding="ascii") as file:
        file.seek(0)
        if f'"hash": "{value}"' in (file.readlines() or [""])[-1]:
            return False
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True


def read_heads(path: Path) -> list[Head]:
    """Read what `note_head` wrote; a last line that was cut by a crash is left out.

    Raises
    ------
    HeadsUnreadableError
        The file can't be read, or a line is no head.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise HeadsUnreadableError(f"{path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    heads = []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            heads.append(Head(int(values["seq"]), str(values["hash"]), datetime.fromisoformat(values["at"])))
        except (ValueError, KeyError, TypeError):
            raise HeadsUnreadableError(f"{path}, line {number}: not a head of an audit record") from None
    return heads
