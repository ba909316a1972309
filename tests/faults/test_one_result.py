"""Whatever fails on the way, an archive has one mask and one report of a job, with the bytes of the outbox.

`PACS_NODE_DELIVERIES` says of how many jobs the results are delivered, `PACS_NODE_DELIVERIES_SEED` which
faults. The results go by C-STORE with and without TLS, and by STOW-RS, to Orthanc and dcmqrscp; outbox,
archive and line fail.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from enum import Enum, auto
from pathlib import Path

import pytest

from pacs_node.config import DestinationSettings, DicomDestination, DicomWebDestination
from tests.certificates import make_certificate
from tests.faults.outbox_lane import Archive, DcmtkArchive, Lane, OrthancArchive, Promise
from tests.faults.receiver import LONG
from tests.tcp_proxy import Fault, Line, Way

logger = logging.getLogger(__name__)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.peer("orthanc", "orthanc-dicomweb", "dcmqrscp", "getscu"),
]

JOBS = int(os.environ.get("PACS_NODE_DELIVERIES", "200" if LONG else "9"))
SEED = int(os.environ.get("PACS_NODE_DELIVERIES_SEED", "1"))
PATIENCE_S = 180.0
#: a line is silent or half open for this long: both archives of DCMTK's code answer nobody else meanwhile
#: where that happens within a TLS handshake or an association request
HOLDS_S = 5.0
#: bytes of a mask
SIZES = (100, 5_000, 60_000, 300_000) if JOBS > 9 else (100, 60_000)


class Trouble(Enum):
    """What happens to one delivery."""

    CUT = auto()
    RESET = auto()
    SILENCE = auto()
    HALF_OPEN = auto()
    SLOW = auto()
    #: all of it arrives, and its answer doesn't
    ANSWER_LOST = auto()
    #: one byte is another one; TCP doesn't notice, so only where there is TLS
    FALSIFIED = auto()
    OUTBOX_KILLED = auto()
    ARCHIVE_KILLED = auto()
    #: the archive answers success and keeps nothing
    FORGOTTEN = auto()


_WAYS = {
    Trouble.CUT: Way.CUT,
    Trouble.RESET: Way.RESET,
    Trouble.SILENCE: Way.SILENCE,
    Trouble.HALF_OPEN: Way.HALF_OPEN,
    Trouble.FALSIFIED: Way.FLIP,
}


class Storm:
    """Delivers the results of one job after the other on one lane, each under another trouble."""

    def __init__(self, lane: Lane, seed: str, *, tls: bool) -> None:
        self.lane = lane
        self.done: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        """Those of them where an object was sent more than once."""
        self._chance = random.Random(seed)
        impossible = set() if tls else {Trouble.FALSIFIED}
        if not isinstance(lane.archive, OrthancArchive):
            impossible.add(Trouble.FORGOTTEN)
        self._possible = [trouble for trouble in Trouble if trouble not in impossible]
        self._next: list[Trouble] = []

    def run(self, jobs: int) -> list[str]:
        """Return what was wrong."""
        found: list[str] = []
        for _ in range(jobs):
            if not self._next:
                self._next = self._chance.sample(self._possible, len(self._possible))
            trouble = self._next.pop()
            start = time.monotonic()
            promise = self._deliver(trouble)
            logger.debug("%s: %s, %.1f s", self.lane.name, trouble.name, time.monotonic() - start)
            for sentence in self.lane.wrong(promise):
                found.append(f"{trouble.name}: {sentence}")
                logger.error("%s", found[-1])
            self.done[trouble.name] += 1
            self.again[trouble.name] += self.lane.attempts(promise) > 1
        return found

    def _deliver(self, trouble: Trouble) -> Promise:
        chance, line = self._chance, self.lane.line
        size = chance.choice(SIZES)
        line.give(*self._faults(trouble, size))
        if trouble is Trouble.FORGOTTEN and isinstance(self.lane.archive, OrthancArchive):
            self.lane.archive.forget_the_next()
        promise = self.lane.finish_a_job({"seg": size, "sr": chance.randint(100, 5_000)})
        if trouble is Trouble.OUTBOX_KILLED:
            for _ in range(chance.randint(1, 3)):
                time.sleep(chance.uniform(0, 0.8))
                self.lane.kill()
                self.lane.start(whole=chance.random() < 0.5)
        if trouble is Trouble.ARCHIVE_KILLED:
            time.sleep(chance.uniform(0, 0.6))
            self.lane.archive.kill()
            time.sleep(chance.uniform(0, 1))
            self.lane.archive.start()
        self.lane.wait_for(promise, HOLDS_S)
        line.clear()
        self.lane.wait_for(promise, PATIENCE_S)
        return promise

    def _faults(self, trouble: Trouble, size: int) -> list[Fault]:
        """What the next connections get: of SEG, SR and the question whether they are there."""
        chance = self._chance
        if trouble in _WAYS:
            answers = chance.random() < 0.3
            after = chance.randint(0, 600 if answers else size + 1500)
            good = [Fault()] * chance.choice([0, 0, 1, 2])
            return good + [Fault(_WAYS[trouble], after, answers)] * chance.randint(1, 2)
        if trouble is Trouble.ANSWER_LOST:
            way = chance.choice([Way.CUT, Way.RESET, Way.SILENCE])
            # within and behind the answer to the association request
            return [Fault(way, chance.randint(0, 400), answers=True) for _ in range(chance.randint(1, 3))]
        kill = trouble in {Trouble.OUTBOX_KILLED, Trouble.ARCHIVE_KILLED} and chance.random() < 0.5
        if kill or trouble is Trouble.SLOW:
            return [Fault(bytes_per_second=3 * max(size, 5_000), delay_s=0.05)] * 3
        return []


Ways = dict[str, tuple[Callable[[Path], Archive], Callable[[int], DestinationSettings], bool]]


def transports(directory: Path) -> Ways:
    """By name: how to make the archive and the destination for a port of its line, and whether it has TLS."""
    ours, its = make_certificate(directory, "node"), make_certificate(directory, "pacs")
    tls = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(its.certificate),
        "DicomTlsPrivateKey": str(its.key),
        "DicomTlsTrustedCertificates": str(ours.certificate),
    }

    def by_dimse(name: str, files: dict[str, str] | None = None) -> Callable[[int], DestinationSettings]:
        known = {"name": name, "host": "127.0.0.1", "ae_title": "QRSCP", "verify": "c-find", **(files or {})}
        return lambda port: DicomDestination.model_validate({**known, "port": port})

    def by_http(port: int) -> DestinationSettings:
        return DicomWebDestination(name="stow", kind="dicomweb", url=f"http://127.0.0.1:{port}/dicom-web")

    files = {
        "tls_ca_file": str(its.certificate),
        "tls_certificate_file": str(ours.certificate),
        "tls_key_file": str(ours.key),
    }
    return {
        "tls": (lambda place: OrthancArchive(place, tls), by_dimse("tls", files), True),
        "stow": (lambda place: OrthancArchive(place, by_http=True), by_http, False),
        "dcmtk": (DcmtkArchive, by_dimse("dcmtk"), False),
        "orthanc": (OrthancArchive, by_dimse("orthanc"), False),
    }


@contextmanager
def lane(directory: Path, ways: Ways, name: str) -> Iterator[Lane]:
    """Run an archive of its own, a line to it and an outbox."""
    make_archive, make_destination, _ = ways[name]
    place = directory / name
    place.mkdir()
    with ExitStack() as stack:
        archive = make_archive(place / "archive")
        stack.callback(archive.kill)
        archive.start()
        line = stack.enter_context(Line(archive.port))
        made = Lane(place / "node", archive, line, make_destination(line.port))
        stack.callback(made.end)
        made.start()
        yield made


def test_each_result_is_there_once_whatever_fails(tmp_path: Path) -> None:
    ways = transports(tmp_path)
    names = list(ways) if JOBS > 9 else ["tls", "stow", "dcmtk"]
    start = time.monotonic()
    with ExitStack() as stack, ThreadPoolExecutor(len(names)) as threads:
        storms = [
            Storm(stack.enter_context(lane(tmp_path, ways, name)), f"{SEED}{name}", tls=ways[name][2])
            for name in names
        ]
        parts = [JOBS // len(names) + (number < JOBS % len(names)) for number in range(len(names))]
        found = [sentence for part in threads.map(Storm.run, storms, parts) for sentence in part]
        found += [sentence for storm in storms for sentence in storm.lane.violations()]
    for storm in storms:
        logger.info("%s: %s; sent again: %s", storm.lane.name, dict(storm.done), dict(storm.again))
    logger.info("seed %d, %d jobs, %.0f s: %d violations", SEED, JOBS, time.monotonic() - start, len(found))
    assert found == []
    assert sum(storm.done.total() for storm in storms) == JOBS


def test_what_is_broken_is_caught(tmp_path: Path) -> None:
    controls = [
        # without TLS nobody on the way can tell: the one who looks at the archive does
        ("", Fault(Way.FLIP, 30_000)),
        ("new UID", Fault(Way.CUT, 0, answers=True)),
        ("unverified", None),
    ]
    with lane(tmp_path, transports(tmp_path), "stow") as running:
        for broken, fault in controls:
            if broken:
                running.kill()
                running.broken = broken
                running.start()
            if fault is not None:
                running.line.give(fault)
            elif isinstance(running.archive, OrthancArchive):
                running.archive.forget_the_next()
            promise = running.finish_a_job({"seg": 60_000, "sr": 100})
            running.wait_for(promise, 60)
            found = running.wrong(promise)
            assert any("the archive has" in sentence for sentence in found), (broken, found)
