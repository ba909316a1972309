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


def test_another_size_and_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "ballast"
    free(monkeypatch, 1 << 40)
    for size in (SIZE, 2 * SIZE):
        for _ in range(2):
            Ballast(tmp_path, size).look()
        assert file.stat().st_size == size
    for _ in range(2):
        Ballast(tmp_path, 0).look()
    assert not file.exists()


def test_whether_it_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ballast = Ballast(tmp_path, SIZE)
    for count, given_up in ((2 * SIZE - 1, True), (2 * SIZE, False)):
        free(monkeypatch, count)
        assert ballast.is_given_up is given_up
    ballast.look()
    free(monkeypatch, SIZE)
    assert not ballast.is_given_up
    assert not Ballast(tmp_path / "none", 0).is_given_up
