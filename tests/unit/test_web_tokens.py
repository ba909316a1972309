"""Tokens of programs on the page, and the page about the API."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from pacs_node.db_accounts import Role
from pacs_node.db_tokens import ApiToken
from pacs_node.web.api.problems import Code
from tests.api_client import Program
from tests.web_browser import Browser, parse


def rows(browser: Browser) -> list[ApiToken]:
    with browser.database.read() as session:
        return list(session.execute(select(ApiToken).order_by(ApiToken.id)).scalars())


def test_a_token_is_made_shown_once_and_revoked(browser: Browser) -> None:
    browser.log_in()
    assert "no program can use the API" in parse(browser.get("/tokens")).text
    page = browser.post("/tokens", client="ris", role="viewer", last_day="2026-03-05")
    secret = page.text.split("<pre>")[1].split("</pre>")[0]
    assert secret.startswith("pntok_")
    assert secret not in browser.get("/tokens").text
    assert (rows(browser)[0].role, rows(browser)[0].created_by) == ("viewer", "user:administrator")
    expected = datetime.fromisoformat("2026-03-06").astimezone(UTC)
    assert rows(browser)[0].expires_at == expected
    program = Program(browser)
    assert program.ask("/me", token=secret).json()["name"] == "ris"
    browser.role = Role.ADMINISTRATOR
    assert f"ris {secret[:12]} viewer" in parse(browser.get("/tokens")).text
    for _ in range(2):
        assert browser.post("/tokens/revoke", token="1").status_code == 303
    assert "revoked" in parse(browser.get("/tokens")).text
    assert program.ask("/me", token=secret).status_code == 401


def test_what_can_not_be_done_is_said(browser: Browser) -> None:
    browser.log_in()
    for form in (
        {"client": "", "role": "viewer"},
        {"client": "ris", "role": "king"},
        {"client": "ris", "role": "viewer", "last_day": "tomorrow"},
        {"client": "ris", "role": "viewer", "last_day": "2026-03-01"},
    ):
        assert browser.post("/tokens", **form).status_code == 400, form
    for number in ("1", "x", "", "9" * 30, "\u00b2"):
        assert browser.post("/tokens/revoke", token=number).status_code == 400, number
    assert rows(browser) == []


def test_the_page_about_the_api_names_all_of_it(browser: Browser) -> None:
    browser.role = Role.VIEWER
    page = parse(browser.get("/api"))
    for operation in browser.app.state.api.state.operations:
        assert f"{operation.method} {operation.path} {operation.summary} {operation.permission}" in page.text
    assert {code.word for code in Code} <= {item.get("id") for item in page.all("code")}
