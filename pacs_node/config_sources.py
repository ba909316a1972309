"""The configuration as it is in force, each value with where it comes from; nothing secret is told.

The node reads no setting from the environment: a value stands in the file, or is the default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from pacs_node.config import Settings

HIDDEN = "(not shown)"

_SECRET = re.compile(r"(password|secret|token|passphrase|credentials)$")
_USER = re.compile(r"(://[^/@:]*):[^/@]*@")
_QUERY = re.compile(r"(://[^?]*)\?.*")


@dataclass(frozen=True, slots=True)
class SettingLine:
    """One setting.

    Parameters
    ----------
    value
        As the file would have it; a secret is replaced by `HIDDEN`.
    is_default
        Whether the file says nothing of it.
    """

    key: str
    value: str
    is_default: bool
    meaning: str


@dataclass(frozen=True, slots=True)
class SettingTable:
    """One table of the configuration file, such as ``[listener]`` or ``[[callers]]``."""

    title: str
    about: str
    lines: tuple[SettingLine, ...]


def setting_tables(settings: Settings) -> tuple[SettingTable, ...]:
    """All tables in the order of the file."""
    return tuple(_tables("", settings))


def _tables(name: str, section: BaseModel) -> Iterator[SettingTable]:
    tables = {key: value for key, value in section if _is_table(value)}
    if name:
        yield _table(f"[{name}]", section)
    for key, value in tables.items():
        inner = f"{name}.{key}" if name else key
        if isinstance(value, BaseModel):
            yield from _tables(inner, value)
        else:
            yield from (_table(f"[[{inner}]]", one) for one in value)


def _is_table(value: object) -> bool:
    return isinstance(value, BaseModel) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(one, BaseModel) for one in value)
    )


def _table(title: str, section: BaseModel) -> SettingTable:
    lines = tuple(
        SettingLine(
            key,
            shown(key, value),
            key not in section.model_fields_set,
            type(section).model_fields[key].description or "",
        )
        for key, value in section
        if not _is_table(value)
    )
    return SettingTable(title, (section.__doc__ or "").strip().partition("\n")[0], lines)


def shown(key: str, value: Any) -> str:
    """A value for people; what lets somebody in is replaced."""
    if _SECRET.search(key) and value not in (None, "", ()):
        return HIDDEN
    if isinstance(value, tuple | list):
        return f"[{', '.join(shown(key, one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {shown(str(name), one)}" for name, one in value.items()) + "}"
    if isinstance(value, str):
        return '"' + _QUERY.sub(r"\1?" + HIDDEN, _USER.sub(rf"\1:{HIDDEN}@", value)) + '"'
    words = {None: "absent", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else f"{value:g}"
