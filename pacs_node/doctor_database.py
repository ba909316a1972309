"""What ``pacs-node doctor`` finds out about the database: SQLite's file, or a server of PostgreSQL."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from pacs_node import audit_chain
from pacs_node.config import Settings
from pacs_node.db import AuditEvent, Database, journal_mode
from pacs_node.doctor_findings import Finding, Level
from pacs_node.errors import ConfigurationError
from pacs_node.storage import existing_database

OLDEST_POSTGRESQL = 13
"""Oldest major version that was taken into account; the tests run on the one of Debian."""

_CLOCKS_APART = timedelta(seconds=2)
_RESTORE = "stop the node, keep the file, and restore it from a backup"
_RESTORE_SERVER = "stop the node, keep the database, and restore a backup into an empty one"


def check_database(settings: Settings, now: datetime) -> Iterator[Finding]:
    """What keeps the rows and how durably, its own check, the chain of the audit record, and its times."""
    try:
        with existing_database(settings) as database:
            yield from _examined(database, now)
    except ConfigurationError as error:
        yield Finding(Level.PROBLEM, "database", str(error), "correct it, then restart the node")


def _examined(database: Database | None, now: datetime) -> Iterator[Finding]:
    if database is None:
        yield from _sqlite_version()
        yield Finding(Level.GOOD, "database", "is made at the first start")
        return
    try:
        if database.is_sqlite:
            yield from _sqlite_version()
            yield from list(_sqlite_file(database))
        else:
            yield from list(_server(database, now))
        yield from list(_record(database, now))
    except DatabaseError as error:
        sentence = f"{database.engine.url} can't be read ({_driver_words(error)})"
        todo = "stop the node and restore the database from a backup; keep the broken file"
        if not database.is_sqlite:
            todo = (
                "see whether the server runs, lets this user in (pg_hba.conf) and has the database; "
                "before the first start the tables are missing: start the node once. Meanwhile nothing is "
                "acknowledged, and what stands in the database waits"
            )
        yield Finding(Level.PROBLEM, "database", sentence, todo)


def _driver_words(error: DatabaseError) -> str:
    """The first line of what the driver said; those of SQLAlchemy quote the statement."""
    return next(iter(str(error.orig).splitlines()), "")


def _sqlite_version() -> Iterator[Finding]:
    version = sqlite3.sqlite_version
    mode = journal_mode(sqlite3.sqlite_version_info[:3])
    sentence = f"SQLite {version}, journal mode WAL"
    if mode != "WAL":
        sentence = (
            f"SQLite {version} has the WAL-reset bug, so the journal mode is {mode}: safe, but slower. "
            "A Python with SQLite 3.51.3 or newer is faster"
        )
    yield Finding(Level.GOOD, "database", sentence)


def _sqlite_file(database: Database) -> Iterator[Finding]:
    path = Path(database.engine.url.database or "")
    wanted = journal_mode(sqlite3.sqlite_version_info[:3])
    with database.read() as session:
        mode = str(session.execute(text("PRAGMA journal_mode")).scalar_one()).upper()
        synchronous = int(session.execute(text("PRAGMA synchronous")).scalar_one())
    if (mode, synchronous) != (wanted, 3):
        yield Finding(
            Level.PROBLEM,
            "database",
            f"journal mode {mode}, synchronous {synchronous}; it must be {wanted} and 3 (EXTRA)",
            "another program has changed the database: let nothing but pacs-node open it, restart the node",
        )
    answer = database.check()
    if answer != "ok":
        yield Finding(Level.PROBLEM, "database", f"{path} is damaged: {answer[:200]}", _RESTORE)
    else:
        yield Finding(Level.GOOD, "database", f"{path}: quick check ok, synchronous EXTRA")


def _server(database: Database, now: datetime) -> Iterator[Finding]:
    with database.read() as session:
        number = int(_shown(session, "server_version_num"))
        place = f"PostgreSQL {_shown(session, 'server_version')} at {database.engine.url}"
        if number < OLDEST_POSTGRESQL * 10_000:
            todo = f"use PostgreSQL {OLDEST_POSTGRESQL} or newer"
            yield Finding(Level.WARNING, "database", f"{place} is old", todo)
        else:
            yield Finding(Level.GOOD, "database", place)
        yield from _durability(session)
        yield from _line(session)
        yield from _server_clock(session, now)
        yield from _search_index(session)
    yield from _dump_program(number // 10_000)


def _shown(session: Session, name: str) -> str:
    return str(session.execute(text(f"SHOW {name}")).scalar_one())


def _durability(session: Session) -> Iterator[Finding]:
    off = [name for name in ("fsync", "full_page_writes") if _shown(session, name) != "on"]
    if off:
        yield Finding(
            Level.PROBLEM,
            "database",
            f"{' and '.join(off)} off: the server may lose what it has committed, so what was acknowledged",
            "set it on in postgresql.conf; with fsync = off the node doesn't start",
        )
    else:
        # the server's default doesn't count
        usual = _shown(session, "synchronous_commit")
        yield Finding(
            Level.GOOD,
            "database",
            "fsync and full_page_writes on; the node commits with synchronous_commit = on "
            f"(the server's default: {usual})",
        )


def _line(session: Session) -> Iterator[Finding]:
    """Whether the connection is encrypted, where it leaves this machine."""
    encrypted, address = session.execute(
        text("SELECT ssl, inet_server_addr() FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    ).one()
    local = address is None or str(address).startswith(("127.", "::1"))
    if encrypted or local:
        how = "encrypted" if encrypted else "on this machine only"
        yield Finding(Level.GOOD, "database", f"the connection is {how}")
    else:
        todo = "add ?sslmode=verify-full&sslrootcert=FILE to storage.database_url"
        yield Finding(Level.WARNING, "database", "patient data cross the network unencrypted", todo)


def _server_clock(session: Session, now: datetime) -> Iterator[Finding]:
    theirs: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
    apart = theirs - now
    sentence = f"the server's clock is {apart.total_seconds():+.1f} s from this one"
    if abs(apart) > _CLOCKS_APART:
        todo = "let both follow a time server; the node goes by its own clock, the server's logs by the other"
        yield Finding(Level.WARNING, "database", sentence, todo)
    else:
        yield Finding(Level.GOOD, "database", sentence)


def _search_index(session: Session) -> Iterator[Finding]:
    """Whether searches by words have the index that migration 0011 makes where it can."""
    found = text("SELECT 1 FROM pg_indexes WHERE indexname = 'study_words'")
    if session.execute(found).first() is None:
        todo = (
            "install pg_trgm (Debian: postgresql-contrib), then as an owner of the database: CREATE "
            "EXTENSION pg_trgm; CREATE INDEX study_words ON study USING gin (search gin_trgm_ops)"
        )
        yield Finding(Level.WARNING, "database", "searches of studies read every row: no pg_trgm", todo)


def _dump_program(server: int) -> Iterator[Finding]:
    """Whether a backup can be made from here."""
    program = shutil.which("pg_dump")
    if program is None:
        todo = f"install the client programs of PostgreSQL {server} or newer (Debian: postgresql-client)"
        yield Finding(Level.WARNING, "backup", "pg_dump is missing: pacs-node backup can't work", todo)
        return
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)  # noqa: S603 - found above
    version = re.search(r"\d+", answer.stdout)
    if version is None or int(version[0]) < server:
        todo = f"install the client programs of PostgreSQL {server} or newer"
        yield Finding(Level.WARNING, "backup", f"{program} is older than the server", todo)
    else:
        yield Finding(Level.GOOD, "backup", f"{program} is of version {version[0]}")


def _record(database: Database, now: datetime) -> Iterator[Finding]:
    with database.read() as session:
        latest = session.execute(
            select(AuditEvent.at).order_by(AuditEvent.seq.desc()).limit(1)
        ).scalar_one_or_none()
        bad = audit_chain.first_bad_row(session)
    if bad is not None:
        todo = _RESTORE if database.is_sqlite else _RESTORE_SERVER
        yield Finding(Level.PROBLEM, "audit", f"the record is changed or broken from row {bad}", todo)
    else:
        yield Finding(Level.GOOD, "audit", "the chain of the record is whole")
    if latest is not None and latest > now + timedelta(seconds=5):
        yield Finding(
            Level.PROBLEM,
            "clock",
            f"the newest audit event is of {latest:%Y-%m-%d %H:%M:%S} UTC, which is to come",
            "set the clock of this machine (timedatectl, chronyc tracking)",
        )
