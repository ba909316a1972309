"""Keeps two nodes out of one database of PostgreSQL: they would take each other's leases.

A lock of the server that belongs to a connection. It ends with the connection, so also when the server is
restarted; then it is taken again, and a node that finds it in other hands stops itself.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

from sqlalchemy import Engine, PoolProxiedConnection

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
"""A lock in other hands may be ours, of a connection that broke: the server notices within half a minute."""

LOCK = 0x70616374  # any number that nobody else takes


class _Taken:
    """The lock, while it is held."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: PoolProxiedConnection | None = None

    @property
    def trouble(self) -> type[Exception]:
        """The base of what the driver raises."""
        error: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        return error

    def take(self) -> bool:
        """Take the lock, or see that it is still held; False where another node has it."""
        if self._connection is not None:
            try:
                self._driver().execute("SELECT 1")
            except self.trouble:
                self.close()
            else:
                return True
        self._connection = self._engine.raw_connection()
        driver = self._driver()
        driver.autocommit = True
        got = bool(driver.execute(f"SELECT pg_try_advisory_lock({LOCK})").fetchone()[0])
        if not got:
            self.close()
        return got

    def _driver(self) -> Any:
        return None if self._connection is None else self._connection.driver_connection

    def close(self) -> None:
        """Let go of it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # not back into the pool: the lock is the connection's
            connection.invalidate()


@contextmanager
def only_node(engine: Engine) -> Iterator[bool]:
    """Hold the database for this node until the block ends; False where another one has it."""
    taken, over = _Taken(engine), Event()
    if not taken.take():
        yield False
        return
    keeper = Thread(target=_keep, args=(taken, over), name="one-node", daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        over.set()
        keeper.join()
        taken.close()


def _keep(taken: _Taken, over: Event) -> None:
    refused_since: float | None = None
    while not over.wait(LOOK_SECONDS):
        try:
            held = taken.take()
        except taken.trouble:
            # the server is away; nobody can take it meanwhile
            continue
        now = time.monotonic()
        refused_since = None if held else refused_since or now
        if refused_since is not None and now - refused_since >= PATIENCE_SECONDS:
            logger.critical("another node has this database now: this one stops")
            os.kill(os.getpid(), signal.SIGTERM)
            return
