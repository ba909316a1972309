"""Half-open, slow and oversized peers by the hundred, while a known PACS goes on working."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Self

import pytest
from pydicom.uid import CTImageStorage
from sqlalchemy import select
from sqlalchemy.orm import Session

from inference.phantom import write_phantom
from pacs_node.config import DicomDestination
from pacs_node.db import Delivery
from pacs_node.dimse import send_files
from pacs_node.peer import ReceivingPeer
from pacs_node.states import DeliveryState
from tests.acceptance.node import Node, small_phantom
from tests.ct_factory import make_ct_series
from tests.faults.receiver import (
    LONG,
    Given,
    Ledger,
    Receiver,
    context,
    make_storage,
    receiver,
    settings,
    store,
)
from tests.raw_peer import ACCEPT, CT_CONTEXT, P_DATA, RawPeer, association_request, command, pdu, value
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HALF_OPEN, OVERSIZED, KILLED = 500, 200, 200
SECONDS = 60.0 if LONG else 3.0
REQUEST_SECONDS = 10.0 if LONG else 2.0
MAX_GROWTH_KIB = 16 << 10
DATA, _ = encoded(make_ct_series(1, matrix=512, seed="large")[0])


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Receiver]:
    given = Given(make_storage(tmp_path / "storage"), settings(acse_timeout_seconds=REQUEST_SECONDS))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with receiver(given) as started:
        yield started
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def echo_seconds(port: int) -> float:
    start = time.monotonic()
    with RawPeer(port, timeout=60).associate() as peer:
        assert peer.echo() == 0
        peer.release()
    return time.monotonic() - start


def attacker_address(number: int) -> str:
    return f"127.0.{number % 40 + 1}.1"


class Attack:
    """Keeps hostile peers at it, in a process of their own; who is dropped comes again."""

    def __init__(self, port: int) -> None:
        self._over = context.Event()
        self._count = context.Value("q", 0)
        self._process = context.Process(target=_attack, args=(port, self._over, self._count))

    @property
    def connections(self) -> int:
        """How many there were so far."""
        return int(self._count.value)

    def __enter__(self) -> Self:
        self._process.start()
        eventually(lambda: self.connections >= HALF_OPEN + OVERSIZED, 240)
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._process.join(60)
        self._process.kill()


def _attack(port: int, over: Event, count: Synchronized[int]) -> None:
    # attackers have machines of their own: what they compute themselves must not slow down the node
    os.nice(19)
    peers: dict[tuple[bool, int], RawPeer] = {}
    all_of_them = [(False, number) for number in range(HALF_OPEN)]
    all_of_them += [(True, number) for number in range(OVERSIZED)]
    while not over.is_set():
        for key in all_of_them:
            peer = peers.get(key)
            if peer is not None and _goes_on(peer):
                continue
            if peer is not None:
                peer.connection.close()
            with contextlib.suppress(OSError):
                peers[key] = _begin(port, *key)
                peers[key].connection.setblocking(False)
                count.value += 1
        over.wait(0.1)
    for peer in peers.values():
        peer.connection.close()


def _begin(port: int, oversized: bool, number: int) -> RawPeer:
    """Most of the oversized claim 4 GiB before they are known, some under the name of the PACS itself."""
    known = oversized and number % 10 == 0
    peer = RawPeer(port, source="127.0.0.1" if known else attacker_address(number))
    if not oversized:
        peer.send(association_request()[: number % 3 * 30])
    elif known:
        peer.send(association_request("PACS"), struct.pack(">BxL", P_DATA, 0xFFFFFFFF))
    else:
        peer.send(struct.pack(">BxL", 1, 0xFFFFFFFF))
    return peer


def _goes_on(peer: RawPeer) -> bool:
    """Push some bytes, as slowly and as many as the listener takes; whether it is still there."""
    try:
        peer.connection.send(bytes(1))
        return peer.connection.recv(64) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_a_known_pacs_works_on(running: Receiver) -> None:
    calm = max(echo_seconds(running.port) for _ in range(5))
    ledger = Ledger()
    slices = make_ct_series(30, matrix=128)
    instances = [(str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0]) for ds in slices]
    store(running.port, Ledger(), [(CTImageStorage, "1.2.3", b"no data set" * 1000)])
    before = running.rss_kib()
    running.forget_peak()
    times: list[float] = []
    statuses: list[int] = []
    used = running.cpu_seconds()
    with Attack(running.port) as attack:
        sender = threading.Thread(target=lambda: statuses.extend(store(running.port, ledger, instances)))
        sender.start()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or sender.is_alive():
            times.append(echo_seconds(running.port))
            time.sleep(0.05)
        sender.join()
        used = running.cpu_seconds() - used
    logger.info(
        "slowest of %d echoes %.2f s, median %.3f s (before the attack %.2f s), memory +%d KiB, "
        "%d hostile connections, %.1f s of the processor for all, load %.0f",
        len(times),
        max(times),
        sorted(times)[len(times) // 2],
        calm,
        running.peak_kib() - before,
        attack.connections,
        used,
        os.getloadavg()[0],
    )
    assert statuses == [0] * len(instances)
    assert ledger.violations(running.given.directory) == []
    # a second, except where the machine is so busy that it is slow without any attack
    assert max(times) < max(1.0, 5 * calm), (calm, times)
    assert running.peak_kib() - before < MAX_GROWTH_KIB


@pytest.mark.skipif(not LONG, reason="make faults")
def test_a_study_comes_to_its_end_meanwhile(tmp_path: Path) -> None:
    """A whole node, attacked from before the first slice until the results are at the PACS."""
    files = write_phantom(small_phantom(7), tmp_path / "ct")
    (tmp_path / "node").mkdir()
    with ReceivingPeer(tmp_path / "peer") as peer:
        destination = DicomDestination(name="pacs", host="127.0.0.1", port=peer.port, ae_title="PEER")
        node = Node(tmp_path / "node", [destination], profile="classical")
        try:
            node.start()
            with Attack(node.port) as attack:
                outcomes = send_files("127.0.0.1", node.port, "CTNODE", "STORESCU", files)
                assert all(outcome.kind.stored for outcome in outcomes)
                sent = time.monotonic()
                times = echoes_until(node.port, lambda: bool(node.ask(_all_committed)))
                took, connections = time.monotonic() - sent, attack.connections
        finally:
            node.kill()
    assert len(peer.objects) == 2
    logger.info(
        "study at the PACS %.0f s after its last slice, slowest of %d echoes %.2f s, %d hostile connections",
        took,
        len(times),
        max(times),
        connections,
    )
    assert max(times) < 1.0


def echoes_until(port: int, condition: Callable[[], bool]) -> list[float]:
    """Echo as the sender of the study until something has happened; the seconds of each."""
    times: list[float] = []
    end = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < end
        start = time.monotonic()
        with RawPeer(port, timeout=60) as peer:
            peer.send(association_request("STORESCU"))
            assert peer.read()[0] == ACCEPT
            assert peer.echo() == 0
            peer.release()
        times.append(time.monotonic() - start)
        time.sleep(0.1)
    return times


def _all_committed(session: Session) -> bool:
    states = list(session.scalars(select(Delivery.state)))
    return len(states) == 2 and set(states) == {DeliveryState.COMMITTED}


def test_the_node_is_as_before_when_they_have_gone(running: Receiver) -> None:
    echo_seconds(running.port)
    descriptors, threads = running.descriptors(), running.threads()
    with Attack(running.port):
        echo_seconds(running.port)
    eventually(lambda: running.descriptors() <= descriptors + 2, REQUEST_SECONDS + 5)
    eventually(lambda: running.threads() <= threads + 2, REQUEST_SECONDS + 5)


def test_a_slow_request_is_cut_whatever_it_sends(running: Receiver) -> None:
    """Slow-loris: a byte now and then doesn't lengthen the time."""
    with RawPeer(running.port) as peer:
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in association_request():
                peer.send(bytes([byte]))
                time.sleep(0.1)
        assert REQUEST_SECONDS - 0.5 < time.monotonic() - start < REQUEST_SECONDS + 2


def test_killed_senders_leave_nothing(running: Receiver) -> None:
    """Each breaks off within an object: cut with a reset, closed, or just silent."""
    echo_seconds(running.port)
    descriptors = running.descriptors()
    request = command(1, data_set=True, sop_class=CTImageStorage, sop_instance="1.2.3")
    for number in range(KILLED):
        with RawPeer(running.port).associate() as peer:
            peer.send(pdu(P_DATA, value(request, CT_CONTEXT, command=True)))
            for start in range(0, number % 4 * 100_000, 100_000):
                peer.send(pdu(P_DATA, value(DATA[start : start + 100_000], CT_CONTEXT, last=False)))
            if number % 2:
                linger = struct.pack("ii", 1, 0)
                peer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            if number % 40 == 3:
                # so that it is sure that something was on its way
                eventually(lambda: running.leftovers() != [], 30)
    eventually(lambda: running.leftovers() == [], 5)
    eventually(lambda: running.descriptors() <= descriptors + 2, 5)


def eventually(condition: object, seconds: float) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
