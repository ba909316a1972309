"""The DICOM listener: who may send, and success only for what is durable.

Loads no torch and decodes no pixel. What becomes of an object stands in `pacs_node.receiving`.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence

from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts
from sqlalchemy import update
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from pacs_node import db, tls
from pacs_node.backlog import Backlog
from pacs_node.clock import Clock, utc_now
from pacs_node.commitment import PUSH_MODEL, TRANSFER_SYNTAXES
from pacs_node.config import Caller, DicomDestination, ListenerSettings, Settings
from pacs_node.damage import ended_badly, give_up_damaged
from pacs_node.errors import DiskFailedError, NodeError, ThreadEndedError
from pacs_node.gate import Gate
from pacs_node.gate_association import Acceptor, Ending, Terms
from pacs_node.gate_pdu import Rejection
from pacs_node.gate_record import RefusalRecord
from pacs_node.gate_visitor import Admitted, Limits, Refusal, Visitor
from pacs_node.notices import Notices
from pacs_node.receiving import Receiving
from pacs_node.recorder import Recorder
from pacs_node.recovery import recover
from pacs_node.row_errors import is_disk_failure
from pacs_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Incoming, Spool
from pacs_node.storage import open_database, open_spool

logger = logging.getLogger(__name__)

_VERIFICATION = UID("1.2.840.10008.1.1")
_BACKLOG = 512
_STOP_S = 15.0
_LOOK_S = 0.5


class Listener:
    """SCP of storage, verification and storage commitment.

    Parameters
    ----------
    settings, callers
        Where to listen and who may send; everybody else is refused.
    database, spool
        Where instances become rows and files.
    clock
        Source of the times in the rows.
    called_back
        AE titles that take storage commitment reports where a destination of theirs listens; of the others
        those do of which the callers say so.
    reporters
        By the name of a destination, the AE title under which it reports storage commitment.
    backlog
        Says whether there is room for more; None: there always is.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        callers: Sequence[Caller],
        database: db.Database,
        spool: Spool,
        clock: Clock = utc_now,
        *,
        called_back: Collection[str] = (),
        reporters: Mapping[str, str] | None = None,
        backlog: Backlog | None = None,
    ) -> None:
        self._backlog = backlog
        self._settings = settings
        self._callers = tuple(callers)
        self._database = database
        self._spool = spool
        self._clock = clock
        self._called_back = frozenset(called_back)
        self._reporters = reporters or {}
        self._terms = _terms(settings)
        self._refusals = RefusalRecord(database, clock)
        self._recorder = Recorder(database, spool, clock, on_trouble=self._look_at)
        self.failed = threading.Event()
        """Set when the disk has lost something: what runs the listener must end it and start it anew."""
        self._associations: dict[Acceptor[Incoming], threading.Thread] = {}
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._sweeper: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> int:
        """Begin to listen; return the port.

        Raises
        ------
        ConfigurationError
            The files for TLS can't be used.
        """
        settings = self._settings
        files = settings.tls_files()
        context = None if files is None else tls.server_context(files, "listener")
        self._close_lost_associations()
        removed = self._spool.sweep()
        if removed:
            logger.info("removed interrupted files", extra={"count": removed})
        listening = _listening_socket(settings.host, settings.port)
        port = int(listening.getsockname()[1])
        self._gate = Gate(
            listening,
            judge=self._judge,
            admit=self._admit,
            refused=self._refusals.add,
            context=context,
            limits=Limits(request_seconds=settings.acse_timeout_seconds),
        )
        # before anything is received: what is there now and has no row was left by a killed listener
        before = list(self._spool.stored())
        self._recorder.start()
        self._refusals.start()
        if self._backlog is not None:
            self._backlog.start()
        self._gate.start()
        self._sweeper = threading.Thread(target=self._recover, args=(before,), name="sweep", daemon=True)
        self._sweeper.start()
        logger.info(
            "listening", extra={"ae_title": settings.ae_title, "port": port, "tls": context is not None}
        )
        return port

    def dead(self) -> str | None:
        """Name a thread that has ended and without which nothing is received or recorded; None: all live."""
        watched: dict[str, Gate | Recorder | RefusalRecord | Backlog | None] = {
            "gate": self._gate,
            "recorder": self._recorder,
            "refusals": self._refusals,
            "backlog": self._backlog,
        }
        return next((name for name, part in watched.items() if part is not None and not part.is_alive), None)

    def stop(self) -> None:
        """Stop listening and abort what is open, each after the message that it is at."""
        self._stopping.set()
        if self._gate is None:
            return
        self._gate.stop()
        with self._lock:
            running = dict(self._associations)
        for acceptor in running:
            acceptor.stop()
        deadline = time.monotonic() + _STOP_S
        for thread in running.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._sweeper is not None:
            self._sweeper.join()
        self._recorder.stop()
        self._refusals.stop()
        if self._backlog is not None:
            self._backlog.stop()

    def _look_at(self, trouble: Exception) -> None:
        if is_disk_failure(trouble) and not self.failed.is_set():
            logger.critical("the disk failed: the listener takes nothing more and ends")
            self.failed.set()

    def flush(self) -> None:
        """Wait until the rows of all that was acknowledged are written; raises as `Recorder.flush`."""
        self._recorder.flush()

    def _recover(self, files: list[str]) -> None:
        """Write the rows of what a killed listener had acknowledged but not recorded."""
        try:
            count = recover(self._recorder, files)
            since = ended_badly(self._database)
            if since is not None:
                pause = self._stopping.wait
                give_up_damaged(self._database, self._spool, since, self._clock, pause)
        except (OSError, SQLAlchemyError, NodeError):
            logger.exception("files without a row could not be recorded; the next start tries again")
            return
        if count:
            logger.info("looked at files without a row", extra={"count": count})

    def _judge(self, visitor: Visitor) -> Refusal | None:
        """Decide whether the peer may open an association."""
        refusal = judge(visitor, self._callers, self._settings.ae_title)
        if refusal is None and len(self._associations) >= self._settings.max_associations:
            return Refusal(Rejection.LIMIT_EXCEEDED, "too many associations at once")
        if refusal is None and self._backlog is not None and self._backlog.reason is not None:
            return Refusal(Rejection.LIMIT_EXCEEDED, "too much waits for analysis")
        return refusal

    def _admit(self, admitted: Admitted) -> None:
        notices = self._notices(admitted.visitor)
        intake = Receiving(admitted.visitor, self._recorder, notices, self._refusals)
        acceptor = Acceptor(admitted.connection, admitted.request, self._terms, intake)
        thread = threading.Thread(
            target=self._serve, args=(acceptor, intake), name="association", daemon=True
        )
        with self._lock:
            # in this order: what could not be started is nobody's, and the gate says so
            thread.start()
            self._associations[acceptor] = thread

    def _notices(self, visitor: Visitor) -> Notices:
        calls_back = visitor.calling_ae in self._called_back or any(
            caller.report_port is not None
            for caller in self._callers
            if caller.admits(visitor.calling_ae, visitor.address)
        )
        directory = self._spool.directory
        return Notices(
            visitor,
            self._database,
            directory,
            self._clock,
            calls_back=calls_back,
            reporters=self._reporters,
        )

    def _serve(self, acceptor: Acceptor[Incoming], intake: Receiving) -> None:
        ending = Ending.ABORTED
        try:
            ending = acceptor.run()
        except Exception:
            # whatever one association raises ends that one and no other
            logger.exception("an association ended by a fault of this software")
        finally:
            intake.close(ending)
            with self._lock:
                del self._associations[acceptor]
            if acceptor.breach is not None:
                self._refusals.add(intake.visitor, acceptor.breach)

    def _close_lost_associations(self) -> None:
        """Associations that were open when the node stopped are over."""
        try:
            with self._database.write() as session:
                session.execute(
                    update(db.Association)
                    .where(db.Association.closed_at.is_(None))
                    .values(closed_at=self._clock(), ending="lost")
                )
        except OperationalError as error:
            if not db.is_full(error):
                raise
            # better to refuse honestly than not to answer; their series wait for the longer silence
            logger.exception("lost associations could not be recorded")


def judge(visitor: Visitor, callers: Sequence[Caller], ae_title: str) -> Refusal | None:
    """Hold a visitor against the callers; None where one of them admits it.

    Parameters
    ----------
    ae_title
        The listener's own, which a caller calls unless it says otherwise.
    """
    known = [caller for caller in callers if caller.ae_title == visitor.calling_ae]
    if not known:
        return Refusal(Rejection.CALLING_AE_UNKNOWN, "unknown calling AE title")
    known = [caller for caller in known if caller.is_from(visitor.address)]
    if not known:
        return Refusal(Rejection.CALLING_AE_UNKNOWN, "known calling AE title from another address")
    known = [caller for caller in known if caller.certificate_sha256 in {None, visitor.certificate}]
    if not known:
        return Refusal(Rejection.CALLING_AE_UNKNOWN, "known calling AE title with another certificate")
    if visitor.called_ae not in {caller.called_ae_title or ae_title for caller in known}:
        return Refusal(Rejection.CALLED_AE_UNKNOWN, "called by another AE title")
    return None


def _terms(settings: ListenerSettings) -> Terms:
    syntaxes = [str(uid) for uid in DECODABLE_TRANSFER_SYNTAXES]
    contexts = {str(context.abstract_syntax): syntaxes for context in AllStoragePresentationContexts}
    return Terms(
        contexts={
            _VERIFICATION: ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"],
            PUSH_MODEL: list(TRANSFER_SYNTAXES),
            **contexts,
        },
        notices=frozenset([PUSH_MODEL]),
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        max_pdu_bytes=settings.max_pdu_bytes,
        idle_seconds=settings.network_timeout_seconds,
        grace_seconds=settings.dimse_timeout_seconds,
        association_seconds=60 * settings.association_minutes,
    )


def _listening_socket(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    everywhere = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        (str(address[0]), port), family=family, backlog=_BACKLOG, dualstack_ipv6=everywhere
    )


def _allow_many_files() -> None:
    """Each connection and each object on its way takes a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(settings: Settings, stop: threading.Event) -> None:
    """Receive until `stop` is set."""
    _allow_many_files()
    database = open_database(settings)
    destinations = [item for item in settings.destinations if isinstance(item, DicomDestination)]
    listener = Listener(
        settings.listener,
        settings.callers,
        database,
        open_spool(settings),
        called_back=[item.ae_title for item in destinations],
        reporters={item.name: item.reports_as or item.ae_title for item in destinations},
        backlog=Backlog(database, settings.backlog),
    )
    listener.start()
    trouble: NodeError | None = None
    while trouble is None and not stop.wait(_LOOK_S):
        trouble = _trouble(listener)
    # whatever hangs on a failed disk must not keep this process
    last_resort = threading.Timer(_STOP_S, os._exit, [1])
    last_resort.daemon = True
    if trouble is not None:
        last_resort.start()
    listener.stop()
    database.dispose()
    last_resort.cancel()
    if trouble is not None:
        raise trouble


def _trouble(listener: Listener) -> NodeError | None:
    """Why this process must end, so that the supervisor starts it anew."""
    if listener.failed.is_set():
        return DiskFailedError("the disk has failed")
    dead = listener.dead()
    return None if dead is None else ThreadEndedError(f"the thread {dead} has ended")
