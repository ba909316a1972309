"""The bytes of one association: read and sent within a time, by TCP or TLS.

What is there is taken at once, and only who finds nothing waits: of an object most bytes are there already,
and each system call that is left out is one time less that threads take turns.
"""

from __future__ import annotations

import select
import socket
import ssl
import time

_MOST_READS = 64


class ConnectionEndedError(Exception):
    """The peer aborted or went away: there is nobody to tell."""


class Wire:
    """A connection whose peer may be slow, silent or gone.

    Parameters
    ----------
    connection
        Connected, any TLS handshake done; from here on it is not blocking.
    send_seconds
        For the peer to take what is sent.
    """

    def __init__(self, connection: socket.socket, send_seconds: float) -> None:
        self._connection = connection
        self._send_seconds = send_seconds
        connection.setblocking(False)
        self._readable = select.poll()
        self._readable.register(connection, select.POLLIN)

    def read(self, buffer: memoryview, deadline: float) -> int:
        """Fill a buffer; how many bytes came before the deadline (``time.monotonic``).

        Raises
        ------
        ConnectionEndedError
            The peer closed it.
        OSError
            The connection broke.
        """
        filled, size = 0, len(buffer)
        while filled < size:
            try:
                count = self._connection.recv_into(buffer[filled:] if filled else buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                if not self._wait(self._readable, deadline):
                    return filled
                continue
            except ssl.SSLWantWriteError:
                writable = select.poll()
                writable.register(self._connection, select.POLLOUT)
                if not self._wait(writable, deadline):
                    return filled
                continue
            if not count:
                raise ConnectionEndedError
            filled += count
            if filled < size and time.monotonic() > deadline:
                return filled
        return filled

    @staticmethod
    def _wait(what: select.poll, deadline: float) -> bool:
        remaining = deadline - time.monotonic()
        return remaining > 0 and bool(what.poll(1000 * remaining))

    def send(self, data: bytes) -> None:
        """Send all of it.

        Raises
        ------
        TimeoutError
            The peer doesn't take it.
        OSError
            The connection broke.
        """
        try:
            sent = self._connection.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            sent = 0
        if sent == len(data):
            return
        self._connection.settimeout(self._send_seconds)
        self._connection.sendall(memoryview(data)[sent:])
        self._connection.setblocking(False)

    def stop_reading(self) -> None:
        """Let whoever reads find the end; for other threads."""
        try:
            # not SSLSocket.shutdown: it would take the TLS state away from the thread that uses it
            socket.socket.shutdown(self._connection, socket.SHUT_RD)
        except OSError:  # closed already
            return

    def await_close(self, seconds: float, scratch: memoryview) -> None:
        """Let the peer close: closing first, with bytes of it unread, would destroy our last word."""
        if not isinstance(self._connection, ssl.SSLSocket):
            self._connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + seconds
        for _ in range(_MOST_READS):
            try:
                if self.read(scratch, deadline) < len(scratch):
                    return
            except ConnectionEndedError:
                return

    def close(self) -> None:
        """Close it."""
        self._connection.close()
