"""How values become text on the page. Text from outside can neither hide nor act."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from inference.certainty import percent as probability_words
from pacs_node.timeline import words

_TEMPLATES = Path(__file__).parent / "templates"
_JOINERS = "\u200c\u200d"
_SIGNS = {"done": "\u2713", "busy": "\u25d4", "notice": "!", "failed": "\u2715"}


def visible(text: str) -> str:
    """Show characters that would not show, or would turn the text around them, by their number.

    Control, format (bidirectional overrides among them), surrogate and private characters become
    ``[U+202E]``; joiners stay, as names in several scripts need them.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"[U+{ord(c):04X}]"
        if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co"} and c not in _JOINERS
        else c
        for c in text
    )


def person(name: str) -> str:
    """A DICOM person name (PS3.5 6.2.1) for reading: ``Doe^Jane^^Dr`` as ``Doe, Jane Dr``."""
    groups = []
    for group in name.split("="):
        family, *others = (part.strip() for part in group.split("^"))
        rest = " ".join(part for part in others if part)
        groups.append(", ".join(part for part in (family, rest) if part))
    return " / ".join(group for group in groups if group)


def date(text: str) -> str:
    """A DICOM date: ``20260302`` as ``2026-03-02``, anything else as it is."""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if re.fullmatch(r"[0-9]{8}", text) else text


@pass_context
def moment(context: Context, at: datetime | None) -> str | Markup:
    """A time in UTC, the day only if it isn't today's; ``times.js`` shows it where the viewer is."""
    if at is None:
        return ""
    utc, today = at.astimezone(UTC), context["now"].astimezone(UTC).date()
    shown = f"{utc:%H:%M:%S}" if utc.date() == today else f"{utc:%Y-%m-%d %H:%M:%S}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), f"{utc:%Y-%m-%d %H:%M:%S} UTC", shown
    )


def day(at: datetime) -> str:
    """The day where the node stands, as a field of a form has it."""
    return f"{at.astimezone():%Y-%m-%d}"


@pass_context
def age(context: Context, at: datetime) -> str:
    """How long ago, in words."""
    return words(context["now"] - at)


def duration(value: timedelta | None) -> str:
    """A duration in words, nothing for None."""
    return "" if value is None else words(value)


def number(value: float | None, places: int = 1) -> str:
    """A measured number, a dash where there is none."""
    return "\u2013" if value is None else f"{value:.{places}f}"


def percent(value: float | None) -> str:
    """A probability of 0..1 in percent, a dash where there is none."""
    return "\u2013" if value is None else probability_words(value)


def share(value: float | None) -> str:
    """A counted share of 0..1 in percent, which may be none or all; a dash where there is none."""
    return "\u2013" if value is None else f"{100 * value:.0f} %"


def size(count: int) -> str:
    """Bytes for a person: ``512 MiB``, ``3.4 GiB``."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count >> 20} MiB"


def sign(tone: str) -> str:
    """The sign that stands beside the colour of a state."""
    return _SIGNS[tone]


def _finalize(value: object) -> object:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


@cache
def make_environment() -> Environment:
    """Templates with escaping on, and an error for every misspelt name; one for the process."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "person": person,
        "date": date,
        "moment": moment,
        "age": age,
        "day": day,
        "duration": duration,
        "number": number,
        "percent": percent,
        "share": share,
        "size": size,
        "sign": sign,
    }
    return environment
