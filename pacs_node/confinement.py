"""Takes rights away from this process, for good: what opens files of strangers needs hardly any.

Linux only, and without any privilege: rlimits, ``no_new_privs``, a seccomp filter (x86-64, AArch64) and
Landlock (Linux 5.13 and newer). What this machine can't do is not done, and `held` says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _SET_DEATH_SIGNAL = 38, 22, 1
_FILTER_MODE = 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_AF_UNIX, _CLONE_THREAD = 1, 0x10000
_X32 = 0x40000000


@dataclass(frozen=True, slots=True)
class _Calls:
    """Numbers of system calls of one architecture; -1 where it hasn't one."""

    architecture: int
    socket: int
    clone: int
    fork: tuple[int, ...]
    execute: tuple[int, ...]
    #: ways to reach into other processes, or round this filter
    reach: tuple[int, ...]
    kill: int
    clone3: int = 435


_CALLS = {
    "x86_64": _Calls(0xC000003E, 41, 56, (57, 58), (59, 322), (101, 310, 311, 321, 323, 425, 438), 62),
    "aarch64": _Calls(0xC00000B7, 198, 220, (), (221, 281), (117, 270, 271, 280, 282, 425, 438), 129),
}

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# write, remove and make, each bit as in linux/landlock.h; moving and truncating came later
_WRITING = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
_MOVING, _TRUNCATING = 1 << 13, 1 << 14


def forbid_privileges() -> None:
    """No program that this process starts gets more rights than it has, and no core dump holds its data."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _check(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def forbid_network() -> bool:
    """Deny all sockets but local ones, and ways into other processes; False where it can't be done here.

    `forbid_privileges` must have been called. Threads that run already are not affected.
    """
    calls = _CALLS.get(platform.machine())
    return calls is not None and _filter([*_deny(calls.reach), *_sockets(calls.socket, local=True)])


def forbid_everything() -> bool:
    """Deny sockets, programs, new processes and signals too; False where it can't be done here."""
    calls = _CALLS.get(platform.machine())
    if calls is None:
        return False
    denied = (*calls.reach, *calls.fork, *calls.execute, calls.kill)
    return _filter(
        [
            *_deny(denied),
            *_sockets(calls.socket, local=False),
            # the C library then takes clone, whose flags can be looked at: threads may be made
            *_deny([calls.clone3], errno.ENOSYS),
            (_EQUAL, 0, 4, calls.clone),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            (_ANY_BIT, 0, 1, _CLONE_THREAD),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
    )


def forbid_writing(but: Iterable[Path] = ()) -> bool:
    """Deny changing any file by its name, except beneath some folders; False where it can't be done here."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    rights = _WRITING | (_MOVING if version >= 2 else 0) | (_TRUNCATING if version >= 3 else 0)
    handled = struct.pack("Q", rights)
    rules = _check(_libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0))
    try:
        for folder in but:
            opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            _check(_libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, opened), 0))
            os.close(opened)
        _check(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0))
    finally:
        os.close(rules)
    return True


def limit(**limits: int) -> None:
    """Set rlimits, soft and hard: ``limit(AS=1 << 30)``; one that is lower already stays."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))


def die_with_parent(signal_number: int) -> None:
    """Let the kernel send a signal to this process when the thread that made it ends."""
    _check(_libc.prctl(_SET_DEATH_SIGNAL, signal_number, 0, 0, 0))


def held() -> dict[str, str]:
    """What the kernel says of this process: ``NoNewPrivs`` and ``Seccomp`` of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: facts.get(name, "").strip() for name in ("NoNewPrivs", "Seccomp")}


_Instruction = tuple[int, int, int, int]


def _deny(calls: Sequence[int], error: int = errno.EPERM) -> Iterator[_Instruction]:
    for call in calls:
        yield (_EQUAL, 0, 1, call)
        yield (_RETURN, 0, 0, _ERRNO | error)


def _sockets(call: int, *, local: bool) -> Iterator[_Instruction]:
    if not local:
        yield from _deny([call])
        return
    yield (_EQUAL, 0, 4, call)
    yield (_LOAD, 0, 0, _FIRST_ARGUMENT_AT)
    yield (_EQUAL, 0, 1, _AF_UNIX)
    yield (_RETURN, 0, 0, _ALLOW)
    yield (_RETURN, 0, 0, _ERRNO | errno.EPERM)


def _filter(rules: Sequence[_Instruction]) -> bool:
    """Install a seccomp filter; system calls of another architecture are denied altogether."""
    calls = _CALLS[platform.machine()]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, calls.architecture),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        *rules,
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    # a kernel without seccomp says EINVAL
    return int(_libc.prctl(_SET_SECCOMP, _FILTER_MODE, head, 0, 0)) == 0


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
