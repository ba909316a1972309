"""``pacs-node backup`` and ``pacs-node restore``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from sqlalchemy.exc import DatabaseError

from pacs_node.backup import Report, back_up, restore
from pacs_node.backup_rows import rows_of
from pacs_node.cli_options import config_option
from pacs_node.clock import utc_now
from pacs_node.config import load_settings
from pacs_node.errors import BackupError
from pacs_node.storage import database_url

_MOST = 20

_folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@click.command("backup")
@config_option
@_folder
@click.option("--verify", is_flag=True, help="Hold each file that is there against its row, not only a part.")
def backup_command(config_path: Path, folder: Path, verify: bool) -> None:
    """Copy database, images and results into FOLDER while the node works; again: what is new.

    Each time a thirtieth of the files in FOLDER is held against its rows, in turn; what has rotted there is
    copied again and named. The configuration, its keys and its passwords are not in it. Exit status: 0 whole;
    3 files are missing or altered in the node itself.
    """
    settings = load_settings(config_path)
    url, storage = database_url(settings), Path(settings.storage.directory)
    rows = rows_of(url)
    started = time.monotonic()
    with _explained():
        if not rows.are_there():
            raise BackupError(f"{url}: there is no node yet")
        report = back_up(rows, storage, folder.absolute(), utc_now(), verify=verify)
    _show(report, f"backup of {report.files} files, {report.copied} of them new", time.monotonic() - started)


@click.command("restore")
@config_option
@_folder
def restore_command(config_path: Path, folder: Path) -> None:
    """Put the backup in FOLDER where the configuration says; every file is held against its row.

    Overwrites nothing: the storage directory must be empty, and so a database of PostgreSQL (createdb). Start
    the node afterwards. What came after the backup must be sent again; what was delivered after it is
    delivered again, as the same objects. Exit status: 0 whole; 3 files are missing or altered.
    """
    settings = load_settings(config_path)
    started = time.monotonic()
    with _explained():
        rows = rows_of(database_url(settings))
        report = restore(folder.absolute(), rows, Path(settings.storage.directory))
    _show(report, f"restored {report.copied} of {report.files} files", time.monotonic() - started)


@contextmanager
def _explained() -> Iterator[None]:
    """Say what went wrong in a sentence."""
    try:
        yield
    except BackupError as error:
        raise click.ClickException(str(error)) from None
    except DatabaseError as error:
        # the driver's words: those of SQLAlchemy quote the statement
        raise click.ClickException(f"the database can't be read: {error.orig}") from None


def _show(report: Report, done: str, seconds: float) -> None:
    click.echo(f"{done}, in {seconds:.1f} s")
    mended = "altered in the backup, copied again"
    for word, paths in (("missing", report.missing), ("altered", report.altered), (mended, report.mended)):
        for path in paths[:_MOST]:
            click.echo(f"{word}: {path}")
        if len(paths) > _MOST:
            click.echo(f"{word}: {len(paths) - _MOST} more")
    click.echo("It holds patient data. Research use only, not for primary diagnosis.")
    sys.exit(0 if report.whole else 3)
