"""Logins and sessions of the page, kept in the database: whoever has a session's token is its user.

A login is counted as failed before the password is looked at and taken back after, so many at the same time
get no more tries than one after the other. Names and addresses are locked for a time that doubles.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.accounts import ALLOWED, AccountError, Passwords, Permission, end_sessions, external
from pacs_node.audit import Event, Outcome
from pacs_node.db import Database, is_full
from pacs_node.db_accounts import Account, LoginFailures, Role, WebSession

FREE_TRIES = {"account": 5, "address": 20}
"""Failed logins before the first lock."""

_FIRST_LOCK, _LONGEST_LOCK = timedelta(seconds=30), timedelta(hours=1)
_PROVIDER = "single sign-on"
_FORGOTTEN = timedelta(hours=24)
_TOUCH = timedelta(minutes=1)
_LONGEST_IDLE = timedelta(hours=24)  # as the settings allow
_WRONG = "This name and password don't fit, or the account can't be used."


class LoginRefusedError(AccountError):
    """The text doesn't tell a wrong name from a wrong password."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a session lasts: without a click, at all, and at all where a provider says who it is."""

    idle: timedelta
    longest: timedelta
    external: timedelta = timedelta(hours=2)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks for a page.

    Parameters
    ----------
    session_id
        Number of the session; tells one login from another.
    csrf
        What each form must send back: derived from the token, which no other page knows.
    must_change
        The password is a one-time password: nothing works before it is changed.
    is_external
        A provider says who it is; there is no password here.
    """

    account_id: int
    name: str
    role: Role
    session_id: int
    csrf: str
    address: str
    must_change: bool
    is_external: bool = False

    @property
    def actor(self) -> str:
        """How the audit record names this person."""
        return actor_of(self.name)

    def may(self, permission: Permission) -> bool:
        """Whether the role has a permission."""
        return permission in ALLOWED[self.role]


def actor_of(name: str) -> str:
    """Name of an account as the audit record has it."""
    return f"user:{name}"


def csrf_of(token: str) -> str:
    """Return the value that forms send back for a token."""
    return _sha256(f"csrf {token}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def log_in(
    database: Database, passwords: Passwords, name: str, password: str, *, address: str, at: datetime
) -> str:
    """Check a password and begin a session; return its token, 256 random bits.

    Raises
    ------
    LoginRefusedError
        Wrong, unknown, disabled, expired or locked.
    BusyError
        Too many passwords are being checked.
    """
    name = name.strip().lower()
    counts = _count_a_try(database, _subjects(name, address), at)
    with database.read() as session:
        account = session.execute(select(Account).where(Account.name == name)).scalar_one_or_none()
    # an account without a password takes as long as any other
    fits = passwords.matches((account and account.password_hash) or None, password)
    why = _why_not(account, at) if fits else ("wrong password" if account is not None else "unknown name")
    if account is None or why:
        _note_refused(database, account, why, counts, address=address, at=at)
        raise LoginRefusedError(_WRONG)
    renewed = passwords.hash(password) if passwords.is_outdated(account.password_hash) else None
    return _begin(database, account, renewed, address=address, at=at)


def count_external(database: Database, address: str, at: datetime) -> dict[str, int]:
    """Count a provider's answer as a failed login before it is looked at; `log_in_external` takes it back.

    Raises
    ------
    LoginRefusedError
        Too many have come from this address.
    """
    return _count_a_try(database, {"address": _subjects("", address)["address"]}, at)


def refuse_external(
    database: Database, reason: str, counts: dict[str, int], *, address: str, at: datetime
) -> None:
    """Record that somebody who came from a provider was not let in."""
    _note_refused(database, None, f"single sign-on: {reason}", counts, address=address, at=at)


def log_in_external(
    database: Database,
    issuer: str,
    subject: str,
    name: str,
    role: Role | None,
    *,
    address: str,
    at: datetime,
) -> str:
    """Begin a session of somebody whom a provider has named; return its token, 256 random bits.

    Parameters
    ----------
    role
        None: the provider gives them none any more; their sessions end.

    Raises
    ------
    LoginRefusedError
        They have no role, or the account was disabled here.
    """
    with database.write() as session:
        if role is None:
            for known in session.scalars(
                select(Account).where(Account.issuer == issuer, Account.subject == subject)
            ):
                end_sessions(session, known)
            account = None
        else:
            account = external(session, issuer, subject, name, role, at=at, actor=_PROVIDER)
    if account is None:
        raise LoginRefusedError("None of your groups has a role on this node.")
    if account.disabled_at is not None:
        raise LoginRefusedError("Your account was disabled on this node.")
    return _begin(database, account, None, address=address, at=at)


def _why_not(account: Account | None, at: datetime) -> str:
    if account is None or account.disabled_at is not None:
        return "disabled"
    return "one-time password expired" if account.one_time_until and account.one_time_until <= at else ""


def _subjects(name: str, address: str) -> dict[str, str]:
    return {"account": _sha256(f"account {name}"), "address": _sha256(f"address {_network(address)}")}


def _network(address: str) -> str:
    """An IPv6 host has a whole /64 to choose its address from."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


def _count_a_try(database: Database, subjects: dict[str, str], at: datetime) -> dict[str, int]:
    counts: dict[str, int] = {}
    with database.write() as session:
        session.execute(delete(LoginFailures).where(LoginFailures.last_at < at - _FORGOTTEN))
        rows = {
            kind: session.get(LoginFailures, subject) or LoginFailures(subject=subject, count=0, last_at=at)
            for kind, subject in subjects.items()
        }
        until = max((row.locked_until for row in rows.values() if row.locked_until), default=at)
        if until > at:
            minutes = -((at - until) // timedelta(minutes=1))
            raise LoginRefusedError(f"Too many failed logins. Try again in {minutes} min.")
        for kind, row in rows.items():
            row.count += 1
            row.last_at = at
            over = row.count - FREE_TRIES[kind]
            if over >= 0:
                row.locked_until = at + min(_FIRST_LOCK * 2 ** min(over, 10), _LONGEST_LOCK)
            counts[kind] = over
            session.add(row)
    return counts


def _note_refused(
    database: Database,
    account: Account | None,
    why: str,
    counts: dict[str, int],
    *,
    address: str,
    at: datetime,
) -> None:
    # what was typed as an unknown name may be a password
    actor = actor_of("unknown" if account is None else account.name)
    with database.write() as session:
        audit.record(
            session, Event.LOGIN_REFUSED, at=at, actor=actor, outcome=Outcome.MINOR_FAILURE,
            address=address, reason=why,
        )  # fmt: skip
        locked = [kind for kind, over in counts.items() if over >= 0]
        if locked:
            audit.record(
                session, Event.LOGIN_LOCKED, at=at, actor=actor, outcome=Outcome.SERIOUS_FAILURE,
                address=address, reason=f"too many failed logins of this {' and this '.join(locked)}",
            )  # fmt: skip


def _begin(database: Database, account: Account, renewed: str | None, *, address: str, at: datetime) -> str:
    token = secrets.token_urlsafe(32)
    with database.write() as session:
        row = session.get_one(Account, account.id)
        if row.disabled_at is not None or row.password_hash != account.password_hash:
            raise LoginRefusedError(_WRONG)
        row.last_login_at = at
        row.password_hash = renewed or row.password_hash
        forget_failures(session, row.name)
        session.execute(delete(WebSession).where(WebSession.last_seen_at < at - _LONGEST_IDLE))
        _take_back(session, address)
        session.add(
            WebSession(
                token_hash=_sha256(token), account_id=row.id, address=address, created_at=at, last_seen_at=at
            )
        )
        audit.record(session, Event.LOGGED_IN, at=at, actor=actor_of(row.name), address=address)
    return token


def confirm(database: Database, passwords: Passwords, who: Visitor, password: str, *, at: datetime) -> None:
    """Check the password of somebody who is logged in once more; failures count as those of logins do.

    Raises
    ------
    LoginRefusedError
        It is another one, or the account is locked.
    BusyError
        Too many passwords are being checked.
    """
    counts = _count_a_try(database, _subjects(who.name, who.address), at)
    with database.read() as session:
        account = session.get_one(Account, who.account_id)
    if not passwords.matches(account.password_hash or None, password):
        _note_refused(database, account, "wrong password", counts, address=who.address, at=at)
        raise LoginRefusedError("The current password is another one.")
    with database.write() as session:
        forget_failures(session, who.name)
        _take_back(session, who.address)


def _take_back(session: Session, address: str) -> None:
    row = session.get(LoginFailures, _subjects("", address)["address"])
    if row is not None:
        row.count -= 1
        row.locked_until = None


def forget_failures(session: Session, name: str) -> None:
    """Unlock an account."""
    session.execute(delete(LoginFailures).where(LoginFailures.subject == _subjects(name, "")["account"]))


def visitor(
    database: Database, token: str, limits: Limits, *, address: str, at: datetime, clicked: bool = True
) -> Visitor | None:
    """Who has this token; None if nobody, or no longer.

    Parameters
    ----------
    clicked
        Whether a person asked: a page that loads itself again keeps no session alive.
    """
    known = select(WebSession).where(WebSession.token_hash == _sha256(token))
    with database.read() as session:
        row = session.execute(known).scalar_one_or_none()
        if row is None:
            return None
        account = row.account
    longest = min(limits.longest, limits.external) if account.is_external else limits.longest
    if at - row.last_seen_at > limits.idle or at - row.created_at > longest:
        _end(database, row.id, at, "time")
        return None
    if account.disabled_at is not None:
        return None
    if clicked and at - row.last_seen_at > _TOUCH:
        _touch(database, row.id, at)
    return Visitor(
        account.id,
        account.name,
        Role(account.role),
        row.id,
        csrf_of(token),
        address,
        account.one_time_until is not None,
        account.is_external,
    )


def _touch(database: Database, session_id: int, at: datetime) -> None:
    try:
        with database.write() as session:
            row = session.get(WebSession, session_id)
            if row is not None:
                row.last_seen_at = at
    except OperationalError as error:
        # a full disk is what an administrator comes to see
        if not is_full(error):
            raise


def log_out(database: Database, who: Visitor, at: datetime) -> None:
    """End a session."""
    _end(database, who.session_id, at, "asked for")


def _end(database: Database, session_id: int, at: datetime, reason: str) -> None:
    with database.write() as session:
        row = session.get(WebSession, session_id)
        if row is None:
            return
        audit.record(
            session,
            Event.LOGGED_OUT,
            at=at,
            actor=actor_of(row.account.name),
            address=row.address,
            reason=reason,
        )
        session.delete(row)
