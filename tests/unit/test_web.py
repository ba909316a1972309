from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import select, text, update

from pacs_node.config import Settings, parse_settings
from pacs_node.db import Artifact, Database, Study
from pacs_node.states import DeliveryState
from pacs_node.web import app as web_app
from pacs_node.web.protection import REPORT_POLICY
from pacs_node.web.text import person, visible
from tests.node_story import START, Story, analysed

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;\x00\x1b[31m\x7f\x9b\u202egpj\ud800"
)
SHOWN = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;"
    "[U+0000][U+001B][31m[U+007F][U+009B][U+202E]gpj[U+D800]"
)
RESULT: dict[str, Any] = {
    "schema_version": "1.0",
    "status": "analysed",
    "reason": None,
    "series": {
        "analysed": {
            "shape": [133, 512, 512],
            "spacing_mm": [2.5, 0.7, 0.7],
            "slice_thickness_mm": 2.5,
            "kernel": "STANDARD",
            "scanner": "Synthetic One",
        }
    },
    "findings": [
        {
            "number": 1,
            "tracking_id": "N1",
            "site": {"words": "right upper lobe"},
            "attenuation": "part-solid",
            "measurements": {
                "long_axis_mm": 12.34,
                "short_axis_mm": 9.0,
                "mean_diameter_mm": 10.67,
                "volume_mm3": 612.4,
                "mean_hu": -312.2,
            },
            "detection_probability": 0.974,
            "malignancy": {"image_only": 0.41, "fused": None},
            "features": [{"name": "spiculation", "value": 4, "meaning": "marked", "probability": 0.8}],
            "key_image": "nodule-01.png",
        }
    ],
    "observations": [{"name": "emphysema", "value": "present", "probability": 0.7}],
    "models": [
        {
            "name": "Detector",
            "version": "1.0",
            "task": "nodule-detection",
            "summary": "Finds nodules.",
            "intended_use": "Research.",
            "limits": "Small nodules.",
            "performance": ["Sensitivity 50 % of 4."],
            "weights_sha256": "ab" * 32,
        }
    ],
    "warnings": ["Slices are thick."],
    "provenance": {"pipeline_version": "classical-1.0", "replaces": ["1.2.3"]},
    "timings_s": {"load": 1.5, "analyse": 40.25},
}


@pytest.fixture
def story(database: Database, tmp_path: Path) -> Story:
    return Story(database, tmp_path)


def make_settings(directory: Path, **sections: dict[str, Any]) -> Settings:
    raw: dict[str, Any] = {
        "storage": {"directory": str(directory), "reserve_mb": 1},
        "callers": [{"ae_title": "PACS", "address": "127.0.0.1"}],
        "destinations": [{"name": "pacs", "kind": "dicom", "host": "h", "port": 104, "ae_title": "A"}],
    }
    return parse_settings(raw | sections, base=directory)


@dataclass
class Browser:
    """Asks the application without a network."""

    database: Database
    settings: Settings
    now: datetime = START

    def get(self, path: str, *, method: str = "GET", host: str | None = "127.0.0.1:8080") -> httpx.Response:
        app = web_app.make_app(self.database, self.settings, clock=lambda: self.now)
        headers = {} if host is None else {"Host": host}

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
                return await client.request(method, path, headers=headers)

        return anyio.run(ask)


@pytest.fixture
def browser(database: Database, tmp_path: Path) -> Browser:
    return Browser(database, make_settings(tmp_path))


@dataclass
class Document(HTMLParser):
    """What a browser makes of a page: elements with attributes, and the visible text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parse(response: httpx.Response) -> Document:
    document = Document()
    document.feed(response.text)
    document.close()
    return document


def study_path(story: Story) -> str:
    return f"/studies/{story.study_uid}"


def artifact_id(story: Story, kind: str) -> int:
    with story.database.read() as session:
        return session.execute(select(Artifact.id).where(Artifact.kind == kind)).scalars().first() or 0


def change_artifact(story: Story, which: str, **values: Any) -> None:
    with story.database.write() as session:
        session.execute(update(Artifact).where(Artifact.kind == which).values(**values))


# what is shown


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
    assert "Alarm: Delivery of SEG and SR to pacs failed: A900 refused Open the study" in page.text
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
    assert "No study mentions this." in parse(browser.get("/studies?q=nobody")).text


@pytest.mark.parametrize(
    "query", ["q=%00", "q=%FF%FE", "q=" + "x" * 5000, "q=%25&before=5", "before=" + "9" * 19]
)
def test_odd_searches_are_answered(browser: Browser, many: Database, query: str) -> None:
    assert browser.get(f"/studies?{query}").status_code == 200


@pytest.mark.parametrize("before", ["x", "-1", "1e5", "", "9" * 20, "²"])
def test_wrong_page_number_is_refused(browser: Browser, before: str) -> None:
    assert browser.get(f"/studies?before={before}").status_code == 400


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
        "spiculation: marked 80 %",
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
    assert page.all("img")[1]["alt"] == "Slice with the outline of nodule N1, right upper lobe"
    assert not page.all("body")[0]


def test_page_of_an_unfinished_study_is_loaded_again(browser: Browser, story: Story) -> None:
    story.receive().close().queue()
    assert parse(browser.get(study_path(story))).all("body")[0] == {"data-refresh": "10"}


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


# text from outside


@pytest.fixture
def hostile(database: Database, tmp_path: Path) -> Story:
    """A study with hostile text in every field that a peer, a file or an error can fill."""
    story = Story(
        database,
        tmp_path,
        patient_id=STORABLE,
        patient_name=STORABLE,
        accession_number=STORABLE,
        study_date=STORABLE,
        description=STORABLE,
        series_description=STORABLE,
        modality=STORABLE,
        calling_ae=STORABLE,
    )
    story.receive(2).receive(1, series=2).close().close(2).set_aside(2, STORABLE, STORABLE).queue().start()
    story.interrupt(STORABLE).start().finish(
        result=json.dumps(_fill(RESULT)), destinations=((STORABLE, ("seg", "sr")),)
    )
    story.deliver(DeliveryState.PENDING, status=STORABLE)
    story.refuse_association(STORABLE, STORABLE).refuse_association(STORABLE, "10.0.0.1", STORABLE)
    return story


STORABLE = HOSTILE.replace("\ud800", "")
STORABLE_SHOWN = SHOWN.replace("[U+D800]", "")


def _fill(value: Any) -> Any:
    """The same structure with hostile text for each text but the ones that steer the page."""
    if isinstance(value, dict):
        return {key: item if key in {"status", "key_image"} else _fill(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item) for item in value]
    return STORABLE if isinstance(value, str) else value


def test_text_from_outside_neither_acts_nor_hides(browser: Browser, hostile: Story) -> None:
    least = {"/": 3, "/studies": 4, study_path(hostile): 25}
    for path, count in least.items():
        response = browser.get(path)
        document = parse(response)
        assert response.status_code == 200
        assert {item.get("src") for item in document.all("script")} == {"/static/refresh.js"}
        assert all(str(item["src"]).startswith(("/static/", "/artifacts/")) for item in document.all("img"))
        assert not [name for _, item in document.elements for name in item if name.startswith("on")]
        assert document.text.count(STORABLE_SHOWN) >= count
        for character in "\x00\x1b\x7f\x9b\u202e":
            assert character not in response.text


def test_search_shows_what_was_asked_as_text(browser: Browser) -> None:
    response = browser.get("/studies?q=" + "%22%3E%3Cscript%3Ealert(1)%3C/script%3E%E2%80%AE")
    document = parse(response)
    assert len(document.all("script")) == 1
    assert next(item for item in document.all("input"))["value"] == '"><script>alert(1)</script>[U+202E]'


def test_visible_text() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("Müller 山田 नमस्\u200dते") == "Müller 山田 नमस्\u200dते"
    assert visible("a\nb\ufeff\ue000") == "a[U+000A]b[U+FEFF][U+E000]"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Doe^Jane^M^Dr^PhD", "Doe, Jane M Dr PhD"),
        ("Doe", "Doe"),
        ("^Jane", "Jane"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou / 山田, 太郎 / やまだ, たろう"),
        ("", ""),
        ("^^^", ""),
    ],
)
def test_person_names(name: str, shown: str) -> None:
    assert person(name) == shown


# what protects


def test_every_page_says_what_it_is_for_and_is_well_formed(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    for path in ("/", "/studies", "/studies?q=x", study_path(story), "/nothing", "/studies?before=x"):
        response = browser.get(path)
        document = parse(response)
        assert "Research use only, not for primary diagnosis." in document.text, path
        assert len(document.all("h1")) == 1, path
        assert document.all("html") == [{"lang": "en"}]
        assert all(cell.get("scope") in {"row", "col"} for cell in document.all("th"))
        labelled = {label["for"] for label in document.all("label")}
        assert all(item["id"] in labelled for item in document.all("input"))
        assert all("alt" in image for image in document.all("img"))
        identifiers = [str(item["id"]) for _, item in document.elements if "id" in item]
        assert len(identifiers) == len(set(identifiers)), path
        assert not document.all("style")
        assert not [item for _, item in document.elements if "style" in item]
        for _, item in document.elements:
            for name in ("href", "src", "action"):
                assert str(item.get(name) or "/").startswith(("/", "#main"))
                assert not str(item.get(name) or "/").startswith("//")


def test_every_answer_carries_the_protective_headers(
    browser: Browser, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(story, RESULT)
    number = artifact_id(story, "png")
    answers = [
        browser.get(path)
        for path in (
            "/",
            "/studies",
            study_path(story),
            f"/artifacts/{number}",
            "/static/style.css",
            "/nothing",
        )
    ]
    answers += [
        browser.get("/", host="evil.example"),
        browser.get("/", method="POST"),
        browser.get("/health/live"),
    ]
    monkeypatch.setattr("pacs_node.web.views.overview", lambda *_: 1 / 0)
    answers.append(browser.get("/"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 200, 404, 421, 405, 200, 500]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"


def test_fault_shows_no_trace(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.web.views.overview", lambda *_: 1 / 0)
    response = browser.get("/")
    assert response.status_code == 500
    assert "This page failed." in response.text
    assert "Traceback" not in response.text
    assert "ZeroDivision" not in response.text


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:22",
        "127.1.2.3",
        "[::1]",
        "[::1]:80",
    ],
)
def test_loopback_hosts_are_known(browser: Browser, host: str) -> None:
    assert browser.get("/health/live", host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1:8080",
        "[::1",
        "[fe80::1]:80",
        "localhost@evil.example",
        ":8080",
        "",
        "0.0.0.0",
    ],
)
def test_other_hosts_are_refused_for_every_route(browser: Browser, story: Story, host: str) -> None:
    analysed(story)
    for path in ("/", study_path(story), "/artifacts/1", "/health/ready", "/static/style.css"):
        response = browser.get(path, host=host)
        assert response.status_code == 421
        assert "PID-1" not in response.text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed(browser: Browser, story: Story, method: str) -> None:
    story.receive()
    for path in ("/", "/studies", study_path(story), "/artifacts/1", "/health/live"):
        assert browser.get(path, method=method).status_code == 405


# artifacts


@pytest.mark.parametrize(
    ("kind", "media_type", "disposition"),
    [
        ("seg", "application/dicom", True),
        ("sr", "application/dicom", True),
        ("json", "application/json", False),
        ("png", "image/png", False),
        ("html", "text/html; charset=utf-8", False),
    ],
)
def test_artifacts_come_as_what_they_are(
    browser: Browser, story: Story, kind: str, media_type: str, disposition: bool
) -> None:
    analysed(story, RESULT)
    number = artifact_id(story, kind)
    response = browser.get(f"/artifacts/{number}")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == media_type
    expected = f'attachment; filename="{kind}-{number}.dcm"' if disposition else None
    assert response.headers.get("Content-Disposition") == expected
    with story.database.read() as session:
        path = session.get_one(Artifact, number).path
    assert response.content == (story.directory / str(path)).read_bytes()


def test_report_may_use_its_own_style_and_nothing_else(browser: Browser, story: Story) -> None:
    analysed(story)
    response = browser.get(f"/artifacts/{artifact_id(story, 'html')}")
    policies = response.headers.get_list("Content-Security-Policy")
    assert policies == [REPORT_POLICY]
    assert "script" not in REPORT_POLICY
    assert "allow-" not in REPORT_POLICY


def test_unknown_kind_is_only_downloaded(browser: Browser, story: Story) -> None:
    analysed(story)
    number = artifact_id(story, "html")
    change_artifact(story, "html", kind="svg")
    response = browser.get(f"/artifacts/{number}")
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert response.headers["Content-Disposition"] == "attachment"


@pytest.mark.parametrize(
    "path", ["../outside.txt", "results/../../outside.txt", "{outside}", "link", "", "results"]
)
def test_nothing_outside_the_storage_directory_is_served(
    database: Database, tmp_path: Path, path: str
) -> None:
    inside = tmp_path / "storage"
    outside = tmp_path / "outside.txt"
    outside.write_text("secret")
    (inside / "link").symlink_to(outside)
    story = analysed(Story(database, inside))
    number = artifact_id(story, "html")
    change_artifact(story, "html", path=path.format(outside=outside))
    response = Browser(database, make_settings(inside)).get(f"/artifacts/{number}")
    assert response.status_code == 404
    assert "secret" not in response.text


def test_object_that_differs_from_its_record_is_not_served(browser: Browser, story: Story) -> None:
    analysed(story)
    change_artifact(story, "seg", sha256="0" * 64)
    response = browser.get(f"/artifacts/{artifact_id(story, 'seg')}")
    assert response.status_code == 409
    assert "differs from what the node has recorded" in response.text


@pytest.mark.parametrize("number", ["0", "99", "9" * 30, "x", "-1", "1/../1"])
def test_artifacts_that_dont_exist(browser: Browser, number: str) -> None:
    assert browser.get(f"/artifacts/{number}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/studies/1.2.3", "/studies/%00", "/studies/%ff", "/studies/..", "/studies/'--"]
)
def test_studies_that_dont_exist(browser: Browser, path: str) -> None:
    assert browser.get(path).status_code in {200, 404} if path.endswith("..") else 404
    assert browser.get(path).status_code != 500


# health


def test_health(browser: Browser) -> None:
    assert browser.get("/health/live").json() == {"status": "live"}
    ready = browser.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
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
    assert response.json()["checks"]["database"] == {"ok": False, "error": "OperationalError"}
    page = browser.get("/studies")
    assert (page.status_code, "database doesn't answer" in parse(page).text) == (503, True)


def test_not_ready_without_the_directory(database: Database, tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "gone")
    response = Browser(database, settings).get("/health/ready")
    assert response.json()["checks"]["disk"] == {"ok": False, "error": "FileNotFoundError"}


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
                    seen.append(client.get("/health/ready"))
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


def test_views_only_read(browser: Browser, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    analysed(story, RESULT)

    def refuse(_self: Database) -> None:
        raise AssertionError("a view wrote")

    monkeypatch.setattr(Database, "write", refuse)
    for path in ("/", "/studies", study_path(story), "/health/ready"):
        assert browser.get(path).status_code == 200
