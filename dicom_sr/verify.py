"""Read the written SEG and report back and hold them against the result they are made of.

A difference is an error, never a warning: such an object must not leave the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code
from pydicom.uid import UID, Comprehensive3DSRStorage, EnhancedSRStorage, SegmentationStorage
from pydicom.valuerep import validate_value

from dicom_sr import codes
from dicom_sr.comparison import compared
from dicom_sr.content import evaluation_rows, measurement_rows
from dicom_sr.evaluations import Millimetres, model_rows, study_rows
from dicom_sr.header import LABEL_MAP_STORAGE, nodule_segments
from dicom_sr.narrative import Narrative
from dicom_sr.narrative_sr import narrative_differences
from dicom_sr.source import COPIED, REQUIRED
from dicom_sr.verify_comparison import CODED, NUMBERS, group_differences, study_differences
from dicom_sr.verify_seg import frame_reference, segment_differences
from inference.errors import ReasonCode
from inference.types import Finding, Result, Volume

_REPORTS = (Comprehensive3DSRStorage, EnhancedSRStorage)
_NAMES_THE_SOURCE = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "ReferencedSOPInstanceUID",
    "UID",
)
"""May hold UIDs that we must repeat as they came, leading zeros and all."""


class VerificationError(Exception):
    """A written object differs from the result it was made of.

    Parameters
    ----------
    differences
        One sentence for each, without patient data.
    """

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = tuple(differences)


def reread(
    volume: Volume,
    result: Result,
    seg_path: Path | None,
    sr_path: Path,
    narrative: Narrative | None = None,
) -> None:
    """Check the files of an analysed series.

    Parameters
    ----------
    volume, result
        What the files must say.
    seg_path
        None exactly where the result has no findings.
    sr_path
        The report.
    narrative
        The draft that the report must hold, word for word; None for a report without one.

    Raises
    ------
    VerificationError
        With every difference that was found.
    """
    if (seg_path is None) == bool(result.findings):
        raise VerificationError(["a SEG belongs to a result with findings, and only to one"])
    seg = None
    if seg_path is not None:
        seg = _read(seg_path, SegmentationStorage, LABEL_MAP_STORAGE)
        _raise_if([*_strict(seg), *segment_differences(seg, volume, result), *_equipment(seg)])
    report = _read(sr_path, *_REPORTS)
    _raise_if(
        [
            *_strict(report),
            *_equipment(report),
            *_study_level(report, volume, result),
            *study_differences(_child(report, codes.QUALITATIVE_EVALUATIONS), result.comparison),
            *_groups(report, seg, volume, result),
            *_evidence(report, seg, volume),
            *narrative_differences(report, narrative),
        ]
    )


def reread_not_analysed(
    sr_path: Path, series_uid: str, reason: ReasonCode | str, narrative: Narrative | None = None
) -> None:
    """Check the file of a "not analysed" report: outcome, reason, draft, evidence of the series.

    Raises
    ------
    VerificationError
        With every difference that was found.
    """
    report = _read(sr_path, *_REPORTS)
    out = [*_strict(report), *_equipment(report), *narrative_differences(report, narrative)]
    container = _child(report, codes.QUALITATIVE_EVALUATIONS)
    if container is None or _value(_child(container, codes.RUN_OUTCOME)) != codes.NONE_SUCCEEDED.value:
        out.append("the report doesn't say that nothing was analysed")
    elif not any(str(reason) in item.get("TextValue", "") for item in container.ContentSequence):
        out.append(f"the report doesn't name the reason {reason}")
    if series_uid not in {series for _, series, _ in _evidence_rows(report)}:
        out.append("the series isn't in the evidence")
    if _child(report, codes.IMAGING_MEASUREMENTS) is not None:
        out.append("a report of no analysis has measurements")
    _raise_if(out)


def _raise_if(differences: Sequence[str]) -> None:
    if differences:
        raise VerificationError(differences)


def _read(path: Path, *sop_class_uids: str) -> Dataset:
    """Read with pydicom and with highdicom's own parser."""
    try:
        dataset = dcmread(path)
        if dataset.SOPClassUID not in sop_class_uids:
            raise VerificationError([f"{path.name} is {dataset.SOPClassUID.name}"])
        if dataset.SOPClassUID in _REPORTS:
            hd.sr.srread(path)
        else:
            hd.seg.segread(path)
    except (OSError, InvalidDicomError, ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise VerificationError([f"{path.name} can't be read back: {error!r}"]) from error
    return dataset


def _strict(dataset: Dataset) -> Iterator[str]:
    """Values that break their VR. What was copied from the source is the source's affair, its UIDs too."""
    own = Dataset({e.tag: e for e in dataset if e.keyword not in (*REQUIRED, *COPIED)})
    own.pop("ContributingEquipmentSequence", None)
    if not UID(dataset.SeriesInstanceUID).is_valid:
        yield f"SeriesInstanceUID: {dataset.SeriesInstanceUID} is not valid"
    for element in own.iterall():
        if element.keyword in _NAMES_THE_SOURCE:
            continue
        values = element.value if element.VM > 1 else [element.value]
        for value in values if element.VR not in {"SQ", "OB", "OW"} else ():
            try:
                text = str(value) if element.VR in {"DS", "IS", "PN"} else value
                validate_value(element.VR, text, config.RAISE)
            except ValueError as error:
                yield f"{element.keyword}: {error}"


def _equipment(dataset: Dataset) -> Iterator[str]:
    """IHE AIR 6.5.3.1: each algorithm once, complete, and the same wherever it is named."""
    purpose = codes.PROCESSING_EQUIPMENT.value
    items = [
        e
        for e in dataset.get("ContributingEquipmentSequence", [])
        if e.PurposeOfReferenceCodeSequence[0].CodeValue == purpose
    ]
    if not items:
        yield "no Contributing Equipment describes the algorithm"
        return
    keywords = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceUID")
    for equipment in items:
        yield from (f"Contributing Equipment has no {k}" for k in keywords if not equipment.get(k))
    if len({e.get("DeviceUID") for e in items}) != len(items):
        yield "two Contributing Equipment items have one Device UID"
    whole = items[0]
    for segment in nodule_segments(dataset) if "SegmentSequence" in dataset else ():
        a = segment.SegmentationAlgorithmIdentificationSequence[0]
        named = (a.AlgorithmSource, a.AlgorithmName, a.AlgorithmVersion)
        if named != (whole.Manufacturer, whole.ManufacturerModelName, whole.SoftwareVersions):
            yield f"segment {segment.SegmentNumber} names another algorithm than Contributing Equipment"
    expected = {
        "121012": whole.DeviceUID,
        "121014": whole.Manufacturer,
        "121015": whole.ManufacturerModelName,
        "111001": whole.ManufacturerModelName,
        "111003": whole.SoftwareVersions,
        "122405": whole.Manufacturer,
    }
    for item in _walk(dataset):
        concept = _concept(item)
        if concept in expected and (item.get("TextValue") or item.get("UID")) != expected[concept]:
            yield f"content item {concept} differs from Contributing Equipment"


def _study_level(report: Dataset, volume: Volume, result: Result) -> Iterator[str]:
    """Outcome, quality, Lung-RADS, observations, operating points, models and provenance."""
    container = _child(report, codes.QUALITATIVE_EVALUATIONS)
    said = [] if container is None else [(_concept(i), _simple(i)) for i in container.ContentSequence]
    expected = [*study_rows(volume, result), *model_rows(result.cards)]
    for concept, value in expected:
        # sentences may be in another language
        row = (concept.value, value.value if isinstance(value, Code | Millimetres) else value)
        if row not in said and not (concept == codes.LUNG_RADS and _has_text(said, concept)):
            words = value.meaning if isinstance(value, Code) else value
            yield f'the report doesn\'t say "{words}" as its {concept.meaning}'
    coded = [row for row in expected if isinstance(row[1], Code)]
    items = container.ContentSequence if container else ()
    if len(coded) != sum(i.ValueType == "CODE" and _concept(i) not in CODED for i in items):
        yield "the study has a coded evaluation that isn't the result's"
    for concept in (codes.INPUT_DIGEST, codes.SOFTWARE_VERSION):
        if not _has_text(said, concept):
            yield f"the report has no {concept.meaning}"
    if report.get("SoftwareVersions") and (codes.SOFTWARE_VERSION.value, report.SoftwareVersions) not in said:
        yield "the report names another software version than its equipment"
    if _child(report, codes.CONCLUSION) is None:
        yield "the report has no conclusion"
    if not result.findings and _child(report, codes.IMAGING_MEASUREMENTS) is not None:
        yield "a report without findings has measurements"


def _simple(item: Dataset) -> str | float | None:
    """The value of a CODE, NUM or TEXT item."""
    if item.ValueType == "CODE":
        return _value(item)
    if item.ValueType == "NUM":
        return float(item.MeasuredValueSequence[0].NumericValue)
    return str(item.TextValue)


def _has_text(said: Sequence[tuple[str | None, str | float | None]], concept: Code) -> bool:
    return any(name == concept.value and isinstance(value, str) and value for name, value in said)


def _groups(report: Dataset, seg: Dataset | None, volume: Volume, result: Result) -> Iterator[str]:
    """For each finding exactly one TID 1411 and one TID 1410 group, with its values and references."""
    container = _child(report, codes.IMAGING_MEASUREMENTS)
    groups = [] if container is None else list(container.ContentSequence)
    if {_tracking_uid(g) for g in groups} - {f.tracking_uid for f in result.findings}:
        yield "a measurement group belongs to no finding"
    for number, finding in enumerate(result.findings, start=1):
        own = [g for g in groups if _tracking_uid(g) == finding.tracking_uid]
        by_template = {g.ContentTemplateSequence[0].TemplateIdentifier: g for g in own}
        if len(own) != 2 or set(by_template) != {"1411", "1410"}:
            yield f"{finding.tracking_id} needs one TID 1411 and one TID 1410 group"
            continue
        for group in own:
            name = _child(group, codes.TRACKING_IDENTIFIER)
            if name is None or name.TextValue != finding.tracking_id:
                yield f"a group of {finding.tracking_id} has another tracking identifier"
            yield from _identity(group, finding)
        yield from _volumetric(by_template["1411"], finding, number, seg)
        yield from _evaluations(by_template["1411"], finding)
        yield from group_differences(by_template["1411"], finding, compared(result))
        key_image = _child(by_template["1411"], codes.ILLUSTRATION_OF_ROI)
        if (
            key_image is None
            or frame_reference(key_image.ReferencedSOPSequence[0]) != (volume.frames[finding.key_slice])
        ):
            yield f"{finding.tracking_id} has no key image, or another one"
        yield from _planar(by_template["1410"], finding, volume)


def _tracking_uid(group: Dataset) -> str | None:
    item = _child(group, codes.TRACKING_UID)
    return None if item is None else str(item.UID)


def _volumetric(group: Dataset, finding: Finding, number: int, seg: Dataset | None) -> Iterator[str]:
    segment = _child(group, codes.REFERENCED_SEGMENT)
    reference = None if segment is None else segment.ReferencedSOPSequence[0]
    if (
        seg is None
        or reference is None
        or reference.ReferencedSOPInstanceUID != seg.SOPInstanceUID
        or reference.ReferencedSegmentNumber != number
    ):
        yield f"{finding.tracking_id} doesn't refer to segment {number} of the SEG"
    numbers = {
        _concept(item): item.MeasuredValueSequence[0]
        for item in group.ContentSequence
        if item.ValueType == "NUM" and _concept(item) not in NUMBERS
    }
    for concept, value, unit, _ in measurement_rows(finding):
        measured = numbers.pop(concept.value, None)
        if (
            measured is None
            or not isclose(float(measured.NumericValue), value, abs_tol=1e-6)
            or measured.MeasurementUnitsCodeSequence[0].CodeValue != unit.value
        ):
            yield f"{finding.tracking_id}: {concept.meaning} isn't {value} {unit.value}"
    yield from (f"{finding.tracking_id}: the number {concept} isn't the finding's" for concept in numbers)


def _identity(group: Dataset, finding: Finding) -> Iterator[str]:
    """What was found and where."""
    if _value(_child(group, codes.FINDING)) != codes.finding_code(finding).value:
        yield f"a group of {finding.tracking_id} has another finding"
    anatomy, side = codes.site_codes(finding.site)
    site = _child(group, codes.FINDING_SITE)
    laterality = None if site is None else _value(_child(site, codes.LATERALITY))
    if (_value(site), laterality) != (anatomy.value, side and side.value):
        yield f"a group of {finding.tracking_id} has another site"


def _evaluations(group: Dataset, finding: Finding) -> Iterator[str]:
    """Every coded evaluation with its certainty, and no other."""
    known = {codes.FINDING.value, codes.CHANGE.value}
    items = {
        _concept(item): item
        for item in group.ContentSequence
        if item.ValueType == "CODE" and item.RelationshipType == "CONTAINS" and _concept(item) not in known
    }
    for concept, code, percent in evaluation_rows(finding):
        item = items.pop(concept.value, None)
        if _value(item) != code.value:
            yield f"{finding.tracking_id}: {concept.meaning} isn't {code.meaning}"
            continue
        certainty = _child(item, codes.CERTAINTY_OF_FEATURE)
        said = None if certainty is None else float(certainty.MeasuredValueSequence[0].NumericValue)
        if said != percent:
            yield f"{finding.tracking_id}: the certainty of {concept.meaning} isn't {percent} %"
    yield from (f"{finding.tracking_id}: the evaluation {concept} isn't the finding's" for concept in items)


def _planar(group: Dataset, finding: Finding, volume: Volume) -> Iterator[str]:
    region = _child(group, codes.IMAGE_REGION)
    if region is None or region.GraphicType != "POINT":
        yield f"{finding.tracking_id} has no point"
        return
    image = region.ContentSequence[0].ReferencedSOPSequence[0]
    if frame_reference(image) != volume.frames[finding.key_slice]:
        yield f"the point of {finding.tracking_id} is on another image than its key slice"
    column, row = (int(np.floor(v)) for v in region.GraphicData)
    y, x = row - finding.origin[1], column - finding.origin[2]
    key_mask = finding.key_mask()
    inside = 0 <= y < key_mask.shape[0] and 0 <= x < key_mask.shape[1] and bool(key_mask[y, x])
    if not inside:
        yield f"the point of {finding.tracking_id} isn't in its mask"
    comment = _child(group, codes.COMMENT)
    if comment is None or not str(comment.TextValue).startswith(f"{finding.tracking_id}: "):
        yield f"the point of {finding.tracking_id} isn't named"


def _evidence(report: Dataset, seg: Dataset | None, volume: Volume) -> Iterator[str]:
    """Every source image and the SEG are evidence, and the tree refers to nothing else."""
    rows = set(_evidence_rows(report))
    expected = {(volume.study_uid, volume.series_uid, f.sop_instance_uid) for f in volume.frames}
    if seg is not None:
        expected.add((str(seg.StudyInstanceUID), str(seg.SeriesInstanceUID), str(seg.SOPInstanceUID)))
    if rows != expected:
        yield "the evidence isn't exactly the source images and the SEG"
    referenced = {
        str(r.ReferencedSOPInstanceUID) for i in _walk(report) for r in i.get("ReferencedSOPSequence", [])
    }
    if not referenced <= {instance for _, _, instance in rows}:
        yield "the report refers to an instance that isn't in its evidence"


def _evidence_rows(report: Dataset) -> Iterator[tuple[str, str, str]]:
    for study in report.get("CurrentRequestedProcedureEvidenceSequence", []):
        for series in study.ReferencedSeriesSequence:
            for instance in series.ReferencedSOPSequence:
                yield (
                    str(study.StudyInstanceUID),
                    str(series.SeriesInstanceUID),
                    str(instance.ReferencedSOPInstanceUID),
                )


def _walk(item: Dataset) -> Iterator[Dataset]:
    """All content items below `item`."""
    for child in item.get("ContentSequence", []):
        yield child
        yield from _walk(child)


def _concept(item: Dataset) -> str | None:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else None


def _child(item: Dataset, name: Code) -> Any:
    """The first direct child with this concept name, None where there is none."""
    children = item.get("ContentSequence", [])
    return next((child for child in children if _concept(child) == name.value), None)


def _value(item: Dataset | None) -> str | None:
    return None if item is None else str(item.ConceptCodeSequence[0].CodeValue)
