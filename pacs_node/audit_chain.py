"""Whether the audit record still is what was written: each row by its hash, its end by heads kept elsewhere.

A chain of hashes names every row that was edited, removed from the middle or put in. What was cut off at the
end leaves a shorter chain that is whole; only a head that was noted before, outside the database, shows it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node.audit import GENESIS, row_hash
from pacs_node.db import AuditEvent

_PIECE = 5000


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
        How many fit, from the first one on.
    first_bad
        Sequence number of the first row that doesn't fit or is missing; None if all is well.
    why
        In words; empty if all is well.
    heads
        How many noted heads were compared.
    """

    rows: int
    first_bad: int | None
    why: str
    heads: int


def verify(
    session: Session, heads: Iterable[Head] = (), progress: Callable[[int], None] = lambda _rows: None
) -> Verdict:
    """Check every row in its order, and that each noted head is among them.

    Parameters
    ----------
    heads
        Noted earlier by `note_head`.
    progress
        Gets how many rows were checked since it was called before.
    """
    noted = {head.seq: head for head in heads}
    previous, checked = GENESIS, 0
    for row in _rows(session):
        why = _wrong(row, checked + 1, previous) or _moved(row, noted)
        if why:
            return Verdict(checked, checked + 1, why, len(noted))
        previous, checked = row.hash, checked + 1
        if checked % _PIECE == 0:
            progress(_PIECE)
    progress(checked % _PIECE)
    last = max(noted, default=0)
    if last > checked:
        why = f"the record ends before it: row {last} was noted on {noted[last].at:%Y-%m-%d %H:%M} UTC"
        return Verdict(checked, checked + 1, why, len(noted))
    return Verdict(checked, None, "", len(noted))


def first_bad_row(session: Session) -> int | None:
    """Return the number of the first row that doesn't fit the chain, None if all fit."""
    return verify(session).first_bad


def _rows(session: Session) -> Iterator[AuditEvent]:
    query = select(AuditEvent).order_by(AuditEvent.seq).execution_options(yield_per=_PIECE)
    for row in session.execute(query).scalars():
        yield row
        session.expunge(row)


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
