"""Storage commitment in both roles, with pynetdicom as the peer: what is asked, reported and lost."""

from __future__ import annotations

import queue
import socketserver
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from sqlalchemy import select

from pacs_node import commitment_scu, notices
from pacs_node.association import Peer, Timeouts
from pacs_node.commitment import (
    MAX_OBJECTS,
    PUSH_MODEL,
    WELL_KNOWN,
    FailureReason,
    MalformedNoticeError,
    Reference,
    Report,
    Request,
    encoded,
    read_report,
    read_request,
    report_of,
)
from pacs_node.commitment_scp import Reporter, judge, peer_of, record_request, send_report
from pacs_node.commitment_scu import CommittingDestination, take_report
from pacs_node.config import Caller, DeliverySettings, ListenerSettings, Settings, parse_settings
from pacs_node.db import (
    AuditEvent,
    Commitment,
    CommitmentItem,
    CommitmentRequest,
    Database,
    Delivery,
    Instance,
)
from pacs_node.destinations import FakeDestination, ObjectRef
from pacs_node.dimse import DimseDestination
from pacs_node.listener import Listener
from pacs_node.outbox import Outbox
from pacs_node.states import DeliveryState
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.small_node import START, SmallNode, TestClock

CT = "1.2.840.10008.5.1.4.1.1.2"
ONE, TWO = Reference(CT, "1.2.1"), Reference(CT, "1.2.2")
QUICK = Timeouts(connect=10, association=10, progress=10)


@pytest.fixture(autouse=True, scope="module")
def _short_poll() -> Iterator[None]:
    """A server of pynetdicom looks every 0.5 s whether it is to stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))
        yield


# --- the data sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_what_is_written_is_read_again(syntax: str) -> None:
    request = Request("1.2.3", (ONE, TWO))
    report = Report("1.2.3", (ONE,), ((TWO, 0x0112),))
    assert read_request(encoded(request.dataset(), syntax), syntax) == request
    assert read_report(encoded(report.dataset(), syntax), syntax) == report
    assert (report.event_type, Report("1.2.3", (ONE,)).event_type) == (2, 1)


def test_an_object_that_is_named_twice_is_one() -> None:
    request = Request("1.2.3", (ONE, ONE))
    assert read_request(
        encoded(request.dataset(), ImplicitVRLittleEndian), ImplicitVRLittleEndian
    ).objects == (ONE,)


def test_what_stands_in_both_lists_is_not_committed() -> None:
    ds = Report("1.2.3", (ONE, TWO), ((TWO, 0x0110),)).dataset()
    assert report_of(ds) == Report("1.2.3", (ONE,), ((TWO, 0x0110),))
    del ds.FailedSOPSequence[0].FailureReason
    assert report_of(ds).failed == ((TWO, FailureReason.PROCESSING_FAILURE),)


def _without(keyword: str) -> Dataset:
    ds = Request("1.2.3", (ONE,)).dataset()
    delattr(ds, keyword)
    return ds


MALFORMED = {
    "no transaction": encoded(_without("TransactionUID"), ImplicitVRLittleEndian),
    "no objects": encoded(_without("ReferencedSOPSequence"), ImplicitVRLittleEndian),
    "a UID that is none": encoded(
        Request("1.2.3", (Reference(CT, "../x"),)).dataset(), ImplicitVRLittleEndian
    ),
    "cut": encoded(Request("1.2.3", (ONE,)).dataset(), ImplicitVRLittleEndian)[:-9],
    "noise": b"\xff" * 64,
    "nothing": b"",
    "deep": b"".join(
        b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" for _ in range(20_000)
    ),
}


@pytest.mark.filterwarnings("ignore:End of file reached")  # of pydicom, before it fails
@pytest.mark.parametrize("name", MALFORMED)
def test_a_request_that_says_nothing_is_told_so(name: str) -> None:
    with pytest.raises(MalformedNoticeError):
        read_request(MALFORMED[name], ImplicitVRLittleEndian)


def test_too_many_objects_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_OBJECTS >= 100_000
    monkeypatch.setattr("pacs_node.commitment.MAX_OBJECTS", 1)
    with pytest.raises(MalformedNoticeError, match="2 objects"):
        read_request(
            encoded(Request("1.2.3", (ONE, TWO)).dataset(), ImplicitVRLittleEndian), ImplicitVRLittleEndian
        )


# --- asked by a sender -----------------------------------------------------------------------------------


def objects_of(slices: Sequence[Dataset]) -> tuple[Reference, ...]:
    return tuple(Reference(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in slices)


def ask_us(
    node: SmallNode, objects: tuple[Reference, ...], transaction: str = "1.2.3", sender: str = "PACS"
) -> None:
    with node.database.write() as session:
        record_request(
            session,
            Request(transaction, objects),
            calling_ae=sender,
            called_ae="CTNODE",
            address="127.0.0.1",
            at=node.clock(),
        )


def requests_of(database: Database) -> list[CommitmentRequest]:
    with database.read() as session:
        return list(session.execute(select(CommitmentRequest).order_by(CommitmentRequest.id)).scalars())


def test_only_what_is_on_disk_is_committed(node: SmallNode) -> None:
    slices = make_ct_series(4, matrix=8)
    good, other_class, removed, lost = objects_of(slices)
    node.receive(*slices)
    with node.database.write() as session:
        rows = {row.sop_instance_uid: row for row in session.execute(select(Instance)).scalars()}
        rows[removed.sop_instance_uid].path = None
        node.spool.absolute(rows[lost.sop_instance_uid].path or "").unlink()
    wrong = Reference("1.2.840.10008.5.1.4.1.1.4", other_class.sop_instance_uid)
    unknown = Reference(CT, "1.2.99")
    with node.database.read() as session:
        report = judge(session, node.spool.directory, Request("1.2.3", (good, wrong, removed, lost, unknown)))
    assert report.committed == (good,)
    assert report.failed == (
        (wrong, FailureReason.CLASS_INSTANCE_CONFLICT),
        (removed, FailureReason.NO_SUCH_OBJECT),
        (lost, FailureReason.NO_SUCH_OBJECT),
        (unknown, FailureReason.NO_SUCH_OBJECT),
    )


def test_our_own_result_that_came_back_is_committed(node: SmallNode) -> None:
    node.queue()
    job, token = node.claim()
    made = node.result(job)
    node.finish(job, token, made)
    objects = tuple(Reference(row.sop_class_uid or "", row.sop_instance_uid or "") for row in made)
    with node.database.read() as session:
        assert judge(session, node.spool.directory, Request("1.2.3", objects)).committed == objects


@dataclass
class FakePeer:
    """Takes reports, or says why not."""

    troubles: list[str | None] = field(default_factory=list)
    taken: list[tuple[Peer, Report]] = field(default_factory=list)

    def __call__(self, peer: Peer, report: Report) -> str | None:
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble is None:
            self.taken.append((peer, report))
        return trouble


def node_settings(directory: Path, **caller: Any) -> Settings:
    known = {"ae_title": "PACS", "address": "127.0.0.1", **caller}
    return parse_settings(
        {"callers": [known], "storage": {"directory": str(directory)}, "delivery": {"give_up_hours": 10.0}},
        base=directory,
    )


def test_a_report_survives_the_end_of_the_process(node: SmallNode) -> None:
    """All that is known of a request is its row: whoever ticks next reports."""
    slices = make_ct_series(2, matrix=8)
    node.receive(*slices)
    ask_us(node, objects_of(slices))
    settings, peer = node_settings(node.spool.directory, report_port=4242), FakePeer()
    reporter = Reporter(node.database, settings, node.clock, peer)
    reporter.tick()
    reporter.stop()
    assert peer.taken == [], "a sender gets a second to end its association"
    node.clock.forward(seconds=1)

    reporter = Reporter(node.database, settings, node.clock, peer)
    reporter.tick()
    reporter.stop()

    ((where, report),) = peer.taken
    assert (where.host, where.port, where.called_ae, where.calling_ae) == (
        "127.0.0.1",
        4242,
        "PACS",
        "CTNODE",
    )
    assert report == Report("1.2.3", objects_of(slices))
    (row,) = requests_of(node.database)
    assert (row.reported_at, row.next_attempt_at, row.refused, row.objects) == (node.clock(), None, 0, [])
    node.clock.forward(hours=1)
    Reporter(node.database, settings, node.clock, peer).report_to("PACS")
    assert len(peer.taken) == 1


def test_a_report_that_is_not_taken_is_sent_again_and_in_the_end_given_up(node: SmallNode) -> None:
    ask_us(node, (ONE,))
    peer = FakePeer(["the connection was refused or timed out"] * 99)
    reporter = Reporter(
        node.database, node_settings(node.spool.directory, report_port=4242), node.clock, peer
    )
    waits = []
    while (row := requests_of(node.database)[0]).next_attempt_at is not None:
        waits.append((row.next_attempt_at - node.clock()).total_seconds())
        node.clock.now = row.next_attempt_at
        reporter.report_to("PACS")
    assert all(0 < wait <= 3600 for wait in waits)
    assert waits[1] <= 30
    assert sum(waits) > 36_000
    assert row.status == "the connection was refused or timed out"
    with node.database.read() as session:
        events = session.execute(
            select(AuditEvent).where(AuditEvent.event == "commitment reported")
        ).scalars()
        assert [event.outcome for event in events] == [8]


def test_the_same_question_again_is_answered_again(node: SmallNode) -> None:
    peer = FakePeer()
    reporter = Reporter(
        node.database, node_settings(node.spool.directory, report_port=4242), node.clock, peer
    )
    for objects in ((ONE,), (ONE, TWO)):
        ask_us(node, objects)
        node.clock.forward(seconds=1)
        reporter.report_to("PACS")
    assert [len(report.failed) for _, report in peer.taken] == [1, 2]
    assert len(requests_of(node.database)) == 1


def test_a_sender_that_is_away_holds_up_no_other(node: SmallNode) -> None:
    ask_us(node, (ONE,), "1.2.3", "AWAY")
    ask_us(node, (ONE,), "1.2.4", "PACS")
    node.clock.forward(seconds=1)
    settings = parse_settings(
        {
            "callers": [
                {"ae_title": name, "address": "127.0.0.1", "report_port": 4242} for name in ("AWAY", "PACS")
            ],
            "storage": {"directory": str(node.spool.directory)},
        },
        base=node.spool.directory,
    )
    taken: queue.Queue[str] = queue.Queue()
    release: queue.Queue[None] = queue.Queue()

    def send(peer: Peer, _report: Report) -> str | None:
        if peer.called_ae == "AWAY":
            release.get(timeout=60)
            return "nothing moved"
        taken.put(peer.called_ae)
        return None

    reporter = Reporter(node.database, settings, node.clock, send)
    reporter.tick()
    assert taken.get(timeout=60) == "PACS"
    release.put(None)
    reporter.stop()


def test_where_reports_go(tmp_path: Path) -> None:
    destination = {"name": "pacs", "kind": "dicom", "host": "10.0.0.9", "port": 104, "ae_title": "ARCHIVE"}
    callers = [
        {"ae_title": "CT1", "address": "10.0.0.0/24", "report_port": 105},
        {"ae_title": "CT2", "address": "10.0.0.0/24", "report_port": 105, "report_host": "ct2.example"},
        {"ae_title": "ARCHIVE", "address": "10.0.0.9"},
        {"ae_title": "CT3", "address": "10.0.0.0/24"},
    ]
    settings = parse_settings({"callers": callers, "destinations": [destination]}, base=tmp_path)
    peers = [peer_of(settings, name, "10.0.0.7", "CTNODE") for name in ("CT1", "CT2", "ARCHIVE", "CT3")]
    assert [None if peer is None else (peer.host, peer.port) for peer in peers] == [
        ("10.0.0.7", 105),
        ("ct2.example", 105),
        ("10.0.0.9", 104),
        None,
    ]


# --- over the network -----------------------------------------------------------------------------------


@dataclass
class Asker:
    """A sender's own listener, or the answer on its association."""

    reports: list[Report] = field(default_factory=list)
    status: int = 0x0000

    def take(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT."""
        self.reports.append(report_of(event.event_information))
        return self.status, None


@contextmanager
def listening(asker: Asker, *, role: bool | None = True) -> Iterator[int]:
    """Listen for reports; with `role` None the role selection is not answered, with False refused."""
    entity = AE(ae_title="PACS")
    roles: dict[str, Any] = {} if role is None else {"scu_role": True, "scp_role": role}
    entity.add_supported_context(PUSH_MODEL, **roles)
    handlers: Any = [(evt.EVT_N_EVENT_REPORT, asker.take)]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    yield int(server.server_address[1])
    server.shutdown()


REPORT = Report("1.2.3", (ONE,), ((TWO, 0x0112),))


@pytest.mark.parametrize(
    ("role", "status", "trouble"),
    [
        (True, 0x0000, None),
        (None, 0x0000, None),
        (True, 0x0110, "the peer answered the report with status 0110H"),
        (False, 0x0000, "the peer accepted no presentation context"),
    ],
)
def test_reports_over_an_association_of_our_own(role: bool | None, status: int, trouble: str | None) -> None:
    asker = Asker(status=status)
    with listening(asker, role=role) as port:
        peer = Peer("127.0.0.1", port, "PACS", "CTNODE", QUICK)
        said = send_report(peer, REPORT)
    assert said == trouble
    assert asker.reports == ([] if role is False else [REPORT])
    assert send_report(Peer("127.0.0.1", port, "PACS", "CTNODE", QUICK), REPORT) is not None, "nobody listens"


@dataclass
class Running:
    """A listener and its rows."""

    port: int
    database: Database
    listener: Listener

    def ask(
        self,
        asker: Asker,
        request: Dataset | None,
        *,
        action: int = 1,
        instance: str = WELL_KNOWN,
        hold: bool = True,
    ) -> int:
        """Send an N-ACTION; wait for a report on the same association where `hold` says so."""
        entity = AE(ae_title="PACS")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
        entity.add_requested_context(PUSH_MODEL)
        arrived: queue.Queue[None] = queue.Queue()

        def take(event: evt.Event) -> tuple[int, None]:
            answer = asker.take(event)
            arrived.put(None)
            return answer

        association: Any = entity.associate(
            "127.0.0.1", self.port, ae_title="CTNODE", evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]
        )
        assert association.is_established
        answer, _ = association.send_n_action(request, action, PUSH_MODEL, instance)
        if hold:
            arrived.get(timeout=60)
        association.release()
        return int(answer.Status)

    def report(self, report: Report, event_type: int | None = None) -> int:
        """Send an N-EVENT-REPORT in the role of a destination."""
        entity = AE(ae_title="PACS")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
        entity.add_requested_context(PUSH_MODEL)
        association: Any = entity.associate(
            "127.0.0.1", self.port, ae_title="CTNODE", ext_neg=[build_role(PUSH_MODEL, scp_role=True)]
        )
        assert association.is_established
        answer, _ = association.send_n_event_report(
            report.dataset(), event_type or report.event_type, PUSH_MODEL, WELL_KNOWN
        )
        association.release()
        return int(answer.Status)


@contextmanager
def running(node: SmallNode, **caller: Any) -> Iterator[Running]:
    callers = (Caller(ae_title="PACS", address="127.0.0.1", **caller),)
    settings = ListenerSettings(port=find_free_port(), acse_timeout_seconds=60, network_timeout_seconds=60)
    listener = Listener(settings, callers, node.database, node.spool, node.clock)
    port = listener.start()
    try:
        yield Running(port, node.database, listener)
    finally:
        listener.stop()


@pytest.fixture
def open_door(node: SmallNode) -> Iterator[Running]:
    """A listener whose sender takes reports only on its own association."""
    with running(node) as door:
        yield door


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        queue_wait(0.01)
    raise AssertionError("did not happen in time")


def queue_wait(seconds: float) -> None:
    """Give other threads a moment."""
    try:
        queue.Queue[None]().get(timeout=seconds)
    except queue.Empty:
        return


def test_a_sender_that_holds_its_association_gets_the_report_there(
    node: SmallNode, open_door: Running
) -> None:
    slices = make_ct_series(2, matrix=8)
    node.receive(*slices)
    asker = Asker()
    request = Request("1.2.3", (*objects_of(slices), TWO))
    assert open_door.ask(asker, request.dataset()) == 0x0000
    assert asker.reports == [Report("1.2.3", objects_of(slices), ((TWO, 0x0112),))]
    eventually(lambda: requests_of(node.database)[0].reported_at is not None)
    (row,) = requests_of(node.database)
    assert (row.next_attempt_at, row.refused, row.attempts) == (None, 1, 1)


def test_a_report_that_the_sender_refuses_stays_owed(node: SmallNode) -> None:
    with running(node) as door:
        assert door.ask(Asker(status=0x0110), Request("1.2.3", (ONE,)).dataset()) == 0x0000
    (row,) = requests_of(node.database)
    assert row.reported_at is None
    node.clock.forward(seconds=61)
    Reporter(node.database, node_settings(node.spool.directory), node.clock, FakePeer()).report_to("PACS")
    (row,) = requests_of(node.database)
    assert row.next_attempt_at is None
    assert "no report_port" in (row.status or "")


def test_a_sender_that_is_called_back_hears_nothing_on_its_association(node: SmallNode) -> None:
    with running(node, report_port=4242) as door:
        asker = Asker()
        assert door.ask(asker, Request("1.2.3", (ONE,)).dataset(), hold=False) == 0x0000
    assert asker.reports == []
    (row,) = requests_of(node.database)
    assert row.next_attempt_at == START + timedelta(seconds=1)
    assert row.objects == [list(ONE)]


def test_questions_that_are_none_are_refused(node: SmallNode, open_door: Running) -> None:
    good, asker = Request("1.2.3", (ONE,)).dataset(), Asker()
    assert open_door.ask(asker, good, action=2, hold=False) == notices.NO_SUCH_ACTION
    assert open_door.ask(asker, good, instance="1.2.3.4", hold=False) == notices.NO_SUCH_INSTANCE
    assert open_door.ask(asker, _without("TransactionUID"), hold=False) == notices.INVALID_ARGUMENT
    assert requests_of(node.database) == []


def test_a_question_that_is_too_large_is_refused(
    node: SmallNode, open_door: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.gate_association.MAX_NOTICE_BYTES", 100)
    status = open_door.ask(Asker(), Request("1.2.3", (ONE, TWO)).dataset(), hold=False)
    assert status == notices.RESOURCE_LIMITATION
    assert requests_of(node.database) == []


# --- we ask a destination ----------------------------------------------------------------------------------


@dataclass
class Committer:
    """A destination: stores, answers N-ACTION, and reports as it is told."""

    status: int = 0x0000
    #: what it says on the association that asked; None: nothing
    report: Callable[[Request], Report] | None = None
    asked: list[Request] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def act(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-ACTION."""
        ds = event.action_information
        self.asked.append(read_request(encoded(ds, ImplicitVRLittleEndian), ImplicitVRLittleEndian))
        return self.status, None

    def ended(self, event: evt.Event) -> None:
        """The answer is out: report behind it."""
        if self.report is not None and type(event.message).__name__ == "N_ACTION_RSP":
            threading.Thread(target=self._send, args=(event.assoc, self.report(self.asked[-1]))).start()

    def _send(self, association: Any, report: Report) -> None:
        answer, _ = association.send_n_event_report(
            report.dataset(), report.event_type, PUSH_MODEL, WELL_KNOWN
        )
        self.answers.append(int(answer.Status))


@contextmanager
def committing(committer: Committer) -> Iterator[DimseDestination]:
    entity = AE(ae_title="PACS")
    entity.add_supported_context(PUSH_MODEL)
    handlers: Any = [(evt.EVT_N_ACTION, committer.act), (evt.EVT_DIMSE_SENT, committer.ended)]
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    port = int(server.server_address[1])
    yield DimseDestination("pacs", "127.0.0.1", port, "PACS", "CTNODE", timeouts=QUICK, verify="none")
    server.shutdown()


OBJECTS = [ObjectRef("1.2", "1.2.0", uid, sop_class) for sop_class, uid in (ONE, TWO)]
BOTH = [ONE.sop_instance_uid, TWO.sop_instance_uid]


@pytest.fixture
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commitment_scu, "_SAME_ASSOCIATION_S", 0.2)


@pytest.mark.usefixtures("_patience")
def test_a_report_that_comes_later_counts_when_it_comes(database: Database, clock: TestClock) -> None:
    committer = Committer()
    with committing(committer) as inner:
        destination = CommittingDestination(inner, database, timedelta(hours=1), clock)
        for _ in range(2):
            assert destination.verify(OBJECTS) == dict.fromkeys(BOTH, None)
        (request,) = committer.asked
        assert request.objects == (ONE, TWO)
        report = Report(request.transaction_uid, (ONE,), ((TWO, 0x0213),))
        with database.write() as session:
            assert take_report(session, report, calling_ae="PACS", at=clock())
            assert not take_report(session, Report("1.2.9", (ONE,)), calling_ae="PACS", at=clock())
        assert destination.verify(OBJECTS) == {BOTH[0]: True, BOTH[1]: False}
    assert [item.objects for item in committer.asked] == [(ONE, TWO), (TWO,)], (
        "it is asked again for the second"
    )


@pytest.mark.usefixtures("_patience")
def test_a_report_that_never_comes_counts_as_a_refusal(database: Database, clock: TestClock) -> None:
    committer = Committer()
    with committing(committer) as inner:
        destination = CommittingDestination(inner, database, timedelta(hours=1), clock)
        assert destination.verify(OBJECTS[:1]) == {BOTH[0]: None}
        clock.forward(hours=1)
        assert destination.verify(OBJECTS[:1]) == {BOTH[0]: False}
        assert destination.verify(OBJECTS[:1]) == {BOTH[0]: None}
    assert len(committer.asked) == 2


def test_a_report_on_the_association_that_asked(database: Database, clock: TestClock) -> None:
    committer = Committer(report=lambda request: Report(request.transaction_uid, (ONE,), ((TWO, 0x0112),)))
    with committing(committer) as inner:
        destination = CommittingDestination(inner, database, timedelta(hours=1), clock)
        assert destination.verify(OBJECTS) == {BOTH[0]: True, BOTH[1]: False}
        eventually(lambda: committer.answers == [0x0000])
    with database.read() as session:
        items = session.execute(select(CommitmentItem)).scalars().all()
        assert [(item.committed, item.failure_reason) for item in items] == [(True, None), (False, 0x0112)]


@pytest.mark.usefixtures("_patience")
def test_a_destination_that_refuses_or_is_away_leaves_nothing_behind(
    database: Database, clock: TestClock
) -> None:
    with committing(Committer(status=0x0110)) as inner:
        destination = CommittingDestination(inner, database, timedelta(hours=1), clock)
        assert destination.verify(OBJECTS) == dict.fromkeys(BOTH, None)
    assert destination.verify(OBJECTS) == dict.fromkeys(BOTH, None)
    with database.read() as session:
        assert session.execute(select(CommitmentItem)).first() is None
        assert len(session.execute(select(Commitment)).all()) == 2


class _Ledger(FakeDestination):
    """Stores in memory; stands in for the network of a `CommittingDestination`."""

    peer = Peer("127.0.0.1", 1, "PACS", "CTNODE", QUICK)


def test_a_delivery_counts_once_it_is_committed(node: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way of the outbox: sent, asked, refused, sent again, asked, committed over our listener."""
    asked: list[Request] = []

    def ask(_peer: Peer, question: Request) -> tuple[None, None]:
        asked.append(question)
        return None, None

    monkeypatch.setattr(commitment_scu, "ask", ask)
    store: Any = _Ledger("fake")
    destination = CommittingDestination(store, node.database, timedelta(hours=1), node.clock)
    outbox = Outbox(node.database, node.spool.directory, destination, DeliverySettings(), node.clock)
    node.queue()
    job, token = node.claim()
    node.finish(job, token, node.result(job, ["seg"]))
    (uid,) = (row.artifact.sop_instance_uid or "" for row in node.all_deliveries())

    def step(hours: float = 0.0, ticks: int = 1) -> DeliveryState:
        node.clock.forward(hours=hours)
        for _ in range(ticks):
            outbox.tick()
        return node.delivery_states()["seg"]

    assert step(ticks=2) is DeliveryState.SENT
    for number in range(6):
        assert len(asked) == number + 1
        with node.database.write() as session:
            reference = asked[-1].objects[0]
            report = Report(asked[-1].transaction_uid, (), ((reference, 0x0110),))
            take_report(session, report, calling_ae="PACS", at=node.clock())
        state = step()
    assert state is DeliveryState.PENDING, "refused again and again: it is sent again"
    assert step(hours=2, ticks=2) is DeliveryState.SENT
    assert store.attempts == [uid, uid]
    with running(node) as door:
        assert door.report(Report("1.2.77", asked[-1].objects)) == notices.INVALID_ARGUMENT
        assert (
            door.report(Report(asked[-1].transaction_uid, asked[-1].objects), event_type=3)
            == notices.NO_SUCH_EVENT
        )
        assert door.report(Report(asked[-1].transaction_uid, asked[-1].objects)) == 0x0000
    with node.database.read() as session:
        assert session.execute(select(Delivery.next_attempt_at)).scalar_one() == node.clock(), "due at once"
    assert step() is DeliveryState.COMMITTED
