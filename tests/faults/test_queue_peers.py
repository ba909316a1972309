"""Three destinations, one stopped: the others get theirs as ever, and it gets its own afterwards."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from sqlalchemy import func, select

from pacs_node.association import Timeouts
from pacs_node.breaker import away
from pacs_node.clock import utc_now
from pacs_node.config import DeliverySettings
from pacs_node.db import Breaker, Database, Delivery, sqlite_url
from pacs_node.dimse import DimseDestination
from pacs_node.logs import silence_libraries
from pacs_node.outbox import Outbox
from pacs_node.peer import ReceivingPeer
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState
from tests.faults.invariants import Seen, violations
from tests.faults.receiver import LONG, make_storage
from tests.small_node import SmallNode, TestClock

logger = logging.getLogger(__name__)

NAMES = ("left", "right", "stopped")
STUDIES = 8 if LONG else 3
ROUNDS = 5 if LONG else 1
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FORK = multiprocessing.get_context("fork")


def _serve(directory: Path, talk: Connection) -> None:
    silence_libraries()
    with ReceivingPeer(directory) as peer:
        talk.send(peer.port)
        talk.recv()


class Peers:
    """A receiving peer in a process of its own for each name, and the node's outboxes towards them."""

    def __init__(self, directory: Path) -> None:
        self.processes = {}
        self.ports = {}
        self._talks = {}
        for name in NAMES:
            ours, its = FORK.Pipe()
            self.processes[name] = FORK.Process(target=_serve, args=(directory / name, its), daemon=True)
            self.processes[name].start()
            self.ports[name], self._talks[name] = ours.recv(), ours

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.processes[name].pid or 0, number)

    def end(self) -> None:
        for name, process in self.processes.items():
            self.signal(name, signal.SIGCONT)
            process.kill()
            process.join()


class Delivering:
    """A node whose outboxes run, one thread each, with short waits."""

    def __init__(self, directory: Path, peers: Peers) -> None:
        self.database = Database(sqlite_url(make_storage(directory)))
        self.node = SmallNode(self.database, Spool(directory, 1), TestClock())
        self._stop = threading.Event()
        self._number = 0
        limits = DeliverySettings(retry_first_seconds=0.2, retry_longest_seconds=1)
        times = Timeouts(connect=2, association=2, progress=2)
        self._threads = [
            threading.Thread(
                target=Outbox(
                    self.database,
                    directory,
                    DimseDestination(name, "127.0.0.1", port, "PEER", "CTNODE", timeouts=times),
                    limits,
                ).run,
                args=(self._stop,),
                daemon=True,
            )
            for name, port in peers.ports.items()
        ]
        for thread in self._threads:
            thread.start()

    def deliver(self, *names: str) -> float:
        """Finish some studies for all destinations; seconds until those named have everything."""
        self.node.clock.now = utc_now()
        for _ in range(STUDIES):
            self._number += 1
            self.node.queue(str(self._number))
            job, token = self.node.claim()
            result = self.node.result(job)
            self.node.finish(job, token, result, destinations=[(name, ("seg", "sr")) for name in NAMES])
        start = time.monotonic()
        self.wait_for(*names)
        return time.monotonic() - start

    def wait_for(self, *names: str) -> None:
        deadline = time.monotonic() + 120
        waiting = select(func.count()).where(
            Delivery.destination.in_(names), Delivery.state != DeliveryState.COMMITTED
        )
        while time.monotonic() < deadline:
            with self.database.read() as session:
                if not session.scalar(waiting):
                    return
            time.sleep(0.02)
        raise AssertionError("not delivered")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.database.dispose()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        yield Path(directory)


def test_one_that_is_stopped_slows_nobody(place: Path) -> None:
    peers = Peers(place / "peers")
    work = Delivering(place / "storage", peers)
    try:
        work.deliver(*NAMES)
        healthy, beside = [], []
        for _ in range(ROUNDS):
            healthy.append(work.deliver(*NAMES[:2]))
            work.wait_for(*NAMES)
            peers.signal("stopped", signal.SIGSTOP)
            beside.append(work.deliver(*NAMES[:2]))
            _wait_until_away(work.database)
            peers.signal("stopped", signal.SIGCONT)
            work.wait_for(*NAMES)
        slower = statistics.median(beside) / statistics.median(healthy) - 1
        logger.info(
            "%d studies for two peers: %.2f s, beside a stopped one %.2f s (%+.1f %%)",
            STUDIES,
            statistics.median(healthy),
            statistics.median(beside),
            100 * slower,
        )
        with work.database.read() as session:
            assert all(away(row) is None for row in session.scalars(select(Breaker)))
        assert violations(work.database, place / "storage", Seen(orphan_s=0)) == []
    finally:
        work.end()
        peers.end()


def _wait_until_away(database: Database) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with database.read() as session:
            names = [row.destination for row in session.scalars(select(Breaker)) if away(row) is not None]
        # on a busy machine a healthy one may seem away for a moment too
        if "stopped" in names:
            return
        time.sleep(0.05)
    raise AssertionError("its breaker never opened")
