"""The parts that SEG and SR share: patient and study of the source, equipment, dates, references."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID

from dicom_sr.charset import character_set
from dicom_sr.codes import ACQUISITION_EQUIPMENT, PROCESSING_EQUIPMENT, SCHEME_NAMES
from dicom_sr.context import ResultContext, card_device_uid
from dicom_sr.part10 import file_meta
from dicom_sr.source import copied

LABEL_MAP_STORAGE = UID("1.2.840.10008.5.1.4.1.1.66.7")
"""Label Map Segmentation Storage; pydicom 3.0 has no name for it."""


def code_item(code: Code) -> Dataset:
    """The item of a code sequence (PS3.3 table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def stamp(dataset: Dataset, context: ResultContext) -> None:
    """Set equipment and dates of an object from the context, replacing what is there."""
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


def finish(dataset: Dataset, source: Dataset) -> None:
    """Set the character set and the file meta information of an object that is otherwise complete."""
    dataset.SpecificCharacterSet = character_set(dataset, source)
    dataset.file_meta = file_meta(dataset)


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
