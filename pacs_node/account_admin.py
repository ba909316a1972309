"""What an administrator does with accounts that takes more than one transaction."""

from __future__ import annotations

from datetime import datetime

from pacs_node import accounts, sessions
from pacs_node.accounts import Passwords
from pacs_node.db import Database
from pacs_node.db_accounts import Role


def add_account(
    database: Database, passwords: Passwords, name: str, role: Role, *, at: datetime, actor: str
) -> tuple[str, str]:
    """Add an account; return its name and its one-time password.

    Raises
    ------
    AccountError
        The name can't be one, or is taken.
    """
    name, password = accounts.check_name(name), accounts.one_time_password()
    hashed = accounts.hashed(passwords, name, password, one_time=True)
    with database.write() as session:
        accounts.add(session, name, role, hashed, at=at, actor=actor)
    return name, password


def reset_account(
    database: Database, passwords: Passwords, name: str, *, at: datetime, actor: str
) -> tuple[str, str]:
    """Give an account a one-time password and unlock it; return its name and the password.

    Raises
    ------
    AccountError
        There is no such account.
    """
    password = accounts.one_time_password()
    with database.read() as session:
        name = accounts.find(session, name).name
    hashed = accounts.hashed(passwords, name, password, one_time=True)
    with database.write() as session:
        account = accounts.find(session, name)
        accounts.set_password(session, account, hashed, at=at, actor=actor)
        sessions.forget_failures(session, name)
    return name, password
