"""What is asked again and again reads few rows, however many there have been: by SQLite's own plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from pacs_node import backlog, dead_letters, jobs, overview
from pacs_node.config import DeliverySettings
from pacs_node.destinations import FakeDestination
from pacs_node.outbox import Outbox
from tests.small_node import SmallNode


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
    }


@pytest.mark.parametrize(
    "name", ["outbox", "reclaim", "intake", "backlog", "dead letters", "failures of the page"]
)
def test_a_tick_reads_no_table(node: SmallNode, name: str) -> None:
    node.queue()
    row, token = node.claim()
    node.finish(row, token, node.result(row))
    assert scans(node, ticks(node)[name]) == []
