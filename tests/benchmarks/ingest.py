"""How fast objects come in: ``python -m tests.benchmarks.ingest --directory DIR``.

The node's listener beside DCMTK's storescp (``TCP_NODELAY=1`` on both sides), the same synthetic CT of 300
slices of 512 x 512 from DCMTK's storescu, in turns in one run and in alternating order: one association, then
four at once against ``storescp --fork``. The listener syncs each object before its answer; storescp syncs
nothing. So the file system of `DIR` decides: its cost of one sync is measured too.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.ct_factory import make_ct_series
from tests.faults.receiver import Given, make_storage, receiver, settings
from tests.peers import storescp, storescu

SLICES, MATRIX = 300, 512
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Timing:
    """One run: wall clock of all senders, CPU time of the receiving side, seconds."""

    wall: float
    cpu: float


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


def ours(directory: Path, series: list[Path]) -> Timing:
    """One run against the listener, with an empty store."""
    given = Given(make_storage(directory / "storage"), settings())
    with receiver(given) as running:
        before = cpu_seconds(running.pid)
        wall = send(running.port, "PACS", "CTNODE", series)
        timing = Timing(wall, cpu_seconds(running.pid) - before)
    kept = len(list((directory / "storage" / "instances").rglob("*.dcm")))
    if kept != len(series) * len(list(series[0].iterdir())):
        raise RuntimeError(f"{kept} files were kept")
    return timing


def theirs(directory: Path, series: list[Path]) -> Timing:
    """One run against storescp, with an empty folder."""
    with storescp(directory / "storescp", *(["--fork"] if len(series) > 1 else [])) as peer:
        pid = peer.process.pid
        before = cpu_seconds(pid)
        wall = send(peer.port, "PACS", "ANY", series)
        return Timing(wall, cpu_seconds(pid) - before)


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


def least_cpu(directory: Path, content: bytes) -> tuple[float, float]:
    """CPU seconds of what can't be left out where files are named by content: SHA-256, and writing a file."""
    hashing, writing = [], []
    for _ in range(41):
        start = time.process_time()
        hashlib.sha256(content).digest()
        hashing.append(time.process_time() - start)
        start = time.process_time()
        (directory / "probe").write_bytes(content)
        writing.append(time.process_time() - start)
    (directory / "probe").unlink()
    return median(hashing), median(writing)


def measure(directory: Path, series: list[Path], rounds: int) -> dict[str, list[Timing]]:
    """Run both in turns; who is first changes each round. One round before isn't counted."""
    runs: dict[str, Callable[[Path, list[Path]], Timing]] = {"listener": ours, "storescp": theirs}
    seen: dict[str, list[Timing]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name in list(runs) if number % 2 else list(reversed(runs)):
            place = directory / f"{name}{number}"
            place.mkdir()
            timing = runs[name](place, series)
            shutil.rmtree(place)
            # what the one before wrote is no burden of the next
            os.sync()
            if number:
                seen[name].append(timing)
    return seen


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
        series = [make_ct(directory / f"ct{n}", f"ingest{n}", arguments.slices) for n in range(4)]
        table = Table(title=f"{arguments.slices} slices of {MATRIX} x {MATRIX} for each association")
        for column in ("", "objects/s", "fewest", "most", "CPU ms/object"):
            table.add_column(column, justify="right" if column else "left")
        for count, what in ((1, "one association"), (4, "four at once")):
            objects = count * arguments.slices
            seen = measure(directory, series[:count], arguments.rounds)
            middle = {name: median(t.wall for t in timings) for name, timings in seen.items()}
            for who, timings in seen.items():
                rates = sorted(objects / t.wall for t in timings)
                cpu = median(t.cpu for t in timings) / objects * 1000
                table.add_row(
                    f"{what}, {who}",
                    f"{median(rates):.0f}",
                    f"{rates[0]:.0f}",
                    f"{rates[-1]:.0f}",
                    f"{cpu:.2f}",
                )
            ratio = middle["storescp"] / middle["listener"]
            table.add_row(f"{what}, ratio", f"{ratio:.2f}")
        console.print(table)
        hashing, writing = least_cpu(directory, next(series[0].iterdir()).read_bytes())
        console.print(f"SHA-256 of an object: {hashing * 1000:.2f} ms; writing it: {writing * 1000:.2f} ms.")
        sync = sync_seconds(directory) * 1000
        console.print(f"One sync of 4 KiB there takes {sync:.2f} ms; {os.cpu_count()} cores.")
        console.print(f"Load {os.getloadavg()[0]:.1f} (these senders and receivers count in it).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
