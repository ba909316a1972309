"""Hostile data sets over the wire: each has its status; what was stored ends in a verdict with a reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage

from inference.errors import ReasonCode, UnsuitableSeriesError
from pacs_node.reader import ConfinedReader
from pacs_node.spool import Spool
from tests import hostile
from tests.faults.receiver import LONG, Given, Receiver, make_storage, receiver, settings
from tests.hostile import CORPUS, Hostile, plain, series
from tests.raw_peer import RawPeer
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MAX_GROWTH_KIB = 16 << 10
CANNOT_UNDERSTAND = 0xC000
OBJECTS = CORPUS | (hostile.bombs() if LONG else {})


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Receiver]:
    with receiver(Given(make_storage(tmp_path / "storage"), settings())) as started:
        yield started


@pytest.fixture
def reader() -> Iterator[ConfinedReader]:
    made = ConfinedReader()
    yield made
    made.close()


def named(item: Hostile) -> str:
    """What the request calls the object: itself, so that only its bytes decide."""
    return item.sop_instance or str(series()[0].SOPInstanceUID)


def test_each_has_its_status_and_the_listener_is_as_before(running: Receiver) -> None:
    uid = str(series()[0].SOPInstanceUID)
    with RawPeer(running.port).associate() as peer:
        assert peer.store(plain(), CTImageStorage, uid) == 0
        assert peer.store(b"no data set" * 1000, CTImageStorage, "1.2.3") == CANNOT_UNDERSTAND
    before, descriptors, threads = running.rss_kib(), running.descriptors(), running.threads()
    running.forget_peak()
    statuses: dict[str, int] = {}
    slowest = 0.0
    by_syntax = sorted(OBJECTS.items(), key=lambda pair: pair[1].syntax)
    for syntax, group in groupby(by_syntax, key=lambda pair: pair[1].syntax):
        with RawPeer(running.port, timeout=120).associate(syntax=syntax) as peer:
            for name, item in group:
                start = time.monotonic()
                statuses[name] = peer.store(item.data, CTImageStorage, named(item))
                slowest = max(slowest, time.monotonic() - start)
            peer.release()
    growth = running.peak_kib() - before
    logger.info("%d objects, slowest %.2f s, memory +%d KiB", len(statuses), slowest, growth)
    assert statuses == {name: 0 if item.storable else CANNOT_UNDERSTAND for name, item in OBJECTS.items()}
    assert growth < MAX_GROWTH_KIB
    assert running.descriptors() <= descriptors + 2
    assert running.threads() <= threads + 2
    assert running.leftovers() == []
    with RawPeer(running.port).associate() as peer:
        assert peer.echo() == 0


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_what_was_stored_ends_in_a_verdict(tmp_path: Path, reader: ConfinedReader) -> None:
    """In a series that is suitable without it; after each, the same reader still reads a good series."""
    spool = Spool(tmp_path / "storage", 1)
    good = [store(spool, Hostile(encoded(ds)[0], storable=True)) for ds in series()]
    ends: dict[str, str] = {}
    slowest = 0.0
    storable = [(name, item) for name, item in OBJECTS.items() if item.storable]
    for name, item in storable if LONG else storable[::3]:
        path = store(spool, item)
        start = time.monotonic()
        ends[name] = end(reader, [path, *good[1:]])
        slowest = max(slowest, time.monotonic() - start)
    assert reader.load(good).volume.array.shape == (hostile.SLICES, hostile.MATRIX, hostile.MATRIX)
    counts = {code: list(ends.values()).count(code) for code in sorted(set(ends.values()))}
    logger.info("%d objects, slowest %.2f s: %s", len(ends), slowest, counts)
    assert {name for name, code in ends.items() if code == "ANALYSABLE"} <= HARMLESS
    assert set(counts) <= {*ReasonCode, "ANALYSABLE"}
    assert counts[ReasonCode.DECODE] > 5


#: wrong, but nothing that position, size or values of the pixels depend on
HARMLESS = {
    "unknown character sets",
    "many character sets",
    "a name of escapes",
    "a name of 60 KB",
    "20 000 items",
    "20 000 elements",
    "a uid of odd length",
    "a VR that is none",
    "numbers as doubles",
    "instance number of 300 digits",
    "0 frames",
    # the frame is whole, and what follows it is taken for padding
    "pixel data of 100000 bytes",
    "pixel data of 130 bytes",
    "deflated noise behind the head",
}


def store(spool: Spool, item: Hostile) -> Path:
    """As the listener does it."""
    stored = spool.write(
        item.data,
        sop_class_uid=CTImageStorage,
        sop_instance_uid=named(item),
        transfer_syntax_uid=item.syntax,
    )
    return spool.absolute(stored.path)


def end(reader: ConfinedReader, paths: list[Path]) -> str:
    """How the series ends; another exception than a refusal with a reason fails the test."""
    try:
        reader.load(paths)
    except UnsuitableSeriesError as error:
        return error.code if error.sentence.endswith(".") else f"no sentence: {error.sentence}"
    return "ANALYSABLE"
