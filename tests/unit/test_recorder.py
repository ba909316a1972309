"""Rows of durable files: written together, once each, by whoever has its turn, and never forgotten."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import event, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from pacs_node import reception, recorder
from pacs_node.connections import WRITE, is_full
from pacs_node.db import Association, AuditEvent, Conflict, Database, Instance, Series
from pacs_node.errors import StaleStateError
from pacs_node.reception import Arrival, Identity, Reception
from pacs_node.recorder import Origin, Recorder, RowsMissingError, _Waiting
from pacs_node.spool import Spool, StoredFile
from tests.small_node import START, TestClock


@pytest.fixture
def rows(database: Database, spool: Spool, clock: TestClock) -> Iterator[Recorder]:
    """A recorder that runs."""
    running = Recorder(database, spool, clock)
    running.start()
    yield running
    running.stop()


def origin() -> Origin:
    return Origin("PACS", "127.0.0.1", START)


def arrival(number: int, *, series: str = "1.2", content: str = "") -> Arrival:
    digest = content or f"{number:064x}"
    identity = Identity("1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number}", f"9.{series}", series)
    stored = StoredFile(f"instances/00/{digest}.dcm", digest, 10)
    return Arrival(identity, stored, "1.2.840.10008.1.2.1", "PACS", START)


def add(rows: Recorder, source: Origin, item: Arrival) -> Reception:
    path = rows.spool.absolute(item.stored.path)
    path.touch()
    with rows.claim(item.identity.sop_instance_uid, item.stored.sha256):
        return rows.record(source, item)


def together(rows: Recorder, sources: Sequence[Origin], items: Sequence[Arrival]) -> list[Reception]:
    """Let all wait before anybody has its turn."""
    with ThreadPoolExecutor(len(items)) as pool:
        rows._writing = True
        done = [pool.submit(add, rows, *pair) for pair in zip(sources, items, strict=True)]
        while len(rows._waiting) < len(items):
            time.sleep(0.001)
        with rows._changed:
            rows._writing = False
            rows._changed.notify_all()
        return [future.result() for future in done]


def locked() -> OperationalError:
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorname = "SQLITE_BUSY"
    return OperationalError("INSERT", {}, cause)


def total(database: Database, table: type[Instance | Conflict | Series | Association]) -> int:
    with database.read() as session:
        return session.execute(select(func.count(table.id))).scalar_one()


def test_who_waits_at_the_same_time_shares_a_transaction(rows: Recorder, database: Database) -> None:
    commits: list[Any] = []
    sources = [origin() for _ in range(3)]
    assert add(rows, sources[0], arrival(99)) is Reception.NEW
    event.listen(database.engine, "commit", commits.append)
    outcomes = together(rows, [sources[n % 3] for n in range(9)], [arrival(number) for number in range(9)])
    assert outcomes == [Reception.NEW] * 9
    assert len(commits) == 1
    for source in sources:
        rows.end(source, "released")
    rows.flush()
    assert total(database, Instance) == 10
    assert total(database, Series) == 1
    assert total(database, Association) == 3
    with database.read() as session:
        assert set(session.scalars(select(Association.ending))) == {"released"}
        assert set(session.scalars(select(Series.n_instances))) == {10}


def test_the_same_at_the_same_time_is_there_once(rows: Recorder, database: Database) -> None:
    """Two that have no claim, as a row that was tried again has none."""
    item = arrival(1)
    rows.spool.absolute(item.stored.path).touch()
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: rows.record(origin(), item), range(2)))
    assert set(outcomes) == {Reception.NEW, Reception.DUPLICATE}
    assert total(database, Instance) == 1


def test_one_whose_file_is_gone_does_not_hold_up_the_others(rows: Recorder, database: Database) -> None:
    with rows.claim("1.2.3.1", "a"), pytest.raises(FileNotFoundError):
        rows.record(origin(), arrival(1))
    assert add(rows, origin(), arrival(2)) is Reception.NEW
    assert total(database, Instance) == 1


def test_an_association_that_brought_nothing_has_no_row(rows: Recorder, database: Database) -> None:
    rows.end(origin(), "aborted")
    rows.flush()
    assert total(database, Association) == 0


def test_a_claim_waits_for_whoever_has_it(rows: Recorder) -> None:
    with ThreadPoolExecutor(1) as pool:
        with rows.claim("1.2.3.1", "other"):
            second = pool.submit(add, rows, origin(), arrival(1))
            time.sleep(0.02)
            assert not second.done()
        assert second.result() is Reception.NEW


def test_a_claim_that_came_to_nothing_is_free_again(rows: Recorder) -> None:
    with pytest.raises(OSError, match="disk"), rows.claim("1.2", "a"):
        raise OSError("disk")
    with rows.claim("1.2", "b"):
        pass


def test_a_claim_is_given_up_in_the_end(rows: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_WAIT_S", 0.05)
    with rows.claim("1.2", "a"), pytest.raises(RowsMissingError), rows.claim("1.2", "b"):
        pass


def test_rows_that_could_not_be_written_are_written_later(
    database: Database, spool: Spool, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failing = reception.record_arrivals, threading.Event()
    failing.set()

    def sometimes(*args: Any) -> Any:
        outcome = real(*args)
        if failing.is_set():
            raise locked()
        return outcome

    monkeypatch.setattr(reception, "record_arrivals", sometimes)
    told: list[Exception] = []
    rows = Recorder(database, spool, clock, told.append)
    rows.start()
    source = origin()
    with pytest.raises(OperationalError):
        add(rows, source, arrival(1))
    with pytest.raises(OperationalError):
        rows.check()
    rows.end(source, "aborted")
    assert told
    assert (total(database, Instance), source.row) == (0, None)
    failing.clear()
    rows.flush()
    assert total(database, Instance) == 1
    add(rows, source, arrival(2))
    rows.stop()
    with database.read() as session:
        assert session.scalars(select(Association.ending)).all() == ["aborted"]
    assert total(database, Instance) == 2
    assert total(database, Association) == 1


def test_a_full_database_in_the_middle_of_a_transaction_leaves_nothing(
    rows: Recorder, database: Database
) -> None:
    """By the driver itself: its error is the one that everybody knows, and names no value of a row."""
    source = origin()
    add(rows, source, arrival(0))
    connection = rows._connection
    assert connection is not None
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute("PRAGMA max_page_count = 1")
    items = [arrival(number) for number in range(1, 60)]
    for item in items:
        rows.spool.absolute(item.stored.path).touch()
        rows._waiting.append(_Waiting(source, item))
    with pytest.raises(DBAPIError) as full:
        rows.flush()
    assert is_full(full.value)
    assert "instances/" not in str(full.value)
    assert total(database, Instance) == 1
    driver.execute("PRAGMA max_page_count = 1000000")
    rows.flush()
    assert total(database, Instance) == 60


@pytest.mark.parametrize(
    "error",
    [
        IntegrityError("INSERT", {}, Exception("UNIQUE")),
        StaleStateError("another state"),
        # nobody knows these: they fail alone while an empty transaction is committed
        OperationalError("INSERT", {}, Exception("whatever a driver says")),
        ValueError("a fault of this software"),
    ],
)
def test_one_that_can_never_be_written_holds_up_nobody_else(
    rows: Recorder, database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = reception.record_arrivals

    def but_one(connection: Any, arrivals: Sequence[Arrival], *more: Any) -> list[Reception]:
        if any(item.identity.sop_instance_uid == "1.2.3.3" for item in arrivals):
            raise error
        return real(connection, arrivals, *more)

    monkeypatch.setattr(reception, "record_arrivals", but_one)
    source, bad = origin(), arrival(3)
    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(together, rows, [source] * 3, [arrival(number) for number in range(3)])
        rows._waiting.append(_Waiting(source, bad))
        assert others.result() == [Reception.NEW] * 3
    with pytest.raises(type(error) if not isinstance(error, ValueError) else RowsMissingError):
        add(rows, source, bad)
    rows.check()
    assert add(rows, source, arrival(4)) is Reception.NEW
    rows.end(source, "released")
    rows.flush()
    assert total(database, Instance) == 4
    with database.read() as session:
        assert session.scalars(select(Association.ending)).all() == ["released"]


def test_what_fails_while_nothing_can_be_written_is_no_fault_of_a_row(
    rows: Recorder, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody knows, and the database that can't be asked who is to blame."""
    failing = OperationalError("INSERT", {}, Exception("whatever a driver says"))
    with monkeypatch.context() as patch:
        patch.setattr(reception, "record_arrivals", Mock(side_effect=failing))
        patch.setattr(Origin, "row_in", Mock(side_effect=failing))
        with pytest.raises(OperationalError):
            add(rows, origin(), arrival(1))
        with pytest.raises(OperationalError):
            rows.check()
    rows.flush()
    assert total(database, Instance) == 1


def test_an_end_that_can_never_be_written_is_given_up(
    rows: Recorder, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = origin()
    add(rows, source, arrival(1))
    monkeypatch.setattr(recorder, "update", Mock(side_effect=ValueError("no such thing")))
    rows.end(source, "released")
    rows.flush()
    monkeypatch.undo()
    assert add(rows, source, arrival(2)) is Reception.NEW
    rows.check()
    assert total(database, Association) == 1


def test_many_at_once_are_what_they_would_be_one_by_one(database: Database, tmp_path: Path) -> None:
    """Duplicates, conflicts and UIDs of another series among new ones, in any order."""
    chance = random.Random(3)
    expected: dict[str, tuple[str, str]] = {}
    arrivals: list[Arrival] = []
    outcomes: list[Reception] = []
    for _ in range(40):
        series, content = chance.choice(["1.2", "1.2", "1.5"]), f"{chance.randrange(2):064x}"
        arrivals.append(arrival(chance.randrange(8), series=series, content=content))
        first = expected.get(uid := arrivals[-1].identity.sop_instance_uid)
        outcomes.append(_outcome(first, (series, content)))
        expected[uid] = first or (series, content)
    with database.engine.execution_options(**{WRITE: True}).begin() as connection:
        row = origin().row_in(connection)
        found = [
            outcome
            for start in range(0, 40, 13)
            for outcome in reception.record_arrivals(
                connection, arrivals[start : start + 13], [row] * len(arrivals[start : start + 13]), tmp_path
            )
        ]
    assert found == outcomes
    assert {Reception.NEW, Reception.DUPLICATE, Reception.CONFLICT, Reception.ELSEWHERE} <= set(found)
    with database.read() as session:
        rows = session.execute(select(Instance)).scalars().all()
        assert {r.sop_instance_uid: (r.series.series_uid, r.sha256) for r in rows} == expected
        for row_of_series in session.execute(select(Series)).scalars():
            assert row_of_series.n_instances == len(row_of_series.instances)
        events = list(session.scalars(select(AuditEvent.event)))
        assert events.count("series arrived") == total(database, Series)
        assert events.count("instance conflict") == total(database, Conflict)


def _outcome(first: tuple[str, str] | None, item: tuple[str, str]) -> Reception:
    if first is None:
        return Reception.NEW
    if item[1] == first[1]:
        return Reception.DUPLICATE
    return Reception.CONFLICT if item[0] == first[0] else Reception.ELSEWHERE
