"""How fast objects come in: ``python -m tests.benchmarks.ingest --directory DIR``.

The node's listener beside DCMTK's storescp (``TCP_NODELAY=1`` on both sides), the same synthetic CT of 300
slices of 512 x 512 from DCMTK's storescu, in turns in one run and in alternating order: one association, then
four at once against ``storescp --fork``. The listener syncs each object before its answer; storescp syncs
nothing. So the file system of `DIR` decides: its cost of one sync is measured too. Each receiver gets a few
slices first, which aren't counted: a listener runs for weeks.

Below it: what each step costs at least, in CPU time, where files are named by their SHA-256 and have a row.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from pacs_node.db import Database, Series, Study, sqlite_url
from pacs_node.states import SeriesState
from tests.ct_factory import make_ct_series
from tests.faults.receiver import Given, make_storage, receiver, settings
from tests.peers import storescp, storescu

SLICES, MATRIX = 300, 512
WARM_UP = 10
ROUNDS_OF_A_STEP = 101
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Timing:
    """One run: wall clock of all senders, CPU time of the receiving side and of the senders, seconds."""

    wall: float
    cpu: float
    senders: float


def make_ct(directory: Path, seed: str, slices: int) -> Path:
    """Write a CT series as files; deterministic."""
    directory.mkdir()
    for number, ds in enumerate(make_ct_series(slices, matrix=MATRIX, spacing_mm=1.0, seed=seed)):
        ds.save_as(directory / f"{number:04d}.dcm", enforce_file_format=True)
    return directory


def send(port: int, calling: str, called: str, series: list[Path]) -> float:
    """Send each series by an association of its own, all at once; the seconds until the last has ended."""

    def one(path: Path) -> None:
        done = storescu(port, path, calling_ae=calling, called_ae=called)
        if done.returncode or "Failed" in done.stdout + done.stderr:
            raise RuntimeError(done.stderr or done.stdout)

    start = time.perf_counter()
    with ThreadPoolExecutor(len(series)) as pool:
        list(pool.map(one, series))
    return time.perf_counter() - start


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, with its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def timed(pid: int, port: int, called: str, warm_up: Path, series: list[Path]) -> Timing:
    """Send to a receiver that has received already."""
    send(port, "PACS", called, [warm_up])
    before, senders = cpu_seconds(pid), children_seconds()
    wall = send(port, "PACS", called, series)
    return Timing(wall, cpu_seconds(pid) - before, children_seconds() - senders)


def children_seconds() -> float:
    """CPU time of all programs that we have started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ours(directory: Path, warm_up: Path, series: list[Path]) -> Timing:
    """One run against the listener, with an empty store."""
    given = Given(make_storage(directory / "storage"), settings())
    with receiver(given) as running:
        timing = timed(running.pid, running.port, "CTNODE", warm_up, series)
    kept = len(list((directory / "storage" / "instances").rglob("*.dcm")))
    if kept != WARM_UP + len(series) * len(list(series[0].iterdir())):
        raise RuntimeError(f"{kept} files were kept")
    return timing


def theirs(directory: Path, warm_up: Path, series: list[Path]) -> Timing:
    """One run against storescp, with an empty folder."""
    with storescp(directory / "storescp", *(["--fork"] if len(series) > 1 else [])) as peer:
        return timed(peer.process.pid, peer.port, "ANY", warm_up, series)


def ignoring(directory: Path, warm_up: Path, series: list[Path]) -> Timing:
    """One run against a storescp that stores nothing: as fast as storescu sends."""
    options = ["--ignore", *(["--fork"] if len(series) > 1 else [])]
    with storescp(directory / "ignoring", *options) as peer:
        return timed(peer.process.pid, peer.port, "ANY", warm_up, series)


def sync_seconds(directory: Path) -> float:
    """Median time of one fdatasync of 4 KiB in a file that has its blocks."""
    seen = []
    with (directory / "probe").open("wb", buffering=0) as file:
        for _ in range(21):
            file.seek(0)
            file.write(bytes(4096))
            start = time.perf_counter()
            os.fdatasync(file)
            seen.append(time.perf_counter() - start)
    (directory / "probe").unlink()
    return median(seen)


def step(action: Callable[[], object]) -> float:
    """CPU time of one step in this thread, seconds: the median of many."""
    seen = []
    for _ in range(ROUNDS_OF_A_STEP):
        start = time.thread_time()
        action()
        seen.append(time.thread_time() - start)
    return median(seen)


def least_cpu(directory: Path, content: bytes) -> dict[str, float]:
    """CPU seconds of what can't be left out where files are named by content and have a row."""
    probe = directory / "probe"
    steps = {"receive it (TCP, loopback)": receive_seconds(content)}
    steps["SHA-256"] = step(lambda: hashlib.sha256(content).digest())
    steps["write a file"] = step(lambda: probe.write_bytes(content))
    steps["sync, name and sync its folder"] = step(lambda: name_and_sync(probe, content))
    steps["write and commit a row (SQLite, its driver only)"] = row_seconds(directory)
    probe.unlink()
    return steps


def name_and_sync(probe: Path, content: bytes) -> None:
    """As the listener does; the file is there again afterwards."""
    target = probe.with_name(content[:8].hex())
    with probe.open("rb+") as file:
        os.link(probe, target)
        os.fsync(file)
    folder = os.open(probe.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
    target.unlink()


def receive_seconds(content: bytes) -> float:
    """CPU time of reading an object from a connection, the sender in another thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    buffer = memoryview(bytearray(1 << 17))
    with sender, ours:
        everything = content * ROUNDS_OF_A_STEP
        thread = threading.Thread(target=sender.sendall, args=(everything,))
        thread.start()

        def receive() -> None:
            left = len(content)
            while left:
                left -= ours.recv_into(buffer, min(left, len(buffer)))

        seconds = step(receive)
        thread.join()
    return seconds


def row_seconds(directory: Path) -> float:
    """CPU time of one row of an instance in a transaction of its own, in the node's tables and settings."""
    storage = make_storage(directory / "rows")
    tables, at = Database(sqlite_url(storage)), datetime(2026, 1, 1, tzinfo=UTC)
    with tables.write() as session:
        texts = ("patient_id", "patient_name", "accession_number", "study_date", "description")
        study = Study(study_uid="1", first_received_at=at, **dict.fromkeys(texts, ""))
        series = Series(study=study, series_uid="1", calling_ae="", n_instances=0, last_received_at=at)
        series.modality = series.description = ""
        series.state = SeriesState.RECEIVING
        session.add(series)
    tables.dispose()
    database = sqlite3.connect(storage / "node.db", isolation_level=None)
    for pragma in ("journal_mode=DELETE", "synchronous=EXTRA", "foreign_keys=ON"):
        database.execute(f"PRAGMA {pragma}")
    columns = (
        "series_id, size, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256, path, received_at"
    )

    def add() -> None:
        digest = os.urandom(32).hex()
        row = [f"1.2.{digest}", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1", digest, digest, str(at)]
        database.execute("BEGIN IMMEDIATE")
        database.execute(f"INSERT INTO instance ({columns}) VALUES (1, 1, ?, ?, ?, ?, ?, ?)", row)
        database.execute("UPDATE series SET n_instances = n_instances + 1, last_received_at = ?", [str(at)])
        database.execute("COMMIT")

    seconds = step(add)
    database.close()
    return seconds


def measure(directory: Path, warm_up: Path, series: list[Path], rounds: int) -> dict[str, list[Timing]]:
    """Run all in turns; who is first changes each round. One round before isn't counted."""
    runs: dict[str, Callable[[Path, Path, list[Path]], Timing]] = {
        "listener": ours,
        "storescp": theirs,
        "storescp --ignore": ignoring,
    }
    seen: dict[str, list[Timing]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs) if number % 2 else list(reversed(runs)):
            place = directory / f"{name.replace(' ', '')}{number}"
            place.mkdir()
            timing = runs[name](place, warm_up, series)
            shutil.rmtree(place)
            # what the one before wrote is no burden of the next
            os.sync()
            if number:
                seen[name].append(timing)
    return seen


def add_rows(table: Table, what: str, objects: int, seen: dict[str, list[Timing]]) -> None:
    """Add who received how fast, and how many times the listener's time storescp's is."""
    for who, timings in seen.items():
        cpu, senders = (median(used) for used in ([t.cpu for t in timings], [t.senders for t in timings]))
        rates = sorted(objects / t.wall for t in timings)
        table.add_row(
            f"{what}, {who}",
            *(f"{rate:.0f}" for rate in (median(rates), rates[0], rates[-1])),
            *(f"{seconds / objects * 1000:.2f}" for seconds in (cpu, senders)),
        )
    middle = {name: median(t.wall for t in timings) for name, timings in seen.items()}
    table.add_row(f"{what}, ratio", f"{middle['storescp'] / middle['listener']:.2f}")


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Durable reception beside DCMTK's storescp.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--directory", type=Path, help="where both store (default: the temporary folder)")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="ingest") as name:
        directory = Path(name)
        warm_up = make_ct(directory / "warm", "warm", WARM_UP)
        series = [make_ct(directory / f"ct{n}", f"ingest{n}", arguments.slices) for n in range(4)]
        title = f"{arguments.slices} slices of {MATRIX} x {MATRIX} for each association"
        table = Table("", "objects/s", "fewest", "most", "CPU ms/object", "sender's", title=title)
        for count, what in ((1, "one association"), (4, "four at once")):
            seen = measure(directory, warm_up, series[:count], arguments.rounds)
            add_rows(table, what, count * arguments.slices, seen)
        console.print(table)
        content = next(series[0].iterdir()).read_bytes()
        for what, seconds in least_cpu(directory, content).items():
            console.print(f"To {what}: {seconds * 1000:.2f} ms.")
        sync = sync_seconds(directory) * 1000
        console.print(f"One sync of 4 KiB there takes {sync:.2f} ms; {os.cpu_count()} cores.")
        console.print(f"Load {os.getloadavg()[0]:.1f} (these senders and receivers count in it).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
