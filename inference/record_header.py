"""The items of a clinical record that a DICOM header has."""

from __future__ import annotations

import re
from datetime import date

from pydicom import Dataset

from inference.headers import text
from inference.record import AGES_DIFFER_YEARS, RecordCode, RecordIssue, RecordReading, accept

_NOTHING = "000Y"


def from_dicom(header: Dataset) -> RecordReading:
    """Read the record items of a DICOM header (PS3.3 C.7.1.1, C.7.2.2, C.2.4).

    Patient's Age (0010,1010) before the difference of Patient's Birth Date (0010,0030) and Study Date
    (0008,0020); Patient's Sex (0010,0040); Smoking Status (0010,21A0), whose NO doesn't tell a former smoker
    from one who never smoked. Additional Patient History (0010,21B0) is kept as text only. An age of 000Y is
    not known: it is what is written where nothing is; the age of an infant is in days, weeks or months.

    Returns
    -------
    RecordReading
        Malformed values are left out with an issue. The day of each item is the Study Date.
    """
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    issues: list[RecordIssue] = []
    age, by_date = _age(header, issues), _age_by_date(header)
    if age is not None:
        values["age_years"], sources["age_years"] = age, "DICOM Patient's Age"
        if by_date is not None and abs(age - by_date) > AGES_DIFFER_YEARS:
            words = "Patient's Age differs from Birth Date and Study Date; the former was taken."
            issues.append(RecordIssue(RecordCode.CONFLICT, "age_years", words))
    elif by_date is not None:
        values["age_years"], sources["age_years"] = by_date, "DICOM Birth Date and Study Date"
    if sex := text(header, "PatientSex").upper():
        values["sex"] = {"F": "female", "M": "male", "O": ""}.get(sex, sex)
        sources["sex"] = "DICOM Patient's Sex"
    if smoking := text(header, "SmokingStatus").upper():
        values["smoking"] = {"YES": "current", "NO": "not current", "UNKNOWN": ""}.get(smoking, smoking)
        sources["smoking"] = "DICOM Smoking Status"
    if history := text(header, "AdditionalPatientHistory"):
        values["history_text"] = history
    seen = day_of(text(header, "StudyDate"))
    found = accept(values, sources, {} if seen is None else dict.fromkeys(sources, seen))
    return RecordReading(found.record, found.sources, (*issues, *found.issues), found.dates)


def _age(header: Dataset, issues: list[RecordIssue]) -> float | None:
    """Patient's Age as years: three digits and D, W, M or Y (PS3.5 6.2)."""
    value = text(header, "PatientAge").upper()
    if value in {"", _NOTHING}:
        return None
    if not re.fullmatch(r"\d{3}[DWMY]", value):
        words = "Patient's Age is not three digits and D, W, M or Y. It was left out."
        issues.append(RecordIssue(RecordCode.AGE_RANGE, "age_years", words))
        return None
    return int(value[:3]) / {"D": 365.25, "W": 52.1775, "M": 12.0, "Y": 1.0}[value[3]]


def _age_by_date(header: Dataset) -> float | None:
    """Whole years between birth and study; None where a date is missing, malformed or in the wrong order."""
    born, seen = (day_of(text(header, keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    if born is None or seen is None or born > seen:
        return None
    return float(seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day)))


def day_of(value: str) -> date | None:
    """Day of a DICOM date (DA, PS3.5 6.2); None where it is none."""
    try:
        return date(int(value[:4]), int(value[4:6]), int(value[6:8])) if len(value) == 8 else None
    except ValueError:
        return None
