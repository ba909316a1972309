"""A line that fails: a proxy on loopback that cuts, delays, throttles, falsifies or swallows what passes.

Each connection takes the next of the faults it is given; when there are none left, lines are good.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class Way(Enum):
    """What happens to a connection when its bytes are there."""

    #: nothing
    GOOD = auto()
    #: closed in both directions, as by a peer that ends
    CUT = auto()
    #: reset, as by a peer that crashed or a firewall
    RESET = auto()
    #: open, and nothing passes any more in either direction
    SILENCE = auto()
    #: the client's end is closed, the server's stays open: nobody told it
    HALF_OPEN = auto()
    #: one byte is another one
    FLIP = auto()


@dataclass(frozen=True)
class Fault:
    """What happens to one connection.

    Parameters
    ----------
    way, after
        What, and after how many bytes; that byte itself is the one that is flipped.
    answers
        Whether the bytes from the server to the client count, instead of those from the client.
    delay_s
        Before each part that passes, in that direction.
    bytes_per_second
        At most, in that direction; 0 for no limit.
    """

    way: Way = Way.GOOD
    after: int = 0
    answers: bool = False
    delay_s: float = 0.0
    bytes_per_second: int = 0


class Line:
    """A listening proxy before a port of this machine.

    Parameters
    ----------
    target
        Where connections go on to.
    faults
        For the first, the second, ... connection.
    """

    def __init__(self, target: int, faults: Iterable[Fault] = ()) -> None:
        self._target = target
        self._faults = deque(faults)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        """How many there were."""
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()
        #: ends what is held open without a word
        self._enough = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._enough.set()
        for item in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
        for thread in (self._acceptor, *self._threads):
            thread.join()
        for item in (self._listening, *self._sockets):
            item.close()

    def give(self, *faults: Fault) -> None:
        """Have these happen to the next connections."""
        self._faults.extend(faults)

    def clear(self) -> None:
        """Forget what was given and has not happened, and end what is silent or half open."""
        self._faults.clear()
        self._enough.set()
        self._enough = threading.Event()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(client)
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                self._sockets.remove(client)
                continue
            self._sockets.append(server)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            fault = self._faults.popleft() if self._faults else Fault()
            silent = threading.Event()
            both = threading.Barrier(2, action=partial(self._forget, client, server))
            enough = self._enough
            for source, sink, answers in ((client, server, False), (server, client, True)):
                mine = fault if fault.answers == answers else Fault()
                pump = _Pump(source, sink, mine, (client, server), silent)
                thread = threading.Thread(target=self._pump, args=(pump, both, enough), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, pump: _Pump, both: threading.Barrier, enough: threading.Event) -> None:
        pump.run(enough)
        both.wait()

    def _forget(self, *ends: socket.socket) -> None:
        """Close what both directions are done with: select() of a sender fails above 1,024 open files."""
        for end in ends:
            end.close()
            self._sockets.remove(end)


class _Pump:
    """One direction of one connection."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        fault: Fault,
        ends: tuple[socket.socket, socket.socket],
        silent: threading.Event,
    ) -> None:
        self._source = source
        self._sink = sink
        self._fault = fault
        self._ends = ends
        self._silent = silent

    def run(self, enough: threading.Event) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := self._source.recv(_CHUNK):
                data = self._slowly(data)
                at = self._fault.after - passed
                happens = self._fault.way is not Way.GOOD and at < len(data)
                if happens and self._fault.way is Way.FLIP and at >= 0:
                    data = data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]
                elif happens and self._fault.way is not Way.FLIP:
                    self._pass(data[: max(0, at)])
                    self._happen(enough)
                    return
                self._pass(data)
                passed += len(data)
        if not self._silent.is_set():
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)

    def _slowly(self, data: bytes) -> bytes:
        rate = self._fault.bytes_per_second
        time.sleep(self._fault.delay_s + (len(data) / rate if rate else 0))
        return data

    def _pass(self, data: bytes) -> None:
        if not self._silent.is_set():
            self._sink.sendall(data)

    def _happen(self, enough: threading.Event) -> None:
        client, server = self._ends
        if self._fault.way in {Way.SILENCE, Way.HALF_OPEN}:
            self._silent.set()
            if self._fault.way is Way.HALF_OPEN:
                _close(client)
            enough.wait()
            for end in (client, server):
                _close(end)
        else:
            for end in (client, server):
                if self._fault.way is Way.RESET:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                _close(end)


def _close(end: socket.socket) -> None:
    """Close, also under another thread that reads from it."""
    with contextlib.suppress(OSError):
        linger = end.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        if struct.unpack("ii", linger)[0]:
            end.shutdown(socket.SHUT_RD)
            end.close()
        else:
            end.shutdown(socket.SHUT_RDWR)
