"""The ballast: given up when there is no room, made again when there is."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from pacs_node.ballast import Ballast

SIZE = 1 << 20


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=count))


def test_it_comes_and_goes_with_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast, file = Ballast(tmp_path, SIZE), tmp_path / "ballast"
    free(monkeypatch, 2 * SIZE - 1)
    ballast.look()
    assert not file.exists()
    free(monkeypatch, 2 * SIZE)
    ballast.look()
    assert file.stat().st_blocks * 512 >= SIZE
    for count, there in ((SIZE // 4, True), (SIZE // 4 - 1, False), (SIZE, False), (2 * SIZE, True)):
        free(monkeypatch, count)
        ballast.look()
        assert file.exists() is there


def test_without_room_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 2 * SIZE)

    def fail(*_given: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    Ballast(tmp_path, SIZE).look()
    assert list(tmp_path.iterdir()) == []
