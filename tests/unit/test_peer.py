"""The receiving peer, and C-STORE, C-ECHO and C-FIND against it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from pacs_node.destinations import ObjectRef, OutcomeKind
from pacs_node.dimse import DimseDestination, send_files
from pacs_node.peer import ReceivedObject, ReceivingPeer
from tests.small_objects import reference, write_ct, write_sr


def to(peer: ReceivingPeer) -> DimseDestination:
    return DimseDestination("peer", "127.0.0.1", peer.port, peer.ae_title, "NODE")


def test_echo_store_verify(tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    objects = [reference(dcmread(path)) for path in paths]
    with ReceivingPeer(tmp_path / "peer") as peer:
        destination = to(peer)
        assert destination.echo().ok
        assert set(destination.verify(objects).values()) == {False}
        assert {outcome.kind for outcome in destination.send(paths)} == {OutcomeKind.STORED}
        assert set(destination.verify(objects).values()) == {True}
        other = ObjectRef(
            "1.2.3", objects[0].series_uid, objects[0].sop_instance_uid, objects[0].sop_class_uid
        )
        assert list(destination.verify([other]).values()) == [False]
    assert not destination.echo().ok
    assert [item.sop_instance_uid for item in peer.objects] == [item.sop_instance_uid for item in objects]
    assert [item.read() for item in peer.objects] == [dcmread(path) for path in paths]
    first = peer.objects[0]
    assert (first.study_uid, first.series_uid, first.sop_class_uid, first.calling_ae) == (
        objects[0].study_uid,
        objects[0].series_uid,
        objects[0].sop_class_uid,
        "NODE",
    )


def test_names_and_preamble_are_its_own(tmp_path: Path) -> None:
    source = write_sr(tmp_path / "sr")
    content = source.read_bytes()
    source.write_bytes(b"#!/bin/sh\n" + content[10:])  # C-STORE carries no preamble
    with ReceivingPeer(tmp_path / "peer") as peer:
        assert send_files("127.0.0.1", peer.port, "PEER", "NODE", [source])[0].kind is OutcomeKind.STORED
    (stored,) = (tmp_path / "peer").iterdir()
    assert stored.name == "000001.dcm"
    assert stored.read_bytes()[:132] == bytes(128) + b"DICM"


def test_wait_for(tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct")

    def two(objects: list[ReceivedObject]) -> bool:
        return len(objects) >= 2

    with ReceivingPeer(tmp_path / "peer") as peer:
        assert not peer.wait_for(two, timeout=0.05)
        sender = threading.Thread(target=to(peer).send, args=(paths,))
        sender.start()
        assert peer.wait_for(two, timeout=10)
        sender.join()


def test_simultaneous_senders(tmp_path: Path) -> None:
    series = [write_ct(tmp_path / seed, seed=seed, n_slices=5) for seed in "abcd"]
    with ReceivingPeer(tmp_path / "peer") as peer:
        senders = [threading.Thread(target=to(peer).send, args=(paths,)) for paths in series]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    expected = {str(dcmread(path).SOPInstanceUID) for paths in series for path in paths}
    assert {item.sop_instance_uid for item in peer.objects} == expected
    assert len(peer.objects) == len({item.path for item in peer.objects}) == 20


def test_scripted_status_is_answered_and_nothing_is_kept(tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct", n_slices=6)
    uids = [str(dcmread(path).SOPInstanceUID) for path in paths]
    script = dict(zip(uids, [0xA700, 0xA900, 0xC001, 0x0111, 0xB000, None], strict=True))
    with ReceivingPeer(tmp_path / "peer", on_store=script.get) as peer:
        outcomes = to(peer).send(paths)
    assert [outcome.kind for outcome in outcomes] == [
        OutcomeKind.TRANSIENT,
        OutcomeKind.PERMANENT,
        OutcomeKind.PERMANENT,
        OutcomeKind.STORED,
        OutcomeKind.WARNING_STORED,
        OutcomeKind.STORED,
    ]
    assert [item.sop_instance_uid for item in peer.objects] == [uids[5]]


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_object_without_a_place_is_not_understood(tmp_path: Path, keyword: str) -> None:
    report: Dataset = dcmread(write_sr(tmp_path / "sr"))
    delattr(report, keyword)
    report.save_as(tmp_path / "bad.dcm")
    with ReceivingPeer(tmp_path / "peer") as peer:
        (outcome,) = to(peer).send([tmp_path / "bad.dcm"])
    assert (outcome.kind, outcome.status) == (OutcomeKind.PERMANENT, 0xC000)
    assert not peer.objects
    assert not list((tmp_path / "peer").iterdir())
