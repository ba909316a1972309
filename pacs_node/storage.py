"""Opens the node's database and spool as the settings say."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DatabaseError

from pacs_node.config import Settings
from pacs_node.db import Database, sqlite_url
from pacs_node.errors import ConfigurationError
from pacs_node.one_node import only_node
from pacs_node.spool import Spool

logger = logging.getLogger(__name__)


def database_url(settings: Settings) -> URL:
    """Where the rows are, with the password; its text shows stars instead.

    Raises
    ------
    ConfigurationError
        The file of the password can't be read.
    """
    storage = settings.storage
    url = make_url(storage.database_url or sqlite_url(Path(storage.directory)))
    if not storage.database_password_file:
        return url
    try:
        password = Path(storage.database_password_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"storage.database_password_file = {storage.database_password_file!r}: can't be read ({error})"
        ) from None
    return url.set(password=password)


def open_database(settings: Settings) -> Database:
    """Open the database and bring its schema up to date.

    Raises
    ------
    ConfigurationError
        The directory or the database can't be used.
    """
    _directory(settings)
    database = _opened(settings)
    try:
        if not database.is_sqlite:
            _keeps_what_it_commits(database)
        database.upgrade()
    except DatabaseError as error:
        database.dispose()
        # the driver's words: those of SQLAlchemy quote the statement
        raise ConfigurationError(f"the database {database.engine.url} can't be used: {error.orig}") from None
    return database


@contextmanager
def existing_database(settings: Settings) -> Iterator[Database | None]:
    """Open the database as it is, for a look; None before the first start, where it is a file.

    Raises
    ------
    ConfigurationError
        Its driver or its password isn't there.
    """
    url = database_url(settings)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield None
        return
    database = _opened(settings)
    try:
        yield database
    finally:
        database.dispose()


def _opened(settings: Settings) -> Database:
    try:
        return Database(database_url(settings))
    except ModuleNotFoundError:
        raise ConfigurationError(
            "storage.database_url: the driver for PostgreSQL is missing; install pacs-node[postgresql]"
        ) from None


def _keeps_what_it_commits(database: Database) -> None:
    with database.read() as session:
        fsync = session.execute(text("SHOW fsync")).scalar_one()
    if fsync != "on":
        database.dispose()
        raise ConfigurationError(
            "storage.database_url: this PostgreSQL runs with fsync = off, so it may lose what it has "
            "committed; set fsync = on"
        )


def _directory(settings: Settings) -> Path:
    """Make the storage directory where it is missing, and see that this user may write there."""
    directory = Path(settings.storage.directory)
    key = f"storage.directory = {str(directory)!r}"
    try:
        directory.mkdir(mode=0o700)
        logger.warning("a new, empty storage was made", extra={"directory": str(directory)})
    except FileExistsError:
        pass
    except FileNotFoundError:
        # made with its parents, it would be a new node on another disk, with nothing of what was acknowledged
        above = f"{str(directory.parent)!r} isn't there: is its disk mounted? Make it once if it is new"
        raise ConfigurationError(f"{key}: {above}") from None
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
    """Hold storage and database for one ``serve``; the system lets go of them however the process ends.

    Raises
    ------
    ConfigurationError
        Another ``serve`` runs on this storage or this database, or they can't be used.
    """
    directory = _directory(settings)
    with (directory / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigurationError(
                f"storage.directory = {str(directory)!r}: another pacs-node serve runs on it"
            ) from None
        with _only_one_at_the_database(settings):
            yield


@contextmanager
def _only_one_at_the_database(settings: Settings) -> Iterator[None]:
    """Two nodes in one database of PostgreSQL would take each other's leases and look for files in vain."""
    if database_url(settings).get_backend_name() == "sqlite":
        yield
        return
    database = open_database(settings)
    try:
        with only_node(database.engine) as alone:
            if not alone:
                raise ConfigurationError(
                    f"storage.database_url = {str(database.engine.url)!r}: another pacs-node serve runs on it"
                )
            yield
    finally:
        database.dispose()
