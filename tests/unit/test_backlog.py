"""Back-pressure: what counts as waiting, when intake pauses, and that it resumes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from pacs_node.backlog import Backlog, Waiting, waiting
from pacs_node.config_listener import BacklogSettings, Caller, ListenerSettings
from pacs_node.db import AuditEvent, Database, Instance
from pacs_node.listener import Listener
from pacs_node.spool import Spool
from tests.conftest import find_free_port
from tests.raw_peer import REJECT, RawPeer, association_request
from tests.small_node import START, SmallNode, TestClock

MIB = 1 << 20
NONE = BacklogSettings(max_jobs=0, max_mb=0, max_hours=0)


def limits(**values: float) -> BacklogSettings:
    return NONE.model_copy(update=values)


def measured(node: SmallNode) -> Waiting:
    with node.database.read() as session:
        return waiting(session)


def after(backlog: Backlog) -> str | None:
    """What it says after a look."""
    backlog.measure()
    return backlog.reason


def events(node: SmallNode) -> list[str]:
    with node.database.read() as session:
        names = session.scalars(select(AuditEvent.event).order_by(AuditEvent.seq))
        return [name for name in names if name.startswith("intake ")]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (NONE, None),
        (limits(max_jobs=8), None),
        (limits(max_jobs=7), "7 jobs"),
        (limits(max_mb=6), None),
        (limits(max_mb=5), "5 MiB"),
        (limits(max_hours=3), None),
        (limits(max_hours=2), "since 2026-03-01 12:00 UTC"),
    ],
)
def test_each_limit(settings: BacklogSettings, reason: str | None) -> None:
    told = Waiting(7, 5 * MIB, START).excess(settings, START + timedelta(hours=2))
    assert (told is None) == (reason is None)
    assert (reason or "") in (told or "")


def test_what_waits_is_what_has_no_result_yet(node: SmallNode) -> None:
    assert measured(node) == Waiting(0, 0, None)
    node.queue("a")
    node.clock.forward(seconds=1)
    node.queue("b")
    with node.database.write() as session:
        session.execute(update(Instance).values(size=MIB))
    assert measured(node) == Waiting(2, 2 * MIB, START)
    job, token = node.claim()
    assert measured(node) == Waiting(2, 2 * MIB, START + timedelta(seconds=1))
    node.finish(job, token)
    assert measured(node) == Waiting(1, MIB, START + timedelta(seconds=1))


def test_intake_pauses_and_resumes_with_some_room(node: SmallNode) -> None:
    backlog = Backlog(node.database, limits(max_jobs=10), node.clock)
    for seed in range(10):
        assert after(backlog) is None
        node.queue(str(seed))
    assert after(backlog) == "10 jobs wait or run; the limit is 10"
    node.finish(*node.claim())
    assert after(backlog) is not None
    node.finish(*node.claim())
    assert after(backlog) is None
    assert events(node) == ["intake paused", "intake resumed"]


def test_a_database_that_is_busy_changes_nothing(node: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.queue()
    backlog = Backlog(node.database, limits(max_jobs=1), node.clock)

    def busy() -> None:
        raise OperationalError("BEGIN", {}, Exception("database is locked"))

    with monkeypatch.context() as patch:
        patch.setattr(node.database, "write", busy)
        assert after(backlog) is None
    assert after(backlog) is not None
    assert events(node) == ["intake paused"]


def test_the_listener_rejects_as_transient_and_takes_again(database: Database, spool: Spool) -> None:
    """PS3.8 table 9-21: result 2, source 3, reason 2: the sender may try again."""
    node = SmallNode(database, spool, TestClock())
    backlog = Backlog(database, limits(max_jobs=1), node.clock)
    settings = ListenerSettings.model_validate({"port": find_free_port()})
    caller = Caller(ae_title="PACS", address="127.0.0.1")
    listener = Listener(settings, [caller], database, spool, node.clock, backlog=backlog)
    port = listener.start()
    try:
        assert rejection(port) is None
        node.queue()
        backlog.measure()
        assert rejection(port) == (2, 3, 2)
        node.finish(*node.claim())
        backlog.measure()
        assert rejection(port) is None
    finally:
        listener.stop()
    assert events(node) == ["intake paused", "intake resumed"]


def rejection(port: int) -> tuple[int, int, int] | None:
    """What an association request of the known caller is answered, None where it is accepted."""
    with RawPeer(port, timeout=30) as peer:
        peer.send(association_request())
        kind, body = peer.read()
        if kind == REJECT:
            return body[1], body[2], body[3]
        peer.release()
    return None
