"""The supervisor: parts come back when they die, and never outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import select

from pacs_node import leases, serve
from pacs_node.config import Settings, StorageSettings, load_settings
from pacs_node.db import AuditEvent, Database
from pacs_node.errors import ConfigurationError
from pacs_node.serve import Supervisor
from pacs_node.states import JobState
from pacs_node.storage import only_one, open_database
from tests.small_node import SmallNode

SCRIPT = """
import sys
from pathlib import Path
from pacs_node import serve
from pacs_node.config import load_settings

if __name__ == "__main__":
    serve.PARTS = {"listener": "pacs_node.listener", "delivery": "pacs_node.delivery"}
    serve.serve(load_settings(Path(sys.argv[1])))
"""


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def started(database: Database, part: str, event: str = "node started") -> list[int]:
    """Process ids of a part, in the order of their starts."""
    wanted = select(AuditEvent).where(AuditEvent.event == event, AuditEvent.actor == part)
    with database.read() as session:
        return [row.objects["pid"] for row in session.execute(wanted.order_by(AuditEvent.seq)).scalars()]


class Running:
    """A supervisor in a process of its own."""

    def __init__(self, directory: Path, port: int) -> None:
        config = directory / "pacs-node.toml"
        config.write_text(f"[listener]\nport = {port}\n", encoding="utf-8")
        script = directory / "serve.py"
        script.write_text(SCRIPT, encoding="utf-8")
        self.port = port
        self.database = open_database(load_settings(config))
        self._command = [sys.executable, str(script), str(config)]
        self._log = (directory / "serve.log").open("wb")
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        self.process = subprocess.Popen(self._command, stderr=self._log)
        eventually(lambda: listening(self.port))
        return self.process

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for part in ("listener", "delivery"):
            for pid in started(self.database, part):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._log.close()
        self.database.dispose()


@pytest.fixture
def running(tmp_path: Path, free_port: int) -> Iterator[Running]:
    made = Running(tmp_path, free_port)
    yield made
    made.close()


def test_parts_come_back_and_never_outlive_the_supervisor(running: Running) -> None:
    eventually(lambda: len(started(running.database, "delivery")) == 1)
    (first,) = started(running.database, "listener")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: len(started(running.database, "listener")) == 2)
    eventually(lambda: listening(running.port))
    assert len(started(running.database, "delivery")) == 1

    parts = [started(running.database, part)[-1] for part in ("listener", "delivery")]
    assert all(alive(pid) for pid in parts)
    running.process.kill()
    running.process.wait()
    eventually(lambda: not any(alive(pid) for pid in parts), seconds=5)

    running.start()
    eventually(lambda: len(started(running.database, "delivery")) == 2)
    running.process.terminate()
    assert running.process.wait(timeout=20) == 0
    for part in ("listener", "delivery"):
        assert started(running.database, part, "node stopped") == started(running.database, part)[-1:]
    assert not listening(running.port)


def test_only_one_serves_a_storage(tmp_path: Path) -> None:
    settings = Settings(storage=StorageSettings(directory=str(tmp_path / "x")))
    refused = pytest.raises(ConfigurationError, match="another pacs-node serve")
    with only_one(settings), refused, only_one(settings):
        pass
    with only_one(settings):
        pass


class FakeProcess:
    exitcode = -9
    alive = False

    def is_alive(self) -> bool:
        return self.alive


def test_a_part_that_keeps_dying_is_started_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("pacs_node.serve.time.monotonic", lambda: now[0])
    supervisor = Supervisor(Settings())
    starts: list[float] = []

    def start(_name: str) -> Any:
        starts.append(now[0])
        return FakeProcess()

    monkeypatch.setattr(supervisor, "_start", start)
    part = serve._Part("listener", start("listener"), 0.0)
    while now[0] < 200:
        supervisor._look_after(part)
        now[0] += 0.5
    waits = [later - earlier for earlier, later in pairwise(starts)]
    assert waits[0] <= 3
    assert waits == sorted(waits)
    assert 30 <= waits[-1] <= 31


def test_a_part_that_ran_long_is_started_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("pacs_node.serve.time.monotonic", lambda: now[0])
    supervisor = Supervisor(Settings())
    process: Any = FakeProcess()
    part = serve._Part("listener", process, started=0.0, wait_seconds=30.0)
    supervisor._look_after(part)
    assert part.restart_at == 1001.0


def test_the_leases_of_the_serve_before_are_free_at_once(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.queue()
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    node.claim()
    with node.database.write() as session:
        leases.give_up_leases_of_serve(session)
    assert node.reclaim() == 1
    assert node.all_jobs()[0].state is JobState.QUEUED


def test_run_part_stops_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(storage=StorageSettings(directory=str(tmp_path)))
    seen: list[Settings] = []

    class Part:
        @staticmethod
        def run(given: Settings, stop: Event) -> None:
            seen.append(given)
            assert stop.is_set()

    monkeypatch.setitem(sys.modules, "fake_part", Part)
    monkeypatch.setitem(serve.PARTS, "listener", "fake_part")
    monkeypatch.setattr(signal, "signal", lambda *_args: None)
    stop = Event()
    stop.set()
    serve.run_part("listener", settings, stop)
    assert seen == [settings]
    database = open_database(settings)
    assert started(database, "listener") == started(database, "listener", "node stopped") == [os.getpid()]
    database.dispose()
