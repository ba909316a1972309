"""Whether two examinations are of the same patient, by what their images say.

A patient ID alone proves nothing: one is typed wrong, one is given twice, two hospitals have the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from pydicom import Dataset

from inference.headers import text

_DAY = re.compile(r"[0-9]{8}")
_SEXES = frozenset({"F", "M"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom an image is of (PS3.3 C.7.1.1); empty where it doesn't say.

    Parameters
    ----------
    patient_id, issuer
        (0010,0020) and (0010,0021).
    birth_date
        ``YYYYMMDD``.
    sex
        As it stands there: F, M, O or what else.
    """

    patient_id: str
    issuer: str = ""
    birth_date: str = ""
    sex: str = ""
    name: str = ""

    @classmethod
    def of(cls, header: Dataset) -> Identity:
        """Read it from the header of an image."""
        return cls(
            text(header, "PatientID"),
            text(header, "IssuerOfPatientID"),
            text(header, "PatientBirthDate"),
            text(header, "PatientSex").upper(),
            text(header, "PatientName"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return its fields, for `Identity(**fields)`."""
        return asdict(self)


def contradiction(one: Identity, other: Identity) -> str:
    """What says that they are two people; "" where nothing does, which proves little.

    Patient IDs must be equal. Issuer, birth date and sex (female, male) must not differ where both say them.

    Returns
    -------
    str
        Such as ``another birth date``; no patient data.
    """
    if not one.patient_id or one.patient_id != other.patient_id:
        return "another patient ID"
    if one.issuer and other.issuer and one.issuer != other.issuer:
        return "another issuer of the patient ID"
    if _both_born(one, other) and one.birth_date != other.birth_date:
        return "another birth date"
    return "another sex" if {one.sex, other.sex} == _SEXES else ""


def differing(one: Identity, other: Identity) -> str:
    """What says that they are two people, or that nothing proves them to be one; "" for the same patient.

    An ID that nothing contradicts is not enough: the birth date must be there in both, or the name be the
    same in both.
    """
    said = contradiction(one, other)
    if said or _both_born(one, other) or (_folded(one.name) and _folded(one.name) == _folded(other.name)):
        return said
    return "no birth date and no name in common"


def _both_born(one: Identity, other: Identity) -> bool:
    return all(_DAY.fullmatch(who.birth_date) for who in (one, other))


def strangers(now: Identity, found: Iterable[Identity]) -> str:
    """`differing` of the first of many that is not the patient; "" where all are, and there is one."""
    reasons = [differing(now, other) for other in found]
    return next(filter(None, reasons), "") if reasons else "no readable image"


def _folded(name: str) -> str:
    """The first group of a name (PS3.5 6.2, PN) without case, spaces and empty components."""
    parts = (part.strip().casefold() for part in name.split("=", maxsplit=1)[0].split("^"))
    return "^".join(parts).rstrip("^")
