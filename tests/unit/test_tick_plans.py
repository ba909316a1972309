"""What is asked again and again reads few rows, however many there have been: by SQLite's own plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select

from pacs_node import backlog, damage, dead_letters, jobs, overview, pieces, reception
from pacs_node.config import DeliverySettings, RetentionSettings
from pacs_node.db import Instance
from pacs_node.destinations import FakeDestination
from pacs_node.outbox import Outbox
from pacs_node.retention import Retention
from tests.small_node import SmallNode, chest


@contextmanager
def statements(node: SmallNode) -> Iterator[list[tuple[str, Any]]]:
    """The statements that run meanwhile, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(node.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(node.database.engine, "before_cursor_execute", note)


def scans(node: SmallNode, ask: Callable[[], object]) -> list[str]:
    """Steps of the plans that go through a whole table, or all rows of a destination."""
    with statements(node) as seen:
        ask()
    steps = []
    with node.database.engine.connect() as connection:
        for statement, parameters in seen:
            if statement.startswith("SELECT"):
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                steps += [str(row[3]) for row in rows]
    assert steps
    tables = ("study", "series", "instance", "job", "artifact", "delivery")
    return [
        step
        for step in steps
        if step.split()[:2] in [["SCAN", table] for table in tables]
        or step.endswith("delivery USING INDEX delivery_queue (destination=?)")
    ]


def ticks(node: SmallNode) -> dict[str, Callable[[], object]]:
    box = Outbox(node.database, node.spool.directory, FakeDestination(), DeliverySettings(), node.clock)

    def reclaim() -> None:
        with node.database.write() as session:
            jobs.reclaim(session, node.watch, at=node.clock(), actor="schedule")

    def read(call: Callable[[Any], object]) -> Callable[[], object]:
        def ask() -> None:
            with node.database.read() as session:
                call(session)

        return ask

    return {
        "outbox": box.tick,
        "reclaim": reclaim,
        "intake": node.intake.judge_studies,
        "backlog": read(backlog.waiting),
        "dead letters": read(dead_letters.dead_letters),
        "failures of the page": read(overview._failures),
        "retention": Retention(
            node.database, node.spool, RetentionSettings(images_days=30), node.clock
        ).purge,
        "start": lambda: reception.recorded_paths(node.database),
        "start after a kill": lambda: damage._latest(node.database, node.clock()),
    }


NAMES = (
    "outbox",
    "reclaim",
    "intake",
    "backlog",
    "dead letters",
    "failures of the page",
    "retention",
    "start",
    "start after a kill",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_tick_reads_no_table(node: SmallNode, name: str) -> None:
    node.queue()
    row, token = node.claim()
    node.finish(row, token, node.result(row))
    assert scans(node, ticks(node)[name]) == []


@pytest.mark.parametrize("size", [1, 3, 5, 12, 5000])
def test_pieces_cover_a_table_once(node: SmallNode, size: int) -> None:
    node.receive(*chest())
    found: list[int] = []
    for piece in pieces.ranges(node.database, Instance.id, size):
        with node.database.read() as session:
            found += session.scalars(select(Instance.id).where(piece))
    assert sorted(found) == [*range(1, 13)]


def test_an_empty_table_has_no_pieces(node: SmallNode) -> None:
    assert list(pieces.ranges(node.database, Instance.id)) == []
