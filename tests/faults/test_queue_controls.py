"""Broken nodes, each without one thing that makes a promise true: the machine of the queue catches them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node import jobs, lifecycle
from pacs_node.db import Database, Delivery, Job, Series, Study
from pacs_node.destinations import OutcomeKind
from pacs_node.retention import Retention
from pacs_node.states import JobState
from tests.faults.receiver import LONG
from tests.faults.test_queue_machine import Node, short_or_long

logger = logging.getLogger(__name__)


def _without_fencing(patch: pytest.MonkeyPatch) -> None:
    real = lifecycle.move_job

    def move(*args: Any, token: str | None = None, **values: Any) -> None:
        real(*args, **values)

    patch.setattr(lifecycle, "move_job", move)


def _careless_retention(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Retention, "_is_delivered", lambda _self: Delivery.id > 0)


def _credulous_outbox(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OutcomeKind, "stored", property(lambda _self: True))


def _requeue_of_whatever_ended(patch: pytest.MonkeyPatch) -> None:
    def ended(session: Session, study: Study) -> list[Job]:
        rows = select(Job).join(Series, Job.series_id == Series.id).where(Series.study_id == study.id)
        latest = {job.series_id: job for job in session.scalars(rows.order_by(Job.id))}
        return [job for job in latest.values() if job.state in {JobState.FAILED, JobState.CANCELLED}]

    patch.setattr(jobs, "requeueable", ended)


def _a_stale_worker_ends(node: Node) -> None:
    node.a_worker_begins()
    node.leases_are_taken_back(0)
    node.leases_are_taken_back(31)
    node.a_worker_begins()
    node.a_worker_ends("run")


def _old_files_go_before_they_are_sent(node: Node) -> None:
    node.the_peer_changes(False, False, [])
    node.a_worker_works("run")
    for _ in range(3):
        node.old_files_are_removed()


def _the_peer_is_away(node: Node) -> None:
    node.the_peer_changes(False, False, [])
    node.a_worker_works("run")
    node.the_outbox_works(1, 0)


def _a_better_series_is_held_and_released(node: Node) -> None:
    node.a_series_arrives_and_is_closed(0, 0, 0)
    node.the_operator_holds(0)
    node.the_operator_requeues(0)


CONTROLS = [
    (_without_fencing, _a_stale_worker_ends, "a stale worker ended a job"),
    (_careless_retention, _old_files_go_before_they_are_sent, "its object was removed"),
    (_credulous_outbox, _the_peer_is_away, "counts as sent and fake doesn't have it"),
    (_requeue_of_whatever_ended, _a_better_series_is_held_and_released, "queued and not wanted"),
]


@pytest.mark.parametrize(("broken", "history", "noticed"), CONTROLS)
def test_a_broken_node_is_caught(
    broken: Callable[[pytest.MonkeyPatch], None],
    history: Callable[[Node], None],
    noticed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative controls: each lacks one thing that makes a promise true."""
    for is_broken in (False, True):
        node = Node()
        node.begin()
        try:
            with monkeypatch.context() as patch:
                if is_broken:
                    broken(patch)
                    with pytest.raises(AssertionError, match=noticed):
                        _live(node, history)
                else:
                    _live(node, history)
        finally:
            node.end()


def _live(node: Node, history: Callable[[Node], None]) -> None:
    history(node)
    node.nothing_is_violated_now()


@pytest.mark.skipif(not LONG, reason="the long form")
@pytest.mark.parametrize(("broken", "history", "noticed"), CONTROLS)
def test_chance_alone_finds_a_broken_node(
    broken: Callable[[pytest.MonkeyPatch], None],
    history: Callable[[Node], None],
    noticed: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    caplog.set_level(logging.INFO, __name__)
    histories, open_database = 0, Node.open_database

    def counted(node: Node) -> Database:
        nonlocal histories
        histories += 1
        return open_database(node)

    monkeypatch.setattr(Node, "open_database", counted)
    broken(monkeypatch)
    with pytest.raises((AssertionError, ExceptionGroup), match=noticed):
        run_state_machine_as_test(Node, settings=short_or_long(500, 50, [Phase.generate]))
    logger.info("%s: history %d", noticed, histories)
