"""The audit chain: whatever is edited, removed or put in is named by its sequence number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.audit import Event, record
from pacs_node.audit_chain import first_bad_row
from pacs_node.db import AuditEvent, Database
from tests.small_node import START

ROWS = 6


def fill(database: Database, count: int = ROWS) -> None:
    for number in range(count):
        with database.write() as session:
            record(
                session,
                Event.SERIES_ARRIVED,
                at=START + timedelta(seconds=number),
                actor="listener",
                study_uid=f"1.2.{number}",
                series_uid=f"1.3.{number}",
                modality="CT",
            )


@contextmanager
def attacker(database: Database) -> Iterator[sqlite3.Connection]:
    """Somebody with the file in their hands: no triggers stop them."""
    with closing(sqlite3.connect(database.engine.url.database or "")) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        connection.commit()


def bad_row(database: Database) -> int | None:
    with database.read() as session:
        return first_bad_row(session)


def test_rows_are_chained(database: Database) -> None:
    fill(database)
    with database.read() as session:
        rows = session.execute(select(AuditEvent).order_by(AuditEvent.seq)).scalars().all()
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0].previous_hash == audit.GENESIS
    assert [row.previous_hash for row in rows[1:]] == [row.hash for row in rows[:-1]]
    assert rows[2].objects == {"series_uid": "1.3.2", "modality": "CT"}
    assert (rows[2].event, rows[2].code, rows[2].outcome) == ("series arrived", "110104", 0)
    assert bad_row(database) is None


def test_an_empty_record_is_whole(database: Database) -> None:
    assert bad_row(database) is None


@pytest.mark.parametrize("seq", [1, 3, ROWS])
@pytest.mark.parametrize(
    "change",
    [
        "at = '2026-03-01 12:00:59.000000'",
        "actor = 'web'",
        "event = 'job'",
        "code = '110103'",
        "outcome = 8",
        "study_uid = NULL",
        'objects = \'{"modality": "CT"}\'',
        f"previous_hash = '{'1' * 64}'",
        f"hash = '{'1' * 64}'",
    ],
)
def test_an_edited_row_is_named(database: Database, seq: int, change: str) -> None:
    fill(database)
    with attacker(database) as connection:
        assert connection.execute(f"UPDATE audit_event SET {change} WHERE seq = ?", (seq,)).rowcount == 1
    assert bad_row(database) == seq


@pytest.mark.parametrize("seq", [1, 3, ROWS - 1])
def test_a_deleted_row_is_named(database: Database, seq: int) -> None:
    fill(database)
    with attacker(database) as connection:
        connection.execute("DELETE FROM audit_event WHERE seq = ?", (seq,))
    assert bad_row(database) == seq


def test_a_deleted_row_is_named_although_the_others_moved_up(database: Database) -> None:
    fill(database)
    with attacker(database) as connection:
        connection.execute("DELETE FROM audit_event WHERE seq = 3")
        connection.execute("UPDATE audit_event SET seq = seq - 1 WHERE seq > 3")
    assert bad_row(database) == 3


def test_a_truncated_beginning_is_named(database: Database) -> None:
    fill(database)
    with attacker(database) as connection:
        connection.execute("DELETE FROM audit_event WHERE seq <= 4")
    assert bad_row(database) == 1


def test_a_row_rewritten_with_a_fitting_hash_breaks_the_next(database: Database) -> None:
    fill(database)
    with database.read() as session:
        row = session.get_one(AuditEvent, 3)
    row.actor = "somebody else"
    with attacker(database) as connection:
        connection.execute(
            "UPDATE audit_event SET actor = ?, hash = ? WHERE seq = 3", (row.actor, audit.row_hash(row))
        )
    assert bad_row(database) == 4


def test_two_rows_swapped_are_named(database: Database) -> None:
    fill(database)
    with attacker(database) as connection:
        connection.execute("UPDATE audit_event SET seq = 99 WHERE seq = 2")
        connection.execute("UPDATE audit_event SET seq = 2 WHERE seq = 3")
        connection.execute("UPDATE audit_event SET seq = 3 WHERE seq = 99")
    assert bad_row(database) == 2


def test_an_event_of_a_transaction_that_failed_never_was(database: Database) -> None:
    fill(database, 1)

    def fail(session: Session) -> None:
        record(session, Event.NODE_STARTED, at=START, actor="x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), database.write() as session:
        fail(session)
    fill(database, 1)
    with database.read() as session:
        events = session.execute(select(AuditEvent.event).order_by(AuditEvent.seq)).scalars().all()
    assert events == ["series arrived", "series arrived"]
    assert bad_row(database) is None


def test_a_local_time_chains_as_the_same_moment(database: Database) -> None:
    with database.write() as session:
        local = START.astimezone(timezone(timedelta(hours=5)))
        record(session, Event.NODE_STARTED, at=local, actor="x")
    assert bad_row(database) is None


def test_absent_objects_are_left_out(database: Database) -> None:
    with database.write() as session:
        record(session, Event.JOB_CHANGED, at=START, actor="x", job=0, reason=None)
    with database.read() as session:
        assert session.get_one(AuditEvent, 1).objects == {"job": 0}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(JSON)
def test_any_object_keeps_the_chain_whole(database: Database, value: object) -> None:
    with database.write() as session:
        record(session, Event.JOB_CHANGED, at=START, actor="x", value=value)
    assert bad_row(database) is None
