"""Nobody who writes waits for somebody who reads the record: reads are short, whatever is asked."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, text

from pacs_node import audit, audit_chain, audit_list
from pacs_node.audit_export import Selection, entries
from pacs_node.audit_message import Origin
from pacs_node.db import Database
from tests.node_story import START

ORIGIN = Origin("CTNODE", "node", "")
ROWS, PIECE = 50, 10


@pytest.fixture
def record(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """A record of some pieces; one event in ten is of another kind and a failure."""
    monkeypatch.setattr("pacs_node.audit_list._PIECE", PIECE)
    monkeypatch.setattr("pacs_node.audit_chain._PIECE", PIECE)
    with database.write() as session:
        for number in range(ROWS):
            odd = number % 10 == 3
            audit.record(
                session,
                audit.Event.LOGIN_REFUSED if odd else audit.Event.STUDY_VIEWED,
                at=START + timedelta(seconds=number),
                actor="user:odd" if odd else "user:jane",
                study_uid="1.2.3",
                outcome=audit.Outcome.MINOR_FAILURE if odd else audit.Outcome.SUCCESS,
            )
    return database


def write_at_once(database: Database) -> None:
    """Commit something without waiting for anybody."""
    path = database.engine.url.database
    assert path is not None
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO errand (name, due_at) VALUES (hex(randomblob(8)), '2026-03-02')")
        connection.execute("COMMIT")
    finally:
        connection.close()


def test_a_writer_would_wait_for_a_long_reader(record: Database) -> None:
    """The control: without a write-ahead log one open answer is enough."""
    if audit_mode(record) == "wal":
        pytest.skip("this SQLite has a write-ahead log")
    with record.read() as session:
        rows = entries(session, Selection())
        next(rows)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            write_at_once(record)


def audit_mode(database: Database) -> str:
    with database.read() as session:
        return str(session.execute(text("PRAGMA journal_mode")).scalar_one())


def test_a_writer_commits_between_any_two_lines_of_an_export(record: Database) -> None:
    count = 0
    for _line in audit_list.export(record, Selection(), "jsonl", ORIGIN, ROWS):
        write_at_once(record)
        count += 1
    assert count == ROWS


def test_a_writer_commits_between_the_pieces_of_a_check(record: Database) -> None:
    steps: list[int] = []

    def step(rows: int) -> None:
        write_at_once(record)
        steps.append(rows)

    assert audit_chain.verify_in_pieces(record, progress=step).first_bad is None
    assert steps == [PIECE] * (ROWS // PIECE)


SELECTIONS = (
    Selection(),
    Selection(event="login refused"),
    Selection(actor="user:odd"),
    Selection(event="login refused", actor="user:odd"),
    Selection(study_uid="1.2.3"),
    Selection(since=START, until=START + timedelta(days=1)),
    Selection(failures=True),
    Selection(failures=True, event="login refused"),
)


def plans(database: Database, what: str) -> list[str]:
    """How SQLite answers the statements that were collected."""
    with database.read() as session:
        rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {what}").all()
    return [str(row[3]) for row in rows]


class Statements:
    """The questions that are asked, with their values written in."""

    def __init__(self, database: Database) -> None:
        self.said: list[str] = []
        event.listen(database.engine, "before_cursor_execute", self._note)

    def _note(self, _connection: object, _cursor: object, statement: str, values: object, *_: object) -> None:
        if statement.startswith("SELECT") and isinstance(values, tuple):
            for value in values:
                statement = statement.replace(
                    "?", f"'{value}'" if not isinstance(value, int) else str(value), 1
                )
            self.said.append(statement)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_a_piece_of_an_export_is_read_by_row_numbers_only(record: Database, selection: Selection) -> None:
    """An index would be asked for all rows of an event, again for each piece."""
    statements = Statements(record)
    lines = list(audit_list.export(record, selection, "jsonl", ORIGIN, ROWS))
    assert len(lines) in {ROWS, ROWS // 10}
    assert len(statements.said) == ROWS // PIECE
    for said in statements.said:
        asked = [line for line in plans(record, said) if "audit_event" in line]
        assert asked, said
        assert all("USING INTEGER PRIMARY KEY" in line for line in asked), asked


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_a_page_of_a_list_sorts_and_searches_nothing(record: Database, selection: Selection) -> None:
    with record.read() as session:
        first = audit_list.newest_first(session, selection, None, 3)
        statements = Statements(record)
        second = audit_list.newest_first(session, selection, first[-1].seq, 3)
    assert [row.seq for row in first] > [row.seq for row in second]
    (said,) = [statement for statement in statements.said if "ORDER BY" in statement]
    plan = plans(record, said)
    assert any("INDEX" in line for line in plan), plan
    assert selection.study_uid or not any("TEMP B-TREE" in line for line in plan), plan


def test_pages_are_in_the_order_of_time_even_where_the_clock_was_set_back(
    database: Database, tmp_path: Path
) -> None:
    with database.write() as session:
        for seconds in (10, 30, 20, 20, 5):
            audit.record(session, audit.Event.LOGGED_IN, at=START + timedelta(seconds=seconds), actor="x")
    seen: list[int] = []
    with database.read() as session:
        before = None
        while page := audit_list.newest_first(session, Selection(), before, 2):
            seen += [row.seq for row in page]
            before = page[-1].seq
        assert audit_list.newest_first(session, Selection(), 99, 2) == ()
    assert seen == [2, 4, 3, 1, 5]
