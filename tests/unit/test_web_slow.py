"""Peers that begin requests and never end them, at the page's real port."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.web import app as web_app
from pacs_node.web import deadlines
from tests.web_browser import make_settings

PEERS = int(os.environ.get("PACS_NODE_SLOW_PEERS", "240"))
ROUNDS = int(os.environ.get("PACS_NODE_SLOW_ROUNDS", "1"))

BEGUN = (
    b"",
    b"GET /login HT",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y\r\n",
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n\r\ncsrf=",
    b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET / HTTP/1.1\r\n",
)


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[int]:
    stop = Event()
    thread = Thread(target=web_app.run, args=(settings, stop))
    thread.start()
    port = settings.web.port
    for _ in range(1000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.01)
    try:
        yield port
    finally:
        stop.set()
        thread.join()


def ask(port: int) -> tuple[int, float]:
    """Status and time of a request of somebody else."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := peer.recv(4096):
            answer += piece
    return int(answer.split(b" ", 2)[1]), time.monotonic() - begun


def attack(port: int, stack: contextlib.ExitStack, open_peers: list[socket.socket]) -> None:
    for number in range(PEERS):
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        peer.sendall(BEGUN[number % len(BEGUN)])
        open_peers.append(peer)


def test_slow_peers_keep_nobody_out(
    database: Database, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "REQUEST_SECONDS", 1.0 if ROUNDS == 1 else 10.0)
    settings = make_settings(
        tmp_path, web={"port": free_port}, storage={"directory": str(tmp_path / "storage"), "reserve_mb": 1}
    )
    with served(settings) as port, contextlib.ExitStack() as stack:
        times = []
        for _ in range(ROUNDS):
            peers: list[socket.socket] = []
            attack(port, stack, peers)
            for _ in range(5):
                status, took = ask(port)
                assert status == 200
                times.append(took)
            assert len(deadlines.Deadlines.waiting) <= deadlines.MOST_OF_ADDRESS
        print_figures(times)
        for peer in peers:
            ended(peer)
        assert not deadlines.Deadlines.waiting
        assert ask(port)[0] == 200


def print_figures(times: list[float]) -> None:
    """The figures of docs/reliability.md, where they are asked for."""
    if ROUNDS > 1:
        times.sort()
        median, slowest = times[len(times) // 2], times[-1]
        figures = f"{len(times)} requests: median {median:.3f} s, slowest {slowest:.3f} s"
        Path(os.environ["PACS_NODE_SLOW_REPORT"]).write_text(f"{PEERS} x {ROUNDS} peers, {figures}\n")


def ended(peer: socket.socket) -> None:
    """Wait until the other side has closed, for as long as the limit takes and some more."""
    peer.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(65536):
            pass


def test_the_proof_would_notice(
    database: Database, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: as uvicorn is by itself, everybody is sent away."""
    monkeypatch.setattr(web_app, "Deadlines", H11Protocol)
    settings = make_settings(
        tmp_path, web={"port": free_port}, storage={"directory": str(tmp_path / "storage"), "reserve_mb": 1}
    )
    with served(settings) as port, contextlib.ExitStack() as stack:
        peers: list[socket.socket] = []
        attack(port, stack, peers)
        assert ask(port)[0] == 503


def test_a_person_is_not_hurried(
    database: Database, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Request after request on one connection, each slowly but in time."""
    monkeypatch.setattr(deadlines, "REQUEST_SECONDS", 5.0)
    settings = make_settings(
        tmp_path, web={"port": free_port}, storage={"directory": str(tmp_path / "storage"), "reserve_mb": 1}
    )
    with served(settings) as port, socket.create_connection(("127.0.0.1", port), 10) as peer:
        for _ in range(3):
            for piece in (b"GET /health/live HTT", b"P/1.1\r\nHost: 127.0.0.1\r\n", b"\r\n"):
                peer.sendall(piece)
                time.sleep(0.02)
            answer = b""
            while b"live" not in answer.partition(b"\r\n\r\n")[2]:
                answer += peer.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
