"""Clinical records from a file beside the study: JSON or CSV, one record for each study or patient.

JSON is ``{"records": [{"study_instance_uid": "...", "patient_id": "...", "age_years": 62, ...}]}``; CSV has
the same names as columns (UTF-8, commas). A row must name a study or a patient, and whatever it names must
agree with the images: one patient's record is never used for another. See ``docs/record.md``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NoReturn

from inference.record import RecordCode, RecordError, RecordIssue, RecordReading, accept

NAMES = ("record.json", "record.csv")
"""What a file beside the study is called."""

STUDY, PATIENT, DAY = "study_instance_uid", "patient_id", "recorded_on"
_LARGEST_BYTES = 16 << 20
#: a row of the day after the study may be of the same day elsewhere
_SLACK = timedelta(days=1)

Row = Mapping[str, object]


def find_beside(directory: Path) -> Path | None:
    """The record file in a folder of images; None where there is none.

    Raises
    ------
    RecordError
        AMBIGUOUS: there are both a JSON and a CSV.
    """
    found = [directory / name for name in NAMES if (directory / name).is_file()]
    if len(found) > 1:
        raise RecordError(RecordCode.AMBIGUOUS, f"There are both {NAMES[0]} and {NAMES[1]}; remove one.")
    return found[0] if found else None


def read_record(path: Path, *, study_uid: str, patient_id: str, seen: date | None = None) -> RecordReading:
    """Read the record of one study from a ``.json`` or ``.csv`` file.

    Parameters
    ----------
    study_uid, patient_id
        Of the images.
    seen
        Day of the study; None where it isn't known.

    Returns
    -------
    RecordReading
        Empty, with the issue NO_MATCH, where no row is of this study or patient, or AFTER_STUDY where the row
        is from after it.

    Raises
    ------
    RecordError
        UNREADABLE or SCHEMA: the file isn't what it should be. AMBIGUOUS: two rows fit. MISMATCH: the row of
        this study names another patient.
    """
    if path.suffix.lower() == ".json":
        return from_json(path, study_uid=study_uid, patient_id=patient_id, seen=seen)
    if path.suffix.lower() == ".csv":
        return from_csv(path, study_uid=study_uid, patient_id=patient_id, seen=seen)
    raise RecordError(RecordCode.UNREADABLE, "A record file ends in .json or .csv.")


def from_json(path: Path, *, study_uid: str, patient_id: str, seen: date | None = None) -> RecordReading:
    """Read one record from a JSON file; see `read_record`."""
    try:
        content = json.loads(_read(path), object_pairs_hook=_no_repetition, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RecordError(RecordCode.UNREADABLE, f"{path.name} is not valid JSON.") from error
    rows = content.get("records") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RecordError(
            RecordCode.SCHEMA, f'{path.name} holds no {{"records": [...]}} with one object for each record.'
        )
    return _pick(rows, path.name, study_uid, patient_id, seen)


def from_csv(path: Path, *, study_uid: str, patient_id: str, seen: date | None = None) -> RecordReading:
    """Read one record from a CSV file; see `read_record`."""
    lines = csv.reader(io.StringIO(_read(path), newline=""), strict=True)
    try:
        table = [line for line in lines if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise RecordError(RecordCode.UNREADABLE, f"{path.name} is not valid CSV.") from error
    header = [cell.strip() for cell in table[0]] if table else []
    if len(set(header)) != len(header) or not {STUDY, PATIENT} & set(header):
        raise RecordError(
            RecordCode.SCHEMA,
            f"{path.name} needs a header line with {STUDY} or {PATIENT}, and each column once.",
        )
    if any(len(line) != len(header) for line in table[1:]):
        raise RecordError(RecordCode.SCHEMA, f"{path.name} has a line with more or fewer cells than columns.")
    rows = [dict(zip(header, line, strict=True)) for line in table[1:]]
    return _pick(rows, path.name, study_uid, patient_id, seen)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise RecordError(
                RecordCode.UNREADABLE, f"{path.name} is larger than {_LARGEST_BYTES >> 20} MiB."
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecordError(RecordCode.UNREADABLE, f"{path.name} can't be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise RecordError(RecordCode.UNREADABLE, f"{path.name} is not UTF-8.") from error


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("an object names an item twice")
    return dict(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _pick(
    rows: Sequence[Row], source: str, study_uid: str, patient_id: str, seen: date | None
) -> RecordReading:
    """The row of the study, else the row of the patient."""
    fitting = {STUDY: [r for r in rows if study_uid and _key(r, STUDY) == study_uid]}
    fitting[PATIENT] = [
        r for r in rows if patient_id and not _key(r, STUDY) and _key(r, PATIENT) == patient_id
    ]
    if any(not _key(row, STUDY) and not _key(row, PATIENT) for row in rows):
        raise RecordError(RecordCode.SCHEMA, f"{source} has a record without {STUDY} and {PATIENT}.")
    chosen = fitting[STUDY] or fitting[PATIENT]
    if not chosen:
        words = f"{source} has no record of this study or patient."
        return RecordReading(issues=(RecordIssue(RecordCode.NO_MATCH, "", words),))
    if len(chosen) > 1:
        raise RecordError(
            RecordCode.AMBIGUOUS, f"{source} has {len(chosen)} records of this study or patient."
        )
    row = chosen[0]
    if _key(row, PATIENT) not in {"", patient_id}:
        raise RecordError(
            RecordCode.MISMATCH,
            f"The record of this study in {source} names another patient than the images.",
        )
    return _dated(row, source, seen)


def _dated(row: Row, source: str, seen: date | None) -> RecordReading:
    """The items of a row with its day; without any where the row is from after the study."""
    values = {name: value for name, value in row.items() if name not in {STUDY, PATIENT, DAY}}
    written = _key(row, DAY)
    try:
        day = date.fromisoformat(written) if written else None
    except ValueError:
        found = accept(values, source)
        words = f"{DAY} in {source} is no date such as 2026-01-31. It was left out."
        return replace(found, issues=(RecordIssue(RecordCode.DATE_VALUE, DAY, words), *found.issues))
    if day is not None and seen is not None and day > seen + _SLACK:
        words = f"The record of this study in {source} is from after the study. It was left out."
        return RecordReading(issues=(RecordIssue(RecordCode.AFTER_STUDY, "", words),))
    return accept(values, source, {} if day is None else dict.fromkeys(values, day))


def _key(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None else str(value).strip()
