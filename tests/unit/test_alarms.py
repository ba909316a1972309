"""What is an alarm, what to do about it, and where."""

from __future__ import annotations

import socket
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pacs_node import audit, breaker
from pacs_node import readiness as readiness_module
from pacs_node.alarms import Alarm, Further, alarms, further
from pacs_node.breaker import FAILURES, Waits
from pacs_node.config import parse_settings
from pacs_node.db import Database, MissedStudy
from pacs_node.overview import DiskSpace, Overview, overview
from pacs_node.readiness import readiness
from pacs_node.states import DeliveryState
from tests.certificates import make_certificate
from tests.gates import gate
from tests.node_story import START, Story, analysed
from tests.web_browser import make_settings

ROOM = DiskSpace(free=10 << 30, total=20 << 30, reserve=5 << 30)


def ask(story: Story, now: datetime | None = None) -> Overview:
    with story.database.read() as session:
        at = now or story.now
        return overview(session, at, at - timedelta(hours=12), ("pacs",))


def also(story: Story, directory: Path, **sections: Any) -> Further:
    with story.database.read() as session:
        return further(session, make_settings(directory, **sections), story.now)


def test_an_idle_node_has_none(story: Story, tmp_path: Path) -> None:
    assert alarms(ask(story), ROOM, also(story, tmp_path)) == ()


def test_failures_with_their_study(story: Story, database: Database, tmp_path: Path) -> None:
    story.receive().close().queue().start()
    story.finish(failed=True, reason=("SOFTWARE_FAILURE", "It failed."), kinds=("sr",))
    other = analysed(Story(database, tmp_path, "b", now=story.now)).deliver(
        DeliveryState.FAILED, status="A900 refused"
    )
    todo = "Correct the cause, then requeue or send it again on its page."
    assert set(alarms(ask(other), ROOM)) == {
        Alarm(sentence, todo, f"/studies/{uid}", "Open the study", uid)
        for sentence, uid in (
            ("Analysis failed: It failed.", story.study_uid),
            ("Delivery of SEG and SR to pacs failed: A900 refused.", other.study_uid),
        )
    }


def test_many_failures_of_one_kind_are_one_alarm(database: Database, tmp_path: Path) -> None:
    for number in range(4):
        story = analysed(Story(database, tmp_path, f"s{number}"))
        story.deliver(DeliveryState.FAILED, status="A900 refused")
    (alarm,) = alarms(ask(story), ROOM)
    assert alarm.sentence == "Delivery of SEG and SR to pacs failed for 4 of the last studies: A900 refused."
    assert alarm.link == "/missed#failed"


def test_disk(story: Story) -> None:
    (full,) = alarms(ask(story), DiskSpace(free=1 << 30, total=20 << 30, reserve=5 << 30))
    assert "1024 MiB left" in full.sentence
    assert full.urgent
    (near,) = alarms(ask(story), DiskSpace(free=6 << 30, total=20 << 30, reserve=5 << 30))
    assert "6144 MiB left" in near.sentence
    assert not near.urgent


def test_waiting_work_without_a_worker(story: Story) -> None:
    story.receive().close().queue()
    assert alarms(ask(story), ROOM) == ()
    (alarm,) = alarms(ask(story, story.now + timedelta(minutes=11)), ROOM)
    assert "waited for 11 min 00 s" in alarm.sentence


def test_late_results_are_a_notice_and_an_open_breaker_an_alarm(story: Story) -> None:
    analysed(story).deliver(DeliveryState.PENDING, status="connection refused")
    later = story.now + timedelta(hours=2)
    (late,) = alarms(ask(story, later), ROOM)
    assert "pacs have waited for 2 h 00 min (connection refused)" in late.sentence
    assert (late.urgent, late.link) == (False, "/destinations#at-pacs")
    with story.database.write() as session:
        for _ in range(FAILURES):
            breaker.note_silence(session, "pacs", "nobody listens", Waits(9, 9), at=later, actor="delivery")
    (away,) = alarms(ask(story, later), ROOM)
    assert "pacs is not reached since 2026-03-02 10:01 UTC (nobody listens)" in away.sentence
    assert (away.urgent, away.link) == (True, "/destinations#at-pacs")


def test_too_much_waits(story: Story, tmp_path: Path) -> None:
    story.receive().close().queue()
    more = also(story, tmp_path, backlog={"max_jobs": 1})
    (alarm,) = alarms(ask(story), ROOM, more)
    assert alarm.sentence == "Images are turned away: 1 jobs wait or run; the limit is 1."


def test_silence_and_what_never_came(story: Story, tmp_path: Path) -> None:
    story.receive(1)
    with story.database.write() as session:
        row: dict[str, Any] = dict.fromkeys(
            ("accession_number", "study_date", "description", "modalities"), ""
        )
        session.add(MissedStudy(archive="pacs", study_uid="1.2", noticed_at=START, seen_at=START, **row))
    story.wait(4 * 86400)
    found = alarms(ask(story), ROOM, also(story, tmp_path))
    assert [(one.link, one.urgent) for one in found] == [("/missed", False), ("/destinations#refused", False)]
    assert "1 study that never came here" in found[0].sentence


@pytest.mark.parametrize(
    ("outcome", "objects", "bad"),
    [
        (audit.Outcome.SUCCESS, {"rows": 5}, False),
        (audit.Outcome.SUCCESS, {"rows": 5, "first_bad": 3}, True),
        (audit.Outcome.SERIOUS_FAILURE, {"rows": 5}, True),
    ],
)
def test_a_record_that_was_found_broken(
    story: Story, tmp_path: Path, outcome: audit.Outcome, objects: dict[str, Any], bad: bool
) -> None:
    with story.database.write() as session:
        audit.record(session, audit.Event.AUDIT_CHECKED, at=story.now, actor="a", outcome=outcome, **objects)
    found = alarms(ask(story), ROOM, also(story, tmp_path))
    assert [one.link for one in found] == (["/audit"] if bad else [])


def test_a_certificate_that_ends_soon(story: Story, tmp_path: Path) -> None:
    made = make_certificate(tmp_path, "node", days=10)
    story.now = datetime.now(story.now.tzinfo)
    files = {"tls_certificate_file": str(made.certificate), "tls_key_file": str(made.key)}
    more = also(story, tmp_path, web=files)
    (alarm,) = alarms(ask(story), ROOM, more)
    assert alarm.sentence.startswith("The certificate of web.tls_certificate_file ends on 20")
    assert (alarm.urgent, alarm.link) == (False, "/settings")
    (over,) = alarms(ask(story, story.now + timedelta(days=11)), ROOM, more)
    assert over.urgent


def test_drifted_results(story: Story) -> None:
    (alarm,) = alarms(ask(story), ROOM, Further(drift=("The malignancy has drifted.",)))
    assert (alarm.sentence, alarm.urgent) == ("The malignancy has drifted.", False)


def test_what_is_not_ready_says_why(story: Story, tmp_path: Path) -> None:
    def why(**sections: Any) -> dict[str, str]:
        settings = make_settings(tmp_path, **sections)
        return {one.name: one.why for one in readiness(story.database, settings, story.now)}

    with gate() as port:
        found = why(listener={"port": port})
    assert found == dict.fromkeys(("database", "intake", "worker", "disk", "models", "listener"), "")
    story.receive().close().queue().wait(601)
    found = why(backlog={"max_jobs": 1}, pipeline={"profile": "none"})
    assert found["worker"] == "a job has waited for ten minutes and none is running"
    assert found["intake"] == "associations are rejected: 1 jobs wait or run; the limit is 1"
    assert found["models"] == "the models of the profile can't be used; ask the doctor"
    assert found["database"] == found["disk"] == ""
    story.start()
    assert why()["worker"] == ""
    assert why(listener={"port": port})["listener"] == f"nobody listens on port {port}"
    assert parse_settings({}, base=tmp_path).pipeline.profile == "reference"


def test_a_listener_that_is_deaf_is_not_ready(
    story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system accepts for a process that doesn't."""
    monkeypatch.setattr(readiness_module, "_ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        settings = make_settings(tmp_path, listener={"port": port})
        found = {one.name: one.why for one in readiness(story.database, settings, story.now)}
    assert found["listener"] == f"it accepts and doesn't answer on port {port}"
