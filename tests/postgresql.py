"""A PostgreSQL server of its own for tests: a folder, a free port, and databases that are there at once."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from pacs_node.db import Database
from tests.conftest import find_free_port, find_peer

_USER = "node"


class Server:
    """A running server.

    Parameters
    ----------
    folder
        Holds its data; it belongs to the user that the server runs as.
    """

    def __init__(self, folder: Path) -> None:
        self.port = find_free_port()
        self._folder = folder
        self._data = folder / "data"
        self._numbers = itertools.count()
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", _USER, "-E", "UTF8", "--no-locale", "-N")
        self.start()
        self._empty = self._create("template1")
        database = Database(self._empty)
        database.upgrade()
        database.dispose()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c max_connections=50"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self._folder / "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; ``immediate`` is its kill: it recovers from its log at the next start."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def database(self) -> str:
        """URL of a new database with the newest schema and no rows."""
        return self._create(self._empty.rpartition("/")[2])

    def nothing(self) -> str:
        """URL of a new database without a table."""
        return self._create("template1")

    def tell(self, statement: str) -> None:
        """Have the server do something, as its owner."""
        engine = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def with_password(self, password: str) -> str:
        """URL of a new, empty database of a user who must show a password."""
        self.tell(f"CREATE ROLE guarded LOGIN PASSWORD '{password}'")
        self.tell("CREATE DATABASE guarded OWNER guarded")
        rules = self._data / "pg_hba.conf"
        rules.write_text("host all guarded 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        self.tell("SELECT pg_reload_conf()")
        return f"postgresql://guarded@127.0.0.1:{self.port}/guarded"

    def _create(self, template: str) -> str:
        name = f"node{next(self._numbers)}"
        engine = create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        engine.dispose()
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: object) -> None:
        path = find_peer(program)
        assert path is not None
        # the server refuses to run as root
        user = "postgres" if os.geteuid() == 0 else None
        command = [str(path), *map(str, arguments)]
        # its own output would keep a pipe open for as long as the server runs
        subprocess.run(
            command,
            check=True,
            user=user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )


@contextmanager
def postgresql(place: str | None = None) -> Iterator[Server]:
    """Run a server until the block ends."""
    folder = Path(tempfile.mkdtemp(dir=place))
    if os.geteuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
