from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pacs_node.gate_wire import ConnectionEndedError, Wire

LATER = 60.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_it_takes_what_is_there_and_waits_for_the_rest(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    wire, buffer = Wire(ours, LATER), bytearray(6)
    theirs.sendall(b"abc")
    late = threading.Timer(0.05, theirs.sendall, [b"defg"])
    late.start()
    assert wire.read(memoryview(buffer), time.monotonic() + LATER) == 6
    assert buffer == b"abcdef"
    assert wire.read(memoryview(buffer)[:1], time.monotonic() + LATER) == 1
    assert buffer[:1] == b"g"
    late.join()


def test_a_deadline_ends_it_with_what_came(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    wire, buffer = Wire(ours, LATER), bytearray(6)
    theirs.sendall(b"abc")
    assert wire.read(memoryview(buffer), time.monotonic() + 0.02) == 3
    # what is there is taken also when the time is over already
    theirs.sendall(b"d")
    assert wire.read(memoryview(buffer), time.monotonic() - 1) == 1


def test_the_end_is_told_from_silence(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    wire, buffer = Wire(ours, LATER), memoryview(bytearray(6))
    theirs.sendall(b"abc")
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionEndedError):
        wire.read(buffer, time.monotonic() + LATER)
    wire.close()


def test_another_thread_can_end_the_waiting(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _theirs = ends
    wire = Wire(ours, LATER)
    stopping = threading.Timer(0.05, wire.stop_reading)
    stopping.start()
    with pytest.raises(ConnectionEndedError):
        wire.read(memoryview(bytearray(6)), time.monotonic() + LATER)
    stopping.join()


def test_what_a_peer_takes_in_pieces_arrives_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    data = bytes(range(256)) * (1 << 14)
    got = bytearray()

    def take() -> None:
        while len(got) < len(data):
            got.extend(theirs.recv(1 << 16))

    taker = threading.Thread(target=take)
    taker.start()
    wire = Wire(ours, LATER)
    wire.send(data)
    taker.join(LATER)
    assert got == data
    # reading still gives up at its deadline, and doesn't wait as long as sending may
    assert wire.read(memoryview(bytearray(1)), time.monotonic() + 0.01) == 0


def test_a_peer_that_takes_nothing_is_given_up(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, _theirs = ends
    with pytest.raises(TimeoutError):
        Wire(ours, 0.05).send(bytes(1 << 24))
