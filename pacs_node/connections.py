"""Connections to the database: how a transaction begins, and how one writer after the other gets its turn.

SQLite: every write is ``BEGIN IMMEDIATE``. PostgreSQL: every write takes one advisory lock first, so it is
the same there: writers come one after the other, the audit record stays one chain, no write fails half-way.
"""

from __future__ import annotations

import random
import sqlite3
import time

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError

BUSY_TIMEOUT_SECONDS = 10
WRITE = "pacs_node_write"
"""Execution option of an engine whose transactions write."""

_TRY_SECONDS = (0.0005, 0.003)
_ADVISORY_LOCK = 0x70616373  # any number that nobody else takes
#: a server that is gone, or a node, is noticed by the other side within about half a minute
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}


def journal_mode(sqlite_version: tuple[int, int, int]) -> str:
    """Return the safe journal mode for a SQLite version.

    WAL is faster, but 3.7.0 to 3.51.2 can corrupt it when writers and checkpoints of several
    processes meet (sqlite.org/wal.html, "WAL-reset bug"; fixed in 3.44.6, 3.50.7 and 3.51.3).
    """
    fixed = sqlite_version >= (3, 51, 3) or (
        sqlite_version[:2] in {(3, 44), (3, 50)} and sqlite_version[2] >= {44: 6, 50: 7}[sqlite_version[1]]
    )
    return "WAL" if fixed else "DELETE"


def is_full(error: Exception) -> bool:
    """Whether a write failed because the disk is full: it is rolled back and nothing is lost."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        return cause.sqlite_errorname == "SQLITE_FULL"
    # disk_full, PostgreSQL appendix A
    return getattr(cause, "sqlstate", None) == "53100"


def is_postgresql(url: str | URL) -> bool:
    """Whether a URL names a PostgreSQL database."""
    return make_url(url).get_backend_name() == "postgresql"


def make_engine(url: str | URL) -> Engine:
    """Make the engine of a database.

    Raises
    ------
    ValueError
        The URL is of neither kind.
    ModuleNotFoundError
        PostgreSQL, and its driver isn't installed.
    """
    parts = make_url(url)
    if is_postgresql(parts):
        return _postgresql(parts.set(drivername="postgresql+psycopg"))
    if parts.get_backend_name() != "sqlite":
        raise ValueError("a database is sqlite: or postgresql:")
    return _sqlite(parts)


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    mode = journal_mode(sqlite3.sqlite_version_info[:3])

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _record: object) -> None:
        # the driver must not open transactions of its own: we say BEGIN
        connection.isolation_level = None
        (answer,) = connection.execute(f"PRAGMA journal_mode={mode}").fetchone()
        if str(answer).upper() != mode:
            raise sqlite3.OperationalError(f"the journal mode is {answer} and can't be made {mode}")
        # EXTRA: without WAL a commit is the end of the journal file, and FULL doesn't sync its folder: a
        # power cut would bring the journal back and take the transaction away
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("PRAGMA foreign_keys=ON")
        # without it INSERT OR REPLACE removes a row and no trigger sees it
        connection.execute("PRAGMA recursive_triggers=ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get(WRITE, False):
            connection.exec_driver_sql("BEGIN")
        elif not _got_its_turn(connection):
            # once more, so that the error is the one that everybody knows
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _got_its_turn(connection: Connection) -> bool:
    """Ask for the write lock at short random intervals until the time is over.

    SQLite's own waiting asks ever more seldom, up to 100 ms: whoever has waited long loses to whoever came
    just now, and with eight writers some have starved for the whole ten seconds.
    """
    driver = connection.connection.driver_connection
    if driver is None:
        return False
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while time.monotonic() < deadline:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not str(error.sqlite_errorname).startswith("SQLITE_BUSY"):
                    return False
                time.sleep(random.uniform(*_TRY_SECONDS))  # noqa: S311 - no secret
            else:
                return True
        return False
    finally:
        driver.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_SECONDS * 1000:.0f}")


def _postgresql(url: URL) -> Engine:
    usual = {
        "connect_timeout": BUSY_TIMEOUT_SECONDS,
        "application_name": "pacs-node",
        **_KEEPALIVE,
        # milliseconds; what was sent and not confirmed
        "tcp_user_timeout": 1000 * BUSY_TIMEOUT_SECONDS,
        "options": " ".join(f"-c tcp_{name}={value}" for name, value in _KEEPALIVE.items()),
    }
    arguments = {name: value for name, value in usual.items() if name not in url.query}
    # a server that was restarted leaves dead connections in the pool
    engine = create_engine(url, pool_pre_ping=True, connect_args=arguments)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if not connection.get_execution_options().get(WRITE, False):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return
        # one message to the server, not three
        connection.exec_driver_sql(
            f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_SECONDS}s'; SET LOCAL synchronous_commit = on; "
            f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"
        )

    return engine
