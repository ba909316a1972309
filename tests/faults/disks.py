"""File systems that may be filled, copied while they are in use, and thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest


def cannot(what: str) -> NoReturn:
    """Skip, or fail where the peers of the tests are required (``make faults``)."""
    if os.environ.get("PACS_NODE_REQUIRE_PEERS") == "1":
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


@contextmanager
def mounted(place: Path, *arguments: str | Path) -> Iterator[Path]:
    """``mount ARGUMENTS PLACE`` until the block ends."""
    place.mkdir(exist_ok=True)
    if os.geteuid() != 0:
        cannot("needs root, to mount a file system")
    done = _run(["mount", *arguments, place])
    if done.returncode:
        cannot(f"may not mount a file system here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        _run(["umount", "-l", place])


def make_image(path: Path, size_mb: int) -> Path:
    """Make a file with an empty ext4 in it."""
    if shutil.which("mkfs.ext4") is None:
        cannot("needs mkfs.ext4 (e2fsprogs)")
    with path.open("wb") as file:
        file.truncate(size_mb << 20)
    options = ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    done = _run(["mkfs.ext4", *options, path])
    assert done.returncode == 0, done.stderr
    return path


def copy_image(source: Path, target: Path) -> Path:
    """Copy a file as it is at this moment, without its holes."""
    done = _run(["cp", "--sparse=always", source, target])
    assert done.returncode == 0, done.stderr
    return target


def _run(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
