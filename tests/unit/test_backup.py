"""Backup and restore: whole under load, nothing overwritten, and what is wrong is named."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url, select, update

from pacs_node import backup, backup_rows
from pacs_node.backup import MANIFEST, back_up, restore
from pacs_node.backup_cli import backup_command
from pacs_node.backup_rows import PostgresqlRows, SqliteRows
from pacs_node.config import RetentionSettings
from pacs_node.db import Database, Delivery, Instance, sqlite_url
from pacs_node.errors import BackupError
from pacs_node.retention import Retention
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState
from pacs_node.storage import undisturbed
from tests.ct_factory import make_ct_series
from tests.faults.invariants import Seen, dataset_sha256, violations
from tests.small_node import SmallNode, TestClock


@pytest.fixture
def done(node: SmallNode) -> SmallNode:
    """A node with two studies, one of them analysed."""
    for seed in "ab":
        node.queue(seed)
    job, token = node.claim()
    node.finish(job, token, node.result(job))
    return node


def back(node: SmallNode, target: Path, *, verify: bool = False) -> backup.Report:
    storage = node.spool.directory
    now = node.clock.forward(seconds=1)
    return back_up(SqliteRows(storage / "node.db"), storage, target, now, verify=verify)


def again(source: Path, place: Path) -> backup.Report:
    return restore(source, SqliteRows(place / "node.db"), place)


def found(place: Path, seen: Seen | None = None) -> list[str]:
    database = Database(sqlite_url(place))
    try:
        return violations(database, place, seen)
    finally:
        database.dispose()


def test_a_restored_node_is_the_same_and_goes_on(done: SmallNode, tmp_path: Path) -> None:
    report = back(done, tmp_path / "copy")
    assert (report.files, report.copied, report.whole) == (4, 4, True)
    report = again(tmp_path / "copy", tmp_path / "new")
    assert (report.files, report.copied, report.whole) == (4, 4, True)
    assert found(tmp_path / "new", Seen(orphan_s=0, leftover_s=0)) == []
    database = Database(sqlite_url(tmp_path / "new"))
    database.upgrade()
    node = SmallNode(database, Spool(tmp_path / "new", 1), TestClock())
    assert [row.state for row in node.all_jobs()] == [row.state for row in done.all_jobs()]
    job, token = node.claim()
    node.finish(job, token, node.result(job))
    assert len(node.all_deliveries()) == 4
    database.dispose()


def test_a_backup_under_load_is_whole(done: SmallNode, tmp_path: Path) -> None:
    """Objects arrive all the time; each that was acknowledged before the backup began is in it."""
    stop, acknowledged = threading.Event(), list[tuple[str, str]]()

    def send() -> None:
        for number in range(10_000):
            (ds,) = make_ct_series(1, matrix=8, seed=f"load {number}")
            done.receive(ds)
            with done.database.read() as session:
                row = session.execute(
                    select(Instance).where(Instance.sop_instance_uid == str(ds.SOPInstanceUID))
                ).scalar_one()
            digest = dataset_sha256(done.spool.absolute(str(row.path)))
            acknowledged.append((row.sop_instance_uid, digest))
            if stop.is_set():
                return

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for round_ in range(3):
        before = len(acknowledged)
        while len(acknowledged) < before + 5:
            assert sender.is_alive()
            stop.wait(0.005)
        promised = list(acknowledged)
        assert back(done, tmp_path / "copy").whole
        assert again(tmp_path / "copy", tmp_path / f"new{round_}").whole
        assert found(tmp_path / f"new{round_}", Seen(promised, orphan_s=0)) == []
    stop.set()
    sender.join()


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_a_copy_in_steps_is_of_one_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """Two tables get a row in each transaction; in a copy of one moment both have as many."""
    monkeypatch.setattr(backup_rows, "_PAGES", 2)
    steps: list[float] = []
    path, copy = tmp_path / "node.db", tmp_path / "copy.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("CREATE TABLE a (x)")
        writer.execute("CREATE TABLE b (x)")

        def write() -> None:
            writer.execute("BEGIN IMMEDIATE")
            for table in "ab":
                writer.execute(f"INSERT INTO {table} VALUES (zeroblob(3000))")
            writer.execute("COMMIT")

        def write_and_go_on(seconds: float) -> None:
            steps.append(seconds)
            if len(steps) < 5:
                write()

        for _ in range(10):
            write()
        monkeypatch.setattr("pacs_node.backup_rows.time.sleep", write_and_go_on)
        with (
            closing(sqlite3.connect(path)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):

            class Source:
                """Somebody writes after the second step."""

                def execute(self, statement: str) -> sqlite3.Cursor:
                    return source.execute(statement)

                def backup(self, into: sqlite3.Connection, *, progress: Any = None, **options: Any) -> None:
                    seen = 0

                    def watch(*remaining: int) -> None:
                        nonlocal seen
                        seen += 1
                        if seen == 2:
                            write()
                        progress(*remaining)

                    source.backup(into, progress=progress and watch, **options)

            backup_rows._copy_pages(cast(sqlite3.Connection, Source()), target, patience)
        with closing(sqlite3.connect(copy)) as copied:
            counts = [copied.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in "ab"]
            assert copied.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert counts[0] == counts[1] > 10
    assert len(steps) == (0 if patience == 0 else 5)


def test_another_backup_copies_what_is_new_and_forgets_what_is_gone(done: SmallNode, tmp_path: Path) -> None:
    back(done, tmp_path / "copy")
    done.queue("c")
    with done.database.write() as session:
        first = session.execute(select(Instance).order_by(Instance.id)).scalars().first()
        assert first is not None
        gone, first.path = first.path, None
    report = back(done, tmp_path / "copy")
    assert (report.files, report.copied) == (4, 1)
    assert not (tmp_path / "copy" / str(gone)).exists()
    assert len(list((tmp_path / "copy").glob("*.db"))) == 1
    assert again(tmp_path / "copy", tmp_path / "new").whole


def test_what_is_missing_or_altered_is_named_and_not_copied(done: SmallNode, tmp_path: Path) -> None:
    instances = sorted((done.spool.directory / "instances").rglob("*.dcm"))
    results = sorted((done.spool.directory / "results").rglob("*.dcm"))
    instances[0].unlink()
    results[0].write_bytes(results[0].read_bytes()[:-1] + b"x")
    names = [str(path.relative_to(done.spool.directory)) for path in (instances[0], results[0])]
    report = back(done, tmp_path / "copy")
    assert ([*report.missing, *report.altered], report.copied) == (names, 2)
    report = again(tmp_path / "copy", tmp_path / "new")
    assert (report.missing, report.altered, report.copied) == (names, [], 2)


def test_a_bit_that_fell_over_in_the_backup_is_noticed(done: SmallNode, tmp_path: Path) -> None:
    back(done, tmp_path / "copy")
    image = next((tmp_path / "copy" / "instances").rglob("*.dcm"))
    image.write_bytes(image.read_bytes()[:-1] + b"x")
    report = again(tmp_path / "copy", tmp_path / "new")
    assert report.altered == [str(image.relative_to(tmp_path / "copy"))]
    assert not (tmp_path / "new" / report.altered[0]).exists()


def rotten(copy: Path) -> tuple[str, bytes]:
    """Let one bit of a file of a backup fall over; its path, and what it was."""
    image = next((copy / "instances").rglob("*.dcm"))
    sound = image.read_bytes()
    image.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    return str(image.relative_to(copy)), sound


def test_verify_copies_again_what_has_rotted_in_the_backup_and_names_it(
    done: SmallNode, tmp_path: Path
) -> None:
    copy, storage = tmp_path / "copy", done.spool.directory
    back(done, copy)
    path, sound = rotten(copy)
    (tmp_path / "node.toml").write_text(f'[storage]\ndirectory = "{storage}"\n')
    answer = CliRunner().invoke(
        backup_command, ["--verify", "--config", str(tmp_path / "node.toml"), str(copy)]
    )
    assert answer.exit_code == 0, answer.output
    assert f"altered in the backup, copied again: {path}" in answer.output
    assert (copy / path).read_bytes() == sound
    assert again(copy, tmp_path / "new").whole


def test_what_is_altered_in_backup_and_node_is_named_and_left(done: SmallNode, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back(done, copy)
    path, _ = rotten(copy)
    shutil.copyfile(copy / path, done.spool.directory / path)
    report = back(done, copy, verify=True)
    assert (report.altered, report.mended, report.whole) == ([path], [], False)


def test_each_backup_verifies_a_part_and_all_of_it_in_turn(done: SmallNode, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back(done, copy)
    path, sound = rotten(copy)
    mended = [back(done, copy).mended for _ in range(backup.PARTS)]
    assert [paths for paths in mended if paths] == [[path]]
    assert (copy / path).read_bytes() == sound


def test_a_dump_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "pg_restore"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    saved = tmp_path / "x.dump"
    saved.with_name("x.dump.files").write_text("[]")
    rows = PostgresqlRows(make_url("postgresql+psycopg://nobody@localhost/none"), seconds=0.1)
    with pytest.raises(BackupError, match=r"pg_restore took more than 0\.1 s"), rows.bring_back(saved):
        pass


def test_nothing_is_overwritten(done: SmallNode, tmp_path: Path) -> None:
    back(done, tmp_path / "copy")
    with pytest.raises(BackupError, match="overwrites nothing"):
        again(tmp_path / "copy", done.spool.directory)
    place = tmp_path / "other"
    (place / "results").mkdir(parents=True)
    (place / "results" / "mine").touch()
    with pytest.raises(BackupError, match="overwrites nothing"):
        again(tmp_path / "copy", place)
    with pytest.raises(BackupError, match="not empty"):
        back(done, place)
    assert not (place / MANIFEST).exists()


@pytest.mark.parametrize("what", ["manifest", "database", "format"])
def test_what_is_no_whole_backup_is_refused(done: SmallNode, tmp_path: Path, what: str) -> None:
    copy, place = tmp_path / "copy", tmp_path / "new"
    back(done, copy)
    if what == "manifest":
        (copy / MANIFEST).unlink()
    elif what == "database":
        file = next(copy.glob("*.db"))
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        (copy / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(BackupError):
        again(copy, place)
    assert not place.exists()


def test_a_backup_that_was_killed_is_none_and_the_one_before_still_is(
    done: SmallNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back(done, tmp_path / "copy")
    done.queue("c")

    def killed(*_args: object, **_values: object) -> None:
        raise KeyboardInterrupt

    for name in ("_copy", "_write_manifest"):
        with monkeypatch.context() as patch:
            patch.setattr(backup, name, killed)
            with pytest.raises(KeyboardInterrupt):
                back(done, tmp_path / "copy")
            with pytest.raises(KeyboardInterrupt):
                back(done, tmp_path / "fresh")
        with pytest.raises(BackupError, match="no backup"):
            again(tmp_path / "fresh", tmp_path / "nowhere")
        assert again(tmp_path / "copy", tmp_path / f"new {name}").files == 4
    assert back(done, tmp_path / "fresh").files == 5
    assert len(list((tmp_path / "fresh").glob("*.db"))) == 1
    assert again(tmp_path / "fresh", tmp_path / "new").whole


def test_a_restore_that_was_killed_leaves_no_node(
    done: SmallNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back(done, tmp_path / "copy")

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "copy", tmp_path / "new")
    assert not (tmp_path / "new" / "node.db").exists()


def test_retention_waits_for_the_backup(done: SmallNode) -> None:
    done.clock.forward(days=10)
    with done.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.COMMITTED))
    days = RetentionSettings(results_days=5, images_days=5)
    retention = Retention(done.database, done.spool, days, done.clock, synchronised=lambda: True)
    with undisturbed(done.spool.directory, wait=False) as mine:
        assert mine
        assert retention.purge() == 0
    assert retention.purge() == 3
