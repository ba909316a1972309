"""The worker: every job ends in a named state, whatever the analysis does."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from inference.uids import derived_uid
from pacs_node import jobs, leases
from pacs_node.ballast import Ballast
from pacs_node.config import DicomDestination, PipelineSettings, Settings, StorageSettings
from pacs_node.db import Artifact, Job, Series
from pacs_node.engines import InProcessEngine
from pacs_node.request import CaseFile, CaseOutcome, CaseRequest
from pacs_node.states import DeliveryState, JobState, SeriesState
from pacs_node.worker import Worker
from tests.small_node import VERSION, SmallNode, chest, write_object
from tests.unit.test_intake import STUDY, localizer, uid


def run(request: CaseRequest, *, kinds: tuple[str, ...] = ("seg", "sr")) -> CaseOutcome:
    """What `run_case` promises, without looking at a pixel."""
    refusal = request.refusal
    files = []
    for kind in ("sr",) if refusal else kinds:
        salt = refusal.sentence if refusal else ""
        name = derived_uid(request.identity["SeriesInstanceUID"], request.input_digest, kind, salt)
        path = request.out_dir / f"{kind}.dcm"
        study = request.identity["StudyInstanceUID"]
        ds = write_object(path, kind, study_uid=study, sop_instance_uid=name, text=salt or "Synthetic.")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append(CaseFile(kind, path, digest, name, str(ds.SOPClassUID), str(ds.SeriesInstanceUID)))
    if refusal:
        return CaseOutcome(jobs.NOT_ANALYSED, tuple(files), refusal.code.value, refusal.sentence)
    return CaseOutcome(jobs.ANALYSED, tuple(files))


def unsuitable(request: CaseRequest) -> CaseOutcome:
    """The pixels are no chest; a report only where nothing else is left."""
    outcome = run(request, kinds=("sr",))
    if request.refusal:
        return outcome
    files = outcome.files if request.last_resort else ()
    return CaseOutcome(jobs.NOT_ANALYSED, files, "HU_RANGE", "No air.")


@dataclass
class Case:
    """Stands in for `run_case`: remembers requests and answers by script, then as `run`."""

    script: list[Callable[[CaseRequest], CaseOutcome]] = field(default_factory=list)
    requests: list[CaseRequest] = field(default_factory=list)

    def __call__(self, request: CaseRequest) -> CaseOutcome:
        self.requests.append(request)
        return (self.script.pop(0) if self.script else run)(request)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    made = Case()
    monkeypatch.setattr("pacs_node.worker.run_case", made)
    return made


def settings(node: SmallNode, **pipeline: Any) -> Settings:
    pacs = DicomDestination(name="fake", host="127.0.0.1", port=104, ae_title="PACS")
    return Settings(
        storage=StorageSettings(directory=str(node.spool.directory)),
        pipeline=PipelineSettings(engine="in-process", **pipeline),
        destinations=(pacs,),
    )


def make_worker(node: SmallNode, engine: Any = None, **pipeline: Any) -> Worker:
    return Worker(node.database, settings(node, **pipeline), VERSION, engine or InProcessEngine(), node.clock)


def drain(node: SmallNode, worker: Worker) -> None:
    for _ in range(20):
        if not worker.tick():
            return
        node.clock.forward(seconds=5)
    raise AssertionError("never idle")


def fail(_request: CaseRequest) -> CaseOutcome:
    raise ZeroDivisionError("PatientName CANARY")


def summary(node: SmallNode) -> list[tuple[str, JobState, str | None, str | None]]:
    return [(row.kind, row.state, row.outcome, row.reason_code) for row in node.all_jobs()]


def test_nothing_to_do(node: SmallNode, case: Case) -> None:
    assert not make_worker(node).tick()
    assert case.requests == []


def test_a_result_ends_the_job_and_fills_the_outbox(node: SmallNode, case: Case) -> None:
    node.queue()
    drain(node, make_worker(node))
    (job,) = node.all_jobs()
    assert (job.state, job.outcome, job.attempts) == (JobState.SUCCEEDED, jobs.ANALYSED, 1)
    assert node.delivery_states() == {"seg": DeliveryState.PENDING, "sr": DeliveryState.PENDING}
    (request,) = case.requests
    assert [path.exists() for path in request.files] == [True]
    assert (request.refusal, request.last_resort, request.predecessors) == (None, True, ())
    assert request.identity["StudyInstanceUID"] == job.series.study.study_uid
    with node.database.read() as session:
        for row in session.execute(select(Artifact)).scalars():
            content = (node.spool.directory / (row.path or "")).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row.sha256


@pytest.mark.parametrize(("said", "expected"), [("by-header", None), ("screening", True), ("other", False)])
def test_the_site_says_whether_studies_are_screening(
    node: SmallNode, case: Case, said: str, expected: bool | None
) -> None:
    node.queue()
    drain(node, make_worker(node, examinations=said))
    assert [request.screening for request in case.requests] == [expected]


def test_an_error_is_tried_again(node: SmallNode, case: Case) -> None:
    node.queue()
    case.script = [fail, fail]
    worker = make_worker(node)
    assert worker.tick()
    (job,) = node.all_jobs()
    assert (job.state, job.attempts, job.last_error) == (JobState.QUEUED, 1, "ZeroDivisionError")
    assert not worker.tick()
    node.clock.forward(seconds=5)
    drain(node, worker)
    assert [(row.state, row.attempts) for row in node.all_jobs()] == [(JobState.SUCCEEDED, 3)]


def test_the_last_failure_makes_a_report_that_says_so(node: SmallNode, case: Case) -> None:
    node.queue()
    case.script = [fail, fail, fail]
    drain(node, make_worker(node))
    assert summary(node) == [(jobs.ANALYSIS, JobState.FAILED, jobs.NOT_ANALYSED, "SOFTWARE_FAILURE")]
    assert node.delivery_states() == {"sr": DeliveryState.PENDING}
    assert node.all_jobs()[0].reason == "The analysis failed 3 times (ZeroDivisionError)."
    assert len(case.requests) == 4


@pytest.mark.parametrize("error", [TimeoutError, MemoryError, OSError, RecursionError])
def test_whatever_an_analysis_dies_of_is_a_failed_attempt(
    node: SmallNode, case: Case, error: type[Exception]
) -> None:
    """TimeoutError is also what an unfinished future raises: it must not be taken for that."""

    def die(_request: CaseRequest) -> CaseOutcome:
        raise error

    node.queue()
    case.script = [die]
    make_worker(node, timeout_seconds=2).tick()
    (job,) = node.all_jobs()
    assert (job.state, job.last_error) == (JobState.QUEUED, error.__name__)


def test_a_failure_without_a_report_ends_too(node: SmallNode, case: Case) -> None:
    node.queue()
    case.script = [fail] * 20
    drain(node, make_worker(node))
    assert summary(node) == [(jobs.ANALYSIS, JobState.FAILED, None, "SOFTWARE_FAILURE")]
    assert node.all_deliveries() == []


def test_an_analysis_that_kills_its_worker_ends_with_a_report(node: SmallNode, case: Case) -> None:
    """The lease runs out each time; the worker that finds the attempts used up writes the report only."""
    node.queue()
    for _ in range(3):
        node.claim()
        node.lose_leases()
    drain(node, make_worker(node))
    assert summary(node) == [(jobs.ANALYSIS, JobState.FAILED, jobs.NOT_ANALYSED, "SOFTWARE_FAILURE")]
    (request,) = case.requests
    assert request.refusal is not None
    assert node.delivery_states() == {"sr": DeliveryState.PENDING}


def test_a_refusal_is_reported(node: SmallNode, case: Case) -> None:
    node.receive(*localizer())
    node.quiet()
    drain(node, make_worker(node))
    assert summary(node) == [(jobs.REFUSAL, JobState.SUCCEEDED, jobs.NOT_ANALYSED, "LOCALIZER")]
    assert node.delivery_states() == {"sr": DeliveryState.PENDING}
    assert case.requests[0].refusal is not None


def thick_and_thin(node: SmallNode) -> tuple[str, str]:
    thick = chest(seed="thick", study_uid=STUDY)
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    node.receive(*thick, *thin)
    node.settle()
    return uid(thick), uid(thin)


def test_unsuitable_pixels_pass_the_study_on(node: SmallNode, case: Case) -> None:
    thick, thin = thick_and_thin(node)
    case.script = [unsuitable]
    drain(node, make_worker(node))
    assert [(row.series.series_uid, row.state, row.outcome) for row in node.all_jobs()] == [
        (thin, JobState.SUCCEEDED, jobs.NOT_ANALYSED),
        (thick, JobState.SUCCEEDED, jobs.ANALYSED),
    ]
    assert node.states() == {
        thick: (SeriesState.QUEUED, None),
        thin: (SeriesState.INELIGIBLE, "HU_RANGE"),
    }
    assert [request.last_resort for request in case.requests] == [False, True]
    assert [other.code for other in case.requests[1].other_series] == ["HU_RANGE"]
    assert node.delivery_states() == {"seg": DeliveryState.PENDING, "sr": DeliveryState.PENDING}


def test_unsuitable_pixels_of_all_series_end_in_one_report(node: SmallNode, case: Case) -> None:
    thick_and_thin(node)
    case.script = [unsuitable, unsuitable]
    drain(node, make_worker(node))
    assert set(node.states().values()) == {(SeriesState.INELIGIBLE, "HU_RANGE")}
    assert len(node.all_jobs()) == 2
    assert node.delivery_states() == {"sr": DeliveryState.PENDING}


def test_an_alternative_that_went_away_meanwhile_leaves_a_report(node: SmallNode, case: Case) -> None:
    thick_and_thin(node)

    def without_alternative(request: CaseRequest) -> CaseOutcome:
        outcome = unsuitable(request)
        with node.database.write() as session:
            session.execute(update(Series).where(Series.rank == 1).values(rank=None))
        return outcome

    case.script = [without_alternative]
    drain(node, make_worker(node))
    assert [row.kind for row in node.all_jobs()] == [jobs.ANALYSIS, jobs.REFUSAL]
    assert node.delivery_states() == {"sr": DeliveryState.PENDING}


def test_an_alternative_that_came_meanwhile_is_analysed(node: SmallNode, case: Case) -> None:
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    thick = chest(seed="thick", study_uid=STUDY)
    node.receive(*thin)
    node.settle()

    def with_alternative(request: CaseRequest) -> CaseOutcome:
        outcome = unsuitable(request)
        node.receive(*thick)
        node.settle()
        return outcome

    case.script = [with_alternative]
    drain(node, make_worker(node))
    assert node.states()[uid(thick)] == (SeriesState.QUEUED, None)
    assert [row.outcome for row in node.all_jobs()] == [jobs.NOT_ANALYSED, jobs.ANALYSED]
    assert [kind for _, kind, _, _ in case.requests[1].predecessors] != []


def test_late_slices_during_the_analysis_drop_its_result(node: SmallNode, case: Case) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()

    def with_late_slice(request: CaseRequest) -> CaseOutcome:
        node.receive(late)
        return run(request)

    case.script = [with_late_slice]
    worker = make_worker(node)
    worker.tick()
    assert [row.state for row in node.all_jobs()] == [JobState.CANCELLED]
    assert node.all_deliveries() == []
    node.settle()
    drain(node, worker)
    assert [row.state for row in node.all_jobs()] == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert len(node.all_deliveries()) == 2


def test_unsuitable_pixels_do_not_close_a_series_that_has_late_slices(node: SmallNode, case: Case) -> None:
    """The slices came and the series was closed again, but not judged yet: it must stay to be judged."""
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()

    def with_late_slice(request: CaseRequest) -> CaseOutcome:
        node.receive(late)
        node.clock.forward(seconds=11)
        node.intake.close_series()
        return unsuitable(request)

    case.script = [with_late_slice]
    worker = make_worker(node)
    worker.tick()
    assert [state for state, _ in node.states().values()] == [SeriesState.COMPLETE]
    node.intake.tick()
    drain(node, worker)
    assert [row.state for row in node.all_jobs()] == [JobState.CANCELLED, JobState.SUCCEEDED]


def test_a_new_result_names_the_one_that_it_replaces(node: SmallNode, case: Case) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()
    worker = make_worker(node)
    drain(node, worker)
    node.receive(late)
    node.settle()
    drain(node, worker)
    with node.database.read() as session:
        first = session.execute(select(Artifact).where(Artifact.job_id == 1)).scalars().all()
    assert {item.sop_instance_uid for item in case.requests[1].predecessors} == {
        row.sop_instance_uid for row in first
    }


def test_a_requeued_failure_never_touches_the_report_that_went_out(node: SmallNode, case: Case) -> None:
    node.queue()
    case.script = [fail, fail, fail]
    worker = make_worker(node)
    drain(node, worker)
    with node.database.write() as session:
        jobs.requeue(session, session.get_one(Job, 1), at=node.clock(), actor="operator")
    drain(node, worker)
    assert [row.state for row in node.all_jobs()] == [JobState.SUCCEEDED]
    with node.database.read() as session:
        rows = session.execute(select(Artifact)).scalars().all()
    assert len(rows) == 3 == len({row.path for row in rows}) == len({row.sop_instance_uid for row in rows})
    for row in rows:
        content = (node.spool.directory / (row.path or "")).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.sha256


def test_other_bytes_under_a_known_uid_end_the_job_as_failed(node: SmallNode, case: Case) -> None:
    """A fault of ours: it must not go round for ever."""
    node.queue()
    drain(node, make_worker(node))
    with node.database.write() as session:
        session.execute(update(Job).values(state=JobState.FAILED))
        session.execute(update(Artifact).values(sha256="other"))
    with node.database.write() as session:
        jobs.requeue(session, session.get_one(Job, 1), at=node.clock(), actor="operator")
    drain(node, make_worker(node))
    (job,) = node.all_jobs()
    assert job.state is JobState.FAILED


class Hanging:
    """An engine whose calls never end."""

    confined = False

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.kills = 0
        self._meanwhile = meanwhile

    def submit(self, *_args: Any) -> Future[CaseOutcome]:
        self._meanwhile()
        return Future()

    def kill(self) -> None:
        self.kills += 1


def test_an_analysis_that_takes_too_long_is_stopped(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.worker._POLL_SECONDS", 0.01)
    node.queue()
    engine = Hanging()
    make_worker(node, engine, timeout_seconds=0.05).tick()
    (job,) = node.all_jobs()
    assert (job.state, job.attempts, job.last_error) == (JobState.QUEUED, 1, "time limit")
    assert engine.kills == 1


def test_stopping_gives_the_job_back_without_counting_the_attempt(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.worker._POLL_SECONDS", 0.01)
    node.queue()
    stop = threading.Event()
    engine = Hanging(stop.set)
    make_worker(node, engine).run(stop)
    (job,) = node.all_jobs()
    assert (job.state, job.attempts, job.last_error) == (JobState.QUEUED, 0, "the node was stopped")
    assert engine.kills == 2


def test_a_lost_lease_stops_the_analysis_and_drops_it(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.worker._POLL_SECONDS", 0.01)
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.02)
    node.queue()

    def another_takes_over() -> None:
        with node.database.write() as session:
            session.execute(update(Job).values(lease_token="another"))

    engine = Hanging(another_takes_over)
    make_worker(node, engine).tick()
    (job,) = node.all_jobs()
    assert (job.state, job.lease_token, engine.kills) == (JobState.RUNNING, "another", 1)


def test_a_lease_lost_at_the_last_moment_drops_the_result(node: SmallNode, case: Case) -> None:
    node.queue()

    def stale(request: CaseRequest) -> CaseOutcome:
        node.lose_leases()
        return run(request)

    case.script = [stale]
    worker = make_worker(node)
    worker.tick()
    assert [row.state for row in node.all_jobs()] == [JobState.QUEUED]
    assert node.all_deliveries() == []
    drain(node, worker)
    assert len(node.all_deliveries()) == 2


def test_stopping_after_a_lost_lease_is_quiet(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.worker._POLL_SECONDS", 0.01)
    node.queue()
    stop = threading.Event()

    def both() -> None:
        with node.database.write() as session:
            session.execute(update(Job).values(lease_token="another"))
        stop.set()

    make_worker(node, Hanging(both)).run(stop)
    assert node.all_jobs()[0].lease_token == "another"


def test_a_busy_database_does_not_end_the_worker(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.worker._IDLE_SECONDS", 0.01)
    node.queue()
    worker, stop, failures = make_worker(node), threading.Event(), [True]
    real = worker._claim

    def sometimes() -> Any:
        if failures:
            failures.pop()
            raise OperationalError("BEGIN", {}, Exception("database is locked"))
        if case.requests:
            stop.set()
        return real()

    monkeypatch.setattr(worker, "_claim", sometimes)
    worker.run(stop)
    assert [row.state for row in node.all_jobs()] == [JobState.SUCCEEDED]


def no_room(_request: CaseRequest) -> CaseOutcome:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_a_study_no_attempt(node: SmallNode, case: Case) -> None:
    node.queue()
    case.script = [no_room] * 5
    drain(node, make_worker(node))
    assert len(case.requests) == 6
    (job,) = node.all_jobs()
    assert (job.state, job.outcome, job.attempts) == (JobState.SUCCEEDED, jobs.ANALYSED, 1)


def test_what_the_ballast_gave_back_is_for_others(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.queue()
    monkeypatch.setattr(Ballast, "is_given_up", True)
    assert not make_worker(node).tick()
    assert (node.all_jobs()[0].state, case.requests) == (JobState.QUEUED, [])
    monkeypatch.setattr(Ballast, "is_given_up", False)
    drain(node, make_worker(node))
    assert node.all_jobs()[0].outcome == jobs.ANALYSED


def test_a_result_waits_for_the_room_of_its_rows(
    node: SmallNode, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.queue()
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorname = "SQLITE_FULL"
    real, tries = jobs.finish, []

    def sometimes(*args: Any, **values: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("INSERT", {}, full)
        real(*args, **values)

    monkeypatch.setattr(jobs, "finish", sometimes)
    monkeypatch.setattr("pacs_node.worker._IDLE_SECONDS", 0)
    drain(node, make_worker(node))
    assert (len(tries), len(case.requests)) == (3, 1)
    assert node.all_jobs()[0].outcome == jobs.ANALYSED
