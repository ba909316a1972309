"""A listener in a process of its own that may be killed, and the check of what it promised."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from sqlalchemy import select

from pacs_node import gate_message, gate_pdu, reception
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import Database, Instance, sqlite_url
from pacs_node.gate_association import Acceptor
from pacs_node.listener import Listener
from pacs_node.logs import silence_libraries
from pacs_node.spool import Spool
from tests.conftest import find_free_port
from tests.raw_peer import RawPeer
from tests.recovered import recover_store

LONG = os.environ.get("PACS_NODE_FAULTS") == "long"
"""Whether the long forms are wanted: ``make faults``."""

CALLERS = (Caller(ae_title="PACS", address="127.0.0.1"),)
_METADATA_BYTES = 128 + 4

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.faults.receiver"])


@dataclass(frozen=True)
class Given:
    """What a receiver is started with."""

    directory: Path
    settings: ListenerSettings
    reserve_bytes: int = 1
    #: negative control: success is said before anything is durable
    cheats: bool = False
    #: negative control: neither files nor folders are synced
    unsynced: bool = False


def _receive(given: Given) -> None:
    silence_libraries()
    os.setpgrp()
    if given.cheats:
        Acceptor._answer = _answer_first  # type: ignore[method-assign]
    if given.unsynced:
        os.fsync = lambda fd: None
    database = Database(sqlite_url(given.directory))
    listener = Listener(given.settings, CALLERS, database, Spool(given.directory, given.reserve_bytes))
    listener.start()
    listener.failed.wait()
    listener.stop()
    raise SystemExit(1)


def _answer_first(self, message, request, sink) -> None:  # type: ignore[no-untyped-def]  # of a generic class
    encoded = gate_message.response(message.command, 0)
    self._send(gate_pdu.p_data(message.context_id, encoded, self._peer_max_length))
    if request is not None:
        self._service.store(request, sink)


@dataclass
class Receiver:
    """A running listener."""

    process: BaseProcess
    port: int
    given: Given

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self.process.pid is not None
        return self.process.pid

    def rss_kib(self) -> int:
        """Resident memory now."""
        return self._status("VmRSS")

    def peak_kib(self) -> int:
        """Largest resident memory since the last `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Measure the peak from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1])

    def cpu_seconds(self) -> float:
        """Time of the processor so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Open files."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        """Threads."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def leftovers(self) -> list[str]:
        """Files of interrupted objects."""
        return [path.name for path in (self.given.directory / "incoming").iterdir()]

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.join()


@contextmanager
def receiver(given: Given) -> Iterator[Receiver]:
    """Run a listener until the block ends."""
    process = context.Process(target=_receive, args=(given,))
    process.start()
    running = Receiver(process, given.settings.port, given)
    try:
        _await_port(running)
        yield running
    finally:
        running.kill()


def _await_port(running: Receiver) -> None:
    deadline = time.monotonic() + 240
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", running.port)) == 0:
                return
        assert running.process.is_alive(), "the listener ended"
        assert time.monotonic() < deadline, "the listener doesn't listen"
        time.sleep(0.005)


def make_storage(directory: Path) -> Path:
    """Make an empty storage directory with its database."""
    directory.mkdir()
    database = Database(sqlite_url(directory))
    database.upgrade()
    database.dispose()
    Spool(directory, 1)
    return directory


def settings(**changes: float | str) -> ListenerSettings:
    """Settings on a free port."""
    return ListenerSettings.model_validate({"port": find_free_port(), **changes})


@dataclass
class Ledger:
    """What was acknowledged: SOP Instance UID and SHA-256 of the data set."""

    acknowledged: dict[str, str] = field(default_factory=dict)

    def note(self, uid: str, data: bytes) -> None:
        """An instance was answered with success."""
        self.acknowledged[uid] = hashlib.sha256(data).hexdigest()

    @staticmethod
    def orphans(directory: Path) -> list[str]:
        """Stored files that no row names."""
        database = Database(sqlite_url(directory))
        named = reception.recorded_paths(database)
        database.dispose()
        return sorted(set(Spool(directory, 1).stored()) - named)

    def violations(self, directory: Path) -> list[str]:
        """Hold what was acknowledged against the rows as the end left them, and all as a start finds it."""
        database = Database(sqlite_url(directory))
        with database.read() as session:
            written = set(session.execute(select(Instance.sop_instance_uid)).scalars())
        recover_store(database, Spool(directory, 1))
        with database.read() as session:
            rows = session.execute(select(Instance.sop_instance_uid, Instance.path)).tuples().all()
            integrity = database.check()
        database.dispose()
        found = [] if integrity == "ok" else [f"database: {integrity}"]
        known = {uid: path for uid, path in rows if path is not None}
        for uid, path in known.items():
            if not (directory / path).exists():
                found.append(f"{uid} has a row and no file")
        for uid, digest in self.acknowledged.items():
            if uid not in written or uid not in known:
                found.append(f"{uid} was acknowledged and has no row")
            elif (directory / known[uid]).exists() and self._digest(directory / known[uid]) != digest:
                found.append(f"{uid} was acknowledged with other bytes")
        return found

    @staticmethod
    def _digest(path: Path) -> str:
        data = path.read_bytes()
        meta = int.from_bytes(data[_METADATA_BYTES + 8 : _METADATA_BYTES + 12], "little")
        return hashlib.sha256(data[_METADATA_BYTES + 12 + meta :]).hexdigest()


@contextmanager
def injecting(pid: int, what: str) -> Iterator[None]:
    """Tamper with the system calls of a running process and its threads: ``strace --inject=WHAT``."""
    call = what.split(":", maxsplit=1)[0]
    with tracing(pid, "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={what}"):
        yield


@contextmanager
def tracing(pid: int, *options: str) -> Iterator[None]:
    """Watch the system calls of a running process and its threads by ``strace``."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", *options, "-p", str(pid)],
        stderr=subprocess.PIPE,
    )
    try:
        _await_tracer(pid, tracer)
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        try:
            tracer.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            # it waits for a thread that was killed while it let go
            tracer.kill()
            tracer.communicate()


def _await_tracer(pid: int, tracer: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        if all(state != "0" for state in _tracers(pid)):
            return
        assert tracer.poll() is None, "strace can't attach here"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _tracers(pid: int) -> Iterator[str]:
    """Who traces each thread, 0 for nobody; threads come and go, and the process may have ended by itself."""
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                yield (task / "status").read_text().split("TracerPid:\t")[1].split("\n")[0]
    except FileNotFoundError:
        return


def store(
    port: int, ledger: Ledger, instances: list[tuple[str, str, bytes]], *, timeout: float = 30
) -> list[int]:
    """Send (SOP class, SOP instance, data set) over one association until it breaks; return the statuses."""
    statuses: list[int] = []
    try:
        with RawPeer(port, timeout=timeout) as peer:
            peer.associate()
            for sop_class, uid, data in instances:
                status = peer.store(data, sop_class, uid)
                statuses.append(status)
                if status == 0:
                    ledger.note(uid, data)
            peer.release()
    except (OSError, AssertionError, ValueError):
        # the line ended, perhaps within an answer
        return statuses
    return statuses
