"""A disk that failed: nothing is acknowledged any more, and what it kept is held against its SHA-256."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import threading
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from pacs_node import audit, listener
from pacs_node.config import ListenerSettings, Settings
from pacs_node.damage import ended_badly, give_up_damaged
from pacs_node.db import AuditEvent, Database
from pacs_node.errors import DiskFailedError
from pacs_node.listener import Listener
from pacs_node.reception import Reception
from pacs_node.row_errors import is_disk_failure
from pacs_node.spool import DAMAGED, Spool
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.recovered import recover_store
from tests.small_node import START, SmallNode, TestClock
from tests.unit.test_listener import CALLERS, eventually, instances, store


def settings_() -> ListenerSettings:
    return ListenerSettings(port=find_free_port())


def sqlite_error(name: str) -> OperationalError:
    cause = sqlite3.OperationalError("disk I/O error")
    cause.sqlite_errorname = name
    return OperationalError("COMMIT", {}, cause)


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (OSError(errno.EIO, "I/O error"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EDQUOT, "quota"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (sqlite_error("SQLITE_IOERR_FSYNC"), True),
        (sqlite_error("SQLITE_FULL"), False),
        (sqlite_error("SQLITE_BUSY"), False),
        (ValueError("x"), False),
    ],
)
def test_only_an_error_that_loses_data_is_a_failure(error: Exception, failed: bool) -> None:
    assert is_disk_failure(error) is failed


def begun(database: Database, *events: audit.Event) -> None:
    with database.write() as session:
        for number, event in enumerate(events):
            audit.record(session, event, at=START + timedelta(minutes=number), actor="listener")


def test_an_end_that_was_none_is_seen(database: Database) -> None:
    started, stopped = audit.Event.NODE_STARTED, audit.Event.NODE_STOPPED
    assert ended_badly(database) is None
    begun(database, started)
    assert ended_badly(database) is None
    begun(database, stopped, started)
    assert ended_badly(database) is None
    begun(database, started)
    assert ended_badly(database) == START + timedelta(minutes=1)


def test_damaged_images_are_given_up_and_come_again(node: SmallNode) -> None:
    slices = make_ct_series(3, matrix=8)
    node.receive(*slices)
    first, second, third = instances(node.database)
    for row, damage in ((first, b"\0"), (second, None)):
        assert row.path is not None
        path = node.spool.absolute(row.path)
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + damage + b"x")
    assert give_up_damaged(node.database, node.spool, START, node.clock) == 2
    assert [row.path for row in instances(node.database)] == [None, None, third.path]
    (aside,) = (node.spool.directory / DAMAGED).iterdir()
    assert aside.read_bytes().endswith(b"\0x")
    with node.database.read() as session:
        events = (
            session.execute(select(AuditEvent).where(AuditEvent.event == "images removed")).scalars().all()
        )
    assert [event.objects["sop_instance_uid"] for event in events] == [
        first.sop_instance_uid,
        second.sop_instance_uid,
    ]
    assert give_up_damaged(node.database, node.spool, START, node.clock) == 0
    assert node.receive(*slices) == [Reception.DUPLICATE] * 3
    assert all(row.path is not None for row in instances(node.database))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE, errno.EIO])
def test_what_cannot_be_read_for_a_moment_is_whole(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Another digest of all bytes is damage, nothing else is."""
    node.receive(*make_ct_series(3, matrix=8))
    waits: list[float] = []
    refuse_to_open(monkeypatch, number, times=4)
    assert give_up_damaged(node.database, node.spool, START, node.clock, waits.append) == 0
    assert len(waits) == 2
    assert all(row.path is not None for row in instances(node.database))
    assert len(list(node.spool.stored())) == 3
    assert unchecked(node.database) == []


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, number: int, times: float) -> None:
    real = os.open
    refused: list[Any] = []

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(".dcm") and len(refused) < times:
            refused.append(path)
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


def unchecked(database: Database) -> list[str]:
    with database.read() as session:
        events = session.execute(select(AuditEvent).where(AuditEvent.event == "image not checked")).scalars()
        return [str(event.objects["sop_instance_uid"]) for event in events]


def test_what_cannot_be_read_at_all_stays_and_is_recorded(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.receive(*make_ct_series(2, matrix=8))
    refuse_to_open(monkeypatch, errno.EIO, times=math.inf)
    assert give_up_damaged(node.database, node.spool, START, node.clock, lambda _seconds: None) == 0
    found = instances(node.database)
    assert all(row.path is not None and node.spool.absolute(row.path).exists() for row in found)
    assert unchecked(node.database) == [row.sop_instance_uid for row in found]


def test_a_kill_between_row_and_file_is_made_good_by_the_next_start(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.receive(*make_ct_series(1, matrix=8))
    (row,) = instances(node.database)
    path = node.spool.absolute(str(row.path))
    damaged = path.read_bytes()[:-1] + b"x"
    path.write_bytes(damaged)
    monkeypatch.setattr(Spool, "set_aside", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        give_up_damaged(node.database, node.spool, START, node.clock)
    monkeypatch.undo()
    assert instances(node.database)[0].path is None
    recover_store(node.database, node.spool, node.clock)
    assert list(node.spool.stored()) == []
    (aside,) = (node.spool.directory / DAMAGED).iterdir()
    assert (aside.stem.partition(".")[0], aside.read_bytes()) == (path.stem, damaged)


def test_bytes_that_come_again_meanwhile_are_not_set_aside(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender is faster than the second look."""
    slices = make_ct_series(1, matrix=8)
    node.receive(*slices)
    (row,) = instances(node.database)
    path = node.spool.absolute(str(row.path))
    path.write_bytes(b"damaged")
    real = Spool.find
    looks: list[Any] = []

    def look(spool: Spool, *args: Any) -> Any:
        found = real(spool, *args)
        looks.append(found)
        if len(looks) == 1:
            node.receive(*slices)
        return found

    monkeypatch.setattr(Spool, "find", look)
    assert give_up_damaged(node.database, node.spool, START, node.clock) == 0
    assert (looks[0], looks[1] is not None) == (None, True)
    assert instances(node.database)[0].path == row.path
    assert path.exists()


def test_what_came_long_before_is_not_read_again(node: SmallNode) -> None:
    node.receive(*make_ct_series(1, matrix=8))
    node.clock.forward(hours=1)
    node.receive(*make_ct_series(1, matrix=8, seed="later"))
    old, _ = instances(node.database)
    assert old.path is not None
    node.spool.absolute(old.path).write_bytes(b"")
    assert give_up_damaged(node.database, node.spool, START, node.clock) == 0


def test_after_a_failed_sync_nothing_is_acknowledged(
    database: Database, spool: Spool, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, a system that has lost data says that all is well."""
    running = Listener(settings_(), CALLERS, database, spool, clock)
    port = running.start()
    first, second, third = make_ct_series(3, matrix=8)
    assert store(port, first) == [0]
    running.flush()
    real = os.fsync

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fsync", fail)
    assert store(port, second) == [0x0110]
    monkeypatch.setattr(os, "fsync", real)
    assert running.failed.is_set()
    assert store(port, second, third) == [0x0110, 0x0110]
    running.stop()
    assert [row.sop_instance_uid for row in instances(database)] == [first.SOPInstanceUID]
    assert len(list(spool.stored())) == 1


def test_the_process_ends_with_its_listener(
    database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor starts it again."""
    settings = Settings.model_validate(
        {"storage": {"directory": str(spool.directory)}, "listener": {"port": settings_().port}}
    )
    real = Listener.start

    def fails(self: Listener) -> int:
        port = real(self)
        self.failed.set()
        return port

    monkeypatch.setattr(Listener, "start", fails)
    with pytest.raises(DiskFailedError):
        listener.run(settings, threading.Event())
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert all(timer.finished.is_set() for timer in timers), "the last resort would still end this process"


def test_the_next_start_verifies(database: Database, spool: Spool, clock: TestClock) -> None:
    running = Listener(settings_(), CALLERS, database, spool, clock)
    begun(database, audit.Event.NODE_STARTED)
    assert store(running.start(), *make_ct_series(2, matrix=8)) == [0, 0]
    running.flush()
    running.stop()
    (one, _other) = instances(database)
    assert one.path is not None
    spool.absolute(one.path).write_bytes(b"damaged")
    begun(database, audit.Event.NODE_STARTED)
    again = Listener(settings_(), CALLERS, database, spool, clock)
    again.start()
    eventually(lambda: sum(row.path is None for row in instances(database)) == 1)
    again.stop()
