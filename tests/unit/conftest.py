"""The small node for unit tests of the core."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine

from inference import geometry
from pacs_node import connections
from pacs_node.db import Database, sqlite_url
from pacs_node.spool import Spool
from tests.node_story import Story
from tests.small_node import SMALL_LIMITS, SmallNode, TestClock
from tests.web_browser import Browser, make_settings


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Each test has a database of its own; each statement is made into SQL once for all of them.

    SQLAlchemy keeps what it has compiled for each engine and dialect: it took half of the time of a test of
    the page.
    """
    first = create_engine("sqlite://", query_cache_size=10_000)
    first.connect().close()  # the dialect gets to know its driver

    def sharing(url: URL, **options: Any) -> Engine:
        engine = create_engine(url, **options)
        if engine.dialect.name == "sqlite":
            engine.dialect, engine._compiled_cache = first.dialect, first._compiled_cache
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "create_engine", sharing)
        yield
    first.dispose()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database file of the newest schema."""
    directory = tmp_path_factory.mktemp("schema")
    database = Database(sqlite_url(directory))
    database.upgrade()
    database.dispose()
    return directory / "node.db"


@pytest.fixture
def clock() -> TestClock:
    """A clock that stands still."""
    return TestClock()


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """An empty database in a file of its own."""
    directory = tmp_path / "storage"
    directory.mkdir()
    shutil.copyfile(migrated, directory / "node.db")
    opened = Database(sqlite_url(directory))
    yield opened
    opened.dispose()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """A spool beside the database."""
    return Spool(tmp_path / "storage", reserve_bytes=1)


@pytest.fixture
def node(database: Database, spool: Spool, clock: TestClock, monkeypatch: pytest.MonkeyPatch) -> SmallNode:
    """Rows, files, intake. Syncing files is proved in test_spool; here it would only take time."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    for name, value in SMALL_LIMITS.items():
        monkeypatch.setattr(geometry, name, value)
    return SmallNode(database, spool, clock)


@pytest.fixture
def story(database: Database, tmp_path: Path) -> Story:
    """What a node has been through, told row by row."""
    return Story(database, tmp_path)


@pytest.fixture
def browser(database: Database, tmp_path: Path) -> Browser:
    """The page, asked without a network."""
    return Browser(database, make_settings(tmp_path))
