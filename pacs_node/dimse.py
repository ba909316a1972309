"""C-STORE, C-ECHO and C-FIND as a client (SCU), over pynetdicom.

pynetdicom has no deadline on a blocked send (a stopped peer held it for more than 90 s), so every
association here is watched: `_Watchdog` closes the socket when no byte moved for `progress_timeout`
seconds, in either direction, or when the whole association is over its limit.
"""

from __future__ import annotations

import fcntl
import logging
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module makes its names at import time
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

from pacs_node.destinations import (
    EchoResult,
    ObjectFile,
    ObjectRef,
    Outcome,
    OutcomeKind,
    UnreadableFileError,
    outcome_of_status,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (objects answered so far, objects in all)."""

MAX_CONTEXTS = 128
"""Presentation contexts of one association: odd numbers 1..255 (PS3.8 9.3.2.2)."""

_QUERY_LIMIT_S = 60.0
_RELEASE_MARGIN_S = 30.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why an association could not be used, or ended early."""

    kind: OutcomeKind
    detail: str

    def outcome(self, sop_instance_uid: str) -> Outcome:
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

    def _opened(self, event: evt.Event) -> None:
        transport = event.assoc.dul.socket
        connection = transport.socket if transport is not None else None
        if connection is not None:
            # Command and data set are sent apart; without this each object waits for a delayed ACK (40 ms).
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            milliseconds = int(self._progress_timeout * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._socket = connection
        self.connected = True
        self._last = time.monotonic()

    def _moved(self, _event: evt.Event) -> None:
        self._last = time.monotonic()

    def _run(self) -> None:
        pause = min(0.5, self._progress_timeout / 4)
        while not self._done.wait(pause):
            if self._drained_some():
                self._last = time.monotonic()
            now = time.monotonic()
            if now - self._last > self._progress_timeout:
                self.fired = f"no progress for {self._progress_timeout:.0f} s; the connection was dropped"
            elif now - self._start > self._overall_timeout:
                self.fired = f"not finished in {self._overall_timeout:.0f} s; the connection was dropped"
            if self.fired:
                self._drop()
                return

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
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            logger.debug("the connection was closed already")


class _Link:
    """One watched association, released or aborted on exit.

    Attributes
    ----------
    association
        Established, or None: then `failure` says why.
    failure
        None while the association can be used.
    """

    def __init__(
        self, peer: DimseDestination, contexts: Sequence[PresentationContext], overall_timeout: float
    ) -> None:
        self.failure: _Failure | None = None
        self.association: Association | None = None
        self._peer = peer
        self._contexts = contexts
        self._watchdog = _Watchdog(peer.progress_timeout, overall_timeout)

    def __enter__(self) -> Self:
        peer = self._peer
        entity = AE(ae_title=peer.calling_ae)
        entity.connection_timeout = peer.connect_timeout
        entity.acse_timeout = peer.association_timeout
        entity.dimse_timeout = peer.object_timeout
        entity.network_timeout = peer.object_timeout
        self._watchdog.start()
        try:
            association = entity.associate(
                peer.host,
                peer.port,
                contexts=list(self._contexts),
                ae_title=peer.called_ae,
                max_pdu=peer.max_pdu,
                evt_handlers=self._watchdog.handlers(),  # type: ignore[arg-type]  # invariant list
            )
        except OSError as error:  # the host name can't be resolved
            sentence = f"the host can't be found ({error.strerror or type(error).__name__})"
            self.failure = _Failure(OutcomeKind.TRANSIENT, sentence)
            self._watchdog.stop()
            return self
        self.association = association
        if not association.is_established:
            self.failure = self._explain(association)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        association = self.association
        if association is not None:
            if association.is_established and kind is None:
                association.release()
            elif association.is_established:
                association.abort()
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

    def broken(self) -> _Failure:
        """Why the association ended while an answer was awaited."""
        sentence = self._watchdog.fired or "the connection ended before the answer"
        self.failure = _Failure(OutcomeKind.TRANSIENT, sentence)
        return self.failure

    def _explain(self, association: Association) -> _Failure:
        if self._watchdog.fired:
            return _Failure(OutcomeKind.TRANSIENT, self._watchdog.fired)
        if not self._watchdog.connected:
            return _Failure(OutcomeKind.TRANSIENT, "the connection was refused or timed out")
        if association.is_rejected:
            answer = association.acceptor.primitive
            permanent = answer is not None and answer.result == 1
            kind = OutcomeKind.PERMANENT if permanent else OutcomeKind.TRANSIENT
            reason = answer.reason_str if answer is not None else "no reason"
            return _Failure(kind, f"the association was rejected ({kind}): {reason}")
        if self.refused_all():
            return _Failure(OutcomeKind.PERMANENT, "the peer accepted no presentation context")
        return _Failure(OutcomeKind.TRANSIENT, "the association request was aborted or not answered")


class DimseDestination:
    """A peer that takes objects by C-STORE.

    Parameters
    ----------
    name
        The name in the configuration.
    host, port
        Where it listens.
    called_ae, calling_ae
        Its AE title and ours, 1 to 16 characters.
    connect_timeout, association_timeout
        Seconds for the TCP connection, and for the answer to the association request and to its release.
    progress_timeout
        Seconds without a byte sent, acknowledged or received, after which the peer is given up.
    object_timeout
        Seconds for one object, however slowly it moves.
    max_pdu
        Largest PDU that we accept, bytes; how much we send in one is the peer's choice.
    verify
        ``c-find``: `verify` asks by C-FIND at the IMAGE level (Study Root). ``none``: it answers None.

    Raises
    ------
    ValueError
        An AE title or the port is not valid.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        called_ae: str,
        calling_ae: str,
        *,
        connect_timeout: float = 10.0,
        association_timeout: float = 15.0,
        progress_timeout: float = 30.0,
        object_timeout: float = 1800.0,
        max_pdu: int = 131072,
        verify: Literal["c-find", "none"] = "c-find",
    ) -> None:
        for title in (called_ae, calling_ae):
            if not (0 < len(title.strip()) <= 16 and title.isascii() and title.isprintable()):
                raise ValueError("an AE title has 1 to 16 printable ASCII characters")
            if "\\" in title:
                raise ValueError("an AE title has no backslash")
        if not 0 < port < 65536:
            raise ValueError(f"port {port} is not in 1..65535")
        self.name = name
        self.host = host
        self.port = port
        self.called_ae = called_ae
        self.calling_ae = calling_ae
        self.connect_timeout = connect_timeout
        self.association_timeout = association_timeout
        self.progress_timeout = progress_timeout
        self.object_timeout = object_timeout
        self.max_pdu = max_pdu
        self._verifies = verify == "c-find"

    def send(self, paths: Sequence[Path], progress: Progress | None = None) -> tuple[Outcome, ...]:
        """Send files over one association (more only where they need over 128 contexts).

        Each file goes byte by byte as it is; one in Explicit VR Little Endian is re-encoded in Implicit VR
        Little Endian for a peer that takes only that.

        Returns
        -------
        tuple
            One outcome for each path, in their order.
        """
        _config.STORE_SEND_CHUNKED_DATASET = True  # a path is sent as its bytes, never decoded
        outcomes: dict[int, Outcome] = {}
        files: dict[int, ObjectFile] = {}
        for index, path in enumerate(paths):
            try:
                files[index] = ObjectFile.read(path)
            except UnreadableFileError as error:
                outcomes[index] = error.outcome()
        failure: _Failure | None = None
        for batch in _batches(files):
            for index, outcome in self._send_batch(batch, failure):
                outcomes[index] = outcome
                if progress is not None:
                    progress(len(outcomes), len(paths))
                if outcome.status is None and outcome.kind is OutcomeKind.TRANSIENT:
                    failure = _Failure(outcome.kind, outcome.detail)
        self._log(outcomes)
        return tuple(outcomes[index] for index in range(len(paths)))

    def _send_batch(
        self, batch: dict[int, ObjectFile], failure: _Failure | None
    ) -> Iterator[tuple[int, Outcome]]:
        """Yield the outcome of each file of one association; after `failure` there is nothing to try."""
        if failure is not None:
            yield from ((index, failure.outcome(file.sop_instance_uid)) for index, file in batch.items())
            return
        limit = self.object_timeout * len(batch) + _RELEASE_MARGIN_S
        pairs = {pair for file in batch.values() for pair in _pairs(file)}
        contexts = [build_context(*pair) for pair in sorted(pairs)]
        with _Link(self, contexts, limit) as link:
            for number, (index, file) in enumerate(batch.items()):
                if link.refused_all():
                    yield index, _no_context(file)
                elif link.failure is not None or link.association is None:
                    yield index, (link.failure or link.broken()).outcome(file.sop_instance_uid)
                else:
                    yield index, _store(link, link.association, file, number)

    def _log(self, outcomes: dict[int, Outcome]) -> None:
        stored = sum(outcome.kind.stored for outcome in outcomes.values())
        logger.info("%s: %d of %d objects stored", self.name, stored, len(outcomes))
        for detail in sorted({outcome.detail for outcome in outcomes.values() if not outcome.kind.stored}):
            logger.warning("%s: %s", self.name, detail)

    def echo(self) -> EchoResult:
        """Send a C-ECHO."""
        start = time.monotonic()
        with _Link(self, [build_context(Verification)], _QUERY_LIMIT_S) as link:
            if link.failure is not None or link.association is None:
                detail = (link.failure or link.broken()).detail
                return EchoResult(False, time.monotonic() - start, detail)
            try:
                status = link.association.send_c_echo().get("Status")
            except (RuntimeError, ValueError):  # ended by the peer meanwhile
                status = None
            seconds = time.monotonic() - start
            if status is None:
                return EchoResult(False, seconds, link.broken().detail)
            detail = "answers" if status == 0 else f"answered with status {status:04X}H"
            return EchoResult(status == 0, seconds, detail)

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Ask for each object by C-FIND at the IMAGE level (PS3.4 C.6.2)."""
        found: dict[str, bool | None] = {item.sop_instance_uid: None for item in objects}
        if not self._verifies or not objects:
            return found
        model = build_context(StudyRootQueryRetrieveInformationModelFind)
        with _Link(self, [model], _QUERY_LIMIT_S) as link:
            for item in objects:
                if link.failure is not None or link.association is None:
                    break
                found[item.sop_instance_uid] = _find(link, link.association, item)
        return found


def _pairs(file: ObjectFile) -> list[tuple[str, str]]:
    """The (SOP class, transfer syntax) pairs to propose for a file, each as its own context.

    One context for each transfer syntax: an acceptor picks only one of several (PS3.8 7.1.1.14).
    """
    pairs = [(file.sop_class_uid, file.transfer_syntax_uid)]
    if file.transfer_syntax_uid == ExplicitVRLittleEndian:
        pairs.append((file.sop_class_uid, ImplicitVRLittleEndian))
    return pairs


def _batches(files: dict[int, ObjectFile]) -> Iterator[dict[int, ObjectFile]]:
    """Cut the files, in order, so that each part fits into one association."""
    batch: dict[int, ObjectFile] = {}
    proposed: set[tuple[str, str]] = set()
    for index, file in files.items():
        wanted = proposed.union(_pairs(file))
        if len(wanted) > MAX_CONTEXTS:
            yield batch
            batch, wanted = {}, set(_pairs(file))
        batch[index] = file
        proposed = wanted
    if batch:
        yield batch


def _no_context(file: ObjectFile) -> Outcome:
    sop_class, syntax = UID(file.sop_class_uid), UID(file.transfer_syntax_uid)
    detail = f"the peer accepts no presentation context for {sop_class.name} in {syntax.name}"
    return Outcome(file.sop_instance_uid, OutcomeKind.PERMANENT, None, detail)


def _store(link: _Link, association: Association, file: ObjectFile, number: int) -> Outcome:
    """Send one file over an established association."""
    accepted = {
        (context.abstract_syntax, context.transfer_syntax[0]) for context in association.accepted_contexts
    }
    usable = [pair for pair in _pairs(file) if pair in accepted]
    if not usable:
        return _no_context(file)
    try:
        # A path is sent as the bytes of the file; only for the fallback they are decoded and encoded again.
        as_it_is = usable[0][1] == file.transfer_syntax_uid
        answer = association.send_c_store(file.path if as_it_is else dcmread(file.path), number % 65535 + 1)
    except RuntimeError:  # the association ended since the last object
        return link.broken().outcome(file.sop_instance_uid)
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("an object can't be read or encoded (%s)", type(error).__name__)
        detail = "the file can't be read or encoded for sending"
        return Outcome(file.sop_instance_uid, OutcomeKind.PERMANENT, None, detail)
    status = answer.get("Status")
    if status is None:
        return link.broken().outcome(file.sop_instance_uid)
    return outcome_of_status(file.sop_instance_uid, int(status))


def _find(link: _Link, association: Association, item: ObjectRef) -> bool | None:
    """Ask for one object; None where the answer is not clear."""
    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = item.study_uid
    query.SeriesInstanceUID = item.series_uid
    query.SOPInstanceUID = item.sop_instance_uid
    found = False
    status: int | None = None
    try:
        for answer, identifier in association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            status = answer.get("Status")
            if identifier is not None and identifier.get("SOPInstanceUID") == item.sop_instance_uid:
                found = True
    except (RuntimeError, ValueError):  # the association ended since the last query
        status = None
    if status is None:
        link.broken()
    return found if status == 0x0000 else None


def send_files(
    host: str,
    port: int,
    called_ae: str,
    calling_ae: str,
    paths: Sequence[Path],
    *,
    progress: Progress | None = None,
) -> tuple[Outcome, ...]:
    """Send DICOM files to any C-STORE peer; see `DimseDestination.send`."""
    destination = DimseDestination(called_ae, host, port, called_ae, calling_ae, verify="none")
    return destination.send(paths, progress=progress)
