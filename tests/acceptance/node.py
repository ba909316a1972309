"""A whole node as a process of its own, for tests that send to it, kill it and start it again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from inference.phantom import Phantom, make_phantom
from inference.registry import DEFAULT_PROFILE
from pacs_node.config import Caller, DicomDestination, DicomWebDestination
from pacs_node.config_template import render_settings
from pacs_node.db import Artifact, Database, Delivery, Job, Series, Study, sqlite_url
from pacs_node.states import DeliveryState, JobState, SeriesState
from tests.conftest import find_free_port

_TERMINAL = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass
class Node:
    """Configuration, process and database of a node under test."""

    directory: Path
    destinations: Sequence[DicomDestination | DicomWebDestination] = ()
    port: int = field(default_factory=find_free_port)
    settle_seconds: float = 1.5
    quiet_seconds: float = 4.0
    profile: str = DEFAULT_PROFILE
    #: of PostgreSQL; empty means the SQLite file
    database_url: str = ""
    callers: Sequence[Caller] = (Caller(ae_title="STORESCU", address="127.0.0.1"),)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        text = render_settings(
            callers=list(self.callers),
            destinations=list(self.destinations),
            overrides={
                "listener": {"port": self.port},
                "storage": {"reserve_mb": 100, "database_url": self.database_url},
                "pipeline": {"profile": self.profile},
                "completeness": {
                    "settle_seconds": self.settle_seconds,
                    "quiet_seconds": self.quiet_seconds,
                },
                "delivery": {"retry_first_seconds": 1.0},
                "web": {"port": find_free_port()},
            },
        )
        self.config.write_text(text)

    @property
    def config(self) -> Path:
        return self.directory / "pacs-node.toml"

    @property
    def storage(self) -> Path:
        return self.directory / "pacs-node-data"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pacs_node.cli", *arguments, "--config", str(self.config)]

    def start(self) -> Node:
        """Start ``serve`` in a process group of its own and wait until it listens."""
        log = (self.directory / "serve.log").open("ab")
        self.process = subprocess.Popen(
            self.command("serve"), stdout=log, stderr=log, start_new_session=True, cwd=self.directory
        )
        log.close()
        self.until(self.listens, "the node listens", 60)
        return self

    def listens(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"serve ended: {(self.directory / 'serve.log').read_text()[-3000:]}")
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """``kill -9`` of every process of the node at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """SIGTERM, as systemd does; return the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            status = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process = None
        return status

    def database(self) -> Database:
        return Database(self.database_url or sqlite_url(self.storage))

    def ask(self, question: Callable[[Session], object]) -> object:
        """Answer of the database to one question."""
        database = self.database()
        try:
            with database.read() as session:
                return question(session)
        finally:
            database.dispose()

    def until(self, condition: Callable[[], object], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = (self.directory / "serve.log").read_text()[-3000:]
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.summary()}\n{log}")
            time.sleep(0.1)

    def summary(self) -> str:
        """Rows in short form, for the message of a failed test."""

        def lines(session: Session) -> str:
            series = [
                f"{s.series_uid[-8:]} {s.state} {s.reason_code}" for s in session.scalars(select(Series))
            ]
            jobs = [
                f"{j.id} {j.kind} {j.state} {j.outcome} {j.last_error}" for j in session.scalars(select(Job))
            ]
            sent = [
                f"{d.artifact.kind} {d.destination} {d.state} {d.status}"
                for d in session.scalars(select(Delivery))
            ]
            return "\n".join(["series", *series, "jobs", *jobs, "deliveries", *sent])

        there = self.database_url or (self.storage / "node.db").exists()
        return str(self.ask(lines)) if there else "no database"

    def wait_finished(self, n_studies: int, seconds: float = 180) -> None:
        """Wait until that many studies are at an end and everything is committed."""
        self.until(
            lambda: self.ask(lambda session: _finished(session, n_studies)), "studies finished", seconds
        )

    def sr_of(self, study_uid: str) -> list[Path]:
        """Report files of a study, in the order of their jobs."""

        def paths(session: Session) -> list[Path]:
            query = (
                select(Artifact.path)
                .join(Job, Artifact.job_id == Job.id)
                .join(Series, Job.series_id == Series.id)
                .join(Study, Series.study_id == Study.id)
                .where(Study.study_uid == study_uid, Artifact.kind == "sr")
                .order_by(Job.id)
            )
            return [self.storage / path for path in session.scalars(query) if path]

        result = self.ask(paths)
        assert isinstance(result, list)
        return result


def _finished(session: Session, n_studies: int) -> bool:
    studies = session.scalars(select(Study)).all()
    if len(studies) < n_studies:
        return False
    open_series = select(Series.id).where(Series.state.in_([SeriesState.RECEIVING, SeriesState.COMPLETE]))
    open_jobs = select(Job.id).where(Job.state.not_in(_TERMINAL))
    undelivered = select(Delivery.id).where(Delivery.state != DeliveryState.COMMITTED)
    with_report = set(
        session.scalars(
            select(Series.study_id)
            .join(Job, Job.series_id == Series.id)
            .join(Artifact, Artifact.job_id == Job.id)
            .where(Artifact.kind == "sr")
        )
    )
    return len(with_report) == len(studies) and not any(
        session.execute(query.limit(1)).first() for query in (open_series, open_jobs, undelivered)
    )


def small_phantom(seed: int) -> Phantom:
    """A chest phantom that is analysed in a few seconds."""
    return make_phantom(seed, shape=(75, 160, 160), spacing_mm=(4.0, 2.2, 2.2))


def running(node: Node) -> Iterator[Node]:
    """Body of a fixture: a started node that is stopped whatever happens."""
    try:
        yield node.start()
    finally:
        node.kill()
