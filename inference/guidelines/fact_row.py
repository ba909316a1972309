"""One row of facts as JSON or CSV have it, while it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

_E = TypeVar("_E", bound=Enum)
_YES, _NO = {"yes", "true", "1", "y"}, {"no", "false", "0", "n"}
_UNKNOWN = {"unknown", "null", "none"}


class FactError(ValueError):
    """A row can't be read: says which fact and why."""


class FactRow:
    """A row while it is read; what nobody asked for is an error in the end."""

    def __init__(self, row: Mapping[str, object]) -> None:
        self._row = {name: value for name, value in row.items() if value != ""}
        self._asked: set[str] = set()

    def given(self, *names: str) -> bool:
        """Whether the row has one of these facts, known or not."""
        return any(name in self._row for name in names)

    def number(self, name: str) -> float | None:
        """A finite number."""
        value = self._value(name)
        if value is None:
            return None
        try:
            number = float(str(value)) if not isinstance(value, bool) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise FactError(f"{name} = {value!r} is no number")
        return number

    def flag(self, name: str, default: bool | None = None) -> bool | None:
        """Yes or no; the default where the row has no such fact."""
        if name not in self._row:
            self._asked.add(name)
            return default
        value = self._value(name)
        word = str(value).strip().casefold()
        if value is None or word in _YES | _NO:
            return None if value is None else word in _YES
        raise FactError(f"{name} = {value!r}: write yes, no or unknown")

    def one_of(self, name: str, kind: type[_E], default: _E | None = None) -> _E | None:
        """One of a list."""
        if name not in self._row:
            self._asked.add(name)
            return default
        value = self._value(name)
        return None if value is None else member(name, kind, value)

    def words(self, name: str) -> tuple[str, ...]:
        """A list, or a text with semicolons."""
        value = self._value(name)
        listed = value if isinstance(value, list | tuple) else str(value or "").split(";")
        return tuple(word for one in listed if (word := str(one).strip()))

    def rows(self, name: str) -> list[Mapping[str, object]] | None:
        """A list of rows, such as nodules."""
        value = self._value(name)
        if value is None:
            return None
        if not (isinstance(value, list) and all(isinstance(row, Mapping) for row in value)):
            raise FactError(f"{name} is no list of nodules")
        return value

    def text(self, name: str, default: str) -> str:
        """A text."""
        return str(self._value(name) or default)

    def finish(self) -> None:
        """Refuse a fact that no function has asked for: it may be a slip of the pen."""
        if unknown := sorted(self._row.keys() - self._asked):
            raise FactError(f"unknown fact: {', '.join(unknown)}; known: {', '.join(sorted(self._asked))}")

    def _value(self, name: str) -> Any:
        self._asked.add(name)
        value = self._row.get(name)
        return None if isinstance(value, str) and value.strip().casefold() in _UNKNOWN else value


def member(name: str, kind: type[_E], value: object) -> _E:
    """By value or by name: ``part-solid``, ``PART_SOLID``, ``part solid``."""
    wanted = _plain(value)
    for member in kind:
        if wanted in {_plain(member.value), _plain(member.name)}:
            return member
    known = ", ".join(str(member.value) for member in kind)
    raise FactError(f"{name} = {value!r}; known: {known}")


def _plain(value: object) -> str:
    return str(value).strip().casefold().replace("_", " ").replace("-", " ")
