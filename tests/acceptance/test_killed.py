"""``kill -9`` of the whole node at five moments; after a restart the result arrives once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from inference.phantom import write_phantom
from pacs_node.config import DicomDestination
from pacs_node.db import Artifact, Instance, Job
from pacs_node.dimse import send_files
from pacs_node.peer import ReceivingPeer
from pacs_node.states import JobState
from tests.acceptance.node import Node, running, small_phantom

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(small_phantom(4), tmp_path_factory.mktemp("phantom"))


class Gate:
    """Lets the peer stop the world when an object arrives."""

    def __init__(self) -> None:
        self.arrived = Event()
        self.closed = False

    def __call__(self, _sop_instance_uid: str) -> int | None:
        if self.closed:
            self.arrived.set()
            # out of resources: as if the PACS could not take it just now
            return 0xA700
        return None


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def peer(tmp_path: Path, gate: Gate) -> Iterator[ReceivingPeer]:
    with ReceivingPeer(tmp_path / "peer", on_store=gate) as receiving:
        yield receiving


@pytest.fixture
def node(tmp_path: Path, peer: ReceivingPeer) -> Iterator[Node]:
    directory = tmp_path / "node"
    directory.mkdir()
    destination = DicomDestination(name="pacs", host="127.0.0.1", port=peer.port, ae_title="PEER")
    yield from running(Node(directory, [destination], profile="classical"))


def send(node: Node, files: list[Path]) -> None:
    outcomes = send_files("127.0.0.1", node.port, "CTNODE", "STORESCU", files)
    assert all(outcome.kind.stored for outcome in outcomes)


def count(query: Callable[[Session], object], node: Node) -> int:
    value = node.ask(query)
    assert isinstance(value, int)
    return value


def check_arrived_once(node: Node, peer: ReceivingPeer) -> None:
    node.wait_finished(1)
    kinds = [item.sop_class_uid for item in peer.objects]
    assert sorted(set(kinds)) == sorted([SegmentationStorage, Comprehensive3DSRStorage])
    by_uid: dict[str, set[bytes]] = {}
    for item in peer.objects:
        by_uid.setdefault(item.sop_instance_uid, set()).add(item.path.read_bytes())
    # an object may be sent twice around a crash: always under one UID and with the same bytes
    assert len(by_uid) == 2
    assert all(len(versions) == 1 for versions in by_uid.values())
    assert count(lambda s: s.scalar(select(func.count(Job.id))), node) == 1


def test_the_result_arrives_once(node: Node, peer: ReceivingPeer, gate: Gate, files: list[Path]) -> None:
    """The same study survives all five."""
    gate.closed = True
    _killed_before_there_is_a_result(node, files)
    assert not peer.objects
    _killed_before_and_between_deliveries(node, peer, gate)
    assert [item.sop_class_uid for item in peer.objects] == [SegmentationStorage]

    peer._on_store = None
    node.start()
    check_arrived_once(node, peer)
    report = dcmread(peer.objects[-1].path)
    assert report.SOPClassUID == Comprehensive3DSRStorage


def _killed_before_there_is_a_result(node: Node, files: list[Path]) -> None:
    """While receiving, while queued and while analysing."""

    def slowly() -> None:
        send_files("127.0.0.1", node.port, "CTNODE", "STORESCU", files, progress=lambda *_: time.sleep(0.05))

    def instances() -> int:
        return count(lambda s: s.scalar(select(func.count(Instance.id))), node)

    sending = Thread(target=slowly)
    sending.start()
    node.until(lambda: instances() > len(files) // 3, "a third", 60)
    node.kill()
    sending.join(60)
    assert instances() < len(files)

    node.start()
    send(node, files)
    node.kill()
    assert instances() == len(files)

    node.start()
    node.until(
        lambda: node.ask(lambda s: s.scalar(select(Job.id).where(Job.state == JobState.RUNNING))),
        "analysing",
        60,
    )
    node.kill()


def _killed_before_and_between_deliveries(node: Node, peer: ReceivingPeer, gate: Gate) -> None:
    """Before the mask is sent, then between mask and report."""

    def close_after_first(uid: str) -> int | None:
        answer = gate(uid)
        gate.closed = True
        return answer

    node.start()
    node.until(lambda: node.ask(lambda s: s.scalar(select(Artifact.id))), "analysed", 120)
    node.until(gate.arrived.is_set, "first attempt", 60)
    node.kill()
    assert not peer.objects

    gate.closed = False
    gate.arrived.clear()
    peer._on_store = close_after_first
    node.start()
    assert peer.wait_for(bool, 120)
    node.until(gate.arrived.is_set, "the report is on its way", 60)
    node.kill()
