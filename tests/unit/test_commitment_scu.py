"""Storage commitment asked of a destination, with pynetdicom as the peer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from sqlalchemy import select

from pacs_node import commitment_scu, notices
from pacs_node.association import Peer
from pacs_node.commitment import (
    PUSH_MODEL,
    WELL_KNOWN,
    Report,
    Request,
    encoded,
    read_request,
)
from pacs_node.commitment_scu import CommittingDestination, take_report
from pacs_node.config import DeliverySettings
from pacs_node.db import (
    Commitment,
    CommitmentItem,
    Database,
    Delivery,
)
from pacs_node.destinations import FakeDestination, ObjectRef
from pacs_node.dimse import DimseDestination
from pacs_node.outbox import Outbox
from pacs_node.states import DeliveryState
from tests.commitment_peer import ONE, QUICK, TWO, eventually, running
from tests.small_node import SmallNode, TestClock

pytestmark = pytest.mark.usefixtures("short_poll")


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
PACS = {"pacs": "PACS", "fake": "PACS"}
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
            by: dict[str, Any] = {"calling_ae": "PACS", "reporters": PACS, "at": clock()}
            assert not take_report(session, Report("1.2.9", (ONE,)), **by)
            assert not take_report(session, report, **by | {"calling_ae": "OTHER"}), "not who was asked"
            assert not take_report(session, report, **by | {"reporters": {"other": "PACS"}})
            assert take_report(session, report, **by)
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
            take_report(session, report, calling_ae="PACS", reporters=PACS, at=node.clock())
        state = step()
    assert state is DeliveryState.PENDING, "refused again and again: it is sent again"
    assert step(hours=2, ticks=2) is DeliveryState.SENT
    assert store.attempts == [uid, uid]
    with running(node, reporters={"fake": "ARCHIVE"}) as door:
        of_another = door.report(Report(asked[-1].transaction_uid, asked[-1].objects))
        assert of_another == notices.INVALID_ARGUMENT
    with running(node, reporters={"fake": "PACS"}) as door:
        assert door.report(Report("1.2.77", asked[-1].objects)) == notices.INVALID_ARGUMENT
        assert (
            door.report(Report(asked[-1].transaction_uid, asked[-1].objects), event_type=3)
            == notices.NO_SUCH_EVENT
        )
        assert door.report(Report(asked[-1].transaction_uid, asked[-1].objects)) == 0x0000
    with node.database.read() as session:
        assert session.execute(select(Delivery.next_attempt_at)).scalar_one() == node.clock(), "due at once"
    assert step() is DeliveryState.COMMITTED
