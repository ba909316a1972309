"""Settings of the storage: where images, results and the rows are kept."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, Field, model_validator

from pacs_node.config_listener import Section

SQLITE_FILE = "sqlite:///"
POSTGRESQL = "postgresql://"

_DRIVER = "postgresql+psycopg://"
_SECRET = re.compile(r"(://[^/@:]*):.*@|(\bpassword=)[^&]*", re.IGNORECASE)


def _database_url(value: str) -> str:
    if not value:
        return value
    if value.startswith(_DRIVER):
        value = POSTGRESQL + value.removeprefix(_DRIVER)
    if value.startswith(POSTGRESQL):
        return _postgresql_url(value)
    if not value.startswith(SQLITE_FILE) or value[len(SQLITE_FILE) :] in {"", ":memory:"}:
        raise ValueError("write sqlite:///path/node.db, or postgresql://user@host:5432/name")
    return value


def _postgresql_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        has_name = bool(parts.path.strip("/")) and (parts.port is None or parts.port > 0)
    except ValueError:
        has_name = False
    if not has_name:
        raise ValueError("write postgresql://user@host:5432/name")
    if parts.password is not None or any(key.lower() == "password" for key, _ in parse_qsl(parts.query)):
        raise ValueError("no password stands here: it goes into a file, named by database_password_file")
    return value


def without_secret(text: str) -> str:
    """Return a URL that somebody wrote, its password replaced by stars."""
    return _SECRET.sub(lambda found: f"{found[1]}:***@" if found[1] else f"{found[2]}***", text)


class StorageSettings(Section):
    """Where images, results and the database live."""

    directory: str = Field(
        "pacs-node-data", description="Directory; relative to this file. Made on first start, mode 0700."
    )
    database_url: Annotated[str, AfterValidator(_database_url)] = Field(
        "",
        description="Empty means the SQLite file node.db in the directory. sqlite:///path/node.db is another "
        "file, postgresql://user@host:5432/name?sslmode=verify-full a PostgreSQL database.",
    )
    database_password_file: str = Field(
        "",
        description="File that holds the password for PostgreSQL; empty means what libpq finds "
        "(PGPASSWORD, PGPASSFILE, ~/.pgpass).",
    )
    reserve_mb: int = Field(
        5120, ge=1, description="Below this free space the listener answers A700 (out of resources)."
    )
    ballast_mb: int = Field(
        64,
        ge=0,
        le=65536,
        description="Size of a file of nothing that is given up when the disk is full, so that deliveries, "
        "record and page go on; 0 means none. Less than reserve_mb.",
    )

    @model_validator(mode="after")
    def _password_has_a_database(self) -> StorageSettings:
        if self.database_password_file and not self.database_url.startswith(POSTGRESQL):
            raise ValueError("database_password_file is for PostgreSQL: set database_url")
        return self
