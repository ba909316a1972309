"""The proxy that breaks lines must not run out of files itself: a sender's select() ends at 1,024."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tcp_proxy import Fault, Line, Way


@contextmanager
def greeting() -> Iterator[int]:
    """Say a word to whoever connects, and hang up; yields the port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"good day")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    thread.join()
    listening.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_connection_that_is_over_leaves_no_file_open() -> None:
    with greeting() as port, Line(port) as line:
        before = open_files()
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", line.port), timeout=10) as client:
                assert client.recv(4096) == b"good day"
        deadline = time.monotonic() + 10
        while open_files() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert open_files() <= before
        assert line.connections == 50


@pytest.mark.parametrize("way", [Way.SILENCE, Way.HALF_OPEN])
def test_a_line_that_is_cleared_holds_nothing_open_and_is_good_again(way: Way) -> None:
    with greeting() as port, Line(port) as line:
        before = open_files()
        line.give(Fault(way, answers=True), Fault(Way.CUT, answers=True))
        with socket.create_connection(("127.0.0.1", line.port), timeout=10) as client:
            while line.connections < 1:
                time.sleep(0.01)
            line.clear()
            assert client.recv(4096) == b""
        with socket.create_connection(("127.0.0.1", line.port), timeout=10) as client:
            assert client.recv(4096) == b"good day"
        deadline = time.monotonic() + 10
        while open_files() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert open_files() <= before
