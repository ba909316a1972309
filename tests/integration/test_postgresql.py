"""A whole node whose rows are in PostgreSQL, and a server that is killed while it works."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom import dcmread
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError
from starlette.routing import Route

from pacs_node import audit, one_node
from pacs_node.cli import main
from pacs_node.clock import utc_now
from pacs_node.config import DicomDestination, Settings, StorageSettings, load_settings
from pacs_node.connections import make_engine
from pacs_node.db import Database, Delivery, Instance, Job, Study
from pacs_node.db_accounts import Role
from pacs_node.dimse import DimseDestination
from pacs_node.doctor_database import check_database
from pacs_node.doctor_findings import Level
from pacs_node.errors import ConfigurationError
from pacs_node.reception import Reception
from pacs_node.recorder import Recorder
from pacs_node.request import CaseOutcome, CaseRequest
from pacs_node.spool import Spool
from pacs_node.states import DeliveryState, JobState
from pacs_node.storage import only_one, open_database
from pacs_node.summaries import Summaries
from tests.acceptance.node import Node
from tests.ct_factory import make_ct_series, write_series
from tests.faults.invariants import Seen, dataset_sha256, violations
from tests.node_story import Story, analysed
from tests.peers import Storescp, storescp, storescu
from tests.postgresql import Server, postgresql
from tests.small_node import SmallNode, TestClock
from tests.unit.test_recorder import add, arrival, origin
from tests.unit.test_worker import make_worker
from tests.unit.test_worker import run as run_small_case
from tests.web_browser import RESULT, Browser, make_settings

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.peer("initdb", "pg_ctl", "storescp", "storescu"), pytest.mark.timeout(300)]

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
PASSWORD = "open sesame"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgresql(MEMORY) as running:
        yield running


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storescp]:
    with storescp(tmp_path_factory.mktemp("pacs")) as running:
        yield running


@pytest.fixture(scope="module")
def node(server: Server, pacs: Storescp, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The node of all tests here: the restore looks at what the others left."""
    item = DicomDestination(name="pacs", host="127.0.0.1", port=pacs.port, ae_title="PACS", verify="none")
    made = Node(tmp_path_factory.mktemp("node"), [item], profile="classical", database_url=server.database())
    try:
        yield made.start()
    finally:
        made.kill()


def series(directory: Path, seed: str, count: int = 6) -> list[Path]:
    """Too small for an analysis, so it ends with a report that says so."""
    return write_series(make_ct_series(count, matrix=16, seed=seed), directory / seed)


def until_delivered(node: Node, pacs: Storescp, count: int) -> None:
    """Wait until that many reports are at the PACS, each once, and the node has noted it."""
    node.until(lambda: len(pacs.files()) == count, "the report is at the PACS", 120)
    sent = select(Delivery.id).where(Delivery.state.in_([DeliveryState.SENT, DeliveryState.COMMITTED]))
    node.until(lambda: node.ask(lambda session: len(session.scalars(sent).all()) == count), "noted", 60)


def found(node: Node, acknowledged: Sequence[tuple[str, str]]) -> list[str]:
    database = node.database()
    try:
        return violations(database, node.storage, Seen(acknowledged, unproved=frozenset({"pacs"})))
    finally:
        database.dispose()


def test_a_study_goes_in_and_its_report_comes_out(node: Node, pacs: Storescp, tmp_path: Path) -> None:
    files = series(tmp_path, "first")
    assert storescu(node.port, *files, called_ae="CTNODE").returncode == 0
    until_delivered(node, pacs, 1)
    assert not (node.storage / "node.db").exists()
    assert found(node, [(str(dcmread(path).SOPInstanceUID), dataset_sha256(path)) for path in files]) == []


def test_a_server_that_is_killed_while_a_sender_sends(
    node: Node, pacs: Storescp, server: Server, tmp_path: Path
) -> None:
    """What was acknowledged is there; the rest is refused and taken later; the study gets its report."""
    files = series(tmp_path, "second", 40)
    reached = threading.Event()

    def look(done: int, _of: int) -> None:
        if done == 10:
            reached.set()

    def kill() -> None:
        reached.wait(60)
        server.stop("immediate")
        time.sleep(1)
        server.start()

    killer = threading.Thread(target=kill)
    killer.start()
    peer = DimseDestination("node", "127.0.0.1", node.port, "CTNODE", "STORESCU", verify="none")
    acknowledged: list[tuple[str, str]] = []
    refused, rest = 0, files
    while rest:
        outcomes = list(zip(rest, peer.send(rest, look), strict=True))
        acknowledged += [
            (out.sop_instance_uid, dataset_sha256(path)) for path, out in outcomes if out.kind.stored
        ]
        rest = [path for path, out in outcomes if not out.kind.stored]
        refused += len(rest)
        time.sleep(0.5 if rest else 0)
    killer.join()
    logger.info("server killed while receiving: %d refused, all taken later", refused)
    assert refused, "nothing was refused: the kill came too late"
    until_delivered(node, pacs, 2)
    assert found(node, acknowledged) == []


def settings_of(node: Node) -> Settings:
    return load_settings(node.config)


def long_name() -> str:
    """3,000 bytes that don't get smaller: more than an index of PostgreSQL takes."""
    chance = random.Random(1)
    return "".join(chr(chance.randrange(0x4E00, 0x9FA5)) for _ in range(1000))


def test_a_row_that_postgresql_refuses_holds_up_nobody_else(server: Server, tmp_path: Path) -> None:
    database = Database(server.database())
    rows = Recorder(database, Spool(tmp_path, 1))
    rows.start()
    bad, good = arrival(1), arrival(2)
    bad = replace(bad, identity=replace(bad.identity, patient_name=long_name()))
    with pytest.raises(DBAPIError) as refused:
        add(rows, origin(), bad)
    assert getattr(refused.value.orig, "sqlstate", "")[:2] == "54"
    rows.check()
    assert add(rows, origin(), good) is Reception.NEW
    rows.stop()
    database.dispose()


@pytest.mark.filterwarnings("ignore:The PN component length")
def test_a_long_name_is_the_same_in_both_databases(server: Server, tmp_path: Path) -> None:
    (ds,) = make_ct_series(1, matrix=8)
    ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 192", long_name()
    kept = set()
    for name, url in (("postgresql", server.database()), ("sqlite", f"sqlite:///{tmp_path}/node.db")):
        database = Database(url)
        database.upgrade()
        node = SmallNode(database, Spool(tmp_path / name, 1), TestClock())
        assert node.receive(ds) == [Reception.NEW]
        with database.read() as session:
            kept.add(session.execute(select(Study.patient_name)).scalar_one())
        database.dispose()
    assert kept == {long_name()[: 1024 // 3]}


def test_doctor_looks_at_the_server(node: Node) -> None:
    findings = list(check_database(settings_of(node), utc_now()))
    assert {finding.level for finding in findings} == {Level.GOOD}
    text = "\n".join(finding.sentence for finding in findings)
    for part in ("PostgreSQL 1", "fsync and full_page_writes on", "clock is +0.", "on this machine only"):
        assert part in text
    later = list(check_database(settings_of(node), utc_now() + timedelta(minutes=1)))
    assert any("time server" in finding.todo for finding in later if finding.level is Level.WARNING)


def test_one_node_for_one_database(node: Node, tmp_path: Path) -> None:
    storage = settings_of(node).storage.model_copy(update={"directory": str(tmp_path)})
    other = settings_of(node).model_copy(update={"storage": storage})

    def refused() -> bool:
        try:
            with only_one(other):
                return False
        except ConfigurationError as error:
            return "another pacs-node serve" in str(error)

    # the server was killed just before: the node takes its lock again
    node.until(refused, "another node is refused", 30)


def test_a_node_that_finds_its_database_in_other_hands_stops(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr(one_node, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(one_node, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(os, "kill", lambda _pid, number: told.append(number))
    url = server.database()
    mine, theirs = make_engine(url), make_engine(url)
    keeping = one_node.only_node(mine)
    assert keeping.__enter__()
    # they hold it by a transaction: as soon as ours is cut, it is theirs
    with theirs.begin() as connection:
        waits = threading.Thread(
            target=lambda: connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({one_node.LOCK})")
        )
        waits.start()
        server.tell(
            f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE objid = {one_node.LOCK} AND granted"
        )
        waits.join(20)
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert told == [signal.SIGTERM]
    keeping.__exit__(None, None, None)
    mine.dispose()
    theirs.dispose()


def test_backup_and_restore(node: Node, server: Server, tmp_path: Path) -> None:
    """The node works meanwhile."""
    copy = tmp_path / "copy"
    answer = CliRunner().invoke(main, ["backup", str(copy), "--config", str(node.config)])
    assert answer.exit_code == 0, answer.output
    fresh = tmp_path / "fresh.toml"
    config = node.config.read_text().replace(node.database_url, server.nothing())
    fresh.write_text(config)
    command = ["restore", str(copy), "--config", str(fresh)]
    answer = CliRunner().invoke(main, command)
    assert answer.exit_code == 0, answer.output
    database = open_database(load_settings(fresh))
    storage = tmp_path / "pacs-node-data"
    assert violations(database, storage, Seen(orphan_s=0, unproved=frozenset({"pacs"}))) == []
    with database.read() as session:
        counts = [session.scalar(select(func.count()).select_from(table)) for table in (Study, Instance, Job)]
    assert counts == [2, 46, 2]
    # the next row of each table gets a number of its own
    with database.write() as session:
        audit.record(session, audit.Event.NODE_STARTED, at=utc_now(), actor="test", pid=1)
    database.dispose()
    shutil.rmtree(storage)
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 1
    assert "has tables: a restore overwrites nothing" in again.output
    fresh.write_text(node.config.read_text().replace(node.database_url, ""))
    of_another_kind = CliRunner().invoke(main, command)
    assert "another kind of database" in of_another_kind.output


def test_the_password_comes_from_a_file_and_is_shown_nowhere(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, file, copy = server.with_password(PASSWORD), tmp_path / "password", tmp_path / "copy"
    file.write_text(f"{PASSWORD}\n")
    config = tmp_path / "pacs-node.toml"
    config.write_text(f'[storage]\ndatabase_url = "{url}"\ndatabase_password_file = "password"\n')
    open_database(load_settings(config)).dispose()
    backup = ["backup", str(copy), "--config", str(config)]
    doctor = ["doctor", "--offline", "--config", str(config)]
    shown = [CliRunner().invoke(main, command) for command in (backup, doctor)]
    assert shown[0].exit_code == 0, shown[0].output
    assert "PostgreSQL" in shown[1].output
    file.write_text("wrong")
    with pytest.raises(ConfigurationError, match="authentication failed") as refused:
        open_database(load_settings(config))
    shown += [CliRunner().invoke(main, command) for command in (backup, doctor)]
    assert shown[2].exit_code == 1
    assert "PROBLEM" in shown[3].output
    outputs = [str(refused.value), *(answer.output for answer in shown), *capfd.readouterr()]
    assert not any(PASSWORD in output or "wrong" in output for output in outputs)
    assert not any(PASSWORD.encode() in path.read_bytes() for path in copy.iterdir() if path.is_file())


def test_a_server_without_fsync_is_refused(node: Node, server: Server) -> None:
    try:
        server.tell("ALTER SYSTEM SET fsync = off")
        server.tell("SELECT pg_reload_conf()")
        with pytest.raises(ConfigurationError, match="fsync = off"):
            open_database(settings_of(node))
        (finding,) = (
            item for item in check_database(settings_of(node), utc_now()) if item.level is Level.PROBLEM
        )
        assert "fsync off" in finding.sentence
    finally:
        server.tell("ALTER SYSTEM RESET fsync")
        server.tell("SELECT pg_reload_conf()")


def test_the_page_asks_postgresql_too(server: Server, tmp_path: Path) -> None:
    """Each page without parameters, and the search by words and orders."""
    url = server.database()
    database = Database(url)
    finding = RESULT["findings"][0] | {"tracking_uid": "1.2.9"}
    story = analysed(Story(database, tmp_path), RESULT | {"findings": [finding]})
    Summaries(database, tmp_path).tick()
    browser = Browser(database, make_settings(tmp_path), role=Role.ADMINISTRATOR)
    pages = {
        rule.path for rule in browser.app.routes if isinstance(rule, Route) and "GET" in (rule.methods or ())
    }
    pages = {path for path in pages if "{" not in path} - {"/audit/export"}
    answers = {path: browser.get(path).status_code for path in pages if not path.startswith("/oidc")}
    # nobody listens here
    assert answers.pop("/health/ready") == 503
    assert {path: status for path, status in answers.items() if status not in {200, 303, 400}} == {}
    assert answers["/"] == answers["/studies"] == answers["/audit"] == 200
    assert browser.get(f"/studies/{story.study_uid}").status_code == 200
    there = ("patient_id=PID-1", "q=doe", "q=%5Ejan", "q=pi", "state=analysed", "mm=6", "kind=part-solid")
    for question in there:
        assert story.study_uid in browser.get(f"/studies?{question}").text, question
    for question in ("q=doexjane", "q=%25", "q=xyzzy", "mm=60", "lungrads=4A"):
        assert story.study_uid not in browser.get(f"/studies?{question}").text, question
    storage = {"directory": str(tmp_path), "database_url": url}
    search_by_index(database, make_settings(tmp_path, storage=storage))
    database.dispose()


def search_by_index(database: Database, settings: Settings) -> None:
    """Words are looked for by pg_trgm; ``doctor`` says when its index is missing."""
    with database.engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = connection.scalars(text("EXPLAIN SELECT id FROM study WHERE search LIKE '%jane%'")).all()
        assert "study_words" in "\n".join(plan)

    def warned() -> bool:
        return any("read every row" in item.sentence for item in check_database(settings, utc_now()))

    assert not warned()
    with database.write() as session:
        session.execute(text("DROP INDEX study_words"))
    assert warned()


def test_a_server_that_goes_while_a_job_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the job can't be written: it comes back with its lease and is analysed again, once."""
    database = Database(server.database())
    small = SmallNode(database, Spool(tmp_path, 1), TestClock())
    small.queue()

    def case(request: CaseRequest) -> CaseOutcome:
        server.stop("immediate")
        return run_small_case(request)

    monkeypatch.setattr("pacs_node.worker.run_case", case)
    worker = make_worker(small)
    with pytest.raises(DBAPIError):
        worker.tick()
    # what a node says meanwhile
    (finding,) = check_database(
        Settings(storage=StorageSettings(database_url=shown_url(database))), utc_now()
    )
    assert (finding.level, "server runs" in finding.todo) == (Level.PROBLEM, True)
    server.start()
    monkeypatch.setattr("pacs_node.worker.run_case", run_small_case)
    assert not worker.tick()
    assert small.lose_leases() == 1
    assert worker.tick()
    (job,) = small.all_jobs()
    assert (job.state, job.attempts) == (JobState.SUCCEEDED, 2)
    assert sorted(row.artifact.kind for row in small.all_deliveries()) == ["seg", "sr"]
    assert violations(database, tmp_path, Seen(leftover_s=None)) == []
    database.dispose()


def shown_url(database: Database) -> str:
    return database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
