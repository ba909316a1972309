"""The breaker of a destination: it opens for silence only, probes with one object, closes with an answer."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from pacs_node import breaker
from pacs_node.breaker import FAILURES, Away, Position, Waits
from pacs_node.config import DeliverySettings
from pacs_node.db import AuditEvent, Breaker, Delivery, Study
from pacs_node.dead_letters import dead_letters, requeue
from pacs_node.delivery import resend_study
from pacs_node.destinations import FakeDestination, Outcome, OutcomeKind
from pacs_node.outbox import Outbox
from pacs_node.states import DeliveryState
from tests.small_node import START, SmallNode

SETTINGS = DeliverySettings(retry_first_seconds=30, retry_longest_seconds=600, give_up_hours=2)
TRANSIENT, PERMANENT, STORED = OutcomeKind.TRANSIENT, OutcomeKind.PERMANENT, OutcomeKind.STORED


@pytest.fixture
def full(node: SmallNode) -> SmallNode:
    """A node with the results of five studies in the outbox."""
    for seed in "abcde":
        node.queue(seed)
        row, token = node.claim()
        node.finish(row, token, node.result(row))
    return node


def outbox(node: SmallNode, destination: FakeDestination) -> Outbox:
    return Outbox(
        node.database, node.spool.directory, destination, SETTINGS, node.clock, ticks=node.clock.ticks
    )


def drain(box: Outbox) -> int:
    for count in range(100):
        if not box.tick():
            return count
    raise AssertionError("never idle")


def row(node: SmallNode) -> Breaker:
    with node.database.read() as session:
        return session.execute(select(Breaker)).scalar_one()


def attempts(node: SmallNode) -> int:
    return sum(item.attempts for item in node.all_deliveries())


def events(node: SmallNode) -> list[str]:
    with node.database.read() as session:
        names = session.scalars(select(AuditEvent.event).order_by(AuditEvent.seq))
        return [name for name in names if name.startswith("destination ")]


def test_a_destination_that_is_away_is_asked_three_times_and_then_by_probes(full: SmallNode) -> None:
    """Without it each of the ten objects would knock, and each would hold up the thread."""
    box = outbox(full, FakeDestination(answers=False))
    drain(box)
    assert attempts(full) == FAILURES
    assert (row(full).failures, row(full).reason) == (FAILURES, "nobody listens")
    for probe in range(1, 4):
        until = row(full).open_until
        assert until is not None
        full.clock.now = until - timedelta(milliseconds=1)
        drain(box)
        assert attempts(full) == FAILURES + probe - 1
        full.clock.now = until
        drain(box)
        assert attempts(full) == FAILURES + probe
    assert events(full) == ["destination away"]


def test_probes_take_turns(full: SmallNode) -> None:
    """An object that its receiver dies of must not be the only one that ever knocks."""
    box = outbox(full, FakeDestination(answers=False))
    drain(box)
    for _ in range(5):
        until = row(full).open_until
        assert until is not None
        full.clock.now = until
        drain(box)
    # the reports wait for their masks, so the five masks are what can be tried
    tried = [item.attempts for item in full.all_deliveries() if item.artifact.kind == "seg"]
    assert sorted(tried) == [1, 1, 2, 2, 2]


def test_an_answer_closes_it_and_everything_goes(full: SmallNode) -> None:
    peer = FakeDestination(answers=False)
    box = outbox(full, peer)
    drain(box)
    peer.answers = True
    until = row(full).open_until
    assert until is not None
    full.clock.now = until
    drain(box)
    assert (row(full).failures, row(full).open_until, row(full).since) == (0, None, None)
    full.clock.forward(seconds=60)
    drain(box)
    assert {item.state for item in full.all_deliveries()} == {DeliveryState.COMMITTED}
    assert events(full) == ["destination away", "destination back"]


@pytest.mark.parametrize("answer", [0xA700, 0xC000, PERMANENT])
def test_a_refusal_is_an_answer(full: SmallNode, answer: int | OutcomeKind) -> None:
    box = outbox(full, FakeDestination(script=[answer] * 10))
    drain(box)
    assert attempts(full) >= 5
    assert events(full) == []


def test_it_outlives_the_process(full: SmallNode) -> None:
    drain(outbox(full, FakeDestination(answers=False)))
    healthy = FakeDestination()
    drain(outbox(full, healthy))
    assert healthy.attempts == []


@pytest.mark.parametrize("verb", ["failed", "send"])
def test_an_operator_need_not_wait_for_the_next_probe(full: SmallNode, verb: str) -> None:
    peer = FakeDestination(answers=False)
    box = outbox(full, peer)
    drain(box)
    with full.database.write() as session:
        if verb == "send":
            study = session.scalars(select(Study.study_uid)).first()
            resend_study(session, str(study), [("fake", ("seg", "sr"))], at=full.clock(), actor="operator")
        else:
            session.execute(update(Delivery).where(Delivery.id == 1).values(state=DeliveryState.FAILED))
            requeue(session, dead_letters(session), at=full.clock(), actor="operator")
    peer.answers = True
    drain(box)
    assert peer.attempts != []
    assert (row(full).failures, row(full).open_until) == (0, None)


def test_what_is_too_old_ends_behind_an_open_breaker_with_its_cause(full: SmallNode) -> None:
    box = outbox(full, FakeDestination(answers=False))
    drain(box)
    full.clock.forward(hours=3)
    for _ in range(2):
        drain(box)
    rows = full.all_deliveries()
    assert {(item.state, item.status) for item in rows} == {(DeliveryState.FAILED, "nobody listens")}


def test_a_clock_that_was_set_back_keeps_nobody_away(full: SmallNode) -> None:
    box = outbox(full, FakeDestination(answers=False))
    drain(box)
    full.clock.set(hours=-1)
    before = attempts(full)
    drain(box)
    assert attempts(full) == before + 1


@pytest.mark.parametrize(
    ("outcomes", "silence"),
    [
        ([(TRANSIENT, None)], True),
        ([(TRANSIENT, None), (TRANSIENT, 503)], True),
        ([(TRANSIENT, None), (STORED, 0)], False),
        ([(TRANSIENT, 0xA700)], False),
        ([(TRANSIENT, 500)], False),
        ([(PERMANENT, None)], False),
        ([], False),
    ],
)
def test_what_counts_as_silence(outcomes: list[tuple[OutcomeKind, int | None]], silence: bool) -> None:
    answers = [Outcome("1.2", kind, status, "a sentence") for kind, status in outcomes]
    assert breaker.nobody_answered(answers) is silence


def test_what_is_known_of_one_that_is_away() -> None:
    later = START + timedelta(minutes=5)
    closed = Breaker(destination="a", failures=2, since=START, open_until=None, reason="x")
    assert breaker.away(None) is None
    assert breaker.away(closed) is None
    assert breaker.position(closed, START, timedelta(hours=1)) is Position.CLOSED
    opened = Breaker(destination="a", failures=3, since=START, open_until=later, reason="x")
    assert breaker.away(opened) == Away(START, "x", later)
    assert breaker.position(opened, START, timedelta(hours=1)) is Position.OPEN
    assert breaker.position(opened, later, timedelta(hours=1)) is Position.HALF_OPEN


def test_the_waits_double_up_to_the_longest_with_jitter() -> None:
    """Of each fifth of the range some: full jitter, with a floor of a tenth."""
    for failures, longest in [(1, 30), (2, 60), (3, 120), (5, 480), (6, 600), (50, 600)]:
        waits = [Waits(30, 600).after(failures).total_seconds() for _ in range(500)]
        assert longest * 0.1 <= min(waits) < max(waits) <= longest
        fifths = [
            sum(part <= wait / longest < part + 0.18 for wait in waits) for part in (0.1, 0.28, 0.46, 0.64)
        ]
        assert min(fifths) > 50


@given(st.integers(1, 100_000))
def test_any_number_of_failures_has_a_wait(failures: int) -> None:
    assert timedelta(0) < Waits(30, 600).after(failures) <= timedelta(seconds=600)
