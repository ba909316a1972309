"""Who is to blame for an error: what was to be written, or all that is under it."""

from __future__ import annotations

import errno
import sqlite3

import pytest
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
)

from pacs_node.errors import StaleStateError
from pacs_node.row_errors import Blame, blame


class FakePostgresqlError(Exception):
    """What psycopg raises, as far as it is looked at."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("the server's words")
        self.sqlstate = sqlstate


def postgresql(sqlstate: str | None) -> OperationalError:
    return OperationalError("INSERT", {}, FakePostgresqlError(sqlstate))


def sqlite(name: str, kind: type[DatabaseError] = OperationalError) -> DatabaseError:
    cause = sqlite3.DatabaseError("SQLite's words")
    cause.sqlite_errorname = name
    return kind("INSERT", {}, cause)


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        # program_limit_exceeded: psycopg files it under OperationalError
        (postgresql("54000"), Blame.ROW),
        (InternalError("INSERT", {}, FakePostgresqlError("22021")), Blame.ROW),
        (postgresql("23505"), Blame.ROW),
        (sqlite("SQLITE_CONSTRAINT_UNIQUE", IntegrityError), Blame.ROW),
        (sqlite("SQLITE_TOOBIG", DataError), Blame.ROW),
        (StaleStateError("another state"), Blame.ROW),
        (postgresql("53100"), Blame.ALL),
        (postgresql("57P01"), Blame.ALL),
        (postgresql("55P03"), Blame.ALL),
        (InterfaceError("INSERT", {}, Exception("closed")), Blame.ALL),
        (OperationalError("INSERT", {}, FakePostgresqlError(None), connection_invalidated=True), Blame.ALL),
        (sqlite("SQLITE_FULL"), Blame.ALL),
        (sqlite("SQLITE_BUSY_SNAPSHOT"), Blame.ALL),
        (sqlite("SQLITE_IOERR_FSYNC"), Blame.ALL),
        (OSError(errno.ENOSPC, "full"), Blame.ALL),
        (postgresql(None), Blame.UNKNOWN),
        (sqlite("SQLITE_READONLY"), Blame.UNKNOWN),
        (ValueError("a surrogate"), Blame.UNKNOWN),
        (MemoryError(), Blame.UNKNOWN),
    ],
)
def test_who_is_to_blame(error: Exception, whose: Blame) -> None:
    assert blame(error) is whose
