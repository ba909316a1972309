"""Lines that fail, at every place of a transfer: to the node, and from it to a PACS."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import func, select

from pacs_node.association import Timeouts
from pacs_node.config import DeliverySettings
from pacs_node.db import Conflict, Database, sqlite_url
from pacs_node.dimse import DimseDestination
from pacs_node.outbox import Outbox
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState
from tests.ct_factory import make_ct_series
from tests.faults.invariants import Seen, violations
from tests.faults.receiver import LONG, Given, Ledger, Receiver, make_storage, receiver, settings, store
from tests.peers import Orthanc, orthanc
from tests.small_node import SmallNode, TestClock, encoded
from tests.tcp_proxy import Fault, Line, Way

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PER_ASSOCIATION = 2
ENDS = (Way.CUT, Way.RESET, Way.SILENCE, Way.HALF_OPEN)
STEP = 1 << 16
#: of the objects that are delivered: private bytes, so that a result is as large as a usual mask
RESULT_BYTES = 1 << 20


def slices(seed: str, matrix: int) -> list[tuple[str, str, bytes]]:
    return [
        (str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0])
        for ds in make_ct_series(PER_ASSOCIATION, matrix=matrix, seed=seed)
    ]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Receiver]:
    """A listener that doesn't wait long for the rest."""
    given = Given(
        make_storage(tmp_path / "storage"),
        settings(acse_timeout_seconds=2.0, dimse_timeout_seconds=1.0, network_timeout_seconds=2.0),
    )
    with receiver(given) as started:
        yield started


def eventually_empty(running: Receiver) -> None:
    deadline = time.monotonic() + (150 if LONG else 20)
    while running.leftovers():
        assert time.monotonic() < deadline, running.leftovers()
        time.sleep(0.05)


@pytest.mark.parametrize("way", ENDS if LONG else ENDS[:3])
def test_a_sender_whose_line_ends(running: Receiver, way: Way) -> None:
    """Whatever was acknowledged is there, nothing else is left, and all of it goes through afterwards."""
    # a sender may take a second for each kibibyte: small objects are given up sooner
    matrix = 512 if LONG else 32
    total = PER_ASSOCIATION * (2 * matrix * matrix + 1500)
    offsets = range(0, total, STEP) if LONG else (0, 100, total // 2)
    ledger = Ledger()
    cases = [Fault(way, after) for after in offsets]
    cases += [Fault(way, after, answers=True) for after in ((0, 100, 250, 400) if LONG else (250,))]
    with Line(running.port) as line:
        for number, fault in enumerate(cases):
            objects = slices(f"{way}{number}", matrix)
            line.give(fault)
            store(line.port, ledger, objects, timeout=1)
            assert store(running.port, ledger, objects) == [0] * PER_ASSOCIATION
        # a listener whose peer is silent learns it by its own deadline
        eventually_empty(running)
    running.kill()
    assert len(ledger.acknowledged) == PER_ASSOCIATION * len(cases)
    logger.info("%s: %d places, %d objects", way.name, len(cases), len(ledger.acknowledged))
    directory = running.given.directory
    assert ledger.violations(directory) + everything(ledger, directory) == []


def everything(ledger: Ledger, directory: Path) -> list[str]:
    """All the invariants of a node, once `Ledger.violations` has done what a new start does."""
    database = Database(sqlite_url(directory))
    try:
        return violations(database, directory, Seen(ledger.acknowledged.items(), temporary_s=0, orphan_s=0))
    finally:
        database.dispose()


def test_a_sender_whose_bytes_are_falsified(running: Receiver) -> None:
    """Without TLS a false byte of a pixel can't be known; the true object is a conflict then, and kept."""
    ledger = Ledger()
    offsets = range(0, 70_000, 700 if LONG else 17_011)
    taken = 0
    with Line(running.port) as line:
        for number, after in enumerate(offsets):
            objects = slices(f"flip{number}", 128)
            line.give(Fault(Way.FLIP, after))
            taken += store(line.port, Ledger(), objects, timeout=3).count(0)
            assert store(running.port, ledger, objects) == [0] * PER_ASSOCIATION
        eventually_empty(running)
    running.kill()
    logger.info("%d places, %d objects taken with or without a false byte", len(offsets), taken)
    recovered = [item for item in ledger.violations(running.given.directory) if "other bytes" not in item]
    assert recovered == []
    assert everything(ledger, running.given.directory) == []
    database = Database(sqlite_url(running.given.directory))
    with database.read() as session:
        assert session.execute(select(func.count(Conflict.id))).scalar_one() > 0
    database.dispose()


def test_a_slow_line_is_no_broken_one(running: Receiver) -> None:
    ledger = Ledger()
    with Line(running.port, [Fault(bytes_per_second=100_000, delay_s=0.02), Fault(answers=True)]) as line:
        assert store(line.port, ledger, slices("slow", 128)) == [0] * PER_ASSOCIATION
    running.kill()
    assert ledger.violations(running.given.directory) == []


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as started:
        yield started


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SmallNode]:
    """Rows and files of a node, with a clock that the test moves."""
    directory = make_storage(tmp_path / "node")
    database = Database(sqlite_url(directory))
    yield SmallNode(database, Spool(directory, 1), TestClock())
    database.dispose()


def with_result(node: SmallNode, seed: str) -> None:
    """Put SEG and SR of one study into the outbox, as large as real ones."""
    node.queue(seed)
    job, token = node.claim()
    result = []
    for item in node.result(job):
        path = node.spool.directory / item.path
        ds = dcmread(path)
        block = ds.private_block(0x0071, "PACSNODE TEST", create=True)
        block.add_new(0x01, "OB", bytes(RESULT_BYTES))
        ds.PatientID = "LINE"
        ds.save_as(path, enforce_file_format=True)
        result.append(replace(item, sha256=_sha256(path)))
    node.finish(job, token, result, destinations=[("pacs", ("seg", "sr"))])


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def deliver(node: SmallNode, port: int) -> int:
    """Run the outbox until all is verified; how many turns that took."""
    quick = Timeouts(connect=2, association=2, progress=1)
    destination = DimseDestination("pacs", "127.0.0.1", port, "ORTHANC", "NODE", timeouts=quick)
    rule = DeliverySettings(retry_first_seconds=1, retry_longest_seconds=60, give_up_hours=72)
    box = Outbox(node.database, node.spool.directory, destination, rule, node.clock, ticks=node.clock.ticks)
    for turn in range(200):
        if not box.tick():
            node.clock.forward(minutes=5)
        if all(row.state is DeliveryState.COMMITTED for row in node.all_deliveries()):
            return turn
    raise AssertionError([(row.state, row.status) for row in node.all_deliveries()])


@pytest.mark.skipif(not LONG, reason="make faults; tests/faults/test_one_result.py is for every run")
@pytest.mark.peer("orthanc")
@pytest.mark.parametrize("way", ENDS)
def test_a_delivery_whose_line_ends(node: SmallNode, pacs: Orthanc, way: Way) -> None:
    """However often it ends: one mask and one report at the PACS, with the bytes of the outbox."""
    cases = [Fault(way, after) for after in range(0, 2 * RESULT_BYTES, STEP)]
    cases += [Fault(way, after, answers=True) for after in (0, 150, 300, 400)]
    for number, fault in enumerate(cases):
        with_result(node, f"{way}{number}")
        # the same place again at the second attempt
        with Line(pacs.dicom_port, [fault, fault]) as line:
            deliver(node, line.port)
            assert line.connections > 1
    there = [item["SOPInstanceUID"] for item in pacs.instances()]
    promised = [row.artifact.sop_instance_uid or "" for row in node.all_deliveries()]
    pacs.clear()
    assert sorted(there) == sorted(promised)
    assert len(there) == 2 * len(cases)
    logger.info("%s: %d places, %d objects", way.name, len(cases), len(there))
    seen = Seen(arrived={"pacs": dict.fromkeys(there)})
    assert violations(node.database, node.spool.directory, seen) == []
