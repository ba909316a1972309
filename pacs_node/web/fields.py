"""Fields of JSON that may be of another version or damaged: what is not as it should be is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_MOST = 1 << 31


def mapping(found: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty where there is none."""
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def sequence(found: dict[str, Any], key: str) -> Sequence[Any]:
    """The list under a key; empty where there is none."""
    value = found.get(key)
    return value if isinstance(value, list) else []


def mappings(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects in the list under a key."""
    return [item for item in sequence(found, key) if isinstance(item, dict)]


def texts(found: dict[str, Any], key: str) -> tuple[str, ...]:
    """The texts in the list under a key."""
    return tuple(item for item in sequence(found, key) if isinstance(item, str))


def text(found: dict[str, Any], key: str) -> str:
    """The text or number under a key as text; empty where there is none."""
    value = found.get(key)
    return str(value) if isinstance(value, str | int | float) else ""


def whole(found: dict[str, Any] | Sequence[Any], key: Any) -> int | None:
    """The whole number under a key or at a place; None where there is none of a sane size."""
    try:
        value = found[key]
    except LookupError:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST else None


def number(found: dict[str, Any], key: str) -> float | None:
    """The finite number under a key; None where there is none."""
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
