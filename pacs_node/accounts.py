"""Accounts of the page: who there is, what each may do, and how passwords are kept.

There is no default account and no default password: ``pacs-node users add`` on the node's own machine makes
the first administrator. Every change is an event of the audit record.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from threading import BoundedSemaphore
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.db_accounts import Account, Role, WebSession
from pacs_node.errors import NodeError

SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 256
ONE_TIME = timedelta(hours=72)
"""How long a password that somebody else knew may be used for the first login."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class AccountError(NodeError):
    """What was asked for an account can't be done; the text says why."""


class BusyError(NodeError):
    """Too many passwords are being checked at this moment."""


class Permission(StrEnum):
    """What a role may do on the page."""

    #: patient data: studies, results, pictures
    LOOK = "look"
    #: requeue, hold and send studies
    ACT = "act"
    #: verdicts on findings
    JUDGE = "judge"
    AUDIT = "audit"
    #: accounts
    MANAGE = "manage"
    #: one's own password and logout
    SELF = "self"


_P = Permission
ALLOWED: dict[Role, frozenset[Permission]] = {
    Role.VIEWER: frozenset({_P.SELF, _P.LOOK}),
    Role.READER: frozenset({_P.SELF, _P.LOOK, _P.JUDGE}),
    Role.OPERATOR: frozenset({_P.SELF, _P.LOOK, _P.ACT}),
    Role.AUDITOR: frozenset({_P.SELF, _P.LOOK, _P.AUDIT}),
    Role.ADMINISTRATOR: frozenset(Permission),
}
"""The whole matrix of roles and permissions."""


@dataclass(frozen=True, slots=True)
class HashCost:
    """Cost of argon2id; the default is the second recommendation of RFC 9106, section 4.

    Parameters
    ----------
    passes
        Iterations.
    memory_kib
        Memory of one hash, KiB.
    lanes
        Degree of parallelism.
    """

    passes: int = 3
    memory_kib: int = 65536
    lanes: int = 4


class Passwords:
    """Hashes passwords and compares them.

    Parameters
    ----------
    cost
        Of new hashes; older ones keep theirs until they are renewed at a login.
    at_once
        How many are computed at the same time, as each takes memory.
    """

    def __init__(self, cost: HashCost | None = None, at_once: int = 2) -> None:
        cost = cost or HashCost()
        self._hasher = PasswordHasher(cost.passes, cost.memory_kib, cost.lanes)
        self._free = BoundedSemaphore(at_once)
        #: of nobody: an unknown name must take as long as a known one
        self._nobody = self._hasher.hash(secrets.token_urlsafe(16))

    def hash(self, password: str) -> str:
        """Return the argon2id hash with a new salt."""
        return self._hasher.hash(_normal(password))

    def matches(self, hashed: str | None, password: str) -> bool:
        """Compare; None stands for an unknown account, which takes as long and never matches.

        Raises
        ------
        BusyError
            No turn came within five seconds.
        """
        password = _normal(password)
        known = hashed if len(password) <= LONGEST_PASSWORD else None
        if not self._free.acquire(timeout=5.0):
            raise BusyError("Too many logins at this moment. Try again.")
        try:
            self._hasher.verify(known or self._nobody, password[:LONGEST_PASSWORD])
        except (VerificationError, InvalidHashError):
            return False
        finally:
            self._free.release()
        return known is not None

    def is_outdated(self, hashed: str) -> bool:
        """Whether a hash was made at another cost."""
        return self._hasher.check_needs_rehash(hashed)


def _normal(password: str) -> str:
    """The same password from every keyboard (NIST SP 800-63B 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


def check_name(name: str) -> str:
    """Return a name as it is kept, in lower case.

    Raises
    ------
    AccountError
        It has other characters, or is too long.
    """
    name = name.strip().lower()
    if not _NAME.fullmatch(name):
        raise AccountError(
            "A name has 1 to 32 characters: letters a to z, digits, dot, hyphen and underscore, "
            "the first a letter or digit."
        )
    return name


def check_password(name: str, password: str) -> None:
    """Hold a new password against the rules: its length, and that it doesn't hold the name.

    Raises
    ------
    AccountError
        It breaks one.
    """
    password = _normal(password)
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise AccountError(f"A password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters.")
    if name in password.lower():
        raise AccountError("The password must not contain the name of the account.")
    if len(set(password)) < 5:
        raise AccountError("The password must have at least five different characters.")


def one_time_password() -> str:
    """Return a random password of 120 bits for handing over; the account must change it."""
    return secrets.token_urlsafe(15)


def all_accounts(session: Session) -> Sequence[Account]:
    """Return all accounts by name."""
    return session.execute(select(Account).order_by(Account.name)).scalars().all()


def find(session: Session, name: str) -> Account:
    """Return an account by its name.

    Raises
    ------
    AccountError
        There is none.
    """
    account = session.execute(
        select(Account).where(Account.name == name.strip().lower())
    ).scalar_one_or_none()
    if account is None:
        raise AccountError(f"There is no account {name!r}.")
    return account


@dataclass(frozen=True, slots=True)
class Hashed:
    """A new password, checked and hashed outside of any transaction: that takes a while.

    Parameters
    ----------
    one_time
        Somebody else knew it.
    """

    value: str
    one_time: bool


def hashed(passwords: Passwords, name: str, password: str, *, one_time: bool) -> Hashed:
    """Check and hash a new password.

    Raises
    ------
    AccountError
        It breaks a rule; see `check_password`.
    """
    check_password(name, password)
    return Hashed(passwords.hash(password), one_time)


def add(session: Session, name: str, role: Role, password: Hashed, *, at: datetime, actor: str) -> Account:
    """Add an account.

    Raises
    ------
    AccountError
        The name can't be one, or is taken, perhaps by a disabled account.
    """
    name = check_name(name)
    if session.execute(select(Account.id).where(Account.name == name)).first() is not None:
        raise AccountError(f"There is an account {name!r} already.")
    account = Account(
        name=name,
        role=role.value,
        password_hash=password.value,
        one_time_until=at + ONE_TIME if password.one_time else None,
        created_at=at,
        password_changed_at=at,
    )
    session.add(account)
    _changed(session, account, "added", at=at, actor=actor, role=role.value)
    return account


def set_role(session: Session, account: Account, role: Role, *, at: datetime, actor: str) -> None:
    """Give an account another role; it holds from the next request on.

    Raises
    ------
    AccountError
        It is the last administrator, or its role comes from a provider.
    """
    _keep_ours(account, "role")
    if role is not Role.ADMINISTRATOR:
        _keep_one(session, account)
    old, account.role = account.role, role.value
    _changed(session, account, "role", at=at, actor=actor, role=role.value, old_role=old)


def disable(session: Session, account: Account, *, at: datetime, actor: str) -> None:
    """Let nobody log in by an account any more, and end its sessions.

    Raises
    ------
    AccountError
        It is the last administrator.
    """
    _keep_one(session, account)
    account.disabled_at = at
    end_sessions(session, account)
    _changed(session, account, "disabled", at=at, actor=actor)


def enable(session: Session, account: Account, *, at: datetime, actor: str) -> None:
    """Let a disabled account log in again."""
    account.disabled_at = None
    _changed(session, account, "enabled", at=at, actor=actor)


def set_password(session: Session, account: Account, password: Hashed, *, at: datetime, actor: str) -> None:
    """Set a password and end the account's sessions.

    Raises
    ------
    AccountError
        Its password is kept by a provider.
    """
    _keep_ours(account, "password")
    account.password_hash = password.value
    account.one_time_until = at + ONE_TIME if password.one_time else None
    account.password_changed_at = at
    end_sessions(session, account)
    what = "password reset" if password.one_time else "password changed"
    _changed(session, account, what, at=at, actor=actor)


def end_sessions(session: Session, account: Account) -> None:
    """End all sessions of an account."""
    session.execute(delete(WebSession).where(WebSession.account_id == account.id))


def external(
    session: Session, issuer: str, subject: str, name: str, role: Role, *, at: datetime, actor: str
) -> Account:
    """Return the account of somebody whom a provider has named, with the role that it has said.

    It is made at the first login. Whatever the provider calls somebody, no other account becomes theirs.

    Parameters
    ----------
    issuer, subject
        Tell who it is.
    name
        For a new account: what can't stand in a name is left out, and one that is taken gets an ending.
    """
    known = select(Account).where(Account.issuer == issuer, Account.subject == subject)
    account = session.execute(known).scalar_one_or_none()
    if account is None:
        account = Account(
            name=_free_name(session, name, issuer, subject),
            role=role.value,
            password_hash="",
            issuer=issuer,
            subject=subject,
            created_at=at,
            password_changed_at=at,
        )
        session.add(account)
        session.flush()
        _changed(session, account, "added", at=at, actor=actor, role=role.value, issuer=issuer)
    elif account.role != role.value:
        old, account.role = account.role, role.value
        _changed(session, account, "role", at=at, actor=actor, role=role.value, old_role=old, issuer=issuer)
    return account


def _free_name(session: Session, wanted: str, issuer: str, subject: str) -> str:
    plain = unicodedata.normalize("NFKD", wanted).encode("ascii", "ignore").decode("ascii").lower()
    plain = re.sub(r"[^a-z0-9._-]+", "-", plain.partition("@")[0]).strip("._-")[:23] or "person"
    taken = session.execute(select(Account.id).where(Account.name == plain)).first() is not None
    ending = hashlib.sha256(f"{issuer} {subject}".encode()).hexdigest()[:8]
    return f"{plain}-{ending}" if taken else plain


def _keep_ours(account: Account, what: str) -> None:
    if account.is_external:
        raise AccountError(f"The {what} of {account.name} is kept by the provider of its logins.")


def _keep_one(session: Session, account: Account) -> None:
    if account.role != Role.ADMINISTRATOR or account.disabled_at is not None:
        return
    left = select(func.count(Account.id)).where(
        Account.role == Role.ADMINISTRATOR.value, Account.disabled_at.is_(None), Account.id != account.id
    )
    if not session.execute(left).scalar_one():
        raise AccountError("This is the last administrator: make another one first.")


def _changed(
    session: Session, account: Account, what: str, *, at: datetime, actor: str, **objects: Any
) -> None:
    audit.record(
        session, audit.Event.ACCOUNT_CHANGED, at=at, actor=actor, account=account.name, change=what, **objects
    )
