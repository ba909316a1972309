"""``pacs-node users``: the accounts of the page, from the node's own machine."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import click
from sqlalchemy.orm import Session

from pacs_node import accounts
from pacs_node.accounts import Passwords
from pacs_node.cli_options import config_option, opened_accounts, operator
from pacs_node.clock import utc_now
from pacs_node.db_accounts import Account, Role
from pacs_node.sessions import forget_failures

_role = click.Choice([role.value for role in Role])
_one_time = click.option(
    "--one-time",
    is_flag=True,
    help="Make a password and show it once; it must be changed at the first login.",
)


@click.group()
def users() -> None:
    """Accounts of the page: who may look, act, audit and administer.

    There is no default account. The first one: pacs-node users add NAME --role administrator
    """


def _password(name: str, *, one_time: bool) -> str:
    if one_time:
        return accounts.one_time_password()
    return str(click.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True))


def _show(password: str, *, one_time: bool) -> None:
    if one_time:
        hours = accounts.ONE_TIME.total_seconds() / 3600
        click.echo(f"One-time password, valid for {hours:.0f} hours: {password}")


@users.command("add")
@config_option
@click.argument("name")
@click.option("--role", type=_role, required=True, help="What the account may do.")
@_one_time
def add_command(config_path: Path, name: str, role: str, *, one_time: bool) -> None:
    """Add an account; asks for its password."""
    with opened_accounts(config_path) as database:
        name = accounts.check_name(name)
        password = _password(name, one_time=one_time)
        hashed = accounts.hashed(Passwords(), name, password, one_time=one_time)
        with database.write() as session:
            accounts.add(session, name, Role(role), hashed, at=utc_now(), actor=operator())
    click.echo(f"added {name} ({role})")
    _show(password, one_time=one_time)


@users.command("list")
@config_option
def list_command(config_path: Path) -> None:
    """Show all accounts."""
    with opened_accounts(config_path) as database, database.read() as session:
        for account in accounts.all_accounts(session):
            login = f"{account.last_login_at:%Y-%m-%d %H:%M} UTC" if account.last_login_at else "never"
            state = ", disabled" if account.disabled_at else ""
            click.echo(f"{account.name}  {account.role}{state}, last login {login}")


def _change(
    config_path: Path, name: str, change: Callable[[Session, Account, datetime], None], done: str
) -> None:
    with opened_accounts(config_path) as database, database.write() as session:
        account = accounts.find(session, name)
        change(session, account, utc_now())
        name = account.name
    click.echo(f"{name}: {done}")


@users.command("role")
@config_option
@click.argument("name")
@click.argument("role", type=_role)
def role_command(config_path: Path, name: str, role: str) -> None:
    """Give an account another role."""
    _change(
        config_path,
        name,
        lambda session, account, at: accounts.set_role(session, account, Role(role), at=at, actor=operator()),
        role,
    )


@users.command("disable")
@config_option
@click.argument("name")
def disable_command(config_path: Path, name: str) -> None:
    """Let nobody log in by an account any more, and end its sessions."""
    _change(
        config_path,
        name,
        lambda session, account, at: accounts.disable(session, account, at=at, actor=operator()),
        "disabled",
    )


@users.command("enable")
@config_option
@click.argument("name")
def enable_command(config_path: Path, name: str) -> None:
    """Let a disabled account log in again."""
    _change(
        config_path,
        name,
        lambda session, account, at: accounts.enable(session, account, at=at, actor=operator()),
        "enabled",
    )


@users.command("reset")
@config_option
@click.argument("name")
@_one_time
def reset_command(config_path: Path, name: str, *, one_time: bool) -> None:
    """Set another password, unlock the account and end its sessions."""
    with opened_accounts(config_path) as database:
        with database.read() as session:
            name = accounts.find(session, name).name
        password = _password(name, one_time=one_time)
        hashed = accounts.hashed(Passwords(), name, password, one_time=one_time)
        with database.write() as session:
            account = accounts.find(session, name)
            accounts.set_password(session, account, hashed, at=utc_now(), actor=operator())
            forget_failures(session, name)
    click.echo(f"{name}: password set")
    _show(password, one_time=one_time)
