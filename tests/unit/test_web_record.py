"""Actions on a study, and the audit record on the page."""

from __future__ import annotations

import csv
import json

import pytest
from sqlalchemy import select, update

from pacs_node import audit, audit_chain
from pacs_node.audit_export import FORMATS
from pacs_node.db import AuditEvent, Database, Delivery, Job
from pacs_node.db_accounts import Role
from pacs_node.states import DeliveryState, JobState
from tests.node_story import START, Story, analysed
from tests.web_browser import Browser, parse, study_path

REASON = "the scanner's clock was wrong <b>"


def act(browser: Browser, story: Story, action: str, **form: str) -> int:
    """Send a form of the study page; return the status."""
    browser.now = story.now
    browser.log_in()
    return browser.post(f"{study_path(story)}/{action}", **({"reason": REASON} | form)).status_code


def actions(database: Database) -> list[AuditEvent]:
    with database.read() as session:
        query = select(AuditEvent).where(AuditEvent.event == "operator action")
        return list(session.execute(query).scalars())


def job_state(story: Story) -> JobState:
    with story.database.read() as session:
        return session.execute(select(Job.state)).scalar_one()


# actions


def test_hold_and_requeue(browser: Browser, story: Story) -> None:
    story.receive().close().queue()
    browser.role = Role.OPERATOR
    assert act(browser, story, "hold") == 303
    assert job_state(story) is JobState.CANCELLED
    page = parse(browser.get(study_path(story))).text
    assert f"held: {REASON}" in page
    assert f"operator operator: hold, {REASON}" in page
    assert "study viewed" not in page
    assert act(browser, story, "requeue") == 303
    assert job_state(story) is JobState.QUEUED
    rows = actions(browser.database)
    assert [(row.actor, row.objects["action"], row.objects["reason"]) for row in rows] == [
        ("user:operator", "hold", REASON),
        ("user:operator", "requeue", REASON),
    ]
    assert {row.study_uid for row in rows} == {story.study_uid}


def test_hold_takes_the_job_from_its_worker(browser: Browser, story: Story) -> None:
    story.receive().close().queue().start()
    assert act(browser, story, "hold") == 303
    with story.database.read() as session:
        assert session.execute(select(Job.lease_token)).scalar_one() is None


def test_results_are_sent_again(browser: Browser, story: Story) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900 refused")
    assert act(browser, story, "send", destination="pacs") == 303
    with story.database.read() as session:
        assert set(session.execute(select(Delivery.state)).scalars()) == {DeliveryState.PENDING}
    assert actions(browser.database)[0].objects["destination"] == "pacs"


IMPOSSIBLE: tuple[tuple[str, dict[str, str], int], ...] = (
    ("requeue", {}, 409),
    ("hold", {}, 409),
    ("send", {"destination": "nowhere"}, 400),
    ("requeue", {"reason": " "}, 400),
    ("hold", {"reason": "x" * 201}, 400),
    ("send", {"reason": "two\nlines"}, 400),
    ("delete", {}, 404),
)


def test_what_can_not_be_done_leaves_nothing(browser: Browser, story: Story) -> None:
    analysed(story).deliver(DeliveryState.COMMITTED)
    for action, form, status in IMPOSSIBLE:
        assert act(browser, story, action, **form) == status, (action, form)
    assert actions(browser.database) == []


def offered(browser: Browser, story: Story) -> set[str]:
    """The last part of the address of each button among the actions."""
    page = parse(browser.get(study_path(story)))
    start = f"{study_path(story)}/"
    addresses = [attributes.get("formaction") or "" for tag, attributes in page.elements if tag == "button"]
    return {address.removeprefix(start) for address in addresses if address.startswith(start)}


def test_only_what_the_state_allows_is_offered(browser: Browser, story: Story) -> None:
    browser.log_in()
    story.receive()
    assert offered(browser, story) == set()
    assert "Nothing can be done with this study now" in browser.get(study_path(story)).text
    story.close().queue()
    assert offered(browser, story) == {"hold"}
    assert act(browser, story, "hold") == 303
    assert offered(browser, story) == {"requeue"}
    assert act(browser, story, "requeue") == 303
    story.start()
    assert offered(browser, story) == {"hold"}
    story.finish()
    story.deliver(DeliveryState.COMMITTED)
    assert offered(browser, story) == {"send"}


def test_a_refusal_stands_on_the_page_of_the_study(browser: Browser, story: Story) -> None:
    analysed(story).deliver(DeliveryState.COMMITTED)
    browser.now = story.now
    browser.log_in()
    for action, reason, status in (("requeue", REASON, 409), ("hold", REASON, 409), ("send", "x" * 201, 400)):
        answer = browser.post(f"{study_path(story)}/{action}", reason=reason)
        page = parse(answer)
        assert answer.status_code == status
        assert story.study_uid in page.text
        (kept,) = [attributes for tag, attributes in page.elements if attributes.get("name") == "reason"]
        assert kept["value"] == reason
        assert "refused" in page.text
        assert study_path(story) in [attributes.get("href") for _, attributes in page.elements]
        assert not any("data-refresh" in attributes for _, attributes in page.elements)
    assert (
        "No analysis of this study has failed"
        in browser.post(f"{study_path(story)}/requeue", reason=REASON).text
    )
    assert actions(browser.database) == []


def test_what_is_being_sent_is_left_alone(browser: Browser, story: Story) -> None:
    analysed(story)
    with story.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.SENDING))
    assert act(browser, story, "send") == 409
    assert actions(browser.database) == []


def test_unknown_study_can_not_be_changed(browser: Browser) -> None:
    browser.log_in()
    assert browser.post("/studies/1.2.3/hold", reason=REASON).status_code == 404


def test_only_operators_see_the_actions(browser: Browser, story: Story) -> None:
    analysed(story)
    for role in Role:
        browser.role = role
        browser.log_in()
        shown = "Send results again" in browser.get(study_path(story)).text
        assert shown is (role in {Role.OPERATOR, Role.ADMINISTRATOR})


# the record


@pytest.fixture
def auditor(browser: Browser, story: Story) -> Browser:
    analysed(story).deliver(DeliveryState.COMMITTED)
    browser.role = Role.AUDITOR
    browser.now = story.now
    browser.log_in()
    return browser


def rows_of(browser: Browser, query: str = "") -> list[str]:
    """First words of each row of the page."""
    text = browser.get(f"/audit{query}").text
    return [part.split("</td>")[0] for part in text.split('data-name="Row" class="n">')[1:]]


def test_the_record_is_shown_the_newest_first(auditor: Browser) -> None:
    numbers = [int(row) for row in rows_of(auditor)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[-1] == 1
    page = parse(auditor.get("/audit")).text
    assert "audit record read 110101 user:auditor" in page
    assert "PID-1" not in page


FILTERS = (
    ("?event=delivery", "delivery", 6),
    ("?event=job&actor=worker", "job", 2),
    ("?study=1.2.3", "", 0),
    ("?outcome=failed", "", 0),
    ("?since=2026-03-03", "", 0),
    ("?until=2026-03-01", "", 0),
    ("?since=2026-03-02&until=2026-03-02&event=series+arrived", "series arrived", 1),
)


def test_filters(auditor: Browser) -> None:
    for query, event, count in FILTERS:
        text = parse(auditor.get(f"/audit{query}")).text
        assert len(rows_of(auditor, query)) == count, query
        assert (f"{event} 1101" if count else "No row fits.") in text, query


def test_wrong_filters_are_refused(auditor: Browser) -> None:
    for query in (
        "since=today",
        "until=2026-02-30",
        "until=9999-12-31",
        "outcome=good",
        "before=x",
        "before=-1",
        "before=²",
    ):
        assert auditor.get(f"/audit?{query}").status_code == 400, query


def test_pages_of_the_record_follow_each_other(auditor: Browser) -> None:
    with auditor.database.write() as session:
        for number in range(250):
            audit.record(session, audit.Event.JOB_CHANGED, at=START, actor="tester", number=number)
    seen, path = list[int](), "?actor=tester"
    while path:
        seen += [int(row) for row in rows_of(auditor, path)]
        links = parse(auditor.get(f"/audit{path}")).all("a")
        older = [str(link["href"]) for link in links if link.get("rel") == "next"]
        path = older[0].removeprefix("/audit") if older else ""
    assert len(seen) == 250
    assert seen == sorted(seen, reverse=True)


def test_check_says_whole_and_names_the_bad_row(auditor: Browser) -> None:
    assert "whole" in parse(auditor.post("/audit")).text
    with auditor.database.write() as session:
        connection = session.connection()
        names = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in names:
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        connection.exec_driver_sql("UPDATE audit_event SET actor = 'x' WHERE seq = 3")
    page = parse(auditor.post("/audit")).text
    assert "not whole First bad row: 3; its content was changed." in page


def test_check_sees_a_cut_end_by_the_noted_head(auditor: Browser, story: Story) -> None:
    with auditor.database.read() as session:
        path = story.directory / auditor.settings.audit.heads_file
        assert audit_chain.note_head(session, path, START)
    assert "1 heads noted earlier fit" in parse(auditor.post("/audit")).text
    text = path.read_text()
    path.write_text(text.replace('"seq": ', '"seq": 9'))
    assert "the record ends before it" in parse(auditor.post("/audit")).text
    path.write_text("nonsense\n")
    assert auditor.post("/audit").status_code == 409


def test_of_long_records_the_page_checks_the_end(auditor: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.audit_review.MOST_CHECKED", 3)
    page = parse(auditor.post("/audit")).text
    assert "whole 3 rows from row" in page
    assert "pacs-node audit verify checks the rows before" in page


@pytest.mark.parametrize("form", list(FORMATS))
def test_export(auditor: Browser, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.audit_list._PIECE", 3)
    answer = auditor.get(f"/audit/export?format={form}&event=delivery")
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"].startswith('attachment; filename="audit-20260302T')
    assert len(answer.text.splitlines()) == 6 + (form == "csv")
    whole = auditor.get(f"/audit/export?format={form}").text.splitlines()
    with auditor.database.read() as session:
        events = [row.event for row in session.execute(select(AuditEvent).order_by(AuditEvent.seq)).scalars()]
    assert len(whole) == len(events) + (form == "csv")
    assert events[-2:] == ["audit record exported"] * 2
    if form == "jsonl":
        assert [json.loads(line)["seq"] for line in whole] == list(range(1, len(events) + 1))
    if form == "csv":
        assert {row["event"] for row in csv.DictReader(whole)} == set(events)


def test_unknown_format_is_refused(auditor: Browser) -> None:
    assert auditor.get("/audit/export?format=xlsx").status_code == 400
