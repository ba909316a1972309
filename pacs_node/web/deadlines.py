"""HTTP/1.1 as uvicorn speaks it, with an end for requests that never end (slow loris).

uvicorn waits for ever for a request that was begun, or not even begun, and answers everybody with 503 once
it has many connections. Here a request has `REQUEST_SECONDS` from its connection, or from the response before
it, to its last byte; and where many wait, the oldest one gives way to the new one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

REQUEST_SECONDS = 10.0
MOST_OF_ADDRESS, MOST = 24, 80
"""Connections without a whole request; a browser opens six."""


class Deadlines(H11Protocol):
    """One connection."""

    #: all that wait for a request, the oldest first, with the address of the peer
    waiting: ClassVar[OrderedDict[Deadlines, str]] = OrderedDict()
    #: whether the limit of one address counts; not behind a proxy, where all come from one
    by_address: ClassVar[bool] = True
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Go on reading; a request that is whole waits no longer."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.more_body and not cycle.response_complete:
            self._rest()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._rest()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._rest()
        if self.transport.is_closing():
            return
        address = self.client[0] if self.client else ""
        self.waiting[self] = address
        self._timer = self.loop.call_later(REQUEST_SECONDS, self.give_way)
        beside = [peer for peer, its in self.waiting.items() if its == address] if self.by_address else []
        if len(beside) > MOST_OF_ADDRESS:
            beside[0].give_way()
        elif len(self.waiting) > MOST:
            next(iter(self.waiting)).give_way()

    def _rest(self) -> None:
        self.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def give_way(self) -> None:
        """End the connection at once."""
        self._rest()
        self.transport.abort()


class BehindProxy(Deadlines):
    """One connection of a reverse proxy."""

    by_address = False
