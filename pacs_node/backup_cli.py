"""``pacs-node backup`` and ``pacs-node restore``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from pacs_node.backup import Report, back_up, restore
from pacs_node.clock import utc_now
from pacs_node.config import Settings, load_settings
from pacs_node.db import sqlite_url
from pacs_node.errors import BackupError

_MOST = 20

_config = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("pacs-node.toml"),
    show_default=True,
    help="Configuration file.",
)
_folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.command("backup")
@_config
@_folder
def backup_command(config_path: Path, folder: Path) -> None:
    """Copy database, images and results into FOLDER while the node works; again: what is new.

    The configuration, its keys and its passwords are not in it. Exit status: 0 whole; 3 files are missing or
    altered in the node itself.
    """
    settings = load_settings(config_path)
    database, storage = _places(settings)
    if not database.exists():
        raise click.ClickException(f"{database}: there is no node yet")
    started = time.monotonic()
    try:
        report = back_up(database, storage, folder.absolute(), utc_now())
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    _show(report, f"backup of {report.files} files, {report.copied} of them new", time.monotonic() - started)


@click.command("restore")
@_config
@_folder
def restore_command(config_path: Path, folder: Path) -> None:
    """Put the backup in FOLDER where the configuration says; every file is held against its row.

    Overwrites nothing: the storage directory must be empty. Start the node afterwards. What came after the
    backup must be sent again; what was delivered after it is delivered again, as the same objects. Exit
    status: 0 whole; 3 files are missing or altered.
    """
    database, storage = _places(load_settings(config_path))
    started = time.monotonic()
    try:
        report = restore(folder.absolute(), database, storage)
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    _show(report, f"restored {report.copied} of {report.files} files", time.monotonic() - started)


def _places(settings: Settings) -> tuple[Path, Path]:
    storage = Path(settings.storage.directory)
    url = settings.storage.database_url or sqlite_url(storage)
    if not url.startswith("sqlite:///"):
        raise click.ClickException("the database is no SQLite file: use pg_dump for it")
    return Path(url.removeprefix("sqlite:///")), storage


def _show(report: Report, done: str, seconds: float) -> None:
    click.echo(f"{done}, in {seconds:.1f} s")
    for word, paths in (("missing", report.missing), ("altered", report.altered)):
        for path in paths[:_MOST]:
            click.echo(f"{word}: {path}")
        if len(paths) > _MOST:
            click.echo(f"{word}: {len(paths) - _MOST} more")
    click.echo("It holds patient data. Research use only, not for primary diagnosis.")
    sys.exit(0 if report.whole else 3)
