"""What the C-STORE client does with peers that misbehave on the wire."""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom import build_context, evt
from pynetdicom.transport import AssociationSocket

from pacs_node.association import Link, Peer, Timeouts, _Watchdog
from pacs_node.destinations import OutcomeKind
from pacs_node.dimse import MAX_CONTEXTS, DimseDestination
from pacs_node.peer import ReceivingPeer
from tests.ct_factory import make_ct_series, write_series
from tests.small_objects import reference, write_ct, write_sr

PATIENT = Timeouts(connect=10, association=10, progress=10)
#: for peers that fall silent
QUICK = Timeouts(connect=10, association=10, progress=1)
DEAF = Timeouts(connect=1, association=1, progress=1)


def to(port: int, timeouts: Timeouts = PATIENT) -> DimseDestination:
    return DimseDestination("peer", "127.0.0.1", port, "PEER", "NODE", timeouts=timeouts)


@contextmanager
def raw_peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen on loopback and hand each connection to `serve`, one after the other; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    serve(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_to_end(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def send_garbage(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
    read_to_end(connection)


def answer_half(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"\x02\x00\x00\x00\x01\x00only the beginning of an A-ASSOCIATE-AC")
    read_to_end(connection)


def hang_up(connection: socket.socket) -> None:
    connection.recv(65536)


@pytest.mark.parametrize("serve", [read_to_end, send_garbage, answer_half, hang_up])
def test_peer_that_speaks_no_dicom_is_transient_and_soon_given_up(
    serve: Callable[[socket.socket], None], tmp_path: Path
) -> None:
    path = write_sr(tmp_path)
    threads = threading.active_count()
    with raw_peer(serve) as port:
        start = time.monotonic()
        (outcome,) = to(port, DEAF).send([path])
        assert time.monotonic() - start < 20
        assert (outcome.kind, outcome.status) == (OutcomeKind.TRANSIENT, None)
        assert outcome.sop_instance_uid == dcmread(path).SOPInstanceUID
        assert not to(port, DEAF).echo().ok
        assert list(to(port, DEAF).verify([reference(dcmread(path))]).values()) == [None]
    assert threading.active_count() <= threads


def test_peer_that_never_answers_a_store_is_given_up(tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct")
    blocked = threading.Event()

    def block(_uid: str) -> None:
        blocked.wait(20)

    with ReceivingPeer(tmp_path / "peer", on_store=block) as peer:
        start = time.monotonic()
        outcomes = to(peer.port, QUICK).send(paths)
        took = time.monotonic() - start
        blocked.set()
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.TRANSIENT}
    assert "no progress for 1 s" in outcomes[0].detail
    assert 1 < took < 15


@contextmanager
def slow_line(to_port: int, block: int, pause: float) -> Iterator[int]:
    """Pass bytes on to a port, `block` bytes at a time; gives its own port."""

    def serve(near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", to_port)) as far:
            back = threading.Thread(target=copy, args=(far, near, 65536, 0.0))
            back.start()
            copy(near, far, block, pause)
            back.join()

    with raw_peer(serve) as port:
        yield port


def copy(source: socket.socket, target: socket.socket, block: int, pause: float) -> None:
    """Pass bytes on until one side ends, then end both."""
    try:
        while data := source.recv(block):
            target.sendall(data)
            time.sleep(pause)
    except OSError:
        pass  # reset by one side: the other side must hear of it too
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def test_slow_line_is_not_given_up(tmp_path: Path) -> None:
    noise = np.zeros((1, 1536, 1536), dtype=np.int16)
    (large,) = write_series(make_ct_series(1, matrix=1536, hu=noise), tmp_path / "ct")
    with ReceivingPeer(tmp_path / "peer") as peer, slow_line(peer.port, 32768, 0.02) as port:
        start = time.monotonic()
        (outcome,) = to(port, QUICK).send([large])
        took = time.monotonic() - start
    assert outcome.kind is OutcomeKind.STORED
    assert took > 2.5  # far more than the progress timeout


def test_object_timeout_ends_a_peer_that_trickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.zeros((1, 1536, 1536), dtype=np.int16)
    (large,) = write_series(make_ct_series(1, matrix=1536, hu=noise), tmp_path / "ct")
    monkeypatch.setattr("pacs_node.dimse._RELEASE_MARGIN_S", 0.0)
    quick = Timeouts(connect=1, association=1, progress=1, object=2)
    with ReceivingPeer(tmp_path / "peer") as peer, slow_line(peer.port, 4096, 0.02) as port:
        start = time.monotonic()
        (outcome,) = to(port, quick).send([large])
        took = time.monotonic() - start
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert 1.9 < took < 5


def test_local_limit_is_a_transient_rejection(tmp_path: Path) -> None:
    path = write_sr(tmp_path)
    arrived, leave = threading.Event(), threading.Event()

    def hold(_uid: str) -> None:
        arrived.set()
        leave.wait(20)

    with ReceivingPeer(tmp_path / "peer", on_store=hold) as peer:
        peer._entity.maximum_associations = 1
        occupant = threading.Thread(target=to(peer.port, Timeouts()).send, args=([path],))
        occupant.start()
        assert arrived.wait(10)
        (outcome,) = to(peer.port).send([path])
        leave.set()
        occupant.join()
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert "rejected (transient)" in outcome.detail
    assert len(peer.objects) == 1


def test_unknown_calling_ae_title_is_a_permanent_rejection(tmp_path: Path) -> None:
    path = write_sr(tmp_path)
    with ReceivingPeer(tmp_path / "peer") as peer:
        peer._entity.require_calling_aet = ["OTHER"]
        (outcome,) = to(peer.port).send([path])
    assert outcome.kind is OutcomeKind.PERMANENT
    assert "rejected (permanent)" in outcome.detail


def reject_at_once(connection: socket.socket) -> None:
    connection.sendall(bytes.fromhex("03 00 00000004 00 01 01 07"))  # A-ASSOCIATE-RJ: permanent, called AE
    read_to_end(connection)


class SlowEvent(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        happened = super().wait(timeout)
        time.sleep(0.2)
        return happened


def test_fast_rejection_is_still_a_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer overtakes the thread that asked: seen with dcmqrscp in about one of three rejections."""
    original = AssociationSocket.__init__

    def with_slow_event(self: AssociationSocket, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self._ready = SlowEvent()

    monkeypatch.setattr(AssociationSocket, "__init__", with_slow_event)
    with raw_peer(reject_at_once) as port:
        (outcome,) = to(port).send([write_sr(tmp_path)])
    assert outcome.kind is OutcomeKind.PERMANENT
    assert "rejected (permanent)" in outcome.detail


def test_more_contexts_than_an_association_has(tmp_path: Path) -> None:
    source = dcmread(write_sr(tmp_path / "sr"))
    paths = []
    for number in range(MAX_CONTEXTS):  # each class needs two contexts: explicit and implicit VR
        source.SOPClassUID = source.file_meta.MediaStorageSOPClassUID = UID(f"1.2.826.0.1.{number + 1}")
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number + 1}")
        paths.append(tmp_path / f"{number}.dcm")
        source.save_as(paths[-1])
    known = write_sr(tmp_path / "known")
    with ReceivingPeer(tmp_path / "peer") as peer:
        outcomes = to(peer.port).send([*paths, known])
    assert {outcome.kind for outcome in outcomes[:-1]} == {OutcomeKind.PERMANENT}
    assert [outcome.sop_instance_uid for outcome in outcomes[:3]] == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
    assert outcomes[-1].kind is OutcomeKind.STORED


def test_one_outcome_for_each_path_in_order(tmp_path: Path) -> None:
    first, second, third = write_ct(tmp_path / "ct")
    (tmp_path / "text").write_text("x" * 200)
    paths = [first, tmp_path / "gone", second, tmp_path / "text", third, first]
    with ReceivingPeer(tmp_path / "peer") as peer:
        outcomes = to(peer.port).send(paths)
        assert to(peer.port).send([]) == ()
    assert [outcome.kind.stored for outcome in outcomes] == [True, False, True, False, True, True]
    assert outcomes[0].sop_instance_uid == outcomes[5].sop_instance_uid == dcmread(first).SOPInstanceUID


def test_an_answer_is_not_taken_by_the_thread_of_the_association(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on a busy machine: the reactor dropped a C-STORE response, and 30 s passed without progress."""
    with ReceivingPeer(tmp_path / "peer") as peer:
        target = Peer("127.0.0.1", peer.port, "PEER", "NODE", QUICK)
        with Link(target, [build_context("1.2.840.10008.1.1")], 30) as link:
            association = link.association
            assert association is not None
            answer: Any = (1, SimpleNamespace(is_valid_request=False, msg_type="C-STORE"))
            association.dimse.msg_queue.put(answer)
            with monkeypatch.context() as patch:
                patch.setattr(threading, "current_thread", lambda: association)
                assert association.dimse.get_msg() == (None, None)
            assert association.dimse.get_msg() == answer


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "..", "pacs..example"])
def test_a_host_that_can_be_none_is_a_result(host: str) -> None:
    assert "can't be found" in DimseDestination("peer", host, 104, "PEER", "NODE").echo().detail


def test_host_that_does_not_exist(tmp_path: Path) -> None:
    destination = DimseDestination("peer", "no-such-host.invalid", 104, "PEER", "NODE")
    (outcome,) = destination.send([write_sr(tmp_path)])
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert "host" in outcome.detail
    assert not destination.echo().ok


def test_verify_none_asks_nobody(free_port: int, tmp_path: Path) -> None:
    destination = DimseDestination("peer", "127.0.0.1", free_port, "PEER", "NODE", verify="none")
    item = reference(dcmread(write_sr(tmp_path)))
    assert destination.verify([item]) == {item.sop_instance_uid: None}


@pytest.mark.parametrize(
    ("port", "title"),
    [
        (0, "PEER"),
        (65536, "PEER"),
        (104, ""),
        (104, "  "),
        (104, "X" * 17),
        (104, "A\\B"),
        (104, "A\nB"),
        (104, "Ä"),
    ],
)
def test_invalid_peers_are_refused(port: int, title: str) -> None:
    with pytest.raises(ValueError, match=r"port|AE title"):
        Peer("127.0.0.1", port, title, "NODE")
    if port == 104:
        with pytest.raises(ValueError, match="AE title"):
            Peer("127.0.0.1", port, "PEER", title)


def test_our_log_has_no_patient_and_no_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, free_port: int
) -> None:
    report = dcmread(write_sr(tmp_path / "secret-folder"))
    report.PatientName, report.PatientID = "MARKER^PATIENT", "MARKER-ID"
    path = tmp_path / "secret-folder" / "marked.dcm"
    report.save_as(path)
    with (
        caplog.at_level(logging.DEBUG),
        ReceivingPeer(tmp_path / "peer", on_store=lambda _uid: 0xC000) as peer,
    ):
        outcomes = [
            *to(peer.port).send([path, tmp_path / "secret-folder" / "gone"]),
            *to(free_port).send([path]),
        ]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("pacs_node")]
    assert any("can't understand" in line for line in ours)
    for line in [*ours, *(outcome.detail for outcome in outcomes)]:
        assert "MARKER" not in line
        assert "secret-folder" not in line
        assert str(report.SOPInstanceUID) not in line


def test_nobody_waits_for_a_connection_whose_thread_is_gone() -> None:
    watchdog = _Watchdog(progress_timeout=60, overall_timeout=60)
    waiting: queue.Queue[tuple[None, None]] = queue.Queue()
    releasing: queue.Queue[None] = queue.Queue()
    gone = SimpleNamespace(
        dul=SimpleNamespace(is_alive=lambda: False, to_user_queue=releasing),
        dimse=SimpleNamespace(msg_queue=waiting),
    )
    watchdog._opened(cast(evt.Event, SimpleNamespace(assoc=gone)))
    watchdog.start()
    try:
        assert waiting.get(timeout=5) == (None, None)
        assert releasing.get(timeout=5) is None
    finally:
        watchdog.stop()
