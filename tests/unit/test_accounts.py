"""Accounts, passwords, logins and sessions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from pacs_node import accounts, sessions
from pacs_node.accounts import AccountError, BusyError, HashCost, Passwords
from pacs_node.accounts_cli import users
from pacs_node.clock import utc_now
from pacs_node.config_template import render_settings
from pacs_node.db import AuditEvent, Database, sqlite_url
from pacs_node.db_accounts import LoginFailures, Role, WebSession
from pacs_node.sessions import Limits, LoginRefusedError, log_in, visitor
from tests.small_node import START
from tests.web_browser import CHEAP, PASSWORD

HOME = "10.0.0.1"
LIMITS = Limits(timedelta(minutes=15), timedelta(hours=12))
PASSWORDS = Passwords(CHEAP)


def add(database: Database, name: str = "alice", role: Role = Role.VIEWER, *, one_time: bool = False) -> None:
    hashed = accounts.hashed(PASSWORDS, name, PASSWORD, one_time=one_time)
    with database.write() as session:
        accounts.add(session, name, role, hashed, at=START, actor="test")


def enter(
    database: Database,
    password: str = PASSWORD,
    name: str = "alice",
    *,
    seconds: float = 0,
    address: str = HOME,
) -> str:
    at = START + timedelta(seconds=seconds)
    return log_in(database, PASSWORDS, name, password, address=address, at=at)


def events(database: Database) -> list[tuple[str, str, str]]:
    with database.read() as session:
        rows = session.execute(select(AuditEvent).order_by(AuditEvent.seq)).scalars().all()
    return [(row.event, row.actor, str(row.objects.get("reason", row.objects.get("change")))) for row in rows]


# passwords


def test_default_cost_is_argon2id_of_rfc_9106() -> None:
    hashed = Passwords().hash(PASSWORD)
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert Passwords(CHEAP).matches(hashed, PASSWORD)


def test_the_same_password_has_many_hashes() -> None:
    assert PASSWORDS.hash(PASSWORD) != PASSWORDS.hash(PASSWORD)


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
@settings(max_examples=30)
def test_only_the_password_fits(one: str, other: str) -> None:
    hashed = PASSWORDS.hash(one)
    assert PASSWORDS.matches(hashed, one)
    if accounts._normal(one) != accounts._normal(other):
        assert not PASSWORDS.matches(hashed, other)


def test_an_unknown_account_takes_as_long_as_a_known_one() -> None:
    passwords = Passwords(HashCost(3, 4096, 1))
    hashed = passwords.hash(PASSWORD)

    def least(known: str | None) -> float:
        def once() -> float:
            begun = time.perf_counter()
            passwords.matches(known, "another password")
            return time.perf_counter() - begun

        return min(once() for _ in range(5))

    assert 0.5 < least(None) / least(hashed) < 2


def test_a_long_password_is_not_compared_in_part() -> None:
    hashed = PASSWORDS.hash("x" * accounts.LONGEST_PASSWORD)
    assert not PASSWORDS.matches(hashed, "x" * (accounts.LONGEST_PASSWORD + 1))
    assert not PASSWORDS.matches("no hash", PASSWORD)


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short", "12 to 256"),
        ("x" * 257, "12 to 256"),
        ("my ALICE is here", "name of the account"),
        ("ab" * 10, "five different"),
    ],
)
def test_bad_passwords_are_refused(password: str, why: str) -> None:
    with pytest.raises(AccountError, match=why):
        accounts.check_password("alice", password)


def test_one_time_passwords_are_good_and_differ() -> None:
    made = {accounts.one_time_password() for _ in range(100)}
    assert len(made) == 100
    for password in made:
        accounts.check_password("alice", password)


@pytest.mark.parametrize("name", ["", " ", "-x", "a b", "ä", "a" * 33, "a\nb", "../x", "worker:1", "<b>"])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(AccountError, match="A name has"):
        accounts.check_name(name)


# accounts


def test_there_is_no_account_at_first(database: Database) -> None:
    with database.read() as session:
        assert accounts.all_accounts(session) == []


def test_the_last_administrator_stays(database: Database) -> None:
    add(database, "root", Role.ADMINISTRATOR)
    with pytest.raises(AccountError, match="last administrator"), database.write() as session:
        accounts.disable(session, accounts.find(session, "root"), at=START, actor="test")
    with pytest.raises(AccountError, match="last administrator"), database.write() as session:
        accounts.set_role(session, accounts.find(session, "root"), Role.VIEWER, at=START, actor="test")
    add(database, "other", Role.ADMINISTRATOR)
    with database.write() as session:
        accounts.disable(session, accounts.find(session, "root"), at=START, actor="test")
    with pytest.raises(AccountError, match="already"):
        add(database, "ROOT")


def test_every_change_is_an_event(database: Database) -> None:
    add(database)
    hashed = accounts.hashed(PASSWORDS, "alice", "another password", one_time=True)
    with database.write() as session:
        account = accounts.find(session, "alice")
        accounts.set_role(session, account, Role.AUDITOR, at=START, actor="test")
        accounts.disable(session, account, at=START, actor="test")
        accounts.enable(session, account, at=START, actor="test")
        accounts.set_password(session, account, hashed, at=START, actor="test")
    changes = [what for event, _, what in events(database) if event == "account"]
    assert changes == ["added", "role", "disabled", "enabled", "password reset"]


# logins


def test_login_gives_a_token_that_the_database_does_not_hold(database: Database) -> None:
    add(database)
    token = enter(database, name=" Alice ")
    assert len(token) >= 43
    who = visitor(database, token, LIMITS, address=HOME, at=START)
    assert who is not None
    assert (who.name, who.role, who.must_change, who.actor) == ("alice", Role.VIEWER, False, "user:alice")
    raw = Path(str(database.engine.url.database)).read_bytes()
    assert token.encode() not in raw
    assert PASSWORD.encode() not in raw
    assert enter(database) != token


def disabled(database: Database) -> None:
    with database.write() as session:
        accounts.disable(session, accounts.find(session, "alice"), at=START, actor="test")


@pytest.mark.parametrize(
    ("name", "password", "seconds", "prepare", "reason"),
    [
        ("alice", "wrong password", 0, None, "wrong password"),
        ("nobody", PASSWORD, 0, None, "unknown name"),
        ("alice", PASSWORD, 0, disabled, "disabled"),
        ("onetime", PASSWORD, 73 * 3600, None, "one-time password expired"),
    ],
)
def test_refusals_tell_nothing(
    database: Database,
    name: str,
    password: str,
    seconds: float,
    prepare: Callable[[Database], None] | None,
    reason: str,
) -> None:
    add(database)
    add(database, "onetime", one_time=True)
    if prepare is not None:
        prepare(database)
    with pytest.raises(LoginRefusedError) as refused:
        enter(database, password, name, seconds=seconds)
    assert str(refused.value) == "This name and password don't fit, or the account can't be used."
    assert events(database)[-1][0] == "login refused"
    assert events(database)[-1][2] == reason


def test_what_was_typed_as_a_name_is_kept_nowhere(database: Database) -> None:
    with pytest.raises(LoginRefusedError):
        enter(database, "alice", "my secret pass phrase")
    assert b"my secret pass phrase" not in Path(str(database.engine.url.database)).read_bytes()
    assert events(database)[-1][1] == "user:unknown"


@pytest.mark.parametrize("name", ["alice", "nobody"])
def test_an_account_is_locked_for_a_time_that_doubles(database: Database, name: str) -> None:
    add(database)
    waits, now = [], 0.0
    for _ in range(5):
        with pytest.raises(LoginRefusedError, match="fit"):
            enter(database, "wrong password", name, seconds=now)
    for _ in range(9):
        begun = now
        with pytest.raises(LoginRefusedError, match="Too many"):
            enter(database, "wrong password", name, seconds=now)
        with database.read() as session:
            until = max(
                row.locked_until
                for row in session.execute(select(LoginFailures)).scalars()
                if row.locked_until
            )
        now = (until - START).total_seconds()
        waits.append(now - begun)
        with pytest.raises(LoginRefusedError, match="fit"):
            enter(database, "wrong password", name, seconds=now, address=f"10.0.1.{len(waits)}")
    assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert ("login locked", f"user:{'alice' if name == 'alice' else 'unknown'}") in {
        e[:2] for e in events(database)
    }


def test_the_right_password_waits_too_and_then_forgives(database: Database) -> None:
    add(database)
    for _ in range(5):
        with pytest.raises(LoginRefusedError):
            enter(database, "wrong password")
    with pytest.raises(LoginRefusedError, match="Too many"):
        enter(database)
    enter(database, seconds=31)
    for _ in range(4):
        with pytest.raises(LoginRefusedError, match="fit"):
            enter(database, "wrong password", seconds=32)
    enter(database, seconds=33)


def test_an_address_is_locked_whatever_the_names(database: Database) -> None:
    for number in range(20):
        with pytest.raises(LoginRefusedError, match="fit"):
            enter(database, name=f"name{number}", address=f"2001:db8::{number:x}")
    with pytest.raises(LoginRefusedError, match="Too many"):
        enter(database, name="another", address="2001:db8::ffff")
    with pytest.raises(LoginRefusedError, match="fit"):
        enter(database, name="another", address="2001:db8:1::1")


def test_many_at_once_get_no_more_tries(database: Database) -> None:
    add(database)

    def attempt(_number: int) -> str:
        try:
            return enter(database, "wrong password")
        except LoginRefusedError as error:
            return str(error)[:8]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(attempt, range(16)))
    assert answers.count("Too many") == 11


def test_too_many_hashes_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(CHEAP, at_once=1)
    passwords._free.acquire()
    monkeypatch.setattr(passwords._free, "acquire", lambda timeout: False)
    with pytest.raises(BusyError):
        passwords.matches(None, PASSWORD)


def test_an_older_hash_is_renewed_at_login(database: Database) -> None:
    add(database)
    log_in(database, Passwords(HashCost(2, 16, 1)), "alice", PASSWORD, address=HOME, at=START)
    with database.read() as session:
        assert "$m=16,t=2,p=1$" in accounts.find(session, "alice").password_hash


# sessions


@pytest.mark.parametrize(
    ("clicks", "at", "alive"),
    [
        ([], 14, True),
        ([], 16, False),
        ([10, 20, 30], 44, True),
        ([10, 20, 30], 46, False),
        (list(range(10, 720, 10)), 721, False),
    ],
)
def test_a_session_ends_by_time(database: Database, clicks: list[int], at: int, alive: bool) -> None:
    add(database)
    token = enter(database)
    for minute in clicks:
        assert visitor(database, token, LIMITS, address=HOME, at=START + timedelta(minutes=minute))
    end = START + timedelta(minutes=at)
    assert (visitor(database, token, LIMITS, address=HOME, at=end) is not None) is alive
    assert (events(database)[-1][0] == "logout") is not alive


def test_a_page_that_loads_itself_again_keeps_no_session_alive(database: Database) -> None:
    add(database)
    token = enter(database)
    seen = [
        visitor(database, token, LIMITS, address=HOME, at=START + timedelta(minutes=minute), clicked=False)
        for minute in (5, 10, 14, 16)
    ]
    assert [who is not None for who in seen] == [True, True, True, False]


@pytest.mark.parametrize("change", ["disabled", "password"])
def test_disabling_and_a_new_password_end_sessions(database: Database, change: str) -> None:
    add(database)
    token = enter(database)
    hashed = accounts.hashed(PASSWORDS, "alice", "another password", one_time=False)
    with database.write() as session:
        account = accounts.find(session, "alice")
        if change == "disabled":
            accounts.disable(session, account, at=START, actor="test")
            # a session doesn't come back with its account
            accounts.enable(session, account, at=START, actor="test")
        else:
            accounts.set_password(session, account, hashed, at=START, actor="test")
    assert visitor(database, token, LIMITS, address=HOME, at=START) is None


def test_a_role_holds_from_the_next_request_on(database: Database) -> None:
    add(database, "alice", Role.OPERATOR)
    token = enter(database)
    with database.write() as session:
        accounts.set_role(session, accounts.find(session, "alice"), Role.VIEWER, at=START, actor="test")
    who = visitor(database, token, LIMITS, address=HOME, at=START)
    assert who is not None
    assert not who.may(accounts.Permission.ACT)


def test_another_token_is_nobody(database: Database) -> None:
    add(database)
    token = enter(database)
    for other in ("", token[:-1], token + "x", token.swapcase(), "\ud800"):
        assert visitor(database, other, LIMITS, address=HOME, at=START) is None


def test_old_sessions_are_swept_at_a_login(database: Database) -> None:
    add(database)
    enter(database)
    enter(database, seconds=25 * 3600)
    with database.read() as session:
        assert len(session.execute(select(WebSession)).all()) == 1


def test_asking_again_counts_as_a_login(database: Database) -> None:
    add(database)
    who = visitor(database, enter(database), LIMITS, address=HOME, at=START)
    assert who is not None
    for _ in range(5):
        with pytest.raises(LoginRefusedError, match="another one"):
            sessions.confirm(database, PASSWORDS, who, "wrong password", at=START)
    with pytest.raises(LoginRefusedError, match="Too many"):
        sessions.confirm(database, PASSWORDS, who, PASSWORD, at=START)


# the command line


def cli(tmp_path: Path, *words: str, typed: str = "") -> tuple[int, str]:
    config = tmp_path / "pacs-node.toml"
    if not config.exists():
        config.write_text(render_settings(overrides={"storage": {"directory": str(tmp_path / "data")}}))
    answer = CliRunner().invoke(users, [words[0], "--config", str(config), *words[1:]], input=typed)
    return answer.exit_code, answer.output


def test_users_on_the_command_line(tmp_path: Path) -> None:
    typed = f"{PASSWORD}\n{PASSWORD}\n"
    assert cli(tmp_path, "add", "Root", "--role", "administrator", typed=typed)[0] == 0
    code, output = cli(tmp_path, "add", "bob", "--role", "viewer", "--one-time")
    password = output.strip().rpartition(" ")[2]
    assert (code, "valid for 72 hours" in output) == (0, True)
    assert cli(tmp_path, "role", "bob", "operator") == (0, "bob: operator\n")
    assert cli(tmp_path, "disable", "bob") == (0, "bob: disabled\n")
    assert "bob  operator, disabled, last login never" in cli(tmp_path, "list")[1]
    assert cli(tmp_path, "enable", "bob")[0] == 0
    assert (
        cli(tmp_path, "disable", "root")[1]
        == "Error: This is the last administrator: make another one first.\n"
    )
    assert cli(tmp_path, "role", "nobody", "viewer")[0] == 1
    assert "12 to 256" in cli(tmp_path, "reset", "bob", typed="short\nshort\n")[1]
    database = Database(sqlite_url(tmp_path / "data"))
    assert log_in(database, PASSWORDS, "bob", password, address=HOME, at=utc_now())
    assert {actor.partition(":")[0] for event, actor, _ in events(database) if event == "account"} == {"cli"}
    database.dispose()
