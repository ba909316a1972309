"""Tokens of the JSON API: one or more for each client program, shown once, kept as a digest.

A token is 256 random bits, so nobody guesses one and its digest needs no slow hash. What a client may do is
its role, as for people. Every change is an event of the audit record.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.accounts import ALLOWED, AccountError, Permission, check_name
from pacs_node.db import Database, is_full
from pacs_node.db_accounts import Role
from pacs_node.db_tokens import ApiAnswer, ApiToken

#: what programs that look for leaked secrets can look for
_MARK = "pntok_"
_PREFIX = len(_MARK) + 6
_TOUCH = timedelta(minutes=1)
_KEPT = timedelta(hours=24)
_LARGEST_ID = 2**31 - 1


class KeyReusedError(AccountError):
    """The key of a repeated request came with another request."""


@dataclass(frozen=True, slots=True)
class Client:
    """The program that asks.

    Parameters
    ----------
    prefix
        First characters of the token that it showed.
    address
        Where it is.
    """

    token_id: int
    name: str
    role: Role
    prefix: str
    address: str
    expires_at: datetime | None

    @property
    def actor(self) -> str:
        """How the audit record names this program."""
        return actor_of(self.name)

    @property
    def session_id(self) -> str:
        """Tells its looks from those of others."""
        return f"token {self.token_id}"

    def may(self, permission: Permission) -> bool:
        """Whether the role has a permission."""
        return permission in ALLOWED[self.role]


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token, the only time that it can be read."""

    number: int
    secret: str


def actor_of(client: str) -> str:
    """Name of a client program as the audit record has it."""
    return f"client:{client}"


def add(
    session: Session, client: str, role: Role, *, at: datetime, actor: str, expires_at: datetime | None = None
) -> NewToken:
    """Make a token for a client; one that it has already stays.

    Raises
    ------
    AccountError
        The name can't be one, or the time of expiry is over.
    """
    client = check_name(client)
    if expires_at is not None and expires_at <= at:
        raise AccountError("This token would have expired already.")
    secret = _MARK + secrets.token_urlsafe(32)
    row = ApiToken(
        client=client,
        role=role.value,
        prefix=secret[:_PREFIX],
        token_hash=_digest(secret),
        created_at=at,
        created_by=actor,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    expiry = None if expires_at is None else expires_at.isoformat()
    _changed(session, row, "token added", at=at, actor=actor, role=role.value, expires=expiry)
    return NewToken(row.id, secret)


def all_tokens(session: Session) -> Sequence[ApiToken]:
    """Return all tokens by client, the revoked among them."""
    return session.execute(select(ApiToken).order_by(ApiToken.client, ApiToken.id)).scalars().all()


def find(session: Session, number: int) -> ApiToken:
    """Return a token by its number.

    Raises
    ------
    AccountError
        There is none.
    """
    row = session.get(ApiToken, number) if 0 < number <= _LARGEST_ID else None
    if row is None:
        raise AccountError(f"There is no token {number}.")
    return row


def find_valid(session: Session, client: str, prefix: str = "") -> Sequence[ApiToken]:
    """Return the tokens of a client that are not revoked, or the one that begins so.

    Raises
    ------
    AccountError
        There is none.
    """
    query = select(ApiToken).where(ApiToken.client == client.strip().lower(), ApiToken.revoked_at.is_(None))
    rows = [row for row in session.execute(query).scalars() if row.prefix.startswith(prefix)]
    if not rows:
        raise AccountError(f"{client!r} has no such token that is not revoked.")
    return rows


def revoke(session: Session, token: ApiToken, *, at: datetime, actor: str) -> None:
    """Let nobody in by a token any more; once more changes nothing."""
    if token.revoked_at is None:
        token.revoked_at = at
        _changed(session, token, "token revoked", at=at, actor=actor)


def is_valid(token: ApiToken, at: datetime) -> bool:
    """Whether it lets somebody in at this time."""
    return token.revoked_at is None and (token.expires_at is None or token.expires_at > at)


def client_of(database: Database, secret: str, *, address: str, at: datetime) -> Client | None:
    """Who shows this token; None if nobody has it, or it is revoked or expired."""
    with database.read() as session:
        row = session.execute(
            select(ApiToken).where(ApiToken.token_hash == _digest(secret))
        ).scalar_one_or_none()
    if row is None or not is_valid(row, at):
        return None
    if row.last_used_at is None or at - row.last_used_at > _TOUCH or row.last_address != address:
        _touch(database, row.id, address, at)
    return Client(row.id, row.client, Role(row.role), row.prefix, address, row.expires_at)


def _touch(database: Database, number: int, address: str, at: datetime) -> None:
    try:
        with database.write() as session:
            row = session.get_one(ApiToken, number)
            row.last_used_at, row.last_address = at, address
    except OperationalError as error:
        # a full disk is what a monitoring program comes to see
        if not is_full(error):
            raise


def answered(session: Session, who: Client, key: str, request_hash: str) -> int | None:
    """How many rows the request with this key has changed; None if it has not been done.

    Raises
    ------
    KeyReusedError
        It was another request.
    """
    row = session.execute(
        select(ApiAnswer).where(ApiAnswer.token_id == who.token_id, ApiAnswer.key == key)
    ).scalar_one_or_none()
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise KeyReusedError("This Idempotency-Key belongs to another request.")
    return row.changed


def note_answer(
    session: Session, who: Client, key: str, request_hash: str, changed: int, *, at: datetime
) -> None:
    """Remember for 24 hours how a request ended, in the transaction of its change."""
    session.execute(delete(ApiAnswer).where(ApiAnswer.at < at - _KEPT))
    session.add(ApiAnswer(token_id=who.token_id, key=key, request_hash=request_hash, changed=changed, at=at))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _changed(
    session: Session, token: ApiToken, what: str, *, at: datetime, actor: str, **objects: Any
) -> None:
    audit.record(
        session,
        audit.Event.ACCOUNT_CHANGED,
        at=at,
        actor=actor,
        client=token.client,
        token=token.prefix,
        change=what,
        **objects,
    )
