"""Opens the node's database and spool as the settings say."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DatabaseError

from pacs_node.config import Settings
from pacs_node.db import Database, sqlite_url
from pacs_node.errors import ConfigurationError
from pacs_node.spool import Spool


def open_database(settings: Settings) -> Database:
    """Open the database and bring its schema up to date.

    Raises
    ------
    ConfigurationError
        The directory or the database can't be used.
    """
    url = settings.storage.database_url or sqlite_url(_directory(settings))
    database = Database(url)
    try:
        database.upgrade()
    except DatabaseError as error:
        # the driver's words: those of SQLAlchemy quote the statement
        raise ConfigurationError(f"the database {url} can't be used: {error.orig}") from None
    return database


def _directory(settings: Settings) -> Path:
    """Make the storage directory where it is missing, and see that this user may write there."""
    directory = Path(settings.storage.directory)
    key = f"storage.directory = {str(directory)!r}"
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"{key}: can't be made ({error.strerror})") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{key}: this user may not write there")
    return directory


def open_spool(settings: Settings) -> Spool:
    """Open the store of received images."""
    return Spool(
        Path(settings.storage.directory),
        settings.storage.reserve_mb << 20,
        settings.listener.max_object_mb << 20,
    )


@contextmanager
def undisturbed(directory: Path, *, wait: bool) -> Iterator[bool]:
    """Keep backup and retention apart; false where the other is at work and one doesn't `wait`."""
    with (directory / "maintenance.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the storage for one ``serve``; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    ConfigurationError
        Another ``serve`` runs on this storage, or the directory can't be used.
    """
    directory = _directory(settings)
    with (directory / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"storage.directory = {str(directory)!r}: another pacs-node serve runs on it"
            ) from None
        yield
