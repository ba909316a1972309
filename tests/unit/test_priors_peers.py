"""Earlier examinations over the network: pynetdicom and a small web server play archives, well and badly."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at run time
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from pacs_node.archive import ArchiveError
from pacs_node.association import Peer, Timeouts
from pacs_node.config_listener import Caller, ListenerSettings
from pacs_node.destinations import OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.errors import NodeError
from pacs_node.priors_archive import Patience
from pacs_node.priors_dimse import DimsePriors
from pacs_node.priors_move import MoveReceiver, MoveSettings
from pacs_node.priors_store import PriorFolder
from pacs_node.priors_web import WebPriors
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.rejections import Requestor
from tests.small_node import encoded
from tests.unit.test_dicomweb import Answer, server

pytestmark = pytest.mark.usefixtures("short_poll")

CT = make_ct_series(4, matrix=8, seed="prior")
UIDS = [str(ds.SOPInstanceUID) for ds in CT]
WHERE = (str(CT[0].StudyInstanceUID), str(CT[0].SeriesInstanceUID))
Answers = Iterator[Any]


@contextmanager
def archive(answer: Callable[[evt.Event], Answers]) -> Iterator[int]:
    """An archive whose C-GET is answered so, or whose C-MOVE; gives its port."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    handlers: Any = [(evt.EVT_C_GET, answer), (evt.EVT_C_MOVE, answer)]
    there: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    yield int(there.server_address[1])
    there.shutdown()


def peer(port: int) -> Peer:
    return Peer("127.0.0.1", port, "PACS", "CTNODE", Timeouts(connect=10, association=10, progress=30))


def room(tmp_path: Path, size: int = 1 << 20) -> PriorFolder:
    return PriorFolder(tmp_path / "priors", max_bytes=size, reserve_bytes=0)


def get(port: int, folder: PriorFolder, seconds: float = 20.0) -> list[str]:
    """SOP Instance UIDs of what comes by C-GET."""
    source = DimsePriors("pacs", peer(port), 10.0)
    return [
        str(dcmread(path).SOPInstanceUID) for path in source.fetch(*WHERE, UIDS, folder, Patience(seconds))
    ]


def whole(_event: evt.Event) -> Answers:
    yield len(CT)
    yield from ((0xFF00, ds) for ds in CT)


def half(_event: evt.Event) -> Answers:
    """Two of four, and it says that two failed."""
    yield len(CT)
    yield from ((0xFF00, ds) for ds in CT[:2])
    yield 0xB000, Dataset()


def refuses(_event: evt.Event) -> Answers:
    yield len(CT)
    yield 0xA701, None


def breaks_off(event: evt.Event) -> Answers:
    yield len(CT)
    yield 0xFF00, CT[0]
    event.assoc.abort()


def test_c_get_brings_what_it_brings(tmp_path: Path) -> None:
    with archive(whole) as port:
        assert sorted(get(port, room(tmp_path))) == sorted(UIDS)
    with archive(half) as port:
        assert sorted(get(port, room(tmp_path / "half"))) == sorted(UIDS[:2])


@pytest.mark.parametrize(("answer", "words"), [(refuses, "A701H"), (breaks_off, "the connection ended")])
def test_c_get_that_fails(tmp_path: Path, answer: Callable[[evt.Event], Answers], words: str) -> None:
    with archive(answer) as port, pytest.raises(ArchiveError, match=words) as error:
        get(port, room(tmp_path))
    assert error.value.kind is OutcomeKind.TRANSIENT


def test_c_get_ends_where_there_is_no_more_room(tmp_path: Path) -> None:
    folder = room(tmp_path, 2000)
    with archive(whole) as port, pytest.raises((NodeError, ArchiveError)):
        get(port, folder)
    assert folder.size <= 2000


def test_c_get_ends_when_nobody_waits_any_more(tmp_path: Path) -> None:
    patience = Patience(20.0)

    def slow(_event: evt.Event) -> Answers:
        yield len(CT)
        patience.over.set()
        yield from ((0xFF00, ds) for ds in CT)

    with archive(slow) as port, pytest.raises(ArchiveError):
        DimsePriors("pacs", peer(port), 10.0).fetch(*WHERE, UIDS, room(tmp_path), patience)


def test_c_get_from_nobody(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="refused"):
        get(find_free_port(), room(tmp_path))


# C-MOVE


def settings(**changes: Any) -> MoveSettings:
    values: dict[str, Any] = {
        "ae_title": "CTPRIOR",
        "host": "127.0.0.1",
        "port": find_free_port(),
        "listener": ListenerSettings(),
    }
    return MoveSettings(**values | changes)


def stored(move: MoveSettings, *series: Dataset, calling: str = "PACS", called: str = "CTPRIOR") -> list[int]:
    """Statuses of what somebody sends there; none where nobody may."""
    entity = AE(ae_title=calling)
    entity.add_requested_context(CTImageStorage)
    association = Requestor(entity).associate("127.0.0.1", move.port, ae_title=called)
    if not association.is_established:
        return []
    statuses = [int(association.send_c_store(ds).Status) for ds in series]
    association.release()
    return statuses


def test_the_receiver_takes_what_was_asked_for_from_whom_it_was_asked(tmp_path: Path) -> None:
    move, folder = settings(), room(tmp_path)
    (other,) = make_ct_series(1, matrix=8, seed="another study")
    with MoveReceiver(move, peer(104), UIDS, folder, Patience(20)) as receiver:
        assert stored(move, CT[0], calling="SOMEBODY") == []
        assert stored(move, CT[0], called="CTNODE") == []
        assert stored(move, CT[0], other, CT[0], CT[1]) == [0, 0xC000, 0, 0]
        assert len(receiver.paths()) == 2
    data, _ = encoded(CT[0])
    assert receiver.paths()[0].read_bytes().endswith(data)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", move.port))


def test_from_another_address_only_a_configured_caller_moves(tmp_path: Path) -> None:
    elsewhere = Peer("127.0.0.2", 104, "PACS", "CTNODE")
    caller = Caller(ae_title="PACS", address="127.0.0.1")
    pinned = caller.model_copy(update={"certificate_sha256": "0" * 64})
    for callers, statuses in (((), []), ((caller,), [0]), ((pinned,), [])):
        move = settings(callers=callers)
        with MoveReceiver(move, elsewhere, UIDS, room(tmp_path), Patience(20)):
            assert stored(move, CT[0]) == statuses


def test_the_receiver_says_when_it_is_full(tmp_path: Path) -> None:
    move = settings()
    with MoveReceiver(move, peer(104), UIDS, room(tmp_path, 100), Patience(20)) as receiver:
        assert stored(move, CT[0]) == [0xA700]
        with pytest.raises(NodeError, match="max_mb"):
            receiver.check()


def test_a_port_that_another_worker_has_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    move = settings()
    with (
        MoveReceiver(move, peer(104), UIDS, room(tmp_path), Patience(20)),
        pytest.raises(ArchiveError, match="in time"),
        MoveReceiver(move, peer(104), UIDS, room(tmp_path), Patience(0.05)),
    ):
        pass


def test_a_move_to_a_destination_that_the_archive_does_not_know(tmp_path: Path) -> None:
    def unknown(_event: evt.Event) -> Answers:
        yield None, None

    with archive(unknown) as port, pytest.raises(ArchiveError, match="A801H"):
        DimsePriors("pacs", peer(port), 10.0, settings()).fetch(*WHERE, UIDS, room(tmp_path), Patience(20))


# WADO-RS


def part(ds: Dataset) -> Answer:
    data, _ = encoded(ds)
    body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--x--"
    return Answer(200, body, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'})


def test_wado_brings_each_image_as_it_is_stored(tmp_path: Path) -> None:
    plain = Answer(200, encoded(CT[1])[0], {"Content-Type": "application/dicom"})
    with server(part(CT[0]), plain) as running:
        source = WebPriors(DicomWebDestination("pacs", running.url))
        paths = source.fetch(*WHERE, UIDS[:2], room(tmp_path), Patience(20))
    assert [path.read_bytes() for path in paths] == [encoded(ds)[0] for ds in CT[:2]]
    request = running.requests[0]
    assert request.path == f"/dicom-web/studies/{WHERE[0]}/series/{WHERE[1]}/instances/{UIDS[0]}"
    assert request.headers["accept"] == 'multipart/related; type="application/dicom"; transfer-syntax=*'


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(500), "HTTP 500"),
        (Answer(404), "HTTP 404"),
        (Answer(200, {"no": "file"}), "no DICOM file"),
        (Answer(200, b"x" * 5000, {"Content-Type": "application/dicom"}), "more than any answer has"),
    ],
)
def test_wado_that_fails_in_the_middle(tmp_path: Path, answer: Answer, words: str) -> None:
    folder = room(tmp_path, 3000)
    with server(part(CT[0]), answer) as running, pytest.raises(ArchiveError, match=words):
        WebPriors(DicomWebDestination("pacs", running.url)).fetch(*WHERE, UIDS, folder, Patience(20))
    assert len(list(folder.path.iterdir())) == 1
