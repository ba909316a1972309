"""Time as a value that tests can set."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from datetime import UTC, datetime

_STA_UNSYNC = 0x0040

Clock = Callable[[], datetime]
"""Returns the current time, timezone-aware, UTC."""


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


class _Timex(ctypes.Structure):
    """``struct timex`` of adjtimex(2), up to what is read; the rest is room for the kernel."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 40),
    )


def clock_is_synchronised() -> bool | None:
    """Whether the kernel says that its clock follows a time server; None where it doesn't say."""
    answer = _Timex()
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(answer)) < 0:
        return None
    return not answer.status & _STA_UNSYNC
