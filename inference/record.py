"""The clinical record of a patient: what it holds, what is refused, how sources are merged, what it says.

Every item may be missing. A record is valid once it exists; tolerance lives at the edge: `accept` takes
values as files and headers have them, leaves out what makes no sense and says so with a code. Nothing here
reads a radiologist's rating of a nodule, and no text made here names the patient. Files are read by
`inference.record_files`. Research use only, not for primary diagnosis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from typing import Any

from inference.record_codes import RATINGS, RecordCode, RecordError, RecordIssue, Sex, Smoking

__all__ = [
    "AGES_DIFFER_YEARS",
    "ITEMS",
    "MOST_PACK_YEARS",
    "OLDEST_YEARS",
    "RATINGS",
    "UNITS",
    "ClinicalRecord",
    "RecordCode",
    "RecordError",
    "RecordIssue",
    "RecordReading",
    "RecordValue",
    "Sex",
    "Smoking",
    "accept",
    "merge",
]

OLDEST_YEARS = 120.0
MOST_PACK_YEARS = 300.0
_MOST_PACKS_A_DAY = 6.0
_FIRST_SMOKING_AGE = 5.0
AGES_DIFFER_YEARS = 1.5

_NUMBERS: dict[str, tuple[RecordCode, float, float]] = {
    "age_years": (RecordCode.AGE_RANGE, 0.0, OLDEST_YEARS),
    "pack_years": (RecordCode.PACK_YEARS_RANGE, 0.0, MOST_PACK_YEARS),
    "years_quit": (RecordCode.YEARS_QUIT_RANGE, 0.0, OLDEST_YEARS),
}


@dataclass(frozen=True, slots=True)
class ClinicalRecord:
    """What is known of a patient at the time of the scan; None is not known.

    Parameters
    ----------
    age_years
        0 to 120.
    sex, smoking
        See the enumerations.
    pack_years
        Packs of 20 cigarettes a day times years, 0 to 300.
    years_quit
        Since the last cigarette.
    family_history_lung_cancer
        In a relative of the first degree.
    cancer_history
        A cancer outside the chest diagnosed more than five years ago (the definition of the Mayo model).
    emphysema
        Known from CT or lung function.
    history_text
        Free text, kept as it came. No model reads it and no result repeats it: it may name anybody.

    Raises
    ------
    RecordError
        A value out of range, or two that contradict each other.
    """

    age_years: float | None = None
    sex: Sex | None = None
    smoking: Smoking | None = None
    pack_years: float | None = None
    years_quit: float | None = None
    family_history_lung_cancer: bool | None = None
    cancer_history: bool | None = None
    emphysema: bool | None = None
    history_text: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, (code, low, high) in _NUMBERS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise RecordError(code, f"{name} is not between {low:g} and {high:g}.")
        for issue, _ in _contradictions(self.items()):
            raise RecordError(issue.code, issue.sentence)

    def items(self) -> dict[str, Any]:
        """Known items by name; the free text isn't one."""
        return {name: value for name in ITEMS if (value := getattr(self, name)) is not None}

    @property
    def is_empty(self) -> bool:
        """Whether no item is known."""
        return not self.items()

    @property
    def ever_smoker(self) -> bool | None:
        """Smokes or has smoked; None where that isn't known."""
        if self.smoking in {Smoking.CURRENT, Smoking.FORMER}:
            return True
        return False if self.smoking is Smoking.NEVER else None

    def sentence(self) -> str:
        """The known items in words for a text tower; "" for an empty record.

        Short: a full record has 31 to 34 tokens of CLIP, and the small tower reads 32. Made of the typed
        items alone: free text never enters it.
        """
        flags = {
            "family lung cancer": self.family_history_lung_cancer,
            "earlier cancer": self.cancer_history,
            "emphysema": self.emphysema,
        }
        present = ", ".join(words for words, value in flags.items() if value)
        absent = ", ".join(words for words, value in flags.items() if value is False)
        parts = (_person(self), present, f"No {absent}" if absent else "")
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


def _person(record: ClinicalRecord) -> str:
    """Age, sex and smoking, e.g. ``woman aged 62, former smoker, 40 pack years, quit 8 years``."""
    who = {Sex.FEMALE: "woman", Sex.MALE: "man", None: ""}[record.sex]
    status = {
        Smoking.NEVER: "never smoked",
        Smoking.FORMER: "former smoker",
        Smoking.CURRENT: "current smoker",
        Smoking.NOT_CURRENT: "does not smoke",
        None: "",
    }[record.smoking]
    aged = "" if record.age_years is None else f"aged {record.age_years:.0f}"
    parts = (
        f"{who} {aged}".strip(),
        status,
        f"{record.pack_years:.0f} pack years" if record.pack_years else "",
        "" if record.years_quit is None else f"quit {record.years_quit:.0f} years",
    )
    return ", ".join(part for part in parts if part)


UNITS = {"age_years": "a", "pack_years": "{pack}.a", "years_quit": "a"}
"""Unit of each number, in UCUM; the other items are words or yes and no."""

ITEMS = tuple(item.name for item in fields(ClinicalRecord) if item.name != "history_text")
"""What a record may hold, in the order in which it is told."""


@dataclass(frozen=True, slots=True)
class RecordValue:
    """One known item with where it is from.

    Parameters
    ----------
    unit
        Of a number, from `UNITS`; empty for the others.
    source
        Such as ``DICOM Patient's Age``.
    on
        Day from which the value is; None where the source doesn't say.
    """

    item: str
    value: float | bool | Sex | Smoking
    unit: str
    source: str
    on: date | None

    def __str__(self) -> str:
        """The item and its origin, without the value: ``pack_years (FHIR Observation of 2026-01-10)``."""
        return f"{self.item} ({self.source}{'' if self.on is None else f' of {self.on.isoformat()}'})"


@dataclass(frozen=True, slots=True)
class RecordReading:
    """A record, where each of its items came from, and what was left out.

    Parameters
    ----------
    sources
        Item -> words for the source, such as ``DICOM Patient's Age``.
    dates
        Item -> day from which its value is, where the source says it.
    """

    record: ClinicalRecord = field(default_factory=ClinicalRecord)
    sources: Mapping[str, str] = field(default_factory=dict)
    issues: tuple[RecordIssue, ...] = ()
    dates: Mapping[str, date] = field(default_factory=dict)

    def used_words(self) -> str:
        """The items and their sources for a report, e.g. ``age_years (record.json), sex (DICOM ...)``."""
        return ", ".join(str(value) for value in self.values)

    @property
    def values(self) -> tuple[RecordValue, ...]:
        """Each known item with its unit, source and day; what isn't known isn't among them."""
        return tuple(
            RecordValue(
                item, value, UNITS.get(item, ""), self.sources.get(item, "given"), self.dates.get(item)
            )
            for item, value in self.record.items().items()
        )


def accept(
    values: Mapping[str, object],
    source: str | Mapping[str, str],
    dates: Mapping[str, date] | None = None,
) -> RecordReading:
    """Make a record of values as they came.

    Parameters
    ----------
    values
        By item name. Numbers may be texts, flags may be ``yes`` / ``no``; None, "" and ``unknown`` are
        not known.
    source
        Where they came from, one for all or by item.
    dates
        Days from which they are, by item.

    Returns
    -------
    RecordReading
        Without the values that make no sense; of values that contradict each other, without any of them.
    """
    kept: dict[str, Any] = {}
    issues: list[RecordIssue] = []
    for name, value in values.items():
        if _is_unknown(value):
            continue
        parser = _PARSERS.get(name)
        if parser is None:
            issues.append(_foreign(name))
            continue
        try:
            kept[name] = parser(name, value)
        except RecordError as error:
            issues.append(RecordIssue(error.code, name, f"{error.sentence} It was left out."))
    _settle_smoking(kept)
    for issue, names in list(_contradictions(kept)):
        issues.append(RecordIssue(issue.code, issue.item, f"{issue.sentence} Left out: {', '.join(names)}."))
        for name in names:
            kept.pop(name, None)
    kept = {name: value for name, value in kept.items() if value is not None}
    record = ClinicalRecord(**kept)
    of = {name: source if isinstance(source, str) else source.get(name, "given") for name in record.items()}
    days = {name: day for name, day in (dates or {}).items() if name in of}
    return RecordReading(record, of, tuple(issues), days)


def merge(first: RecordReading, second: RecordReading) -> RecordReading:
    """Fill what `first` doesn't know from `second`.

    Where both know an item and differ, `first` counts and a `RecordCode.CONFLICT` is noted: two sources that
    differ in age or sex may be of two patients.
    """
    values = {**_all(second.record), **_all(first.record)}
    sources = {**second.sources, **first.sources}
    mine, others = first.record.items(), second.dates.items()
    dates = {**{name: day for name, day in others if name not in mine}, **first.dates}
    conflicts = tuple(
        RecordIssue(
            RecordCode.CONFLICT,
            name,
            f"{name} differs between {first.sources.get(name, 'given')} and "
            f"{second.sources.get(name, 'given')}; the former was taken.",
        )
        for name, value in mine.items()
        if (other := second.record.items().get(name)) is not None and not _agree(value, other)
    )
    merged = accept(values, sources, dates)
    issues = (*first.issues, *second.issues, *conflicts, *merged.issues)
    return RecordReading(merged.record, merged.sources, issues, merged.dates)


def _all(record: ClinicalRecord) -> dict[str, Any]:
    found = record.items()
    return found if record.history_text is None else {**found, "history_text": record.history_text}


def _agree(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= AGES_DIFFER_YEARS
    not_smoking = {Smoking.NEVER, Smoking.FORMER, Smoking.NOT_CURRENT}
    if Smoking.NOT_CURRENT in {one, other}:
        return one in not_smoking and other in not_smoking
    return one == other


def _is_unknown(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in {"", "unknown"})


def _foreign(name: str) -> RecordIssue:
    if name.strip().lower().replace(" ", "_") in RATINGS:
        words = f"{name[:40]} is a radiologist's judgement of the nodule and is never an input."
        return RecordIssue(RecordCode.RATING_REFUSED, name[:40], words)
    words = f"{name[:40]} is no item of a record. It was left out."
    return RecordIssue(RecordCode.UNKNOWN_ITEM, name[:40], words)


def _number(name: str, value: object) -> float:
    code, low, high = _NUMBERS[name]
    try:
        found = (
            float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        )
    except (ValueError, OverflowError):
        found = math.nan
    if not low <= found <= high:
        raise RecordError(code, f"{name} is not a number between {low:g} and {high:g}.")
    return found


def _choice(name: str, value: object) -> Sex | Smoking:
    kind, code = (Sex, RecordCode.SEX_VALUE) if name == "sex" else (Smoking, RecordCode.SMOKING_VALUE)
    word = str(value).strip().lower().replace("_", " ")
    word = {"f": "female", "m": "male"}.get(word, word)
    if word not in {str(option) for option in kind}:
        raise RecordError(code, f"{name} is none of: {', '.join(kind)}, unknown.")
    return kind(word)


def _flag(name: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word in {"true", "yes", "y", "1"}:
        return True
    if word in {"false", "no", "n", "0"}:
        return False
    raise RecordError(RecordCode.FLAG_VALUE, f"{name} is neither yes nor no nor unknown.")


def _free_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RecordError(RecordCode.TEXT_VALUE, f"{name} is not a text.")
    return value


_PARSERS: dict[str, Callable[[str, object], object]] = {
    **dict.fromkeys(_NUMBERS, _number),
    **dict.fromkeys(("sex", "smoking"), _choice),
    **dict.fromkeys(("family_history_lung_cancer", "cancer_history", "emphysema"), _flag),
    "history_text": _free_text,
}


def _settle_smoking(values: dict[str, Any]) -> None:
    """Say former or never where the other items tell, in place."""
    status, packs, quit_for = (values.get(name) for name in ("smoking", "pack_years", "years_quit"))
    if status in {None, Smoking.NOT_CURRENT}:
        if quit_for is not None or (status is not None and packs):
            values["smoking"] = Smoking.FORMER
        elif packs == 0:
            values["smoking"] = Smoking.NEVER


def _contradictions(values: Mapping[str, Any]) -> Iterator[tuple[RecordIssue, tuple[str, ...]]]:
    """What can't be true together, with the items that then can't be trusted."""
    status, packs, quit_for = (values.get(name) for name in ("smoking", "pack_years", "years_quit"))
    age = values.get("age_years")
    if status is Smoking.NEVER and (packs or quit_for is not None):
        words = "Never smoked, but there are pack-years or years since quitting."
        yield _contradiction("smoking", words), ("smoking", "pack_years", "years_quit")
    if status in {Smoking.CURRENT, Smoking.FORMER} and packs == 0:
        words = "Smokes or has smoked, but no pack-years: a zero that stands for what isn't known."
        yield _contradiction("pack_years", words), ("pack_years",)
    if status is Smoking.CURRENT and quit_for:
        words = "Smokes, but there are years since quitting."
        yield _contradiction("smoking", words), ("smoking", "years_quit")
    if age is not None and quit_for is not None and quit_for > age:
        yield _contradiction("years_quit", "Quit smoking before birth."), ("years_quit",)
    if age is not None and packs and packs > _MOST_PACKS_A_DAY * max(age - _FIRST_SMOKING_AGE, 0):
        words = f"More than {_MOST_PACKS_A_DAY:g} packs a day since the age of {_FIRST_SMOKING_AGE:g}."
        yield _contradiction("pack_years", words), ("pack_years",)


def _contradiction(item: str, words: str) -> RecordIssue:
    return RecordIssue(RecordCode.CONTRADICTION, item, words)
