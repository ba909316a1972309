"""The filter of the list of studies: its fields in the address, what they ask for, what is wrong in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from typing import TypeVar
from urllib.parse import urlencode

from pacs_node.study_search import FindingQuery, LungRads, NoduleKind, StudyOrder, StudyQuery
from pacs_node.study_state import DeliveryWord, StudyWord

FIELDS = (
    *("q", "state", "delivery", "since", "until", "from", "to"),
    *("mm", "malignancy", "kind", "lungrads", "sort", "order"),
)
_LONGEST_FIELD = 200

_Word = TypeVar("_Word", bound=StrEnum)
_Value = TypeVar("_Value")


class FieldError(Exception):
    """A field says something that can't be asked; the text is for whoever typed it."""


@dataclass(frozen=True, slots=True)
class StudyFilter:
    """What was asked.

    Parameters
    ----------
    asked
        The fields that say something, as they were typed.
    troubles
        What is wrong with them; nothing is listed then.
    """

    query: StudyQuery
    asked: dict[str, str]
    troubles: tuple[str, ...]

    @property
    def narrowed(self) -> bool:
        """Whether it asks for anything but an order."""
        return bool(self.asked.keys() - {"sort", "order"})

    @property
    def further(self) -> bool:
        """Whether it asks for something that the form keeps folded."""
        return bool(self.asked.keys() & {"from", "to", "mm", "malignancy", "kind", "lungrads"})

    def address(self, **changes: object) -> str:
        """The address of the list with some fields changed; those that are None are left out."""
        fields = {name: value for name, value in (self.asked | changes).items() if value is not None}
        return f"/studies?{urlencode(fields)}" if fields else "/studies"

    def sorted_by(self, order: str) -> str:
        """The address of the list in an order; in the other direction if it is in this one already."""
        turned = self.query.order == order and self.query.descending
        return self.address(sort=order, order="up" if turned else "down")


def read_filter(parameters: Mapping[str, str]) -> StudyFilter:
    """Read the fields of an address."""
    typed = {name: parameters.get(name, "").strip()[:_LONGEST_FIELD] for name in FIELDS}
    asked = {name: value for name, value in typed.items() if value}
    troubles: list[str] = []

    def read(name: str, parse: Callable[[str], _Value]) -> _Value | None:
        try:
            return parse(asked[name]) if name in asked else None
        except FieldError as error:
            troubles.append(str(error))
            return None

    size, malignancy = read("mm", _number("mm", 1000)), read("malignancy", _number("percent", 100))
    kind = read("kind", _word(NoduleKind, "kind of nodule"))
    finding = FindingQuery(size or 0.0, (malignancy or 0.0) / 100, kind)
    query = StudyQuery(
        words=asked.get("q", ""),
        since=read("since", midnight),
        until=read("until", next_midnight),
        first_day=read("from", _day) or "",
        last_day=read("to", _day) or "",
        state=read("state", _word(StudyWord, "state")),
        delivery=read("delivery", _word(DeliveryWord, "state of a delivery")),
        finding=finding if asked.keys() & {"mm", "malignancy", "kind"} else None,
        lung_rads=read("lungrads", _word(LungRads, "category of Lung-RADS")),
        order=read("sort", _word(StudyOrder, "order")) or StudyOrder.RECEIVED,
        descending=read("order", _direction) is not False,
    )
    return StudyFilter(query, asked, tuple(troubles))


def midnight(text: str) -> datetime:
    """The beginning of a day where the node stands.

    Raises
    ------
    FieldError
        It is no day, or none that a clock of ours can show.
    """
    try:
        return datetime.combine(date.fromisoformat(text), time()).astimezone()
    except (ValueError, OverflowError):
        raise FieldError(f"{text} is no day: write 2026-03-02.") from None


def next_midnight(text: str) -> datetime:
    """The end of a day where the node stands; errors as of `midnight`."""
    try:
        return midnight(text) + timedelta(days=1)
    except OverflowError:
        raise FieldError(f"{text} is no day: write 2026-03-02.") from None


def _day(text: str) -> str:
    return f"{midnight(text):%Y%m%d}"


def _direction(text: str) -> bool:
    if text not in {"up", "down"}:
        raise FieldError(f"{text} is no direction: write up or down.")
    return text == "down"


def _word(kind: type[_Word], what: str) -> Callable[[str], _Word]:
    def parse(text: str) -> _Word:
        try:
            return kind(text)
        except ValueError:
            raise FieldError(f"{text} is no {what}; known: {', '.join(kind)}.") from None

    return parse


def _number(unit: str, largest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text.replace(",", "."))
        except ValueError:
            value = -1.0
        if not 0 <= value <= largest:
            raise FieldError(f"{text} is no number of {unit}: write one from 0 to {largest:g}.")
        return value

    return parse
