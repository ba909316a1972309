"""Tables of the page's accounts, sessions and failed logins."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from pacs_node.db import Base


class Role(StrEnum):
    """What an account is for; `pacs_node.accounts.ALLOWED` says what it may do."""

    VIEWER = "viewer"
    #: a radiologist who judges findings
    READER = "reader"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    ADMINISTRATOR = "administrator"


class Account(Base):
    """Somebody who may log in. Accounts are disabled, never removed: the audit record names them."""

    __tablename__ = "account"
    __table_args__ = (Index("account_external", "issuer", "subject", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    #: a value of `Role`
    role: Mapped[str]
    #: argon2id, with its salt and cost; empty where it has no password here
    password_hash: Mapped[str]
    #: OpenID Connect provider and its name for the person, which never changes; None: an account of the page
    issuer: Mapped[str | None]
    subject: Mapped[str | None]
    #: one that somebody else knew: must be changed at the first login, and before this time
    one_time_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    password_changed_at: Mapped[datetime]
    last_login_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]

    @property
    def is_external(self) -> bool:
        """Whether a provider says who this is and what role it has."""
        return self.subject is not None


class WebSession(Base):
    """A browser that is logged in. Its token is known to the browser only."""

    __tablename__ = "web_session"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: SHA-256 of the token
    token_hash: Mapped[str] = mapped_column(unique=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), index=True)
    address: Mapped[str]
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    account: Mapped[Account] = relationship()


class LoginFailures(Base):
    """Failed logins of a name or an address, as long as they count."""

    __tablename__ = "login_failures"

    #: SHA-256 of the name or address: what was typed as a name may be a password
    subject: Mapped[str] = mapped_column(primary_key=True)
    count: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(index=True)
    locked_until: Mapped[datetime | None]
