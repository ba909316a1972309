"""Answers of HTTP servers that drip, never end or are huge: given up in time, whatever the server does.

The timeout of ``requests`` is for each piece that arrives, so a server that sends a byte now and then keeps
its client for ever. Here an answer has its time as a whole, from the end of the request to its last byte;
then the connection is cut.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Timer
from typing import Any

import requests
from requests.adapters import HTTPAdapter

MAX_ANSWER_BYTES = 8 << 20
"""A page of 1,000 matches of a search has about 1 MB."""


class AnswerTooLargeError(requests.RequestException):
    """The server sends more than any answer has."""


class AnswerEncodedError(requests.RequestException):
    """The server compresses its answer, which it was asked not to: a small one may become a huge one."""


class _Watch:
    """Cuts a connection after some time, unless it is stopped before."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self.over = False
        self._connection = connection
        self._timer = Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        self.over = True
        with suppress(OSError):
            # not the method of a TLS socket: that changes what another thread is reading from
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def stop(self) -> None:
        """Leave the connection alone."""
        self._timer.cancel()


class _Watched:
    """Mixed into urllib3's connections: the status line and the header count too."""

    sock: socket.socket
    timeout: float

    def getresponse(self) -> Any:
        """Begin to read the answer; ``timeout`` is the one for reading by now."""
        watch = _Watch(self.sock, self.timeout)
        try:
            response = super().getresponse()  # type: ignore[misc]  # of the class that it is mixed into
        except (OSError, http.client.HTTPException) as error:
            watch.stop()
            if watch.over:
                raise TimeoutError("the answer took too long") from error
            raise
        response.watch = watch
        return response


class _LimitedBody:
    """The body of a response in the place of urllib3's, for ``requests`` to read."""

    def __init__(self, raw: Any, most: int) -> None:
        self._raw = raw
        self._most = most
        self._watch: _Watch = raw.watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, amount: int, decode_content: bool = False) -> Iterator[bytes]:  # noqa: ARG002 - as urllib3 has it
        """Yield the body as it comes."""
        try:
            if self._raw.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise AnswerEncodedError("the answer is compressed")
            size = 0
            for piece in self._raw.stream(amount, decode_content=False):
                size += len(piece)
                if size > self._most:
                    raise AnswerTooLargeError("the answer is too large")
                yield piece
        finally:
            self._watch.stop()
            if self._watch.over or not self._raw.closed:
                # the rest of it is of no use
                self._raw.close()
        if self._watch.over:
            raise requests.ReadTimeout("the answer took too long")


class LimitedAdapter(HTTPAdapter):
    """For sessions whose answers are to end within their read timeout and to be of a sensible size.

    Parameters
    ----------
    most
        Bytes of the body of an answer.
    """

    def __init__(self, most: int = MAX_ANSWER_BYTES) -> None:
        super().__init__()
        self._most = most

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        """Return the pool for a request, its connections watched."""
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        if not issubclass(pool.ConnectionCls, _Watched):
            pool.ConnectionCls = type("WatchedConnection", (_Watched, pool.ConnectionCls), {})
        return pool

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send a request; the body of its response is limited."""
        response = super().send(request, *args, **options)
        response.raw = _LimitedBody(response.raw, self._most)
        return response


def limited_session(most: int = MAX_ANSWER_BYTES) -> requests.Session:
    """Return a session whose answers are limited to so many bytes; it asks for none that is compressed."""
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, LimitedAdapter(most))
    return session
