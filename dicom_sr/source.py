"""What an object takes over from its source: patient, study, scanner; copied, never invented.

Real headers hold values that break the standard. What names the patient and the study (`IDENTITY`) is copied
as it is, so that an archive files the object with its images. Any other value that breaks its VR or its
multiplicity, or lacks what it needs beside it, is left out: an object of ours must not be refused for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from copy import deepcopy

from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

IDENTITY = ("PatientName", "PatientID", "AccessionNumber")
"""Copied whatever their values are."""
REQUIRED = (
    *IDENTITY,
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
)
"""Type 2 of the Patient and General Study modules: present in every object, empty where unknown."""

CLINICAL_TRIAL = (
    # Clinical Trial Subject and Study (PS3.3 C.7.1.3, C.7.2.3)
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
)
COPIED = (
    # Patient (PS3.3 C.7.1.1)
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthTime",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "QualityControlSubject",
    # General Study (C.7.2.1)
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "ProcedureCodeSequence",
    "PhysiciansOfRecord",
    "ReferencedStudySequence",
    # Patient Study (C.7.2.2)
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    *CLINICAL_TRIAL,
    # SOP Common (C.12.1): every date and time of the object is in this zone
    "TimezoneOffsetFromUTC",
)
"""Copied where the source has a sound value."""
MAY_BE_EMPTY = (
    *("PatientBirthTime", "EthnicGroup", "PatientComments", "StudyDescription", "PhysiciansOfRecord"),
    *("PatientAge", "PatientSize", "PatientWeight", "AdmissionID", "OtherPatientNames"),
)
"""Of those, type 3 attributes, written empty where the source has them empty: some tools compare presence."""

_FORMS = {
    "PatientSex": "M|F|O",
    "PatientIdentityRemoved": "YES|NO",
    "QualityControlSubject": "YES|NO",
    "TimezoneOffsetFromUTC": r"[+-](0\d|1[0-4])[0-5]\d",
    "LossyImageCompression": "00|01",
    "Laterality": "R|L",
}
"""What a value must match beyond its VR."""
_CODE = ("CodeValue CodingSchemeDesignator", "LongCodeValue CodingSchemeDesignator", "URNCodeValue")
_ISSUER = ("LocalNamespaceEntityID", "UniversalEntityID UniversalEntityIDType")
_NEEDS: dict[str, tuple[str, ...]] = {
    "DeidentificationMethodCodeSequence": tuple(f"{code} CodeMeaning" for code in _CODE),
    "IssuerOfAccessionNumberSequence": _ISSUER,
    "IssuerOfAdmissionIDSequence": _ISSUER,
    "OtherPatientIDsSequence": ("PatientID TypeOfPatientID",),
    "ProcedureCodeSequence": tuple(f"{code} CodeMeaning" for code in _CODE),
    "ReferencedStudySequence": ("ReferencedSOPClassUID ReferencedSOPInstanceUID",),
}
"""What every item of a sequence must have: all words of one of the alternatives."""
_LINES = {"ST", "LT", "UT"}
_BINARY = {"OB", "OD", "OF", "OL", "OV", "OW", "UN"}


def readable(source: Dataset, keyword: str) -> DataElement | None:
    """The element as the source has it, None where it is absent, empty or can't be parsed."""
    if keyword not in source:
        return None
    try:
        element = source[keyword]
        if element.VR == "SQ":
            for item in element.value:
                list(item.iterall())  # decodes with the source's character set; raw bytes would keep it
    except (OSError, NotImplementedError, ValueError, TypeError, BytesLengthException):
        # What pydicom raises for damaged sequences (OSError, NotImplementedError were met with random bytes).
        # A broken attribute of the source must not cost the patient the report.
        return None
    return None if element.is_empty else element


def copied(source: Dataset, keyword: str) -> DataElement | None:
    """A copy of the element, None where it is absent, empty or unsound."""
    element = readable(source, keyword)
    if element is None:
        return None
    element = deepcopy(element)
    # written with another VR than the dictionary's, as some systems do
    if dictionary_VR(keyword) != element.VR and (element := _with_its_vr(element)) is None:
        return None
    return element if keyword in IDENTITY or _is_sound(element) else None


def _with_its_vr(element: DataElement) -> DataElement | None:
    """The element with the VR of the dictionary, None where its value can't have that."""
    vr = dictionary_VR(element.tag)
    if "SQ" in (vr, element.VR) or element.VR in _BINARY:
        return None
    try:
        return DataElement(element.tag, vr, element.value, validation_mode=config.IGNORE)
    except (ValueError, TypeError, ArithmeticError):
        return None


def patient_and_study(source: Dataset) -> Dataset:
    """Patient and study attributes of the source; type 2 ones are empty where unknown or unsound.

    Raises
    ------
    ValueError
        The source has no Study Instance UID: no object could be filed with it.
    """
    if not source.get("StudyInstanceUID"):
        raise ValueError("the source has no Study Instance UID")
    out = Dataset()
    out.StudyInstanceUID = source.StudyInstanceUID
    for keyword in REQUIRED:
        out.add(copied(source, keyword) or DataElement(keyword, dictionary_VR(keyword), ""))
    for keyword in COPIED:
        if (element := copied(source, keyword)) is not None:
            out.add(element)
        elif keyword in MAY_BE_EMPTY and keyword in source and source[keyword].is_empty:
            setattr(out, keyword, "")
    _complete(out)
    return out


def _complete(out: Dataset) -> None:
    """Fill what belongs together, or drop it where a part that must have a value is missing."""
    if out.get("PatientIdentityRemoved") == "YES" and not (
        "DeidentificationMethod" in out or "DeidentificationMethodCodeSequence" in out
    ):
        del out.PatientIdentityRemoved
    subject, study = CLINICAL_TRIAL[:7], CLINICAL_TRIAL[7:]
    named = "ClinicalTrialSubjectID" in out or "ClinicalTrialSubjectReadingID" in out
    if named and "ClinicalTrialSponsorName" in out and "ClinicalTrialProtocolID" in out:
        _fill(out, subject[2:5])
    else:
        _drop(out, subject)
    if any(keyword in out for keyword in study):
        _fill(out, study[:1])


def _fill(out: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        if keyword not in out:
            setattr(out, keyword, "")


def _drop(out: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        out.pop(keyword, None)


def _is_sound(element: DataElement) -> bool:
    """Whether a value keeps its VR (PS3.5 6.2) and multiplicity (PS3.6), through all its sequences."""
    if element.VR == "SQ":
        return all(_is_sound_item(element.keyword, item) for item in element.value)
    if element.VR in _BINARY:
        return True
    values = list(element.value) if isinstance(element.value, MultiValue | list) else [element.value]
    single = not element.tag.is_private and dictionary_VM(element.tag) == "1"
    if single and len(values) != 1:
        return False
    form = _FORMS.get(element.keyword)
    return all(
        _keeps_vr(element.VR, value) and (form is None or re.fullmatch(form, str(value)) is not None)
        for value in values
    )


def _is_sound_item(keyword: str, item: Dataset) -> bool:
    alternatives = _NEEDS.get(keyword, ())
    complete = not alternatives or any(
        all(item.get(word) for word in words.split()) for words in alternatives
    )
    elements = [element for element in item if not element.tag.is_private]
    return complete and bool(elements) and all(_is_sound(e) for e in elements if not e.is_empty)


def _keeps_vr(vr: str, value: object) -> bool:
    text = str(value) if vr in {"DS", "IS", "PN"} else value
    try:
        validate_value(vr, text, config.RAISE)
    except ValueError:
        return False
    return not isinstance(text, str) or not any(map(_control_character(vr), text))


def _control_character(vr: str) -> Callable[[str], bool]:
    """Test for a character below the space that the VR doesn't allow (PS3.5 6.1.3)."""
    allowed = "\t\n\f\r" if vr in _LINES else ""
    return lambda character: (character < " " or character == "\x7f") and character not in allowed
