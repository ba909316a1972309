"""Hold a written SEG against the findings: identity, geometry and every voxel.

The decoding here shares nothing with the encoding: positions come from the file's own attributes through the
inverse affine, and masks from its own bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import SegmentationStorage

from dicom_sr import codes
from dicom_sr.header import nodule_segments
from inference.types import Finding, Result, SourceFrame, Volume


def segment_differences(seg: Dataset, volume: Volume, result: Result) -> Iterator[str]:
    """Tracking identity, geometry and every voxel of every segment."""
    if (seg.StudyInstanceUID, seg.FrameOfReferenceUID) != (volume.study_uid, volume.frame_of_reference_uid):
        yield "the SEG has another study or frame of reference than the series"
    tracked = [(s.get("TrackingUID"), s.get("TrackingID")) for s in nodule_segments(seg)]
    if tracked != [(f.tracking_uid, f.tracking_id) for f in result.findings]:
        yield "the segments aren't the findings"
        return
    for segment, finding in zip(nodule_segments(seg), result.findings, strict=True):
        yield from _description(segment, finding)
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
    for segment_number, z in missing:
        yield f"segment {segment_number} has no frame on slice {z}"


def read_masks(seg: Dataset, volume: Volume) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """Read the masks of a SEG of the volume.

    Yields
    ------
    int, int, ndarray
        Segment number, slice of the volume, and the mask on it, bool, shape (rows, columns).

    Raises
    ------
    ValueError
        A frame doesn't lie on a slice of the volume.
    """
    for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence):
        plane = _pixels(seg, number)
        z, difference = _place(seg, group, plane.shape, volume)
        if difference or plane.shape != volume.array.shape[1:]:
            raise ValueError(difference or "the SEG has another matrix than the series")
        for segment, mask in _masks(seg, group, plane):
            yield segment, z, mask


def _description(segment: Dataset, finding: Finding) -> Iterator[str]:
    """Type, site, colour and kind of algorithm of one segment."""
    kind = segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
    if kind != codes.finding_code(finding).value:
        yield f"segment {segment.SegmentNumber} is of another type than {finding.tracking_id}"
    anatomy, side = codes.site_codes(finding.site)
    region = segment.AnatomicRegionSequence[0]
    modifiers = [item.CodeValue for item in region.get("AnatomicRegionModifierSequence", [])]
    if (region.CodeValue, modifiers) != (anatomy.value, [] if side is None else [side.value]):
        yield f"segment {segment.SegmentNumber} lies elsewhere than {finding.tracking_id}"
    if (
        segment.SegmentAlgorithmType != "AUTOMATIC"
        or len(segment.get("RecommendedDisplayCIELabValue", [])) != 3
    ):
        yield f"segment {segment.SegmentNumber} has no colour or isn't called automatic"


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
    if frame_reference(source) != volume.frames[z]:
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


def frame_reference(item: Dataset) -> SourceFrame:
    """The image or frame that an item of a reference sequence names."""
    frame = item.get("ReferencedFrameNumber")
    return SourceFrame(
        str(item.ReferencedSOPClassUID),
        str(item.ReferencedSOPInstanceUID),
        None if frame is None else int(frame),
    )
