"""Tables of the JSON API: tokens of client programs, and answers that a repeated request gets again."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from pacs_node.db import Base


class ApiToken(Base):
    """What a client program shows. Tokens are revoked, never removed: the audit record names the client."""

    __tablename__ = "api_token"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: name of the program; one that changes its token has two for a while
    client: Mapped[str] = mapped_column(index=True)
    #: a value of `pacs_node.db_accounts.Role`
    role: Mapped[str]
    #: its first characters, by which people recognise it
    prefix: Mapped[str]
    #: SHA-256 of the token: 256 random bits need no slow hash
    token_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    #: who made it, as the audit record names them
    created_by: Mapped[str]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    last_address: Mapped[str | None]
    revoked_at: Mapped[datetime | None]


class ApiAnswer(Base):
    """How a change ended that a client named by a key: sent again, it isn't done again."""

    __tablename__ = "api_answer"
    __table_args__ = (UniqueConstraint("token_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    token_id: Mapped[int] = mapped_column(ForeignKey("api_token.id"))
    #: Idempotency-Key of the request
    key: Mapped[str]
    #: SHA-256 of method, path and body: under the same key they must be the same
    request_hash: Mapped[str]
    #: number of rows that the change touched
    changed: Mapped[int]
    at: Mapped[datetime] = mapped_column(index=True)
