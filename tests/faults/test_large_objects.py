"""Objects of a gigabyte stream to the disk: eight at once, and the memory stays."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage

from tests.faults.receiver import LONG, Given, make_storage, receiver, settings
from tests.hostile import element, series, slice_with
from tests.raw_peer import CT_CONTEXT, P_DATA, RawPeer, command, pdu, value

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COUNT = 8
MAX_RSS_KIB = 300 << 10
SIZE = 1 << 30 if LONG else 16 << 20


def send(port: int, number: int) -> int:
    """One object of `SIZE` bytes with a UID of its own, in parts; its status."""
    uid = f"{series()[0].SOPInstanceUID}.{number}"
    head = slice_with(0x00080018, element(0x00080018, b"UI", uid.encode() + b"\0" * (len(uid) % 2)))
    head = head[: head.index(b"\xe0\x7f\x10\x00")] + element(0x7FE00010, b"OW", length=SIZE)
    request = command(1, data_set=True, sop_class=CTImageStorage, sop_instance=uid)
    part = bytes([number]) * 100_000
    with RawPeer(port, timeout=600).associate() as peer:
        peer.send(pdu(P_DATA, value(request, CT_CONTEXT, command=True)))
        peer.send(pdu(P_DATA, value(head, CT_CONTEXT, last=False)))
        left = SIZE
        while left:
            size = min(left, len(part))
            left -= size
            peer.send(pdu(P_DATA, value(part[:size], CT_CONTEXT, last=not left)))
        return peer.status()


def test_eight_large_objects_at_once(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 2 * COUNT * SIZE:
        pytest.skip(f"needs {2 * COUNT * SIZE >> 30} GiB of disk")
    with receiver(Given(make_storage(tmp_path / "storage"), settings())) as running:
        assert send(running.port, 99) == 0
        running.forget_peak()
        before = running.rss_kib()
        with ThreadPoolExecutor(COUNT) as pool:
            statuses = list(pool.map(lambda number: send(running.port, number), range(COUNT)))
        peak = running.peak_kib()
        logger.info("%d x %d MiB: memory %d KiB, +%d KiB", COUNT, SIZE >> 20, peak, peak - before)
    assert statuses == [0] * COUNT
    assert peak < MAX_RSS_KIB
    shutil.rmtree(tmp_path / "storage")
