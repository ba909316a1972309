"""A clock that jumps forward removes nothing before somebody, or a time server, says that it is right."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from pacs_node import clock_guard
from pacs_node.alarms import further
from pacs_node.clock_guard import ClockGuard
from pacs_node.config import RetentionSettings, Settings
from pacs_node.db import AuditEvent, Database, Delivery, Errand
from pacs_node.notify_messages import message_of, topic_of
from pacs_node.retention import Retention
from pacs_node.retention_cli import retention_command
from pacs_node.states import DeliveryState
from tests.small_node import SmallNode


def retention(node: SmallNode, *, synchronised: bool | None = False) -> Retention:
    days = RetentionSettings(images_days=30)
    return Retention(node.database, node.spool, days, node.clock, synchronised=lambda: synchronised)


@pytest.fixture
def watched(node: SmallNode) -> SmallNode:
    """A node that looked at its clock, with a study that was analysed, delivered and verified."""
    node.queue()
    job, token = node.claim()
    node.finish(job, token, node.result(job))
    with node.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.COMMITTED))
    assert retention(node).purge() == 0
    return node


def events(node: SmallNode) -> list[AuditEvent]:
    with node.database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event.like("clock%"))).scalars().all()
        return sorted(rows, key=lambda row: row.seq)


@pytest.mark.parametrize("synchronised", [False, None])
def test_a_clock_that_jumped_removes_nothing_until_it_is_right_again(
    watched: SmallNode, synchronised: bool | None
) -> None:
    watched.clock.set(days=400)
    for _ in range(50):
        assert retention(watched, synchronised=synchronised).purge() == 0
        watched.clock.forward(hours=1)
    assert [row.event for row in events(watched)] == ["clock doubted"], "said once"
    watched.clock.set(days=-400)
    watched.clock.forward(days=-1.5)
    assert retention(watched, synchronised=synchronised).purge() == 0
    assert [row.event for row in events(watched)] == ["clock doubted", "clock trusted"]
    for _ in range(16):
        watched.clock.forward(days=2)
        removed = retention(watched, synchronised=synchronised).purge()
    assert removed == 0
    assert not list((watched.spool.directory / "instances").rglob("*.dcm")), "in their time"


def test_a_node_that_was_off_goes_on_with_a_time_server(watched: SmallNode) -> None:
    watched.clock.forward(days=400)
    assert retention(watched).purge() == 0
    assert retention(watched, synchronised=True).purge() == 1
    assert [row.event for row in events(watched)] == ["clock doubted", "clock trusted"]


def test_somebody_is_told(watched: SmallNode) -> None:
    watched.clock.forward(days=3)
    retention(watched).purge()
    (row,) = events(watched)
    topic = topic_of(row)
    assert topic is not None
    sentence = message_of(row, topic, "node", "").body
    assert "The clock went from 2026-03-01 12:" in sentence
    with watched.database.read() as session:
        assert str(further(session, Settings(), watched.clock()).jump).startswith("from 2026-03-01 12:")


def test_an_operator_says_that_it_is_right(
    watched: SmallNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.toml").write_text(f'[storage]\ndirectory = "{watched.spool.directory}"\n')
    now = datetime.now(UTC)
    watched.clock.now = now
    assert retention(watched).purge() == 0

    def typed(*words: str) -> tuple[int, str]:
        answer = CliRunner().invoke(retention_command, ["--config", str(tmp_path / "node.toml"), *words])
        return answer.exit_code, answer.output

    code, said = typed()
    assert code == 3
    assert "nothing is removed" in said
    assert typed("--clock-is-right", " ")[0] == 2
    assert typed("--clock-is-right", "was off for repair")[0] == 0
    assert typed("--clock-is-right", "again")[0] == 1, "nothing to release"
    last = events(watched)[-1]
    assert (last.event, last.objects["reason"]) == ("clock trusted", "was off for repair")
    assert last.actor.startswith("cli:")
    assert retention(watched).purge() == 1


def test_the_first_look_doubts_nothing(database: Database) -> None:
    assert ClockGuard(database, synchronised=lambda: False).trusts()
    with database.read() as session:
        assert session.get(Errand, clock_guard._MARK) is not None
