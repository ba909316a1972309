"""Read the written SEG and report back and hold them against the result they are made of.

The decoding here shares nothing with the encoding: positions come from the file's own attributes through
the inverse affine, and masks from its own bits. A difference is an error, never a warning: such an object
must not leave the node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isclose
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code
from pydicom.uid import UID, Comprehensive3DSRStorage, EnhancedSRStorage, SegmentationStorage
from pydicom.valuerep import validate_value

from dicom_sr import codes
from dicom_sr.content import evaluation_rows, measurement_rows
from dicom_sr.header import COPIED, LABEL_MAP_STORAGE, REQUIRED, nodule_segments
from inference.errors import ReasonCode
from inference.types import Finding, Result, SourceFrame, Volume

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


def reread(volume: Volume, result: Result, seg_path: Path | None, sr_path: Path) -> None:
    """Check the files of an analysed series.

    Parameters
    ----------
    volume, result
        What the files must say.
    seg_path
        None exactly where the result has no findings.
    sr_path
        The report.

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
        _raise_if([*_strict(seg), *_segments(seg, volume, result), *_equipment(seg)])
    report = _read(sr_path, *_REPORTS)
    _raise_if(
        [
            *_strict(report),
            *_equipment(report),
            *_outcome(report, result),
            *_groups(report, seg, volume, result),
            *_evidence(report, seg, volume),
        ]
    )


def reread_not_analysed(sr_path: Path, series_uid: str, reason: ReasonCode | str) -> None:
    """Check the file of a "not analysed" report: outcome, reason, evidence of the series.

    Raises
    ------
    VerificationError
        With every difference that was found.
    """
    report = _read(sr_path, *_REPORTS)
    out = [*_strict(report), *_equipment(report)]
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


def _segments(seg: Dataset, volume: Volume, result: Result) -> Iterator[str]:
    """Tracking identity, geometry and every voxel of every segment."""
    if (seg.StudyInstanceUID, seg.FrameOfReferenceUID) != (volume.study_uid, volume.frame_of_reference_uid):
        yield "the SEG has another study or frame of reference than the series"
    tracked = [(s.get("TrackingUID"), s.get("TrackingID")) for s in nodule_segments(seg)]
    if tracked != [(f.tracking_uid, f.tracking_id) for f in result.findings]:
        yield "the segments aren't the findings"
        return
    if [s.SeriesInstanceUID for s in seg.ReferencedSeriesSequence] != [volume.series_uid]:
        yield "the SEG refers to another series"
    if (seg.Rows, seg.Columns) != volume.array.shape[1:]:
        yield "the SEG has another matrix than the series"
        return
    bits = int(seg.NumberOfFrames) * int(seg.Rows) * int(seg.Columns) * int(seg.BitsAllocated)
    if len(seg.PixelData) < -(-bits // 8):
        yield "the SEG has fewer pixels than frames"
        return
    missing = _expected(volume, result.findings)
    for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        yield from _frame(seg, group, _pixels(seg, number), volume, missing)
    for segment, z in missing:
        yield f"segment {segment} has no frame on slice {z}"


def _expected(volume: Volume, findings: Sequence[Finding]) -> dict[tuple[int, int], NDArray[np.bool_]]:
    """Mask on the full plane by (segment number, slice), for the slices where the finding has voxels."""
    out = {}
    for segment, finding in enumerate(findings, start=1):
        _, rows, columns = finding.slices()
        for z, mask in enumerate(finding.mask, start=finding.origin[0]):
            if mask.any():
                out[segment, z] = np.zeros(volume.array.shape[1:], dtype=bool)
                out[segment, z][rows, columns] = mask
    return out


def _frame(
    seg: Dataset,
    group: Dataset,
    plane: NDArray[Any],
    volume: Volume,
    missing: dict[tuple[int, int], NDArray[np.bool_]],
) -> Iterator[str]:
    """One frame: where it lies, what it was derived from, and its voxels; takes these out of `missing`."""
    z, difference = _place(seg, group, plane.shape, volume)
    if difference:
        yield difference
        return
    for segment, mask in _masks(seg, group, plane):
        expected = missing.pop((segment, z), None)
        if not np.array_equal(mask, np.zeros_like(mask) if expected is None else expected):
            yield f"the voxels of segment {segment} on slice {z} differ from the finding's mask"
    source = group.DerivationImageSequence[0].SourceImageSequence[0]
    if _reference(source) != volume.frames[z]:
        yield f"a frame on slice {z} names another source image"


def _pixels(seg: Dataset, number: int) -> NDArray[Any]:
    """One frame, shape (rows, columns): all of them at once would take eight times the file."""
    size = int(seg.Rows) * int(seg.Columns)
    if seg.BitsAllocated > 1:
        kind = np.dtype(f"<u{seg.BitsAllocated // 8}")
        flat = np.frombuffer(seg.PixelData, kind, size, number * size * kind.itemsize)
    else:  # frames follow each other without padding (PS3.5 section 8.1.1)
        first, last = number * size // 8, -(-(number + 1) * size // 8)
        packed = np.frombuffer(seg.PixelData, np.uint8, last - first, first)
        start = number * size - 8 * first
        flat = np.unpackbits(packed, bitorder="little")[start : start + size]
    return flat.reshape(seg.Rows, seg.Columns)


def _masks(seg: Dataset, group: Dataset, plane: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Segment numbers and their pixels in one frame: one of a BINARY SEG, all of a label map."""
    if seg.SOPClassUID == SegmentationStorage:
        item = _functional_group(seg, group, "SegmentIdentificationSequence")
        yield int(item.ReferencedSegmentNumber), plane > 0
        return
    described = {int(item.SegmentNumber) for item in nodule_segments(seg)}
    for number in sorted(described | set(np.unique(plane).tolist()) - {0}):
        yield number, plane == number


def _functional_group(seg: Dataset, group: Dataset, keyword: str) -> Dataset:
    """The item of a functional group of one frame, its own or the one that all share."""
    found: Dataset = (group if keyword in group else seg.SharedFunctionalGroupsSequence[0])[keyword][0]
    return found


def _place(seg: Dataset, group: Dataset, shape: tuple[int, ...], volume: Volume) -> tuple[int, str]:
    """Slice of the volume that a frame lies on, and what is wrong with it or ""."""
    spacing = [float(v) for v in _functional_group(seg, group, "PixelMeasuresSequence").PixelSpacing]
    orientation = _functional_group(seg, group, "PlaneOrientationSequence").ImageOrientationPatient
    position = _functional_group(seg, group, "PlanePositionSequence").ImagePositionPatient
    cosines, corner = np.array(orientation, dtype=float), np.array(position, dtype=float)
    last_row, last_column = shape[0] - 1, shape[1] - 1
    far = corner + cosines[:3] * spacing[1] * last_column + cosines[3:] * spacing[0] * last_row
    first, last = volume.lps_to_index(corner), volume.lps_to_index(far)
    z = round(float(first[0]))
    # The sources may lie up to a tenth of a slice off the regular grid and still make one volume.
    if np.abs(first - (z, 0, 0)).max() > 0.3 or np.abs(last - (z, last_row, last_column)).max() > 0.3:
        return z, "a frame doesn't lie on the grid of the series"
    if not 0 <= z < len(volume.frames):
        return z, "a frame lies outside the series"
    return z, ""


def _reference(item: Dataset) -> SourceFrame:
    frame = item.get("ReferencedFrameNumber")
    return SourceFrame(
        str(item.ReferencedSOPClassUID),
        str(item.ReferencedSOPInstanceUID),
        None if frame is None else int(frame),
    )


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


def _outcome(report: Dataset, result: Result) -> Iterator[str]:
    expected = codes.SUCCEEDED_WITH_FINDINGS if result.findings else codes.SUCCEEDED_WITHOUT_FINDINGS
    container = _child(report, codes.QUALITATIVE_EVALUATIONS)
    if container is None or _value(_child(container, codes.RUN_OUTCOME)) != expected.value:
        yield f'the report doesn\'t say "{expected.meaning}"'
    if _child(report, codes.CONCLUSION) is None:
        yield "the report has no conclusion"
    if not result.findings and _child(report, codes.IMAGING_MEASUREMENTS) is not None:
        yield "a report without findings has measurements"


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
        yield from _volumetric(by_template["1411"], finding, number, seg)
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
    numbers = {_concept(i): i.MeasuredValueSequence[0] for i in group.ContentSequence if i.ValueType == "NUM"}
    for concept, value, unit, _ in measurement_rows(finding):
        measured = numbers.pop(concept.value, None)
        if (
            measured is None
            or not isclose(float(measured.NumericValue), value, abs_tol=1e-6)
            or measured.MeasurementUnitsCodeSequence[0].CodeValue != unit.value
        ):
            yield f"{finding.tracking_id}: {concept.meaning} isn't {value} {unit.value}"
    yield from (f"{finding.tracking_id}: the number {concept} isn't the finding's" for concept in numbers)
    for concept, code in evaluation_rows(finding):
        if _value(_child(group, concept)) != code.value:
            yield f"{finding.tracking_id}: {concept.meaning} isn't {code.meaning}"


def _planar(group: Dataset, finding: Finding, volume: Volume) -> Iterator[str]:
    region = _child(group, codes.IMAGE_REGION)
    if region is None or region.GraphicType != "POINT":
        yield f"{finding.tracking_id} has no point"
        return
    image = region.ContentSequence[0].ReferencedSOPSequence[0]
    if _reference(image) != volume.frames[finding.key_slice]:
        yield f"the point of {finding.tracking_id} is on another image than its key slice"
    column, row = (int(np.floor(v)) for v in region.GraphicData)
    y, x = row - finding.origin[1], column - finding.origin[2]
    key_mask = finding.key_mask()
    inside = 0 <= y < key_mask.shape[0] and 0 <= x < key_mask.shape[1] and bool(key_mask[y, x])
    if not inside:
        yield f"the point of {finding.tracking_id} isn't in its mask"


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
