"""The JSON API: who gets in, what is recorded, and what it says when it can't."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text

from pacs_node import tokens
from pacs_node.accounts import ALLOWED, Permission
from pacs_node.db import AuditEvent, Database
from pacs_node.db_accounts import Role
from pacs_node.db_tokens import ApiToken
from pacs_node.web.api.limits import FREE_TRIES
from pacs_node.web.api.problems import Code
from tests.api_client import Program
from tests.node_story import Story, analysed
from tests.web_browser import RESULT, Browser, make_settings

SELF = {"GET /me", "GET /health"}
LOOKING = {
    "GET /overview",
    "GET /destinations",
    "GET /missed-studies",
    "GET /held-studies",
    "GET /failures",
    "GET /models",
    "GET /models/use",
    "GET /models/drift",
    "GET /models/agreement",
    "GET /studies",
    "GET /studies/{study_uid}",
    "GET /artifacts/{artifact_id}",
    "GET /verdicts",
}
JUDGING = {"POST /studies/{study_uid}/verdicts"}
ACTING = {f"POST /destinations/{{destination}}/{action}" for action in ("echo", "doctor", "retry", "resend")}
ACTING |= {"POST /missed-studies/search", "POST /failures/retry"}
ACTING |= {f"POST /studies/{{study_uid}}/{action}" for action in ("requeue", "hold", "send")}
AUDITING = {"GET /audit-events", "GET /audit-events/export", "POST /audit-events/check"}
MANAGING = {
    "GET /settings",
    "GET /users",
    "POST /users",
    "PATCH /users/{name}",
    "POST /users/{name}/reset",
    "GET /tokens",
    "POST /tokens",
    "DELETE /tokens/{token_id}",
}
NEEDED = {
    Permission.SELF: SELF,
    Permission.LOOK: LOOKING,
    Permission.JUDGE: JUDGING,
    Permission.ACT: ACTING,
    Permission.AUDIT: AUDITING,
    Permission.MANAGE: MANAGING,
}


@pytest.fixture
def program(browser: Browser) -> Program:
    return Program(browser)


def operations(browser: Browser, story: Story) -> list[tuple[str, str, str]]:
    """Name, method and an address of each operation."""
    found = []
    for operation in browser.app.state.api.state.operations:
        path = operation.path.replace("{study_uid}", story.study_uid).replace("{artifact_id}", "1")
        path = path.replace("{name}", "nobody").replace("{token_id}", "999")
        path = path.replace("{destination}", "nowhere")
        if operation.path.endswith("/export"):
            path += "?format=csv"
        found.append((f"{operation.method} {operation.path}", operation.method, path))
    return found


def events(database: Database, *names: str) -> list[AuditEvent]:
    with database.read() as session:
        query = select(AuditEvent).where(AuditEvent.event.in_(names)).order_by(AuditEvent.seq)
        return list(session.execute(query).scalars())


# who gets in


def test_every_route_is_an_operation_with_a_permission(browser: Browser) -> None:
    api = browser.app.state.api
    known = {f"{item.method} {item.path}": item.permission for item in api.state.operations}
    assert {name for name, permission in known.items() if name in NEEDED[permission]} == set(known)
    assert set(known) == set().union(*NEEDED.values())
    document = api.state.document()["paths"]
    assert {f"{m.upper()} {path}" for path, methods in document.items() for m in methods} == set(known)


def test_nobody_gets_anything_without_a_token(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    browser.log_in()
    cookies, csrf = dict(browser.cookies), browser.csrf
    nobody = Program(browser, role=None)
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"X-CSRF-Token": csrf}):
        # a login of the page is no token, whatever stands beside it
        browser.cookies = cookies if "X-CSRF-Token" in headers else {}
        for name, method, path in operations(browser, story):
            answer = nobody.ask(path, method=method, headers=headers)
            assert answer.status_code == 401, name
            assert answer.json()["code"] == "no-token"
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="pacs-node"'
            assert story.study_uid not in answer.text
    assert not events(browser.database, "study viewed", "studies listed", "audit record read")


@pytest.mark.parametrize("role", list(Role))
def test_each_role_gets_its_own(browser: Browser, story: Story, role: Role) -> None:
    analysed(story, RESULT)
    browser.now = story.now
    program = Program(browser, role)
    mine = set().union(*(NEEDED.get(permission, set()) for permission in ALLOWED[role]))
    denied = []
    for name, method, path in operations(browser, story):
        answer = program.ask(path, method=method)
        if name in mine:
            assert answer.status_code in {200, 404, 409, 422}, name
        else:
            assert (answer.status_code, answer.json()["code"]) == (403, "role"), name
            denied.append(name.replace(" ", " /api/v1"))
    rows = events(browser.database, "access denied")
    assert [row.objects["route"] for row in rows] == denied
    assert {row.actor for row in rows} <= {f"client:{role}-program"}


def test_wrong_revoked_and_expired_tokens(program: Program) -> None:
    now, database = program.browser.now, program.browser.database
    revoked = program.token("old", Role.ADMINISTRATOR)
    with database.write() as session:
        tokens.revoke(session, tokens.find(session, 1), at=now, actor="test")
    expiring = program.token("short", Role.VIEWER, now + timedelta(hours=1))
    assert program.ask("/me", token=expiring).json()["expires_at"] == "2026-03-02T09:00:00Z"
    program.browser.now += timedelta(hours=1)
    for secret in (revoked, expiring, expiring[:-1], expiring + "x", "pntok_", "\x7f", "a b"):
        answer = program.ask("/me", token=secret)
        assert (answer.status_code, answer.json()["code"]) == (401, "wrong-token"), secret
        assert "invalid_token" in answer.headers["WWW-Authenticate"]
    rows = events(database, "login refused")
    assert {(row.actor, row.objects["reason"]) for row in rows} == {("client:unknown", "wrong token")}
    assert len(rows) == 7


def test_wrong_tokens_are_locked_out_and_right_ones_are_not(program: Program) -> None:
    for _ in range(FREE_TRIES):
        assert program.ask("/me", token="wrong").status_code == 401
    answer = program.ask("/me", token="wrong")
    assert (answer.status_code, answer.json()["code"]) == (429, "too-many")
    assert answer.headers["Retry-After"] == "30"
    assert program.ask("/me").status_code == 200
    rows = events(program.browser.database, "login refused", "login locked")
    assert [row.event for row in rows] == ["login refused"] * FREE_TRIES + ["login locked"]
    program.browser.address = "10.1.1.1"
    assert program.ask("/me", token="wrong").status_code == 401
    program.browser.address = "127.0.0.1"
    program.browser.now += timedelta(seconds=30)
    assert program.ask("/me", token="wrong").status_code == 401
    assert program.ask("/me", token="wrong").headers["Retry-After"] == "60"


def test_a_token_that_asks_too_often_waits(database: Database, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, web={"api_requests_per_minute": 3})
    program = Program(Browser(database, settings))
    other = program.token("other", Role.VIEWER)
    assert [program.ask("/me").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert program.ask("/me").headers["Retry-After"] == "20"
    assert program.ask("/me", token=other).status_code == 200
    program.browser.now += timedelta(seconds=20)
    assert [program.ask("/me").status_code for _ in range(2)] == [200, 429]


def test_only_a_digest_of_a_token_is_kept(program: Program) -> None:
    secret = program.token("viewer", Role.VIEWER)
    assert program.ask("/me", token=secret).json() == {
        "name": "viewer",
        "role": "viewer",
        "permissions": ["look", "self"],
        "token": secret[:12],
        "expires_at": None,
    }
    with program.browser.database.read() as session:
        row = session.execute(select(ApiToken)).scalar_one()
        assert row.token_hash == hashlib.sha256(secret.encode()).hexdigest()
        assert (row.last_used_at, row.last_address) == (program.browser.now, "127.0.0.1")
        written = [str(tuple(row)) for row in session.execute(text("SELECT * FROM audit_event"))]
    assert secret[12:] not in "".join(written)
    assert len(secret) == len("pntok_") + 43


# what is recorded


def test_looks_are_recorded_with_the_name_of_the_client(program: Program, story: Story) -> None:
    analysed(story, RESULT)
    program.browser.now = story.now
    program.role = Role.VIEWER
    for _ in range(2):
        for path in ("/studies?q=Doe", f"/studies/{story.study_uid}", "/artifacts/1", "/overview", "/models"):
            assert program.ask(path).status_code == 200
    rows = events(program.browser.database, "studies listed", "study viewed", "result viewed")
    assert [row.event for row in rows] == ["studies listed", "study viewed", "result viewed"]
    assert {row.actor for row in rows} == {"client:viewer-program"}
    assert [row.study_uid for row in rows] == [None, story.study_uid, story.study_uid]
    assert "Doe" not in str([row.objects for row in rows])
    other = program.token("other", Role.VIEWER)
    assert program.ask(f"/studies/{story.study_uid}", token=other).status_code == 200
    assert events(program.browser.database, "study viewed")[-1].actor == "client:other"


def test_uses_of_the_record_are_recorded(program: Program) -> None:
    program.role = Role.AUDITOR
    assert program.ask("/audit-events?actor=x").status_code == 200
    for _ in range(2):
        assert program.ask("/audit-events/export?format=jsonl&event=login").status_code == 200
        assert program.ask("/audit-events/check", method="POST").status_code == 200
    rows = events(
        program.browser.database, "audit record read", "audit record exported", "audit record checked"
    )
    assert [row.event.removeprefix("audit record ") for row in rows] == [
        "read",
        *["exported", "checked"] * 2,
    ]
    assert rows[0].objects["chosen"] == {"actor": "x"}
    assert {row.actor for row in rows} == {"client:auditor-program"}


# what can't be done


def test_problems_are_told_in_one_form(program: Program, story: Story) -> None:
    analysed(story)
    hold = f"/studies/{story.study_uid}/hold"
    cases = (
        (program.ask("/nothing"), "no-address"),
        (program.ask("/studies/1%0A/hold", {}), "no-address"),
        (program.ask("/studies", method="DELETE"), "method"),
        (program.ask("/studies/"), "no-address"),
        (program.ask("/studies/1.2.3"), "no-study"),
        (program.ask("/studies/1.2%20"), "invalid"),
        (program.ask("/studies?limit=0"), "invalid"),
        (program.ask("/studies?stat=failed"), "invalid"),
        (program.ask("/studies?state=failed&state=done"), "invalid"),
        (program.ask("/studies?received_since=16777217"), "invalid"),
        (program.ask("/studies?q=%00"), "invalid"),
        (program.ask("/audit-events?since=0001-01-01T00:00:00%2B14:00"), "invalid"),
        (program.ask("/artifacts/99"), "no-file"),
        (program.ask(hold, {"reason": "x", "more": 1}), "invalid"),
        (program.ask(hold, {"reason": "\ud800"}), "invalid"),
        (program.ask(hold, content=b"{"), "invalid"),
        (program.ask(hold, content=b"[" * 9000), "bad-request"),
        (program.ask(hold, content=b'{"reason": "\xff"}'), "bad-request"),
        (program.ask(hold, {"reason": "x" * 20_000}), "too-large"),
        (program.ask(hold, {"reason": "x"}), "nothing-to-do"),
    )
    for answer, word in cases:
        found = answer.json()
        code = next(code for code in Code if code.word == word)
        assert (found["code"], answer.status_code) == (word, code.status), answer.text
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert found["type"] == f"/api#{word}"
        assert found["status"] == answer.status_code
        assert answer.headers["Cache-Control"] == "no-store"


def test_a_problem_does_not_repeat_what_was_sent(program: Program) -> None:
    answer = program.ask("/studies?limit=Doe%5EJane")
    assert answer.json()["errors"][0]["where"] == "query limit"
    assert "Doe" not in answer.text


def test_a_fault_shows_no_trace(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.web.api.node.overview", lambda *_: 1 / 0)
    answer = program.ask("/overview")
    assert (answer.status_code, answer.json()["code"]) == (500, "failed")
    assert "Zero" not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_database_that_does_not_answer(program: Program) -> None:
    assert program.ask("/studies").status_code == 200
    with program.browser.database.write() as session:
        session.execute(text("ALTER TABLE study RENAME TO gone"))
    answer = program.ask("/studies?q=other")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_the_same_protection_stands_before_the_api(program: Program) -> None:
    assert program.ask("/me", host="evil.example").status_code == 421
    assert program.ask("/openapi.json", host="evil.example").status_code == 421
    headers = program.ask("/me").headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Frame-Options"] == "DENY"
    assert "access-control-allow-origin" not in headers


# the document


def test_the_document_declares_what_can_happen(program: Program) -> None:
    program.role = None
    document = program.ask("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "/api/v1"}]
    assert document["security"] == [{"token": []}]
    assert set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == {
        code.word for code in Code
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            statuses = set(operation["responses"])
            assert {"401", "403", "422", "429", "500", "503"} <= statuses, path
            assert ("404" in statuses) is ("{" in path), path
            assert {"400", "413"} <= statuses if "requestBody" in operation else True, (method, path)
            assert operation["summary"].endswith("."), path
            success = operation["responses"].get("200") or operation["responses"]["201"]
            assert success["description"] != "Successful Response", path
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert set(response["content"]) == {"application/problem+json"}
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert not [name for name in document["components"]["schemas"] if "__" in name]
    files = document["paths"]["/audit-events/export"]["get"]["responses"]["200"]["content"]
    assert set(files) == {"application/x-ndjson", "text/csv", "text/plain"}
