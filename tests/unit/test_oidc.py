"""Single sign-on against a provider on this machine, honest and not."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from jwt.utils import base64url_encode
from sqlalchemy import select

from pacs_node import accounts
from pacs_node.config import Settings
from pacs_node.config_web import OidcSettings
from pacs_node.db import AuditEvent, Database
from pacs_node.db_accounts import Account, Role
from pacs_node.doctor_findings import Level
from pacs_node.doctor_services import check_oidc
from pacs_node.errors import ConfigurationError
from pacs_node.oidc import RANK, Attempt, Provider, identity_of
from pacs_node.oidc_metadata import OidcError
from tests.oidc_provider import CLIENT, SECRET, jwk, key, public_pem, running
from tests.oidc_provider import Provider as Loopback
from tests.web_browser import CHEAP, HOST, PASSWORD, Browser, make_settings, parse

ROLES = {"ct-readers": "viewer", "ct-staff": "operator", "ct-audit": "auditor", "ct-admins": "administrator"}


@pytest.fixture
def provider() -> Iterator[Loopback]:
    with running() as found:
        yield found


def configured(directory: Path, provider: Loopback, **changes: Any) -> Settings:
    (directory / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
    oidc = {
        "issuer": provider.issuer,
        "client_id": CLIENT,
        "client_secret_file": "secret",
        "page_url": f"http://{HOST}",
        "roles": ROLES,
    }
    return make_settings(directory, oidc=oidc | changes)


@pytest.fixture
def page(database: Database, tmp_path: Path, provider: Loopback) -> Browser:
    """The page as somebody sees it who isn't logged in; now, as tokens are held against the real time."""
    return Browser(database, configured(tmp_path, provider), now=datetime.now(UTC), role=None)


def begin(page: Browser, following: str = "/studies") -> str:
    """Press the button; return where the browser is sent to."""
    answer = page.get(f"/oidc/start?next={following}")
    assert answer.status_code == 303, answer.text
    return str(answer.headers["Location"])


def come_back(page: Browser, provider: Loopback, address: str) -> httpx.Response:
    """Log in at the provider and follow it back to the page."""
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    parts = urlsplit(provider.log_in(query))
    return page.get(f"{parts.path}?{parts.query}")


def enter(page: Browser, provider: Loopback, following: str = "/studies") -> httpx.Response:
    return come_back(page, provider, begin(page, following))


def refused(page: Browser, answer: httpx.Response, status: int = 401) -> str:
    """Why somebody was not let in: the reason in the audit record."""
    assert answer.status_code == status, answer.text
    assert "session" not in page.cookies
    assert page.get("/studies").status_code == 303
    with page.database.read() as session:
        last = session.execute(
            select(AuditEvent).order_by(AuditEvent.seq.desc()).limit(1)
        ).scalar_one_or_none()
    return "" if last is None else str(last.objects.get("reason", ""))


def account(page: Browser) -> Account:
    with page.database.read() as session:
        return session.execute(select(Account).where(Account.subject == "4711")).scalar_one()


def events(page: Browser) -> list[str]:
    with page.database.read() as session:
        return list(session.scalars(select(AuditEvent.event).order_by(AuditEvent.seq)))


# the good path


def test_somebody_logs_in_and_out(page: Browser, provider: Loopback) -> None:
    assert "Log in by single sign-on" in parse(page.get("/login")).text
    address = begin(page)
    asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
    assert asked["redirect_uri"] == f"http://{HOST}/oidc/callback"
    answer = come_back(page, provider, address)
    assert answer.status_code == 200
    assert parse(answer).all("meta")[2]["content"] == "0;url=/studies"
    assert page.get("/studies").status_code == 200
    assert page.get("/audit").status_code == 403
    made = account(page)
    assert (made.name, made.role, made.issuer, made.password_hash) == ("ada", "viewer", provider.issuer, "")
    assert events(page)[:2] == ["account", "login"]
    out = page.post("/logout")
    assert out.headers["Location"] == "/login"
    assert page.get("/studies").status_code == 303
    there = urlsplit(page.get("/oidc/logout").headers["Location"])
    assert there.path == "/logout"
    assert parse_qs(there.query)["post_logout_redirect_uri"] == [f"http://{HOST}/login"]


def test_the_cookie_comes_back_from_another_site_and_the_session_does_not(
    database: Database, tmp_path: Path, provider: Loopback
) -> None:
    settings = configured(tmp_path, provider)
    page = Browser(database, settings, now=datetime.now(UTC), role=None)
    started = page.get("/oidc/start")
    name, *attributes = started.headers["Set-Cookie"].split("; ")
    assert name.startswith("oidc=")
    assert {"HttpOnly", "SameSite=lax", "Max-Age=600"} <= set(attributes)
    cookies = come_back(page, provider, started.headers["Location"]).headers.get_list("Set-Cookie")
    assert any(item.startswith("session=") and "SameSite=strict" in item for item in cookies)
    assert any(item.startswith('oidc=""') for item in cookies)


def test_roles_are_those_of_the_last_login(page: Browser, provider: Loopback) -> None:
    provider.groups = ["other", "ct-readers", "ct-admins", "ct-audit"]
    enter(page, provider)
    assert account(page).role == "administrator"
    provider.groups = ["ct-audit", "ct-readers"]
    enter(page, provider)
    assert account(page).role == "auditor"
    assert page.get("/audit").status_code == 200
    kept = page.cookies["session"]
    page.cookies.clear()
    provider.groups = ["other"]
    answer = enter(page, provider)
    assert "None of your groups has a role" in parse(answer).text
    assert refused(page, answer) == "single sign-on: no role, or disabled"
    page.cookies["session"] = kept
    assert page.get("/audit").status_code == 303, "the sessions before have ended"


def test_the_session_is_short(page: Browser, provider: Loopback) -> None:
    enter(page, provider)
    for minutes in range(10, 120, 10):
        page.now += timedelta(minutes=10)
        assert page.get("/studies").status_code == 200, minutes
    page.now += timedelta(minutes=11)
    assert page.get("/studies").status_code == 303


def test_a_name_takes_over_no_account(page: Browser, provider: Loopback) -> None:
    hashed = accounts.hashed(accounts.Passwords(CHEAP), "root", PASSWORD, one_time=False)
    with page.database.write() as session:
        accounts.add(session, "root", Role.ADMINISTRATOR, hashed, at=page.now, actor="test")
    provider.person["preferred_username"] = "root"
    enter(page, provider)
    made = account(page)
    assert made.name.startswith("root-")
    assert made.role == "viewer"
    first = made.id
    provider.person |= {"preferred_username": "Zoë Ünal/../x"}
    enter(page, provider)
    assert account(page).id == first
    provider.person |= {"sub": "4712", "preferred_username": "<script>\x00"}
    enter(page, provider)
    with page.database.read() as session:
        assert {row.name for row in accounts.all_accounts(session)} == {"root", made.name, "script"}


def test_an_external_account_has_no_password_here(page: Browser, provider: Loopback) -> None:
    provider.groups = ["ct-admins"]
    enter(page, provider)
    assert "kept by the provider" in parse(page.get("/password")).text
    assert page.post("/password", new="x" * 12, again="x" * 12, current="").status_code == 400
    assert "kept by the provider" in page.post("/users/reset", name="ada").text
    assert "kept by the provider" in page.post("/users/role", name="ada", role="viewer").text
    assert "by the provider" in parse(page.get("/users")).text
    fields = hidden(page.get("/login"))
    for password in ("", "x"):
        answer = page.get("/login", method="POST", form=fields | {"name": "ada", "password": password})
        assert answer.status_code in {401, 403}


def test_who_was_disabled_here_stays_out(page: Browser, provider: Loopback) -> None:
    enter(page, provider)
    with page.database.write() as session:
        accounts.disable(session, accounts.find(session, "ada"), at=page.now, actor="test")
    page.cookies.clear()
    answer = enter(page, provider)
    assert "disabled" in parse(answer).text
    refused(page, answer)


# attacks: each changes one thing of what is right


def signed(number: int, algorithm: str, **header: Any) -> Callable[[dict[str, Any]], str]:
    return lambda claims: jwt.encode(claims, key(number), algorithm, header)


def crafted(header: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    """HS256 with the public key as the secret, whatever the header says; the library refuses to sign so."""

    def sign(claims: dict[str, Any]) -> str:
        parts = [base64url_encode(json.dumps(part).encode()) for part in (header, claims)]
        mac = hmac.digest(public_pem(), b".".join(parts), "sha256")
        return b".".join([*parts, base64url_encode(mac)]).decode()

    return sign


def claim(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda claims: {k: v for k, v in (claims | changes).items() if v is not None}


UNSIGNED = [
    (lambda claims: jwt.encode(claims, "", "none", {"kid": "k0"}), "unknown key"),
    (crafted({"alg": "HS256", "kid": "k0"}), "unknown key"),
    (crafted({"alg": "RS256", "kid": "k0"}), "InvalidSignatureError"),
    (crafted({"alg": ["RS256"], "kid": "k0"}), "unknown key"),
    (crafted({"alg": "RS256", "kid": ["k0"]}), "InvalidTokenError"),
    (crafted({"alg": "ES256", "kid": "k0"}), "unknown key"),
    (crafted({"alg": "RS256", "kid": "k0", "crit": ["b64"], "b64": False}), "DecodeError"),
    (signed(1, "RS256", kid="k0"), "InvalidSignatureError"),
    (signed(1, "RS256", kid="k1"), "unknown key"),
    (lambda claims: signed(0, "RS256", kid="k0")(claims)[:-8] + "AAAAAAAA", "InvalidSignatureError"),
    (lambda claims: "x", "DecodeError"),
    (lambda claims: "[" * 5000 + ".e30.x", "DecodeError"),
]


def test_tokens_that_the_provider_did_not_sign(page: Browser, provider: Loopback) -> None:
    for number, (sign, reason) in enumerate(UNSIGNED):
        provider.sign, page.address = sign, f"10.0.0.{number}"
        assert refused(page, enter(page, provider)) == f"single sign-on: {reason}", number


NOW = int(time.time())


WRONG = [
    (claim(nonce="of another login"), "nonce"),
    (claim(nonce=None), "MissingRequiredClaimError"),
    (claim(aud="other"), "InvalidAudienceError"),
    (claim(aud=None), "MissingRequiredClaimError"),
    (claim(aud=[CLIENT, "other"]), "azp"),
    (claim(aud=[CLIENT, "other"], azp="other"), "azp"),
    (claim(azp="other"), "azp"),
    (claim(iss="http://127.0.0.1:1"), "InvalidIssuerError"),
    (claim(iss=None), "MissingRequiredClaimError"),
    (claim(exp=NOW - 120), "ExpiredSignatureError"),
    (claim(exp=None), "MissingRequiredClaimError"),
    (claim(exp="soon"), "DecodeError"),
    (claim(iat=NOW + 7200), "ImmatureSignatureError"),
    (claim(iat=NOW - 7200), "iat"),
    (claim(iat=float("inf")), "InvalidIssuedAtError"),
    (claim(nbf=NOW + 7200), "ImmatureSignatureError"),
    (claim(sub=None), "MissingRequiredClaimError"),
    (claim(sub=5), "InvalidSubjectError"),
    (claim(sub=""), "sub"),
    (claim(sub="a\x00"), "sub"),
    (claim(groups="ct"), "no role, or disabled"),
    (claim(groups={"ct-readers": True}), "no role, or disabled"),
    (claim(groups=[["ct-readers"], 5]), "no role, or disabled"),
    (claim(groups=None), "no role, or disabled"),
]


def test_tokens_that_say_something_else(page: Browser, provider: Loopback) -> None:
    for number, (forge, reason) in enumerate(WRONG):
        provider.forge, page.address = forge, f"10.0.0.{number}"
        assert refused(page, enter(page, provider)) == f"single sign-on: {reason}", number


def test_a_skew_of_less_than_a_minute_is_no_attack(page: Browser, provider: Loopback) -> None:
    provider.forge = lambda claims: (
        claims | {"iat": claims["iat"] + 50, "exp": claims["exp"] - 340, "aud": [CLIENT]}
    )
    assert enter(page, provider).status_code == 200


def test_an_answer_of_another_browser(page: Browser, provider: Loopback) -> None:
    """Login CSRF: the attacker's own answer, or one with a made-up state."""
    attacker = begin(page)
    page.cookies.clear()
    begin(page)
    provider.asked.clear()
    answer = come_back(page, provider, attacker)
    assert "another login" in answer.text
    refused(page, answer)
    page.cookies.clear()
    for cookie in ("", "x", "a.b.c", f"a.{10**30}.", f"a.{int(page.now.timestamp())}.Lw==", "\x7f.1.é"):
        if cookie.isascii() and cookie.isprintable():
            page.cookies["oidc"] = cookie
        refused(page, page.get("/oidc/callback?code=x&state=y"))
    assert "/token" not in provider.asked


def test_a_code_is_used_once(page: Browser, provider: Loopback) -> None:
    address = begin(page)
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    back = urlsplit(provider.log_in(query))
    cookie = page.cookies["oidc"]
    assert page.get(f"{back.path}?{back.query}").status_code == 200
    page.cookies.clear()
    assert refused(page, page.get(f"{back.path}?{back.query}")) == ""
    page.cookies["oidc"] = cookie
    again = page.get(f"{back.path}?{back.query}")
    assert "<script>" not in again.text.replace('<script src="/static', "")
    assert refused(page, again) == "single sign-on: code refused: invalid_grant"


def test_a_code_of_another_login_fits_no_verifier(page: Browser, provider: Loopback) -> None:
    """Code injection: what PKCE is for."""
    begin(page)
    query = {"redirect_uri": f"http://{HOST}/oidc/callback", "state": "s", "nonce": "n"}
    stolen = urlsplit(
        provider.log_in(query | {"code_challenge": "of the victim", "code_challenge_method": "S256"})
    )
    code = parse_qs(stolen.query)["code"][0]
    mine = parse_qs(urlsplit(begin(page)).query)["state"][0]
    assert "invalid_grant" in refused(page, page.get(f"/oidc/callback?code={code}&state={mine}"))


def test_a_login_ends_after_ten_minutes(page: Browser, provider: Loopback) -> None:
    address = begin(page)
    page.now += timedelta(minutes=12)
    assert "too long ago" in come_back(page, provider, address).text


def test_the_way_back_is_ours(page: Browser, provider: Loopback) -> None:
    for wanted in (
        "https://evil.example/",
        "//evil.example",
        "/%5Cevil.example",
        "javascript:alert(1)",
        "x%0d%0a",
    ):
        answer = enter(page, provider, wanted)
        assert parse(answer).all("meta")[2]["content"] == "0;url=/", wanted
        assert "evil" not in answer.text


def test_the_provider_refuses_somebody(page: Browser, provider: Loopback) -> None:
    state = parse_qs(urlsplit(begin(page)).query)["state"][0]
    answer = page.get(
        f"/oidc/callback?error=access_denied&error_description=<script>x</script>&state={state}"
    )
    assert "<script>x" not in answer.text
    assert refused(page, answer) == "single sign-on: error of the provider"


def test_the_issuer_of_the_answer_counts(page: Browser, provider: Loopback) -> None:
    """Mix-up of providers, RFC 9207."""
    state = parse_qs(urlsplit(begin(page)).query)["state"][0]
    found = refused(page, page.get(f"/oidc/callback?code=x&state={state}&iss=https://evil.example"))
    assert found == "single sign-on: issuer of the answer"


def test_answers_are_not_tried_for_ever(page: Browser, provider: Loopback) -> None:
    for _ in range(20):
        state = parse_qs(urlsplit(begin(page)).query)["state"][0]
        page.get(f"/oidc/callback?code=x&state={state}")
    assert "Too many failed logins" in enter(page, provider).text
    page.now += timedelta(seconds=45)
    assert enter(page, provider).status_code == 200


# keys, and a provider that is away


def test_new_keys_are_asked_for_once(page: Browser, provider: Loopback) -> None:
    enter(page, provider)
    provider.keys, provider.sign = [jwk(1, "k1")], signed(1, "PS256", kid="k1")
    provider.asked.clear()
    assert enter(page, provider).status_code == 200
    assert provider.asked == ["/token", "/keys"]
    provider.sign = signed(1, "RS256", kid="k2")
    provider.asked.clear()
    page.cookies.clear()
    assert refused(page, enter(page, provider)) == "single sign-on: unknown key"
    assert provider.asked == ["/token", "/keys"]


def test_a_key_is_taken_for_what_it_says(page: Browser, provider: Loopback) -> None:
    for keys in (
        [jwk(0, "k0") | {"alg": "PS256"}],
        [jwk(0, "k0") | {"use": "enc"}],
        [],
        [jwk(0, "k0", 1024)],
    ):
        provider.keys = keys
        fresh = Provider(page.settings.oidc)
        attempt = Attempt.begin("/", page.now)
        query = parse_qs(urlsplit(fresh.authorization_url(attempt)).query)
        back = provider.log_in({name: values[0] for name, values in query.items()})
        with pytest.raises(OidcError):
            fresh.identity(attempt, parse_qs(urlsplit(back).query)["code"][0])


AWAY = [
    ("/.well-known/openid-configuration", (500, b"")),
    ("/.well-known/openid-configuration", (302, b"")),
    ("/.well-known/openid-configuration", (200, b"[]")),
    ("/.well-known/openid-configuration", (200, b'{"a":' * 5000)),
    ("/.well-known/openid-configuration", (200, b" " * 600_000)),
    ("/.well-known/openid-configuration", (200, b"{}")),
    ("/keys", (404, b"")),
    ("/token", (500, b"")),
    ("/token", (307, b"")),
    ("/token", (200, b"{}")),
]


def hidden(answer: httpx.Response) -> dict[str, str]:
    fields = parse(answer).all("input")
    return {str(item["name"]): str(item["value"]) for item in fields if item.get("type") == "hidden"}


def test_with_a_provider_that_is_away_accounts_of_the_page_log_in(page: Browser, provider: Loopback) -> None:
    hashed = accounts.hashed(accounts.Passwords(CHEAP), "root", PASSWORD, one_time=False)
    with page.database.write() as session:
        accounts.add(session, "root", Role.ADMINISTRATOR, hashed, at=page.now, actor="test")
    for path, answer in AWAY:
        provider.instead, page._app = {path: answer}, None
        page.cookies.clear()
        first = page.get("/oidc/start")
        shown = come_back(page, provider, first.headers["Location"]) if first.status_code == 303 else first
        assert shown.status_code in {401, 503}, path
        assert "ingle sign-on" in parse(shown).text
        form = hidden(shown) | {"name": "root", "password": PASSWORD}
        assert page.get("/login", method="POST", form=form).status_code == 303
    assert "/elsewhere" not in provider.asked


def test_a_silent_provider_has_few_threads(page: Browser, provider: Loopback) -> None:
    closed = Provider(
        page.settings.oidc.model_copy(update={"issuer": "http://127.0.0.1:1"}), monotonic=lambda: 5.0
    )
    with pytest.raises(OidcError, match="does not answer"):
        closed.metadata()
    closed._away_until = 0.0
    for _ in range(4):
        closed._free.acquire()
    with pytest.raises(OidcError, match="does not answer"):
        closed.metadata()
    assert Provider(page.settings.oidc).metadata().issuer == provider.issuer


UNTRUSTED: list[dict[str, Any]] = [
    {"issuer": "https://other.example"},
    {"token_endpoint": "http://provider.example/token"},
    {"jwks_uri": "file:///etc/passwd"},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"id_token_signing_alg_values_supported": ["none", "HS256"]},
]


def test_a_provider_that_can_not_be_trusted(page: Browser, provider: Loopback) -> None:
    for metadata in UNTRUSTED:
        provider.metadata, page._app = metadata, None
        assert page.get("/oidc/start").status_code == 503, metadata
        assert next(check_oidc(page.settings)).level is Level.PROBLEM


# settings and doctor


def test_without_a_provider_there_is_nothing(browser: Browser) -> None:
    browser.role = None
    for path in ("/oidc/start", "/oidc/callback?code=x", "/oidc/logout"):
        assert browser.get(path).status_code == 404
    assert "single sign-on" not in browser.get("/login").text
    assert list(check_oidc(browser.settings)) == []


def test_another_name_of_the_page_is_said(page: Browser) -> None:
    assert f"works at {HOST} only" in page.get("/oidc/start", host="localhost:8080").text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"issuer": "http://provider.example"}, "issuer must be https"),
        ({"page_url": "http://node.example"}, "page_url must be https"),
        ({"page_url": "https://node.example/x"}, "scheme, host and port only"),
        ({"roles": {}}, "needs client_id and roles"),
        ({"roles": {"a": "king"}}, "roles"),
        ({"scopes": ["profile"]}, "scopes must have openid"),
        ({"session_hours": 48}, "session_hours"),
    ],
)
def test_settings_that_can_not_be(
    tmp_path: Path, provider: Loopback, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        configured(tmp_path, provider, **changes)


def test_claims_may_lie_deeper_and_an_address_must_be_verified(tmp_path: Path, provider: Loopback) -> None:
    oidc = configured(tmp_path, provider, role_claim="realm_access.roles").oidc
    assert identity_of(oidc, {"sub": "1", "realm_access": {"roles": ["ct-staff"]}}).role == "operator"
    assert identity_of(oidc, {"sub": "1", "realm_access.roles": "ct-audit"}).role == "auditor"
    assert identity_of(oidc, {"sub": "1", "realm_access": ["ct-staff"]}).role is None
    oidc = configured(tmp_path, provider, role_claim="email", roles={"a@b.example": "viewer"}).oidc
    assert identity_of(oidc, {"sub": "1", "email": "a@b.example", "email_verified": True}).role == "viewer"
    for unverified in (False, None, "true", 1):
        with pytest.raises(OidcError, match="not verified"):
            identity_of(oidc, {"sub": "1", "email": "a@b.example", "email_verified": unverified})


def test_every_role_can_be_mapped() -> None:
    values = get_args(get_args(OidcSettings.model_fields["roles"].annotation)[1])
    assert set(values) == set(RANK) == {role.value for role in Role}


def test_doctor_asks_the_provider(tmp_path: Path, provider: Loopback) -> None:
    settings = configured(tmp_path, provider)
    found = list(check_oidc(settings))
    assert [item.level for item in found] == [Level.GOOD]
    assert "1 key" in found[0].sentence
    provider.metadata = {"code_challenge_methods_supported": ["plain"]}
    assert [item.level for item in check_oidc(settings)] == [Level.GOOD, Level.WARNING]
    (tmp_path / "secret").write_text(" \n")
    assert "is empty" in next(iter(check_oidc(settings))).sentence
