"""Kinds of values that the API takes and gives."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:")


class Answer(BaseModel):
    """Base of what the API gives."""

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True, frozen=True)


class Sent(BaseModel):
    """Base of what the API takes: an unknown name is an error."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid", strict=True)


def _whole(value: Any) -> Any:
    """Text that JSON can carry: half a character becomes a question mark."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _all_whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {_whole(name): _all_whole(item) for name, item in value.items()}
    return [_all_whole(item) for item in value] if isinstance(value, list) else _whole(value)


def _counted(value: Any) -> Any:
    """JSON has one kind of number: 4.0 is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _seconds(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _written(value: Any) -> Any:
    """Refuse a number of seconds, which pydantic would take for a time too."""
    if isinstance(value, str) and not _TIME.match(value):
        raise ValueError("write a time with its zone, such as 2026-03-02T08:00:00Z")
    return value


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


class Asked(BaseModel):
    """Base of what is asked for in the address: a misspelt filter is an error, it would find too much."""

    model_config = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


class AskedPage(Asked):
    """Base of what a list is asked for."""

    cursor: Annotated[str | None, Field(pattern=r"^[0-9]{1,18}$")] = None
    """`next_cursor` of the page before, asked for with the same filters and order."""

    @property
    def row(self) -> int | None:
        """The row that the page before ended with."""
        return None if self.cursor is None else int(self.cursor)


Text = Annotated[str, BeforeValidator(_whole)]
"""Any text, as it was sent; JSON escapes what needs it."""

Objects = Annotated[dict[str, Any], BeforeValidator(_all_whole)]
"""Named JSON values."""

Number = Annotated[float | None, BeforeValidator(_finite)]
"""A measured value; null where there is none."""

Seconds = Annotated[float | None, BeforeValidator(_seconds)]
"""A duration; null where something takes no time."""

Moment = Annotated[AwareDatetime, BeforeValidator(_written), AfterValidator(_utc)]
"""A time with its zone, RFC 3339."""

Uid = Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")]
Plain = StringConstraints(pattern=r"^[^\x00]*$")
"""Databases take no NUL."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
Place = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
"""Name of a destination, as the configuration takes it."""

RowId = Annotated[int, Field(ge=1, le=2**31 - 1)]
SentNumber = BeforeValidator(_counted)
"""For a whole number in a body."""
