"""Servers that drip, never end or answer with too much: given up in time, and asked again later."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle, repeat
from pathlib import Path

import pytest
import requests
from pydicom import dcmread

from pacs_node import http_limits
from pacs_node.archive import ArchiveError
from pacs_node.config import DeliverySettings
from pacs_node.destinations import OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.outbox import Outbox
from pacs_node.states import DeliveryState
from tests.small_node import SmallNode
from tests.small_objects import reference, write_sr

LIMIT_S = 0.4
#: that a test would wait for if nothing gave up
FOR_EVER_S = 60.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
DRIP_S = 0.02

Script = Callable[[], Iterator[bytes]]


def drips(data: bytes) -> Iterator[bytes]:
    for byte in data:
        time.sleep(DRIP_S)
        yield bytes([byte])


def headers_without_end() -> Iterator[bytes]:
    return chain([b"HTTP/1.1 200 OK\r\nX-A: "], drips(b"a" * 60_000))


def status_line_that_drips() -> Iterator[bytes]:
    return drips(HEAD * 1000)


def continue_for_ever() -> Iterator[bytes]:
    for piece in repeat(b"HTTP/1.1 100 Continue\r\n\r\n"):
        time.sleep(DRIP_S)
        yield piece


def body_that_drips() -> Iterator[bytes]:
    return chain([HEAD + b"Content-Length: 60000\r\n\r\n"], drips(b" " * 60_000))


def body_without_length_that_drips() -> Iterator[bytes]:
    return chain([HEAD + b"Connection: close\r\n\r\n"], drips(b"[]" + b" " * 60_000))


def chunks_that_drip() -> Iterator[bytes]:
    return chain([HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], drips(b"1\r\n \r\n" * 10_000))


def silence() -> Iterator[bytes]:
    yield HEAD
    time.sleep(1.5 * LIMIT_S)


def body_without_end() -> Iterator[bytes]:
    return chain([HEAD + b"Connection: close\r\n\r\n["], cycle([b" " * 65_536]))


def huge_body() -> Iterator[bytes]:
    size = http_limits.MAX_ANSWER_BYTES + 1
    return chain([HEAD + b"Content-Length: %d\r\n\r\n" % size], repeat(b" " * 65_536, size // 65_536 + 1))


def bomb() -> Iterator[bytes]:
    packed = gzip.compress(b" " * (64 << 20))
    return iter([HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed), packed])


def deep() -> Iterator[bytes]:
    body = b"[" * 1_000_000
    return iter([HEAD + b"Content-Length: %d\r\n\r\n" % len(body), body])


SLOW = [
    status_line_that_drips,
    headers_without_end,
    continue_for_ever,
    body_that_drips,
    body_without_length_that_drips,
    chunks_that_drip,
    silence,
]
LARGE = [body_without_end, huge_body, bomb, deep]


@contextmanager
def server(*scripts: Script) -> Iterator[str]:
    """Answer one request after the other by these; gives the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_answer, args=(listening, scripts), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/dicom-web"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive(), "the client has not let go"


def _answer(listening: socket.socket, scripts: tuple[Script, ...]) -> None:
    for script in scripts:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        # the client cuts it: that is the end of every script
        with connection, suppress(OSError):
            _read_request(connection)
            for piece in script():
                connection.sendall(piece)


def _read_request(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65_536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        ),
        0,
    )
    while len(body) < length:
        body += connection.recv(65_536)


def client(url: str, seconds: float = LIMIT_S) -> DicomWebDestination:
    return DicomWebDestination("web", url, read_timeout=seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_sr(tmp_path / "sr")


@pytest.mark.parametrize("script", SLOW)
def test_an_answer_that_takes_too_long_is_given_up(script: Script, path: Path) -> None:
    with server(script) as url:
        started = time.monotonic()
        (outcome,) = client(url).send([path])
        took = time.monotonic() - started
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert any(words in outcome.detail for words in ("in time", "broke"))
    assert LIMIT_S <= took < FOR_EVER_S


def test_the_timeout_of_requests_alone_gives_nothing_up() -> None:
    """The control: each byte comes in time, the answer does not."""
    short = chain([HEAD + b"Content-Length: 40\r\n\r\n"], drips(b" " * 40))
    with server(lambda: short) as url:
        assert len(requests.get(url, timeout=0.3).content) == 40


@pytest.mark.parametrize("script", LARGE)
def test_an_answer_that_is_too_large_confirms_nothing(script: Script, path: Path) -> None:
    with server(script) as url:
        (outcome,) = client(url, FOR_EVER_S).send([path])
    assert outcome.kind is OutcomeKind.TRANSIENT


@pytest.mark.parametrize("script", [*SLOW, *LARGE])
def test_the_question_whether_an_object_arrived_stays_open(script: Script, path: Path) -> None:
    seconds = LIMIT_S if script in SLOW else FOR_EVER_S
    item = reference(dcmread(path))
    with server(script) as url:
        assert client(url, seconds).verify([item]) == {item.sop_instance_uid: None}
    with server(script) as url, pytest.raises(ArchiveError):
        client(url, seconds).search("studies", filters={}, limit=1)


def test_a_good_answer_is_read_whatever_its_form(path: Path) -> None:
    uid = str(dcmread(path).SOPInstanceUID).encode()
    body = b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["%s"]}}]}}' % uid
    forms = [
        HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        HEAD + b"Connection: close\r\n\r\n" + body,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body,
    ]
    for form in forms:
        with server(lambda form=form: iter([form])) as url:  # type: ignore[misc]
            (outcome,) = client(url, FOR_EVER_S).send([path])
        assert outcome.kind is OutcomeKind.STORED, form


def test_nothing_is_lost_and_it_is_delivered_by_a_server_that_answers(node: SmallNode) -> None:
    """A destination that drips, then floods, then works."""
    node.queue()
    job, token = node.claim()
    node.finish(job, token, node.result(job, ["sr"]))
    uid = str(node.all_deliveries()[0].artifact.sop_instance_uid).encode()
    stored = b'{"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["%s"]}}]}}' % uid
    good = HEAD + b"Connection: close\r\n\r\n" + stored
    with server(body_that_drips, body_without_end, lambda: iter([good])) as url:
        destination = DicomWebDestination("fake", url, read_timeout=LIMIT_S, verify="none")
        settings = DeliverySettings(retry_first_seconds=1, retry_longest_seconds=2)
        box = Outbox(
            node.database, node.spool.directory, destination, settings, node.clock, ticks=node.clock.ticks
        )
        for attempt, state in enumerate(
            [DeliveryState.PENDING, DeliveryState.PENDING, DeliveryState.SENT], 1
        ):
            assert box.tick()
            (row,) = node.all_deliveries()
            assert (row.state, row.attempts) == (state, attempt)
            node.clock.forward(hours=1)
