"""What the listener does with the objects of one association.

The order in `Receiving` is the promise: space, identity, file, row, then success.
"""

from __future__ import annotations

import logging

from sqlalchemy.exc import SQLAlchemyError

from inference.uids import is_uid
from pacs_node import audit, db, reception
from pacs_node.errors import NodeError, ObjectTooLargeError, OutOfSpaceError, UnreadableInstanceError
from pacs_node.gate_association import Answer, Ending, Notice, StoreRequest
from pacs_node.gate_record import RefusalRecord
from pacs_node.gate_visitor import Visitor
from pacs_node.notices import Notices
from pacs_node.reception import Arrival, Identity, Reception
from pacs_node.recorder import Origin, Recorder
from pacs_node.spool import Incoming

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DATASET_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
PROCESSING_FAILURE = 0x0110

_SHORT_HEAD_BYTES = 1 << 15
_NO_UID = "2.25.0"
_NO_ROOM = "too little room on the disk"


class _MismatchError(Exception):
    """The object isn't what was announced; the text is a sentence of ours."""


class Receiving:
    """Makes the instances of one association durable, and answers its notices.

    Parameters
    ----------
    visitor
        Who sends.
    recorder, refusals
        Of the listener: they write the rows.
    """

    def __init__(
        self, visitor: Visitor, recorder: Recorder, notices: Notices, refusals: RefusalRecord
    ) -> None:
        self.visitor = visitor
        self.event_taken = notices.event_taken
        self._notices = notices
        self._database, self._spool, self._clock = recorder.database, recorder.spool, recorder.clock
        self._recorder, self._refusals = recorder, refusals
        self._origin = Origin(visitor.calling_ae, visitor.address, self._clock())

    def begin(self, request: StoreRequest) -> Incoming:
        """Make ready for a data set; UIDs that are none don't get into its file."""
        return self._spool.begin(
            sop_class_uid=_uid_or_none(request.sop_class_uid),
            sop_instance_uid=_uid_or_none(request.sop_instance_uid),
            transfer_syntax_uid=request.transfer_syntax,
            source_ae=self.visitor.calling_ae,
        )

    def store(self, request: StoreRequest, sink: Incoming) -> Answer:
        """Answer one C-STORE request; the status tells the truth about what is on disk."""
        try:
            self._store(request, sink)
        except OutOfSpaceError as error:
            if isinstance(error, ObjectTooLargeError):
                return self._refuse(request, OUT_OF_RESOURCES, str(error))
            return self._no_room(str(error))
        except (UnreadableInstanceError, _MismatchError) as error:
            unreadable = isinstance(error, UnreadableInstanceError)
            return self._refuse(request, CANNOT_UNDERSTAND if unreadable else DATASET_MISMATCH, str(error))
        except (OSError, SQLAlchemyError, NodeError) as error:
            if db.is_full(error):
                return self._no_room("no room for the database to grow")
            # whatever is on disk now has no row: the sender must keep the instance
            self._recorder.report(error)
            logger.exception("instance could not be stored")
            return self._refuse(request, PROCESSING_FAILURE, type(error).__name__)
        return Answer(SUCCESS)

    def _store(self, request: StoreRequest, sink: Incoming) -> None:
        identity = _identity(sink, request.transfer_syntax)
        if (identity.sop_class_uid, identity.sop_instance_uid) != request[:2]:
            raise _MismatchError("the data set is not the object that the request names")
        if request.sop_class_uid != request.abstract_syntax:
            raise _MismatchError("the object is not of the class that was agreed on")
        self._recorder.check()
        with self._recorder.claim(identity.sop_instance_uid, sink.digest):
            stored = sink.keep()
            arrival = Arrival(
                identity, stored, request.transfer_syntax, self.visitor.calling_ae, self._clock()
            )
            outcome = self._recorder.record(self._origin, arrival)
        if outcome is Reception.ELSEWHERE:
            raise _MismatchError("another series has an instance of this UID")

    def notice(self, notice: Notice) -> Answer:
        """Answer one notice; all that was acknowledged before it has its rows."""
        return self._notices.answer(notice)

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

    def _no_room(self, reason: str) -> Answer:
        """Refuse; in the record with a count: a row for each object would take the room that is left."""
        self._refusals.add(self.visitor, _NO_ROOM, f"{OUT_OF_RESOURCES:04X}")
        return Answer(OUT_OF_RESOURCES, reason)

    def close(self, ending: Ending) -> None:
        """Have it written down how the association ended, if anything came by it."""
        self._recorder.end(self._origin, ending.value)


def _identity(sink: Incoming, transfer_syntax_uid: str) -> Identity:
    """Read who the object is; rarely does that stand far from its beginning."""
    try:
        return reception.read_identity(sink.head(_SHORT_HEAD_BYTES), transfer_syntax_uid)
    except UnreadableInstanceError:
        if sink.size <= _SHORT_HEAD_BYTES:
            raise
    return reception.read_identity(sink.head(reception.HEAD_BYTES), transfer_syntax_uid)


def _uid_or_none(text: str) -> str:
    """Replace what is no UID; such an object is refused when it is there, as nothing can be called so."""
    return text if is_uid(text) else _NO_UID
