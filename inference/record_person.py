"""Whose record it is: what other systems told is used only where it is of the patient of the images.

A patient ID alone proves nothing: one is typed wrong, one is given twice, two hospitals have the same one. So
the birth date must agree with the images' header, and the sex must not differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydicom import Dataset

from inference.headers import text
from inference.record import AGES_DIFFER_YEARS, RecordCode, RecordIssue, RecordReading, Sex, merge
from inference.record_header import from_dicom

_DAY, _YEAR = 8, 4


@dataclass(frozen=True, slots=True)
class Person:
    """Whom a source means.

    Parameters
    ----------
    patient_id
        By which the source was asked, or that its message has.
    birth_date
        ``YYYYMMDD``, ``YYYYMM`` or ``YYYY``; empty where the source doesn't say it.
    sex
        None where the source doesn't say it.
    """

    patient_id: str = field(repr=False)
    birth_date: str = field(default="", repr=False)
    sex: Sex | None = None


@dataclass(frozen=True, slots=True)
class SourcedRecord:
    """What one source told, and of whom.

    Parameters
    ----------
    source
        Its name for people, such as ``FHIR``.
    person
        None only where the reading holds no item.
    """

    source: str
    person: Person | None = None
    reading: RecordReading = field(default_factory=RecordReading)


def silent(source: str, code: RecordCode, sentence: str) -> SourcedRecord:
    """Return the record of a source that told nothing that can be used, and why."""
    return SourcedRecord(source, reading=RecordReading(issues=(RecordIssue(code, "", sentence),)))


def confirmed(found: SourcedRecord, header: Dataset) -> RecordReading:
    """Return what a source told, if it is of the patient of the images.

    Parameters
    ----------
    header
        Of one of the images: Patient ID (0010,0020), Birth Date (0010,0030), Age (0010,1010), Sex
        (0010,0040), Study Date (0008,0020).

    Returns
    -------
    RecordReading
        Without any item and with the issue MISMATCH where patient ID, birth date or sex differ; UNCONFIRMED
        where nothing says how old the patient is, in the images or in the source.
    """
    if found.reading.record.is_empty and found.reading.record.history_text is None:
        return found.reading
    person = found.person or Person("")
    if differing := _differing(person, header):
        words = f"{found.source} has another {differing} than the images; nothing of it was used."
        return _refused(found, RecordCode.MISMATCH, words)
    if not _same_age(person, header):
        words = (
            f"{found.source} and the images have no birth date in common; nothing of it was used, since a "
            "patient ID alone doesn't prove whose record it is."
        )
        return _refused(found, RecordCode.UNCONFIRMED, words)
    return found.reading


def gathered(found: Sequence[SourcedRecord], header: Dataset) -> RecordReading:
    """Merge what is confirmed of the sources: the first that knows an item counts, then the header."""
    merged = RecordReading()
    for one in found:
        merged = merge(merged, confirmed(one, header))
    return merge(merged, from_dicom(header))


def _refused(found: SourcedRecord, code: RecordCode, words: str) -> RecordReading:
    return RecordReading(issues=(*found.reading.issues, RecordIssue(code, "", words)))


def _differing(person: Person, header: Dataset) -> str:
    """What says that it is somebody else; empty where nothing does."""
    if person.patient_id.strip() != text(header, "PatientID").strip():
        return "patient ID"
    born = text(header, "PatientBirthDate")
    length = min(len(born), len(person.birth_date))
    if length >= _YEAR and born[:length] != person.birth_date[:length]:
        return "birth date"
    sex = {"F": Sex.FEMALE, "M": Sex.MALE}.get(text(header, "PatientSex").upper())
    if person.sex is not None and sex is not None and person.sex is not sex:
        return "sex"
    return ""


def _same_age(person: Person, header: Dataset) -> bool:
    """Whether the birth dates agree, or without one in the images the age at the study."""
    if not person.birth_date:
        return False
    if len(text(header, "PatientBirthDate")) == _DAY:
        return True
    age = from_dicom(header).record.age_years
    seen = text(header, "StudyDate")
    if age is None or len(seen) != _DAY or not seen.isdigit() or not person.birth_date.isdigit():
        return False
    years = int(seen[:4]) - int(person.birth_date[:4]) + (int(seen[4:6]) - 6) / 12
    if len(person.birth_date) > _YEAR:
        years += (6 - int(person.birth_date[4:6])) / 12
    return abs(years - age) <= AGES_DIFFER_YEARS
