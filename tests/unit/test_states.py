"""The state tables: complete, connected, and with the ends that the design names."""

from __future__ import annotations

from enum import StrEnum

import pytest

from pacs_node.states import (
    DELIVERY_CHANGES,
    JOB_CHANGES,
    SERIES_CHANGES,
    DeliveryState,
    JobState,
    SeriesState,
)

TABLES = [
    (SeriesState, SERIES_CHANGES, SeriesState.RECEIVING),
    (JobState, JOB_CHANGES, JobState.QUEUED),
    (DeliveryState, DELIVERY_CHANGES, DeliveryState.PENDING),
]


@pytest.mark.parametrize(("states", "changes", "first"), TABLES)
def test_every_state_can_be_reached_and_none_changes_into_itself(
    states: type[StrEnum], changes: frozenset[tuple[StrEnum, StrEnum]], first: StrEnum
) -> None:
    reached, grown = {first}, True
    while grown:
        more = reached | {new for old, new in changes if old in reached}
        reached, grown = more, more != reached
    assert reached == set(states)
    assert all(isinstance(state, states) for pair in changes for state in pair)
    assert all(old is not new for old, new in changes)


def test_a_result_is_final() -> None:
    assert not [pair for pair in JOB_CHANGES if pair[0] is JobState.SUCCEEDED]


def test_only_a_running_job_succeeds_or_fails() -> None:
    ends = {JobState.SUCCEEDED, JobState.FAILED}
    assert {old for old, new in JOB_CHANGES if new in ends} == {JobState.RUNNING}


def test_only_what_was_sent_is_committed() -> None:
    committed = DeliveryState.COMMITTED
    assert {old for old, new in DELIVERY_CHANGES if new is committed} == {DeliveryState.SENT}


def test_a_late_instance_opens_every_closed_series() -> None:
    opened = {old for old, new in SERIES_CHANGES if new is SeriesState.RECEIVING}
    assert opened == set(SeriesState) - {SeriesState.RECEIVING}
