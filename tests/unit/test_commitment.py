"""Storage commitment as data sets, and asked of us, with pynetdicom as the peer."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from sqlalchemy import select

from pacs_node import notices
from pacs_node.association import Peer
from pacs_node.commitment import (
    MAX_OBJECTS,
    PUSH_MODEL,
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
from pacs_node.config import Settings, parse_settings
from pacs_node.db import (
    AuditEvent,
    CommitmentRequest,
    Database,
    Instance,
)
from tests.commitment_peer import CT, ONE, QUICK, TWO, Asker, Running, eventually, running
from tests.ct_factory import make_ct_series
from tests.small_node import START, SmallNode

pytestmark = pytest.mark.usefixtures("short_poll")


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


@pytest.fixture
def open_door(node: SmallNode) -> Iterator[Running]:
    """A listener whose sender takes reports only on its own association."""
    with running(node) as door:
        yield door


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
