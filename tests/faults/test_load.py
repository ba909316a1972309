"""Much at once and for long: no failure, and memory, descriptors and threads stay what they were."""

from __future__ import annotations

import logging
import random
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import func, select

from pacs_node.db import Association, Conflict, Database, Instance, Series, sqlite_url
from tests.ct_factory import make_ct_series
from tests.faults.invariants import Seen, violations
from tests.faults.receiver import LONG, Given, Ledger, Receiver, make_storage, receiver, settings, store
from tests.peers import storescu
from tests.raw_peer import CT_CONTEXT, P_DATA, RawPeer, command, pdu, value
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SENDERS = 16 if LONG else 8
OBJECTS = 20_000 if LONG else 160
MATRIX = 128 if LONG else 16
ASSOCIATIONS = 2_000 if LONG else 60
DUPLICATES = 1_000 if LONG else 96
MAX_GROWTH_KIB = 20 << 10
#: those of the pool that syncs files start when they are first needed; less than one for each association
MAX_MORE_THREADS = 8
Object = tuple[str, str, bytes]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Receiver]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with receiver(Given(make_storage(tmp_path / "storage"), settings())) as started:
        yield started
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def objects(count: int, seed: str, matrix: int = 16) -> list[Object]:
    return [
        (str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0])
        for ds in make_ct_series(count, matrix=matrix, seed=seed)
    ]


def warm(running: Receiver) -> tuple[int, int, int]:
    """Let it make what it keeps; then memory (KiB), descriptors and threads."""
    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(lambda n: store(running.port, Ledger(), objects(8, f"warm{n}")), range(SENDERS)))
    settle(running)
    return running.rss_kib(), running.descriptors(), running.threads()


def settle(running: Receiver) -> None:
    """Wait until nothing is on its way any more: every file has its row, every association its end."""
    directory = running.given.directory
    database = Database(sqlite_url(directory))
    deadline = time.monotonic() + 60
    rows = select(func.count(Instance.id)), select(func.count(Conflict.id))
    open_ = select(func.count(Association.id)).where(Association.closed_at.is_(None))
    while True:
        files = len(list((directory / "instances").rglob("*.dcm")))
        with database.read() as session:
            recorded = sum(session.execute(query).scalar_one() for query in rows)
            if not session.execute(open_).scalar_one() and recorded == files and not running.leftovers():
                break
        assert time.monotonic() < deadline, "rows are missing, or associations stay open"
        time.sleep(0.1)
    database.dispose()


def count(running: Receiver, table: type[Instance | Conflict | Series]) -> int:
    database = Database(sqlite_url(running.given.directory))
    with database.read() as session:
        number = session.execute(select(func.count(table.id))).scalar_one()
    database.dispose()
    return number


def check_growth(running: Receiver, before: tuple[int, int, int]) -> None:
    """As before, but for what a cache may keep and a pool may start; a thread may be about to end."""
    deadline = time.monotonic() + 10
    while running.descriptors() > before[1] + 2 or running.threads() > before[2] + MAX_MORE_THREADS:
        assert time.monotonic() < deadline, (before, running.descriptors(), running.threads())
        time.sleep(0.1)
    grown = running.rss_kib() - before[0]
    logger.info("memory %+d KiB, descriptors %+d", grown, running.descriptors() - before[1])
    assert grown < MAX_GROWTH_KIB


class Probe:
    """One more PACS, which sends an object now and then and measures how long the answer takes."""

    def __init__(self, port: int) -> None:
        self.seconds: list[float] = []
        self._port = port
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with RawPeer(self._port, timeout=60).associate() as peer:
            (ds,) = make_ct_series(1, matrix=16, seed="probe")
            while not self._over.wait(0.05):
                ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
                data, _ = encoded(ds)
                start = time.monotonic()
                assert peer.store(data, ds.SOPClassUID, ds.SOPInstanceUID) == 0
                self.seconds.append(time.monotonic() - start)
            peer.release()

    def quantile(self, part: float) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * part)]


def send(port: int, path: Path) -> tuple[int, str]:
    done = storescu(port, path, calling_ae="PACS", called_ae="CTNODE")
    return done.returncode, done.stderr


@pytest.mark.peer("storescu")
def test_many_objects_over_sixteen_associations(running: Receiver, tmp_path: Path) -> None:
    before = warm(running)
    known = count(running, Instance)
    folders = []
    for sender in range(SENDERS):
        (ds,) = make_ct_series(1, matrix=MATRIX, seed=f"load{sender}")
        folders.append(tmp_path / f"sender{sender}")
        folders[-1].mkdir()
        for number in range(OBJECTS // SENDERS):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            ds.InstanceNumber = number + 1
            ds.save_as(folders[-1] / f"{number}.dcm", enforce_file_format=True)
    start = time.monotonic()
    with Probe(running.port) as probe, ThreadPoolExecutor(SENDERS) as pool:
        done = list(pool.map(lambda path: send(running.port, path), folders))
    seconds = time.monotonic() - start
    assert done == [(0, "")] * SENDERS
    settle(running)
    assert count(running, Instance) == known + OBJECTS + len(probe.seconds)
    assert count(running, Conflict) == 0
    logger.info(
        "%d objects in %.1f s (%.0f/s); answers to one more sender: median %.0f ms, 99 %% %.0f ms of %d",
        OBJECTS,
        seconds,
        OBJECTS / seconds,
        probe.quantile(0.5) * 1000,
        probe.quantile(0.99) * 1000,
        len(probe.seconds),
    )
    check_growth(running, before)


def test_many_associations_some_of_which_break(running: Receiver) -> None:
    before = warm(running)
    ledger = Ledger()

    def one(number: int) -> None:
        (item,) = objects(1, f"association{number}")
        if number % 10:
            assert store(running.port, ledger, [item]) == [0]
            return
        sop_class, uid, data = item
        request = command(1, data_set=True, sop_class=sop_class, sop_instance=uid)
        with RawPeer(running.port).associate() as peer:
            peer.send(pdu(P_DATA, value(request, CT_CONTEXT, command=True)))
            peer.send(pdu(P_DATA, value(data[: len(data) // 2], CT_CONTEXT, last=False)))

    with ThreadPoolExecutor(SENDERS) as pool:
        list(pool.map(one, range(ASSOCIATIONS)))
    settle(running)
    assert len(ledger.acknowledged) == ASSOCIATIONS - ASSOCIATIONS // 10
    check_growth(running, before)
    directory = running.given.directory
    database = Database(sqlite_url(directory))
    assert violations(database, directory, Seen(ledger.acknowledged.items(), temporary_s=0, orphan_s=5)) == []
    database.dispose()


def test_duplicates_at_random_over_sixteen_associations(running: Receiver) -> None:
    """The same bytes from anybody are success and change nothing: one row, one file, one series."""
    some = objects(24, "duplicates")
    chance = random.Random(12)
    parts = [chance.choices(some, k=DUPLICATES // SENDERS) for _ in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as pool:
        statuses = list(pool.map(lambda part: store(running.port, Ledger(), part), parts))
    assert statuses == [[0] * (DUPLICATES // SENDERS)] * SENDERS
    settle(running)
    sent = {uid for part in parts for _, uid, _ in part}
    assert count(running, Instance) == len(sent)
    assert count(running, Series) == 1
    assert count(running, Conflict) == 0
    assert len(list((running.given.directory / "instances").rglob("*.dcm"))) == len(sent)
