"""What many commands share: the configuration file, who types, and the database of accounts and tokens."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from pacs_node.accounts import AccountError
from pacs_node.config import load_settings
from pacs_node.db import Database
from pacs_node.storage import open_database

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("pacs-node.toml"),
    show_default=True,
    envvar="PACS_NODE_CONFIG",
    show_envvar=True,
    help="Configuration file.",
)
"""Gives a command its `config_path`."""


def operator() -> str:
    """Who types, for the audit record: the account of the operating system."""
    return f"cli:{getpass.getuser()}"


@contextmanager
def opened_accounts(config_path: Path) -> Iterator[Database]:
    """Open the database of a node; an `AccountError` ends the command with its sentence."""
    database = open_database(load_settings(config_path))
    try:
        yield database
    except AccountError as error:
        raise click.ClickException(str(error)) from None
    finally:
        database.dispose()
