from __future__ import annotations

import csv
import hashlib
import json
import os
import socket
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import select

from pacs_node.audit_export import FORMATS
from pacs_node.db import Artifact, Database, MissedStudy
from pacs_node.db_accounts import Role, WebSession
from pacs_node.states import DeliveryState
from pacs_node.web.protection import REPORT_POLICY
from pacs_node.web.text import person, visible
from tests.conftest import REPOSITORY
from tests.node_story import Story, analysed
from tests.sockets import listening
from tests.web_browser import (
    RESULT,
    Browser,
    artifact_id,
    change_artifact,
    make_settings,
    parse,
    study_path,
)

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;\x00\x1b[31m\x7f\x9b\u202egpj\ud800"
)
SHOWN = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&lt;"
    "[U+0000][U+001B][31m[U+007F][U+009B][U+202E]gpj[U+D800]"
)
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

SCRIPTS = {f"/static/{path.name}" for path in (REPOSITORY / "pacs_node/web/static").glob("*.js")}


def _fill(value: Any) -> Any:
    """The same structure with hostile text for each text but the ones that steer the page."""
    if isinstance(value, dict):
        return {key: item if key in {"status", "key_image"} else _fill(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item) for item in value]
    return STORABLE if isinstance(value, str) else value


def test_text_from_outside_neither_acts_nor_hides(browser: Browser, hostile: Story) -> None:
    least = {"/": 3, "/studies": 4, study_path(hostile): 25, "/audit": 8}
    for path, count in least.items():
        response = browser.get(path)
        document = parse(response)
        assert response.status_code == 200
        assert {item.get("src") for item in document.all("script")} <= SCRIPTS
        assert all(str(item["src"]).startswith(("/static/", "/artifacts/")) for item in document.all("img"))
        assert not [name for _, item in document.elements for name in item if name.startswith("on")]
        assert document.text.count(STORABLE_SHOWN) >= count
        for character in "\x00\x1b\x7f\x9b\u202e":
            assert character not in response.text


@pytest.fixture
def more_hostile(hostile: Story) -> Story:
    """The same in the lists beside the studies."""
    with hostile.database.write() as session:
        session.add(
            MissedStudy(
                archive="pacs",
                study_uid="1.2.826.9",
                accession_number=STORABLE,
                study_date=STORABLE,
                description=STORABLE,
                modalities=STORABLE,
                n_instances=3,
                noticed_at=hostile.now,
                seen_at=hostile.now,
            )
        )
    return hostile


def test_no_route_at_all_shows_or_runs_it(browser: Browser, more_hostile: Story) -> None:
    """Whatever pages there are: each is walked by its rule, as the administrator."""
    walked, named = 0, 0
    for rule in browser.app.state.rules:
        if rule.method != "GET" or rule.path in {"/oidc/start", "/oidc/callback", "/oidc/logout"}:
            continue
        path = rule.path.replace("{study_uid}", more_hostile.study_uid)
        response = browser.get(path.replace("{artifact_id:int}", str(artifact_id(more_hostile, "html"))))
        # nobody listens here, so this node is not ready
        unready = {503} if path == "/health/ready" else set()
        assert response.status_code in {200, 400, 404} | unready, path
        assert response.headers["Cache-Control"] == "no-store", path
        assert response.headers["X-Content-Type-Options"] == "nosniff", path
        assert "default-src 'none'" in response.headers["Content-Security-Policy"], path
        if rule.permission is None or "text/html" not in response.headers["Content-Type"]:
            continue
        for character in "\x00\x1b\x7f\x9b\u202e":
            assert character not in response.text, path
        if rule.path.startswith("/artifacts"):
            continue  # the report is a file of the pipeline: its own tests, in a sandbox of its own here
        document = parse(response)
        assert all(str(item.get("src", "")).startswith("/static/") for item in document.all("script")), path
        assert all(str(item["src"]).startswith(("/static/", "/artifacts/")) for item in document.all("img"))
        assert not [name for _, item in document.elements for name in item if name.startswith("on")], path
        walked, named = walked + 1, named + (STORABLE_SHOWN in document.text)
    assert walked >= 9
    assert named >= 5


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_no_export_carries_it_as_it_is(browser: Browser, hostile: Story, form: str) -> None:
    response = browser.get(f"/audit/export?format={form}")
    assert response.status_code == 200
    assert response.headers["Content-Disposition"].startswith("attachment; ")
    assert not set(response.text) & set("\x00\x1b\x7f\x9b\u202e")
    if form == "csv":
        rows = list(csv.reader(response.text.splitlines()))
        assert len({len(row) for row in rows}) == 1
        assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@", "\t"))]
        return
    lines = response.text.splitlines()
    assert len(lines) > 10
    for line in lines:
        if form == "dicom":
            assert ET.fromstring(line).tag == "AuditMessage"
        else:
            assert isinstance(json.loads(line), dict)
    assert form == "dicom" or "<script>alert(1)" in "".join(str(json.loads(line)) for line in lines)


def test_a_planted_session_becomes_nobodys(browser: Browser) -> None:
    """Session fixation: a token that somebody else chose is not the one of the login."""
    browser.role = Role.VIEWER
    browser.log_in()
    theirs = browser.cookies["session"]
    planted = Browser(browser.database, browser.settings, role=None, cookies={"session": "planted"})
    assert planted.get("/studies").status_code == 303
    assert planted.cookies["session"] == "planted"
    assert theirs != "planted"
    with browser.database.read() as session:
        hashes = session.scalars(select(WebSession.token_hash)).all()
    assert hashlib.sha256(b"planted").hexdigest() not in hashes


def test_sockets_are_seen() -> None:
    """The control of what a whole node listens on (tests/acceptance/test_main_job.py)."""
    with (
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind(("127.0.0.1", 0))
        found = listening(os.getpgrp())
        assert ("tcp", "0.0.0.0", everywhere.getsockname()[1]) in found
        assert ("udp", "127.0.0.1", datagrams.getsockname()[1]) in found


def test_search_shows_what_was_asked_as_text(browser: Browser) -> None:
    response = browser.get("/studies?q=" + "%22%3E%3Cscript%3Ealert(1)%3C/script%3E%E2%80%AE")
    document = parse(response)
    assert {item.get("src") for item in document.all("script")} <= SCRIPTS
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

OTHERS = (
    "/login",
    "/password",
    "/users",
    "/tokens",
    "/destinations",
    "/missed",
    "/settings",
    "/api",
    "/audit",
    "/audit?study=1.2&event=job&since=2026-03-02",
    "/audit?until=x",
)


def test_every_page_says_what_it_is_for_and_is_well_formed(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    for path in (
        "/",
        "/studies",
        "/studies?q=x",
        study_path(story),
        "/nothing",
        "/studies?after=x",
        *OTHERS,
    ):
        response = browser.get(path)
        document = parse(response)
        assert response.status_code < 500, path
        assert "Research use only, not for primary diagnosis." in document.text, path
        assert len(document.all("h1")) == 1, path
        assert document.all("html") == [{"lang": "en"}]
        assert all(cell.get("scope") in {"row", "col"} for cell in document.all("th"))
        labelled = {label["for"] for label in document.all("label")}
        fields = [*document.all("input"), *document.all("select")]
        assert all(item["id"] in labelled for item in fields if item.get("type") != "hidden"), path
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
