"""The schema, the transactions and what they promise when many write at once."""

from __future__ import annotations

import multiprocessing
import sqlite3
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError
from sqlalchemy.orm import Session

from pacs_node import audit, audit_chain
from pacs_node.db import Association, Base, Database, Instance, Study, journal_mode, sqlite_url
from tests.small_node import START

WRITERS, WRITES = 8, 15
FORK = multiprocessing.get_context("fork")


def test_the_migrated_schema_is_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        # the index of the search is a table of SQLite's own, with tables behind it
        options = {
            "compare_type": True,
            "include_name": lambda name, kind, _: kind != "table" or not name.startswith("study_words"),
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_of_the_newest_schema_changes_nothing(database: Database) -> None:
    with database.read() as session:
        before = session.execute(text("SELECT name, sql FROM sqlite_master ORDER BY name")).all()
    database.upgrade()
    with database.read() as session:
        assert session.execute(text("SELECT name, sql FROM sqlite_master ORDER BY name")).all() == before


def test_an_interrupted_upgrade_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(sqlite_url(tmp_path))
    real = Operations.execute

    def broken(self: Operations, sql: Any, *rest: Any, **more: Any) -> None:
        if "TRIGGER" in str(sql):
            raise OSError("the power went")
        real(self, sql, *rest, **more)

    monkeypatch.setattr(Operations, "execute", broken)
    with pytest.raises(OSError, match="power"):
        database.upgrade()
    monkeypatch.undo()
    with database.read() as session:
        assert session.execute(text("SELECT name FROM sqlite_master")).all() == []
    database.upgrade()
    assert database.check() == "ok"
    database.dispose()


def _upgrade(url: str) -> str:
    database = Database(url)
    database.upgrade()
    found = database.check()
    database.dispose()
    return found


def test_parts_that_start_together_upgrade_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=FORK) as pool:
        assert set(pool.map(_upgrade, [sqlite_url(tmp_path)] * 3)) == {"ok"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET actor = 'x'",
        "DELETE FROM audit_event",
        (
            "REPLACE INTO audit_event SELECT seq, at, 'x', event, code, outcome, study_uid, objects, '', 'y' "
            "FROM audit_event"
        ),
    ],
)
def test_audit_rows_are_append_only(database: Database, statement: str) -> None:
    with database.write() as session:
        audit.record(session, audit.Event.NODE_STARTED, at=START, actor="test")
    with pytest.raises(IntegrityError, match="append-only"), database.write() as session:
        session.execute(text(statement))
    with database.read() as session:
        assert session.execute(text("SELECT actor FROM audit_event")).scalars().all() == ["test"]


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "DELETE"),
        ((3, 44, 5), "DELETE"),
        ((3, 44, 6), "WAL"),
        ((3, 45, 9), "DELETE"),
        ((3, 50, 6), "DELETE"),
        ((3, 50, 7), "WAL"),
        ((3, 51, 2), "DELETE"),
        ((3, 51, 3), "WAL"),
        ((3, 52, 0), "WAL"),
        ((4, 0, 0), "WAL"),
    ],
)
def test_journal_mode(version: tuple[int, int, int], mode: str) -> None:
    assert journal_mode(version) == mode


def test_connections_are_set_up(database: Database) -> None:
    with database.read() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("synchronous", "foreign_keys", "journal_mode", "busy_timeout")
        }
    expected = journal_mode(sqlite3.sqlite_version_info[:3]).lower()
    assert pragmas == {
        "synchronous": 3,
        "foreign_keys": 1,
        "journal_mode": expected,
        "busy_timeout": 10_000,
    }


def test_times_come_back_in_utc(database: Database) -> None:
    local = datetime(2026, 3, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with database.write() as session:
        session.add(Association(calling_ae="PACS", address="::1", opened_at=local))
    with database.read() as session:
        row = session.execute(select(Association)).scalar_one()
    assert row.opened_at == local
    assert row.opened_at.tzinfo is UTC
    assert row.closed_at is None


def test_a_naive_time_is_refused(database: Database) -> None:
    naive = datetime(2026, 3, 1)  # noqa: DTZ001 - that is the test
    with pytest.raises(StatementError, match="naive datetime"), database.write() as session:
        session.add(Association(calling_ae="PACS", address="::1", opened_at=naive))


def test_an_error_rolls_everything_back(database: Database) -> None:
    def fail(session: Session) -> None:
        session.add(Association(calling_ae="PACS", address="::1", opened_at=START))
        session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), database.write() as session:
        fail(session)
    with database.read() as session:
        assert session.execute(select(Association)).all() == []


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(
            Instance(
                series_id=99,
                sop_instance_uid="1",
                sop_class_uid="1",
                transfer_syntax_uid="1",
                sha256="",
                size=1,
                path="",
                received_at=START,
            )
        )


def test_a_write_holds_the_lock_from_its_start(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.connections.BUSY_TIMEOUT_SECONDS", 0.05)
    other = Database(str(database.engine.url))
    with database.write() as first:
        first.execute(text("SELECT 1"))
        with pytest.raises(OperationalError, match="locked"), other.write() as second:
            second.execute(text("SELECT 1"))
    other.dispose()


def test_a_database_that_keeps_another_journal_is_refused(tmp_path: Path) -> None:
    """Another program holds it in WAL: to go on would risk what the mode is there for."""
    with sqlite3.connect(tmp_path / "node.db") as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE held (id)")
        database = Database(sqlite_url(tmp_path))
        if journal_mode(sqlite3.sqlite_version_info[:3]) == "DELETE":
            with pytest.raises(OperationalError), database.read() as session:
                session.execute(text("SELECT 1"))
        database.dispose()
    other.close()


def test_only_two_kinds_of_database_are_spoken() -> None:
    with pytest.raises(ValueError, match="sqlite"):
        Database("mysql://localhost/node")


def _count_up(url: str) -> int:
    """Read-modify-write, again and again: lost updates and BUSY errors would show."""
    database = Database(url)
    for _ in range(WRITES):
        with database.write() as session:
            study = session.execute(select(Study)).scalar_one()
            study.description = str(int(study.description) + 1)
            audit.record(session, audit.Event.NODE_STARTED, at=START, actor="writer")
        with database.read() as session:
            session.execute(select(Study)).scalar_one()
    database.dispose()
    return WRITES


@pytest.mark.parametrize("pool_class", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_many_writers_lose_nothing(database: Database, pool_class: Any) -> None:
    with database.write() as session:
        session.add(
            Study(
                study_uid="1.2",
                patient_id="",
                patient_name="",
                accession_number="",
                study_date="",
                description="0",
                first_received_at=START,
            )
        )
    url = str(database.engine.url)
    more = {"mp_context": FORK} if pool_class is ProcessPoolExecutor else {}
    with pool_class(WRITERS, **more) as pool:
        assert sum(pool.map(_count_up, [url] * WRITERS)) == WRITERS * WRITES
    with database.read() as session:
        assert session.execute(select(Study.description)).scalar_one() == str(WRITERS * WRITES)
        assert session.execute(text("SELECT count(*) FROM audit_event")).scalar_one() == WRITERS * WRITES
        assert audit_chain.first_bad_row(session) is None
    assert database.check() == "ok"
