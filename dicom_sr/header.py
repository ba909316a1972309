"""The parts that SEG and SR share: patient and study of the source, equipment, dates, references."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_VR
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicom_sr.codes import ACQUISITION_EQUIPMENT, PROCESSING_EQUIPMENT, SCHEME_NAMES
from dicom_sr.context import ResultContext, card_device_uid

CHARACTER_SET = "ISO_IR 192"
LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage; pydicom 3.0 has no name for it."""

REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
"""Type 2 of the Patient and General Study modules: present in every object, empty where unknown."""

COPIED = (
    # Patient (PS3.3 C.7.1.1)
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientBirthTime",
    "OtherPatientNames",
    "EthnicGroup",
    "PatientComments",
    "PatientSpeciesDescription",
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
    # Clinical Trial Subject and Study (C.7.1.3, C.7.2.3)
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "ClinicalTrialTimePointID",
    "ClinicalTrialTimePointDescription",
    # SOP Common (C.12.1): every date and time of the object is in this zone
    "TimezoneOffsetFromUTC",
)
"""Copied as they are where the source has a value."""


def readable(source: Dataset, keyword: str) -> DataElement | None:
    """The element as the source has it, None where it is absent, empty or can't be parsed."""
    if keyword not in source:
        return None
    try:
        element = source[keyword]
        if element.VR == "SQ":
            for item in element.value:
                list(item.iterall())  # decodes with the source's character set; raw bytes would keep it
    except (OSError, NotImplementedError, ValueError, TypeError):
        # What pydicom raises for damaged sequences (OSError, NotImplementedError were met with random bytes).
        # A broken attribute of the source must not cost the patient the report.
        return None
    return None if element.is_empty else element


def copied(source: Dataset, keyword: str) -> DataElement | None:
    """A copy of the element as the source has it, None where `readable` finds none."""
    element = readable(source, keyword)
    return None if element is None else deepcopy(element)


def patient_and_study(source: Dataset) -> Dataset:
    """Patient and study attributes of the source: copied, never invented, type 2 ones empty if unknown.

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
    return out


def code_item(code: Code) -> Dataset:
    """The item of a code sequence (PS3.3 table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def stamp(dataset: Dataset, context: ResultContext) -> None:
    """Set equipment, dates and character set of an object from the context, replacing what is there."""
    dataset.SpecificCharacterSet = CHARACTER_SET
    date, time = context.created_at.strftime("%Y%m%d"), context.created_at.strftime("%H%M%S")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.SeriesDate, dataset.SeriesTime = date, time
    dataset.ContentDate, dataset.ContentTime = date, time
    dataset.Manufacturer = context.manufacturer
    dataset.ManufacturerModelName = context.manufacturer_model_name
    dataset.DeviceSerialNumber = context.device_serial_number
    dataset.SoftwareVersions = context.software_version
    if context.institution:
        dataset.InstitutionName = context.institution
    dataset.ContentQualification = "RESEARCH"


def contributing_equipment(source: Dataset, context: ResultContext) -> list[Dataset]:
    """Items of (0018,A001): the scanner, the algorithm as a whole, and each model or stage of it.

    IHE AIR 6.5.3.1 asks for manufacturer, model name, software versions and Device UID of each algorithm.
    """
    when = context.created_at.strftime("%Y%m%d%H%M%S%z")
    algorithm = Dataset()
    algorithm.Manufacturer = context.manufacturer
    algorithm.ManufacturerModelName = context.manufacturer_model_name
    algorithm.SoftwareVersions = context.pipeline_version
    algorithm.DeviceSerialNumber = context.device_serial_number
    algorithm.DeviceUID = context.device_uid
    algorithm.ContributionDescription = "Lung nodule analysis as a whole"
    items = [algorithm]
    for card in context.cards:
        item = Dataset()
        item.Manufacturer = context.manufacturer
        item.ManufacturerModelName = card.name[:64]
        item.SoftwareVersions = card.version[:64]
        item.DeviceUID = card_device_uid(card)
        weights = f", weights sha256 {card.weights_sha256}" if card.weights_sha256 else ""
        item.ContributionDescription = f"{card.task}{weights}"[:1024]
        items.append(item)
    for item in items:
        if context.institution:
            item.InstitutionName = context.institution
        item.ContributionDateTime = when
        item.PurposeOfReferenceCodeSequence = [code_item(PROCESSING_EQUIPMENT)]
    return [*_scanner(source), *items]


def _scanner(source: Dataset) -> Iterator[Dataset]:
    if copied(source, "Manufacturer") is None:
        return
    item = Dataset()
    for keyword in (
        "Manufacturer",
        "InstitutionName",
        "StationName",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
    ):
        if (element := copied(source, keyword)) is not None:
            item.add(element)
    item.ContributionDescription = "Acquisition equipment of the source images"
    item.PurposeOfReferenceCodeSequence = [code_item(ACQUISITION_EQUIPMENT)]
    yield item


def nodule_segments(seg: Dataset) -> list[Dataset]:
    """The items of the Segment Sequence without the background that a label map describes as number 0."""
    return [item for item in seg.SegmentSequence if item.SegmentNumber > 0]


def coding_schemes(dataset: Dataset) -> list[Dataset]:
    """Items of (0008,0110) for the private schemes that occur anywhere in the object."""
    used = {e.value for e in dataset.iterall() if e.keyword == "CodingSchemeDesignator"}
    out = []
    for designator in sorted(used & SCHEME_NAMES.keys()):
        name, organisation = SCHEME_NAMES[designator]
        item = Dataset()
        item.CodingSchemeDesignator = designator
        item.CodingSchemeName = name
        item.CodingSchemeResponsibleOrganization = organisation
        out.append(item)
    return out


def reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """Item that refers to one instance."""
    item = Dataset()
    # by tag: the same by keyword takes three times as long, and a report has two of these for each image
    item.add_new(0x00081150, "UI", UID(sop_class_uid))
    item.add_new(0x00081155, "UI", UID(sop_instance_uid))
    return item


def hierarchical_references(instances: Iterable[tuple[str, str, str, str]]) -> list[Dataset]:
    """Items of the Hierarchical SOP Instance Reference macro (PS3.3 C.17.2.1).

    Parameters
    ----------
    instances
        (study UID, series UID, SOP Class UID, SOP Instance UID); repeated ones are taken once.
    """
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for study, series, sop_class, sop_instance in dict.fromkeys(instances):
        studies.setdefault(study, {}).setdefault(series, []).append(reference(sop_class, sop_instance))
    out = []
    for study, by_series in studies.items():
        item = Dataset()
        item.StudyInstanceUID = study
        item.ReferencedSeriesSequence = []
        for series, references in by_series.items():
            series_item = Dataset()
            series_item.SeriesInstanceUID = series
            series_item.ReferencedSOPSequence = references
            item.ReferencedSeriesSequence.append(series_item)
        out.append(item)
    return out


def instance_ids(headers: Sequence[Dataset]) -> list[tuple[str, str, str, str]]:
    """(study, series, SOP class, SOP instance) of each header that has all four."""
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    rows = [[str(header.get(keyword) or "") for keyword in keywords] for header in headers]
    return [(row[0], row[1], row[2], row[3]) for row in rows if all(row)]
