"""The rows of a backup: one state of the database in one file, and the way back from it.

SQLite's file is copied by its own online backup. A database of PostgreSQL is dumped by ``pg_dump``, in the
same snapshot in which the names of the files are read; ``pg_restore`` brings all of it back, or nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import URL, inspect, select, text
from sqlalchemy.orm import Session

from pacs_node.audit_chain import first_bad_row
from pacs_node.db import Artifact, AuditEvent, Conflict, Database, Instance
from pacs_node.errors import BackupError
from pacs_node.spool import sync_directory

logger = logging.getLogger(__name__)

_BLOCK = 1 << 20
_META_AT = 128 + 4
_GROUP_LENGTH = 12
_MOST_WORDS = 400
_PAGES = 1000
_BUSY_SECONDS = 0.05
_PAUSE_SECONDS = 0.5
_PATIENCE_SECONDS = 600.0
_PROGRAM_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a row names, and the SHA-256 that the row has of it.

    Parameters
    ----------
    path
        Relative to the storage directory.
    sha256
        Of the whole file; for a received object of its transfer syntax and data set.
    transfer_syntax_uid
        Of a received object, None for a result.
    """

    path: str
    sha256: str
    transfer_syntax_uid: str | None

    def is_in(self, file: Path) -> bool:
        """Whether a file has this content."""
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            if self.transfer_syntax_uid is not None:
                head = stream.read(_META_AT + _GROUP_LENGTH)
                stream.seek(_META_AT + _GROUP_LENGTH + int.from_bytes(head[-4:], "little"))
                digest.update(self.transfer_syntax_uid.encode("ascii") + b"\n")
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest() == self.sha256


@dataclass(frozen=True, slots=True)
class Moment:
    """What one state of the database says.

    Parameters
    ----------
    named
        Every file that a row names.
    audit_events, audit_head
        Number of the newest row of the audit record, and its hash.
    """

    named: list[Named]
    audit_events: int
    audit_head: str


def read_moment(session: Session) -> Moment:
    """Read it in the state that a transaction sees."""
    found: dict[str, Named] = {}
    for table in (Instance, Conflict):
        columns = select(table.path, table.sha256, table.transfer_syntax_uid)
        for path, sha256, syntax in session.execute(columns).tuples():
            if path is not None:
                found[path] = Named(path, sha256, syntax)
    for path, sha256 in session.execute(select(Artifact.path, Artifact.sha256)).tuples():
        if path is not None:
            found[path] = Named(path, sha256, None)
    row = session.execute(select(AuditEvent).order_by(AuditEvent.seq.desc()).limit(1)).scalar_one_or_none()
    return Moment(list(found.values()), 0 if row is None else row.seq, "" if row is None else row.hash)


class _RestlessError(Exception):
    """Somebody writes again and again."""


def _copy_pages(source: sqlite3.Connection, copy: sqlite3.Connection, patience: float) -> None:
    """Copy one state of a database.

    With a write-ahead log nobody waits for a reader. Else commits wait for one step only. What was written
    between two steps has SQLite begin anew, so all pages are of one moment; where that goes on for longer
    than `patience`, they are copied in a single step, and commits wait for it.
    """
    if source.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        source.backup(copy)
        return
    end = time.monotonic() + patience
    least: int | None = None

    def watch(_status: int, remaining: int, _total: int) -> None:
        nonlocal least
        if least is not None and remaining >= least:
            if time.monotonic() > end:
                raise _RestlessError
            time.sleep(_PAUSE_SECONDS)
        least = remaining

    try:
        source.backup(copy, pages=_PAGES, progress=watch, sleep=_BUSY_SECONDS)
    except _RestlessError:
        logger.warning("the database is written all the time: it is copied in one step, writers wait")
        source.backup(copy)


class SqliteRows:
    """A node's SQLite file.

    Parameters
    ----------
    path
        The file.
    patience
        How long to look for a time in which nobody writes, seconds.
    """

    suffix = ".db"

    def __init__(self, path: Path, patience: float = _PATIENCE_SECONDS) -> None:
        self._path, self._patience = path, patience

    def are_there(self) -> bool:
        """Whether there is a node."""
        return self._path.exists()

    def save(self, target: Path) -> Moment:
        """Write one state into a file, in steps between which others may write."""
        with (
            closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=60)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            _copy_pages(source, copy, self._patience)
        opened = Database(f"sqlite:///{target}")
        try:
            with opened.read() as session:
                return read_moment(session)
        finally:
            opened.dispose()

    def refuse_if_used(self) -> None:
        """Raise `BackupError` where a restore would overwrite something."""
        if self._path.exists():
            raise BackupError(f"{self._path} exists: a restore overwrites nothing; move it away first")

    @contextmanager
    def bring_back(self, saved: Path) -> Iterator[list[Named]]:
        """Yield the files that are to be put in their places; the rows are there once the block has ended.

        Raises
        ------
        BackupError
            The saved rows are damaged.
        """
        # another name until all files are there: a killed restore leaves nothing that looks like a node
        unfinished = self._path.with_name(f"{self._path.name}.restoring")
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(saved, unfinished)
        opened = Database(f"sqlite:///{unfinished}")
        try:
            if (answer := opened.check()) != "ok":
                raise BackupError(f"the database of the backup is damaged: {answer[:200]}")
            with opened.read() as session:
                _refuse_broken_record(session)
                moment = read_moment(session)
            yield moment.named
        finally:
            opened.dispose()
        os.sync()
        unfinished.rename(self._path)
        sync_directory(self._path.parent)


class PostgresqlRows:
    """A node's database in PostgreSQL.

    Parameters
    ----------
    url
        With the password, if it has one; that is handed to the programs by their environment.
    seconds
        After which ``pg_dump`` or ``pg_restore`` is ended: retention waits for a dump.
    """

    suffix = ".dump"

    def __init__(self, url: URL, seconds: float = _PROGRAM_SECONDS) -> None:
        self._url, self._seconds = url, seconds

    def are_there(self) -> bool:
        """Whether there is a node."""
        database = Database(self._url)
        try:
            return inspect(database.engine).has_table(AuditEvent.__tablename__)
        finally:
            database.dispose()

    def save(self, target: Path) -> Moment:
        """Dump one state into a file, and beside it the list of the files that it names.

        Raises
        ------
        BackupError
            ``pg_dump`` is missing, failed or took too long.
        """
        database = Database(self._url)
        try:
            with database.read() as session:
                snapshot = session.execute(text("SELECT pg_export_snapshot()")).scalar_one()
                moment = read_moment(session)
                # the snapshot ends with this transaction
                self._run("pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={target}")
        finally:
            database.dispose()
        _list_of(target).write_text(json.dumps([asdict(item) for item in moment.named]), encoding="utf-8")
        return moment

    def refuse_if_used(self) -> None:
        """Raise `BackupError` where a restore would overwrite something."""
        database = Database(self._url)
        try:
            if inspect(database.engine).get_table_names():
                raise BackupError(
                    f"{self._url} has tables: a restore overwrites nothing; name an empty database (createdb)"
                )
        finally:
            database.dispose()

    @contextmanager
    def bring_back(self, saved: Path) -> Iterator[list[Named]]:
        """Yield the files that are to be put in their places; the rows are there once the block has ended.

        Raises
        ------
        BackupError
            ``pg_restore`` is missing, failed or took too long, or the saved rows are damaged.
        """
        self._find("pg_restore")
        yield [Named(**item) for item in json.loads(_list_of(saved).read_text(encoding="utf-8"))]
        os.sync()
        options = (
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            "--no-privileges",
            "--no-comments",
        )
        self._run("pg_restore", *options, str(saved))
        database = Database(self._url)
        try:
            with database.read() as session:
                _refuse_broken_record(session)
        finally:
            database.dispose()

    def _find(self, program: str) -> str:
        found = shutil.which(program)
        if found is None:
            raise BackupError(
                f"{program} is missing: install PostgreSQL's client programs (Debian: postgresql-client), "
                "not older than the server"
            )
        return found

    def _run(self, program: str, *options: str) -> None:
        url, password = self._url, self._url.password
        place = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
        command = [self._find(program), *options, "--no-password", f"--dbname={place.render_as_string()}"]
        environment = os.environ | ({} if password is None else {"PGPASSWORD": str(password)})
        try:
            answer = subprocess.run(  # noqa: S603 - a fixed program, no shell
                command,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=self._seconds,
            )
        except subprocess.TimeoutExpired:
            raise BackupError(f"{program} took more than {self._seconds:g} s and was ended") from None
        if answer.returncode:
            raise BackupError(f"{program} failed: {answer.stderr.strip()[:_MOST_WORDS]}")


def rows_of(url: URL) -> SqliteRows | PostgresqlRows:
    """Return the rows that a URL names."""
    return SqliteRows(Path(url.database or "")) if url.get_backend_name() == "sqlite" else PostgresqlRows(url)


def saved_files(saved: Path) -> list[Path]:
    """What belongs to rows that were saved as `saved`."""
    return [saved] if saved.suffix == SqliteRows.suffix else [saved, _list_of(saved)]


def _list_of(saved: Path) -> Path:
    return saved.with_name(f"{saved.name}.files")


def _refuse_broken_record(session: Session) -> None:
    if (bad := first_bad_row(session)) is not None:
        raise BackupError(f"the audit record of the backup is broken from row {bad}")
