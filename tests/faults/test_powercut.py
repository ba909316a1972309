"""The power fails: what was acknowledged is on the disk, not only in the memory of the kernel.

The store lies in an ext4 of its own that writes by itself only every 300 s. The listener is stopped in the
middle of its work and the disk copied as it is then; the copy, mounted anew, is all that a power cut leaves.
What the disk itself would lose from a cache of its own can't be shown so.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.ct_factory import make_ct_series
from tests.faults.disks import copy_image, make_image, mounted
from tests.faults.receiver import LONG, Given, Ledger, Receiver, make_storage, receiver, settings, store
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CUTS = 100 if LONG else 2
SIZE_MB = 96
SENDERS = 2
PER_ASSOCIATION = 12


class Senders:
    """PACS that send without an end, each association another series."""

    def __init__(self, port: int, ledger: Ledger) -> None:
        self._port = port
        self._ledger = ledger
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(SENDERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, sender: int) -> None:
        number = 0
        while not self._over.is_set():
            slices = make_ct_series(PER_ASSOCIATION, matrix=16, seed=f"{sender} {number}")
            objects = [(str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0]) for ds in slices]
            store(self._port, self._ledger, objects)
            number += 1


def cut(running: Receiver, image: Path, ledger: Ledger) -> list[str]:
    """Copy the disk of the stopped listener; what is missing there of all that was acknowledged by then."""
    os.kill(running.pid, signal.SIGSTOP)
    try:
        promised = Ledger(dict(ledger.acknowledged))
        copy = copy_image(image, image.with_name("cut.img"))
    finally:
        os.kill(running.pid, signal.SIGCONT)
    with mounted(image.with_name("cut"), "-o", "loop", copy) as disk:
        found = promised.violations(disk / "storage") + promised.orphans(disk / "storage")
    copy.unlink()
    return found


def cuts(directory: Path, count: int, *, synced: bool) -> tuple[int, list[str]]:
    """Cut some times; how many objects were acknowledged, and what was violated."""
    image = make_image(directory / "disk.img", SIZE_MB)
    ledger, found, chance = Ledger(), [], random.Random(5)
    with mounted(directory / "disk", "-o", "loop,commit=300", image) as disk:
        storage = make_storage(disk / "storage")
        os.sync()
        with receiver(Given(storage, settings(), unsynced=not synced)) as running:
            senders = Senders(running.port, ledger)
            senders.start()
            try:
                for _ in range(count):
                    before = len(ledger.acknowledged)
                    while len(ledger.acknowledged) < before + 5:
                        time.sleep(0.01)
                    time.sleep(chance.random() * 0.3)
                    found += cut(running, image, ledger)
            finally:
                senders.stop()
    logger.info("%d cuts, %d objects, %d violations", count, len(ledger.acknowledged), len(found))
    return len(ledger.acknowledged), found


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged, found = cuts(tmp_path, CUTS, synced=True)
    assert found == []
    assert acknowledged >= 5 * CUTS


def test_without_syncs_it_would_be(tmp_path: Path) -> None:
    """The negative control: a spool that syncs neither files nor folders."""
    _, found = cuts(tmp_path, 2, synced=False)
    assert any("was acknowledged" in item for item in found)
