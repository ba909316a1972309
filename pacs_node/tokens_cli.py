"""``pacs-node tokens``: the tokens of programs that use the JSON API, from the node's own machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from pacs_node import tokens as api_tokens
from pacs_node.cli_options import config_option, opened_accounts, operator
from pacs_node.clock import utc_now
from pacs_node.db_accounts import Role


@click.group()
def tokens() -> None:
    """Tokens of programs that use the JSON API: make, list and revoke them."""


@tokens.command("add")
@config_option
@click.argument("name")
@click.option(
    "--role", type=click.Choice([role.value for role in Role]), required=True, help="What the program may do."
)
@click.option(
    "--expires",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M"]),
    default=None,
    help="Valid until this day or time, UTC; without it until it is revoked.",
)
def add_command(config_path: Path, name: str, role: str, expires: datetime | None) -> None:
    """Make a token for the program NAME and show it, this one time."""
    until = None if expires is None else expires.replace(tzinfo=UTC)
    with opened_accounts(config_path) as database, database.write() as session:
        made = api_tokens.add(session, name, Role(role), at=utc_now(), actor=operator(), expires_at=until)
    click.echo(made.secret)
    click.echo("Hand it over now: it is not shown again.", err=True)


@tokens.command("list")
@config_option
def list_command(config_path: Path) -> None:
    """Show all tokens by their first characters."""
    now = utc_now()
    with opened_accounts(config_path) as database, database.read() as session:
        for row in api_tokens.all_tokens(session):
            expiry = f", expires {row.expires_at:%Y-%m-%d %H:%M} UTC" if row.expires_at else ""
            used = f"{row.last_used_at:%Y-%m-%d %H:%M} UTC" if row.last_used_at else "never"
            state = "revoked" if row.revoked_at else "valid" if api_tokens.is_valid(row, now) else "expired"
            click.echo(f"{row.client}  {row.prefix}...  {row.role}, {state}{expiry}, last used {used}")


@tokens.command("revoke")
@config_option
@click.argument("name")
@click.option("--token", "prefix", default="", help="Only the one that begins so.")
def revoke_command(config_path: Path, name: str, prefix: str) -> None:
    """Let nobody in by the tokens of the program NAME any more."""
    with opened_accounts(config_path) as database, database.write() as session:
        rows = api_tokens.find_valid(session, name, prefix)
        for row in rows:
            api_tokens.revoke(session, row, at=utc_now(), actor=operator())
    click.echo(f"{name}: {len(rows)} revoked")
