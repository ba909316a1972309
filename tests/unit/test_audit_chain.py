"""Tampering is named by its row; a cut end by the heads that were noted before."""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.audit_chain import Head, HeadsUnreadableError, note_head, read_heads, verify
from pacs_node.cli import main
from pacs_node.config import parse_settings
from pacs_node.db import AuditEvent, Database
from pacs_node.schedule import head_task
from tests.postgresql import postgresql
from tests.small_node import START

ROWS = 12


def fill(database: Database, count: int = ROWS) -> None:
    with database.write() as session:
        for number in range(count):
            audit.record(
                session,
                audit.Event.JOB_CHANGED,
                at=START + timedelta(seconds=number),
                actor="worker",
                study_uid=f"1.2.{number}",
                job=number,
                state="running",
            )


def _edit(session: Session, seq: int, rng: random.Random) -> None:
    column, value = rng.choice(
        [
            ("actor", "'other'"),
            ("event", "'job created'"),
            ("outcome", "8"),
            ("study_uid", "'9.9'"),
            ("at", "'2020-01-01 00:00:00.000000'"),
            ("objects", """'{"job": 99}'"""),
            ("hash", f"'{rng.randbytes(32).hex()}'"),
            ("previous_hash", f"'{rng.randbytes(32).hex()}'"),
        ]
    )
    session.execute(text(f"UPDATE audit_event SET {column} = {value} WHERE seq = {seq}"))


def _delete(session: Session, seq: int, _rng: random.Random) -> None:
    session.execute(text(f"DELETE FROM audit_event WHERE seq = {seq}"))


def _close_up(session: Session, seq: int, _rng: random.Random) -> None:
    """Delete a row and number the later ones anew."""
    session.execute(text(f"DELETE FROM audit_event WHERE seq = {seq}"))
    for later in range(seq + 1, ROWS + 1):
        session.execute(text(f"UPDATE audit_event SET seq = {later - 1} WHERE seq = {later}"))


def _insert(session: Session, seq: int, rng: random.Random) -> None:
    """Make room and put a row in whose own hash fits, and that continues the row before it."""
    for later in range(ROWS, seq - 1, -1):
        session.execute(text(f"UPDATE audit_event SET seq = {later + 1} WHERE seq = {later}"))
    before = session.execute(text(f"SELECT hash FROM audit_event WHERE seq = {seq - 1}")).scalar()
    row = AuditEvent(
        seq=seq,
        at=START,
        actor="forger",
        event="job",
        code="110103",
        outcome=0,
        study_uid=f"7.{rng.random()}",
        objects={},
        previous_hash=before or audit.GENESIS,
    )
    row.hash = audit.row_hash(row)
    session.add(row)


def _swap(session: Session, seq: int, rng: random.Random) -> None:
    other = rng.choice([number for number in range(1, ROWS + 1) if number != seq])
    for old, new in ((seq, -1), (other, seq), (-1, other)):
        session.execute(text(f"UPDATE audit_event SET seq = {new} WHERE seq = {old}"))


def _cut(session: Session, seq: int, _rng: random.Random) -> None:
    session.execute(text(f"DELETE FROM audit_event WHERE seq >= {seq}"))


def _rewrite(session: Session, seq: int, _rng: random.Random) -> None:
    """Cut, and write another end whose hashes fit: only a noted head shows it."""
    session.execute(text(f"DELETE FROM audit_event WHERE seq >= {seq}"))
    for number in range(seq, ROWS + 1):
        audit.record(session, audit.Event.JOB_CHANGED, at=START, actor="forger", study_uid=f"7.{number}")


TAMPERING: list[Callable[[Session, int, random.Random], None]] = [
    _edit,
    _delete,
    _close_up,
    _insert,
    _swap,
    _cut,
    _rewrite,
]


CASES = int(os.environ.get("PACS_NODE_TAMPERINGS", "100"))


def tamper_at_random(database: Database, seed: int) -> Counter[str]:
    """Tamper `CASES` times, each time with a whole record; every time it must be noticed, and where."""
    fill(database)
    rng, done = random.Random(seed), Counter[str]()
    with database.read() as session:
        stored = session.execute(text(f"SELECT hash FROM audit_event WHERE seq = {ROWS}")).scalar_one()
    head = [Head(ROWS, stored, START)]
    without_triggers(database)
    for number in range(CASES):
        seq, tamper = rng.randint(1, ROWS), rng.choice(TAMPERING)
        with database.write() as session:
            tamper(session, seq, rng)
            session.flush()
            session.expire_all()
            found = verify(session, head)
            session.rollback()
        assert found.first_bad is not None, (number, tamper.__name__, seq)
        if tamper not in {_swap, _rewrite, _insert}:
            assert found.first_bad == seq, (number, tamper.__name__, seq)
        if tamper is _insert:
            # what was put in looks right; the row that it pushed on does not, or the noted end is another one
            assert found.first_bad in {seq + 1, ROWS}, (number, seq)
        done[tamper.__name__] += 1
    with database.read() as session:
        assert verify(session, head).first_bad is None
    return done


def without_triggers(database: Database) -> None:
    """As somebody does who has the whole database."""
    with database.write() as session:
        if database.engine.dialect.name == "postgresql":
            session.execute(text("ALTER TABLE audit_event DISABLE TRIGGER ALL"))
            return
        for name in session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            session.execute(text(f"DROP TRIGGER {name}"))


def test_every_random_tampering_is_noticed(database: Database) -> None:
    done = tamper_at_random(database, 11)
    assert set(done) == {tamper.__name__ for tamper in TAMPERING}
    logging.getLogger(__name__).info("SQLite: %s", dict(done))


@pytest.mark.peer("initdb", "pg_ctl")
def test_every_random_tampering_is_noticed_in_postgresql() -> None:
    with postgresql() as server:
        database = Database(server.database())
        done = tamper_at_random(database, 12)
        database.dispose()
    assert set(done) == {tamper.__name__ for tamper in TAMPERING}
    logging.getLogger(__name__).info("PostgreSQL: %s", dict(done))


def test_a_cut_end_shows_by_a_noted_head_only(database: Database, tmp_path: Path) -> None:
    fill(database)
    heads = tmp_path / "heads.jsonl"
    with database.read() as session:
        assert note_head(session, heads, START)
        assert not note_head(session, heads, START)
        session.execute(text("DROP TRIGGER audit_event_no_delete"))
        session.execute(text("DELETE FROM audit_event WHERE seq > 7"))
        assert verify(session).first_bad is None
        verdict = verify(session, read_heads(heads))
    assert (verdict.rows, verdict.first_bad, verdict.heads) == (7, 8, 1)
    assert "row 12 was noted on" in verdict.why


def test_heads_are_appended(database: Database, tmp_path: Path) -> None:
    heads = tmp_path / "heads.jsonl"
    with database.read() as session:
        assert not note_head(session, heads, START)
    for count in (3, 4):
        fill(database, count)
        with database.read() as session:
            assert note_head(session, heads, START)
    assert [head.seq for head in read_heads(heads)] == [3, 7]
    with heads.open("a") as file:
        file.write('{"seq": 8')
    assert [head.seq for head in read_heads(heads)] == [3, 7]


def test_the_ticker_notes_the_head(database: Database, tmp_path: Path) -> None:
    fill(database, 2)
    settings = parse_settings({"storage": {"directory": "storage"}}, base=tmp_path)
    task = head_task(settings, database)
    task.tick()
    task.tick()
    assert [head.seq for head in read_heads(tmp_path / "storage" / "audit-heads.jsonl")] == [2]


def test_a_head_that_cant_be_noted_stops_nothing(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database, 2)
    settings = parse_settings({"audit": {"heads_file": str(tmp_path)}}, base=tmp_path)
    head_task(settings, database).tick()
    assert "could not be noted" in caplog.text


@pytest.mark.parametrize("content", ["no heads\n", "[]\n", '{"seq": "x"}\n', "\xff\n"])
def test_other_files_are_no_heads(tmp_path: Path, content: str) -> None:
    (tmp_path / "file").write_text(content, encoding="latin-1")
    with pytest.raises(HeadsUnreadableError, match="file"):
        read_heads(tmp_path / "file")


def test_progress_counts_every_row(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.audit_chain._PIECE", 5)
    fill(database)
    steps: list[int] = []
    with database.read() as session:
        assert verify(session, (), steps.append).rows == ROWS
    assert steps == [5, 5, 2]


@pytest.fixture
def config(database: Database, tmp_path: Path) -> Path:
    path = tmp_path / "pacs-node.toml"
    path.write_text(f'[storage]\ndirectory = "{tmp_path / "storage"}"\n')
    return path


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["audit", *map(str, arguments)])
    return done.exit_code, done.output


def test_by_command_line(database: Database, config: Path, tmp_path: Path) -> None:
    fill(database)
    assert run("head", "--config", config) == (0, f"{tmp_path}/storage/audit-heads.jsonl: noted\n")
    status, said = run("verify", "--config", config)
    assert (status, "12 rows, 1 heads noted earlier fit" in said) == (0, True)
    out = tmp_path / "record.jsonl"
    assert (
        run("export", "--config", config, "--study", "1.2.3", "--since", "2026-01-01", "--out", out)[0] == 0
    )
    assert [json.loads(line)["study_uid"] for line in out.read_text().splitlines()] == ["1.2.3"]
    assert run("export", "--config", config, "--out", out)[0] == 1
    status, said = run("export", "--config", config, "--format", "csv")
    assert (status, len(said.splitlines())) == (0, ROWS + 1)
    with database.write() as session:
        session.execute(text("DROP TRIGGER audit_event_no_update"))
        session.execute(text("UPDATE audit_event SET actor = 'nobody' WHERE seq = 5"))
    status, said = run("verify", "--config", config)
    assert (status, "First bad row: 5; its content was changed" in said) == (3, True)
    assert run("verify", "--config", config, "--heads", config)[0] == 4
