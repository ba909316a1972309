"""The page in headless Chromium: a browser sends forms and cookies in another way than a test client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from conformance.viewer.browser import Page, chromium
from pacs_node import accounts
from pacs_node.accounts import Passwords
from pacs_node.config import Settings
from pacs_node.db import AuditEvent, Database, Job, sqlite_url
from pacs_node.db_accounts import Role
from pacs_node.states import JobState
from pacs_node.web import app as web_app
from tests import oidc_provider
from tests.conftest import find_free_port
from tests.node_story import Story
from tests.web_browser import CHEAP, PASSWORD, make_settings, study_path

pytestmark = [pytest.mark.peer("chromium"), pytest.mark.timeout(300)]

PATIENCE_S = 60.0


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Settings, Story]]:
    """A page with one queued study and one administrator."""
    database = Database(sqlite_url(tmp_path))
    database.upgrade()
    story = Story(database, tmp_path, now=datetime.now(UTC))
    story.receive(2).close().queue()
    hashed = accounts.hashed(Passwords(CHEAP), "root", PASSWORD, one_time=False)
    with database.write() as session:
        accounts.add(session, "root", Role.ADMINISTRATOR, hashed, at=story.now, actor="test")
    settings = make_settings(tmp_path, web={"port": find_free_port()})
    stop = threading.Event()
    server = threading.Thread(target=web_app.run, args=(settings, stop))
    server.start()
    yield settings, story
    stop.set()
    server.join()
    database.dispose()


def fill(page: Page, **values: str) -> None:
    """Type into fields by their name."""
    for name, value in values.items():
        page.run(f"document.querySelector('main [name={name}]').value = {json.dumps(value)}")


def press(page: Page, words: str, then: str) -> None:
    """Press the button with these words and wait until the page says something."""
    button = f"[...document.querySelectorAll('button')].find(b => b.textContent === {json.dumps(words)})"
    page.run(f"{button}.click()")
    page.until(
        f"document.readyState === 'complete' && document.body.innerText.includes({json.dumps(then)})", then
    )


def test_a_person_logs_in_acts_and_logs_out(served: tuple[Settings, Story], tmp_path: Path) -> None:
    settings, story = served
    origin = f"http://127.0.0.1:{settings.web.port}"
    (tmp_path / "browser").mkdir()
    with chromium(tmp_path / "browser", patience_s=PATIENCE_S) as page:
        page.open(origin + study_path(story))
        page.until("document.querySelector('input[type=password]') !== null", "the login")
        fill(page, name="root", password=PASSWORD)
        press(page, "Log in", "Doe, Jane")
        assert page.run("location.pathname") == study_path(story)
        assert page.run("document.cookie") == ""
        page.run("document.querySelector('details.actions').open = true")
        fill(page, reason="wrong series")
        press(page, "Hold: stop the analysis", "held: wrong series")
        page.open(f"{origin}/users")
        page.until("document.querySelector('#accounts') !== null", "the users")
        page.run("document.querySelector('main form.fields [name=name]').value = 'bob'")
        press(page, "Add", "One-time password of bob")
        page.open(f"{origin}/audit")
        page.until("document.querySelector('#chain') !== null", "the record")
        press(page, "Check the chain", "whole")
        press(page, "Log out", "Log in")
        page.open(f"{origin}/audit")
        page.until("location.pathname === '/login'", "the login")
        assert page.complaints == []
    with story.database.read() as session:
        assert session.execute(select(Job.state)).scalar_one() is JobState.CANCELLED
        mine = select(AuditEvent.event).where(AuditEvent.actor == "user:root").order_by(AuditEvent.seq)
        rows = session.execute(mine).scalars().all()
    assert rows[0] == "login"
    assert rows[-1] == "logout"
    assert {"study viewed", "operator action", "account", "audit record read", "audit record checked"} <= set(
        rows
    )


def test_single_sign_on_comes_back_from_another_site(tmp_path: Path) -> None:
    """The provider is another site for the browser: its cookies of the way back are those of real life."""
    database = Database(sqlite_url(tmp_path))
    database.upgrade()
    story = Story(database, tmp_path, now=datetime.now(UTC))
    story.receive(2).close().queue()
    (tmp_path / "secret").write_text(oidc_provider.SECRET, encoding="utf-8")
    (tmp_path / "browser").mkdir()
    with oidc_provider.running() as provider:
        provider.host = "localhost"
        port = find_free_port()
        origin = f"http://127.0.0.1:{port}"
        oidc = {
            "issuer": provider.issuer,
            "client_id": oidc_provider.CLIENT,
            "client_secret_file": "secret",
            "page_url": origin,
            "roles": {"ct-readers": "viewer"},
        }
        settings = make_settings(tmp_path, web={"port": port}, oidc=oidc)
        stop = threading.Event()
        server = threading.Thread(target=web_app.run, args=(settings, stop))
        server.start()
        try:
            with chromium(tmp_path / "browser", patience_s=PATIENCE_S) as page:
                page.open(origin + study_path(story))
                page.until("document.querySelector('input[type=password]') !== null", "the login")
                page.run("document.querySelector('a[href^=\"/oidc/start\"]').click()")
                page.until("document.body?.innerText.includes('Doe, Jane') === true", "the study")
                assert page.run("location.pathname") == study_path(story)
                assert page.run("document.querySelector('form.me a').textContent") == "ada"
                assert page.complaints == []
        finally:
            stop.set()
            server.join()
    database.dispose()
    assert provider.asked[-3:] == ["/authorize", "/token", "/keys"]
