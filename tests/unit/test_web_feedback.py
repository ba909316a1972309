"""Verdicts given on the page of a study."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pacs_node.db import AuditEvent, Job, Series
from pacs_node.db_accounts import Role
from pacs_node.db_feedback import ReturnedObject, Verdict
from pacs_node.summaries import Summaries
from tests.node_story import Story, analysed
from tests.web_browser import RESULT, Browser, parse, study_path

UID = "2.25.77"


def judged_result() -> dict[str, Any]:
    result = deepcopy(RESULT)
    result["findings"][0]["tracking_uid"] = UID
    return result


@pytest.fixture
def reader(browser: Browser, story: Story) -> Browser:
    analysed(story, judged_result())
    Summaries(story.database, story.directory).tick()
    browser.role, browser.now = Role.READER, story.now
    browser.get("/")
    return browser


def judge(reader: Browser, story: Story, **form: str) -> int:
    values = {"job": str(job_id(story)), "tracking_uid": UID} | form
    return reader.post(f"{study_path(story)}/verdicts", **values).status_code


def job_id(story: Story) -> int:
    with story.database.read() as session:
        return session.execute(select(Job.id)).scalar_one()


def verdicts(story: Story) -> list[Verdict]:
    with story.database.read() as session:
        return list(session.execute(select(Verdict).order_by(Verdict.id)).scalars())


def test_accept_reject_edit_withdraw(reader: Browser, story: Story) -> None:
    assert judge(reader, story, verdict="accepted") == 303
    assert judge(reader, story, verdict="rejected", reason="vessel", text="branches") == 303
    edit = {"long_axis_mm": "14,2", "attenuation": "solid", "suspicion": "4"}
    assert judge(reader, story, verdict="edited", **edit) == 303
    found = verdicts(story)
    assert [(row.kind, row.reason) for row in found] == [
        ("accepted", None),
        ("rejected", "vessel"),
        ("edited", None),
    ]
    assert found[2].changes == {"long_axis_mm": 14.2, "attenuation": "solid", "suspicion": 4}
    assert {(row.actor, row.source) for row in found} == {("user:reader", "page")}
    page = parse(reader.get(study_path(story))).text
    assert "1 of 1 judged" in page
    assert "edited long axis 14.2 mm, solid, malignancy 4 of 5 (moderately suspicious)" in page
    assert "3 verdicts" in page
    assert "rejected vessel: branches" in page
    assert judge(reader, story, verdict="withdrawn") == 303
    assert "0 of 1 judged" in parse(reader.get(study_path(story))).text


def test_a_missed_nodule(reader: Browser, story: Story) -> None:
    said = {"verdict": "missed", "slice": "57", "text": "left apex, 6 mm"}
    assert judge(reader, story, tracking_uid="", **said) == 303
    (row,) = verdicts(story)
    assert (row.kind, row.text, row.changes) == ("missed", "left apex, 6 mm", {"slice": 57})
    assert "missed slice 57: left apex, 6 mm" in parse(reader.get(study_path(story))).text
    assert judge(reader, story, tracking_uid=row.tracking_uid, verdict="withdrawn") == 303


def test_each_verdict_is_an_event_without_its_text(reader: Browser, story: Story) -> None:
    judge(reader, story, verdict="rejected", reason="other", text="PID-1 again")
    with story.database.read() as session:
        (row,) = session.execute(select(AuditEvent).where(AuditEvent.event == "verdict")).scalars()
    assert (row.actor, row.study_uid, row.objects["address"]) == ("user:reader", story.study_uid, "127.0.0.1")
    assert (row.objects["kind"], row.objects["reason_code"]) == ("rejected", "other")
    assert "PID-1" not in str(row.objects)


@pytest.mark.parametrize(
    "form",
    [
        {"verdict": "rejected"},
        {"verdict": "rejected", "reason": "other"},
        {"verdict": "rejected", "reason": "not_stated"},
        {"verdict": "rejected", "reason": "vessel", "text": "x" * 201},
        {"verdict": "rejected", "reason": "vessel", "text": "a\nb"},
        {"verdict": "edited", "long_axis_mm": "12.34", "attenuation": "part-solid"},
        {"verdict": "edited", "long_axis_mm": "-1"},
        {"verdict": "edited", "long_axis_mm": "nan"},
        {"verdict": "edited", "long_axis_mm": "ten"},
        {"verdict": "edited", "attenuation": "wood"},
        {"verdict": "edited", "suspicion": "6"},
        {"verdict": "accepted", "tracking_uid": "2.25.1"},
        {"verdict": "missed", "slice": "1"},
        {"verdict": "missed", "text": "somewhere"},
        {"verdict": "missed", "slice": "0", "text": "somewhere"},
        {"verdict": "missed", "slice": "9" * 30, "text": "somewhere"},
        {"verdict": "withdrawn"},
        {"verdict": "perhaps"},
        {},
    ],
)
def test_odd_verdicts_are_refused_and_leave_nothing(
    reader: Browser, story: Story, form: dict[str, str]
) -> None:
    assert judge(reader, story, **form) == 400
    assert verdicts(story) == []


def test_only_results_of_the_study_are_judged(reader: Browser, story: Story) -> None:
    for form in ({"job": "99"}, {"job": ""}):
        assert judge(reader, story, verdict="accepted", **form) == 404
    assert reader.post("/studies/1.2.3/verdicts", job="1", verdict="accepted").status_code == 404


def test_viewers_see_verdicts_and_give_none(reader: Browser, story: Story) -> None:
    judge(reader, story, verdict="accepted")
    reader.role = Role.VIEWER
    reader.cookies.clear()
    page = parse(reader.get(study_path(story)))
    assert "1 of 1 judged" in page.text
    assert not [form for form in page.all("form") if "verdicts" in str(form.get("action"))]


@pytest.mark.parametrize("statement", ["UPDATE verdict SET kind = 'accepted'", "DELETE FROM verdict"])
def test_the_database_keeps_verdicts_as_they_are(reader: Browser, story: Story, statement: str) -> None:
    judge(reader, story, verdict="rejected", reason="scar")
    with pytest.raises(IntegrityError, match="append-only"), story.database.write() as session:
        session.execute(text(statement))


def test_the_page_keeps_its_rules(reader: Browser, story: Story) -> None:
    """Labels, identifiers, one heading: as `test_web_safety` asks of every page."""
    judge(reader, story, tracking_uid="", verdict="missed", slice="3", text="<b>bold</b>")
    response = reader.get(study_path(story))
    document = parse(response)
    labelled = {label["for"] for label in document.all("label")}
    fields = [*document.all("input"), *document.all("select")]
    assert all(item["id"] in labelled for item in fields if item.get("type") != "hidden")
    identifiers = [str(item["id"]) for _, item in document.elements if "id" in item]
    assert len(identifiers) == len(set(identifiers))
    assert "<b>bold" not in response.text
    assert not [item for _, item in document.elements if "style" in item]


def test_the_list_of_studies_and_the_story_tell_of_verdicts(reader: Browser, story: Story) -> None:
    assert "Radiologists" not in parse(reader.get("/studies")).text
    judge(reader, story, verdict="rejected", reason="lymph_node")
    judge(reader, story, tracking_uid="", verdict="missed", slice="3", text="apex")
    assert "Radiologists: 1 missed, 1 rejected" in parse(reader.get("/studies")).text
    assert "verdict user:reader, rejected, lymph node" in parse(reader.get(study_path(story))).text


def test_what_came_back_is_shown(reader: Browser, story: Story) -> None:
    with story.database.write() as session:
        series = session.execute(select(Series)).scalar_one()
        row = ReturnedObject(instance_id=series.instances[0].id, series_id=series.id, looked_at=story.now)
        row.job_id, row.n_verdicts, row.status = job_id_of(session), 2, "read <b>"
        session.add(row)
    response = reader.get(study_path(story))
    assert "CT from PACS, 2 verdicts read <b>;" in parse(response).text
    assert "read <b>" not in response.text


def job_id_of(session: Session) -> int:
    return session.execute(select(Job.id)).scalar_one()
