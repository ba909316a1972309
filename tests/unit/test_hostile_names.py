"""No byte of a peer gets into a path, a preamble or a log line that somebody can read."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import CTImageStorage
from sqlalchemy import func, select

from inference.uids import is_uid
from pacs_node import audit
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import AuditEvent, Database, Instance, Series, Study
from pacs_node.listener import Listener
from pacs_node.logs import JsonFormatter
from pacs_node.spool import Incoming, Spool, StoredFile
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.faults.receiver import LONG
from tests.hostile import element, elements, plain, series, slice_with
from tests.raw_peer import RawPeer
from tests.small_node import TestClock, encoded

CALLERS = (Caller(ae_title="PACS", address="127.0.0.0/8"),)
CANARY = "CANARY"
MARKUP = "<img src=x onerror=alert(1)>"
CONTROL = "\x1b[31m\x00\r\n\x7f\x85"


@pytest.fixture
def listener(database: Database, spool: Spool, clock: TestClock) -> Iterator[Listener]:
    made = Listener(ListenerSettings(port=find_free_port()), CALLERS, database, spool, clock)
    made.start()
    yield made
    made.stop()


def port(listener: Listener) -> int:
    return listener._settings.port


def paths(spool: Spool) -> set[str]:
    return {str(path.relative_to(spool.directory)) for path in spool.directory.rglob("*") if path.is_file()}


NAMES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        [
            "../" * 8 + "etc/passwd",
            "a\0b",
            "a/b",
            "..",
            ".",
            "~root",
            "$(id)",
            "`id`",
            "-rf",
            "C:\\x",
            "%00",
            "",
        ]
    ),
)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uid=NAMES, patient=NAMES, accession=NAMES)
def test_no_byte_of_a_peer_is_in_a_path(
    listener: Listener, spool: Spool, uid: str, patient: str, accession: str
) -> None:
    raw = patient.encode("utf-8", "replace")[:200]
    data = slice_with(0x00100020, element(0x00100020, b"LO", raw + b" " * (len(raw) % 2)))
    before = paths(spool)
    with RawPeer(port(listener)).associate() as peer:
        named = uid.encode("utf-8", "replace").decode("latin-1")[:60]
        status = peer.store(data, CTImageStorage, named)
    assert status in {0, 0xA900, 0xC000}
    for path in paths(spool) - before:
        folder, _, name = path.partition("/")
        assert folder in {"instances", "incoming"} or path.startswith("node.db"), path
        if folder == "instances":
            assert len(Path(name).stem) == 64
            assert set(Path(name).stem) <= set("0123456789abcdef")


@given(st.text(max_size=80))
def test_only_digits_and_dots_are_a_uid(text: str) -> None:
    assert is_uid(text) == (0 < len(text) <= 64 and set(text) <= set("0123456789."))


@pytest.mark.parametrize(
    "beginning",
    [b"MZ\x90\x00", b"\x7fELF\x02\x01\x01", b"#!/bin/sh\n", b"%PDF-1.7", b"PK\x03\x04", b"<html>"],
)
def test_no_program_hides_before_an_image(listener: Listener, spool: Spool, beginning: bytes) -> None:
    """CVE-2019-11687. What arrives is a data set; one that brings a preamble is none."""
    uid = str(series()[0].SOPInstanceUID)
    with RawPeer(port(listener)).associate() as peer:
        assert peer.store(plain(), CTImageStorage, uid) == 0
        assert peer.store(beginning.ljust(128, b"\0") + b"DICM" + plain(), CTImageStorage, uid) == 0xC000
    listener.flush()
    for path in spool.directory.rglob("*.dcm"):
        assert path.read_bytes()[:132] == bytes(128) + b"DICM"


def test_random_duplicates(listener: Listener, database: Database, spool: Spool) -> None:
    """16 associations, 20 images, in any order: one row and one file each; a thousand in the long form."""
    slices = make_ct_series(20, matrix=8, seed="duplicates")
    objects = [(encoded(ds)[0], str(ds.SOPInstanceUID)) for ds in slices]
    each = (1000 if LONG else 200) // 16 + 1

    def send(number: int) -> set[int]:
        dice = random.Random(number)
        with RawPeer(port(listener), timeout=60).associate() as peer:
            return {peer.store(data, CTImageStorage, uid) for data, uid in dice.choices(objects, k=each)}

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(send, range(16))) == [{0}] * 16
    listener.flush()
    with database.read() as session:
        counts = [
            session.execute(select(func.count(table.id))).scalar_one() for table in (Study, Series, Instance)
        ]
        arrived = select(func.count(AuditEvent.seq)).where(
            AuditEvent.event == audit.Event.SERIES_ARRIVED.value[0]
        )
        conflicts = select(func.count(AuditEvent.seq)).where(AuditEvent.event == "instance conflict")
        assert session.execute(arrived).scalar_one() == 1
        assert session.execute(conflicts).scalar_one() == 0
    assert counts == [1, 1, 20]
    assert len(list(spool.directory.rglob("*.dcm"))) == 20


TEXTS = {
    0x00080050: b"SH",
    0x00080090: b"PN",
    0x00081030: b"LO",
    0x0008103E: b"LO",
    0x00100010: b"PN",
    0x00100020: b"LO",
    0x00100030: b"DA",
    0x00104000: b"LT",
    0x00200010: b"SH",
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_no_log_line_names_a_patient(
    listener: Listener, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Markers in every text, stored, refused and failing; all at INFO and above, tracebacks too."""
    marked = (CANARY + MARKUP + CONTROL).encode("latin-1")
    data = plain()
    for tag, vr in TEXTS.items():
        data = with_element(data, tag, vr, marked)
    uid = str(series()[0].SOPInstanceUID)
    with caplog.at_level(logging.INFO), RawPeer(port(listener)).associate() as peer:
        assert peer.store(data, CTImageStorage, uid) == 0
        assert peer.store(data[:-40], CTImageStorage, "1.2.3") == 0xA900
        assert peer.store(data[:300], CTImageStorage, MARKUP) == 0xC000
        monkeypatch.setattr(Incoming, "keep", broken)
        assert peer.store(data + b"\0\0", CTImageStorage, uid) == 0x0110
        monkeypatch.undo()
        listener.flush()
    lines = [
        JsonFormatter().format(record) for record in caplog.records if record.name.startswith("pacs_node")
    ]
    assert len(lines) >= 3
    assert any('"exception": "OSError"' in line for line in lines)
    for line in lines:
        json.loads(line)
        assert line.isprintable()
        assert CANARY not in line
        assert MARKUP not in line
    with database.read() as session:
        assert CANARY in session.execute(select(Study.patient_name)).scalar_one()
        events = session.execute(select(AuditEvent.objects)).scalars().all()
    assert CANARY not in json.dumps(list(events))


def broken(_self: Incoming) -> StoredFile:
    raise OSError(f"{CANARY}: no such file")


def with_element(data: bytes, tag: int, vr: bytes, value: bytes) -> bytes:
    """The data set with one text more, or another one."""
    new = element(tag, vr, value + b" " * (len(value) % 2))
    for found, start, end in elements(data):
        if found >= tag:
            return data[:start] + new + data[end if found == tag else start :]
    return data + new
