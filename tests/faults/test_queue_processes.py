"""Many processes at one queue: nobody is told "busy", no job has two owners, who stood still is too late."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.exc import DBAPIError

from inference import geometry
from pacs_node import audit, audit_chain, jobs, leases
from pacs_node.clock import utc_now
from pacs_node.config import RetentionSettings
from pacs_node.db import AuditEvent, Database, Job, Series, sqlite_url
from pacs_node.errors import StaleStateError
from pacs_node.leases import LeaseWatch
from pacs_node.retention import Retention
from pacs_node.spool import Spool
from pacs_node.states import JobState
from tests.faults.invariants import Seen, violations
from tests.faults.receiver import LONG, make_storage
from tests.postgresql import Server, postgresql
from tests.small_node import SMALL_LIMITS, SmallNode, TestClock, chest

logger = logging.getLogger(__name__)

#: on a disk each commit waits for its syncs; PACS_NODE_QUEUE_DIR names a folder of another one
MEMORY = os.environ.get("PACS_NODE_QUEUE_DIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
PROCESSES = 8
CLAIMS = 500 if LONG else 8
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def node() -> Iterator[SmallNode]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        directory = make_storage(Path(place) / "storage")
        database = Database(sqlite_url(directory))
        yield SmallNode(database, Spool(directory, 1), TestClock())
        database.dispose()


def _add_jobs(database: Database, count: int) -> None:
    now = utc_now()
    with database.write() as session:
        series = session.scalars(select(Series.id)).first()
        rows = [
            {
                "series_id": series,
                "kind": jobs.ANALYSIS,
                "input_digest": f"{number}",
                "pipeline_version": "x",
                "state": JobState.QUEUED,
                "attempts": 0,
                "created_at": now,
                "not_before": now,
            }
            for number in range(count)
        ]
        session.execute(insert(Job), rows)


def _claim_many(url: str) -> list[tuple[int, float]]:
    """Claim until there is nothing left; job and seconds of each."""
    database = Database(url)
    claimed: list[tuple[int, float]] = []
    while True:
        start = time.perf_counter()
        with database.write() as session:
            found = jobs.claim(session, at=utc_now(), actor="test")
        if found is None:
            database.dispose()
            return claimed
        claimed.append((found[0].id, time.perf_counter() - start))


def _report(name: str, took: Sequence[float]) -> float:
    p99 = statistics.quantiles(took, n=100)[98] * 1000
    middle = statistics.median(took) * 1000
    logger.info("%s: %d claims, median %.1f ms, p99 %.1f ms", name, len(took), middle, p99)
    return p99


def test_eight_processes_claim_each_job_once_and_none_is_busy(node: SmallNode) -> None:
    """A deferred transaction would fail with "database is locked" for most of them."""
    _claim_all(node, "SQLite")


@pytest.mark.peer("initdb", "pg_ctl")
def test_postgresql_gives_each_job_once_and_loses_nothing_when_it_is_killed() -> None:
    with postgresql(MEMORY) as server, tempfile.TemporaryDirectory(dir=MEMORY) as place:
        database = Database(server.database())
        _claim_all(SmallNode(database, Spool(Path(place), 1), TestClock()), "PostgreSQL")
        _kill_under_load(server, database)
        database.dispose()


def _kill_under_load(server: Server, database: Database) -> None:
    """``pg_ctl stop -m immediate`` while rows are written: what was committed is there, and work goes on."""
    before = _events(database)
    stop, done, failures = threading.Event(), list[int](), list[float]()

    def write() -> None:
        while not stop.is_set():
            try:
                with database.write() as session:
                    audit.record(session, audit.Event.NODE_STARTED, at=utc_now(), actor="test", pid=len(done))
                done.append(len(done))
            except DBAPIError:
                failures.append(time.monotonic())
                stop.wait(0.02)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 60
        while len(done) < count and time.monotonic() < deadline:
            stop.wait(0.01)
        assert len(done) >= count

    wait_for(20)
    server.stop("immediate")
    killed, kept = time.monotonic(), len(done)
    server.start()
    wait_for(kept + 20)
    logger.info("PostgreSQL killed: written again after %.1f s", time.monotonic() - killed)
    stop.set()
    writer.join()
    assert failures, "the writer must have noticed"
    # one more at most: committed, but the answer was lost
    assert 0 <= _events(database) - before - len(done) <= 1
    with database.read() as session:
        assert audit_chain.first_bad_row(session) is None


def _events(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(AuditEvent)) or 0


def _claim_all(node: SmallNode, name: str) -> None:
    node.queue()
    _add_jobs(node.database, PROCESSES * CLAIMS - 1)
    url = node.database.engine.url.render_as_string(hide_password=False)
    node.database.engine.dispose()
    with ProcessPoolExecutor(PROCESSES, mp_context=FORK) as pool:
        answers = list(pool.map(_claim_many, [url] * PROCESSES))
    claimed = [job for answer in answers for job, _ in answer]
    assert sorted(claimed) == list(range(1, PROCESSES * CLAIMS + 1))
    _report(name, [seconds for answer in answers for _, seconds in answer])
    with node.database.read() as session:
        assert audit_chain.first_bad_row(session) is None
        events = session.scalars(select(AuditEvent).where(AuditEvent.event == "job")).all()
        assert len(events) == PROCESSES * CLAIMS


def _hold(url: str, token: str, talk: Connection) -> None:
    """Keep a lease alive, stand still when told to, then try to end the job."""
    database = Database(url)
    with leases.heartbeat(database, Job, [1], token, utc_now) as lost:
        talk.send(os.getpid())
        talk.recv()
        was_told = lost.wait(10)
    try:
        with database.write() as session:
            jobs.finish(
                session,
                session.get_one(Job, 1),
                token,
                at=utc_now(),
                actor="stale",
                state=JobState.SUCCEEDED,
                outcome=jobs.ANALYSED,
                artifacts=[],
                destinations=[],
            )
    except StaleStateError:
        talk.send(("refused", was_told))
    else:
        talk.send(("wrote", was_told))


def _stop_between_writes(database: Database, pid: int) -> None:
    """SIGSTOP while we hold the write lock: SQLite can't take it from a process that stands still with it."""
    with database.write():
        os.kill(pid, signal.SIGSTOP)
        while Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)


def test_a_worker_that_stood_still_is_told_and_can_write_nothing(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT; the long form takes the real times."""
    if not LONG:
        monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)
        monkeypatch.setattr(leases, "LEASE", leases.LEASE / 30)
    node.queue()
    _, token = node.claim()
    node.database.engine.dispose()
    ours, its = FORK.Pipe()
    worker = FORK.Process(target=_hold, args=(str(node.database.engine.url), token, its))
    worker.start()
    pid = ours.recv()
    watch = LeaseWatch(Job)
    lease = leases.LEASE.total_seconds()

    def reclaim_for(seconds: float) -> int:
        count, until = 0, time.monotonic() + seconds
        while time.monotonic() < until and not count:
            with node.database.write() as session:
                count = jobs.reclaim(session, watch, at=utc_now(), actor="schedule")
            time.sleep(lease / 20)
        return count

    try:
        assert reclaim_for(1.5 * lease) == 0
        _stop_between_writes(node.database, pid)
        assert reclaim_for(2 * lease) == 1
        _, held = node.claim()
    finally:
        os.kill(pid, signal.SIGCONT)
    ours.send("go on")
    assert ours.recv() == ("refused", True)
    worker.join()
    (job,) = node.all_jobs()
    assert (job.state, job.lease_token) == (JobState.RUNNING, held)


def _tick(directory: Path, barrier: Barrier) -> None:
    """Everything that a scheduler does, at the same moment as the other one."""
    database = Database(sqlite_url(directory))
    clock = TestClock()
    clock.forward(seconds=120)
    node = SmallNode(database, Spool(directory, 1), clock)
    days = RetentionSettings(images_days=1e-6)
    for _ in range(3):
        barrier.wait(30)
        node.intake.tick()
        Retention(database, node.spool, days, clock).purge()
    database.dispose()


def test_two_schedulers_do_everything_once(node: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_LIMITS.items():
        monkeypatch.setattr(geometry, name, value)
    for seed in "abc":
        node.receive(*chest(seed=seed))
    node.database.engine.dispose()
    barrier = FORK.Barrier(2)
    both = [FORK.Process(target=_tick, args=(node.spool.directory, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(node.all_jobs()) == 3
    with node.database.read() as session:
        events = Counter(
            (row.study_uid, row.event, row.objects.get("state"))
            for row in session.scalars(select(AuditEvent))
        )
    assert set(events.values()) == {1}
    assert violations(node.database, node.spool.directory, Seen(orphan_s=0)) == []
