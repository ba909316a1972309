"""The JSON API: what it says, what it changes, and who administers it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select, update

from pacs_node import audit, feedback
from pacs_node.audit_export import FORMATS
from pacs_node.config_template import render_settings
from pacs_node.db import Artifact, AuditEvent, Database, Delivery, Errand, Job, MissedStudy, sqlite_url
from pacs_node.db_accounts import Account, Role
from pacs_node.db_feedback import VerdictKind
from pacs_node.db_tokens import ApiToken
from pacs_node.doctor_findings import Finding, Level
from pacs_node.feedback import NewVerdict
from pacs_node.states import DeliveryState, JobState
from pacs_node.summaries import Summaries
from pacs_node.tokens_cli import tokens
from tests.api_client import Program
from tests.node_story import START, VERSION, Story, analysed
from tests.web_browser import RESULT, Browser, artifact_id, change_artifact

STUDIES = ("a", "b", "c", "d", "e")
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}\x1b[31m\u202e\r\n\x00\x7f\U0001f600^Jane"


@pytest.fixture
def program(browser: Browser) -> Program:
    return Program(browser)


def done(program: Program, story: Story) -> str:
    """An analysed study with delivered results; return the address of it."""
    analysed(story, RESULT).deliver(DeliveryState.COMMITTED)
    program.browser.now = story.now
    return f"/studies/{story.study_uid}"


# studies


def test_the_list_pages_sorts_and_filters(program: Program, story: Story) -> None:
    for name, patient in zip(STUDIES, ("P3", "P1", "P5", "P2", "P4"), strict=True):
        one = Story(story.database, story.directory, name, story.now, patient_id=patient)
        story.now = (one.receive(1) if name != "e" else analysed(one)).now

    def listed(query: str) -> list[str]:
        found, more = list[str](), ""
        while True:
            answer = program.ask(f"/studies?limit=2&{query}{more}").json()
            found += [study["patient_id"] for study in answer["studies"]]
            if answer["next_cursor"] is None:
                return found
            more = f"&cursor={answer['next_cursor']}"

    assert listed("") == ["P4", "P2", "P5", "P1", "P3"]
    assert listed("sort=patient-id&order=ascending") == ["P1", "P2", "P3", "P4", "P5"]
    assert listed("q=p5") == ["P5"]
    assert listed("state=receiving") == ["P2", "P5", "P1", "P3"]
    assert listed("state=analysed") == ["P4"]
    assert listed("received_since=2026-03-03T00:00:00Z") == []
    assert listed("first_day=20260302&last_day=20260302&order=ascending")[0] == "P3"
    assert program.ask("/studies").json()["notice"] == "Research use only, not for primary diagnosis."


def test_a_study_tells_everything(program: Program, story: Story) -> None:
    found = program.ask(done(program, story)).json()
    assert found["notice"] == "Research use only, not for primary diagnosis."
    assert found["study"]["patient_name"] == "Doe^Jane"
    assert (found["study"]["state"]["word"], found["study"]["state"]["finished"]) == ("analysed", True)
    assert found["study"]["state"]["delivery"]["word"] == "visible in PACS"
    assert [(row["number"], row["verdict"], row["n_images"]) for row in found["series"]] == [(1, "chosen", 3)]
    assert found["jobs"][0]["state"] == "succeeded"
    assert [(file["kind"], file["available"]) for file in found["jobs"][0]["files"]][:2] == [
        ("seg", True),
        ("sr", True),
    ]
    assert {(row["state"], row["destination"]) for row in found["deliveries"]} == {
        ("visible in PACS", "pacs")
    }
    assert all(row["verified_at"] for row in found["deliveries"])
    steps = [row["step"] for row in found["timeline"]]
    assert steps[0] == "first image"
    assert steps[-1] == "verified"
    assert next(row for row in found["timeline"] if row["step"] == "analysed")["duration_s"] == 60.0
    finding = found["result"]["findings"][0]
    assert (finding["malignancy"], finding["long_axis_mm"], finding["site"]) == (
        0.41,
        12.34,
        "right upper lobe",
    )
    assert finding["features"][0] == {
        "name": "spiculation",
        "meaning": "marked",
        "probability": 0.8,
        "pair": None,
    }
    assert found["result"]["models"][0]["weights_sha256"] == "ab" * 32
    assert found["result"]["timings"]["analyse"] == 40.25


def test_reasons_of_refused_series(program: Program, story: Story) -> None:
    story.receive().close().set_aside(1, "TOO_THICK", "Slices are 8.0 mm thick.")
    series = program.ask(f"/studies/{story.study_uid}").json()["series"][0]
    assert (series["verdict"], series["reason_code"]) == ("set aside", "TOO_THICK")
    assert series["reason"] == "Slices are 8.0 mm thick."


def filled(value: Any) -> Any:
    """The same structure with hostile text for each text but the status."""
    if isinstance(value, dict):
        return {name: item if name == "status" else filled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [filled(item) for item in value]
    return HOSTILE + "\ud800" if isinstance(value, str) else value


def test_text_from_outside_arrives_as_it_is(program: Program, database: Database, tmp_path: Path) -> None:
    texts = ("patient_id", "patient_name", "accession_number", "study_date", "description")
    story = Story(database, tmp_path, patient_id=HOSTILE, patient_name=HOSTILE, modality=HOSTILE)
    story.accession_number = story.study_date = story.description = HOSTILE
    analysed(story, json.dumps(filled(RESULT)))
    program.browser.now = story.now
    answer = program.ask(f"/studies/{story.study_uid}")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    found = answer.json()
    assert {found["study"][name] for name in texts} == {HOSTILE}
    # half a character can't be sent
    assert found["result"]["findings"][0]["site"] == HOSTILE + "?"
    assert found["result"]["findings"][0]["features"][0]["meaning"] == HOSTILE + "?"
    assert program.ask("/studies").json()["studies"][0]["patient_name"] == HOSTILE


def test_numbers_that_json_does_not_have_are_null(program: Program, story: Story) -> None:
    text = '{"status": "analysed", "findings": [{"malignancy": {"image_only": NaN, "fused": 1e999}}]}'
    analysed(story, text)
    program.browser.now = story.now
    finding = program.ask(f"/studies/{story.study_uid}").json()["result"]["findings"][0]
    assert (finding["malignancy"], finding["malignancy_fused"], finding["volume_mm3"]) == (None, None, None)


@pytest.mark.parametrize(("kind", "media_type"), [("seg", "application/dicom"), ("html", "text/html")])
def test_files_are_handed_out_as_they_are(program: Program, story: Story, kind: str, media_type: str) -> None:
    done(program, story)
    number = artifact_id(story, kind)
    answer = program.ask(f"/artifacts/{number}")
    assert answer.headers["Content-Type"].partition(";")[0] == media_type
    # never shown in a browser as a page of ours
    assert answer.headers["Content-Disposition"].startswith("attachment; filename=")
    with story.database.read() as session:
        path = session.get_one(Artifact, number).path
    assert answer.content == (story.directory / str(path)).read_bytes()


def test_files_that_are_gone_or_changed(program: Program, story: Story) -> None:
    done(program, story)
    change_artifact(story, "seg", sha256="0" * 64)
    change_artifact(story, "sr", path=None)
    change_artifact(story, "json", path="../outside")
    assert program.ask(f"/artifacts/{artifact_id(story, 'seg')}").json()["code"] == "file-differs"
    assert "retention" in program.ask(f"/artifacts/{artifact_id(story, 'sr')}").json()["detail"]
    assert program.ask(f"/artifacts/{artifact_id(story, 'json')}").json()["code"] == "no-file"


# actions


def acted(database: Database) -> list[tuple[str, str]]:
    with database.read() as session:
        query = select(AuditEvent).where(AuditEvent.event == "operator action").order_by(AuditEvent.seq)
        return [(row.actor, str(row.objects["action"])) for row in session.execute(query).scalars()]


def test_hold_and_requeue(program: Program, story: Story) -> None:
    story.receive().close().queue()
    program.browser.now, program.role = story.now, Role.OPERATOR
    path = f"/studies/{story.study_uid}"
    assert program.ask(f"{path}/hold", {"reason": "wrong patient"}).json() == {
        "changed": 1,
        "repeated": False,
    }
    with story.database.read() as session:
        assert session.execute(select(Job.state)).scalar_one() is JobState.CANCELLED
    assert program.ask(f"{path}/requeue", {"reason": "it was right"}).json()["changed"] == 1
    answer = program.ask(f"{path}/requeue", {"reason": "again"})
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing-to-do")
    who = "client:operator-program"
    assert acted(story.database) == [(who, "hold"), (who, "requeue")]


def test_send_again(program: Program, story: Story) -> None:
    path = done(program, story) + "/send"
    assert program.ask(path, {"reason": "x", "destination": "nowhere"}).json()["code"] == "no-destination"
    assert program.ask(path, {"reason": "lost there", "destination": "pacs"}).json()["changed"] == 2
    with story.database.write() as session:
        assert set(session.execute(select(Delivery.state)).scalars()) == {DeliveryState.PENDING}
        session.execute(update(Delivery).values(state=DeliveryState.SENDING))
    assert program.ask(path, {"reason": "again"}).json()["code"] == "changed"
    assert len(acted(story.database)) == 1


def test_a_repeated_request_is_done_once(program: Program, story: Story) -> None:
    path = done(program, story) + "/send"
    body, key = {"reason": "lost there"}, {"Idempotency-Key": "8e03978e-40d5-43dd"}
    assert program.ask(path, body, headers=key).json() == {"changed": 2, "repeated": False}
    assert program.ask(path, body, headers=key).json() == {"changed": 2, "repeated": True}
    assert len(acted(story.database)) == 1
    for other_path, other_body in ((path, {"reason": "other"}), (path.replace("/send", "/hold"), body)):
        answer = program.ask(other_path, other_body, headers=key)
        assert (answer.status_code, answer.json()["code"]) == (422, "key-reused")
    other = program.token("other", Role.OPERATOR)
    assert program.ask(path, body, headers=key, token=other).json()["repeated"] is False
    program.browser.now = START.replace(year=2027)
    assert program.ask(path, body, headers={"Idempotency-Key": "new"}).json()["repeated"] is False
    assert program.ask(path, body, headers=key).json()["repeated"] is False


def test_reasons_are_one_line(program: Program, story: Story) -> None:
    path = done(program, story) + "/send"
    for reason in ("", " ", "two\nlines", "x" * 201, " x", "\u202e"):
        assert program.ask(path, {"reason": reason}).json()["code"] == "invalid", reason
    assert program.ask(path, {}).status_code == 422
    assert acted(story.database) == []


# the node


def test_overview_and_destinations(program: Program, story: Story) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900 refused")
    program.browser.now = story.now
    found = program.ask("/health").json()
    assert [check["name"] for check in found["checks"] if check["ok"]] == [
        "database",
        "intake",
        "worker",
        "disk",
        "models",
    ]
    found = program.ask("/overview").json()
    assert (found["latency"]["analysis"]["p50_s"], found["latency"]["delivery"]) == (60.0, None)
    assert found["alarms"][0]["todo"]
    assert found["work"]["today"]["analysed"] == 1
    assert found["alarms"][0]["study_uid"] == story.study_uid
    assert found["disk"]["free"] > found["disk"]["reserve"]
    assert "PID-1" not in str(found)
    destination = program.ask("/destinations").json()["destinations"][0]
    assert (destination["name"], destination["address"]) == ("pacs", "A at h:104")
    assert (destination["waiting"]["failed"], destination["traffic"]["failed"]) == (2, 2)
    assert destination["last_error"]["status"] == "A900 refused"
    assert (destination["position"], destination["away"]) == ("closed", None)


def test_what_an_operator_does_with_a_destination(
    program: Program, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900 refused")
    program.browser.now, program.role = story.now, Role.OPERATOR
    one, body = "/destinations/pacs", {"reason": "it is back"}
    assert program.ask("/failures").json()["groups"][0]["count"] == 2
    assert program.ask(f"{one}/resend", body).json()["changed"] == 2
    assert program.ask(f"{one}/resend", body).json()["code"] == "nothing-to-do"
    analysed(Story(story.database, story.directory, "b", story.now)).deliver(
        DeliveryState.FAILED, status="0122 class"
    )
    failed = {"place": "pacs", "cause": program.ask("/failures").json()["groups"][0]["cause"]}
    assert program.ask("/failures/retry", body | failed | {"cause": "no"}).json()["code"] == "nothing-to-do"
    assert program.ask("/failures/retry", body | failed).json() == {"changed": 2, "repeated": False}
    for _ in range(2):
        assert program.ask(f"{one}/retry", body, headers={"Idempotency-Key": "k"}).json()["changed"] == 1
    found = [Finding(Level.GOOD, "destination pacs", "it answers")]
    monkeypatch.setattr("pacs_node.web.api.exchange.echo_destination", lambda *_: found)
    monkeypatch.setattr("pacs_node.web.api.exchange.look_at_destination", lambda *_: found)
    for verb in ("echo", "doctor"):
        answer = program.ask(f"{one}/{verb}", method="POST").json()
        assert (answer["subject"], answer["whole"]) == (f"{verb} pacs", True)
        assert answer["findings"] == [
            {"level": "ok", "about": "destination pacs", "sentence": "it answers", "todo": ""}
        ]
        assert program.ask(f"/destinations/x/{verb}", method="POST").json()["code"] == "no-destination"
    assert [action for _, action in acted(story.database)] == [
        "send failed",
        "send failed",
        "try again",
        "echo",
        "doctor",
    ]


def test_held_studies(program: Program, story: Story) -> None:
    story.receive().close().queue()
    program.browser.now = story.now
    program.ask(f"/studies/{story.study_uid}/hold", {"reason": "wrong patient"})
    found = program.ask("/held-studies").json()
    assert [(row["study_uid"], row["reason"]) for row in found["held"]] == [
        (story.study_uid, "wrong patient")
    ]
    assert found["doubtful"] == []


def test_settings_without_secrets(program: Program) -> None:
    tables = {table["title"]: table for table in program.ask("/settings").json()["tables"]}
    line = next(line for line in tables["[web]"]["lines"] if line["key"] == "api_requests_per_minute")
    assert (line["value"], line["is_default"]) == ("600", True)
    assert tables["[[destinations]]"]["lines"]


def test_verdicts_are_told(program: Program, story: Story) -> None:
    path = done(program, story)
    assert program.ask(path).json()["feedback"] == {"job_id": 1, "nodules": [], "missed": []}
    new = NewVerdict("1.2.3", VerdictKind.MISSED, text="behind the heart", changes={"slice": 7})
    with story.database.write() as session:
        feedback.record(session, session.get_one(Job, 1), new, at=story.now, actor="user:ann")
    missed = program.ask(path).json()["feedback"]["missed"][0]
    assert missed["verdicts"][0]["actor"] == "user:ann"
    assert (missed["verdicts"][0]["kind"], missed["verdicts"][0]["text"]) == ("missed", "behind the heart")


def test_missed_studies_and_models(program: Program) -> None:
    facts = {"archive": "pacs", "study_uid": "1.2", "accession_number": "A", "study_date": "20260301"}
    with program.browser.database.write() as session:
        session.add(
            MissedStudy(**facts, description="d", modalities="CT\\SR", noticed_at=START, seen_at=START)
        )
        session.add(Errand(name="missed studies of pacs", due_at=START, status="well"))
    found = program.ask("/missed-studies").json()
    assert found["total"] == 1
    assert found["studies"][0] | facts == found["studies"][0]
    assert found["studies"][0]["modalities"] == ["CT", "SR"]
    assert found["searches"][0]["status"] == "well"
    assert program.ask("/missed-studies/search", method="POST").json()["code"] == "no-archive"
    models = program.ask("/models").json()
    assert models["profile"] == "reference"
    cadx = next(model for model in models["models"] if model["name"] == "reference-cadx")
    assert (cadx["state"], cadx["profile"]) == ("present", "reference")
    assert len(cadx["sha256"]) == 64


def test_verdicts_of_a_program(program: Program, story: Story) -> None:
    """The same rules as on the page, once for each key, and in the record under the name of the client."""
    path, pattern = f"/studies/{story.study_uid}", RESULT["findings"][0]
    analysed(story, RESULT | {"findings": [pattern | {"tracking_uid": "1.2.9"}]})
    program.browser.now = story.now
    Summaries(story.database, story.directory).tick()
    one = {"job_id": 1, "tracking_uid": "1.2.9"}

    def judge(**said: Any) -> Any:
        key = str(sorted(said.items())).replace(" ", "")
        answer = program.ask(f"{path}/verdicts", one | said, headers={"Idempotency-Key": key})
        return answer.json() if answer.status_code == 200 else answer.json()["code"]

    assert judge(kind="accepted") == {"changed": 1, "repeated": False}
    assert judge(kind="accepted") == {"changed": 1, "repeated": True}
    assert judge(kind="rejected", reason="vessel", text="it branches")["changed"] == 1
    edit = {"long_axis_mm": 14.24, "attenuation": pattern["attenuation"], "suspicion": 4}
    assert judge(kind="edited", **edit)["changed"] == 1
    missed = {"kind": "missed", "tracking_uid": None, "slice": 7, "text": "left apex"}
    assert judge(**missed)["changed"] == 1
    wrong = (
        {"kind": "edited"},
        {"kind": "rejected"},
        {"kind": "accepted", "reason": "scar"},
        {"kind": "accepted", "suspicion": 2},
        {"kind": "accepted", "slice": 2},
        {"kind": "accepted", "tracking_uid": None},
        {"kind": "accepted", "tracking_uid": "1.2.10"},
        {"kind": "missed", "tracking_uid": None, "text": "no slice"},
    )
    assert {judge(**said) for said in wrong} == {"verdict"}
    assert (judge(kind="accepted", job_id=2), judge(kind="lost")) == ("no-result", "invalid")
    assert judge(kind="rejected", reason="not_stated") == "invalid"
    found = program.ask(path).json()["feedback"]
    assert [(line["kind"], line["source"]) for line in found["nodules"][0]["verdicts"]] == [
        ("edited", "api"),
        ("rejected", "api"),
        ("accepted", "api"),
    ]
    assert found["nodules"][0]["verdicts"][0]["detail"].startswith("long axis 14.2 mm, malignancy 4 of 5")
    (lost,) = found["missed"]
    assert judge(kind="withdrawn", tracking_uid=lost["tracking_uid"])["changed"] == 1
    with story.database.read() as session:
        query = select(AuditEvent).where(AuditEvent.event == "verdict")
        rows = session.execute(query).scalars().all()
    assert {row.actor for row in rows} == {"client:administrator-program"}
    assert len(rows) == 5
    assert "it branches" not in str([row.objects for row in rows])
    page = program.ask("/verdicts?limit=4").json()
    assert [row["kind"] for row in page["verdicts"]] == ["accepted", "rejected", "edited", "missed"]
    assert [row["holds"] for row in page["verdicts"]] == [False, False, True, False]
    rest = program.ask(f"/verdicts?limit=4&cursor={page['next_cursor']}").json()
    assert [(row["kind"], row["study_uid"]) for row in rest["verdicts"]] == [("withdrawn", story.study_uid)]
    assert (rest["next_cursor"], rest["verdicts"][0]["actor"]) == (None, "client:administrator-program")


# the record


def test_use_drift_and_agreement_of_models(program: Program, story: Story) -> None:
    finding = RESULT["findings"][0] | {"tracking_uid": "1.2.9"}
    analysed(story, RESULT | {"findings": [finding]})
    program.browser.now = story.now
    Summaries(story.database, story.directory).tick()
    use = program.ask("/models/use").json()
    assert [(row["pipeline_version"], row["analysed"]) for row in use["versions"]] == [(VERSION, 1)]
    assert (use["weeks"][-1]["analysed"], use["weeks"][-1]["findings"]) == (1, 1)
    assert len(use["weeks"][-1]["scores"]) == len(use["score_edges"]) + 1
    assert [row["patient_id"] for row in listed(program, "least_malignancy=0.4")] == ["PID-1"]
    assert listed(program, "least_malignancy=0.5") == []
    assert [row["patient_id"] for row in listed(program, "attenuation=part-solid")] == ["PID-1"]
    assert listed(program, "attenuation=part-solid&least_diameter_mm=20") == []
    assert program.ask("/models/drift").json() == {"reading": None}
    assert program.ask("/models/agreement").json() == {"weeks": []}
    new = NewVerdict("1.2.3", VerdictKind.MISSED, text="behind the heart", changes={"slice": 7})
    with story.database.write() as session:
        feedback.record(session, session.get_one(Job, 1), new, at=story.now, actor="user:ann")
    assert program.ask("/models/agreement").json()["weeks"][0]["missed"] == 1


def listed(program: Program, query: str) -> list[dict[str, Any]]:
    studies: list[dict[str, Any]] = program.ask(f"/studies?{query}").json()["studies"]
    return studies


def test_audit_events(program: Program, story: Story) -> None:
    done(program, story)
    program.role = Role.AUDITOR
    page = program.ask("/audit-events?event=delivery&limit=4").json()
    rest = program.ask(f"/audit-events?event=delivery&limit=4&cursor={page['next_cursor']}").json()
    numbers = [row["seq"] for row in page["events"] + rest["events"]]
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 6
    assert rest["next_cursor"] is None
    assert program.ask(f"/audit-events?study_uid={story.study_uid}&since=2026-03-02T08:01:00Z").json()[
        "events"
    ]
    assert program.ask("/audit-events?until=2026-03-02T08:00:00%2B01:00").json()["events"] == []
    program.ask("/me", token="wrong")
    failed = program.ask("/audit-events?failures=true").json()["events"]
    assert [(row["event"], row["outcome"]) for row in failed] == [("login refused", 4)]
    assert "PID-1" not in program.ask("/audit-events").text


def test_export(program: Program, story: Story) -> None:
    done(program, story)
    for form in FORMATS:
        answer = program.ask(f"/audit-events/export?format={form}&event=delivery")
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="audit-20260302T')
        assert len(answer.text.splitlines()) == 6 + (form == "csv"), form
    whole = program.ask("/audit-events/export?format=csv").text.splitlines()
    assert [int(row["seq"]) for row in csv.DictReader(whole)] == list(range(1, len(whole)))
    assert program.ask("/audit-events/export?format=xlsx").json()["code"] == "invalid"


def test_check_of_the_chain(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with program.browser.database.write() as session:
        for number in range(3):
            audit.record(session, audit.Event.JOB_CHANGED, at=START, actor="tester", number=number)
    found = program.ask("/audit-events/check", method="POST").json()
    assert (found["whole"], found["first_bad"], found["rows"]) == (True, None, 4)
    with program.browser.database.write() as session:
        connection = session.connection()
        connection.exec_driver_sql("DROP TRIGGER audit_event_no_update")
        connection.exec_driver_sql("UPDATE audit_event SET actor = 'x' WHERE seq = 2")
    found = program.ask("/audit-events/check", method="POST").json()
    assert (found["whole"], found["first_bad"]) == (False, 2)
    monkeypatch.setattr("pacs_node.audit_review.MOST_CHECKED", 3)
    found = program.ask("/audit-events/check", method="POST").json()
    assert (found["whole"], found["first"], found["rows"]) == (True, 4, 3)
    heads = Path(program.browser.settings.audit.heads_file)
    heads.write_text("nonsense\n")
    assert program.ask("/audit-events/check", method="POST").json()["code"] == "record"


# accounts and tokens


def test_accounts(program: Program) -> None:
    made = program.ask("/users", {"name": "alice", "role": "viewer"})
    assert (made.status_code, made.json()["name"], len(made.json()["password"])) == (201, "alice", 20)
    assert program.ask("/users", {"name": "alice", "role": "viewer"}).json()["code"] == "account"
    assert program.ask("/users", {"name": "Alice!", "role": "viewer"}).json()["code"] == "invalid"
    change = {"role": "auditor", "disabled": True}
    for _ in range(2):
        found = program.ask("/users/alice", change, method="PATCH").json()
        assert (found["role"], found["disabled_at"] is None) == ("auditor", False)
    assert program.ask("/users/alice", {"disabled": False}, method="PATCH").json()["disabled_at"] is None
    assert program.ask("/users/alice", {}, method="PATCH").json()["code"] == "invalid"
    assert program.ask("/users/bob", change, method="PATCH").json()["code"] == "no-account"
    assert program.ask("/users/alice/reset", method="POST").json()["password"] != made.json()["password"]
    assert program.ask("/users/bob/reset", method="POST").json()["code"] == "no-account"
    assert program.ask("/users", {"name": "root", "role": "administrator"}).status_code == 201
    assert program.ask("/users/root", {"disabled": True}, method="PATCH").json()["code"] == "account"
    assert [row["name"] for row in program.ask("/users").json()["accounts"]] == ["alice", "root"]
    assert "argon2" not in program.ask("/users").text
    with program.browser.database.read() as session:
        query = select(AuditEvent).where(AuditEvent.actor == "client:administrator-program")
        changes = [row.objects.get("change") for row in session.execute(query).scalars()]
        assert session.execute(select(Account.role).where(Account.name == "alice")).scalar_one() == "auditor"
    assert changes == ["added", "role", "disabled", "enabled", "password reset", "added"]


def test_tokens(program: Program) -> None:
    made = program.ask("/tokens", {"client": "ris", "role": "operator", "expires_at": "2026-03-03T00:00:00Z"})
    secret, number = made.json()["secret"], made.json()["id"]
    assert made.status_code == 201
    assert program.ask("/me", token=secret).json()["role"] == "operator"
    row = next(row for row in program.ask("/tokens").json()["tokens"] if row["id"] == number)
    assert (row["client"], row["prefix"], row["created_by"]) == (
        "ris",
        secret[:12],
        "client:administrator-program",
    )
    assert secret not in program.ask("/tokens").text
    for _ in range(2):
        assert program.ask(f"/tokens/{number}", method="DELETE").json()["revoked_at"]
    assert program.ask("/me", token=secret).status_code == 401
    assert program.ask("/tokens/999", method="DELETE").json()["code"] == "no-such-token"
    late = {"client": "ris", "role": "viewer", "expires_at": "2026-03-01T00:00:00Z"}
    assert program.ask("/tokens", late).json()["code"] == "account"
    assert program.ask("/tokens", late | {"expires_at": "2027-01-01"}).json()["code"] == "invalid"
    with program.browser.database.read() as session:
        query = select(AuditEvent).where(AuditEvent.actor == "client:administrator-program")
        changes = [row.objects.get("change") for row in session.execute(query).scalars()]
    assert changes == ["token added", "token revoked"]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Path, Database]]:
    config = tmp_path / "pacs-node.toml"
    config.write_text(render_settings())
    database = Database(sqlite_url(tmp_path / "pacs-node-data"))
    yield config, database
    database.dispose()


def test_tokens_on_the_command_line(opened: tuple[Path, Database]) -> None:
    config, database = opened

    def run(verb: str, *words: str) -> tuple[int, str]:
        answer = CliRunner().invoke(tokens, [verb, "--config", str(config), *words])
        return answer.exit_code, answer.output

    status, text = run("add", "ris", "--role", "viewer", "--expires", "2100-01-01")
    secret = text.splitlines()[0]
    assert (status, secret.startswith("pntok_"), "not shown again" in text) == (0, True, True)
    assert run("add", "ris", "--role", "operator")[0] == 0
    listed = run("list")[1].splitlines()
    assert listed[0] == f"ris  {secret[:12]}...  viewer, valid, expires 2100-01-01 00:00 UTC, last used never"
    assert "operator, valid, last used never" in listed[1]
    assert run("revoke", "ris", "--token", secret[:12]) == (0, "ris: 1 revoked\n")
    assert run("revoke", "ris") == (0, "ris: 1 revoked\n")
    assert run("revoke", "ris")[0] == 1
    assert run("add", "ris", "--role", "viewer", "--expires", "2020-01-01")[0] == 1
    with database.read() as session:
        rows = session.execute(select(ApiToken).order_by(ApiToken.id)).scalars().all()
    assert [row.revoked_at is None for row in rows] == [False, False]
    assert rows[0].created_by.startswith("cli:")
