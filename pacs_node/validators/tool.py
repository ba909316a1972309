"""What a validator is, and how its program is found and run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pacs_node.validators.subjects import Subject

_LIMIT_S = 600


@dataclass(frozen=True, slots=True)
class Tool:
    """One validator.

    Parameters
    ----------
    name
        As in the table and in the waivers.
    what
        What it checks, in a few words.
    install
        How to get it.
    kinds
        Kinds of objects that it can read.
    missing
        Why it can't run here; None where it can.
    check
        Gives what it complains about, one message each; gets one subject, all of a study where `together`.
    together
        It looks at a whole study at once, with its context.
    in_process
        It runs in this process and not safely beside others.
    """

    name: str
    what: str
    install: str
    kinds: tuple[str, ...]
    missing: Callable[[], str | None]
    check: Callable[[Sequence[Subject]], list[str]]
    together: bool = False
    in_process: bool = False


def find_program(name: str) -> Path | None:
    """Where a program is: on PATH, or beside the Python that runs this."""
    found = shutil.which(name)
    if found:
        return Path(found)
    beside = Path(sys.executable).parent / name
    return beside if beside.exists() else None


def needs_program(name: str) -> Callable[[], str | None]:
    """Return a `Tool.missing` for a tool that is one program."""
    return lambda: None if find_program(name) else f"no program {name}"


def run_program(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program and collect what it says.

    Raises
    ------
    FileNotFoundError
        The program isn't installed.
    subprocess.TimeoutExpired
        It took more than ten minutes.
    """
    program = find_program(str(command[0]))
    if program is None:
        raise FileNotFoundError(str(command[0]))
    return subprocess.run(  # noqa: S603 - a validator by its fixed name, our arguments, no shell
        [str(program), *(str(part) for part in command[1:])],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def lines_of(*texts: str) -> list[str]:
    """Return the lines that aren't empty, stripped."""
    return [line.strip() for text in texts for line in text.splitlines() if line.strip()]
