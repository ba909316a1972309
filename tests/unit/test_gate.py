"""The gate against peers that no library would be: half-open, slow, oversized, malformed."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined] # made at run time
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from pacs_node import audit, gate_association, gate_message, gate_pdu
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import AuditEvent, Database, Instance
from pacs_node.gate import Gate
from pacs_node.gate_pdu import PduError, Rejection
from pacs_node.gate_record import RefusalRecord
from pacs_node.gate_visitor import Admitted, Limits, Refusal, Visitor
from pacs_node.listener import Listener, judge
from pacs_node.spool import Spool
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.raw_peer import (
    ABORT,
    ACCEPT,
    CT_CONTEXT,
    ECHO_CONTEXT,
    P_DATA,
    REJECT,
    RawPeer,
    association_request,
    command,
    pdu,
    value,
)
from tests.small_node import TestClock, encoded

CALLERS = (Caller(ae_title="PACS", address="127.0.0.0/8"),)
MAX_PDU = 16384
(CT,) = make_ct_series(1, matrix=64)
DATA, _ = encoded(CT)
STORE = command(1, data_set=True, sop_class=CTImageStorage, sop_instance=CT.SOPInstanceUID)


@pytest.fixture
def port(database: Database, spool: Spool, clock: TestClock) -> Iterator[int]:
    """A listener that is impatient, so that the tests needn't wait."""
    settings = ListenerSettings(
        port=find_free_port(),
        max_pdu_bytes=MAX_PDU,
        acse_timeout_seconds=0.6,
        dimse_timeout_seconds=0.3,
        network_timeout_seconds=5,
    )
    listener = Listener(settings, CALLERS, database, spool, clock)
    yield listener.start()
    listener.stop()


def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def refusals(database: Database, event: str = "association refused") -> list[dict[str, Any]]:
    with database.read() as session:
        query = select(AuditEvent).where(AuditEvent.event == event)
        return [row.objects for row in session.execute(query).scalars()]


def reasons(database: Database) -> list[str]:
    return [row["reason"] for row in refusals(database)]


def stored(database: Database) -> int:
    with database.read() as session:
        return len(session.execute(select(Instance.id)).all())


def leftovers(spool: Spool) -> list[str]:
    return [path.name for path in (spool.directory / "incoming").iterdir()]


# before the association


def test_a_raw_peer_is_served(port: int, database: Database) -> None:
    """The control: these bytes work where nothing is wrong with them."""
    with RawPeer(port).associate() as peer:
        assert peer.echo() == 0
        assert peer.store(DATA, CTImageStorage, CT.SOPInstanceUID, parts=[1, 2000, 5000]) == 0
        peer.release()
    eventually(lambda: stored(database) == 1)


def test_a_request_may_come_in_pieces(port: int) -> None:
    with RawPeer(port) as peer:
        request = association_request()
        for start in range(0, len(request), 40):
            peer.send(request[start : start + 40])
            time.sleep(0.005)
        assert peer.read()[0] == ACCEPT
        assert peer.echo() == 0


def test_bytes_behind_the_request_are_not_lost(port: int) -> None:
    """PS3.8 doesn't forbid a peer to hope for the best."""
    echo = pdu(P_DATA, value(command(0x30, sop_class=Verification), ECHO_CONTEXT, command=True))
    with RawPeer(port) as peer:
        peer.send(association_request(), echo)
        assert peer.read()[0] == ACCEPT
        assert peer.status() == 0


@pytest.mark.parametrize("beginning", [b"", b"\x01\x00\x00", association_request()[:-1]])
def test_half_open_peers_are_dropped_and_keep_nobody_out(
    port: int, database: Database, beginning: bytes
) -> None:
    silent = [RawPeer(port) for _ in range(14)]
    for peer in silent:
        peer.send(beginning)
    start = time.monotonic()
    with RawPeer(port).associate() as known:
        assert known.echo() == 0
    assert time.monotonic() - start < 0.5
    assert all(peer.read() == (0, b"") for peer in silent)
    eventually(lambda: "no association request within 0.6 s" in reasons(database))
    for peer in silent:
        peer.connection.close()


def test_one_address_has_a_limit_and_who_speaks_is_not_displaced(port: int, database: Database) -> None:
    silent = [RawPeer(port) for _ in range(60)]
    with RawPeer(port).associate() as known:
        assert known.echo() == 0
    eventually(lambda: "too many connections without an association request" in reasons(database))
    for peer in silent:
        peer.connection.close()


@pytest.mark.parametrize(
    ("beginning", "reason"),
    [
        (b"\x01\x00\xff\xff\xff\xff", "bytes; at most"),
        (struct.pack(">BxL", 1, 67) + bytes(67), "bytes; at most"),
        (struct.pack(">BxL", 1, (1 << 20) + 1), "bytes; at most"),
        (b"GET / HTTP/1.1\r\n\r\n", "no association request"),
        (b"\x16\x03\x01\x02\x00\x01", "speaks TLS"),
        (pdu(P_DATA, bytes(10)), "no association request"),
        (bytes(6), "no association request"),
    ],
)
def test_what_is_no_request_is_aborted_at_once(
    port: int, database: Database, beginning: bytes, reason: str
) -> None:
    with RawPeer(port) as peer:
        start = time.monotonic()
        peer.send(beginning)
        assert peer.read() == (ABORT, b"\0\0\x02\x06")
        assert time.monotonic() - start < 0.5
    eventually(lambda: any(reason in item for item in reasons(database)))


def test_a_stranger_gets_its_answer_behind_a_long_request(port: int) -> None:
    """The answer would be lost if the connection were closed while bytes of the peer wait."""
    request = association_request("STRANGER")
    padding = struct.pack(">BxH", 0x99, 60000) + bytes(60000)
    body = request[6:] + padding * 15
    with RawPeer(port) as peer:
        peer.send(pdu(1, body))
        assert peer.read() == (REJECT, b"\0\x01\x01\x03")


def test_an_answer_gives_a_library_time_to_be_ready_for_it(port: int) -> None:
    """PS3.8 9.2: and then the peer closes, or the time for the request is over."""
    with RawPeer(port) as peer:
        start = time.monotonic()
        peer.send(association_request("STRANGER"))
        assert peer.read() == (REJECT, b"\0\x01\x01\x03")
        assert 0.05 < time.monotonic() - start < 0.5
        assert peer.read() == (0, b"")
        assert 0.4 < time.monotonic() - start < 4


@pytest.mark.parametrize(
    "request_",
    [
        association_request(contexts=140),
        pdu(1, association_request()[6:74] + b"\x10\x00\xff\xff" + bytes(50)),
        pdu(1, association_request()[6:74] + b"\x20\x00\x00\x09" + b"\x01" * 9),
        pdu(1, association_request()[6:74]),
    ],
    ids=["many contexts", "item longer than the request", "context without syntax", "no items"],
)
def test_a_request_that_is_none_ends_without_harm(port: int, request_: bytes) -> None:
    with RawPeer(port) as peer:
        peer.send(request_)
        assert peer.read()[0] in {ABORT, REJECT}
    with RawPeer(port).associate() as known:
        assert known.echo() == 0


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (
            association_request().replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.99999.9.9.9.9"),
            b"\0\x01\x01\x02",
        ),
        (association_request()[:6] + b"\0\2" + association_request()[8:], b"\0\x01\x02\x02"),
    ],
    ids=["application context", "protocol version"],
)
def test_who_asks_for_another_protocol_is_told_so(
    port: int, database: Database, request_: bytes, answer: bytes
) -> None:
    """PS3.8 7.1.1.2, 9.3.2 and table 9-21."""
    with RawPeer(port) as peer:
        peer.send(request_)
        assert peer.read() == (REJECT, answer)
    eventually(lambda: len(reasons(database)) == 1)
    assert reasons(database)[0].startswith("another ")


@pytest.mark.parametrize("versions", [b"\0\1", b"\0\3", b"\xff\xff"])
@pytest.mark.parametrize("padding", [b"", b"\0"])
def test_only_what_matters_of_the_protocol_is_looked_at(port: int, versions: bytes, padding: bytes) -> None:
    """Other versions beside the first, and a UID that was made even, as old senders do it."""
    request, name = association_request(), b"1.2.840.10008.3.1.1.1"
    item = struct.pack(">BxH", 0x10, len(name + padding)) + name + padding
    with RawPeer(port) as peer:
        peer.send(pdu(1, versions + request[8:74] + item + request[74 + 4 + len(name) :]))
        assert peer.read()[0] == ACCEPT


def test_without_a_thread_to_be_had_one_is_refused_and_the_gate_lives(
    port: int, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "association":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with RawPeer(port) as peer:
            peer.send(association_request())
            assert peer.read() == (REJECT, b"\0\x02\x03\x02")
    with RawPeer(port).associate() as peer:
        assert peer.echo() == 0
    eventually(lambda: reasons(database) == ["no thread or memory to be had"])


def test_what_nobody_foresaw_ends_one_connection_only(
    port: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gate_pdu, "read_request_head", Mock(side_effect=MemoryError))
        with RawPeer(port) as peer:
            peer.send(association_request())
            assert peer.read() == (0, b"")
        patch.undo()
        patch.setattr(gate_association, "A_ASSOCIATE_RQ", Mock(side_effect=LookupError("nobody")))
        patch.setattr(gate_association, "MALFORMED_FILE", (ZeroDivisionError,))
        with RawPeer(port) as peer:
            peer.send(association_request())
            assert peer.read() == (0, b"")
    with RawPeer(port).associate() as peer:
        assert peer.echo() == 0
    assert [record.msg for record in caplog.records if "fault of this software" in record.msg] == [
        "a connection ended by a fault of this software",
        "an association ended by a fault of this software",
    ]


def test_a_thread_that_ends_ends_the_listener(
    database: Database, spool: Spool, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Listener(ListenerSettings(port=find_free_port()), CALLERS, database, spool, clock)
    monkeypatch.setattr(Gate, "_serve", lambda _gate: None)
    port = running.start()
    eventually(lambda: running.dead() == "gate")
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset
        RawPeer(port).associate()
    running.stop()


def test_whoever_hangs_up_without_a_word_is_not_refused(port: int, database: Database) -> None:
    """As a port scanner does, and the node itself when it is asked whether it is ready."""
    with RawPeer(port) as peer:
        peer.connection.shutdown(socket.SHUT_WR)
        assert peer.read() == (0, b"")
    with RawPeer(port) as peer:
        peer.send(association_request("STRANGER"))
        assert peer.read()[0] == REJECT
    eventually(lambda: len(reasons(database)) == 1)


# in the association


@pytest.mark.parametrize(
    ("bytes_", "reason"),
    [
        (struct.pack(">BxL", P_DATA, MAX_PDU + 1), "at most 16384"),
        (struct.pack(">BxL", P_DATA, 0xFFFFFFFF), "at most 16384"),
        (struct.pack(">BxL", 5, 5), "at most 4"),
        (association_request(), "type 01H"),
        (b"\x99" * 6, "type 99H"),
        (pdu(P_DATA, b""), "without values"),
        (pdu(P_DATA, b"\0\0\0"), "without its head"),
        (pdu(P_DATA, b"\0\0\0\x01\x03\x00"), "another length"),
        (pdu(P_DATA, b"\0\0\0\x63\x03\x00" + bytes(10)), "another length"),
        (pdu(P_DATA, value(b"abcd", CT_CONTEXT)), "out of their order"),
        (pdu(P_DATA, value(STORE, 99, command=True)), "doesn't belong to"),
        (pdu(P_DATA, value(b"\x08\0\0\0\0\0\0\0", CT_CONTEXT, command=True)), "doesn't belong there"),
        (pdu(P_DATA, value(b"\0\0\0\0", CT_CONTEXT, command=True)), "within an element"),
        (pdu(P_DATA, value(b"", CT_CONTEXT, command=True)), "without (0000,0100)"),
        (pdu(P_DATA, value(command(0x8001), CT_CONTEXT, command=True)), "a response to nothing"),
        (pdu(P_DATA, value(bytes(16000), CT_CONTEXT, command=True, last=False)) * 5, "more than 65536"),
        (pdu(P_DATA, value(STORE, CT_CONTEXT, command=True)) + pdu(5, bytes(4)), "release within"),
        (pdu(P_DATA, value(STORE, CT_CONTEXT, command=True)), "comes too slowly"),
        (struct.pack(">BxL", P_DATA, 100), "comes too slowly"),
        (pdu(6, bytes(4)), "nobody asked for"),
    ],
)
def test_a_breach_ends_the_association_and_leaves_nothing(
    port: int, database: Database, spool: Spool, bytes_: bytes, reason: str
) -> None:
    with RawPeer(port).associate() as peer:
        peer.send(bytes_)
        assert peer.read() == (ABORT, b"\0\0\x02\x06")
    eventually(lambda: any(reason in item for item in reasons(database)))
    eventually(lambda: leftovers(spool) == [])


def test_an_endless_data_set_that_drips_is_ended(port: int, database: Database, spool: Spool) -> None:
    """Each part comes in time, the whole doesn't: 1 KiB/s beyond the grace is the least."""
    with RawPeer(port).associate() as peer:
        peer.send(pdu(P_DATA, value(STORE, CT_CONTEXT, command=True)))
        start = time.monotonic()
        while time.monotonic() - start < 20:
            try:
                peer.send(pdu(P_DATA, value(b"x", CT_CONTEXT, last=False)))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.05)
        assert time.monotonic() - start < 10
    eventually(lambda: "a message that stops or comes too slowly" in reasons(database))
    eventually(lambda: leftovers(spool) == [])


def test_an_association_has_an_end_whatever_it_sends(
    database: Database, spool: Spool, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither echoes for ever nor an object without an end hold a place for ever."""
    settings = ListenerSettings(port=find_free_port(), association_minutes=0.01)
    listener = Listener(settings, CALLERS, database, spool, clock)
    port = listener.start()
    # the endless one is older, so that its time is over too when the other isn't answered any more
    with RawPeer(port).associate() as endless, RawPeer(port).associate() as echoing:
        endless.send(pdu(P_DATA, value(STORE, CT_CONTEXT, command=True)))
        start = time.monotonic()
        answers = 0
        while ended(echoing, endless) is None and time.monotonic() - start < 10:
            answers += 1
        assert answers > 3
        assert 0.5 < time.monotonic() - start < 5
        assert endless.read()[0] in {ABORT, 0}
    listener.stop()
    assert "an association of more than 0.01 min" in reasons(database)
    assert leftovers(spool) == []


def ended(echoing: RawPeer, endless: RawPeer) -> int | None:
    """Go on with both; what the first one reads when it is not answered any more."""
    time.sleep(0.02)
    try:
        endless.send(pdu(P_DATA, value(bytes(1000), CT_CONTEXT, last=False)))
        echo = pdu(P_DATA, value(command(0x30, sop_class=Verification), ECHO_CONTEXT, command=True))
        echoing.send(echo)
    except OSError:
        return 0
    kind, _ = echoing.read()
    return None if kind == P_DATA else kind


def test_an_idle_association_is_aborted(database: Database, spool: Spool, clock: TestClock) -> None:
    listener = Listener(
        ListenerSettings(port=find_free_port(), network_timeout_seconds=0.2), CALLERS, database, spool, clock
    )
    with RawPeer(listener.start()).associate() as peer:
        assert peer.read() == (ABORT, bytes(4))
    listener.stop()
    assert refusals(database) == []


def test_a_connection_cut_within_an_object_leaves_nothing(
    port: int, database: Database, spool: Spool
) -> None:
    with RawPeer(port).associate() as peer:
        peer.send(pdu(P_DATA, value(STORE, CT_CONTEXT, command=True)))
        peer.send(pdu(P_DATA, value(DATA[:3000], CT_CONTEXT, last=False)))
        eventually(lambda: leftovers(spool) != [])
    eventually(lambda: leftovers(spool) == [])
    assert stored(database) == 0


def test_an_operation_that_is_not_ours_is_0211(port: int) -> None:
    with RawPeer(port).associate() as peer:
        peer.send(pdu(P_DATA, value(command(0x0130, sop_class="1.2.3"), CT_CONTEXT, command=True)))
        assert peer.status() == 0x0211
        assert peer.echo() == 0


def test_a_cancel_is_not_answered(port: int) -> None:
    with RawPeer(port).associate() as peer:
        peer.send(pdu(P_DATA, value(command(0x0FFF), CT_CONTEXT, command=True)))
        assert peer.echo() == 0


def test_a_store_without_a_data_set_is_c000(port: int) -> None:
    request = command(1, sop_class=CTImageStorage, sop_instance="1.2")
    with RawPeer(port).associate() as peer:
        peer.send(pdu(P_DATA, value(request, CT_CONTEXT, command=True)))
        assert peer.status() == 0xC000


def test_an_answer_fits_into_what_the_peer_takes(port: int) -> None:
    with RawPeer(port).associate(max_length=60) as peer:
        peer.send(pdu(P_DATA, value(command(0x30, sop_class=Verification), ECHO_CONTEXT, command=True)))
        parts = [peer.read() for _ in range(2)]
    assert [kind for kind, _ in parts] == [P_DATA, P_DATA]
    assert max(len(body) for _, body in parts) <= 60


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3\n", "", "1" * 65, "1.2.3/..", "\xe9"])
def test_a_name_that_is_no_uid_is_refused_and_gets_nowhere(
    port: int, database: Database, spool: Spool, uid: str
) -> None:
    with RawPeer(port).associate() as peer:
        assert peer.store(DATA, CTImageStorage, uid) == 0xA900
        assert peer.echo() == 0
    assert stored(database) == 0
    assert leftovers(spool) == []


# who may come in


PINNED = Caller(ae_title="PACS", address="10.1.0.0/16", certificate_sha256="ab" * 32)
OTHER_TITLE = Caller(ae_title="RIS", address="10.1.2.3", called_ae_title="SECOND")


@pytest.mark.parametrize(
    ("visitor", "answer"),
    [
        (Visitor("PACS", "CTNODE", "10.1.9.9", "ab" * 32), None),
        (Visitor("PACS", "CTNODE", "10.1.9.9", "cd" * 32), Rejection.CALLING_AE_UNKNOWN),
        (Visitor("PACS", "CTNODE", "10.1.9.9", ""), Rejection.CALLING_AE_UNKNOWN),
        (Visitor("PACS", "CTNODE", "10.2.9.9", "ab" * 32), Rejection.CALLING_AE_UNKNOWN),
        (Visitor("PACS", "SECOND", "10.1.9.9", "ab" * 32), Rejection.CALLED_AE_UNKNOWN),
        (Visitor("RIS", "SECOND", "10.1.2.3", ""), None),
        (Visitor("RIS", "CTNODE", "10.1.2.3", ""), Rejection.CALLED_AE_UNKNOWN),
        (Visitor("ris", "SECOND", "10.1.2.3", ""), Rejection.CALLING_AE_UNKNOWN),
        (Visitor("", "CTNODE", "10.1.2.3", ""), Rejection.CALLING_AE_UNKNOWN),
    ],
)
def test_who_may_come_in(visitor: Visitor, answer: Rejection | None) -> None:
    refusal = judge(visitor, [PINNED, OTHER_TITLE], "CTNODE")
    assert (refusal.answer if refusal else None) == answer


def test_an_ipv4_address_counts_as_one_however_it_comes() -> None:
    seen: list[Visitor] = []
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    port = listening.getsockname()[1]

    def look(visitor: Visitor) -> Refusal | None:
        seen.append(visitor)
        return Refusal(Rejection.CALLING_AE_UNKNOWN, "no")

    gate = Gate(listening, judge=look, admit=lambda _admitted: None, refused=lambda *_who: None)
    gate.start()
    with RawPeer(port) as peer:
        peer.send(association_request())
        assert peer.read()[0] == REJECT
    gate.stop()
    assert [visitor.address for visitor in seen] == ["127.0.0.1"]


def test_without_room_for_all_the_oldest_goes() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    admitted: list[Admitted] = []
    limits = Limits(request_seconds=30, per_address=100, pending=5)
    gate = Gate(
        listening, judge=lambda _who: None, admit=admitted.append, refused=lambda *_who: None, limits=limits
    )
    gate.start()
    silent = [RawPeer(port) for _ in range(8)]
    assert [peer.read() for peer in silent[:3]] == [(0, b"")] * 3
    silent[3].send(association_request())
    eventually(lambda: admitted)
    assert gate.pending == 4
    gate.stop()
    for connection in [item.connection for item in admitted] + [peer.connection for peer in silent]:
        connection.close()


# what is written down


def test_a_visitor_may_wake_a_gate_that_is_being_stopped() -> None:
    """Its thread is gone before it can be woken: no error for whoever stops it."""
    listening = socket.create_server(("127.0.0.1", 0))
    gate = Gate(listening, judge=lambda _: None, admit=lambda _: None, refused=lambda *_: None)
    address = listening.getsockname()

    class Late:
        """The waking end; a visitor comes first."""

        def __init__(self, end: socket.socket) -> None:
            self.end = end

        def send(self, data: bytes) -> int:
            with socket.create_connection(address):
                gate._thread.join(10)
            return self.end.send(data)

        def close(self) -> None:
            self.end.close()

    gate._wake_sender = Late(gate._wake_sender)  # type: ignore[assignment]  # what it needs of a socket
    gate.start()
    gate.stop()
    assert not gate._thread.is_alive()


def test_a_flood_of_refusals_is_one_line_and_a_count(database: Database, clock: TestClock) -> None:
    record = RefusalRecord(database, clock, interval=60)
    record.start()
    stranger = Visitor("EVIL", "CTNODE", "10.6.6.6")
    record.add(stranger, "unknown calling AE title")
    eventually(lambda: refusals(database))
    for _ in range(500):
        record.add(stranger, "unknown calling AE title")
    record.stop()
    rows = refusals(database)
    assert [row["count"] for row in rows] == [1, 500]
    assert rows[0]["calling_ae"] == "EVIL"


def test_what_a_full_disk_keeps_from_the_record_is_counted_on(
    database: Database, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, real, failed = RefusalRecord(database, clock, interval=60), audit.record, threading.Event()

    def full(*_args: object, **_values: object) -> None:
        failed.set()
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(audit, "record", full)
    record.start()
    sender = Visitor("PACS", "CTNODE", "10.6.6.6")
    for _ in range(3):
        record.add(sender, "too little room on the disk", "A700")
    assert failed.wait(20)
    monkeypatch.setattr(audit, "record", real)
    record.add(sender, "too little room on the disk", "A700")
    record.stop()
    rows = refusals(database, "instance refused")
    assert sum(row["count"] for row in rows) == 4
    assert {row["status"] for row in rows} == {"A700"}
    assert refusals(database) == []


def test_a_flood_of_names_is_bounded(database: Database, clock: TestClock) -> None:
    record = RefusalRecord(database, clock, interval=60)
    for number in range(1000):
        record.add(Visitor(f"EVIL{number}", "CTNODE", "10.6.6.6"), "unknown calling AE title")
    record.start()
    record.stop()
    rows = refusals(database)
    assert len(rows) == 201
    assert sum(row["count"] for row in rows) == 1000


# bytes


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_command_or_refused(data: bytes) -> None:
    try:
        read = gate_message.read_command(data)
    except PduError:
        return
    assert 0 <= read.field <= 0xFFFF


@given(st.binary(max_size=100))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_values_or_refused(body: bytes) -> None:
    try:
        parts = list(gate_pdu.fragments(memoryview(body)))
    except PduError:
        return
    assert sum(len(data) + 6 for _, _, data in parts) == len(body)


@given(st.binary(min_size=1, max_size=400), st.integers(7, 90))
@settings(max_examples=50, deadline=None)
def test_what_we_send_can_be_read_again(data: bytes, max_length: int) -> None:
    sent, read, at = gate_pdu.p_data(5, data, max_length), b"", 0
    while at < len(sent):
        kind, length = gate_pdu.read_header(sent[at : at + 6])
        assert (kind, length <= max_length) == (P_DATA, True)
        for context, control, part in gate_pdu.fragments(memoryview(sent)[at + 6 : at + 6 + length]):
            read += part
            assert (context, control) == (5, 3 if at + 6 + length == len(sent) else 1)
        at += 6 + length
    assert read == data


def test_stopping_from_outside_ends_an_association_that_waits() -> None:
    ours, theirs = socket.socketpair()
    terms = gate_association.Terms({}, "1.2.3", "X", 4096, 60, 60)
    acceptor: gate_association.Acceptor[Any] = gate_association.Acceptor(
        ours,
        association_request(),
        terms,
        None,  # type: ignore[arg-type]  # no object comes
    )
    thread = threading.Thread(target=acceptor.run)
    thread.start()
    assert theirs.recv(6)[0] == ACCEPT
    acceptor.stop()
    thread.join(5)
    assert not thread.is_alive()
    theirs.close()


class Owing:
    """A service that owes an event for each notice."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self._asked = 0

    def notice(self, _notice: gate_association.Notice) -> gate_association.Answer:
        self._asked += 1
        event = gate_association.Event(1, "1.2.3", b"report %d" % self._asked)
        return gate_association.Answer(0, event=event)

    def event_taken(self, status: int) -> None:
        self.taken.append(status)


def test_events_go_one_after_the_other() -> None:
    """One operation is outstanding unless it was negotiated otherwise (PS3.7 D.3.3.3)."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    terms = gate_association.Terms(
        {Verification: ["1.2.840.10008.1.2"]}, "1.2.3", "X", 4096, 5, 5, notices=frozenset([Verification])
    )
    service: Any = Owing()
    acceptor: gate_association.Acceptor[Any] = gate_association.Acceptor(
        ours, association_request(), terms, service
    )
    thread = threading.Thread(target=acceptor.run)
    thread.start()
    peer = RawPeer.over(theirs)
    assert peer.read()[0] == ACCEPT
    action = command(0x0130, data_set=True, sop_class=Verification)
    notice = pdu(P_DATA, value(action, ECHO_CONTEXT, command=True)) + pdu(P_DATA, value(b"ab", ECHO_CONTEXT))
    peer.send(notice, notice, notice)

    def hear() -> bytes | int:
        """The next command's field, or the next data set."""
        _, body = peer.read()
        return gate_message.read_command(body[6:]).field if body[5] & 1 else body[6:]

    def take(number: int, status: int = 0) -> bytes:
        taken = gate_message.Command(0x0100, number, False, "", "")
        return pdu(P_DATA, value(gate_message.response(taken, status), ECHO_CONTEXT, command=True))

    assert [hear() for _ in range(5)] == [0x8130, 0x0100, b"report 1", 0x8130, 0x8130]
    peer.send(take(1))
    assert [hear(), hear()] == [0x0100, b"report 2"]
    peer.send(take(2, 0x0110))
    assert [hear(), hear()] == [0x0100, b"report 3"]
    peer.send(take(3), take(3))
    assert peer.read()[0] == ABORT
    thread.join(5)
    assert service.taken == [0, 0x0110, 0]
    assert acceptor.breach == "a response to nothing"
    theirs.close()
