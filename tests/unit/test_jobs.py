"""The queue: one owner for a job, nothing of a lost lease, and one transaction that ends it."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from pacs_node import jobs, leases
from pacs_node.db import Artifact, AuditEvent, Database, Delivery, Job, Series
from pacs_node.errors import AnalysisFailedError, StaleStateError
from pacs_node.states import CancelCause, DeliveryState, JobState, SeriesState
from tests.ct_factory import make_ct_series
from tests.small_node import START, VERSION, SmallNode, chest


@pytest.fixture
def queued(node: SmallNode) -> SmallNode:
    """A node with one queued job."""
    node.queue()
    return node


def enqueue(node: SmallNode, digest: str, **values: Any) -> Job | None:
    with node.database.write() as session:
        series = session.execute(select(Series)).scalars().first()
        assert series is not None
        fixed: dict[str, Any] = {"kind": jobs.ANALYSIS, "pipeline_version": VERSION, "actor": "test"}
        return jobs.enqueue(session, series, input_digest=digest, at=node.clock(), **fixed | values)


def job(node: SmallNode, number: int = 1) -> Job:
    return next(row for row in node.all_jobs() if row.id == number)


def test_the_digest_is_of_the_content_not_of_the_order(database: Database, node: SmallNode) -> None:
    slices = make_ct_series(5, matrix=8)
    node.receive(*reversed(slices))
    with database.read() as session:
        series = session.execute(select(Series)).scalar_one()
        digest = jobs.input_digest(series)
        lines = sorted(f"{row.sop_instance_uid} {row.sha256}\n" for row in series.instances)
        series.instances.reverse()
        assert jobs.input_digest(series) == digest
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_same_work_is_queued_once(queued: SmallNode) -> None:
    digest = job(queued).input_digest
    assert enqueue(queued, digest) is None
    assert enqueue(queued, digest, pipeline_version="other") is not None
    assert enqueue(queued, "other") is not None
    assert enqueue(queued, digest, kind=jobs.REFUSAL, reason_code="GAP") is not None
    assert len(queued.all_jobs()) == 4


@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED])
def test_work_that_has_a_result_is_not_queued_again(queued: SmallNode, end: JobState) -> None:
    row, token = queued.claim()
    queued.finish(row, token, state=end)
    assert enqueue(queued, row.input_digest) is None
    assert job(queued).state is end


def test_cancelled_work_is_taken_up_when_it_is_wanted_again(queued: SmallNode) -> None:
    """A better series came, was not better after all, and the first one is the best again."""
    with queued.database.write() as session:
        series = session.execute(select(Series)).scalar_one()
        cause = CancelCause.SET_ASIDE
        jobs.cancel_unfinished(session, series, cause, "better one", at=queued.clock(), actor="test")
    assert (job(queued).state, job(queued).cancelled_because) == (JobState.CANCELLED, cause)
    again = enqueue(queued, job(queued).input_digest)
    assert again is not None
    assert (again.id, again.state, again.attempts, again.finished_at) == (1, JobState.QUEUED, 0, None)
    assert (again.cancelled_because, again.cancelled_reason) == (None, None)
    assert queued.claim()[0].id == 1


def test_the_oldest_job_that_is_due_is_claimed(queued: SmallNode) -> None:
    enqueue(queued, "second")
    enqueue(queued, "third")
    with queued.database.write() as session:
        later = queued.clock.now + jobs.RETRY_WAIT
        session.execute(update(Job).where(Job.id == 1).values(not_before=later))
    assert queued.claim()[0].id == 2
    queued.clock.forward(seconds=5)
    assert [queued.claim()[0].id for _ in range(2)] == [1, 3]
    with queued.database.write() as session:
        assert jobs.claim(session, at=queued.clock(), actor="x") is None


def test_a_claim_is_a_lease_and_an_attempt(queued: SmallNode) -> None:
    row, token = queued.claim()
    assert (row.state, row.attempts, row.lease_token) == (JobState.RUNNING, 1, token)
    assert (row.started_at, row.lease_expires_at) == (queued.clock.now, queued.clock.now + leases.LEASE)


def test_two_workers_never_hold_one_job(queued: SmallNode) -> None:
    for number in range(7):
        enqueue(queued, f"more {number}")
    claimed: list[int] = []

    def work() -> None:
        while True:
            with queued.database.write() as session:
                found = jobs.claim(session, at=queued.clock(), actor="x")
            if found is None:
                return
            claimed.append(found[0].id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(1, 9))


def test_a_lease_that_runs_out_is_taken_back(queued: SmallNode) -> None:
    queued.claim()
    assert queued.reclaim() == 0
    queued.clock.forward(seconds=29)
    assert queued.reclaim() == 0
    queued.clock.forward(seconds=2)
    assert queued.reclaim() == 1
    assert queued.reclaim() == 0
    assert (job(queued).state, job(queued).attempts, job(queued).lease_token) == (JobState.QUEUED, 1, None)
    assert queued.claim()[0].attempts == 2


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_set_loses_no_lease(queued: SmallNode, hours: int) -> None:
    """Wall time says nothing: a beat within the lease keeps it, silence for a lease loses it."""
    row, token = queued.claim()
    queued.reclaim()
    queued.clock.set(hours=hours)
    for _ in range(4):
        queued.clock.forward(seconds=20)
        with queued.database.write() as session:
            leases.extend(session, Job, [row.id], token, queued.clock())
        assert queued.reclaim() == 0
    queued.clock.set(hours=hours)
    assert queued.reclaim() == 0
    assert queued.lose_leases() == 1


def test_a_clock_that_is_set_back_holds_up_no_retry(queued: SmallNode) -> None:
    row, token = queued.claim()
    with queued.database.write() as session:
        again = session.get_one(Job, row.id)
        jobs.retry(session, again, token, at=queued.clock(), actor="worker", reason="time limit")
    queued.clock.set(hours=-1)
    assert queued.claim()[0].id == row.id


def test_a_stale_worker_cannot_finish(queued: SmallNode) -> None:
    row, stale = queued.claim()
    queued.lose_leases()
    with pytest.raises(StaleStateError):
        queued.finish(row, stale, queued.result(row))
    _, held = queued.claim()
    with pytest.raises(StaleStateError):
        queued.finish(row, stale, queued.result(row))
    assert queued.all_deliveries() == []
    queued.finish(row, held, queued.result(row))
    with pytest.raises(StaleStateError):
        queued.finish(row, held, queued.result(row))
    assert len(queued.all_deliveries()) == 2


def test_a_stale_worker_cannot_extend_or_retry(queued: SmallNode) -> None:
    row, stale = queued.claim()
    queued.lose_leases()
    _, held = queued.claim()
    with pytest.raises(StaleStateError), queued.database.write() as session:
        leases.extend(session, Job, [row.id], stale, queued.clock())
    with queued.database.write() as session:
        again = session.get_one(Job, row.id)
        with pytest.raises(StaleStateError):
            jobs.retry(session, again, stale, at=queued.clock(), actor="x", reason="x")
    assert job(queued).lease_token == held


def test_the_heartbeat_keeps_the_lease(queued: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    row, token = queued.claim()
    with leases.heartbeat(queued.database, Job, [row.id], token, queued.clock) as lost:
        queued.clock.forward(seconds=25)
        expected = queued.clock.now + leases.LEASE
        deadline = time.monotonic() + 5
        while job(queued).lease_expires_at != expected and time.monotonic() < deadline:
            time.sleep(0.01)
    assert job(queued).lease_expires_at == expected
    assert not lost.is_set()


def test_the_heartbeat_tells_of_a_lost_lease(queued: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    row, token = queued.claim()
    with leases.heartbeat(queued.database, Job, [row.id], token, queued.clock) as lost:
        queued.clock.forward(seconds=31)
        with queued.database.write() as session:
            session.execute(update(Job).values(lease_token="another"))
        assert lost.wait(5)


def test_the_heartbeat_outlives_a_busy_database(queued: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    beats: list[bool] = []
    alive = threading.Event()

    def extend(*_args: Any) -> None:
        beats.append(True)
        if len(beats) < 3:
            raise OperationalError("BEGIN", {}, Exception("database is locked"))
        alive.set()

    monkeypatch.setattr(leases, "extend", extend)
    row, token = queued.claim()
    with leases.heartbeat(queued.database, Job, [row.id], token, queued.clock) as lost:
        assert alive.wait(5)
    assert not lost.is_set()


def test_a_retry_waits_and_keeps_the_count(queued: SmallNode) -> None:
    row, token = queued.claim()
    with queued.database.write() as session:
        again = session.get_one(Job, row.id)
        jobs.retry(session, again, token, at=queued.clock(), actor="worker", reason="time limit")
    assert (job(queued).state, job(queued).attempts) == (JobState.QUEUED, 1)
    assert (job(queued).last_error, job(queued).lease_token) == ("time limit", None)
    with queued.database.write() as session:
        assert jobs.claim(session, at=queued.clock(), actor="x") is None
    queued.clock.forward(seconds=5)
    assert queued.claim()[0].attempts == 2


def test_an_operator_gives_a_failed_job_fresh_attempts(queued: SmallNode) -> None:
    row, token = queued.claim()
    queued.finish(row, token, state=JobState.FAILED, outcome=jobs.NOT_ANALYSED)
    with queued.database.write() as session:
        jobs.requeue(session, session.get_one(Job, 1), at=queued.clock(), actor="operator")
    again = job(queued)
    assert (again.state, again.attempts, again.outcome, again.finished_at) == (JobState.QUEUED, 0, None, None)
    assert queued.claim()[0].attempts == 1


def test_a_result_cannot_be_requeued(queued: SmallNode) -> None:
    queued.finish(*queued.claim())
    with pytest.raises(StaleStateError), queued.database.write() as session:
        jobs.requeue(session, session.get_one(Job, 1), at=START, actor="operator")


def test_the_end_of_a_job_writes_the_outbox(queued: SmallNode) -> None:
    row, token = queued.claim()
    queued.finish(
        row, token, queued.result(row), destinations=[("pacs", ("seg", "sr")), ("archive", ("sr",))]
    )
    ended = job(queued)
    assert (ended.state, ended.outcome, ended.lease_token) == (JobState.SUCCEEDED, jobs.ANALYSED, None)
    assert ended.finished_at == queued.clock.now
    rows = [(d.destination, d.artifact.kind, d.state) for d in queued.all_deliveries()]
    pending = DeliveryState.PENDING
    assert rows == [("pacs", "seg", pending), ("pacs", "sr", pending), ("archive", "sr", pending)]
    with queued.database.read() as session:
        events = session.execute(select(AuditEvent)).scalars().all()
        written = {row.sop_instance_uid: row.sha256 for row in session.execute(select(Artifact)).scalars()}
    promised = {e.objects["sop_instance_uid"]: e.objects["sha256"] for e in events if "sha256" in e.objects}
    assert promised == written


def test_the_end_of_a_job_is_one_transaction(queued: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    row, token = queued.claim()
    real = jobs.add_delivery
    calls: list[int] = []

    def second_fails(*args: Any, **values: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the power went")
        real(*args, **values)

    monkeypatch.setattr(jobs, "add_delivery", second_fails)
    with pytest.raises(OSError, match="power"):
        queued.finish(row, token, queued.result(row))
    assert job(queued).state is JobState.RUNNING
    with queued.database.read() as session:
        assert session.execute(select(Artifact)).all() == []
        assert session.execute(select(Delivery)).all() == []


@pytest.mark.parametrize("closed_again", [False, True])
def test_late_slices_cancel_a_running_job_without_a_trace_of_its_result(
    node: SmallNode,
    closed_again: bool,
) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()
    row, token = node.claim()
    node.receive(late)
    if closed_again:
        node.clock.forward(seconds=11)
        node.intake.close_series()
    state, _ = node.states()[row.series.series_uid]
    assert state is (SeriesState.COMPLETE if closed_again else SeriesState.RECEIVING)
    node.finish(row, token, node.result(row))
    assert (job(node).state, job(node).outcome) == (JobState.CANCELLED, None)
    with node.database.read() as session:
        assert session.execute(select(Artifact)).all() == []
    node.settle()
    assert [(j.state, j.id) for j in node.all_jobs()] == [(JobState.CANCELLED, 1), (JobState.QUEUED, 2)]


def test_the_same_result_twice_is_delivered_once(queued: SmallNode) -> None:
    """A job that an operator queues again may well end the same way."""
    row, token = queued.claim()
    failure = queued.result(row, ["sr"])
    page = jobs.NewArtifact(kind="html", path="results/00000001/report.html", sha256="1")
    queued.finish(row, token, [*failure, page], state=JobState.FAILED)
    with queued.database.write() as session:
        jobs.requeue(session, session.get_one(Job, 1), at=queued.clock(), actor="operator")
    row, token = queued.claim()
    queued.finish(row, token, [*failure, replace(page, sha256="2")], state=JobState.FAILED)
    assert len(queued.all_deliveries()) == 1
    with queued.database.read() as session:
        rows = session.execute(select(Artifact).order_by(Artifact.id)).scalars().all()
    assert [(a.kind, a.sha256) for a in rows] == [("sr", failure[0].sha256), ("html", "2")]


def test_other_bytes_under_a_uid_are_refused(queued: SmallNode) -> None:
    row, token = queued.claim()
    artifacts = queued.result(row)
    queued.finish(row, token, artifacts, state=JobState.FAILED)
    with queued.database.write() as session:
        jobs.requeue(session, session.get_one(Job, 1), at=queued.clock(), actor="operator")
    row, token = queued.claim()
    with pytest.raises(AnalysisFailedError, match="other bytes"):
        queued.finish(row, token, [replace(artifacts[0], sha256="other")])
    assert job(queued).state is JobState.RUNNING
    with queued.database.read() as session:
        assert {a.sha256 for a in session.execute(select(Artifact)).scalars()} == {
            a.sha256 for a in artifacts
        }


def test_leases_of_a_killed_serve_are_taken_back_at_once(
    queued: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue(queued, "second")
    queued.claim()
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    queued.claim()
    with queued.database.write() as session:
        leases.give_up_leases_of_serve(session)
    assert queued.reclaim() == 1
    assert [row.state for row in queued.all_jobs()] == [JobState.RUNNING, JobState.QUEUED]
