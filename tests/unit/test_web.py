from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text, update

from pacs_node.config import parse_settings
from pacs_node.db import Artifact, Base, Database, Study
from pacs_node.states import DeliveryState
from pacs_node.web import app as web_app
from tests.gates import gate
from tests.node_story import START, Story, analysed
from tests.web_browser import (
    RESULT,
    Browser,
    artifact_id,
    make_settings,
    parse,
    study_path,
)


def test_overview_of_an_empty_node(browser: Browser) -> None:
    page = parse(browser.get("/"))
    assert "Nothing needs attention." in page.text
    assert "None has arrived since midnight." in page.text
    assert "nothing sent yet" in page.text


def test_overview_shows_alarms_and_how_to_admit_a_caller(browser: Browser, story: Story) -> None:
    analysed(story).deliver(DeliveryState.FAILED, status="A900 refused")
    story.refuse_association("CT2", "10.0.0.7").refuse_association("OLD", "10.0.0.8", "OTHER")
    browser.now = story.now
    response = browser.get("/")
    page = parse(response)
    assert "Alarm: Delivery of SEG and SR to pacs failed: A900 refused. Correct the cause" in page.text
    assert '[[callers]] ae_title = "CT2" address = "10.0.0.7"' in page.text
    assert "It called OTHER ; this node is CTNODE . Correct the AE title at the sender." in page.text
    assert study_path(story) in [link.get("href") for link in page.all("a")]


def test_overview_without_callers_and_destinations_says_so(database: Database, tmp_path: Path) -> None:
    browser = Browser(database, parse_settings({"storage": {"directory": str(tmp_path)}}, base=tmp_path))
    page = parse(browser.get("/"))
    assert "nobody may send" in page.text
    assert "no destination" in page.text


def test_low_disk_is_an_alarm(database: Database, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, storage={"directory": str(tmp_path), "reserve_mb": 1 << 40})
    assert "images are refused" in parse(Browser(database, settings).get("/")).text


def test_list_shows_state_findings_and_delivery(browser: Browser, story: Story) -> None:
    analysed(story, RESULT).deliver(DeliveryState.COMMITTED)
    browser.now = story.now
    page = parse(browser.get("/studies")).text
    assert "Doe, Jane PID-1" in page
    assert "CT Thorax 2026-03-02 · CT · 3 images" in page
    assert "analysed: 1 finding" in page
    assert f"visible in PACS verified {story.now.astimezone():%H:%M:%S}" in page


def test_list_shows_why_not(browser: Browser, story: Story) -> None:
    reason = ("TOO_THICK", "Slices are 8.0 mm thick.")
    story.receive().close().set_aside(1, *reason).queue(refusal=reason).start()
    story.finish(reason=reason, kinds=("sr",)).deliver(DeliveryState.PENDING, status="connection refused")
    browser.now = story.now
    page = parse(browser.get("/studies")).text
    assert "! not analysed TOO_THICK: Slices are 8.0 mm thick." in page
    assert "delivery failing pacs: connection refused; next attempt" in page


def test_times_of_other_days_show_the_day_and_utc_in_the_tooltip(browser: Browser, story: Story) -> None:
    story.receive(1)
    browser.now = START.replace(year=2027)
    times = parse(browser.get("/studies")).all("time")
    assert {"datetime": "2026-03-02T08:00:00+00:00", "title": "2026-03-02 08:00:00 UTC"} in times
    assert f"{START.astimezone():%Y-%m-%d %H:%M:%S}" in parse(browser.get("/studies")).text


@pytest.fixture
def many(database: Database) -> Database:
    with database.write() as session:
        session.add_all(
            Study(
                study_uid=f"1.2.{number}",
                patient_id=f"P{number:03d}",
                patient_name="A&B^" + ("Even" if number % 2 == 0 else "Odd"),
                accession_number="",
                study_date="",
                description="",
                first_received_at=START,
            )
            for number in range(120)
        )
    return database


def walk(browser: Browser, path: str) -> list[list[str]]:
    """Links to studies on each page, following "Older studies"."""
    pages = []
    while True:
        document = parse(browser.get(path))
        links = [str(link["href"]) for link in document.all("a")]
        pages.append([link for link in links if link.startswith("/studies/")])
        older = [str(link["href"]) for link in document.all("a") if link.get("rel") == "next"]
        if not older:
            return pages
        path = older[0]


def test_pages_follow_each_other(browser: Browser, many: Database) -> None:
    pages = walk(browser, "/studies")
    assert [len(page) for page in pages] == [50, 50, 20]
    assert [link for page in pages for link in page] == [f"/studies/1.2.{n}" for n in range(119, -1, -1)]


def test_pages_of_a_search_keep_the_search(browser: Browser, many: Database) -> None:
    pages = walk(browser, "/studies?q=a%26b+even")
    assert [len(page) for page in pages] == [50, 10]
    assert "No study fits this filter." in parse(browser.get("/studies?q=nobody")).text


@pytest.mark.parametrize(
    "query", ["q=%00", "q=%FF%FE", "q=" + "x" * 5000, "q=%25&after=5", "after=" + "9" * 19]
)
def test_odd_searches_are_answered(browser: Browser, many: Database, query: str) -> None:
    assert browser.get(f"/studies?{query}").status_code == 200


@pytest.mark.parametrize("after", ["x", "-1", "1e5", "", "9" * 20, "²"])
def test_wrong_page_number_is_refused(browser: Browser, after: str) -> None:
    assert browser.get(f"/studies?after={after}").status_code == 400


def test_study_page_tells_the_whole_story(browser: Browser, story: Story) -> None:
    story.receive(3).receive(1, series=2, modality="SR").close().close(2)
    story.set_aside(2, "NOT_CT", "It is a report.").queue().start().finish(result=RESULT)
    story.deliver(DeliveryState.COMMITTED)
    browser.now = story.now
    response = browser.get(study_path(story))
    page = parse(response)
    for expected in (
        "Doe, Jane",
        "133 slices of 512 x 512",
        "N1 right upper lobe part-solid 12.3 \u00d7 9.0 10.7 612 -312 97 % 41 % image alone",
        "spiculation marked 80 %",
        "emphysema present (70 %)",
        "Automatic result of job 1. Not reviewed by a physician.",
        "warning Slices are thick.",
        "set aside NOT_CT: It is a report.",
        "analysis started job 1, attempt 1, after 4.0 s in the queue",
        "analysed job 1 1 min 00 s",
        "SEG job 1 pacs ✓ visible in PACS found 1",
        "Sensitivity 50 % of 4.",
        "sha256 " + "ab" * 32,
        "load 1.5, analyse 40.2",
    ):
        assert expected in page.text, expected
    assert page.all("img")[1]["alt"] == "Key slice with the outline of nodule N1, right upper lobe"
    assert "data-refresh" not in page.all("body")[0]


def test_page_of_an_unfinished_study_is_loaded_again(browser: Browser, story: Story) -> None:
    story.receive().close().queue()
    assert parse(browser.get(study_path(story))).all("body")[0]["data-refresh"] == "10"


def test_not_analysed_study_makes_no_statement(browser: Browser, story: Story) -> None:
    reason = ("GAP", "A slice is missing.")
    story.receive().close().set_aside(1, *reason).queue(refusal=reason).start()
    result = {"status": "not_analysed", "reason": {"code": "GAP", "sentence": "A slice is missing."}}
    story.finish(reason=reason, kinds=("sr", "json"), result=result)
    page = parse(browser.get(study_path(story))).text
    assert "not analysed GAP: A slice is missing. No statement is made on the presence" in page
    assert "No nodule was found" not in page


def test_no_finding_is_not_called_healthy(browser: Browser, story: Story) -> None:
    analysed(story, {"status": "analysed", "findings": []})
    page = parse(browser.get(study_path(story))).text
    assert "analysed: no finding" in page
    assert "No nodule was found by this software. This does not exclude nodules." in page


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '"analysed"',
        "[" * 100_000,
        '{"status": 1}',
        '{"status": "analysed"}',
        '{"status": "analysed", "findings": {}, "models": 3, "series": [], "timings_s": "no"}',
        '{"status": "analysed", "findings": [null, 1, [], {}, {"measurements": [], "features": [1]}]}',
        '{"status": "analysed", "findings": [{"measurements": {"long_axis_mm": "9", "volume_mm3": NaN}}]}',
        '{"status": "analysed", "findings": [{"detection_probability": 1' + "0" * 400 + "}]}",
        '{"status": "analysed", "series": {"analysed": {"shape": [1, "2", 3], "spacing_mm": [null]}}}',
        '{"status": "analysed", "models": [{"performance": "good"}], "warnings": [1], "provenance": null}',
    ],
)
def test_any_result_file_can_be_shown(browser: Browser, story: Story, content: str) -> None:
    analysed(story, content)
    for path in (study_path(story), "/studies"):
        assert browser.get(path).status_code == 200


def test_removed_results_are_said_to_be_removed(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    number = artifact_id(story, "sr")
    with story.database.write() as session:
        session.execute(update(Artifact).values(path=None))
    page = parse(browser.get(study_path(story)))
    assert "SR removed by retention" in page.text
    assert not [link for link in page.all("a") if str(link["href"]).startswith("/artifacts/")]
    refused = browser.get(f"/artifacts/{number}")
    assert (refused.status_code, "retention" in refused.text) == (404, True)


# health


def test_health(database: Database, tmp_path: Path) -> None:
    with gate() as port:
        browser = Browser(database, make_settings(tmp_path, listener={"port": port}))
        assert browser.get("/health/live").json() == {"status": "live"}
        ready = browser.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    gone = browser.get("/health/ready")
    why = f"nobody listens on port {port}"
    assert (gone.status_code, gone.json()["checks"]["listener"]) == (503, {"ok": False, "why": why})
    assert ready.json()["checks"]["database"] == {"ok": True}


def test_not_ready_with_a_full_disk(database: Database, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, storage={"directory": str(tmp_path), "reserve_mb": 1 << 40})
    response = Browser(database, settings).get("/health/ready")
    assert (response.status_code, response.json()["checks"]["disk"]["ok"]) == (503, False)


def test_not_ready_without_a_database(browser: Browser) -> None:
    with browser.database.write() as session:
        session.execute(text("ALTER TABLE study RENAME TO gone"))
    response = browser.get("/health/ready")
    assert response.status_code == 503
    assert response.json()["checks"]["database"] == {
        "ok": False,
        "why": "it doesn't answer (OperationalError)",
    }
    page = browser.get("/studies")
    assert (page.status_code, "database doesn't answer" in parse(page).text) == (503, True)


def test_not_ready_without_the_directory(database: Database, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "gone")
    response = Browser(database, settings).get("/health/ready")
    assert response.json()["checks"]["disk"] == {
        "ok": False,
        "why": "the storage directory can't be read (FileNotFoundError)",
    }


# the server


def test_server_runs_until_it_is_stopped(tmp_path: Path, free_port: int) -> None:
    settings = make_settings(tmp_path, web={"port": free_port})
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = threading.Event()
    seen: list[httpx.Response] = []

    def visit() -> None:
        deadline = time.monotonic() + 20
        with httpx.Client(base_url=f"http://127.0.0.1:{free_port}") as client:
            while not seen and time.monotonic() < deadline:
                try:
                    seen.append(client.get("/health/live"))
                except httpx.TransportError:
                    time.sleep(0.05)
        stop.set()

    visitor = threading.Thread(target=visit)
    visitor.start()
    web_app.run(settings, stop)
    visitor.join()
    assert seen[0].status_code == 200
    assert "server" not in seen[0].headers
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_taken_port_is_an_error(tmp_path: Path, free_port: int) -> None:
    settings = make_settings(tmp_path, web={"port": free_port})
    taken = web_app._listen(settings.web)
    try:
        with pytest.raises(OSError, match="in use"):
            web_app.run(settings, threading.Event())
    finally:
        taken.close()


def test_page_loads_no_torch() -> None:
    code = "import sys, pacs_node.web.app; print('torch' in sys.modules, 'highdicom' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert loaded.stdout.split() == ["False", "False"]


def test_views_change_nothing_but_the_audit_record(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    browser.log_in()
    before = contents(browser.database)
    for path in ("/", "/studies", study_path(story), "/audit", "/users", "/password"):
        assert browser.get(path).status_code == 200
    # nobody listens here
    assert browser.get("/health/ready").status_code == 503
    assert browser.post("/audit").status_code == 200
    after = contents(browser.database)
    assert {name for name in after if after[name] != before[name]} == {"audit_event"}


def contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    with database.read() as session:
        return {
            table.name: [tuple(row) for row in session.execute(table.select()).all()]
            for table in Base.metadata.sorted_tables
        }
