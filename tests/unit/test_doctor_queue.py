"""What doctor and the overview tell of the queue, of destinations that are away, and of what has failed."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update

from pacs_node.alarms import alarms
from pacs_node.config import Settings, parse_settings
from pacs_node.db import Delivery
from pacs_node.destinations import FakeDestination
from pacs_node.doctor_findings import Finding, Level
from pacs_node.doctor_queue import check_queue
from pacs_node.outbox import Outbox
from pacs_node.overview import DiskSpace, overview
from pacs_node.states import DeliveryState
from tests.small_node import SmallNode


@pytest.fixture
def away(node: SmallNode) -> SmallNode:
    """Four results for a destination that nobody reaches, one job that waits."""
    for seed in "abcd":
        node.queue(seed)
        job, token = node.claim()
        node.finish(job, token, node.result(job))
    node.queue("e")
    peer = FakeDestination(answers=False)
    settings = Settings().delivery
    box = Outbox(node.database, node.spool.directory, peer, settings, node.clock, ticks=node.clock.ticks)
    for _ in range(5):
        box.tick()
    return node


def findings(node: SmallNode, **sections: object) -> list[Finding]:
    raw = {"storage": {"directory": str(node.spool.directory)}, **sections}
    return list(check_queue(parse_settings(raw, base=node.spool.directory), node.clock()))


def test_a_quiet_node(node: SmallNode) -> None:
    (found,) = findings(node)
    assert (found.level, found.sentence) == (
        Level.GOOD,
        "0 jobs wait or run, 0 MiB of images without a result",
    )


def test_a_destination_that_is_away_is_a_problem_with_its_reason(away: SmallNode) -> None:
    queue, found = findings(away)
    assert queue.sentence.startswith("1 jobs wait or run")
    assert (found.level, found.about) == (Level.PROBLEM, "destination fake")
    assert found.sentence.startswith("not reached since 2026-03-01 12:00:00 UTC: nobody listens; tried again")


def test_it_is_an_alarm_too(away: SmallNode) -> None:
    now = away.clock()
    with away.database.read() as session:
        seen = overview(session, now, now - timedelta(hours=12), ["fake"])
    (line,) = seen.destinations
    assert line.away is not None
    sentences = [item.sentence for item in alarms(seen, DiskSpace(2, 3, 1))]
    assert any(
        "fake is not reached since 2026-03-01 12:00 UTC (nobody listens)" in text for text in sentences
    )


def test_dead_letters_are_counted_by_cause(away: SmallNode) -> None:
    with away.database.write() as session:
        lost = {"state": DeliveryState.FAILED, "status": "not authorised"}
        session.execute(update(Delivery).where(Delivery.id <= 3).values(**lost))
    found = findings(away)[-1]
    assert (found.about, found.sentence) == ("failed", "3 for fake: not authorised")
    assert "pacs-node failed --to fake --requeue" in found.todo


def test_a_full_backlog_is_a_problem(away: SmallNode) -> None:
    found = findings(away, backlog={"max_jobs": 1})[0]
    assert (found.level, found.sentence) == (Level.PROBLEM, "1 jobs wait or run; the limit is 1")
