"""The codes by which other systems tell a clinical record: LOINC, SNOMED CT, ICD-10, HL7.

Only codes that mean an item of `inference.record.ClinicalRecord` exactly. COPD isn't emphysema, a cancer of
the chest isn't an earlier cancer outside of it, and an aunt isn't of the first degree.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from inference.record import Smoking

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
ICD10 = "http://hl7.org/fhir/sid/icd-10"
_ROLE = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"

#: other names of the same systems: FHIR's national ICD-10, and table 0396 of HL7 v2
_SYSTEMS = {
    "http://hl7.org/fhir/sid/icd-10-cm": ICD10,
    "http://fhir.de/codesystem/bfarm/icd-10-gm": ICD10,
    "http://fhir.de/codesystem/dimdi/icd-10-gm": ICD10,
    "urn:oid:2.16.840.1.113883.6.1": LOINC,
    "urn:oid:2.16.840.1.113883.6.96": SNOMED,
    "urn:oid:2.16.840.1.113883.6.90": ICD10,
    "urn:oid:2.16.840.1.113883.6.3": ICD10,
    "ln": LOINC,
    "sct": SNOMED,
    "snm": SNOMED,
    **dict.fromkeys(("i10", "i10c", "i10p", "i10gm", "icd10", "icd-10", "icd10cm", "icd-10-cm"), ICD10),
}


class Coding(NamedTuple):
    """A code and the system that it is of."""

    system: str
    code: str

    @classmethod
    def of(cls, system: str, code: str) -> Coding:
        """Return it under the system's one name here."""
        return cls(_SYSTEMS.get(system.strip().lower(), system.strip()), code.strip())


OBSERVATIONS = {
    Coding(LOINC, "72166-2"): "smoking",
    Coding(LOINC, "8664-5"): "pack_years",
    Coding(SNOMED, "401201003"): "pack_years",
    Coding(SNOMED, "782516008"): "pack_years",
    Coding(SNOMED, "228486009"): "years_quit",
    Coding(LOINC, "74010-0"): "quit_date",
    Coding(SNOMED, "160625004"): "quit_date",
}
"""What is observed -> item; ``quit_date`` is the day of the last cigarette."""

_CURRENT, _FORMER, _NEVER = Smoking.CURRENT, Smoking.FORMER, Smoking.NEVER
STATUS: dict[Coding, Smoking | None] = {
    Coding(SNOMED, "449868002"): _CURRENT,
    Coding(SNOMED, "428041000124106"): _CURRENT,
    Coding(SNOMED, "428071000124103"): _CURRENT,
    Coding(SNOMED, "428061000124105"): _CURRENT,
    Coding(SNOMED, "65568007"): _CURRENT,
    Coding(SNOMED, "8517006"): _FORMER,
    Coding(SNOMED, "266919005"): _NEVER,
    # smokes or has smoked, nobody knows which; and not known at all
    Coding(SNOMED, "77176002"): None,
    Coding(SNOMED, "266927001"): None,
    Coding(LOINC, "LA18976-3"): _CURRENT,
    Coding(LOINC, "LA18977-1"): _CURRENT,
    Coding(LOINC, "LA18981-3"): _CURRENT,
    Coding(LOINC, "LA18982-1"): _CURRENT,
    Coding(LOINC, "LA15920-4"): _FORMER,
    Coding(LOINC, "LA18978-9"): _NEVER,
    Coding(LOINC, "LA18979-7"): None,
    Coding(LOINC, "LA18980-5"): None,
}
"""Answers to 72166-2."""

_WORDS: dict[str, Smoking | None] = {
    **dict.fromkeys(("current", "current smoker", "current every day smoker", "smoker"), _CURRENT),
    **dict.fromkeys(("current some day smoker", "heavy tobacco smoker", "light tobacco smoker"), _CURRENT),
    **dict.fromkeys(("former", "former smoker", "ex-smoker", "ex smoker"), _FORMER),
    **dict.fromkeys(("never", "never smoker", "never smoked", "non-smoker never"), _NEVER),
    **dict.fromkeys(("unknown", "unknown if ever smoked", "smoker, current status unknown"), None),
}

_EMPHYSEMA = {Coding(SNOMED, "87433001")}

#: primary cancers by site; not of the chest, and not of the skin other than melanoma
_CANCERS = {
    Coding(SNOMED, code)
    for code in (
        "254837009",  # breast
        "363406005",  # colon
        "363351006",  # rectum
        "399068003",  # prostate
        "363349007",  # stomach
        "363418001",  # pancreas
        "399326009",  # bladder
        "363518003",  # kidney
        "363354003",  # cervix of the uterus
        "363443007",  # ovary
        "363449006",  # testis
        "363478007",  # thyroid
        "372244006",  # melanoma
    )
}
#: ICD-10 C00 to C97 without the chest (C33, C34, C37 to C39, C45), the skin other than melanoma (C44),
#: secondary cancers (C77 to C79) and those without a site (C76, C80)
_CANCER_NUMBERS = frozenset(range(98)) - {33, 34, 37, 38, 39, 44, 45, 76, 77, 78, 79, 80}

_LUNG_CANCER = {
    Coding(SNOMED, code) for code in ("363358000", "93880001", "254637007", "254632001", "254626006")
}

_FIRST_DEGREE = frozenset(
    (
        *("FTH", "MTH", "PRN", "NFTH", "NMTH", "NPRN", "CHILD", "NCHILD", "SON", "SONC", "DAU", "DAUC"),
        *("BRO", "NBRO", "SIS", "NSIS", "SIB", "NSIB", "TWIN", "TWINBRO", "TWINSIS", "FTWIN", "ITWIN"),
        *("FTWINBRO", "FTWINSIS", "ITWINBRO", "ITWINSIS"),
    )
)

_PACK_YEARS = frozenset(
    (
        *("", "1", "{packyears}", "{packyear}", "{pack-years}", "{pack-year}", "{pack}.a", "{py}", "py"),
        *("pack-years", "pack-year", "pack years", "pack year", "packyears", "packyear"),
    )
)
_A_YEAR = {
    **dict.fromkeys(("", "a", "year", "years", "yr", "yrs", "y"), 1.0),
    **dict.fromkeys(("mo", "month", "months"), 12.0),
    **dict.fromkeys(("wk", "week", "weeks"), 52.1775),
    **dict.fromkeys(("d", "day", "days"), 365.25),
}


def is_emphysema(coding: Coding) -> bool:
    """ICD-10 J43, or SNOMED's pulmonary emphysema."""
    return coding in _EMPHYSEMA or (coding.system == ICD10 and _stem(coding) == "J43")


def is_cancer_elsewhere(coding: Coding) -> bool:
    """Whether it is a primary cancer outside the chest."""
    stem = _stem(coding) if coding.system == ICD10 else ""
    return coding in _CANCERS or (stem.startswith("C") and int(stem[1:]) in _CANCER_NUMBERS)


def is_lung_cancer(coding: Coding) -> bool:
    """ICD-10 C34, or SNOMED's malignant tumour of the lung and its commonest kinds."""
    return coding in _LUNG_CANCER or (coding.system == ICD10 and _stem(coding) == "C34")


def is_first_degree(coding: Coding) -> bool:
    """Whether a relative is a parent, a child, a brother or a sister."""
    return coding.system == _ROLE and coding.code in _FIRST_DEGREE


def status_of_words(words: str) -> tuple[bool, Smoking | None]:
    """Whether words tell a smoking status, and which; it may be that it isn't known."""
    word = " ".join(words.lower().split())
    return word in _WORDS, _WORDS.get(word)


def is_pack_years(unit: str) -> bool:
    """Whether a unit is pack-years; none at all is taken for it."""
    return unit.strip().lower() in _PACK_YEARS


def units_a_year(unit: str) -> float | None:
    """How many of a unit of time make a year; None for another unit."""
    return _A_YEAR.get(unit.strip().lower())


def _stem(coding: Coding) -> str:
    """The three characters of an ICD-10 category, also where the point is left out."""
    found = re.fullmatch(r"([A-Z][0-9]{2})(\.?[0-9A-Z*+!-]{1,5})?", coding.code.upper())
    return found.group(1) if found else ""
