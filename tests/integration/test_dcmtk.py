"""Against DCMTK: storescp and dcmqrscp as destinations, its clients against our receiving peer."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless

from pacs_node.association import Timeouts
from pacs_node.destinations import OutcomeKind
from pacs_node.dimse import DimseDestination, send_files
from pacs_node.peer import ReceivingPeer
from tests.ct_factory import make_ct_series, write_series
from tests.peers import dcmqrscp, echoscu, findscu, storescp, storescu
from tests.small_objects import reference, write_ct, write_sr

PATIENT = Timeouts(connect=10, association=10, progress=10)


def destination(port: int, *, called_ae: str = "DCMTK", timeouts: Timeouts = PATIENT) -> DimseDestination:
    return DimseDestination("dcmtk", "127.0.0.1", port, called_ae, "NODE", timeouts=timeouts)


@pytest.mark.peer("storescp", "echoscu")
def test_storescp_gets_the_data_sets_as_they_are(tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    calls: list[tuple[int, int]] = []
    with storescp(tmp_path) as peer:
        outcomes = send_files(
            "127.0.0.1", peer.port, "DCMTK", "NODE", paths, progress=lambda *call: calls.append(call)
        )
        received = {dcmread(path).SOPInstanceUID: dcmread(path) for path in peer.files()}
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.STORED}
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [received[outcome.sop_instance_uid] for outcome in outcomes] == [dcmread(path) for path in paths]


@pytest.mark.peer("storescp", "echoscu")
def test_peer_with_implicit_vr_only_gets_it_encoded_again(tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    with storescp(tmp_path, "+xi") as peer:
        outcomes = destination(peer.port).send(paths)
        received = {dcmread(path).SOPInstanceUID: dcmread(path) for path in peer.files()}
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.STORED}
    for path, outcome in zip(paths, outcomes, strict=True):
        copy = received[outcome.sop_instance_uid]
        assert copy.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert copy == dcmread(path)


@pytest.mark.peer("storescp", "echoscu")
def test_compressed_object_for_a_peer_without_it_is_permanent(tmp_path: Path) -> None:
    series = make_ct_series(1, matrix=16, transfer_syntax=JPEGLSLossless)
    paths = [*write_series(series, tmp_path / "jls"), write_sr(tmp_path / "sr")]
    with storescp(tmp_path) as peer:
        compressed, report = destination(peer.port).send(paths)
    assert (compressed.kind, report.kind) == (OutcomeKind.PERMANENT, OutcomeKind.STORED)
    assert "CT Image Storage in JPEG-LS Lossless" in compressed.detail


@pytest.mark.peer("storescp", "echoscu")
@pytest.mark.parametrize("option", ["--abort-after", "--abort-during"])
def test_peer_that_aborts_is_transient(option: str, tmp_path: Path) -> None:
    with storescp(tmp_path, option) as peer:
        outcomes = destination(peer.port).send(write_ct(tmp_path / "ct"))
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.TRANSIENT}


@pytest.mark.peer("storescp", "echoscu")
@pytest.mark.slow
def test_stopped_peer_frees_us_soon_after_the_time_without_progress(tmp_path: Path) -> None:
    patience = 30.0 if os.environ.get("PACS_NODE_FAULTS") == "long" else 6.0
    assert Timeouts().progress == 30.0
    (large,) = write_series(make_ct_series(1, matrix=3000), tmp_path / "ct")
    assert large.stat().st_size > 17_000_000  # more than both kernels' buffers: the send itself blocks
    threads = threading.active_count()
    with storescp(tmp_path) as peer:
        to_peer = destination(peer.port, timeouts=Timeouts(progress=patience))
        small = write_sr(tmp_path / "sr")

        def stop(_done: int, _total: int) -> None:
            os.kill(peer.process.pid, signal.SIGSTOP)

        start = time.monotonic()
        first, second = to_peer.send([small, large], stop)
        took = time.monotonic() - start
    assert (first.kind, second.kind) == (OutcomeKind.STORED, OutcomeKind.TRANSIENT)
    # ours or the kernel's clock (TCP_USER_TIMEOUT): both run for the same time
    assert "no progress" in second.detail or "the connection ended" in second.detail
    assert patience - 2 < took < patience + 5
    assert threading.active_count() <= threads


@pytest.mark.peer("dcmqrscp", "echoscu")
def test_dcmqrscp_verifies_by_c_find(tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    objects = [reference(dcmread(path)) for path in paths]
    with dcmqrscp(tmp_path) as port:
        archive = destination(port, called_ae="QRSCP")
        assert {outcome.kind for outcome in archive.send(paths[:3])} == {OutcomeKind.STORED}
        answer = archive.verify(objects)
        assert list(answer.values()) == [True, True, True, False]
        again = archive.send(paths)
        assert all(outcome.kind.stored for outcome in again)
        assert set(archive.verify(objects).values()) == {True}
        rejected = destination(port, called_ae="NOBODY").send(paths)
    assert {outcome.kind for outcome in rejected} == {OutcomeKind.PERMANENT}


@pytest.mark.peer("storescp", "echoscu")
def test_storescp_can_not_verify(tmp_path: Path) -> None:
    path = write_sr(tmp_path / "sr")
    with storescp(tmp_path) as peer:
        assert list(destination(peer.port).verify([reference(dcmread(path))]).values()) == [None]


@pytest.mark.peer("storescu", "echoscu", "findscu")
def test_dcmtk_clients_against_the_receiving_peer(tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    keys = {"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": dcmread(paths[1]).SOPInstanceUID}
    with ReceivingPeer(tmp_path / "peer") as peer:
        assert echoscu(peer.port) == 0
        sent = storescu(peer.port, tmp_path / "ct", tmp_path / "sr", calling_ae="MODALITY")
        assert sent.returncode == 0, sent.stderr
        found = findscu(peer.port, keys)
    assert [item.read() for item in peer.objects] == [dcmread(path) for path in paths]
    assert {item.calling_ae for item in peer.objects} == {"MODALITY"}
    assert found.returncode == 0
    assert (found.stdout + found.stderr).count("Find Response:") == 1
