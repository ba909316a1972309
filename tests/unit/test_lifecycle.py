"""Every change of state: the legal ones happen with their event, the illegal ones don't, leases fence."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from itertools import product
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from pacs_node import lifecycle
from pacs_node.db import Artifact, AuditEvent, Database, Delivery, Job, Series, Study
from pacs_node.errors import StaleStateError
from pacs_node.states import (
    DELIVERY_CHANGES,
    JOB_CHANGES,
    SERIES_CHANGES,
    DeliveryState,
    JobState,
    SeriesState,
)
from tests.small_node import START

Row = Series | Job | Delivery
Move = Callable[..., None]

MACHINES: list[tuple[type[Row], Move, type[StrEnum], frozenset[tuple[Any, Any]]]] = [
    (Series, lifecycle.move_series, SeriesState, SERIES_CHANGES),
    (Job, lifecycle.move_job, JobState, JOB_CHANGES),
    (Delivery, lifecycle.move_delivery, DeliveryState, DELIVERY_CHANGES),
]
PAIRS = [
    pytest.param(table, move, old, new, (old, new) in changes, id=f"{table.__name__}-{old}-{new}")
    for table, move, states, changes in MACHINES
    for old, new in product(states, states)
]


@pytest.fixture
def rows(database: Database) -> Database:
    """A database with one row of each kind."""
    with database.write() as session:
        study = Study(
            study_uid="1.1",
            patient_id="",
            patient_name="",
            accession_number="",
            study_date="",
            description="",
            first_received_at=START,
        )
        series = Series(
            study=study,
            series_uid="1.2",
            modality="CT",
            description="",
            calling_ae="PACS",
            last_received_at=START,
            state=SeriesState.RECEIVING,
        )
        job = Job(
            series=series,
            kind="analysis",
            input_digest="d",
            pipeline_version="v",
            state=JobState.QUEUED,
            created_at=START,
            not_before=START,
        )
        artifact = Artifact(job=job, kind="sr", path="x", sha256="y", sop_instance_uid="1.3")
        delivery = Delivery(
            artifact=artifact,
            destination="pacs",
            state=DeliveryState.PENDING,
            created_at=START,
            next_attempt_at=START,
        )
        session.add(delivery)
    return database


def events(session: Session) -> int:
    return session.execute(select(func.count()).select_from(AuditEvent)).scalar_one()


def state_of(session: Session, table: type[Row]) -> object:
    row: Any = session.get_one(table, 1)
    return row.state


def put(database: Database, table: type[Row], **values: Any) -> None:
    with database.write() as session:
        session.execute(update(table).values(**values))


@pytest.mark.parametrize(("table", "move", "old", "new", "legal"), PAIRS)
def test_every_pair(
    rows: Database,
    table: type[Row],
    move: Move,
    old: Any,
    new: Any,
    legal: bool,
) -> None:
    put(rows, table, state=old)
    try:
        with rows.write() as session:
            move(session, session.get_one(table, 1), new, at=START, actor="test")
        happened = True
    except StaleStateError:
        happened = False
    with rows.read() as session:
        assert happened is legal
        assert state_of(session, table) is (new if legal else old)
        assert events(session) == int(legal)


@pytest.mark.parametrize(("table", "move", "states", "changes"), MACHINES)
def test_a_change_that_another_made_first_is_seen(
    rows: Database,
    table: type[Row],
    move: Move,
    states: type[StrEnum],
    changes: frozenset[tuple[Any, Any]],
) -> None:
    old, new = next(iter(changes))
    put(rows, table, state=old)
    with rows.read() as session:
        seen = session.get_one(table, 1)
    other = next(state for state in states if state not in {old, new})
    put(rows, table, state=other)
    with pytest.raises(StaleStateError, match="somebody else"), rows.write() as session:
        move(session, session.merge(seen, load=False), new, at=START, actor="test")
    with rows.read() as session:
        assert state_of(session, table) is other
        assert events(session) == 0


@pytest.mark.parametrize(
    ("table", "move", "old", "new"),
    [
        (Job, lifecycle.move_job, JobState.RUNNING, JobState.SUCCEEDED),
        (Delivery, lifecycle.move_delivery, DeliveryState.SENDING, DeliveryState.SENT),
    ],
)
@pytest.mark.parametrize(("held", "allowed"), [("mine", True), ("another", False), (None, False)])
def test_the_lease_fences(
    rows: Database,
    table: type[Row],
    move: Move,
    old: Any,
    new: Any,
    held: str | None,
    allowed: bool,
) -> None:
    put(rows, table, state=old, lease_token=held)
    try:
        with rows.write() as session:
            move(session, session.get_one(table, 1), new, at=START, actor="test", token="mine")
    except StaleStateError:
        assert not allowed
    with rows.read() as session:
        assert state_of(session, table) is (new if allowed else old)
        assert events(session) == int(allowed)


def test_further_columns_are_set_with_the_state(rows: Database) -> None:
    with rows.write() as session:
        series = session.get_one(Series, 1)
        series.n_instances = 7
        lifecycle.move_series(
            session, series, SeriesState.COMPLETE, at=START, actor="intake", closed_by="settled"
        )
        assert (series.state, series.closed_by, series.n_instances) == (SeriesState.COMPLETE, "settled", 7)
    with rows.read() as session:
        event = session.execute(select(AuditEvent)).scalar_one()
    assert event.study_uid == "1.1"
    assert event.objects == {
        "series_uid": "1.2",
        "state": "complete",
        "n_instances": 7,
        "closed_by": "settled",
    }


@pytest.mark.parametrize(
    ("table", "move", "old", "new", "outcome"),
    [
        (Job, lifecycle.move_job, JobState.RUNNING, JobState.FAILED, 8),
        (Job, lifecycle.move_job, JobState.RUNNING, JobState.SUCCEEDED, 0),
        (Delivery, lifecycle.move_delivery, DeliveryState.SENDING, DeliveryState.FAILED, 8),
        (Delivery, lifecycle.move_delivery, DeliveryState.SENT, DeliveryState.COMMITTED, 0),
    ],
)
def test_failures_stand_out_in_the_record(
    rows: Database, table: type[Row], move: Move, old: Any, new: Any, outcome: int
) -> None:
    put(rows, table, state=old)
    with rows.write() as session:
        move(session, session.get_one(table, 1), new, at=START, actor="test")
    with rows.read() as session:
        assert session.execute(select(AuditEvent.outcome)).scalar_one() == outcome


def test_states_in_the_database_are_the_names(rows: Database) -> None:
    with rows.read() as session:
        for table, name in (("series", "receiving"), ("job", "queued"), ("delivery", "pending")):
            assert session.execute(text(f"SELECT state FROM {table}")).scalar_one() == name
