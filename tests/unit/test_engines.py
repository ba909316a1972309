"""Engines: a child that dies or hangs costs one call, never the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from pacs_node import engines
from pacs_node.engines import InProcessEngine, ProcessEngine


@pytest.fixture(scope="module")
def engine() -> Iterator[ProcessEngine]:
    made = ProcessEngine()
    yield made
    made.kill()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_in_process_runs_at_once_and_hands_over_errors() -> None:
    engine = InProcessEngine()
    assert engine.submit(divmod, 7, 2).result() == (3, 1)
    with pytest.raises(ZeroDivisionError):
        engine.submit(divmod, 7, 0).result()
    engine.kill()
    assert engine.submit(os.getpid).result() == os.getpid()


def test_the_child_is_another_process_and_lives_on(engine: ProcessEngine) -> None:
    pid = engine.submit(os.getpid).result(timeout=60)
    assert pid != os.getpid()
    assert engine.submit(os.getpid).result(timeout=60) == pid


def test_an_error_of_the_call_comes_back(engine: ProcessEngine) -> None:
    pid = engine.submit(os.getpid).result(timeout=60)
    with pytest.raises(ZeroDivisionError):
        engine.submit(divmod, 1, 0).result(timeout=60)
    assert engine.submit(os.getpid).result(timeout=60) == pid


def test_a_child_that_dies_fails_its_call_and_the_next_one_works(engine: ProcessEngine) -> None:
    with pytest.raises(BrokenProcessPool):
        engine.submit(os.kill, engine.submit(os.getpid).result(timeout=60), signal.SIGSEGV).result(timeout=60)
    assert engine.submit(divmod, 7, 2).result(timeout=60) == (3, 1)


def test_a_child_that_died_between_two_calls_is_replaced(engine: ProcessEngine) -> None:
    pid = engine.submit(os.getpid).result(timeout=60)
    os.kill(pid, signal.SIGKILL)
    assert engine._pool is not None
    deadline = time.monotonic() + 10
    while not engine._pool._broken and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.submit(os.getpid).result(timeout=60) != pid


def test_kill_ends_what_hangs(engine: ProcessEngine) -> None:
    pid = engine.submit(os.getpid).result(timeout=60)
    hanging = engine.submit(time.sleep, 3600)
    start = time.monotonic()
    engine.kill()
    assert time.monotonic() - start < 5
    assert not alive(pid)
    with pytest.raises((BrokenProcessPool, CancelledError)):
        hanging.result(timeout=5)
    assert engine.submit(divmod, 7, 2).result(timeout=60) == (3, 1)


def test_kill_twice_is_fine() -> None:
    engine = ProcessEngine()
    engine.kill()
    engine.kill()


def test_a_child_that_cannot_start_fails_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker must see a failed attempt, not die itself."""
    monkeypatch.setattr(engines, "_prepare_child", os._exit)
    engine = ProcessEngine(threads=3)
    with pytest.raises(BrokenProcessPool):
        engine.submit(os.getpid).result(timeout=60)
    engine.kill()


def hang(*_: object) -> None:
    time.sleep(3600)


def test_a_child_that_hangs_while_it_starts_is_killed_and_fails_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An import over a file system that stands still: nobody may wait for it for ever."""
    monkeypatch.setattr(engines, "_prepare_child", hang)
    engine = ProcessEngine(start_seconds=0.01)
    call = engine.submit(os.getpid)
    with pytest.raises(BrokenProcessPool):
        call.result(timeout=60)
    monkeypatch.undo()
    engine.kill()


def test_a_child_that_is_starting_can_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop, a lost lease and the time limit of the analysis are not held up by the start."""
    monkeypatch.setattr(engines, "_prepare_child", hang)
    engine = ProcessEngine()
    call = engine.submit(os.getpid)
    assert not call.done()
    engine.kill()
    with pytest.raises((BrokenProcessPool, CancelledError)):
        call.result(timeout=60)


PARENT = """
import os, sys, time
from pacs_node.engines import ProcessEngine
if __name__ == "__main__":
    engine = ProcessEngine()
    print(engine.submit(os.getpid).result(), flush=True)
    engine.submit(time.sleep, 3600)
    time.sleep(3600)
"""


def test_the_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


CHATTY = """
import logging, os, sys, warnings
from pacs_node import logs
from pacs_node.engines import ProcessEngine

def chat():
    warnings.warn("Invalid value for VR PN: 'CANARY^PATIENT'")
    logging.getLogger("pydicom").warning("CANARY^PATIENT")
    logging.getLogger("pynetdicom.acse").error("CANARY^PATIENT")
    raise ValueError("CANARY^PATIENT")

if __name__ == "__main__":
    logs.configure()
    engine = ProcessEngine()
    try:
        engine.submit(chat).result()
    except ValueError:
        logging.getLogger("pacs_node.worker").exception("analysis failed")
    engine.shutdown()
"""


def test_the_child_logs_no_patient_data(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(CHATTY, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "analysis failed" in done.stderr
    assert "CANARY" not in done.stderr + done.stdout
