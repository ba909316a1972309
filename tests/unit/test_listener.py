"""The listener against a real SCU on loopback: who may enter, and what each status promises."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import (
    MPEG2MPML,
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
)
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined] # made at run time
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from pacs_node import audit, reception
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import Artifact, Association, AuditEvent, Database, Instance, Job, Series
from pacs_node.listener import Listener
from pacs_node.spool import Incoming, Spool, StoredFile
from pacs_node.states import JobState, SeriesState
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.rejections import Requestor
from tests.small_node import START, TestClock, encoded
from tests.unit.test_recorder import locked

CALLERS = (Caller(ae_title="PACS", address="127.0.0.0/8"),)


#: port -> who listens there
LISTENING: dict[int, Listener] = {}


@pytest.fixture
def port(database: Database, spool: Spool, clock: TestClock) -> Iterator[int]:
    """A running listener's port."""
    settings = ListenerSettings(port=find_free_port(), acse_timeout_seconds=5, network_timeout_seconds=5)
    listener = Listener(settings, CALLERS, database, spool, clock)
    port = listener.start()
    LISTENING[port] = listener
    yield port
    del LISTENING[port]
    listener.stop()


def associate(port: int, *, calling: str = "PACS", called: str = "CTNODE", syntaxes: Any = None) -> Any:
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage, syntaxes or [ExplicitVRLittleEndian])
    return Requestor(entity).associate("127.0.0.1", port, ae_title=called)


def store(port: int, *datasets: Dataset, syntaxes: Any = None) -> list[int]:
    """Send and release; the statuses."""
    association = associate(port, syntaxes=syntaxes)
    assert association.is_established
    statuses = [int(association.send_c_store(ds).Status) for ds in datasets]
    association.release()
    if port in LISTENING:
        LISTENING[port].flush()
    return statuses


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def events(database: Database, name: str) -> list[dict[str, Any]]:
    with database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event == name)).scalars().all()
        return [row.objects for row in rows]


def instances(database: Database) -> list[Instance]:
    with database.read() as session:
        return list(session.execute(select(Instance)).scalars())


def files(spool: Spool) -> list[Path]:
    return [path for path in spool.directory.rglob("*") if path.suffix in {".dcm", ".part"}]


def test_echo(port: int) -> None:
    association = associate(port)
    assert association.send_c_echo().Status == 0x0000
    association.release()


@pytest.mark.parametrize(
    ("calling", "called", "diagnostic"),
    [("STRANGER", "CTNODE", 3), ("PACS", "OTHER", 7), ("pacs", "CTNODE", 3)],
)
def test_strangers_are_refused_and_recorded(
    port: int, database: Database, calling: str, called: str, diagnostic: int
) -> None:
    association = associate(port, calling=calling, called=called)
    assert association.rejections == [(1, 1, diagnostic)]
    eventually(lambda: bool(events(database, "association refused")))
    (event,) = events(database, "association refused")
    assert (event["calling_ae"], event["called_ae"], event["address"]) == (calling, called, "127.0.0.1")


def test_a_known_title_from_elsewhere_is_refused(database: Database, spool: Spool, clock: TestClock) -> None:
    elsewhere = (Caller(ae_title="PACS", address="10.0.0.1"),)
    listener = Listener(ListenerSettings(port=find_free_port()), elsewhere, database, spool, clock)
    port = listener.start()
    assert associate(port).rejections
    listener.stop()


def test_a_stranger_stays_outside_when_the_record_cannot_be_written(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_values: Any) -> None:
        raise OperationalError("INSERT", {}, Exception("disk I/O error"))

    monkeypatch.setattr(audit, "record", broken)
    assert associate(port, calling="STRANGER").rejections


def test_too_many_associations_are_a_transient_refusal(
    database: Database, spool: Spool, clock: TestClock
) -> None:
    settings = ListenerSettings(port=find_free_port(), max_associations=1)
    listener = Listener(settings, CALLERS, database, spool, clock)
    port = listener.start()
    first = associate(port)
    second = associate(port)
    assert [rejection[:2] for rejection in second.rejections] == [(2, 3)]
    first.release()
    listener.stop()


def test_success_means_row_and_file(port: int, database: Database, spool: Spool) -> None:
    slices = make_ct_series(3, matrix=8)
    assert store(port, *slices) == [0, 0, 0]
    rows = instances(database)
    assert {row.sop_instance_uid for row in rows} == {ds.SOPInstanceUID for ds in slices}
    for row in rows:
        assert row.path is not None
        assert spool.absolute(row.path).exists()
    assert len(files(spool)) == 3


@pytest.mark.parametrize("syntax", DECODABLE_TRANSFER_SYNTAXES)
def test_every_transfer_syntax_is_kept_as_it_came(port: int, database: Database, syntax: str) -> None:
    """The bytes aren't looked at: the header is that of the native slice, whatever stands as pixels."""
    native = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}
    (ds,) = make_ct_series(1, matrix=64, transfer_syntax=syntax if syntax in native else JPEG2000Lossless)
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    assert store(port, ds, syntaxes=[syntax]) == [0]
    assert [row.transfer_syntax_uid for row in instances(database)] == [syntax]


def test_a_syntax_that_cannot_be_decoded_is_not_accepted(port: int) -> None:
    association = associate(port, syntaxes=[MPEG2MPML])
    assert [context.abstract_syntax for context in association.accepted_contexts] == [Verification]
    association.release()


def test_the_same_again_is_success_and_changes_nothing(port: int, database: Database, spool: Spool) -> None:
    slices = make_ct_series(2, matrix=8)
    assert store(port, *slices, *slices) == [0] * 4
    assert store(port, *slices) == [0] * 2
    assert len(instances(database)) == 2
    assert len(files(spool)) == 2


def test_a_conflict_is_success_kept_and_recorded(port: int, database: Database, spool: Spool) -> None:
    (first,), (second,) = make_ct_series(1, matrix=8), make_ct_series(1, matrix=8)
    second.PatientID = "OTHER"
    assert store(port, first, second) == [0, 0]
    assert len(files(spool)) == 2
    assert len(events(database, "instance conflict")) == 1


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_uid_that_another_series_has_is_a900(
    port: int, database: Database, spool: Spool, keyword: str
) -> None:
    """Success would be silence: the second study would have no row, and the first one a conflict."""
    (first,), (second,) = make_ct_series(1, matrix=8), make_ct_series(1, matrix=8)
    setattr(second, keyword, "1.2.3")
    assert store(port, first, second, first) == [0, 0xA900, 0]
    assert len(files(spool)) == len(instances(database)) == 1
    assert events(database, "instance conflict") == []
    (event,) = events(database, "instance refused")
    assert "another series" in event["reason"]


def test_out_of_room_is_a700_and_nothing_is_written(
    port: int, database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_reserve_bytes", 1 << 60)
    for _ in range(3):
        assert store(port, *make_ct_series(2, matrix=8)) == [0xA700] * 2
    assert files(spool) == []
    assert instances(database) == []
    # one row and not six: a PACS that tries again and again must not take the last room
    eventually(lambda: events(database, "instance refused") != [])
    (event,) = events(database, "instance refused")
    assert (event["status"], event["calling_ae"]) == ("A700", "PACS")
    monkeypatch.setattr(spool, "_reserve_bytes", 1)
    assert store(port, *make_ct_series(1, matrix=8)) == [0]


@pytest.mark.parametrize(("error", "status"), [(errno.ENOSPC, 0xA700), (errno.EIO, 0x0110)])
def test_a_failing_disk_is_never_success(
    port: int, database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch, error: int, status: int
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    assert store(port, *make_ct_series(1, matrix=8)) == [status]
    assert files(spool) == []
    assert instances(database) == []


def test_while_the_database_fails_nothing_is_acknowledged(
    port: int, database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused gets its row when it can be written; the sender's next try finds it."""
    real, failing = reception.record_arrivals, threading.Event()
    failing.set()

    def sometimes(*args: Any) -> Any:
        if failing.is_set():
            raise locked()
        return real(*args)

    monkeypatch.setattr(reception, "record_arrivals", sometimes)
    first, second = make_ct_series(2, matrix=8)
    association = associate(port)
    assert association.send_c_store(first).Status == 0x0110
    assert association.send_c_store(second).Status == 0x0110
    assert instances(database) == []
    failing.clear()
    eventually(lambda: len(instances(database)) == 1)
    assert association.send_c_store(first).Status == 0
    assert association.send_c_store(second).Status == 0
    association.release()
    LISTENING[port].flush()
    assert [row.association_id for row in instances(database)] == [1, 1]
    assert len(files(spool)) == 2


def test_success_waits_for_the_row(port: int, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    real = reception.record_arrivals

    def slowly(*args: Any) -> Any:
        time.sleep(0.2)
        return real(*args)

    monkeypatch.setattr(reception, "record_arrivals", slowly)
    association = associate(port)
    for number, ds in enumerate(make_ct_series(3, matrix=8), 1):
        assert association.send_c_store(ds).Status == 0
        assert len(instances(database)) == number
    association.release()


def test_a_database_that_is_full_is_a700(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorname = "SQLITE_FULL"

    def fail(*_args: Any) -> Any:
        raise OperationalError("INSERT", {}, full)

    monkeypatch.setattr(reception, "record_arrivals", fail)
    association = associate(port)
    for ds in make_ct_series(2, matrix=8):
        assert association.send_c_store(ds).Status == 0xA700
    association.release()


def store_bytes(port: int, data: bytes, *, sop_class: str, sop_instance: str) -> int:
    """Send a request whose command set and data set need not agree; the status."""
    association = associate(port)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(sop_class), UID(sop_instance)
    request.DataSet = BytesIO(data)
    (context,) = (c for c in association.accepted_contexts if c.abstract_syntax == CTImageStorage)
    association._reactor_checkpoint.clear()
    eventually(lambda: association._is_paused)
    association.dimse.send_msg(request, context.context_id)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return int(response.Status)


@pytest.mark.parametrize("which", ["sop_class", "sop_instance"])
def test_another_object_than_the_request_names_is_a900(
    port: int, database: Database, spool: Spool, which: str
) -> None:
    (ds,) = make_ct_series(1, matrix=8)
    names = {"sop_class": CTImageStorage, "sop_instance": ds.SOPInstanceUID} | {which: EnhancedCTImageStorage}
    assert store_bytes(port, encoded(ds)[0], **names) == 0xA900
    assert instances(database) == []
    assert files(spool) == []
    (event,) = events(database, "instance refused")
    assert (event["status"], event["calling_ae"], event["sop_instance_uid"]) == (
        "A900",
        "PACS",
        names["sop_instance"],
    )


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00\x01", id="two bytes"),
        pytest.param(bytes(500), id="zeros"),
        pytest.param(b"<html>" * 40, id="text"),
        pytest.param(struct.pack("<HH2sHL", 8, 5, b"SQ", 0, 0xFFFFFFFF) * 3000, id="deep"),
    ],
)
def test_what_cannot_be_understood_is_c000(port: int, database: Database, spool: Spool, data: bytes) -> None:
    assert store_bytes(port, data, sop_class=CTImageStorage, sop_instance="1.2.3") == 0xC000
    assert instances(database) == []
    assert files(spool) == []
    assert [event["status"] for event in events(database, "instance refused")] == ["C000"]


def test_a_file_that_retention_removes_meanwhile_is_no_success(
    port: int, database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when the same comes again, and gone when that is to be answered."""
    (ds,) = make_ct_series(1, matrix=8)
    assert store(port, ds) == [0]
    real = Incoming.keep

    def keep(sink: Incoming) -> StoredFile:
        stored = real(sink)
        spool.remove(stored.path)
        return stored

    monkeypatch.setattr(Incoming, "keep", keep)
    assert store(port, ds) == [0x0110]


def test_our_own_result_is_welcome_and_leaves_no_file(port: int, database: Database, spool: Spool) -> None:
    (first, second) = make_ct_series(2, matrix=8)
    store(port, first)
    result = spool.directory / "results" / "sr.dcm"
    result.parent.mkdir()
    second.save_as(result, enforce_file_format=True)
    with database.write() as session:
        series = session.execute(select(Series)).scalar_one()
        job = Job(
            series=series,
            kind="analysis",
            input_digest="d",
            pipeline_version="v",
            state=JobState.SUCCEEDED,
            created_at=START,
            not_before=START,
        )
        row = Artifact(job=job, kind="sr", sha256="", sop_instance_uid=second.SOPInstanceUID)
        row.path = "results/sr.dcm"
        session.add(row)
    assert store(port, second) == [0]
    assert len(instances(database)) == 1
    assert len(list(spool.stored())) == 1
    second.PatientName = "changed by the archive"
    assert store(port, second) == [0]
    assert len(instances(database)) == len(list(spool.stored())) == 2


def associations(database: Database) -> list[Association]:
    with database.read() as session:
        return list(session.execute(select(Association)).scalars())


def test_an_association_is_open_until_it_is_released(port: int, database: Database) -> None:
    association = associate(port)
    assert association.send_c_store(make_ct_series(1, matrix=8)[0]).Status == 0
    LISTENING[port].flush()
    (row,) = associations(database)
    assert (row.calling_ae, row.address, row.closed_at) == ("PACS", "127.0.0.1", None)
    assert [instance.association_id for instance in instances(database)] == [row.id]
    association.release()
    eventually(lambda: associations(database)[0].closed_at is not None)
    assert associations(database)[0].ending == "released"


def test_an_aborted_association_is_closed(port: int, database: Database) -> None:
    association = associate(port)
    association.send_c_store(make_ct_series(1, matrix=8)[0])
    association.abort()
    eventually(lambda: [row.closed_at is not None for row in associations(database)] == [True])
    assert associations(database)[0].ending == "aborted"


def test_stopping_aborts_what_is_open(database: Database, spool: Spool, clock: TestClock) -> None:
    listener = Listener(ListenerSettings(port=find_free_port()), CALLERS, database, spool, clock)
    association = associate(listener.start())
    association.send_c_store(make_ct_series(1, matrix=8)[0])
    listener.stop()
    eventually(lambda: bool(association.is_aborted))
    eventually(lambda: associations(database)[0].closed_at is not None)
    assert associations(database)[0].ending == "aborted"


def test_a_connection_that_breaks_while_storing_is_closed(
    port: int, database: Database, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reached, go_on = spool.sync, threading.Event(), threading.Event()

    def slow(*args: Any) -> None:
        reached.set()
        go_on.wait(5)
        real(*args)

    # the whole data set has come by then
    monkeypatch.setattr(spool, "sync", slow)
    association = associate(port)
    # its thread may end just before the answer is waited for, and nobody wakes that wait
    association.dimse_timeout = 2
    sender = threading.Thread(target=association.send_c_store, args=(make_ct_series(1, matrix=8)[0],))
    sender.start()
    assert reached.wait(5)
    connection = association.dul.socket.socket
    connection.shutdown(socket.SHUT_RDWR)
    time.sleep(0.2)
    go_on.set()
    sender.join()
    connection.close()
    eventually(lambda: len(associations(database)) == 1 and associations(database)[0].closed_at is not None)
    assert len(instances(database)) == 1


def test_what_was_open_when_the_node_was_killed_is_lost_at_the_next_start(
    database: Database, spool: Spool, clock: TestClock
) -> None:
    with database.write() as session:
        session.add(Association(calling_ae="PACS", address="::1", opened_at=START))
    (spool.directory / "incoming" / "0.part").write_bytes(b"half")
    clock.forward(minutes=1)
    listener = Listener(ListenerSettings(port=find_free_port()), CALLERS, database, spool, clock)
    listener.start()
    listener.stop()
    (row,) = associations(database)
    assert (row.closed_at, row.ending) == (clock.now, "lost")
    assert files(spool) == []


def left_behind(spool: Spool, seed: str) -> tuple[Dataset, Path]:
    """What a listener that was killed before the row leaves."""
    (ds,) = make_ct_series(1, matrix=8, seed=seed)
    data, syntax = encoded(ds)
    incoming = spool.begin(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=syntax,
        source_ae="PACS",
    )
    incoming.write(memoryview(data))
    path = spool.absolute(incoming.keep().path)
    incoming.discard()
    return ds, path


def test_files_without_a_row_get_it_at_start_and_damaged_ones_go(
    database: Database, spool: Spool, clock: TestClock
) -> None:
    """Whole files were acknowledged; a power cut may leave a name without its bytes, which never was."""
    settings = ListenerSettings(port=find_free_port())
    listener = Listener(settings, CALLERS, database, spool, clock)
    (first,), (other,) = make_ct_series(1, matrix=8), make_ct_series(1, matrix=8)
    other.PatientID = "OTHER"
    assert store(listener.start(), first, other) == [0, 0]
    listener.stop()
    whole, _ = left_behind(spool, "whole")
    _, damaged = left_behind(spool, "damaged")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = Listener(settings, CALLERS, database, spool, clock)
    port = again.start()
    eventually(lambda: not damaged.exists())
    eventually(lambda: len(instances(database)) == 2)
    (aside,) = [path for path in files(spool) if path.parent.name == "damaged"]
    assert aside.name.startswith(damaged.stem)
    aside.unlink()
    assert len(files(spool)) == 3
    assert store(port, whole, first) == [0, 0]
    again.stop()
    assert len(files(spool)) == 3
    found = next(row for row in instances(database) if row.sop_instance_uid == whole.SOPInstanceUID)
    with database.read() as session:
        origin = session.get_one(Association, found.association_id)
        series = session.execute(select(Series).where(Series.id == found.series_id)).scalar_one()
        assert (origin.calling_ae, origin.ending, series.calling_ae) == ("PACS", "lost", "PACS")


def test_a_damaged_file_whose_bytes_come_again_is_replaced(
    database: Database, spool: Spool, clock: TestClock
) -> None:
    whole, path = left_behind(spool, "damaged")
    content = path.read_bytes()
    path.write_bytes(b"")
    settings = ListenerSettings(port=find_free_port())
    listener = Listener(settings, CALLERS, database, spool, clock)
    assert store(listener.start(), whole) == [0]
    listener.stop()
    assert path.read_bytes()[-1000:] == content[-1000:]
    assert len(instances(database)) == 1


def test_rows_are_there_when_a_listener_has_stopped(
    database: Database, spool: Spool, clock: TestClock
) -> None:
    listener = Listener(ListenerSettings(port=find_free_port()), CALLERS, database, spool, clock)
    assert store(listener.start(), *make_ct_series(5, matrix=8)) == [0] * 5
    listener.stop()
    assert len(instances(database)) == 5
    assert [row.ending for row in associations(database)] == ["released"]


def test_two_that_bring_the_same_at_once_are_one_instance(
    port: int, database: Database, spool: Spool
) -> None:
    slices = make_ct_series(6, matrix=8)
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: store(port, *slices), range(6)))
    assert statuses == [[0] * 6] * 6
    LISTENING[port].flush()
    assert len(instances(database)) == len(files(spool)) == 6
    assert events(database, "instance conflict") == []


def test_many_associations_at_once(port: int, database: Database, spool: Spool) -> None:
    slices = make_ct_series(24, matrix=8)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda part: store(port, *slices[part::8]), range(8)))
    assert statuses == [[0] * 3] * 8
    with database.read() as session:
        series = session.execute(select(Series)).scalar_one()
        assert (series.n_instances, series.state) == (24, SeriesState.RECEIVING)
    assert len(instances(database)) == len(files(spool)) == 24
    eventually(lambda: all(row.closed_at is not None for row in associations(database)))
    assert len(associations(database)) == 8
