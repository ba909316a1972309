"""Read header elements without trusting them: a missing or malformed value is empty, never an exception."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date
from typing import Any

from pydicom import Dataset
from pydicom.errors import BytesLengthException

MALFORMED_VALUE = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)
"""What pydicom and float() raise for an element value that isn't what its VR promises."""


_ISSUED_BY = "\x1e"


def is_multiframe(header: Dataset) -> bool:
    """Whether positions are in functional groups (enhanced CT) or there is more than one frame."""
    return "PerFrameFunctionalGroupsSequence" in header or (number(header, "NumberOfFrames") or 1) > 1


def frame_item(header: Dataset, frame_index: int | None, group: str) -> Dataset:
    """Where the attributes of a functional group are (PS3.3 C.7.6.16).

    Parameters
    ----------
    frame_index
        0-based frame of a multi-frame image, None for a single-frame image.
    group
        Keyword of the functional group, e.g. ``PixelMeasuresSequence``.

    Returns
    -------
    Dataset
        The item for this frame, else the one shared by all frames, else (and for a single-frame image) the
        header itself.
    """
    if frame_index is None:
        return header
    per_frame = sequence(header, "PerFrameFunctionalGroupsSequence")[frame_index]
    shared = sequence(header, "SharedFunctionalGroupsSequence")[:1]
    for holder in (per_frame, *shared):
        items = sequence(holder, group)
        if items:
            return items[0]
    return header


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Finite values of a numeric element; empty where it is absent, empty or malformed."""
    try:
        value: Any = ds.get(keyword)
        if value is None or value == "":
            return ()
        listed = [value] if isinstance(value, (str, int, float)) else list(value)
        values = tuple(float(item) for item in listed)
    except MALFORMED_VALUE:
        return ()
    return values if all(math.isfinite(item) for item in values) else ()


def number(ds: Dataset, keyword: str) -> float | None:
    """The one finite value of a numeric element, None where it hasn't exactly one."""
    values = numbers(ds, keyword)
    return values[0] if len(values) == 1 else None


def text(ds: Dataset, keyword: str) -> str:
    """The value of a text element without padding; empty where it is absent or malformed."""
    try:
        value: Any = ds.get(keyword)
        return "" if value is None else str(value).strip("\0 ")
    except MALFORMED_VALUE:
        return ""


def examination_day(ds: Dataset) -> date | None:
    """Study Date (0008,0020), else the day of the acquisition; None where neither is a date."""
    for keyword in ("StudyDate", "AcquisitionDate"):
        found = text(ds, keyword)
        try:
            return date(int(found[:4]), int(found[4:6]), int(found[6:]))
        except ValueError:
            continue
    return None


def patient(ds: Dataset) -> str:
    """Patient ID and its issuer (PS3.3 C.7.1.1) as one name; see `count_patients`."""
    issuer = text(ds, "IssuerOfPatientID")
    return f"{text(ds, 'PatientID')}{_ISSUED_BY}{issuer}" if issuer else text(ds, "PatientID")


def count_patients(named: Iterable[str]) -> int:
    """How many patients the names of `patient` mean: an ID without an issuer is the same one as with any."""
    issuers: dict[str, set[str]] = {}
    for name in named:
        identifier, _, issuer = name.partition(_ISSUED_BY)
        issuers.setdefault(identifier, set()).update({issuer} - {""})
    return sum(max(1, len(known)) for known in issuers.values())


def sequence(ds: Dataset, keyword: str) -> list[Dataset]:
    """Items of a sequence; empty where it is absent or malformed."""
    try:
        value: Any = ds.get(keyword)
        return [item for item in value or () if isinstance(item, Dataset)]
    except MALFORMED_VALUE:
        return []
