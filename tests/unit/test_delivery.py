"""The outbox: order, repetition, proof of arrival, and an end for everything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from pacs_node import leases
from pacs_node.breaker import Position
from pacs_node.config import DeliverySettings
from pacs_node.db import Artifact, AuditEvent, Breaker, Delivery
from pacs_node.delivery import resend_study
from pacs_node.destinations import EchoResult, FakeDestination, ObjectRef, Outcome, OutcomeKind
from pacs_node.errors import StaleStateError
from pacs_node.outbox import Outbox
from pacs_node.states import DeliveryState, JobState
from tests.small_node import SmallNode

TRANSIENT, PERMANENT = OutcomeKind.TRANSIENT, OutcomeKind.PERMANENT
PENDING, SENT, COMMITTED, FAILED = (
    DeliveryState.PENDING,
    DeliveryState.SENT,
    DeliveryState.COMMITTED,
    DeliveryState.FAILED,
)
SETTINGS = DeliverySettings(retry_first_seconds=30, retry_longest_seconds=600, give_up_hours=2)


@pytest.fixture
def full(node: SmallNode) -> SmallNode:
    """A node with SEG and SR of one study in the outbox."""
    node.queue()
    row, token = node.claim()
    node.finish(row, token, node.result(row))
    return node


def outbox(node: SmallNode, destination: FakeDestination, settings: DeliverySettings = SETTINGS) -> Outbox:
    return Outbox(
        node.database, node.spool.directory, destination, settings, node.clock, ticks=node.clock.ticks
    )


def drain(box: Outbox) -> None:
    for _ in range(100):
        if not box.tick():
            return
    raise AssertionError("never idle")


def wait_for_the_next(node: SmallNode) -> None:
    """Until an attempt is due and the breaker allows it."""
    with node.database.read() as session:
        tried = select(Delivery.next_attempt_at).where(Delivery.state == PENDING, Delivery.attempts > 0)
        due = min(session.scalars(tried))
        until = session.scalars(select(Breaker.open_until)).one_or_none()
    node.clock.now = max(due, until or due)


def row(node: SmallNode, kind: str) -> Delivery:
    return next(item for item in node.all_deliveries() if item.artifact.kind == kind)


def uids(node: SmallNode) -> dict[str, str]:
    return {item.artifact.kind: item.artifact.sop_instance_uid or "" for item in node.all_deliveries()}


def test_the_mask_goes_first_then_the_report_then_the_proof(full: SmallNode) -> None:
    fake = FakeDestination()
    drain(outbox(full, fake))
    named = uids(full)
    assert fake.attempts == [named["seg"], named["sr"]]
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}
    for item in full.all_deliveries():
        assert (item.attempts, item.status, item.lease_token) == (1, "found at the destination", None)
        assert item.verified_at == full.clock.now
    with full.database.read() as session:
        paths = session.execute(select(Artifact.path)).scalars().all()
    assert sorted(fake.stored.values()) == sorted(
        (full.spool.directory / (path or "")).read_bytes() for path in paths
    )


def test_every_step_is_recorded(full: SmallNode) -> None:
    drain(outbox(full, FakeDestination()))
    with full.database.read() as session:
        events = [e.objects for e in session.execute(select(AuditEvent)).scalars() if e.event == "delivery"]
    assert [(e["kind"], e["state"]) for e in events] == [
        ("seg", "sending"),
        ("seg", "sent"),
        ("sr", "sending"),
        ("sr", "sent"),
        ("seg", "committed"),
        ("sr", "committed"),
    ]


def test_nothing_is_done_twice(full: SmallNode) -> None:
    fake = FakeDestination()
    box = outbox(full, fake)
    drain(box)
    full.clock.forward(hours=100)
    drain(box)
    assert len(fake.attempts) == 2


@pytest.mark.parametrize("answer", [TRANSIENT, 0xA700, 0x0110, 0x1234])
def test_a_transient_failure_is_repeated_later(full: SmallNode, answer: OutcomeKind | int) -> None:
    fake = FakeDestination(script=[answer])
    box = outbox(full, fake)
    drain(box)
    seg = row(full, "seg")
    assert (seg.state, seg.attempts, len(fake.attempts)) == (PENDING, 1, 1)
    wait = seg.next_attempt_at - full.clock.now
    assert timedelta(seconds=3) <= wait <= timedelta(seconds=30)
    full.clock.now = seg.next_attempt_at - timedelta(milliseconds=1)
    drain(box)
    assert len(fake.attempts) == 1
    full.clock.forward(milliseconds=1)
    drain(box)
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


def test_a_report_waits_for_its_mask(full: SmallNode) -> None:
    fake = FakeDestination(script=[TRANSIENT] * 3)
    box = outbox(full, fake)
    for attempt in range(1, 4):
        drain(box)
        assert row(full, "sr").attempts == 0
        assert row(full, "seg").attempts == attempt
        wait_for_the_next(full)
    drain(box)
    named = uids(full)
    assert fake.attempts == [named["seg"]] * 4 + [named["sr"]]


def test_a_report_waits_only_for_the_mask_of_its_own_destination(node: SmallNode) -> None:
    node.queue()
    job, token = node.claim()
    both = [("away", ("seg", "sr")), ("fake", ("sr",))]
    node.finish(job, token, node.result(job), destinations=both)
    drain(outbox(node, FakeDestination()))
    states = {(item.destination, item.artifact.kind): item.state for item in node.all_deliveries()}
    assert states == {("away", "seg"): PENDING, ("away", "sr"): PENDING, ("fake", "sr"): COMMITTED}


@pytest.mark.parametrize("answer", [PERMANENT, 0x0122, 0xA900, 0xC000])
def test_a_permanent_failure_ends_at_once_and_the_report_still_goes(
    full: SmallNode, answer: OutcomeKind | int
) -> None:
    fake = FakeDestination(script=[answer])
    drain(outbox(full, fake))
    assert full.delivery_states() == {"seg": FAILED, "sr": COMMITTED}
    full.clock.forward(hours=100)
    drain(outbox(full, fake))
    assert len(fake.attempts) == 2


@pytest.mark.parametrize("answer", [0x0111, 0xB000, 0xB007, 0x0107])
def test_warnings_and_duplicates_are_delivered(full: SmallNode, answer: int) -> None:
    drain(outbox(full, FakeDestination(script=[answer, answer])))
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


def test_a_peer_that_stays_away_is_given_up_in_the_end(full: SmallNode) -> None:
    fake = FakeDestination(answers=False)
    box = outbox(full, fake)
    for _ in range(1000):
        drain(box)
        if set(full.delivery_states().values()) == {FAILED}:
            break
        full.clock.forward(seconds=300)
    assert full.delivery_states() == {"seg": FAILED, "sr": FAILED}
    assert timedelta(hours=2) < full.clock.now - row(full, "sr").created_at < timedelta(hours=3)
    assert row(full, "seg").status == "nobody listens"


def test_success_without_the_object_is_sent_again(full: SmallNode) -> None:
    fake = FakeDestination()
    box = outbox(full, fake)
    assert box.tick()
    seg = uids(full)["seg"]
    del fake.stored[seg]
    for _ in range(40):
        drain(box)
        full.clock.forward(seconds=10)
    assert fake.attempts.count(seg) == 2
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


class Forgetful(FakeDestination):
    """Says success and keeps nothing."""

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        outcomes = super().send(paths)
        self.stored.clear()
        return outcomes


def test_a_peer_that_never_has_it_is_given_up_in_the_end(full: SmallNode) -> None:
    fake = Forgetful()
    box = outbox(full, fake)
    for _ in range(1000):
        drain(box)
        if set(full.delivery_states().values()) == {FAILED}:
            break
        full.clock.forward(seconds=120)
    assert full.delivery_states() == {"seg": FAILED, "sr": FAILED}
    assert full.clock.now - row(full, "sr").created_at < timedelta(hours=3)
    assert "doesn't have it" in (row(full, "seg").status or "")


def test_a_peer_that_cannot_tell_is_asked_ever_more_seldom(full: SmallNode) -> None:
    """After the time for a delivery once a day: it may be able to tell again one day."""
    fake = FakeDestination(can_verify=False)
    box = outbox(full, fake)
    drain(box)
    waits = []
    for _ in range(20):
        full.clock.now = row(full, "sr").next_attempt_at
        drain(box)
        waits.append((row(full, "sr").next_attempt_at - full.clock.now).total_seconds())
    assert waits[:3] == [8, 16, 32]
    assert set(waits[10:]) <= {2048, 86400}
    assert waits[-1] == 86400
    assert full.delivery_states() == {"seg": SENT, "sr": SENT}
    assert len(fake.attempts) == 2
    fake.can_verify = True
    drain(box)
    assert full.delivery_states() == {"seg": SENT, "sr": SENT}
    full.clock.forward(days=1)
    drain(box)
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


def test_a_peer_that_is_not_to_be_asked_costs_nothing_more(full: SmallNode) -> None:
    class Unasked(FakeDestination):
        def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
            raise AssertionError(objects)

    box = Outbox(
        full.database,
        full.spool.directory,
        Unasked(),
        SETTINGS,
        full.clock,
        ticks=full.clock.ticks,
        asks=False,
    )
    drain(box)
    for _ in range(5):
        full.clock.forward(days=10)
        assert not box.tick()
    assert full.delivery_states() == {"seg": SENT, "sr": SENT}
    assert row(full, "sr").checks == 0


def test_what_was_being_sent_when_the_process_died_is_sent_again(full: SmallNode) -> None:
    class Dies(FakeDestination):
        def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
            super().send(paths)
            raise KeyboardInterrupt

    fake = Dies()
    with pytest.raises(KeyboardInterrupt):
        outbox(full, fake).tick()
    assert row(full, "seg").state is DeliveryState.SENDING
    healthy = FakeDestination()
    box = outbox(full, healthy)
    drain(box)
    full.clock.forward(seconds=29)
    drain(box)
    assert healthy.attempts == []
    full.clock.forward(seconds=2)
    drain(box)
    assert row(full, "seg").status == "the sending process stopped"
    wait_for_the_next(full)
    drain(box)
    named = uids(full)
    assert healthy.attempts == [named["seg"], named["sr"]]
    assert healthy.stored[named["seg"]] == fake.stored[named["seg"]]
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


def test_what_ends_its_process_each_time_is_given_up_in_the_end(full: SmallNode) -> None:
    class Dies(FakeDestination):
        def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
            self.attempts += [path.name for path in paths]
            raise KeyboardInterrupt

    fake = Dies()
    for _ in range(200):
        with suppress(KeyboardInterrupt):
            drain(outbox(full, fake))
        box = outbox(full, fake)
        box._look(full.clock())
        box._look(full.clock.forward(seconds=31))
        if row(full, "seg").state is FAILED:
            break
        full.clock.now = max(full.clock.now, row(full, "seg").next_attempt_at)
    assert full.delivery_states() == {"seg": FAILED, "sr": PENDING}
    assert len(fake.attempts) < 60
    assert full.clock.now - row(full, "seg").created_at < timedelta(hours=3)


def test_what_was_being_sent_when_the_node_stood_still_for_days_is_tried_once_more(full: SmallNode) -> None:
    with full.database.write() as session:
        session.execute(
            update(Delivery).values(state=DeliveryState.SENDING, attempts=40, lease_token="serve:1")
        )
    full.clock.forward(days=3)
    drain(outbox(full, FakeDestination()))
    assert full.delivery_states() == {"seg": PENDING, "sr": PENDING}
    full.clock.forward(seconds=SETTINGS.retry_longest_seconds)
    drain(outbox(full, FakeDestination()))
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


class Faulty(FakeDestination):
    """Its client has a fault: an answer that nobody foresaw raises."""

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        self.attempts += [path.name for path in paths]
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        self.attempts += [item.sop_instance_uid for item in objects]
        raise TypeError("'NoneType' object is not iterable")


def test_a_fault_of_the_client_is_waited_for_and_given_up_as_silence_is(full: SmallNode) -> None:
    fake = Faulty()
    box = outbox(full, fake)
    assert box.tick()
    seg = row(full, "seg")
    assert (seg.state, seg.attempts, seg.lease_token) == (PENDING, 1, None)
    assert seg.status == "a fault of this software (UnicodeDecodeError)"
    assert seg.next_attempt_at > full.clock.now
    for _ in range(1000):
        drain(box)
        if set(full.delivery_states().values()) == {FAILED}:
            break
        full.clock.forward(seconds=300)
    assert full.delivery_states() == {"seg": FAILED, "sr": FAILED}
    assert full.clock.now - row(full, "seg").created_at < timedelta(hours=3)
    assert len(fake.attempts) < 40
    with full.database.read() as session:
        assert session.get_one(Breaker, "fake").failures >= 3


def test_a_fault_in_the_question_is_asked_ever_more_seldom(full: SmallNode) -> None:
    with full.database.write() as session:
        session.execute(update(Delivery).values(state=SENT, sent_at=full.clock()))
    fake = Faulty()
    box = outbox(full, fake)
    for _ in range(60):
        drain(box)
        full.clock.forward(seconds=60)
    assert full.delivery_states() == {"seg": SENT, "sr": SENT}
    assert len(fake.attempts) <= 2 * 12


class Slow(FakeDestination):
    """Something happens while it sends."""

    def __init__(self, meanwhile: Callable[[], None], script: Iterable[int | OutcomeKind] = ()) -> None:
        super().__init__(script=script)
        self.meanwhile = meanwhile

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        outcomes = super().send(paths)
        self.meanwhile()
        return outcomes


@pytest.mark.parametrize("answer", [0x0000, PERMANENT, TRANSIENT])
def test_a_sender_that_lost_its_lease_changes_nothing(full: SmallNode, answer: OutcomeKind | int) -> None:
    """It stood still, another process took the delivery back: its late answer must not count."""

    def another_takes_over() -> None:
        other = outbox(full, FakeDestination())
        other._look(full.clock())
        other._look(full.clock.forward(seconds=31))

    outbox(full, Slow(another_takes_over, [answer])).tick()
    seg = row(full, "seg")
    assert (seg.state, seg.status, seg.lease_token) == (PENDING, "the sending process stopped", None)
    wait_for_the_next(full)
    drain(outbox(full, FakeDestination()))
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


def test_a_file_that_was_altered_is_not_sent(full: SmallNode) -> None:
    fake = FakeDestination()
    seg = row(full, "seg")
    path = full.spool.directory / (seg.artifact.path or "")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    drain(outbox(full, fake))
    assert full.delivery_states() == {"seg": FAILED, "sr": COMMITTED}
    assert fake.attempts == [uids(full)["sr"]]
    assert "isn't what" in (row(full, "seg").status or "")


def test_a_file_that_is_gone_ends_the_delivery(full: SmallNode) -> None:
    (full.spool.directory / (row(full, "seg").artifact.path or "")).unlink()
    drain(outbox(full, FakeDestination()))
    assert full.delivery_states() == {"seg": FAILED, "sr": COMMITTED}
    assert row(full, "seg").status == "the file is gone"


def resend(node: SmallNode, destinations: Sequence[tuple[str, Sequence[str]]]) -> int:
    with node.database.write() as session:
        study_uid = row(node, "sr").artifact.job.series.study.study_uid
        return resend_study(session, study_uid, destinations, at=node.clock(), actor="operator")


@pytest.mark.parametrize("state", [PENDING, SENT, COMMITTED, FAILED])
def test_an_operator_sends_again_whatever_became_of_it(full: SmallNode, state: DeliveryState) -> None:
    with full.database.write() as session:
        later = full.clock.now + timedelta(hours=1)
        session.execute(update(Delivery).values(state=state, next_attempt_at=later, attempts=4))
    full.clock.forward(minutes=30)
    assert resend(full, [("fake", ("seg", "sr"))]) == 2
    fake = FakeDestination()
    drain(outbox(full, fake))
    assert len(fake.attempts) == 2
    assert full.delivery_states() == {"seg": COMMITTED, "sr": COMMITTED}


def test_an_operator_sends_to_a_new_destination(full: SmallNode) -> None:
    drain(outbox(full, FakeDestination()))
    assert resend(full, [("archive", ("sr",))]) == 1
    archive = FakeDestination("archive")
    drain(outbox(full, archive))
    assert archive.attempts == [uids(full)["sr"]]


def test_what_is_being_sent_is_not_sent_again(full: SmallNode) -> None:
    with full.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.SENDING))
    with pytest.raises(StaleStateError, match="being sent"):
        resend(full, [("fake", ("sr",))])


def test_several_studies_go_in_order(node: SmallNode) -> None:
    for seed in "abc":
        node.queue(seed)
    for _ in range(3):
        job, token = node.claim()
        node.finish(job, token, node.result(job))
    fake = FakeDestination()
    drain(outbox(node, fake))
    expected = [item.artifact.sop_instance_uid for item in node.all_deliveries()]
    assert fake.attempts == expected
    assert {item.state for item in node.all_deliveries()} == {COMMITTED}
    assert {item.state for item in node.all_jobs()} == {JobState.SUCCEEDED}


def test_a_busy_database_does_not_end_the_thread(full: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that ended would leave a destination without results and nobody would notice."""
    monkeypatch.setattr("pacs_node.outbox._IDLE_SECONDS", 0.01)
    fake = FakeDestination()
    box = outbox(full, fake)
    real, failures = box._look, [True, True]

    def sometimes(now: datetime) -> Position:
        if failures:
            failures.pop()
            raise OperationalError("BEGIN", {}, Exception("database is locked"))
        return real(now)

    monkeypatch.setattr(box, "_look", sometimes)
    stop, committed = threading.Event(), threading.Event()

    class Watched(FakeDestination):
        def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
            committed.set()
            return super().verify(objects)

    box._destination = Watched()
    thread = threading.Thread(target=box.run, args=(stop,), daemon=True)
    thread.start()
    assert committed.wait(5)
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_the_lease_is_kept_while_a_slow_peer_takes_its_time(
    full: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    seen = threading.Event()

    def wait_for_a_beat() -> None:
        full.clock.forward(seconds=20)
        for _ in range(500):
            if row(full, "seg").lease_expires_at == full.clock.now + leases.LEASE:
                seen.set()
                return
            threading.Event().wait(0.01)

    outbox(full, Slow(wait_for_a_beat)).tick()
    assert seen.is_set()
    assert row(full, "seg").state is SENT


def test_the_fake_answers_an_echo() -> None:
    assert FakeDestination().echo() == EchoResult(ok=True, seconds=0.0, detail="answers")
