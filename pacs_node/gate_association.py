"""One admitted association, from its request to its end, in one thread (PS3.8, PS3.7).

Only what the listener serves, C-ECHO, C-STORE and storage commitment, and nothing without a limit: each PDU,
command set and object has a largest size and a deadline, an object goes to its place while it arrives, and
the next message is read when the one before is answered.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_acceptor

from inference.decode import MALFORMED_FILE
from pacs_node import gate_message, gate_pdu
from pacs_node.gate_message import Command
from pacs_node.gate_pdu import PduError, PduType
from pacs_node.gate_wire import ConnectionEndedError, Wire

MIN_BYTES_PER_SECOND = 1024
"""A PDU or an object that comes more slowly, beyond its grace, ends the association."""

MAX_CONTEXTS = 128
MAX_NOTICE_BYTES = 8 << 20
"""Of the data set of an N-ACTION or N-EVENT-REPORT; one object takes some 150 bytes of it."""

_APPLICATION_CONTEXT = UID("1.2.840.10008.3.1.1.1")
_FAREWELL_S = 2.0
_BREACH_FAREWELL_S = 0.2
_COMMAND, _LAST = 0x01, 0x02


class Ending(StrEnum):
    """How an association ended."""

    RELEASED = "released"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Terms:
    """What is offered to every peer.

    Parameters
    ----------
    contexts
        Abstract syntax -> transfer syntaxes, those we prefer first.
    max_pdu_bytes
        Largest P-DATA-TF that a peer may send, without its header.
    idle_seconds
        Between two operations.
    grace_seconds
        Before the slowest permitted rate counts, and for an answer to be taken.
    association_seconds
        For the whole association: it is aborted afterwards, also within an object.
    """

    contexts: Mapping[str, Sequence[str]]
    implementation_class_uid: str
    implementation_version_name: str
    max_pdu_bytes: int
    idle_seconds: float
    grace_seconds: float
    association_seconds: float = 1800.0
    #: abstract syntaxes of which N-ACTION and N-EVENT-REPORT are served, in either role
    notices: frozenset[str] = frozenset()


class StoreRequest(NamedTuple):
    """A C-STORE request (PS3.7 9.1.1) and the context that it came on; the UIDs are the peer's words."""

    sop_class_uid: str
    sop_instance_uid: str
    abstract_syntax: str
    transfer_syntax: str


class Event(NamedTuple):
    """An N-EVENT-REPORT of ours: type, instance and data set, encoded for the context it goes over."""

    event_type: int
    sop_instance_uid: str
    data: bytes


class Notice(NamedTuple):
    """An N-ACTION or N-EVENT-REPORT (PS3.7 10.1.4, 10.1.1); all of it is the peer's words."""

    is_event: bool
    type_id: int | None
    sop_instance_uid: str
    transfer_syntax: str
    data: bytearray


class Answer(NamedTuple):
    """Status (PS3.4 B.2.3), a sentence of ours for the sender, and what is to follow on the association."""

    status: int
    comment: str = ""
    event: Event | None = None


class Sink(Protocol):
    """Takes a data set while it arrives."""

    def write(self, data: memoryview) -> None:
        """Take some bytes; must keep its own troubles until it is asked for an answer."""

    def discard(self) -> None:
        """Leave nothing behind; called in any case, also after an answer."""


SinkT = TypeVar("SinkT", bound=Sink)


class Service(Protocol[SinkT]):
    """What the node does with objects."""

    def begin(self, request: StoreRequest) -> SinkT:
        """Make ready for a data set."""

    def store(self, request: StoreRequest, sink: SinkT) -> Answer:
        """Answer for the whole data set."""

    def notice(self, notice: Notice) -> Answer:
        """Answer an N-ACTION or N-EVENT-REPORT."""

    def event_taken(self, status: int) -> None:
        """Hear how the peer answered the oldest event that it hadn't answered yet."""


@dataclass(slots=True)
class _Message:
    """A message on its way in."""

    context_id: int
    deadline: float
    command_bytes: bytearray
    command: Command | None = None
    received: int = 0
    notice: bytearray = field(default_factory=bytearray)


class Acceptor(Generic[SinkT]):
    """Serves one association.

    Parameters
    ----------
    connection
        Blocking, just behind the association request.
    request
        The bytes of the A-ASSOCIATE-RQ.
    """

    def __init__(
        self, connection: socket.socket, request: bytes, terms: Terms, service: Service[SinkT]
    ) -> None:
        self._wire = Wire(connection, terms.grace_seconds)
        self._request = request
        self._terms = terms
        self._service = service
        self._contexts: dict[int, tuple[str, str]] = {}
        self._peer_max_length = 0
        self._header = memoryview(bytearray(gate_pdu.HEADER_BYTES))
        self._body = memoryview(bytearray(terms.max_pdu_bytes))
        self._stopping = False
        self._began = time.monotonic()
        self._events = 0
        #: one at a time (PS3.7 D.3.3.3): the first is on its way, the others wait until it is answered
        self._reports: deque[tuple[int, Event]] = deque()
        self.breach: str | None = None
        """What the peer did that no peer does, in a sentence; None after an ordinary association."""

    def stop(self) -> None:
        """End the association after the message that is being served; for other threads."""
        self._stopping = True
        self._wire.stop_reading()

    def run(self) -> Ending:
        """Serve until the peer releases the association or it ends otherwise; closes the connection."""
        try:
            self._accept()
            while self._serve():
                pass
            self._send(gate_pdu.release())
            self._wire.await_close(_FAREWELL_S, self._body)
        except PduError as error:
            self.breach = str(error)
            self._abort(by_user=False)
            return Ending.ABORTED
        except TimeoutError:
            self._abort(by_user=True)
            return Ending.ABORTED
        except (ConnectionEndedError, OSError):
            if self._stopping:
                self._abort(by_user=True)
            return Ending.ABORTED
        finally:
            self._wire.close()
        return Ending.RELEASED

    def _accept(self) -> None:
        """Negotiate (PS3.8 9.3.3); roles and extended negotiation keep their defaults."""
        try:
            pdu = A_ASSOCIATE_RQ()
            pdu.decode(self._request)
            request = pdu.to_primitive()
            results, roles = self._negotiate(request)
        except MALFORMED_FILE as error:
            if isinstance(error, PduError):
                raise
            raise PduError("an association request that can't be decoded") from error
        self._contexts = {
            int(context.context_id or 0): (str(context.abstract_syntax), str(context.transfer_syntax[0]))
            for context in results
            if context.result == 0
        }
        self._peer_max_length = request.maximum_length_received or 0
        self._send(self._acceptance(request, results, roles))
        del self._request

    def _negotiate(
        self, request: A_ASSOCIATE
    ) -> tuple[list[PresentationContext], list[SCP_SCU_RoleSelectionNegotiation]]:
        proposed = request.presentation_context_definition_list
        if len(proposed) > MAX_CONTEXTS:
            raise PduError(f"{len(proposed)} presentation contexts; there can be {MAX_CONTEXTS}")
        supported = [
            build_context(uid, [UID(syntax) for syntax in self._terms.contexts[uid]])
            for uid in sorted({str(context.abstract_syntax) for context in proposed})
            if uid in self._terms.contexts
        ]
        for context in supported:
            # a peer may report to us, or ask us: others keep the default roles
            context.scu_role = context.scp_role = str(context.abstract_syntax) in self._terms.notices or None
        asked: dict[UID, tuple[bool | None, bool | None]] = {
            item.sop_class_uid: (bool(item.scu_role), bool(item.scp_role))
            for item in request.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation) and item.sop_class_uid is not None
        }
        return negotiate_as_acceptor(proposed, supported, asked)

    def _acceptance(
        self,
        request: A_ASSOCIATE,
        results: list[PresentationContext],
        roles: list[SCP_SCU_RoleSelectionNegotiation],
    ) -> bytes:
        answer = A_ASSOCIATE()
        answer.application_context_name = _APPLICATION_CONTEXT
        answer.calling_ae_title = request.calling_ae_title
        answer.called_ae_title = request.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        length = MaximumLengthNotification()
        length.maximum_length_received = self._terms.max_pdu_bytes
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = UID(self._terms.implementation_class_uid)
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = self._terms.implementation_version_name
        answer.user_information = [length, implementation, version, *roles]
        return A_ASSOCIATE_AC(answer).encode()

    def _serve(self) -> bool:
        """Read one message and answer it; False where the peer asked to release the association."""
        self._check_age()
        body = self._read_pdu(time.monotonic() + self._terms.idle_seconds)
        if body is None:
            return False
        message = _Message(0, time.monotonic() + self._terms.grace_seconds, bytearray())
        sink: SinkT | None = None
        request: StoreRequest | None = None
        try:
            while True:
                complete = False
                for context_id, control, data in gate_pdu.fragments(body):
                    if complete:
                        raise PduError("bytes behind the end of a message")
                    complete = self._take(message, context_id, control, data)
                    started = time.monotonic()
                    if message.command is not None and control & _COMMAND:
                        request = self._store_request(message.command, context_id)
                        sink = self._service.begin(request) if request is not None else None
                    elif sink is not None:
                        sink.write(data)
                    elif self._takes_notice(message):
                        message.notice += data[: MAX_NOTICE_BYTES + 1 - len(message.notice)]
                    # a slow disk of ours is no slow peer
                    message.deadline += time.monotonic() - started
                if complete:
                    break
                body = self._more(message)
            self._answer(message, request, sink)
        finally:
            if sink is not None:
                sink.discard()
        return True

    def _take(self, message: _Message, context_id: int, control: int, data: memoryview) -> bool:
        """Account for one fragment; whether it was the last of the message (PS3.8 annex E.2)."""
        if context_id not in self._contexts or message.context_id not in {0, context_id}:
            raise PduError("a fragment on a presentation context that it doesn't belong to")
        message.context_id = context_id
        is_command, is_last = bool(control & _COMMAND), bool(control & _LAST)
        if is_command == (message.command is not None):
            raise PduError("fragments of command and data set out of their order")
        if not is_command:
            message.received += len(data)
            return is_last
        message.command_bytes += data
        if len(message.command_bytes) > gate_pdu.MAX_COMMAND_BYTES:
            raise PduError(f"a command set of more than {gate_pdu.MAX_COMMAND_BYTES} bytes")
        if not is_last:
            return False
        message.command = gate_message.read_command(message.command_bytes)
        return not message.command.has_data_set

    def _check_age(self) -> None:
        seconds = self._terms.association_seconds
        if time.monotonic() - self._began > seconds:
            raise PduError(f"an association of more than {seconds / 60:g} min")

    def _more(self, message: _Message) -> memoryview:
        self._check_age()
        deadline = message.deadline + message.received / MIN_BYTES_PER_SECOND
        try:
            body = self._read_pdu(min(deadline, time.monotonic() + self._terms.grace_seconds))
        except TimeoutError:
            raise PduError("a message that stops or comes too slowly") from None
        if body is None:
            raise PduError("a release within a message")
        return body

    def _store_request(self, command: Command, context_id: int) -> StoreRequest | None:
        if command.field != gate_message.C_STORE or not command.has_data_set:
            return None
        abstract, transfer = self._contexts[context_id]
        return StoreRequest(command.sop_class_uid, command.sop_instance_uid, abstract, transfer)

    def _takes_notice(self, message: _Message) -> bool:
        command = message.command
        return (
            command is not None
            and command.field in {gate_message.N_ACTION, gate_message.N_EVENT_REPORT}
            and self._contexts[message.context_id][0] in self._terms.notices
        )

    def _answer(self, message: _Message, request: StoreRequest | None, sink: SinkT | None) -> None:
        command = message.command
        if command is None or command.field == gate_message.C_CANCEL:
            return
        if not command.is_request:
            self._hear(command)
            return
        if request is not None and sink is not None:
            answer = self._service.store(request, sink)
        elif command.field == gate_message.C_ECHO:
            answer = Answer(0)
        elif command.field == gate_message.C_STORE:
            answer = Answer(0xC000, "a request without a data set")
        elif self._takes_notice(message):
            answer = self._note(message, command)
        else:
            answer = Answer(gate_message.UNRECOGNIZED_OPERATION)
        encoded = gate_message.response(command, answer.status, answer.comment)
        self._send(gate_pdu.p_data(message.context_id, encoded, self._peer_max_length))
        if answer.event is not None:
            self._reports.append((message.context_id, answer.event))
            if len(self._reports) == 1:
                self._report()

    def _note(self, message: _Message, command: Command) -> Answer:
        if len(message.notice) > MAX_NOTICE_BYTES:
            return Answer(0x0213, f"more than {MAX_NOTICE_BYTES} bytes")
        notice = Notice(
            is_event=command.field == gate_message.N_EVENT_REPORT,
            type_id=command.type_id,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax=self._contexts[message.context_id][1],
            data=message.notice,
        )
        return self._service.notice(notice)

    def _report(self) -> None:
        """Send the next N-EVENT-REPORT, if any; the peer's own answer comes among its next messages."""
        if not self._reports:
            return
        context_id, event = self._reports[0]
        self._events = self._events % 0xFFFF + 1
        abstract, _ = self._contexts[context_id]
        command = gate_message.event_report(self._events, abstract, event.sop_instance_uid, event.event_type)
        self._send(gate_pdu.p_data(context_id, command, self._peer_max_length))
        self._send(gate_pdu.p_data(context_id, event.data, self._peer_max_length, is_command=False))

    def _hear(self, response: Command) -> None:
        is_answer = response.field == gate_message.EVENT_REPORT_TAKEN and response.message_id == self._events
        if not self._reports or not is_answer:
            raise PduError("a response to nothing")
        self._reports.popleft()
        self._service.event_taken(0 if response.status is None else response.status)
        self._report()

    def _read_pdu(self, deadline: float) -> memoryview | None:
        """Read one PDU; the values of a P-DATA-TF, or None for a request to release.

        Parameters
        ----------
        deadline
            For its first bytes (``time.monotonic``).

        Raises
        ------
        TimeoutError
            Nothing came.
        PduError
            It came too slowly, or is none that may come.
        """
        if self._wire.read(self._header, deadline) < gate_pdu.HEADER_BYTES:
            raise TimeoutError
        kind, length = gate_pdu.checked_header(self._header, self._terms.max_pdu_bytes)
        body = self._body[:length]
        grace = time.monotonic() + self._terms.grace_seconds
        if self._wire.read(body, grace + length / MIN_BYTES_PER_SECOND) < length:
            raise PduError("a PDU that comes too slowly")
        if kind == PduType.P_DATA:
            return body
        if kind == PduType.ABORT:
            raise ConnectionEndedError
        if kind == PduType.RELEASE_RP:
            raise PduError("an answer to a release that nobody asked for")
        return None

    def _send(self, data: bytes) -> None:
        self._wire.send(data)

    def _abort(self, *, by_user: bool) -> None:
        try:
            self._send(gate_pdu.abortion(by_user=by_user))
            # a peer that keeps to no rule doesn't get to hold an association by not closing it
            self._wire.await_close(_FAREWELL_S if by_user else _BREACH_FAREWELL_S, self._body)
        except (ConnectionEndedError, OSError):
            return
