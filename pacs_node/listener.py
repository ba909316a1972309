"""The DICOM listener: who may send, and success only for what is durable.

Loads no torch and decodes no pixel. The order in `_Intake` is the promise: space, identity, file, row, then
0x0000.
"""

from __future__ import annotations

import logging
import resource
import socket
import threading
import time
from collections.abc import Collection, Sequence

from pydicom.uid import UID
from pynetdicom import AllStoragePresentationContexts
from sqlalchemy import update
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from pacs_node import audit, db, reception, tls
from pacs_node.clock import Clock, utc_now
from pacs_node.commitment import PUSH_MODEL, TRANSFER_SYNTAXES
from pacs_node.config import Caller, DicomDestination, ListenerSettings, Settings
from pacs_node.errors import NodeError, OutOfSpaceError, UnreadableInstanceError
from pacs_node.gate import Admitted, Gate, Limits, Refusal, Visitor
from pacs_node.gate_association import Acceptor, Answer, Ending, StoreRequest, Terms
from pacs_node.gate_pdu import Rejection
from pacs_node.gate_record import RefusalRecord
from pacs_node.notices import Notices
from pacs_node.reception import Reception
from pacs_node.spool import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    Incoming,
    Spool,
    StoredFile,
)
from pacs_node.storage import open_database, open_spool

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATASET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110

_VERIFICATION = UID("1.2.840.10008.1.1")
_NO_UID = "2.25.0"
_HEAD_BYTES = 4 << 20
_BACKLOG = 512
_STOP_S = 15.0


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
    ) -> None:
        self._settings = settings
        self._callers = tuple(callers)
        self._database = database
        self._spool = spool
        self._clock = clock
        self._called_back = frozenset(called_back)
        self._terms = _terms(settings)
        self._refusals = RefusalRecord(database, clock)
        self._associations: dict[Acceptor[Incoming], threading.Thread] = {}
        self._lock = threading.Lock()
        self._gate: Gate | None = None
        self._sweeper: threading.Thread | None = None

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
        # before anything is received: a file that is there now and has no row was never acknowledged
        before = list(self._spool.stored())
        self._refusals.start()
        self._gate.start()
        self._sweeper = threading.Thread(
            target=self._remove_orphans, args=(before,), name="sweep", daemon=True
        )
        self._sweeper.start()
        logger.info(
            "listening", extra={"ae_title": settings.ae_title, "port": port, "tls": context is not None}
        )
        return port

    def stop(self) -> None:
        """Stop listening and abort what is open, each after the message that it is at."""
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
        self._refusals.stop()

    def _remove_orphans(self, files: list[str]) -> None:
        """Remove what a killed listener had written but not recorded; its sender has it still."""
        try:
            with self._database.read() as session:
                named = reception.recorded_paths(session)
            for path in files:
                if path not in named:
                    self._remove_orphan(path)
        except (OSError, SQLAlchemyError):
            logger.exception("files without a row could not be removed")

    def _remove_orphan(self, path: str) -> None:
        # with the write lock: the same bytes may be arriving, and a row is only made of a file that is there
        with self._database.write() as session:
            if not reception.is_recorded(session, path):
                self._spool.remove(path)
                logger.info("removed a file without a row", extra={"path": path})

    def _judge(self, visitor: Visitor) -> Refusal | None:
        """Decide whether the peer may open an association."""
        refusal = judge(visitor, self._callers, self._settings.ae_title)
        if refusal is None and len(self._associations) >= self._settings.max_associations:
            return Refusal(Rejection.LIMIT_EXCEEDED, "too many associations at once")
        return refusal

    def _admit(self, admitted: Admitted) -> None:
        intake = _Intake(
            admitted.visitor, self._database, self._spool, self._clock, self._notices(admitted.visitor)
        )
        acceptor = Acceptor(admitted.connection, admitted.request, self._terms, intake)
        thread = threading.Thread(
            target=self._serve, args=(acceptor, intake), name="association", daemon=True
        )
        with self._lock:
            self._associations[acceptor] = thread
        thread.start()

    def _notices(self, visitor: Visitor) -> Notices:
        calls_back = visitor.calling_ae in self._called_back or any(
            caller.report_port is not None
            for caller in self._callers
            if caller.admits(visitor.calling_ae, visitor.address)
        )
        directory = self._spool.directory
        return Notices(visitor, self._database, directory, self._clock, calls_back=calls_back)

    def _serve(self, acceptor: Acceptor[Incoming], intake: _Intake) -> None:
        ending = Ending.ABORTED
        try:
            ending = acceptor.run()
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


class _MismatchError(Exception):
    """The object isn't what was announced; the text is a sentence of ours."""


class _Intake:
    """Makes the instances of one association durable."""

    def __init__(
        self, visitor: Visitor, database: db.Database, spool: Spool, clock: Clock, notices: Notices
    ) -> None:
        self.visitor = visitor
        self.notice = notices.answer
        self.event_taken = notices.event_taken
        self._database = database
        self._spool = spool
        self._clock = clock
        self._row: int | None = None

    def begin(self, request: StoreRequest) -> Incoming:
        """Make ready for a data set; UIDs that are none don't get into its file."""
        return self._spool.begin(
            sop_class_uid=_uid_or_none(request.sop_class_uid),
            sop_instance_uid=_uid_or_none(request.sop_instance_uid),
            transfer_syntax_uid=request.transfer_syntax,
        )

    def store(self, request: StoreRequest, sink: Incoming) -> Answer:
        """Answer one C-STORE request; the status tells the truth about what is on disk."""
        try:
            self._store(request, sink)
        except OutOfSpaceError as error:
            return self._refuse(request, OUT_OF_RESOURCES, str(error))
        except UnreadableInstanceError as error:
            return self._refuse(request, CANNOT_UNDERSTAND, str(error))
        except _MismatchError as error:
            return self._refuse(request, DATASET_MISMATCH, str(error))
        except (OSError, SQLAlchemyError, NodeError) as error:
            if db.is_full(error):
                return self._refuse(request, OUT_OF_RESOURCES, "no room for the database to grow")
            # whatever is on disk now has no row: the sender must keep the instance
            logger.exception("instance could not be stored")
            return self._refuse(request, PROCESSING_FAILURE, type(error).__name__)
        return Answer(SUCCESS)

    def _store(self, request: StoreRequest, sink: Incoming) -> None:
        identity = reception.read_identity(sink.head(_HEAD_BYTES), request.transfer_syntax)
        if (identity.sop_class_uid, identity.sop_instance_uid) != request[:2]:
            raise _MismatchError("the data set is not the object that the request names")
        if request.sop_class_uid != request.abstract_syntax:
            raise _MismatchError("the object is not of the class that was agreed on")
        if self._record(identity, sink.keep(), request.transfer_syntax) is Reception.ELSEWHERE:
            raise _MismatchError("another series has an instance of this UID")

    def _record(
        self, identity: reception.Identity, stored: StoredFile, transfer_syntax_uid: str
    ) -> Reception:
        with self._database.write() as session:
            association_id = self._association(session)
            outcome = reception.record_instance(
                session,
                identity,
                stored,
                transfer_syntax_uid=transfer_syntax_uid,
                association_id=association_id,
                calling_ae=self.visitor.calling_ae,
                at=self._clock(),
            )
            if not self._spool.absolute(stored.path).exists():
                # an old copy that retention removed just now: the sender has to send it again
                raise FileNotFoundError(stored.path)
        self._row = association_id
        if outcome in {Reception.OWN_RESULT, Reception.ELSEWHERE}:
            self._spool.remove(stored.path)
        return outcome

    def _association(self, session: Session) -> int:
        if self._row is not None:
            return self._row
        row = db.Association(
            calling_ae=self.visitor.calling_ae, address=self.visitor.address, opened_at=self._clock()
        )
        session.add(row)
        session.flush()
        return row.id

    def _refuse(self, request: StoreRequest, status: int, reason: str) -> Answer:
        logger.warning("instance refused", extra={"status": f"{status:04X}", "reason": reason})
        try:
            with self._database.write() as session:
                audit.record(
                    session,
                    audit.Event.INSTANCE_REFUSED,
                    at=self._clock(),
                    actor="listener",
                    outcome=audit.Outcome.MINOR_FAILURE,
                    calling_ae=self.visitor.calling_ae,
                    sop_instance_uid=request.sop_instance_uid[:64],
                    status=f"{status:04X}",
                    reason=reason,
                )
        except SQLAlchemyError:
            logger.exception("refusal could not be recorded")
        return Answer(status, reason)

    def close(self, ending: Ending) -> None:
        """Write down how the association ended, if anything came by it."""
        if self._row is None:
            return
        try:
            with self._database.write() as session:
                session.execute(
                    update(db.Association)
                    .where(db.Association.id == self._row)
                    .values(closed_at=self._clock(), ending=ending.value)
                )
        except SQLAlchemyError:
            # it counts as lost at the next start; its series closes by the longer silence
            logger.exception("the end of an association could not be recorded")


def _uid_or_none(text: str) -> str:
    """Replace what is no UID; such an object is refused when it is there, as nothing can be called so."""
    return text if reception.is_uid(text) else _NO_UID


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
    destinations = [item.ae_title for item in settings.destinations if isinstance(item, DicomDestination)]
    listener = Listener(
        settings.listener, settings.callers, database, open_spool(settings), called_back=destinations
    )
    listener.start()
    stop.wait()
    listener.stop()
    database.dispose()
