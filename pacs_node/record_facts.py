"""What other systems tell of a patient, one fact at a time, and the record that they make for one study."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from inference.record import RecordCode, RecordIssue, RecordReading, Smoking, accept
from inference.record_person import Person
from pacs_node.record_codes import (
    OBSERVATIONS,
    STATUS,
    Coding,
    is_pack_years,
    status_of_words,
    units_a_year,
)

CANCER = "cancer_diagnosed"
QUIT_DATE = "quit_date"
_YEAR = 365.25
_LONG_AGO_YEARS = 5.0
#: a fact of the day after the study may be of the same day elsewhere
_SLACK = timedelta(days=1)
_ONCE_TRUE = frozenset(("family_history_lung_cancer", "emphysema"))


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that was told.

    Parameters
    ----------
    item
        An item of `inference.record.ClinicalRecord` in its unit, `CANCER` (a cancer outside the chest,
        diagnosed at `on`) or `QUIT_DATE` (ISO date of the last cigarette).
    on
        Day from which it is; None where the source doesn't say.
    source
        Words such as ``FHIR Observation``.
    """

    item: str
    value: str | float | bool
    on: date | None
    source: str


Told = Fact | RecordIssue


@dataclass(frozen=True, slots=True)
class Answer:
    """A value as it came, before anybody knows what it is worth.

    Parameters
    ----------
    value
        Text, number or flag.
    unit
        Of a number.
    codings
        Where the value is a code.
    """

    value: object = None
    unit: str = ""
    codings: tuple[Coding, ...] = ()


def observed(
    what: Sequence[Coding],
    answer: Answer,
    on: date | None,
    source: str,
    site: Mapping[Coding, str],
) -> Told | None:
    """Make a fact of one observation.

    Parameters
    ----------
    what
        The codes of what was observed.
    site
        The site's own codes -> item.

    Returns
    -------
    Fact, RecordIssue or None
        None where it tells no item, or that the item isn't known.
    """
    item = next((found for one in what if (found := site.get(one) or OBSERVATIONS.get(one))), None)
    if item is None:
        return None
    if item == "smoking":
        return _smoking(answer, on, source)
    if item == QUIT_DATE:
        quit_on = day_of(str(answer.value or ""))
        return None if quit_on is None else Fact(QUIT_DATE, quit_on.isoformat(), on, source)
    if item in _ONCE_TRUE:
        value = answer.value
        return Fact(item, value, on, source) if isinstance(value, str | bool) and value != "" else None
    return _amount(item, answer, on, source)


def _smoking(answer: Answer, on: date | None, source: str) -> Told | None:
    for coding in answer.codings:
        if coding in STATUS:
            status = STATUS[coding]
            return None if status is None else Fact("smoking", status.value, on, source)
    known, status = status_of_words(str(answer.value or ""))
    if not known and (answer.codings or answer.value):
        words = f"{source} has a smoking status in words or a code that isn't known here. It was left out."
        return RecordIssue(RecordCode.SMOKING_VALUE, "smoking", words)
    return None if status is None else Fact("smoking", status.value, on, source)


def _amount(item: str, answer: Answer, on: date | None, source: str) -> Told | None:
    if answer.value in (None, ""):
        return None
    number = _number(answer.value)
    divisor = units_a_year(answer.unit) if item == "years_quit" else float(is_pack_years(answer.unit))
    if not divisor:
        words = f"{source} has {item} in a unit that isn't known here. It was left out."
        return RecordIssue(RecordCode.UNIT_VALUE, item, words)
    if number is None:
        code = RecordCode.YEARS_QUIT_RANGE if item == "years_quit" else RecordCode.PACK_YEARS_RANGE
        return RecordIssue(code, item, f"{source} has {item} that is no number. It was left out.")
    return Fact(item, number / divisor, on, source)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def day_of(text: str) -> date | None:
    """Read a date of FHIR or HL7: the whole day; of a month the 15th, of a year the 1st of July.

    Returns
    -------
    date or None
        None where it is no date.
    """
    found = re.match(r"(\d{4})(?:-?(\d\d)(?:-?(\d\d))?)?(?![\d-])|(\d{4})(\d\d)(\d\d)\d", text.strip())
    if found is None:
        return None
    year, month, day = (found[1], found[2], found[3]) if found[1] else (found[4], found[5], found[6])
    try:
        return date(int(year), int(month or 7), int(day or (15 if month else 1)))
    except ValueError:
        return None


def record_of(told: Iterable[Told], seen: date, more: Mapping[str, tuple[object, str]]) -> RecordReading:
    """Make the record of one study: the latest value of each item at the time of the study.

    Parameters
    ----------
    seen
        Day of the study. What is from after it isn't used: it may know how the nodule turned out.
    more
        Items without a day -> value and source: age and sex.

    Returns
    -------
    RecordReading
        Two values of an item from the same day that differ are both left out (CONFLICT).
    """
    facts, issues = _until(told, seen)
    values = {item: value for item, (value, _) in more.items()}
    sources = {item: source for item, (_, source) in more.items()}
    dates: dict[str, date] = {}
    for item in dict.fromkeys(_item_of(fact) for fact in facts):
        chosen = _choose([fact for fact in facts if _item_of(fact) == item], item, seen, issues)
        if chosen is not None:
            values[item], sources[item] = chosen[0], chosen[1].source
            if chosen[1].on is not None:
                dates[item] = chosen[1].on
    _settle(values, dates)
    found = accept(values, sources, dates)
    return RecordReading(found.record, found.sources, (*issues, *found.issues), found.dates)


def reading_of(told: Iterable[Told], person: Person, seen: date, source: str) -> RecordReading:
    """Make the record of one study of facts and of whom they are; see `record_of`."""
    more: dict[str, tuple[object, str]] = {}
    born = day_of(person.birth_date) if len(person.birth_date) == len("YYYYMMDD") else None
    if born is not None and born <= seen:
        age = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
        more["age_years"] = float(age), f"{source} birth date and Study Date"
    if person.sex is not None:
        more["sex"] = person.sex.value, f"{source} patient"
    return record_of(told, seen, more)


def _until(told: Iterable[Told], seen: date) -> tuple[list[Fact], list[RecordIssue]]:
    everything = list(told)
    facts = [one for one in everything if isinstance(one, Fact)]
    issues = list(dict.fromkeys(one for one in everything if isinstance(one, RecordIssue)))
    late = {_item_of(fact): fact.source for fact in facts if fact.on and fact.on > seen + _SLACK}
    for item, source in late.items():
        words = f"{source} has {item} from after the study. It was left out."
        issues.append(RecordIssue(RecordCode.AFTER_STUDY, item, words))
    return [fact for fact in facts if not (fact.on and fact.on > seen + _SLACK)], issues


def _item_of(fact: Fact) -> str:
    return {CANCER: "cancer_history", QUIT_DATE: "years_quit"}.get(fact.item, fact.item)


def _choose(
    facts: Sequence[Fact], item: str, seen: date, issues: list[RecordIssue]
) -> tuple[Any, Fact] | None:
    worth = [(value, fact) for fact in facts if (value := _at(fact, seen)) is not None]
    if not worth:
        return None
    if item in _ONCE_TRUE and (true := [one for one in worth if _is_yes(one[0])]):
        return max(true, key=lambda one: one[1].on or date.min)
    last = max(fact.on or date.min for _, fact in worth)
    newest = [one for one in worth if (one[1].on or date.min) == last]
    if any(_differ(value, newest[0][0]) for value, _ in newest):
        words = f"{newest[0][1].source} has two values of {item} from the same day. Both were left out."
        issues.append(RecordIssue(RecordCode.CONFLICT, item, words))
        return None
    return newest[0]


def _at(fact: Fact, seen: date) -> object:
    """The value of the record's item at the study; None where the fact doesn't tell it."""
    if fact.item == CANCER:
        # more than five years ago by the definition of the item; a later one is none, and no "no"
        long_ago = fact.on is not None and (seen - fact.on).days > _LONG_AGO_YEARS * _YEAR
        return True if long_ago else None
    if fact.item == QUIT_DATE:
        quit_on = day_of(str(fact.value))
        if quit_on is None or quit_on > seen + _SLACK:
            return None
        return max((seen - quit_on).days, 0) / _YEAR
    if fact.item == "years_quit" and fact.on is not None:
        return float(fact.value) + max((seen - fact.on).days, 0) / _YEAR
    return fact.value


def _is_yes(value: object) -> bool:
    return str(value).strip().lower() in {"true", "yes", "y", "1"}


def _differ(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) > 1.0
    return one != other


def _settle(values: dict[str, Any], dates: Mapping[str, date]) -> None:
    """Drop years since quitting that are older than the word that the patient smokes, in place."""
    quit_on, status_on = dates.get("years_quit"), dates.get("smoking")
    smokes = values.get("smoking") == Smoking.CURRENT.value and "years_quit" in values
    if smokes and status_on is not None and (quit_on is None or quit_on < status_on):
        del values["years_quit"]
