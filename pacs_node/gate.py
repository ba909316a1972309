"""The gate before the DICOM protocol: whoever isn't known gets no further than its own name.

One thread holds all connections that have not finished their association request: it shakes hands by TLS,
reads the request, asks whether its sender is known, and hands the connection over. No peer can keep it
waiting: each connection has a deadline, an address has a limit, and reading never blocks.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from pacs_node import gate_pdu
from pacs_node.gate_pdu import PduError, Rejection
from pacs_node.gate_visitor import Admitted, Limits, Refusal, Visitor, host_of, objection
from pacs_node.tls import fingerprint

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
_SWEEP_S = 0.1
_FAREWELL_S = 2.0
# pynetdicom takes a rejection that comes sooner than its own threads are ready for an abort
_ANSWER_S = 0.05
_ACCEPT_AT_ONCE = 64
_READS_AT_ONCE = 32


class _Stage(Enum):
    HANDSHAKE = auto()
    REQUEST = auto()
    REFUSED = auto()
    ANSWER = auto()
    FAREWELL = auto()


@dataclass(eq=False, slots=True)
class _Pending:
    connection: socket.socket
    address: tuple[str, int]
    host: str
    stage: _Stage
    accepted: float
    deadline: float
    length: int = gate_pdu.HEADER_BYTES
    received: int = 0
    data: bytearray = field(default_factory=bytearray)
    visitor: Visitor | None = None
    refusal: Refusal | None = None


class Gate:
    """Accepts connections and lets in only those whose sender is known.

    Parameters
    ----------
    listening
        A listening TCP socket; the gate closes it.
    judge
        Called in the gate's thread for each association request, must not block: why the visitor is refused,
        or None.
    admit
        Called in the gate's thread with each connection that may go on, must not block. Where it raises
        RuntimeError or MemoryError nobody has taken it, and the peer may try again.
    refused
        Called in the gate's thread for whoever is not admitted, must not block.
    context
        For TLS; None for plain TCP.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        judge: Callable[[Visitor], Refusal | None],
        admit: Callable[[Admitted], None],
        refused: Callable[[Visitor, str], None],
        context: ssl.SSLContext | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._listening = listening
        self._judge = judge
        self._admit = admit
        self._refused = refused
        self._context = context
        self._limits = limits or Limits()
        self._selector = selectors.DefaultSelector()
        self._pending: dict[_Pending, None] = {}
        self._per_host: Counter[str] = Counter()
        # may have bytes that the selector can't see: inside TLS, or left for the next turn
        self._again: list[_Pending] = []
        self._wake_sender, self._wake_receiver = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._listening.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ, self._listening)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Stop accepting and drop who has not come in yet."""
        self._stopping = True
        self._wake_sender.send(b"\0")
        self._thread.join()
        # only now: a visitor may have woken the thread first, and it was gone before we could wake it
        self._wake_sender.close()
        self._wake_receiver.close()

    @property
    def pending(self) -> int:
        """Connections that are not admitted yet."""
        return len(self._pending)

    @property
    def is_alive(self) -> bool:
        """Whether anybody is let in."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._close_all()

    def _serve(self) -> None:
        next_sweep = time.monotonic() + _SWEEP_S
        while not self._stopping:
            again, self._again = self._again, []
            timeout = None if not self._pending else max(0.0, next_sweep - time.monotonic())
            ready = [key.data for key, _ in self._selector.select(0 if again else timeout)]
            for item in [*again, *(data for data in ready if isinstance(data, _Pending))]:
                # one that was handled just now may have displaced it
                if item in self._pending:
                    self._go_on(item)
            if self._listening in ready:
                self._accept()
            now = time.monotonic()
            if now >= next_sweep:
                next_sweep = now + _SWEEP_S
                for item in [item for item in self._pending if now > item.deadline]:
                    self._expire(item)

    def _close_all(self) -> None:
        for item in list(self._pending):
            self._drop(item)
        self._selector.close()
        self._listening.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                logger.exception("a connection could not be accepted")
                if self._pending:
                    # out of descriptors or memory: room for those who do speak
                    self._displace(next(iter(self._pending)))
                else:
                    time.sleep(_SWEEP_S)
                return
            try:
                self._receive_visitor(connection, address)
            except Exception:
                # of one connection, as below
                logger.exception("a connection could not be received")
                connection.close()

    def _receive_visitor(self, connection: socket.socket, address: tuple[str, int]) -> None:
        host, now, limits = host_of(address[0]), time.monotonic(), self._limits
        if self._per_host[host] >= limits.per_address:
            self._displace(next(item for item in self._pending if item.host == host))
        elif len(self._pending) >= limits.pending:
            self._displace(next(iter(self._pending)))
        connection.setblocking(False)
        stage, seconds = _Stage.REQUEST, limits.request_seconds
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                stage, seconds = _Stage.HANDSHAKE, limits.tls_seconds
                connection = self._context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
        except OSError:  # gone again
            connection.close()
            return
        item = _Pending(connection, address, host, stage, now, now + seconds)
        self._remember(item)
        self._go_on(item)

    def _go_on(self, item: _Pending) -> None:
        """Do whatever can be done without waiting."""
        try:
            if item.stage is _Stage.HANDSHAKE:
                self._shake_hands(item)
            for _ in range(_READS_AT_ONCE):
                if not self._read(item):
                    return
            self._again.append(item)
        except (ssl.SSLWantReadError, BlockingIOError):
            self._selector.modify(item.connection, selectors.EVENT_READ, item)
        except ssl.SSLWantWriteError:
            self._selector.modify(item.connection, selectors.EVENT_WRITE, item)
        except PduError as error:
            self._turn_away(item, Refusal(None, str(error)))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            self._drop(item)
        except ssl.SSLError as error:
            reason = (error.reason or type(error).__name__).replace("_", " ").lower()
            self._turn_away(item, Refusal(None, f"TLS: {reason}"))
        except OSError:
            self._drop(item)
        except Exception:
            # whatever one connection raises ends that one and no other
            logger.exception("a connection ended by a fault of this software")
            self._drop(item)

    def _shake_hands(self, item: _Pending) -> None:
        if isinstance(item.connection, ssl.SSLSocket):
            item.connection.do_handshake()
        item.stage = _Stage.REQUEST
        item.deadline = item.accepted + self._limits.request_seconds

    def _read(self, item: _Pending) -> bool:
        """Read some bytes, at most to the end of the request; whether there is more to do."""
        over = item.stage in {_Stage.ANSWER, _Stage.FAREWELL}
        wanted = _CHUNK if over else min(_CHUNK, item.length - item.received)
        data = item.connection.recv(wanted)
        if not data:
            self._drop(item)
            return False
        item.received += len(data)
        if over:
            if item.received > 2 * gate_pdu.MAX_REQUEST_BYTES:
                self._drop(item)
            return item in self._pending
        if item.stage is _Stage.REQUEST:
            item.data += data
        if item.length == gate_pdu.HEADER_BYTES == item.received:
            item.length = gate_pdu.request_length(item.data)
        if item.visitor is None and item.received >= gate_pdu.REQUEST_HEAD_BYTES:
            self._ask(item)
        if item.received < item.length:
            return True
        if item.refusal is None and (refusal := objection(item.data)) is not None:
            self._refuse(item, refusal)
        if item.refusal is None and self._let_in(item):
            return False
        item.stage, item.deadline = _Stage.ANSWER, time.monotonic() + _ANSWER_S
        return True

    def _ask(self, item: _Pending) -> None:
        head = gate_pdu.read_request_head(item.data)
        certificate = fingerprint(item.connection) if isinstance(item.connection, ssl.SSLSocket) else ""
        item.visitor = Visitor(head.calling_ae, head.called_ae, item.host, certificate)
        refusal = self._judge(item.visitor)
        if refusal is not None:
            # the rest is read, so that the answer arrives, but not kept
            item.stage = _Stage.REFUSED
            self._refuse(item, refusal)

    def _refuse(self, item: _Pending, refusal: Refusal) -> None:
        item.refusal = refusal
        item.data.clear()
        self._refused(item.visitor or Visitor("", "", item.host), refusal.sentence)

    def _let_in(self, item: _Pending) -> bool:
        """Hand the connection over; false where nobody can take it now."""
        if item.visitor is None:
            raise PduError("an association request without AE titles")
        self._forget(item)
        item.connection.setblocking(True)
        try:
            self._admit(Admitted(item.connection, item.address, item.visitor, bytes(item.data)))
        except (RuntimeError, MemoryError) as error:
            logger.error("an association can't be served", extra={"why": str(error)})  # noqa: TRY400 - as full
            item.connection.setblocking(False)
            self._remember(item)
            self._refuse(item, Refusal(Rejection.LIMIT_EXCEEDED, "no thread or memory to be had"))
            return False
        return True

    def _turn_away(self, item: _Pending, refusal: Refusal) -> None:
        self._refused(item.visitor or Visitor("", "", item.host), refusal.sentence)
        if item.stage is _Stage.HANDSHAKE:
            self._drop(item)
            return
        try:
            self._reject(item, refusal)
        except OSError:
            self._drop(item)

    def _reject(self, item: _Pending, refusal: Refusal) -> None:
        """Answer, then wait a moment for the peer to close: closing first could destroy the answer."""
        answer = gate_pdu.abortion() if refusal.answer is None else gate_pdu.rejection(refusal.answer)
        item.stage = _Stage.FAREWELL
        item.deadline = min(item.accepted + self._limits.request_seconds, time.monotonic() + _FAREWELL_S)
        item.connection.send(answer)

    def _expire(self, item: _Pending) -> None:
        if item.stage is _Stage.ANSWER and item.refusal is not None:
            try:
                self._reject(item, item.refusal)
            except OSError:
                self._drop(item)
            return
        if item.stage in {_Stage.HANDSHAKE, _Stage.REQUEST}:
            what = "TLS handshake" if item.stage is _Stage.HANDSHAKE else "association request"
            seconds = item.deadline - item.accepted
            self._refused(item.visitor or Visitor("", "", item.host), f"no {what} within {seconds:g} s")
        self._drop(item)

    def _displace(self, item: _Pending) -> None:
        if item.stage in {_Stage.HANDSHAKE, _Stage.REQUEST}:
            visitor = item.visitor or Visitor("", "", item.host)
            self._refused(visitor, "too many connections without an association request")
        self._drop(item)

    def _drop(self, item: _Pending) -> None:
        if item in self._pending:
            self._forget(item)
        item.connection.close()

    def _remember(self, item: _Pending) -> None:
        self._pending[item] = None
        self._per_host[item.host] += 1
        self._selector.register(item.connection, selectors.EVENT_READ, item)

    def _forget(self, item: _Pending) -> None:
        self._selector.unregister(item.connection)
        del self._pending[item]
        self._per_host[item.host] -= 1
        if not self._per_host[item.host]:
            del self._per_host[item.host]
