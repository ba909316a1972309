"""HTTP/1.1 as uvicorn speaks it, with an end for peers that never end (slow loris, slow read).

uvicorn waits for ever for a request that was begun, or not even begun, and for a peer that doesn't take its
response, and answers everybody with 503 once it has many connections; asyncio gives a TLS handshake 60 s,
and as many as there are descriptors. Here a request has `REQUEST_SECONDS` from its connection, handshake and
all, or from the response before it, to its last byte; of a response `SLOWEST_BYTES` at least must be taken in
that time; and where many wait, the oldest one gives way to the new one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from typing import ClassVar, Self, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

REQUEST_SECONDS = 10.0
SLOWEST_BYTES = 16 * 1024
MOST_OF_ADDRESS, MOST = 24, 80
"""Connections that wait for their peer; a browser opens six."""


class Deadlines(H11Protocol):
    """One connection."""

    #: all that wait for their peer, the oldest first, with its address
    waiting: ClassVar[OrderedDict[Deadlines, str]] = OrderedDict()
    #: whether the limit of one address counts; not behind a proxy, where all come from one
    by_address: ClassVar[bool] = True
    #: None: no TLS. Not given to uvicorn, which would hear of a connection only after its handshake
    context: ClassVar[ssl.SSLContext | None] = None
    _plain: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _handshake: asyncio.Task[None] | None = None
    #: what came with the end of the handshake
    _early: bytes = b""
    _left: int = 0
    _lost: bool = False

    @classmethod
    def over_tls(cls, context: ssl.SSLContext) -> type[Self]:
        """Make the same with TLS."""
        return cast("type[Self]", type(cls.__name__, (cls,), {"context": context}))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin to wait."""
        self._plain = transport
        if self.context is None:
            super().connection_made(transport)
        else:
            self.transport, self.client = transport, get_remote_addr(transport)
            self._handshake = self.loop.create_task(self._encrypt(transport, self.context))
        self._expect()

    async def _encrypt(self, transport: asyncio.Transport, context: ssl.SSLContext) -> None:
        encrypted = None
        try:
            if not transport.is_closing():
                encrypted = await self.loop.start_tls(
                    transport, self, context, server_side=True, ssl_handshake_timeout=REQUEST_SECONDS
                )
        except OSError:
            # of TLS too; asyncio has closed the connection
            encrypted = None
        self._handshake = None
        if encrypted is None or self._lost:
            self._rest()
            return
        super().connection_made(encrypted)
        if self._early:
            early, self._early = self._early, b""
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        """Go on reading; a request that is whole waits no longer."""
        if self._handshake is not None:
            self._early += data
            return
        super().data_received(data)
        if self._answers():
            self._rest()

    def _answers(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the end of the connection."""
        super().on_response_complete()
        self._expect()

    def pause_writing(self) -> None:
        """Wait for the peer to take its response."""
        super().pause_writing()
        self._expect()

    def resume_writing(self) -> None:
        """Go on with the response, where it isn't whole."""
        super().resume_writing()
        if self._answers():
            self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._lost = True
        self._rest()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._rest()
        if self._lost:
            return
        address = self.client[0] if self.client else ""
        self.waiting[self] = address
        self._left = self._unsent()
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._late)
        beside = [peer for peer, its in self.waiting.items() if its == address] if self.by_address else []
        if len(beside) > MOST_OF_ADDRESS:
            beside[0].give_way()
        elif len(self.waiting) > MOST:
            next(iter(self.waiting)).give_way()

    def _late(self) -> None:
        """Only who takes a long response may go on."""
        left = self._unsent()
        if 0 < left <= self._left - SLOWEST_BYTES:
            self._left = left
            self._timer = self.loop.call_later(REQUEST_SECONDS, self._late)
        else:
            self.give_way()

    def _unsent(self) -> int:
        encrypted = 0 if self.transport is self._plain else self.transport.get_write_buffer_size()
        return encrypted + self._plain.get_write_buffer_size()

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
