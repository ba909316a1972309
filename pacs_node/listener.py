"""The DICOM listener: who may send, and success only for what is durable.

Loads no torch and decodes no pixel. The order in `Listener.on_store` is the promise: space, identity,
file, row, then 0x0000.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.acse import ACSE
from pynetdicom.association import Association as Peer
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.pdu_primitives import A_ASSOCIATE
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from pacs_node import audit, db, reception
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Caller, ListenerSettings, Settings
from pacs_node.errors import NodeError, OutOfSpaceError, UnreadableInstanceError
from pacs_node.reception import Reception
from pacs_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, Spool, StoredFile
from pacs_node.storage import open_database, open_spool

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATASET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110

_VERIFICATION = UID("1.2.840.10008.1.1")

_REJECTED_PERMANENT, _BY_SERVICE_USER = 0x01, 0x01
_CALLING_AE_UNKNOWN, _CALLED_AE_UNKNOWN = 0x03, 0x07


class _Sender(NamedTuple):
    calling_ae: str
    called_ae: str
    address: str


def _sender(peer: Peer) -> _Sender:
    request = cast(A_ASSOCIATE, peer.requestor.primitive)
    return _Sender(
        request.calling_ae_title.strip(), request.called_ae_title.strip(), str(peer.requestor.address)
    )


class _AdmittingACSE(ACSE):
    """Association negotiation that asks the node first who may enter (PS3.8 9.3.4 reject reasons)."""

    def __init__(self, assoc: Peer, refusal: int | None) -> None:
        super().__init__(assoc)
        self._refusal = refusal

    def negotiate_association(self) -> None:
        if self._refusal is None:
            super().negotiate_association()
            return
        self.send_reject(_REJECTED_PERMANENT, _BY_SERVICE_USER, self._refusal)
        evt.trigger(self.assoc, evt.EVT_REJECTED, {})
        self.assoc.kill()


class Listener:
    """Storage and verification SCP.

    Parameters
    ----------
    settings, callers
        Where to listen and who may send; everybody else is refused.
    database, spool
        Where instances become rows and files.
    clock
        Source of the times in the rows.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        callers: Sequence[Caller],
        database: db.Database,
        spool: Spool,
        clock: Clock = utc_now,
    ) -> None:
        self._settings = settings
        self._callers = tuple(callers)
        self._database = database
        self._spool = spool
        self._clock = clock
        self._rows: dict[Peer, int] = {}
        self._rows_lock = threading.Lock()
        self._server: Any = None

    def start(self) -> int:
        """Begin to listen; return the port."""
        self._close_lost_associations()
        removed = self._spool.sweep()
        if removed:
            logger.info("removed interrupted files", extra={"count": removed})
        handlers = [
            (evt.EVT_REQUESTED, self.on_request),
            (evt.EVT_C_ECHO, lambda _event: SUCCESS),
            (evt.EVT_C_STORE, self.on_store),
            (evt.EVT_RELEASED, lambda event: self._close(event.assoc, "released")),
            (evt.EVT_ABORTED, lambda event: self._close(event.assoc, "aborted")),
            (evt.EVT_CONN_CLOSE, lambda event: self._close(event.assoc, "aborted")),
        ]
        address = (self._settings.host, self._settings.port)
        self._server = self._application_entity().start_server(address, block=False, evt_handlers=handlers)
        port = int(self._server.socket.getsockname()[1])
        logger.info("listening", extra={"ae_title": self._settings.ae_title, "port": port})
        return port

    def stop(self) -> None:
        """Stop listening and abort what is open."""
        if self._server is not None:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()

    def _application_entity(self) -> Any:
        entity = AE(ae_title=self._settings.ae_title)
        entity.maximum_associations = self._settings.max_associations
        entity.maximum_pdu_size = self._settings.max_pdu_bytes
        entity.acse_timeout = self._settings.acse_timeout_seconds
        entity.dimse_timeout = self._settings.dimse_timeout_seconds
        entity.network_timeout = self._settings.network_timeout_seconds
        entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
        entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        entity.add_supported_context(_VERIFICATION)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(
                cast(UID, context.abstract_syntax), list(DECODABLE_TRANSFER_SYNTAXES)
            )
        return entity

    def on_request(self, event: Event) -> None:
        """Decide whether the peer may open an association."""
        # first of all closed: pynetdicom goes on to accept when an error leaves this function
        event.assoc.acse = _AdmittingACSE(event.assoc, _CALLING_AE_UNKNOWN)
        sender = _sender(event.assoc)
        refusal = None
        if sender.called_ae != self._settings.ae_title:
            refusal = _CALLED_AE_UNKNOWN
        elif not any(caller.admits(sender.calling_ae, sender.address) for caller in self._callers):
            refusal = _CALLING_AE_UNKNOWN
        event.assoc.acse = _AdmittingACSE(event.assoc, refusal)
        if refusal is not None:
            self._record_refusal(sender)

    def on_store(self, event: Event) -> int:
        """Answer one C-STORE request; the status tells the truth about what is on disk."""
        request = cast(C_STORE, event.request)
        syntax = str(event.context.transfer_syntax)
        dataset = event.encoded_dataset(include_meta=False)
        try:
            self._spool.check_space(len(dataset))
            identity = reception.read_identity(dataset, syntax)
            if (identity.sop_class_uid, identity.sop_instance_uid) != (
                str(request.AffectedSOPClassUID),
                str(request.AffectedSOPInstanceUID),
            ):
                return self._refuse(
                    event, DATASET_MISMATCH, "the data set is not the object that the request names"
                )
            stored = self._spool.write(
                dataset,
                sop_class_uid=identity.sop_class_uid,
                sop_instance_uid=identity.sop_instance_uid,
                transfer_syntax_uid=syntax,
            )
            answer = self._record(event, identity, stored, syntax)
        except OutOfSpaceError as error:
            return self._refuse(event, OUT_OF_RESOURCES, str(error))
        except UnreadableInstanceError as error:
            return self._refuse(event, CANNOT_UNDERSTAND, str(error))
        except (OSError, SQLAlchemyError, NodeError) as error:
            # whatever is on disk now has no row: the sender must keep the instance
            logger.exception("instance could not be stored")
            return self._refuse(event, PROCESSING_FAILURE, type(error).__name__)
        if answer is Reception.ELSEWHERE:
            return self._refuse(event, DATASET_MISMATCH, "another series has an instance of this UID")
        return SUCCESS

    def _record(
        self, event: Event, identity: reception.Identity, stored: StoredFile, transfer_syntax_uid: str
    ) -> Reception:
        now = self._clock()
        with self._database.write() as session:
            association_id = self._association_row(session, event.assoc)
            answer = reception.record_instance(
                session,
                identity,
                stored,
                transfer_syntax_uid=transfer_syntax_uid,
                association_id=association_id,
                calling_ae=_sender(event.assoc).calling_ae,
                at=now,
            )
            if not self._spool.absolute(stored.path).exists():
                # an old copy that retention removed just now: the sender has to send it again
                raise FileNotFoundError(stored.path)
        with self._rows_lock:
            self._rows[event.assoc] = association_id
        if answer in {Reception.OWN_RESULT, Reception.ELSEWHERE}:
            self._spool.remove(stored.path)
        return answer

    def _association_row(self, session: Session, peer: Peer) -> int:
        with self._rows_lock:
            known = self._rows.get(peer)
        if known is not None:
            return known
        sender = _sender(peer)
        row = db.Association(calling_ae=sender.calling_ae, address=sender.address, opened_at=self._clock())
        session.add(row)
        session.flush()
        return row.id

    def _refuse(self, event: Event, status: int, reason: str) -> int:
        logger.warning("instance refused", extra={"status": f"{status:04X}", "reason": reason})
        try:
            with self._database.write() as session:
                audit.record(
                    session,
                    audit.Event.INSTANCE_REFUSED,
                    at=self._clock(),
                    actor="listener",
                    outcome=audit.Outcome.MINOR_FAILURE,
                    calling_ae=_sender(event.assoc).calling_ae,
                    sop_instance_uid=str(cast(C_STORE, event.request).AffectedSOPInstanceUID)[:64],
                    status=f"{status:04X}",
                    reason=reason,
                )
        except SQLAlchemyError:
            logger.exception("refusal could not be recorded")
        return status

    def _record_refusal(self, sender: _Sender) -> None:
        logger.warning("association refused", extra=sender._asdict())
        try:
            with self._database.write() as session:
                audit.record(
                    session,
                    audit.Event.ASSOCIATION_REFUSED,
                    at=self._clock(),
                    actor="listener",
                    outcome=audit.Outcome.MINOR_FAILURE,
                    **sender._asdict(),
                )
        except SQLAlchemyError:
            logger.exception("refusal could not be recorded")

    def _close(self, peer: Peer, ending: str) -> None:
        with self._rows_lock:
            row = self._rows.pop(peer, None)
        if row is None:
            return
        with self._database.write() as session:
            session.execute(
                update(db.Association)
                .where(db.Association.id == row)
                .values(closed_at=self._clock(), ending=ending)
            )

    def _close_lost_associations(self) -> None:
        """Associations that were open when the node stopped are over."""
        with self._database.write() as session:
            session.execute(
                update(db.Association)
                .where(db.Association.closed_at.is_(None))
                .values(closed_at=self._clock(), ending="lost")
            )


def run(settings: Settings, stop: threading.Event) -> None:
    """Receive until `stop` is set."""
    database = open_database(settings)
    listener = Listener(settings.listener, settings.callers, database, open_spool(settings))
    listener.start()
    stop.wait()
    listener.stop()
    database.dispose()
