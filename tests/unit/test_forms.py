"""Objects in several forms: each made once, each destination gets its own, exactly once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic import command
from alembic.config import Config
from click.testing import CliRunner
from sqlalchemy import select, text

from dicom_sr.profiles import PROFILES
from pacs_node.cli import main
from pacs_node.config import (
    DeliverySettings,
    DicomDestination,
    PipelineSettings,
    Settings,
    StorageSettings,
)
from pacs_node.db import Artifact, AuditEvent, Database, Job, sqlite_url
from pacs_node.delivery import resend_study, unmade
from pacs_node.destinations import FakeDestination
from pacs_node.engines import InProcessEngine
from pacs_node.outbox import Outbox
from pacs_node.request import CaseFile, CaseOutcome, CaseRequest
from pacs_node.states import DeliveryState
from pacs_node.worker import Worker
from tests.small_node import SmallNode

MADE = ("seg", "seg:all-frames", "sr", "sr:all-frames", "sr:enhanced", "sc", "pdf")
WANTED = tuple((name, profile.forms) for name, profile in PROFILES.items())


def finished(node: SmallNode, made: Sequence[str] = MADE) -> SmallNode:
    node.queue()
    row, token = node.claim()
    node.finish(row, token, node.result(row, made), destinations=WANTED)
    return node


def forms(node: SmallNode) -> dict[str, list[str]]:
    """The forms in the outbox of each destination, in their order."""
    out: dict[str, list[str]] = {}
    for row in node.all_deliveries():
        out.setdefault(row.destination, []).append(row.artifact.form)
    return out


def drain(node: SmallNode, destination: FakeDestination) -> list[str]:
    box = Outbox(node.database, node.spool.directory, destination, DeliverySettings(), node.clock)
    while box.tick():
        pass
    by_uid = {row.artifact.sop_instance_uid: row.artifact.form for row in node.all_deliveries()}
    return [by_uid[uid] for uid in destination.attempts]


def study_uid(node: SmallNode) -> str:
    return str(node.all_deliveries()[0].artifact.job.series.study.study_uid)


def test_each_destination_gets_the_forms_of_its_profile(node: SmallNode) -> None:
    assert forms(finished(node)) == {name: list(wanted) for name, wanted in WANTED}


def test_a_report_without_a_mask_goes_to_whoever_wants_one_on_any_mask(node: SmallNode) -> None:
    got = forms(finished(node, ("sr", "sr:enhanced", "sc", "pdf")))
    assert got == {
        "standard": ["sr"],
        "ohif": ["sr"],
        "slicer": ["sr"],
        "weasis": ["sr:enhanced"],
        "legacy": ["sr:enhanced", "sc", "pdf"],
    }


def test_the_mask_goes_first_and_everything_once(node: SmallNode) -> None:
    legacy = FakeDestination("legacy")
    assert drain(finished(node), legacy) == ["seg", "sr:enhanced", "sc", "pdf"]
    assert drain(node, legacy) == ["seg", "sr:enhanced", "sc", "pdf"]
    states = {row.artifact.form: row.state for row in node.all_deliveries() if row.destination == "legacy"}
    assert set(states.values()) == {DeliveryState.COMMITTED}


def test_what_a_peer_refuses_for_ever_holds_nothing_else_up(node: SmallNode) -> None:
    legacy = FakeDestination("legacy", script=[0x0122, 0x0122, 0x0000, 0x0000])
    drain(finished(node), legacy)
    rows = {row.artifact.form: row for row in node.all_deliveries() if row.destination == "legacy"}
    assert rows["seg"].state is rows["sr:enhanced"].state is DeliveryState.FAILED
    assert "does not support the SOP class" in (rows["seg"].status or "")
    assert rows["sc"].state is rows["pdf"].state is DeliveryState.COMMITTED


def test_two_destinations_of_a_form_get_the_same_bytes(node: SmallNode) -> None:
    peers = [FakeDestination(name) for name in ("standard", "ohif", "weasis")]
    finished(node)
    for peer in peers:
        drain(node, peer)
    first, second, third = (set(peer.stored.values()) for peer in peers)
    assert first == second
    assert len(first & third) == 1  # the SEG


def test_the_record_says_in_which_encoding_what_went_where(node: SmallNode) -> None:
    finished(node)
    drain(node, FakeDestination("weasis"))
    with node.database.read() as session:
        events = session.execute(select(AuditEvent).order_by(AuditEvent.seq)).scalars().all()
    named = {
        (e.objects["kind"], e.objects["encoding"])
        for e in events
        if e.objects.get("destination") == "weasis" and "sop_instance_uid" in e.objects
    }
    assert named == {("seg", ""), ("sr", "enhanced")}


def test_an_operator_sends_what_the_profile_of_today_wants_and_hears_what_there_is_not(
    node: SmallNode,
) -> None:
    finished(node, ("seg", "sr", "sc"))
    with node.database.write() as session:
        uid = study_uid(node)
        count = resend_study(
            session, uid, [("new", PROFILES["legacy"].forms)], at=node.clock(), actor="operator"
        )
        assert unmade(session, uid, PROFILES["legacy"].forms) == ("sr:enhanced", "pdf")
        assert unmade(session, uid, PROFILES["ohif"].forms) == ()
        assert unmade(session, "1.2.3", PROFILES["ohif"].forms) == ()
    assert count == 2
    assert forms(node)["new"] == ["seg", "sc"]


@pytest.mark.parametrize(("wanted", "lacking"), [("slicer", ()), ("weasis", ("sr:enhanced",))])
def test_a_result_without_findings_lacks_no_mask(
    node: SmallNode, wanted: str, lacking: tuple[str, ...]
) -> None:
    finished(node, ("sr",))
    with node.database.read() as session:
        assert unmade(session, study_uid(node), PROFILES[wanted].forms) == lacking


def test_an_older_database_keeps_its_objects_in_the_standard_form(node: SmallNode) -> None:
    directory = node.spool.directory / "older"
    directory.mkdir()
    database = Database(sqlite_url(directory))
    config = Config()
    config.set_main_option("script_location", "pacs_node:migrations")
    config.attributes["engine"] = database.engine.execution_options(pacs_node_write=True)
    command.upgrade(config, "0001")
    when = "'2026-01-01 00:00:00.000000'"
    with database.write() as session:
        for statement in (
            f"INSERT INTO study VALUES (1, '1.2', 'P', 'N', 'A', '', '', {when})",
            f"INSERT INTO series VALUES (1, 1, '1.3', 'CT', '', 'P', 1, {when}, 'queued', '', NULL, NULL, 0)",
            f"INSERT INTO job VALUES (1, 1, 'analysis', '', '', 'failed', 1, {when}, {when}{', NULL' * 8})",
            "INSERT INTO artifact VALUES (1, 1, 'seg', 'seg.dcm', 'ab', '1.4', '1.5', '1.6')",
        ):
            session.execute(text(statement))
    database.upgrade()
    with database.read() as session:
        (row,) = session.execute(select(Artifact)).scalars().all()
        assert (row.form, row.sha256, row.path) == ("seg", "ab", "seg.dcm")
    assert database.check() == "ok"
    database.dispose()


def destination(name: str) -> DicomDestination:
    return DicomDestination(
        name=name,
        host="127.0.0.1",
        port=104,
        ae_title="PACS",
        profile=name,  # type: ignore[arg-type] # a name of a profile
    )


def test_the_worker_has_everything_made_that_a_destination_wants(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[CaseRequest] = []

    def made(request: CaseRequest) -> CaseOutcome:
        requests.append(request)
        with node.database.read() as session:
            job = session.get_one(Job, 1)
            files = [
                CaseFile(
                    new.kind,
                    node.spool.directory / new.path,
                    new.sha256,
                    new.sop_instance_uid,
                    new.sop_class_uid,
                    new.series_uid,
                    new.encoding,
                )
                for new in node.result(job, request.forms)
            ]
        return CaseOutcome("analysed", tuple(files))

    monkeypatch.setattr("pacs_node.worker.run_case", made)
    settings = Settings(
        storage=StorageSettings(directory=str(node.spool.directory)),
        pipeline=PipelineSettings(engine="in-process"),
        destinations=(destination("slicer"), destination("legacy")),
    )
    node.queue()
    Worker(node.database, settings, "version", InProcessEngine(), node.clock).tick()
    (request,) = requests
    assert request.forms == ("seg", "seg:all-frames", "sr", "sr:all-frames", "sr:enhanced", "sc", "pdf")
    assert [(row.name, row.profile, row.forms) for row in request.receivers] == [
        (name, name, PROFILES[name].forms) for name in ("slicer", "legacy")
    ]
    assert forms(node) == {name: list(PROFILES[name].forms) for name in ("slicer", "legacy")}


def test_the_operator_is_told_what_was_not_made(node: SmallNode, tmp_path: Path) -> None:
    finished(node, ("seg", "sr", "pdf"))
    config = tmp_path / "pacs-node.toml"
    config.write_text(
        f'[storage]\ndirectory = "{node.spool.directory}"\n[[destinations]]\nname = "old"\nkind = "dicom"\n'
        'host = "127.0.0.1"\nport = 104\nae_title = "OLD"\nprofile = "legacy"\nsend = ["sr", "sc", "pdf"]\n',
        encoding="utf-8",
    )
    said = CliRunner().invoke(main, ["send", "--config", str(config), study_uid(node)])
    assert said.exit_code == 0, said.output
    assert said.output.splitlines() == [
        "old: the result has no SR (Enhanced SR); only an analysis makes it",
        "old: the result has no SC; only an analysis makes it",
        "1 object(s) will be sent",
    ]


def test_analyze_makes_the_objects_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def analyze_directory(_folder: Path, **rest: object) -> int:
        given.update(rest)
        return 0

    # the real one loads torch
    fake = SimpleNamespace(analyze_directory=analyze_directory)
    monkeypatch.setitem(sys.modules, "pacs_node.analyze", fake)
    for name, profile in PROFILES.items():
        done = CliRunner().invoke(
            main, ["analyze", str(tmp_path), "--out", str(tmp_path / "out"), "--for", name]
        )
        assert (done.exit_code, given["forms"]) == (0, profile.forms)
    assert (
        CliRunner().invoke(main, ["analyze", str(tmp_path), "--out", "x", "--for", "osirix"]).exit_code == 2
    )
