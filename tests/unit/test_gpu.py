"""What the driver's program says of GPUs, and that nothing is told without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pacs_node.gpu import Gpu, gpus, read_gpus

LINES = """0, NVIDIA H100 80GB HBM3, 25, 1024, 81559, 35
1, NVIDIA T4, [N/A], 0, 15360, [Not Supported]
nonsense
"""
FOUND = (
    Gpu("0", "NVIDIA H100 80GB HBM3", 0.25, 2**30, 81559 * 2**20, 35.0),
    Gpu("1", "NVIDIA T4", None, 0.0, 15360 * 2**20, None),
)


def test_lines_of_the_program() -> None:
    assert read_gpus(LINES) == FOUND
    assert read_gpus("") == read_gpus("No devices were found\n") == ()


def test_without_the_program_there_is_nothing() -> None:
    assert gpus("no-such-program-anywhere") == ()


@pytest.mark.parametrize(("script", "expected"), [(f"cat <<'E'\n{LINES}E", FOUND), ("exit 9", ())])
def test_the_program_is_asked(tmp_path: Path, script: str, expected: tuple[Gpu, ...]) -> None:
    program = tmp_path / "smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    assert gpus(str(program)) == expected
