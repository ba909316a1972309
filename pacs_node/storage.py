"""Opens the node's database and spool as the settings say."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pacs_node.config import Settings
from pacs_node.db import Database, sqlite_url
from pacs_node.errors import ConfigurationError
from pacs_node.spool import Spool


def open_database(settings: Settings) -> Database:
    """Open the database and bring its schema up to date."""
    directory = Path(settings.storage.directory)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(settings.storage.database_url or sqlite_url(directory))
    database.upgrade()
    return database


def open_spool(settings: Settings) -> Spool:
    """Open the store of received images."""
    return Spool(Path(settings.storage.directory), settings.storage.reserve_mb << 20)


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Hold the storage for one ``serve``; the system lets go of it when the process ends, however it ends.

    Raises
    ------
    ConfigurationError
        Another ``serve`` runs on this storage.
    """
    directory = Path(settings.storage.directory)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"storage.directory = {str(directory)!r}: another pacs-node serve runs on it"
            ) from None
        yield
