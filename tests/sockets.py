"""What a group of processes listens on, as the kernel says it (what ``ss -lntup`` shows)."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

_LISTEN, _UNCONNECTED = "0A", "07"
_TABLES = {"tcp": _LISTEN, "tcp6": _LISTEN, "udp": _UNCONNECTED, "udp6": _UNCONNECTED}


def listening(group: int) -> set[tuple[str, str, int]]:
    """Protocol, address and port of every socket on which a process of a process group waits for peers."""
    inodes = {inode for pid in _members(group) for inode in _inodes(pid)}
    found = set()
    for table, state in _TABLES.items():
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                found.add((table, _address(address), int(port, 16)))
    return found


def _members(group: int) -> list[Path]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # pid (name) state ppid pgrp: the name may have spaces
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                members.append(stat.parent)
    return members


def _inodes(process: Path) -> set[str]:
    found = set()
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                target = str(link.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _address(digits: str) -> str:
    """Words of 32 bits in the order of this machine."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
