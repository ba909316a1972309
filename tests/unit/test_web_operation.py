"""The pages of destinations, of what is missed or failed, and of settings."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from pacs_node import examination
from pacs_node.config import Settings
from pacs_node.db import AuditEvent, Database, Errand, MissedStudy
from pacs_node.db_accounts import Role
from pacs_node.destinations import EchoResult
from pacs_node.doctor_findings import Finding, Level
from pacs_node.examination import FILE, Examination, Examinations
from pacs_node.states import DeliveryState
from pacs_node.web import destinations_page
from tests.node_story import START, Story, analysed
from tests.web_browser import RESULT, Browser, make_settings, parse, study_path


def acted(database: Database) -> list[dict[str, object]]:
    with database.read() as session:
        query = select(AuditEvent).where(AuditEvent.event == "operator action").order_by(AuditEvent.seq)
        return [row.objects for row in session.execute(query).scalars()]


# examinations


def test_an_examination_is_kept_over_a_restart(tmp_path: Path) -> None:
    found = (Finding(Level.GOOD, "disk", "room"), Finding(Level.PROBLEM, "clock", "wrong", "set it\nnow"))
    first = Examinations(tmp_path, lambda: START)
    assert first.last("node") is None
    assert first.ask("node", lambda: found, 10.0)
    done = first.last("node")
    assert done is not None
    assert (done.began, done.whole, done.findings, done.worst) == (START, True, found, Level.PROBLEM)
    assert Examinations(tmp_path).last("node") == done


def test_nobody_waits_for_a_peer_that_says_nothing(tmp_path: Path) -> None:
    answered = threading.Event()

    def look() -> list[Finding]:
        answered.wait(30)
        return [Finding(Level.GOOD, "destination pacs", "answers")]

    asked = Examinations(tmp_path, lambda: START)
    assert asked.ask("echo pacs", look, 0.0)
    assert asked.last("echo pacs") == Examination("echo pacs", START)
    assert not asked.ask("echo pacs", look, 0.0), "one at a time"
    answered.set()
    for thread in threading.enumerate():
        if thread.name == "examine echo pacs":
            thread.join()
    found = asked.last("echo pacs")
    assert found is not None
    assert [one.sentence for one in found.findings] == ["answers"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"subject": "node"}]', "null", '{"a": 1}'])
def test_a_broken_file_of_findings_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert Examinations(tmp_path).last("node") is None


# destinations


class Peer:
    """Stands for a destination that answers an echo."""

    def __init__(self, answer: EchoResult) -> None:
        self.answer = answer

    def echo(self) -> EchoResult:
        return self.answer


def test_echo_from_the_page(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(EchoResult(ok=True, seconds=0.012, detail="answers C-ECHO"))
    monkeypatch.setattr(examination, "make_destination", lambda _item, _settings: peer)
    browser.log_in()
    assert browser.post("/destinations/pacs/echo").headers["Location"] == "/destinations#at-pacs"
    assert "ok answers C-ECHO (12 ms)" in parse(browser.get("/destinations")).text
    peer.answer = EchoResult(ok=False, seconds=5.0, detail="connection refused")
    browser.post("/destinations/pacs/echo")
    assert "problem connection refused (5000 ms)" in parse(browser.get("/destinations")).text
    assert acted(browser.database) == [
        {"action": "echo", "destination": "pacs", "address": "127.0.0.1"} for _ in range(2)
    ]


def test_doctor_of_a_peer_that_is_not_there(
    database: Database, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real doctor, over a real socket that nobody listens on."""
    monkeypatch.setattr(destinations_page, "_PATIENCE_S", 60.0)
    place = {"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "port": free_port, "ae_title": "A"}
    raw = make_settings(tmp_path).model_dump() | {"destinations": [place]}
    browser = Browser(database, Settings.model_validate(raw))
    browser.log_in()
    browser.post("/destinations/pacs/doctor")
    page = parse(browser.get("/destinations")).text
    assert "problem" in page
    assert f"that 127.0.0.1:{free_port} can be reached from here" in page


def test_how_a_destination_stands(browser: Browser, story: Story) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900: refused")
    story.refuse_association("CT2", "10.0.0.7")
    browser.now = story.now
    page = parse(browser.get("/destinations"))
    assert "breaker closed" in page.text
    assert "A at h:104, not encrypted" in page.text
    assert "A900: refused" in page.text
    assert "0 delivered, 2 failed" in page.text
    assert "PACS 127.0.0.1/32 CTNODE none: no TLS" in page.text
    assert 'ae_title = "CT2" address = "10.0.0.7/32"' in page.text
    assert story.study_uid not in page.text
    assert browser.post("/destinations/pacs/resend", reason="cause is gone").status_code == 303
    assert browser.post("/destinations/pacs/resend", reason="cause is gone").status_code == 409
    assert browser.post("/destinations/pacs/resend").status_code == 400
    assert browser.post("/destinations/pacs/retry").status_code == 303
    assert [row["action"] for row in acted(browser.database)] == ["send failed", "try again"]
    for action in ("echo", "doctor", "retry", "resend"):
        assert browser.post(f"/destinations/nowhere/{action}", reason="x").status_code == 404


def test_a_viewer_sees_no_buttons(browser: Browser, story: Story) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900: refused")
    browser.role = Role.VIEWER
    for path in ("/destinations", "/missed"):
        page = parse(browser.get(path))
        assert {form.get("action") for form in page.all("form")} == {"/studies", "/logout"}


# missed


def test_what_is_missed_failed_held(database: Database, tmp_path: Path, story: Story) -> None:
    settings = make_settings(tmp_path, archive={"destination": "pacs"})
    browser = Browser(database, settings)
    browser.log_in()
    analysed(story, RESULT).deliver(DeliveryState.FAILED, status="A900: refused")
    other = Story(database, tmp_path, name="b", accession_number="ACC-2").receive().close().queue()
    browser.post(f"{study_path(other)}/hold", reason="wrong patient")
    with database.write() as session:
        session.add(
            MissedStudy(
                archive="pacs",
                study_uid="1.2.3",
                accession_number="ACC-9",
                study_date="20260301",
                description="CT <b>Thorax</b>",
                modalities="CT",
                n_instances=300,
                noticed_at=START,
                seen_at=START,
            )
        )
        due = START + timedelta(hours=9)
        session.add(
            Errand(
                name="missed studies of pacs", due_at=due, finished_at=START, status="1 of them never came"
            )
        )
    page = parse(browser.get("/missed")).text
    assert "pacs was asked 08:00:00 : 1 of them never came; next 17:00:00" in page
    assert "ACC-9 CT <b>Thorax</b> 1.2.3 2026-03-01 CT 300" in page
    assert "2 objects for pacs" in page
    assert "ACC-2 CT Thorax 2026-03-02 wrong patient" in page
    with database.read() as session:
        looks = (
            session.execute(select(AuditEvent).where(AuditEvent.event == "studies listed")).scalars().all()
        )
    assert [row.objects["list"] for row in looks] == ["missed"]
    assert browser.post("/missed/search").status_code == 303
    with database.read() as session:
        assert session.get_one(Errand, "missed studies of pacs").due_at == browser.now
    again = {"place": "pacs", "cause": "A900: refused", "reason": "corrected"}
    assert browser.post("/missed/failed", **again).status_code == 303
    assert browser.post("/missed/failed", **again).status_code == 409
    assert browser.post("/missed/failed", **again | {"reason": ""}).status_code == 400
    assert browser.post("/missed/failed", **again | {"place": "x" * 100}).status_code == 400
    assert browser.post(f"{study_path(other)}/requeue", reason="right one").status_code == 303
    page = parse(browser.get("/missed")).text
    assert "nothing has failed" in page
    assert "nothing is held" in page


def test_without_an_archive_nobody_can_ask(browser: Browser) -> None:
    assert "nobody is asked" in parse(browser.get("/missed")).text
    assert browser.post("/missed/search").status_code == 409
    assert acted(browser.database) == []


# settings


def test_settings_are_shown_without_secrets(database: Database, tmp_path: Path) -> None:
    places = [{"name": "w", "kind": "dicomweb", "url": "https://u:s3cret@h/w", "password_file": "/etc/p"}]
    raw = make_settings(tmp_path).model_dump() | {"destinations": places}
    browser = Browser(database, Settings.model_validate(raw))
    response = browser.get("/settings")
    page = parse(response).text
    assert "s3cret" not in response.text
    assert "/etc/p" in page
    assert 'ae_title "CTNODE"' in page
    assert "Profile reference" in page
    assert "Schema 00" in page
    assert "sqlalchemy 2." in page
    assert "Nobody has asked from this page yet." in page


def test_the_doctor_of_this_machine(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Finding(Level.WARNING, "clock", "follows no time server", "set up chrony")]
    monkeypatch.setattr("pacs_node.web.settings_page.look_at_node", lambda _settings, _now: found)
    browser.log_in()
    assert browser.post("/settings/doctor").status_code == 303
    assert "warning clock : follows no time server → set up chrony" in parse(browser.get("/settings")).text
    assert acted(browser.database) == [{"action": "doctor", "address": "127.0.0.1"}]
    kept = json.loads((Path(browser.settings.storage.directory) / FILE).read_text())
    assert [row["subject"] for row in kept] == ["node"]
