"""Peers that begin requests and never end them, at the page's real port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Semaphore, Thread

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.web import app as web_app
from pacs_node.web import deadlines
from tests.certificates import Certificate, make_certificate
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


def ask(port: int, context: ssl.SSLContext | None = None) -> tuple[int, float]:
    """Status and time of a request of somebody else."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        if context is not None:
            peer = stack.enter_context(context.wrap_socket(peer, server_hostname="127.0.0.1"))
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


LIVE = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
STYLE = LIVE.replace(b"/health/live", b"/static/style.css")
CLOSE = LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"), "page")


def over_tls(tmp_path: Path, port: int, certificate: Certificate) -> tuple[Settings, ssl.SSLContext]:
    files = {"tls_certificate_file": str(certificate.certificate), "tls_key_file": str(certificate.key)}
    storage = {"directory": str(tmp_path / "storage"), "reserve_mb": 1}
    settings = make_settings(tmp_path, web={"port": port, **files}, storage=storage)
    return settings, ssl.create_default_context(cafile=str(certificate.certificate))


def first_flight(context: ssl.SSLContext) -> bytes:
    """What a client says first."""
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1").do_handshake()
    return out.read()


def cut(peers: list[socket.socket], seconds: float) -> int:
    """How many of them the other side has closed within that time; nothing is read."""
    poll = select.poll()
    for peer in peers:
        poll.register(peer, select.POLLRDHUP)
    deadline, gone = time.monotonic() + seconds, 0
    while gone < len(peers) and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(1000 * left):
            poll.unregister(descriptor)
            gone += 1
    return gone


@pytest.mark.peer("openssl")
@pytest.mark.parametrize("limited", [True, False], ids=["limited", "control"])
def test_a_handshake_is_part_of_the_request(
    limited: bool,
    certificate: Certificate,
    database: Database,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Silent, in the middle of it, and after it: the oldest give way, the others have their time."""
    settings, context = over_tls(tmp_path, free_port, certificate)
    if not limited:
        monkeypatch.setattr(deadlines, "MOST_OF_ADDRESS", 1000)
        monkeypatch.setattr(deadlines, "MOST", 1000)
    hello = first_flight(context)
    with served(settings) as port, contextlib.ExitStack() as stack:
        peers = []
        for number in range(2 * deadlines.MOST_OF_ADDRESS if limited else 48):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            peer.sendall((b"", hello[:40], hello, b"no handshake at all" * 9)[number % 4])
            peers.append(peer)
        assert ask(port, context)[0] == 200
        quiet = [peer for number, peer in enumerate(peers) if number % 4 < 3]
        if limited:
            assert len(deadlines.Deadlines.waiting) <= deadlines.MOST_OF_ADDRESS
            assert cut(quiet[:6], 30) == 6
        else:
            assert cut(quiet, 0.2) == 0


@pytest.mark.peer("openssl")
def test_a_handshake_has_the_time_of_a_request(
    certificate: Certificate,
    database: Database,
    tmp_path: Path,
    free_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio by itself waits 60 s for it, and 30 s for the farewell of who has its answer."""
    monkeypatch.setattr(deadlines, "REQUEST_SECONDS", 1.0)
    settings, context = over_tls(tmp_path, free_port, certificate)
    hello = first_flight(context)
    with served(settings) as port, contextlib.ExitStack() as stack:
        peers = []
        for said in (b"", hello[:40], hello):
            peers.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)))
            peers[-1].sendall(said)
        for said in (LIVE[:20], CLOSE):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            peer = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            peer.sendall(said)
            peers.append(peer)
        begun = time.monotonic()
        assert cut(peers, 25) == len(peers)
        assert time.monotonic() - begun < 25
        assert not deadlines.Deadlines.waiting
        assert ask(port, context)[0] == 200


def test_who_takes_no_answer_is_cut(
    database: Database, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks and asks and reads nothing would keep its connection for ever."""
    monkeypatch.setattr(deadlines, "REQUEST_SECONDS", 1.0)
    lost, real = Semaphore(0), H11Protocol.connection_lost

    def note(self: H11Protocol, exc: Exception | None) -> None:
        real(self, exc)
        lost.release()

    storage = {"directory": str(tmp_path / "storage"), "reserve_mb": 1}
    settings = make_settings(tmp_path, web={"port": free_port}, storage=storage)
    with served(settings) as port, contextlib.ExitStack() as stack:
        assert ask(port)[0] == 200
        monkeypatch.setattr(H11Protocol, "connection_lost", note)
        for _ in range(3):
            peer = stack.enter_context(socket.socket())
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            peer.connect(("127.0.0.1", port))
            peer.sendall(60 * STYLE)
        assert all(lost.acquire(timeout=25) for _ in range(3))
        assert ask(port)[0] == 200


class Line(asyncio.Transport):
    """What a peer hasn't taken yet, as the test says it."""

    unsent = 0
    aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


async def no_application(_scope: object, _receive: object, _send: object) -> None:
    raise AssertionError


def test_a_long_answer_may_be_taken_slowly() -> None:
    async def takes(*steps: int) -> list[bool]:
        loop, line = asyncio.get_running_loop(), Line()
        config = uvicorn.Config(no_application, log_config=None)
        connection = deadlines.Deadlines(config, ServerState(), {}, loop)
        connection.connection_made(line)
        line.unsent, seen = 1_000_000, []
        connection.pause_writing()
        for step in steps:
            line.unsent -= step
            connection._late()
            seen.append(line.aborted)
        connection.connection_lost(ConnectionResetError())
        assert connection not in deadlines.Deadlines.waiting
        return seen

    assert asyncio.run(takes(20_000, 900_000, 40_000)) == [False, False, False]
    assert asyncio.run(takes(20_000, 15_000)) == [False, True]
