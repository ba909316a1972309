"""Who gets which page, and what protects the login, the forms and the cookies."""

from __future__ import annotations

import ssl
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError

from pacs_node import accounts, audit, preflight
from pacs_node.accounts import ALLOWED, Permission
from pacs_node.db import AuditEvent, Database
from pacs_node.db_accounts import Role
from pacs_node.errors import ConfigurationError
from pacs_node.sessions import csrf_of
from pacs_node.web import app as web_app
from tests.certificates import make_certificate
from tests.node_story import START, Story, analysed
from tests.web_browser import CHEAP, PASSWORD, RESULT, Browser, make_settings, parse, study_path

OPEN = {"GET /health/live", "GET /health/ready", "GET /metrics", "GET /login", "POST /login"}
OPEN |= {"GET /oidc/start", "GET /oidc/callback", "GET /oidc/logout"}
EVERYBODY = {"POST /logout", "GET /password", "POST /password", "GET /api"}
LOOKING = {"GET /", "GET /studies", "GET /studies/{study_uid}", "GET /artifacts/{artifact_id:int}"}
LOOKING |= {"GET /destinations", "GET /missed"}
LOOKING |= {"GET /models", "GET /models/agreement", "GET /models/verdicts"}
JUDGING = {"POST /studies/{study_uid}/verdicts"}
ACTING = {f"POST /studies/{{study_uid}}/{action}" for action in ("requeue", "hold", "send")}
ACTING |= {f"POST /destinations/{{destination}}/{do}" for do in ("echo", "doctor", "retry", "resend")}
ACTING |= {"POST /missed/search", "POST /missed/failed"}
AUDITING = {"GET /audit", "POST /audit", "GET /audit/export"}
MANAGING = {"GET /users", "POST /users", "POST /users/reset", "POST /users/{change}"}
MANAGING |= {"GET /settings", "POST /settings/doctor"}
MANAGING |= {"GET /tokens", "POST /tokens", "POST /tokens/revoke"}
MATRIX = {
    Role.VIEWER: EVERYBODY | LOOKING,
    Role.READER: EVERYBODY | LOOKING | JUDGING,
    Role.OPERATOR: EVERYBODY | LOOKING | ACTING,
    Role.AUDITOR: EVERYBODY | LOOKING | AUDITING,
    Role.ADMINISTRATOR: EVERYBODY | LOOKING | JUDGING | ACTING | AUDITING | MANAGING,
}


def routes(browser: Browser, story: Story) -> list[tuple[str, str, str]]:
    """Name, method and an address of each route that the application has."""
    known = []
    for rule in browser.app.state.rules:
        path = rule.path.replace("{study_uid}", story.study_uid).replace("{change}", "disable")
        path = path.replace("{artifact_id:int}", "1")
        known.append((f"{rule.method} {rule.path}", rule.method, path))
    return known


def test_every_route_has_a_rule(browser: Browser) -> None:
    paths = {getattr(route, "path", "") for route in browser.app.routes}
    assert paths == {rule.path for rule in browser.app.state.rules} | {"/static", "/api/v1"}
    assert {f"{r.method} {r.path}" for r in browser.app.state.rules} == OPEN.union(*MATRIX.values())
    assert set(MATRIX) == set(ALLOWED) == set(Role)


def test_anonymous_gets_nothing(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    browser.role = None
    for name, method, path in routes(browser, story):
        answer = browser.get(path, method=method, form={"csrf": "x"} if method == "POST" else None)
        if name in OPEN:
            # nobody listens here, so this node is not ready
            unready = {503} if path == "/health/ready" else set()
            assert answer.status_code in {200, 403, 404} | unready, name
        elif method == "GET":
            assert answer.status_code == 303, name
            assert answer.headers["Location"].startswith("/login?next="), name
        else:
            assert answer.status_code == 401, name
        for secret in ("PID-1", "Doe", story.study_uid):
            assert secret not in answer.text, name
    with story.database.read() as session:
        assert not session.execute(select(AuditEvent).where(AuditEvent.actor.like("user:%"))).all()


@pytest.mark.parametrize("role", list(Role))
def test_each_role_gets_its_own(browser: Browser, story: Story, role: Role) -> None:
    analysed(story, RESULT)
    browser.role = role
    for name, method, path in routes(browser, story):
        if name in OPEN or name == "POST /logout":
            continue
        form = {"csrf": "wrong"} if method == "POST" else None
        answer = browser.get(path, method=method, form=form)
        denied = "Your role" in answer.text
        assert denied is (name not in MATRIX[role]), name
        if denied or method == "POST":
            assert answer.status_code == 403, name
            assert "PID-1" not in answer.text
    with story.database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event == "access denied")).scalars().all()
    denied_routes = [str(row.objects["route"]) for row in rows]
    assert sorted(denied_routes) == sorted(set().union(*MATRIX.values()) - MATRIX[role])
    assert {row.actor for row in rows} <= {f"user:{role}"}


def test_navigation_shows_what_is_allowed(browser: Browser) -> None:
    browser.role = Role.VIEWER
    links = {link["href"] for link in parse(browser.get("/")).all("a")}
    assert "/studies" in links
    assert not {"/audit", "/users"} & links
    browser.role = Role.ADMINISTRATOR
    browser.cookies.clear()
    assert {"/audit", "/users"} <= {link["href"] for link in parse(browser.get("/")).all("a")}


# forms


@pytest.mark.parametrize(
    ("form", "headers"),
    [
        ({"name": "eve"}, {}),
        ({"csrf": ""}, {}),
        ({"csrf": "0" * 64}, {}),
        (None, {"origin": "https://evil.example"}),
        (None, {"origin": "http://127.0.0.1:8081"}),
        (None, {"sec-fetch-site": "cross-site"}),
        (None, {"sec-fetch-site": "same-site"}),
    ],
)
def test_a_form_of_another_page_changes_nothing(
    browser: Browser, form: dict[str, str] | None, headers: dict[str, str]
) -> None:
    browser.log_in()
    sent = {"csrf": browser.csrf, "name": "eve", "role": "administrator"} if form is None else form
    answer = browser.get("/users", method="POST", form=sent, headers=headers)
    assert answer.status_code == 403
    with browser.database.read() as session:
        assert [account.name for account in accounts.all_accounts(session)] == ["administrator"]
    sent["csrf"] = browser.csrf
    sent |= {"name": "eve", "role": "administrator"}
    kind = {"origin": "http://127.0.0.1:8080", "sec-fetch-site": "same-origin"}
    assert browser.get("/users", method="POST", form=sent, headers=kind).status_code == 200


def test_a_form_of_another_session_is_refused(browser: Browser) -> None:
    browser.log_in()
    old = browser.csrf
    browser.log_in()
    answer = browser.get("/logout", method="POST", form={"csrf": old})
    assert (answer.status_code, "out of date" in answer.text) == (403, True)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"x" * 20000, "application/x-www-form-urlencoded", 413),
        (b"csrf=%ff", "application/x-www-form-urlencoded", 400),
        (b"\xff", "application/x-www-form-urlencoded", 400),
        (b"&".join([b"a=1"] * 60), "application/x-www-form-urlencoded", 400),
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data; boundary=x", 415),
    ],
)
def test_odd_forms_are_refused(browser: Browser, content: bytes, kind: str, status: int) -> None:
    answer = browser.get("/login", method="POST", content=content, headers={"content-type": kind})
    assert answer.status_code == status


FIELDS = ("name", "password", "next", "current", "new", "again", "role", "reason", "destination", "csrf")
POSTS = sorted(name.removeprefix("POST ") for name in OPEN.union(*MATRIX.values()) if name.startswith("POST"))


@given(
    st.lists(st.sampled_from(POSTS), min_size=8, max_size=8),
    st.dictionaries(st.sampled_from(FIELDS), st.text(max_size=60)),
    st.text(max_size=30),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_form_makes_a_page_fail(
    browser: Browser, paths: list[str], form: dict[str, str], word: str
) -> None:
    for path in paths:
        filled = path.replace("{study_uid}", quote(word, safe="")).replace("{change}", quote(word, safe=""))
        browser.log_in()
        assert browser.post(filled, **form).status_code < 500, path


# login


def sign_in(browser: Browser, name: str, password: str, following: str = "/") -> httpx.Response:
    """What a person does who isn't logged in."""
    browser.role = None
    browser.cookies.clear()
    fields = parse(browser.get(f"/login?next={following}")).all("input")
    hidden = {str(item["name"]): str(item["value"]) for item in fields if item.get("type") == "hidden"}
    return browser.get("/login", method="POST", form=hidden | {"name": name, "password": password})


@pytest.fixture
def alice(browser: Browser) -> Browser:
    hashed = accounts.hashed(accounts.Passwords(CHEAP), "alice", PASSWORD, one_time=False)
    with browser.database.write() as session:
        accounts.add(session, "alice", Role.ADMINISTRATOR, hashed, at=browser.now, actor="test")
    return browser


def test_login_says_that_there_is_no_account(browser: Browser) -> None:
    browser.role = None
    page = parse(browser.get("/login")).text
    assert "pacs-node users add NAME --role administrator" in page
    assert "no default password" in page


def test_login_and_logout(alice: Browser, story: Story) -> None:
    analysed(story, RESULT)
    entered = sign_in(alice, "alice", PASSWORD, study_path(story))
    assert (entered.status_code, entered.headers["Location"]) == (303, study_path(story))
    token = alice.cookies["session"]
    assert "PID-1" in alice.get(study_path(story)).text
    assert alice.get("/logout", method="POST", form={"csrf": csrf_of(token)}).headers["Location"] == "/login"
    alice.cookies["session"] = token
    assert alice.get(study_path(story)).status_code == 303
    names = [row.event for row in recorded(alice.database) if row.actor == "user:alice"]
    assert names == ["login", "study viewed", "logout"]


def recorded(database: Database) -> list[AuditEvent]:
    with database.read() as session:
        return list(session.execute(select(AuditEvent).order_by(AuditEvent.seq)).scalars())


def test_a_login_begins_a_new_session(alice: Browser) -> None:
    sign_in(alice, "alice", PASSWORD)
    first = alice.cookies["session"]
    sign_in(alice, "alice", PASSWORD)
    assert alice.cookies["session"] != first


def test_wrong_login_says_no_more_than_that(alice: Browser) -> None:
    texts = []
    for name in ("alice", "nobody"):
        answer = sign_in(alice, name, "a wrong password")
        assert (answer.status_code, "session" in alice.cookies) == (401, False)
        texts.append(parse(answer).text)
    assert texts[0] == texts[1]
    assert "don't fit" in texts[0]


def test_login_from_another_page_is_refused(alice: Browser) -> None:
    alice.role = None
    alice.get("/login")
    form = {"name": "alice", "password": PASSWORD, "csrf": csrf_of("made up")}
    assert alice.get("/login", method="POST", form=form).status_code == 403
    assert "session" not in alice.cookies


@pytest.mark.parametrize(
    "following",
    ["https://evil.example/", "//evil.example", "/%5Cevil.example", "javascript:alert(1)", "x", "/%0d%0aa"],
)
def test_login_goes_to_pages_of_ours_only(alice: Browser, following: str) -> None:
    assert sign_in(alice, "alice", PASSWORD, following).headers["Location"] == "/"


def test_idle_session_ends_in_the_login(alice: Browser) -> None:
    sign_in(alice, "alice", PASSWORD)
    alice.now += timedelta(minutes=14)
    assert alice.get("/?auto=1").status_code == 200
    alice.now += timedelta(minutes=2)
    answer = alice.get("/studies?q=x&auto=1")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login?next=%2Fstudies%3Fq%3Dx")


@pytest.mark.parametrize("https", [False, True])
def test_cookies_go_nowhere_else(database: Database, tmp_path: Path, https: bool) -> None:
    configured = make_settings(tmp_path, web={"proxy_address": "127.0.0.1"} if https else {})
    browser = Browser(database, configured, role=None)
    answer = browser.get("/login", headers={"x-forwarded-for": "10.0.0.9"})
    name, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert name.startswith("__Host-login=" if https else "login=")
    assert {"HttpOnly", "Path=/", "SameSite=strict"} <= set(attributes)
    assert ("Secure" in attributes) is https
    assert ("Strict-Transport-Security" in answer.headers) is https


# passwords and users


def test_one_time_password_must_be_changed(alice: Browser, story: Story) -> None:
    sign_in(alice, "alice", PASSWORD)
    alice.role = None
    form = {"csrf": csrf_of(alice.cookies["session"]), "name": "bob", "role": "viewer"}
    page = parse(alice.get("/users", method="POST", form=form)).text
    password = page.partition("One-time password of bob ")[2].split()[0]
    assert sign_in(alice, "bob", password).headers["Location"] == "/"
    for path in ("/", "/studies", study_path(story)):
        assert alice.get(path).headers["Location"] == "/password"
    form = {"csrf": csrf_of(alice.cookies["session"]), "current": password, "new": "mine own secret"}
    assert "differ" in alice.get("/password", method="POST", form=form | {"again": "other"}).text
    form["again"] = form["new"]
    old = alice.cookies["session"]
    assert alice.get("/password", method="POST", form=form).headers["Location"] == "/"
    assert alice.get("/").status_code == 200
    alice.cookies["session"] = old
    assert alice.get("/").status_code == 303
    assert sign_in(alice, "bob", password).status_code == 401
    assert sign_in(alice, "bob", "mine own secret").status_code == 303


def test_the_current_password_is_asked_for(alice: Browser) -> None:
    sign_in(alice, "alice", PASSWORD)
    form = {"csrf": csrf_of(alice.cookies["session"]), "new": "mine own secret", "again": "mine own secret"}
    answer = alice.get("/password", method="POST", form=form | {"current": "a wrong password"})
    assert (answer.status_code, "another one" in answer.text) == (400, True)
    assert sign_in(alice, "alice", PASSWORD).status_code == 303


def test_administrator_keeps_accounts(browser: Browser) -> None:
    browser.log_in()
    shown = parse(browser.post("/users", name="Bob", role="viewer")).text
    assert "One-time password of bob" in shown
    assert "already" in browser.post("/users", name="bob", role="viewer").text
    assert "no role" in browser.post("/users", name="carol", role="king").text
    assert browser.post("/users/role", name="bob", role="operator").status_code == 303
    assert browser.post("/users/disable", name="bob").status_code == 303
    assert "disabled" in parse(browser.get("/users")).text
    assert browser.post("/users/enable", name="bob").status_code == 303
    assert "One-time password of bob" in browser.post("/users/reset", name="bob").text
    assert "last administrator" in browser.post("/users/disable", name="administrator").text
    assert browser.post("/users/fly", name="bob").status_code == 404
    assert "There is no account" in browser.post("/users/reset", name="<b>").text
    changes = [
        row.objects["change"] for row in recorded(browser.database) if row.actor == "user:administrator"
    ]
    assert changes == ["added", "role", "disabled", "enabled", "password reset"]


# looks


def test_every_look_is_an_event(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    browser.role = Role.VIEWER
    for path in ("/", "/studies?q=Doe", study_path(story), study_path(story), "/nothing", "/studies/1.2"):
        browser.get(path)
    for number in range(1, 8):
        browser.get(f"/artifacts/{number}")
    looks = [row for row in recorded(browser.database) if row.actor == "user:viewer"]
    assert [row.event for row in looks[:2]] == ["studies listed", "study viewed"]
    assert {row.event for row in looks[2:]} == {"result viewed"}
    assert {str(row.objects["kind"]) for row in looks[2:]} >= {"seg", "sr", "json", "html"}
    assert all(row.study_uid == story.study_uid for row in looks[1:])
    assert looks[0].objects["searched"] is True
    assert "Doe" not in str([row.objects for row in looks])
    browser.now += timedelta(minutes=11)
    browser.get(study_path(story))
    assert recorded(browser.database)[-1].event == "study viewed"


def test_what_can_not_be_recorded_is_not_shown(
    browser: Browser, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(story, RESULT)
    browser.get("/")
    with browser.database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE audit_event RENAME TO gone")
    answer = browser.get(study_path(story))
    assert (answer.status_code, "PID-1" in answer.text) == (503, False)


def fill_up(database: Database) -> None:
    """Write until the database takes no more."""
    while True:
        with database.write() as session:
            audit.record(session, audit.Event.JOB_CHANGED, at=START, actor="")


def test_with_a_full_disk_the_overview_is_left(browser: Browser, story: Story) -> None:
    analysed(story, RESULT)
    browser.now = story.now
    browser.get("/")
    engine = browser.database.engine
    with browser.database.read() as session:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()
    event.listen(engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count={pages}"))
    browser.database.dispose()
    with pytest.raises(OperationalError, match="full"):
        fill_up(browser.database)
    assert browser.get("/").status_code == 200
    answer = browser.get(study_path(story))
    assert (answer.status_code, "PID-1" in answer.text) == (503, False)


# proxy and TLS


@pytest.mark.parametrize(
    ("address", "forwarded", "path", "status"),
    [
        ("10.0.0.5", "192.0.2.7", "/login", 200),
        ("10.0.0.5", "made up, 192.0.2.7", "/login", 200),
        ("10.0.0.5", "192.0.2.7, made up", "/login", 403),
        ("10.0.0.5", None, "/login", 403),
        ("10.0.0.6", "192.0.2.7", "/login", 403),
        ("127.0.0.1", None, "/login", 403),
        ("127.0.0.1", None, "/health/live", 200),
    ],
)
def test_only_the_proxy_connects(
    database: Database, tmp_path: Path, address: str, forwarded: str | None, path: str, status: int
) -> None:
    configured = make_settings(
        tmp_path, web={"host": "0.0.0.0", "proxy_address": "10.0.0.5", "names": ["node.example"]}
    )
    browser = Browser(database, configured, role=None, address=address)
    headers = {} if forwarded is None else {"x-forwarded-for": forwarded}
    assert browser.get(path, host="node.example", headers=headers).status_code == status
    assert browser.get(path, host="evil.example", headers=headers).status_code in {403, 421}


def test_the_browser_behind_the_proxy_is_recorded(database: Database, tmp_path: Path) -> None:
    configured = make_settings(tmp_path, web={"proxy_address": "127.0.0.1"})
    browser = Browser(database, configured)
    browser.get("/studies", headers={"x-forwarded-for": "1.1.1.1, 192.0.2.7"})
    assert recorded(database)[-1].objects["address"] == "192.0.2.7"


@pytest.mark.parametrize(
    ("web", "expected"),
    [
        ({"host": "0.0.0.0"}, "tls_certificate_file and tls_key_file, or proxy_address"),
        ({"host": "10.1.2.3", "tls_certificate_file": "a.pem"}, "need each other"),
        ({"proxy_address": "proxy.example"}, "an address is needed"),
        ({"idle_minutes": 0}, "greater than 0"),
    ],
)
def test_the_page_is_not_opened_by_mistake(tmp_path: Path, web: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        make_settings(tmp_path, web=web)


@pytest.mark.parametrize(
    ("address", "token", "given", "status"),
    [
        ("127.0.0.1", None, None, 200),
        ("::1", None, None, 200),
        ("10.0.0.9", None, None, 401),
        ("10.0.0.9", None, "Bearer ", 401),
        ("10.0.0.9", "geheim", "Bearer geheim", 200),
        ("10.0.0.9", "geheim", "Bearer gehei", 401),
        ("10.0.0.9", "geheim", "Basic geheim", 401),
        ("127.0.0.1", "geheim", None, 401),
        ("127.0.0.1", "", "Bearer ", 401),
    ],
)
def test_metrics_are_for_this_machine_or_a_token(
    database: Database, tmp_path: Path, address: str, token: str | None, given: str | None, status: int
) -> None:
    web = {}
    if token is not None:
        (tmp_path / "token").write_text(f"{token}\n")
        web = {"metrics_token_file": "token"}
    story = analysed(Story(database, tmp_path))
    browser = Browser(database, make_settings(tmp_path, web=web), role=None, address=address)
    answer = browser.get("/metrics", headers={} if given is None else {"Authorization": given})
    assert answer.status_code == status
    assert ("pacs_node_instances_total 3.0" in answer.text) is (status == 200)
    assert story.study_uid not in answer.text


def test_permissions_are_used(browser: Browser) -> None:
    assert {rule.permission for rule in browser.app.state.rules} == {None, *Permission}


def test_the_page_speaks_tls_only(tmp_path: Path, free_port: int) -> None:
    made = make_certificate(tmp_path, "node")
    web = {"port": free_port, "tls_certificate_file": str(made.certificate), "tls_key_file": str(made.key)}
    configured = make_settings(tmp_path, web=web)
    stop, seen = threading.Event(), list[httpx.Response]()

    def visit() -> None:
        deadline = time.monotonic() + 20
        trusted = ssl.create_default_context(cafile=str(made.certificate))
        with httpx.Client(base_url=f"https://127.0.0.1:{free_port}", verify=trusted) as client:
            while not seen and time.monotonic() < deadline:
                try:
                    seen.append(client.get("/login"))
                except httpx.TransportError:
                    time.sleep(0.05)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{free_port}/login")
        stop.set()

    visitor = threading.Thread(target=visit)
    visitor.start()
    web_app.run(configured, stop)
    visitor.join()
    assert seen[0].status_code == 200
    assert seen[0].headers["Set-Cookie"].startswith("__Host-login=")


def test_a_wrong_certificate_is_said_at_start(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "key.pem").write_text("no key")
    files = {"tls_certificate_file": str(tmp_path / "none.pem"), "tls_key_file": str(tmp_path / "key.pem")}
    configured = make_settings(tmp_path, web={"port": free_port} | files)
    with pytest.raises(ConfigurationError, match=r"web: .*none\.pem.*no such file"):
        preflight.check(configured, ["web"])
    with pytest.raises(ConfigurationError, match=r"none\.pem"):
        web_app.run(configured, threading.Event())
