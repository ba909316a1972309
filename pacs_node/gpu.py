"""What ``nvidia-smi`` says of this machine's GPUs; nothing where there is none. Loads no PyTorch."""

from __future__ import annotations

import csv
import shutil
import subprocess
from dataclasses import dataclass

PROGRAM = "nvidia-smi"
_ASKED = ("index", "name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")
_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; None where the driver doesn't tell.

    Parameters
    ----------
    busy
        Share of the last moments in which it computed, 0..1.
    memory_used, memory_total
        Bytes.
    celsius
        Its temperature.
    """

    index: str
    name: str
    busy: float | None
    memory_used: float | None
    memory_total: float | None
    celsius: float | None


def gpus(program: str = PROGRAM) -> tuple[Gpu, ...]:
    """Ask now; empty without the program, without a GPU, or without an answer."""
    path = shutil.which(program)
    if path is None:
        return ()
    try:
        answer = subprocess.run(  # noqa: S603 - the program that was found, fixed arguments, no shell
            [path, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ()
    return read_gpus(answer.stdout)


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """Read the program's lines; one of another form is left out."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == len(_ASKED):
            index, name, *numbers = row
            busy, used, total, celsius = map(_number, numbers)
            found.append(
                Gpu(index, name, _times(busy, 0.01), _times(used, 2**20), _times(total, 2**20), celsius)
            )
    return tuple(found)


def _number(text: str) -> float | None:
    """``[N/A]`` and the like are None."""
    try:
        return float(text)
    except ValueError:
        return None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
