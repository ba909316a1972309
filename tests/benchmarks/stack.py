"""How long the trained stack takes, and how much memory: ``python -m tests.benchmarks.stack``.

A drawn CT of 300 slices of 512 x 512 at 1 mm with seven nodules, written as DICOM files: the stages one by
one in a fresh process, then the whole of ``pacs-node analyze`` in another, results and pictures included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

SEED = 0
SHAPE, SPACING_MM = (300, 512, 512), (1.0, 0.7, 0.7)
LIMIT_S, LIMIT_GB = 60.0, 4.0


@dataclass
class Stopwatch:
    """Which stage began when, by wall clock and by the process's CPU time."""

    begun: list[tuple[str, float, float]] = field(default_factory=list)

    def __call__(self, stage: str, share: float = 0.0) -> None:
        """A stage begins; as ``progress`` of `inference.analyse.analyse` too."""
        if stage == "nodules" and share >= 0.4:  # named again after each candidate
            stage = "outlines and readings"
        self.begun.append((stage, time.perf_counter(), time.process_time()))

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Wall clock and CPU by stage, in their order; the last is only an end."""
        out: dict[str, tuple[float, float]] = {}
        for (stage, wall, cpu), (_, until, cpu_until) in zip(self.begun, self.begun[1:], strict=False):
            before = out.get(stage, (0.0, 0.0))
            out[stage] = before[0] + until - wall, before[1] + cpu_until - cpu
        return out


def run_stages(files: Sequence[Path]) -> dict[str, tuple[float, float]]:
    """The stages of one analysis in this process, which has imported nothing of the stack yet."""
    watch = Stopwatch()
    watch("imports")
    import inference.stack  # noqa: PLC0415 - its time is measured
    from inference.analyse import analyse  # noqa: PLC0415
    from inference.load import load_series  # noqa: PLC0415
    from inference.registry import load_pipeline  # noqa: PLC0415

    watch("models")
    pipeline = load_pipeline("reference")
    stack = inference.stack.load_stack(pipeline)
    watch("DICOM files")
    volume = load_series(files).volume
    result = analyse(volume, pipeline, input_digest="benchmark", stack=stack, progress=watch)
    seconds = watch.seconds()
    names = {"nodules": "detector and first candidate", "measurements": "measurements and radiomics"}
    seconds = {names.get(name, name): value for name, value in seconds.items()}
    return seconds | {"findings": (float(len(result.findings)), 0.0)}


def run_child(command: tuple[str, ...], out: Path) -> tuple[float, float, float]:
    """Wall clock and CPU in seconds and peak resident memory in GB (10^9) of a process (POSIX only)."""
    wall = time.perf_counter()
    with out.open("wb") as stream:
        child = os.posix_spawn(
            command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, stream.fileno(), 1)]
        )
        _, status, usage = os.wait4(child, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"{' '.join(command)} failed:\n{out.read_text(encoding='utf-8')}")
    return time.perf_counter() - wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def write_case(folder: Path) -> None:
    """Draw the CT and write it; in a process of its own, whose memory would be counted otherwise."""
    from inference.phantom import make_phantom, write_phantom  # noqa: PLC0415 - see above

    write_phantom(make_phantom(SEED, SHAPE, SPACING_MM), folder)


def main() -> int:
    """Print the tables; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description="Time and memory of the trained stack on 300 slices.")
    parser.add_argument("--write", type=Path, help="only write the case into this folder")
    parser.add_argument("--stages", type=Path, help="only run the stages on the files of this folder")
    arguments = parser.parse_args()
    if arguments.write:
        write_case(arguments.write)
        return 0
    if arguments.stages:
        sys.stdout.write(json.dumps(run_stages(sorted(arguments.stages.iterdir()))))
        return 0
    this = (sys.executable, "-m", "tests.benchmarks.stack")
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        case, told = folder / "case", folder / "told"
        run_child((*this, "--write", str(case)), told)
        of_stages = run_child((*this, "--stages", str(case)), told)
        seconds = json.loads(told.read_text(encoding="utf-8"))
        node = (sys.executable, "-m", "pacs_node.cli", "analyze", str(case), "--out", str(folder / "out"))
        of_node = run_child(node, told)
    return report(seconds, of_stages, of_node)


def report(
    seconds: dict[str, tuple[float, float]],
    of_stages: tuple[float, float, float],
    of_node: tuple[float, float, float],
) -> int:
    """Print what was measured; 1 where a limit is missed."""
    from inference.evaluate.report import hardware  # noqa: PLC0415 - only once everything is measured

    findings, _ = seconds.pop("findings")
    console = Console()
    table = Table(title=f"{SHAPE[0]} slices of {SHAPE[1]} x {SHAPE[2]}, {findings:.0f} findings")
    for column in ("", "wall s", "CPU s", "peak GB"):
        table.add_column(column, justify="right" if column else "left")
    for name, (wall, cpu) in seconds.items():
        table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}", "")
    for name, (wall, cpu, peak) in (("these in one process", of_stages), ("pacs-node analyze", of_node)):
        table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}", f"{peak:.2f}")
    console.print(table)
    facts = hardware()
    console.print(
        f"{facts['processor']}, {facts['cores']} cores; load {os.getloadavg()[0]:.1f} "
        f"(others' work makes the wall clock longer)."
    )
    return int(of_node[0] > LIMIT_S or of_node[2] > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main())
