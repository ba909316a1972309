"""Whether an error speaks of what was to be written, or of the database and the disk under it.

The one is refused and holds up nobody else; the other is tried again, and meanwhile nothing is taken.
"""

from __future__ import annotations

import errno
import sqlite3
from enum import Enum, auto

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError

from pacs_node.connections import is_full
from pacs_node.errors import StaleStateError

_OF_A_ROW = ("22", "23", "54")
"""Classes of PostgreSQL (its appendix A): data exception, constraint violation, program limit exceeded."""

_OF_ALL = ("08", "25", "28", "3D", "40", "53", "55", "57", "58", "F0", "XX")
"""Connection, transaction state, authorization, database, rollback, resources, state, operator, system."""

_PASSING = ("SQLITE_BUSY", "SQLITE_LOCKED")


class Blame(Enum):
    """Whom an error speaks of."""

    #: it will never be written
    ROW = auto()
    #: nothing can be written now
    ALL = auto()
    #: of a row, if an empty transaction is committed at the same time
    UNKNOWN = auto()


def is_disk_failure(error: BaseException) -> bool:
    """Whether an error means that what was written may be lost; a disk that is full loses nothing."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, sqlite3.Error):
        return str(getattr(cause, "sqlite_errorname", "")).startswith("SQLITE_IOERR")
    return isinstance(cause, OSError) and cause.errno == errno.EIO


def blame(error: Exception) -> Blame:
    """Judge an error by what it is, whatever class the driver or SQLAlchemy files it under."""
    if isinstance(error, OSError | InterfaceError) or is_disk_failure(error) or is_full(error):
        return Blame.ALL
    if isinstance(error, StaleStateError | IntegrityError | DataError):
        return Blame.ROW
    if not isinstance(error, DBAPIError):
        return Blame.UNKNOWN
    cause = error.orig
    state = getattr(cause, "sqlstate", None) or ""
    if state[:2] in _OF_A_ROW:
        return Blame.ROW
    passing = isinstance(cause, sqlite3.Error) and str(cause.sqlite_errorname).startswith(_PASSING)
    return Blame.ALL if error.connection_invalidated or passing or state[:2] in _OF_ALL else Blame.UNKNOWN
