"""Random histories of one node: slices, silence, failures, crashes and peers that come and go.

Whatever happens, what is said stays true (the invariants), and in the end every study has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydicom import Dataset
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from inference import geometry
from inference.uids import derived_uid
from pacs_node import jobs, operator_actions
from pacs_node.config import DeliverySettings, RetentionSettings
from pacs_node.damage import give_up_damaged
from pacs_node.db import Artifact, Database, Delivery, Instance, Job, Study, sqlite_url
from pacs_node.delivery import resend_study
from pacs_node.destinations import FakeDestination, OutcomeKind
from pacs_node.errors import AnalysisFailedError, StaleStateError
from pacs_node.operator_actions import ActionError, Word
from pacs_node.outbox import Outbox
from pacs_node.reception import Reception
from pacs_node.request import CaseOutcome, CaseRequest
from pacs_node.retention import Retention
from pacs_node.spool import Spool
from pacs_node.states import CancelCause, DeliveryState, JobState, SeriesState
from pacs_node.worker import _ImagesGoneError, _RetryLaterError
from tests.faults.invariants import Seen, violations
from tests.faults.receiver import LONG
from tests.postgresql import Server, postgresql
from tests.small_node import START, SmallNode, TestClock, chest, encoded
from tests.unit.test_worker import fail, make_worker, run, unsuitable

SERIES, SLICES = 2, 5
LIMITS = {"MIN_SLICES": 4, "MIN_EXTENT_MM": 8.0, "FEW_SLICES": 2}
STUDY, NUMBER = st.sampled_from([0, 0, 0, 1]), st.integers(0, SERIES - 1)
INDEX = st.integers(0, SLICES - 1)
ANALYSIS = st.sampled_from(["run", "run", "fail", "unsuitable"])
ANSWERS = [OutcomeKind.TRANSIENT, OutcomeKind.PERMANENT, 0x0111, 0xB000, 0xA700]
#: a disk would only take time: what survives a power cut is proved elsewhere
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
HISTORIES = int(os.environ.get("PACS_NODE_HISTORIES", "200" if LONG else "5"))
ENDED = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


@cache
def series(study: int, number: int) -> list[Dataset]:
    """Series 0 is the thinner one; the last slice of each is a late one that still fits."""
    return chest(
        SLICES,
        seed=f"{study}.{number}",
        study_uid=derived_uid("machine", str(study)),
        spacing_mm=2.0 + number,
    )


@cache
def changed(study: int, number: int) -> Dataset:
    (ds,) = chest(
        1,
        seed=f"{study}.{number}",
        study_uid=derived_uid("machine", str(study)),
        spacing_mm=2.0 + number,
        patient_id="SOMEBODY-ELSE",
    )
    return ds


@cache
def empty_database() -> bytes:
    directory = Path(tempfile.mkdtemp())
    database = Database(sqlite_url(directory))
    database.upgrade()
    database.dispose()
    content = (directory / "node.db").read_bytes()
    shutil.rmtree(directory)
    return content


class Node(RuleBasedStateMachine):
    """One node and one peer."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _descriptor: None)
        for name, value in LIMITS.items():
            self.patch.setattr(geometry, name, value)
        self.patch.setattr("pacs_node.worker.run_case", self.run_case)
        # a damaged image is noticed however old it is
        self.patch.setattr("pacs_node.damage.WINDOW", timedelta(days=3650))
        self.directory = Path(tempfile.mkdtemp(dir=MEMORY))
        self.database = self.open_database()
        self.clock = TestClock()
        self.node = SmallNode(self.database, Spool(self.directory, 1), self.clock)
        self.peer = FakeDestination()
        self.box = self.outbox()
        self.acknowledged: set[tuple[str, str]] = set()
        self.forgotten: set[str] = set()
        self.steps = 0
        self.analysis = "run"
        self.meanwhile: Dataset | None = None
        self.closed = False
        self.begun: list[tuple[int, str, CaseRequest]] = []
        self.a_series_arrives_and_is_closed(0, 1, 0)

    def open_database(self) -> Database:
        (self.directory / "node.db").write_bytes(empty_database())
        database = Database(sqlite_url(self.directory))
        event.listen(database.engine, "connect", _without_sync)
        return database

    def run_case(self, request: CaseRequest) -> CaseOutcome:
        if self.meanwhile is not None:
            self.receive(self.meanwhile)
            self.meanwhile = None
            if self.closed:
                self.clock.forward(seconds=11)
                self.node.intake.close_series()
        analyses: dict[str, Callable[[CaseRequest], CaseOutcome]] = {
            "run": run,
            "fail": fail,
            "unsuitable": unsuitable,
        }
        return analyses[self.analysis](request)

    def outbox(self) -> Outbox:
        limits = DeliverySettings(retry_first_seconds=10, retry_longest_seconds=60, give_up_hours=1)
        return Outbox(self.database, self.directory, self.peer, limits, self.clock, ticks=self.clock.ticks)

    def receive(self, *slices: Dataset) -> None:
        """What the listener does; it says success for all that it doesn't refuse."""
        outcomes = self.node.receive(*slices)
        for ds, outcome in zip(slices, outcomes, strict=True):
            if outcome is not Reception.ELSEWHERE:
                data, _ = encoded(ds)
                self.acknowledged.add((str(ds.SOPInstanceUID), hashlib.sha256(data).hexdigest()))

    # --- what the world does

    @rule(study=STUDY, number=NUMBER, cut=st.integers(0, 1))
    def a_series_arrives_and_is_closed(self, study: int, number: int, cut: int) -> None:
        self.receive(*series(study, number)[: SLICES - cut])
        self.time_passes_and_intake_ticks(11)

    @rule(study=STUDY, number=NUMBER, index=INDEX, conflict=st.booleans())
    def a_slice_arrives(
        self,
        study: int,
        number: int,
        index: int,
        conflict: bool,
    ) -> None:
        self.receive(changed(study, number) if conflict else series(study, number)[index])

    @rule(seconds=st.sampled_from([0, 11, 61]))
    def time_passes_and_intake_ticks(self, seconds: int) -> None:
        self.clock.forward(seconds=seconds)
        self.node.intake.tick()

    @rule(
        answers=st.booleans(),
        forgets=st.booleans(),
        script=st.lists(st.sampled_from(ANSWERS), max_size=3),
    )
    def the_peer_changes(
        self,
        answers: bool,
        forgets: bool,
        script: list[OutcomeKind | int],
    ) -> None:
        self.peer.answers, self.peer._script = answers, script
        if forgets:
            self.forgotten |= set(self.peer.stored)
            self.peer.stored.clear()

    @rule(hours=st.sampled_from([-1, 1]))
    def the_clock_is_set(self, hours: int) -> None:
        self.clock.set(hours=hours)

    # --- what the node does

    @rule()
    def intake_is_restarted(self) -> None:
        self.node.restart_intake()

    @rule()
    def the_outbox_is_restarted(self) -> None:
        self.box = self.outbox()

    @rule(seconds=st.sampled_from([0, 31]))
    def leases_are_taken_back(self, seconds: int) -> None:
        self.clock.forward(seconds=seconds)
        self.node.reclaim()

    @rule(analysis=ANALYSIS)
    def a_worker_works(self, analysis: str) -> None:
        self.analysis = analysis
        make_worker(self.node).tick()
        self.clock.forward(seconds=6)

    @rule(
        study=STUDY, number=NUMBER, index=st.integers(0, SLICES - 1), analysis=ANALYSIS, closed=st.booleans()
    )
    def a_slice_arrives_during_the_analysis(
        self,
        study: int,
        number: int,
        index: int,
        analysis: str,
        closed: bool,
    ) -> None:
        self.meanwhile, self.closed = series(study, number)[index], closed
        self.a_worker_works(analysis)
        self.meanwhile = None

    @rule()
    def a_worker_begins(self) -> None:
        """It may end much later, or never: then it was killed."""
        worker = make_worker(self.node)
        claimed = worker._claim()
        if claimed is not None:
            job_id, token = claimed
            try:
                self.begun.append((job_id, token, worker._request(job_id)))
            except _ImagesGoneError:
                worker._judge_again(job_id, token)

    @precondition(lambda self: self.begun)
    @rule(analysis=st.sampled_from(["run", "unsuitable"]))
    def a_worker_ends(self, analysis: str) -> None:
        self.analysis = analysis
        """Only whoever holds the lease now may end the job."""
        worker, (job_id, token, request) = make_worker(self.node), self.begun.pop(0)
        try:
            result = worker._analyse(request, job_id, Event())
        except (_RetryLaterError, AnalysisFailedError):
            # its images were removed: another one had ended the job long ago
            return
        with self.database.read() as session:
            holder = session.get_one(Job, job_id).lease_token
        try:
            worker._finish(job_id, token, *result)
        except StaleStateError:
            return
        assert token == holder, "a stale worker ended a job"

    @rule(times=st.integers(1, 5), seconds=st.sampled_from([0, 61]))
    def the_outbox_works(self, times: int, seconds: int) -> None:
        self.clock.forward(seconds=seconds)
        for _ in range(times):
            self.box.tick()

    @rule()
    def the_outbox_is_killed_before_it_notes_the_answer(self) -> None:
        batch = self.box._claim(self.clock())
        if batch is not None:
            self.peer.send([self.box._path(row.artifact) for row in batch[0]])

    @rule(study=STUDY, number=NUMBER, index=INDEX)
    def the_disk_has_other_bytes(self, study: int, number: int, index: int) -> None:
        uid = str(series(study, number)[index].SOPInstanceUID)
        with self.database.read() as session:
            query = select(Instance.path).where(Instance.sop_instance_uid == uid)
            path = session.scalars(query).one_or_none()
        if path is not None:
            (self.directory / path).unlink()
            # however old, also where the clock was set back
            give_up_damaged(self.database, self.node.spool, START - timedelta(days=365), self.clock)

    @rule()
    def old_files_are_removed(self) -> None:
        self.clock.forward(days=1)
        keep = RetentionSettings(images_days=0.5, results_days=2)
        Retention(self.database, self.node.spool, keep, self.clock, synchronised=lambda: True).purge()

    # --- what the operator does

    @rule(study=STUDY)
    def the_operator_requeues(self, study: int) -> None:
        self.operator_does(operator_actions.requeue, study)

    @rule(study=STUDY)
    def the_operator_holds(self, study: int) -> None:
        self.operator_does(operator_actions.hold, study)

    def operator_does(self, action: Callable[[Session, str, Word], int], study: int) -> None:
        word = Word("operator", "", "asked first", self.clock())
        with contextlib.suppress(ActionError), self.database.write() as session:
            action(session, derived_uid("machine", str(study)), word)

    def what_is_held_waits(self, study: int) -> bool:
        """A worker finds nothing of it, and its images stay, however late it is."""
        with self.database.read() as session:
            query = select(Study).where(Study.study_uid == derived_uid("machine", str(study)))
            row = session.scalars(query).one_or_none()
            if row is None or row.held_reason is None:
                return False
            before = [instance.path for series in row.series for instance in series.instances]
        self.clock.forward(days=10)
        self.node.intake.tick()
        self.old_files_are_removed()
        with self.database.read() as session:
            row = session.scalars(query).one()
            assert [item.path for series in row.series for item in series.instances] == before
            ids = [series.id for series in row.series]
            states = session.scalars(select(Job.state).where(Job.series_id.in_(ids))).all()
            assert not {JobState.QUEUED, JobState.RUNNING} & set(states)
        return True

    @precondition(lambda self: self.no_delivery_is_being_sent())
    @rule(study=STUDY)
    def the_operator_sends_again(self, study: int) -> None:
        with self.database.write() as session:
            uid = derived_uid("machine", str(study))
            resend_study(session, uid, [("fake", ("seg", "sr"))], at=self.clock(), actor="operator")

    def no_delivery_is_being_sent(self) -> bool:
        with self.database.read() as session:
            sending = select(Delivery.id).where(Delivery.state == DeliveryState.SENDING)
            return session.execute(sending).first() is None

    # --- what is always true

    @invariant()
    def nothing_is_violated(self) -> None:
        """See `tests.faults.invariants`; leases are judged by time that passed, so not here."""
        self.steps += 1
        if self.steps % 4 == 0 or LONG:
            self.nothing_is_violated_now()

    def nothing_is_violated_now(self) -> None:
        # what it forgot it had: that counts as sent rightly
        objects: dict[str, str | None] = dict.fromkeys(self.forgotten)
        objects |= {uid: hashlib.sha256(content).hexdigest() for uid, content in self.peer.stored.items()}
        seen = Seen(self.acknowledged, arrived={"fake": objects}, orphan_s=0)
        assert violations(self.database, self.directory, seen) == []

    @invariant()
    def one_content_has_one_result(self) -> None:
        with self.database.read() as session:
            for job in session.execute(select(Job)).scalars():
                kinds = [artifact.kind for artifact in job.artifacts]
                assert kinds.count("seg") <= 1
                if job.outcome == jobs.ANALYSED:
                    assert kinds[-2:] == ["seg", "sr"]
                if job.state is JobState.CANCELLED and job.kind == jobs.REFUSAL:
                    assert kinds == []

    @invariant()
    def no_study_is_lost(self) -> None:
        """What is queued has a job for exactly this content; what is refused has an answer."""
        with self.database.read() as session:
            for study in session.execute(select(Study)).scalars():
                states = {row.state for row in study.series}
                if states & {SeriesState.RECEIVING, SeriesState.COMPLETE}:
                    continue
                ids = [row.id for row in study.series]
                rows = session.execute(select(Job).where(Job.series_id.in_(ids))).scalars().all()
                held = CancelCause.HELD
                living = [
                    job
                    for job in rows
                    if job.state is not JobState.CANCELLED or job.cancelled_because is held
                ]
                assert living, "no answer"
                for row in study.series:
                    if row.state is SeriesState.QUEUED:
                        digest = jobs.input_digest(row)
                        assert [j for j in living if j.series_id == row.id and j.input_digest == digest]
                unfinished = [job for job in living if job.state not in ENDED]
                contents = {(job.series_id, job.kind) for job in unfinished}
                assert len(contents) == len(unfinished)

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        try:
            self.everything_ends()
        finally:
            self.end()

    def end(self) -> None:
        self.patch.undo()
        self.database.dispose()
        shutil.rmtree(self.directory)

    def everything_ends(self) -> None:
        self.peer.answers, self.analysis, self.peer._script = True, "run", []
        worker, box = make_worker(self.node), self.box
        for number in (0, 1):
            if self.what_is_held_waits(number):
                self.operator_does(operator_actions.requeue, number)
        for _ in range(12):
            self.clock.forward(seconds=61)
            self.node.intake.tick()
            self.leases_are_taken_back(0)
            while worker.tick():
                self.clock.forward(seconds=6)
            while box.tick():
                pass
        self.no_study_is_lost()
        self.nothing_is_violated_now()
        self.one_content_has_one_result()
        with self.database.read() as session:
            for study in session.execute(select(Study)).scalars():
                for row in study.series:
                    assert row.state in {SeriesState.QUEUED, SeriesState.INELIGIBLE}
                    assert row.state is SeriesState.QUEUED or row.reason_code
                reports = (
                    select(Artifact.id)
                    .join(Job, Artifact.job_id == Job.id)
                    .where(Job.series_id.in_([row.id for row in study.series]), Artifact.kind == "sr")
                )
                assert session.execute(reports).first() is not None
            for job in session.execute(select(Job)).scalars():
                assert job.state in ENDED
            for delivery in session.execute(select(Delivery)).scalars():
                assert delivery.state in {DeliveryState.COMMITTED, DeliveryState.FAILED}


def _without_sync(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")


class PostgresqlNode(Node):
    """The same node with its rows in PostgreSQL."""

    server: ClassVar[Server]

    def open_database(self) -> Database:
        return Database(self.server.database())


def short_or_long(examples: int, steps: int, phases: Sequence[Phase] = tuple(Phase)) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        phases=phases,
        # the controls must be caught every time
        derandomize=Phase.shrink not in phases,
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
    )


def test_any_history(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    run_state_machine_as_test(Node, settings=short_or_long(HISTORIES, 40 if LONG else 25))


@pytest.mark.peer("initdb", "pg_ctl")
def test_any_history_on_postgresql(caplog: pytest.LogCaptureFixture) -> None:
    """The same promises, from the same machine."""
    caplog.set_level(logging.CRITICAL)
    with postgresql(MEMORY) as server:
        PostgresqlNode.server = server
        examples = HISTORIES if LONG else 1
        run_state_machine_as_test(PostgresqlNode, settings=short_or_long(examples, 40 if LONG else 20))
