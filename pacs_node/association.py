"""One outgoing association that can't hang.

pynetdicom has no deadline on a blocked send (a stopped peer held it for more than 90 s), so every
association here is watched: a thread closes the socket when no byte moved for `Timeouts.progress` seconds, in
either direction, or when the whole association is over its limit.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import A_ABORT, A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AddressInformation, AssociationSocket

from dicom_sr.part10 import IMPLEMENTATION_CLASS_UID, implementation_version_name
from pacs_node import __version__
from pacs_node.destinations import Outcome, OutcomeKind

logger = logging.getLogger(__name__)

_THREAD_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long we wait for a peer, seconds.

    Parameters
    ----------
    connect
        For the TCP connection.
    association
        For the answer to the association request, and to its release.
    progress
        Without a byte sent, acknowledged or received, after which the peer is given up.
    object
        For one object, however slowly it moves.
    """

    connect: float = 10.0
    association: float = 15.0
    progress: float = 30.0
    object: float = 1800.0


@dataclass(frozen=True, slots=True)
class Tls:
    """How to speak TLS with a peer, and the name or address that its certificate must have."""

    context: ssl.SSLContext
    server_name: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A DICOM application entity.

    Parameters
    ----------
    host, port
        Where it listens.
    called_ae, calling_ae
        Its AE title and ours, 1 to 16 characters (PS3.5 6.2, VR AE).
    timeouts
        How long we wait for it.
    max_pdu
        Largest PDU that we accept, bytes; how much we send in one is the peer's choice.
    tls
        For TLS; None for plain TCP.

    Raises
    ------
    ValueError
        An AE title or the port is not valid.
    """

    host: str
    port: int
    called_ae: str
    calling_ae: str
    timeouts: Timeouts = Timeouts()
    max_pdu: int = 131072
    tls: Tls | None = None

    def __post_init__(self) -> None:
        for title in (self.called_ae, self.calling_ae):
            if not title.strip() or len(title) > 16 or not title.isascii() or not title.isprintable():
                raise ValueError("an AE title has 1 to 16 printable ASCII characters")
            if "\\" in title:
                raise ValueError("an AE title has no backslash")
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} is not in 1..65535")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an association could not be used, or ended early."""

    kind: OutcomeKind
    detail: str

    def outcome(self, sop_instance_uid: str) -> Outcome:
        """The outcome for an object that could not be sent."""
        return Outcome(sop_instance_uid, self.kind, None, self.detail)


class _Watchdog:
    """Drops the connection of one association when nothing moves any more.

    Parameters
    ----------
    progress_timeout
        Seconds without a byte sent, acknowledged or received.
    overall_timeout
        Seconds for the whole association.
    """

    def __init__(self, progress_timeout: float, overall_timeout: float) -> None:
        self.connected = False
        self.fired: str | None = None
        self._progress_timeout = progress_timeout
        self._overall_timeout = overall_timeout
        self._socket: socket.socket | None = None
        self._association: Association | None = None
        self._queued = 0
        self._last = self._start = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dimse-watchdog", daemon=True)

    def handlers(self) -> list[tuple[evt.EventType, Callable[[evt.Event], None]]]:
        """What to bind to the association."""
        return [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_DATA_SENT, self._moved),
            (evt.EVT_DATA_RECV, self._moved),
        ]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()
        if self._socket is not None:
            self._socket.close()  # pynetdicom forgets to where the connection was refused

    def watch(self, connection: socket.socket) -> None:
        """Take the socket of the association, not yet connected."""
        # Command and data set are sent apart; without this each object waits for a delayed ACK (40 ms).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        milliseconds = int(self._progress_timeout * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._socket = connection

    def _opened(self, event: evt.Event) -> None:
        self._association = event.assoc
        self.connected = True
        self._last = time.monotonic()

    def _moved(self, _event: evt.Event) -> None:
        self._last = time.monotonic()

    def _run(self) -> None:
        pause = min(0.5, self._progress_timeout / 4)
        while not self._done.wait(pause):
            if self._association is not None and not self._association.dul.is_alive():
                self._wake()
                return
            if self._drained_some():
                self._last = time.monotonic()
            now = time.monotonic()
            if now - self._last > self._progress_timeout:
                self.fired = f"no progress for {self._progress_timeout:.0f} s; the connection was dropped"
            elif now - self._start > self._overall_timeout:
                self.fired = f"not finished in {self._overall_timeout:.0f} s; the connection was dropped"
            if self.fired:
                self._drop()

    def _wake(self) -> None:
        """Tell whoever waits for an answer, also to a release, that none will come.

        A connection that ends between pynetdicom's last look at it and its wait for the answer leaves that
        wait to its timeout: the thread that would have ended it is gone. Answers that did come are ahead.
        """
        if self._association is not None:
            self._association.dimse.msg_queue.put((None, None))
            self._association.dul.to_user_queue.put(None)

    def _drained_some(self) -> bool:
        """Whether the peer acknowledged bytes that waited in the kernel (a slow line is not a dead one)."""
        if self._socket is None:
            return False
        try:
            answer = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
        except (OSError, ValueError):  # closed meanwhile
            return False
        before, self._queued = self._queued, struct.unpack("i", answer)[0]
        return self._queued != before

    def _drop(self) -> None:
        """Wake every thread that waits on the socket; reset instead of lingering when it is closed."""
        if self._socket is None:
            return
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # not SSLSocket.shutdown: it would take the TLS state away from the thread that uses it
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            logger.debug("the connection was closed already")


class _WatchedContext:
    """Wraps a socket in TLS as an `ssl.SSLContext` does, and has the result watched instead of it."""

    def __init__(self, context: ssl.SSLContext, watchdog: _Watchdog) -> None:
        self._context = context
        self._watchdog = watchdog

    def wrap_socket(
        self, connection: socket.socket, *, server_side: bool, server_hostname: str
    ) -> ssl.SSLSocket:
        """Called by pynetdicom just before it connects; the handshake is part of connecting."""
        wrapped = self._context.wrap_socket(
            connection, server_side=server_side, server_hostname=server_hostname
        )
        self._watchdog.watch(wrapped)
        return wrapped


class _Entity(AE):
    """An AE whose socket is watched from before it connects."""

    def __init__(self, ae_title: str, watchdog: _Watchdog) -> None:
        super().__init__(ae_title)
        self._watchdog = watchdog

    def _create_socket(
        self, assoc: Association, address: AddressInformation, tls_args: tuple[ssl.SSLContext, str] | None
    ) -> AssociationSocket:
        transport = super()._create_socket(assoc, address, tls_args)
        if transport.socket is not None:
            self._watchdog.watch(transport.socket)
        return transport


class Link:
    """One watched association, released or aborted on exit.

    Attributes
    ----------
    association
        Established, or None: then `failure` says why.
    failure
        None while the association can be used.
    """

    def __init__(
        self,
        peer: Peer,
        contexts: Sequence[PresentationContext],
        overall_timeout: float,
        *,
        ext_neg: Sequence[SCP_SCU_RoleSelectionNegotiation] = (),
        handlers: Sequence[tuple[evt.EventType, Callable[[evt.Event], Any]]] = (),
    ) -> None:
        self.failure: Failure | None = None
        self.association: Association | None = None
        self._peer = peer
        self._contexts = contexts
        self._ext_neg = ext_neg
        self._handlers = handlers
        self._watchdog = _Watchdog(peer.timeouts.progress, overall_timeout)

    def __enter__(self) -> Self:
        peer = self._peer
        entity = _Entity(peer.calling_ae, self._watchdog)
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = implementation_version_name(__version__)
        entity.connection_timeout = peer.timeouts.connect
        entity.acse_timeout = peer.timeouts.association
        entity.dimse_timeout = peer.timeouts.object
        entity.network_timeout = peer.timeouts.object
        self._watchdog.start()
        try:
            association = entity.associate(
                peer.host,
                peer.port,
                contexts=list(self._contexts),
                ae_title=peer.called_ae,
                max_pdu=peer.max_pdu,
                ext_neg=list(self._ext_neg),
                evt_handlers=[*self._watchdog.handlers(), *self._handlers],
                tls_args=self._tls_arguments(),
            )
        except (OSError, UnicodeError) as error:  # the host name can't be resolved, or can't be one
            why = error.strerror if isinstance(error, OSError) else None
            sentence = f"the host can't be found ({why or type(error).__name__})"
            self.failure = Failure(OutcomeKind.TRANSIENT, sentence)
            self._watchdog.stop()
            return self
        self.association = association
        leave_answers(association)
        _end_with_the_abort(association)
        if not association.is_established:
            self.failure = self._explain(association)
        return self

    def _tls_arguments(self) -> tuple[ssl.SSLContext, str] | None:
        tls = self._peer.tls
        if tls is None:
            return None
        return cast(ssl.SSLContext, _WatchedContext(tls.context, self._watchdog)), tls.server_name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        association = self.association
        if association is not None:
            if association.is_established and kind is None:
                association.release()
            elif association.is_established:
                association.abort()
            for thread in (association, association.dul):
                if thread.is_alive():
                    thread.join(_THREAD_END_S)
            self._watchdog.stop()

    def refused_all(self) -> bool:
        """Whether the peer accepted the association but none of its contexts."""
        association = self.association
        return (
            association is not None
            and not association.is_established
            and bool(association.rejected_contexts)
            and not association.accepted_contexts
        )

    def broken(self) -> Failure:
        """Why the association ended while an answer was awaited."""
        sentence = self._watchdog.fired or "the connection ended before the answer"
        self.failure = Failure(OutcomeKind.TRANSIENT, sentence)
        return self.failure

    def _explain(self, association: Association) -> Failure:
        if self._watchdog.fired:
            return Failure(OutcomeKind.TRANSIENT, self._watchdog.fired)
        if not self._watchdog.connected:
            if self._peer.tls is not None:
                sentence = "no TLS connection: refused, timed out, or one side's certificate was not trusted"
                return Failure(OutcomeKind.TRANSIENT, sentence)
            return Failure(OutcomeKind.TRANSIENT, "the connection was refused or timed out")
        answer = _rejection(association)
        if answer is not None:
            kind = OutcomeKind.PERMANENT if answer.result == 1 else OutcomeKind.TRANSIENT
            return Failure(kind, f"the association was rejected ({kind}): {answer.reason_str}")
        if self.refused_all():
            return Failure(OutcomeKind.PERMANENT, "the peer accepted no presentation context")
        return Failure(OutcomeKind.TRANSIENT, "the association request was aborted or not answered")


def leave_answers(association: Association) -> None:
    """Keep pynetdicom's reactor from taking an answer that another thread waits for.

    The association's own thread reads messages too, between operations. It calls itself paused for a moment
    in every turn, so on a busy machine a request can go out while it isn't, and its answer be thrown away. As
    a user only of services we get nothing but answers: the thread never has a message of its own.
    """
    take = association.dimse.get_msg

    def take_in_another_thread(block: bool = False) -> tuple[Any, Any]:
        return (None, None) if threading.current_thread() is association else take(block)

    association.dimse.get_msg = take_in_another_thread  # type: ignore[method-assign]  # see above


def _end_with_the_abort(association: Association) -> None:
    """Send nothing behind an A-ABORT: pynetdicom's reactor dies of it.

    Where one thread aborts, another may be about to send its answer.
    """
    send: Callable[[Any], None] = association.dul.send_pdu
    turn = threading.Lock()

    def send_unless_aborted(primitive: Any) -> None:
        nonlocal send
        with turn:
            send(primitive)
            if isinstance(primitive, A_ABORT):
                send = _unsent

    association.dul.send_pdu = send_unless_aborted  # type: ignore[method-assign]  # see above


def _unsent(_primitive: object) -> None:
    """Stands for sending where nothing may be sent any more."""


def _rejection(association: Association) -> A_ASSOCIATE | None:
    """Return the A-ASSOCIATE-RJ, None where that was not the answer."""
    answer = association.acceptor.primitive
    if not association.is_rejected:
        # After a fast rejection pynetdicom finds its own socket closed and does not look at its queue.
        waiting: object = association.dul.receive_pdu(wait=False)
        answer = waiting if isinstance(waiting, A_ASSOCIATE) else None
    return answer if answer is not None and answer.result in (1, 2) else None
