"""How destinations and callers stand, and what an operator does with a destination."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from pacs_node import breaker
from pacs_node.breaker import FAILURES, Position, Waits
from pacs_node.config import DicomWebDestination, Settings, parse_settings
from pacs_node.db import AuditEvent, Breaker, Database, Delivery
from pacs_node.destination_actions import configured, send_failed, try_now
from pacs_node.operator_actions import (
    BadReasonError,
    NothingToDoError,
    UnknownDestinationError,
    Word,
)
from pacs_node.partners import (
    CallerState,
    DestinationState,
    caller_states,
    destination_address,
    destination_states,
)
from pacs_node.states import DeliveryState
from tests.node_story import Story, analysed
from tests.web_browser import make_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


def ask(story: Story, settings: Settings) -> DestinationState:
    with story.database.read() as session:
        (state,) = destination_states(session, settings, story.now)
    return state


def test_a_destination_without_history(story: Story, settings: Settings) -> None:
    state = ask(story, settings)
    assert (state.name, state.address, state.profile, state.encrypted) == (
        "pacs",
        "A at h:104",
        "standard",
        False,
    )
    assert (state.position, state.away, state.oldest) == (Position.CLOSED, None, None)
    assert (state.last_success, state.last_error, state.unsent) == (None, None, 0)
    assert (state.traffic.delivered, state.traffic.failed, state.traffic.to_verified) == (0, 0, None)


def test_the_outbox_and_the_last_day(database: Database, tmp_path: Path, settings: Settings) -> None:
    old = analysed(Story(database, tmp_path, name="old")).deliver(DeliveryState.COMMITTED)
    story = analysed(Story(database, tmp_path, name="b", now=old.now + timedelta(days=3)))
    made = story.now
    story.deliver(DeliveryState.COMMITTED)
    proved = story.now
    analysed(Story(database, tmp_path, name="c", now=story.now)).deliver(
        DeliveryState.FAILED, status="A900: refused"
    )
    waiting = analysed(Story(database, tmp_path, name="d", now=story.now)).deliver(
        DeliveryState.PENDING, status="connection refused"
    )
    story.now = waiting.now
    state = ask(story, settings)
    assert state.waiting[DeliveryState.FAILED] == 2
    assert (state.unsent, state.waiting[DeliveryState.SENT]) == (2, 0)
    assert (state.traffic.delivered, state.traffic.failed) == (2, 2)
    assert state.traffic.to_verified == proved - made
    assert state.last_success is not None
    assert made < state.last_success < proved
    assert state.last_error == ("connection refused", waiting.now + timedelta(seconds=30))


def open_breaker(story: Story) -> None:
    with story.database.write() as session:
        for _ in range(FAILURES):
            breaker.note_silence(
                session, "pacs", "connection refused", Waits(600, 3600), at=story.now, actor="delivery"
            )


def test_try_again_now(story: Story, settings: Settings) -> None:
    analysed(story).deliver(DeliveryState.PENDING, status="connection refused")
    open_breaker(story)
    before = ask(story, settings)
    assert before.position is Position.OPEN
    assert before.away is not None
    assert before.away.reason == "connection refused"
    with story.database.write() as session:
        try_now(session, "pacs", Word("user:o", "10.0.0.1", "", story.now))
    assert ask(story, settings).position is Position.HALF_OPEN
    with story.database.read() as session:
        assert {row.next_attempt_at for row in session.execute(select(Delivery)).scalars()} == {story.now}
        row = session.execute(select(AuditEvent).order_by(AuditEvent.seq.desc()).limit(1)).scalar_one()
    assert (row.event, row.actor, row.study_uid) == ("operator action", "user:o", None)
    assert row.objects == {"action": "try again", "destination": "pacs", "address": "10.0.0.1"}


def test_what_failed_is_sent_again(story: Story, settings: Settings) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900: refused")
    word = Word("user:o", "10.0.0.1", "cause is gone", story.now)
    with pytest.raises(BadReasonError), story.database.write() as session:
        send_failed(session, "pacs", Word("user:o", "", "", story.now))
    with pytest.raises(NothingToDoError), story.database.write() as session:
        send_failed(session, "pacs", word, "another cause")
    with story.database.write() as session:
        assert send_failed(session, "pacs", word, "A900: refused") == 2
    state = ask(story, settings)
    assert (state.unsent, state.waiting[DeliveryState.FAILED]) == (2, 0)
    with pytest.raises(NothingToDoError), story.database.write() as session:
        send_failed(session, "pacs", word)
    with story.database.read() as session:
        told = (
            session.execute(select(AuditEvent).where(AuditEvent.event == "operator action")).scalars().all()
        )
    assert [row.objects for row in told] == [
        {
            "action": "send failed",
            "destination": "pacs",
            "address": "10.0.0.1",
            "reason": "cause is gone",
            "count": 2,
        }
    ]


def test_unknown_destination(settings: Settings) -> None:
    assert configured(settings.destinations, "pacs").name == "pacs"
    with pytest.raises(UnknownDestinationError):
        configured(settings.destinations, "nowhere")


def test_no_password_in_an_address() -> None:
    item = DicomWebDestination(kind="dicomweb", name="w", url="https://u:secret@pacs.example:8042/dicom-web")
    assert destination_address(item) == "https://pacs.example:8042/dicom-web"


def test_callers_and_when_they_sent_last(story: Story, tmp_path: Path) -> None:
    callers = [
        {"ae_title": "PACS", "address": "127.0.0.0/8"},
        {"ae_title": "PACS", "address": "10.0.0.0/8"},
        {"ae_title": "CT2", "address": "127.0.0.1"},
    ]
    settings = parse_settings({"callers": callers}, base=tmp_path)
    story.receive(1)
    story.wait(100)
    last = story.now
    story.receive(1, first=1)
    with story.database.read() as session:
        states = caller_states(session, settings.callers)
    assert states == (
        CallerState(settings.callers[0], last),
        CallerState(settings.callers[1], None),
        CallerState(settings.callers[2], None),
    )


def test_a_breaker_that_was_never_open(story: Story, settings: Settings) -> None:
    with story.database.write() as session:
        session.add(Breaker(destination="pacs", failures=1, since=story.now, reason="once"))
    state = ask(story, settings)
    assert (state.position, state.away) == (Position.CLOSED, None)
