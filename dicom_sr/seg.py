"""The nodule masks as one DICOM Segmentation object (PS3.3 A.51), one segment for each nodule.

Frames without a mask voxel are left out by default: ten nodules in a CT of 133 slices make 52 frames and
1.8 MB so, and 1330 frames and 44 MB with all frames. Every frame carries its position and its source
image, so no reader needs the empty ones; some tools then show a volume that spans only the kept slices.
A destination that wants all frames gets them with ``omit_empty_frames=False``, and one that reads label maps
one of these with ``encoding=SegEncoding.LABELMAP``. Each of the four forms is an object with UIDs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import cos, radians, sin
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from dicom_sr import codes
from dicom_sr.context import ResultContext
from dicom_sr.header import code_item, contributing_equipment, finish, reference, stamp
from dicom_sr.source import REQUIRED, copied, patient_and_study
from inference.types import Finding, SourceFrame, Volume
from inference.uids import derived_uid

Labels = NDArray[np.uint8] | NDArray[np.uint16]

CONTENT_LABEL = "LUNG_NODULES"
DESCRIPTION = "Automatic lung nodules (research use only)"


class SegEncoding(StrEnum):
    """How voxels are stored: BINARY in Segmentation Storage, LABELMAP in Label Map Segmentation Storage."""

    BINARY = "binary"
    LABELMAP = "labelmap"


def build_seg(
    volume: Volume,
    findings: Sequence[Finding],
    headers: Sequence[Dataset],
    context: ResultContext,
    *,
    encoding: SegEncoding = SegEncoding.BINARY,
    omit_empty_frames: bool = True,
) -> Dataset:
    """Build the SEG of a result.

    Parameters
    ----------
    volume
        The analysed series; its grid is the grid of the SEG.
    findings
        At least one. Segment numbers 1, 2, 3 ... are in this order.
    headers
        The source images without pixel data, one for each slice in slice order, or one multi-frame image.
    context
        Provenance; every date comes from it.
    encoding
        BINARY is what every viewer reads. A label map is smaller, but few receivers take it (Orthanc 1.10
        refuses it by C-STORE, dciodvfy doesn't know it).
    omit_empty_frames
        Leave out frames in which a segment has no voxel.

    Returns
    -------
    Dataset
        Segmentation Storage or Label Map Segmentation Storage, Explicit VR Little Endian, with file meta
        information.

    Raises
    ------
    ValueError
        No finding (there is never an empty SEG), an empty or overlapping mask or one outside the volume,
        two findings with one tracking UID, or headers that aren't those of the volume.

    Notes
    -----
    Overlap is refused and not resolved here: a segment that lost voxels would contradict the
    measurements made on the finding's mask.
    """
    _check_headers(volume, headers)
    labels, slices = label_map(volume, findings)
    chosen = slices if omit_empty_frames else list(range(len(volume.frames)))
    frames = {_stand_in_uid(volume.frames[z]): volume.frames[z] for z in chosen}
    role = seg_role(encoding, omit_empty_frames=omit_empty_frames)
    seg = hd.seg.Segmentation(
        source_images=_stand_ins(volume, headers, chosen),
        pixel_array=_stacked(labels, chosen, volume),
        segmentation_type=hd.seg.SegmentationTypeValues[encoding.name],
        segment_descriptions=[_segment(n, f, context) for n, f in enumerate(findings, start=1)],
        series_instance_uid=context.uid(volume.series_uid, f"{role}-series"),
        series_number=context.series_numbers.seg,
        sop_instance_uid=context.uid(volume.series_uid, role),
        instance_number=1,
        manufacturer=context.manufacturer,
        manufacturer_model_name=context.manufacturer_model_name,
        software_versions=context.software_version,
        device_serial_number=context.device_serial_number,
        content_label=CONTENT_LABEL,
        content_description=DESCRIPTION,
        series_description=DESCRIPTION,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=omit_empty_frames,
    )
    return _finish(seg, volume, headers[0], context, frames)


def seg_role(encoding: SegEncoding, *, omit_empty_frames: bool) -> str:
    """What tells the UIDs of the forms apart: other bytes are another object."""
    if encoding is SegEncoding.BINARY and omit_empty_frames:
        return "seg"
    return f"seg-{encoding}-{'some' if omit_empty_frames else 'all'}-frames"


def label_map(volume: Volume, findings: Sequence[Finding]) -> tuple[dict[int, Labels], list[int]]:
    """Segment numbers on the slices that have any: ``{z: (rows, columns)}`` and the sorted slices.

    Raises
    ------
    ValueError
        See `build_seg`.
    """
    if not findings:
        raise ValueError("no findings: an empty SEG is never made")
    if len({f.tracking_uid for f in findings}) != len(findings):
        raise ValueError("two findings have the same tracking UID")
    kind = np.uint8 if len(findings) < 256 else np.uint16
    labels: dict[int, Labels] = {}
    for number, finding in enumerate(findings, start=1):
        if not finding.mask.any():
            raise ValueError(f"the mask of {finding.tracking_id} is empty")
        region = zip(finding.origin, finding.mask.shape, volume.array.shape, strict=True)
        if any(start < 0 or start + extent > size for start, extent, size in region):
            raise ValueError(f"the mask of {finding.tracking_id} lies outside the volume")
        _, rows, columns = finding.slices()
        for z, mask in enumerate(finding.mask, start=finding.origin[0]):
            if not mask.any():
                continue
            if z not in labels:
                labels[z] = np.zeros(volume.array.shape[1:], dtype=kind)
            window = labels[z][rows, columns]
            if window[mask].any():
                raise ValueError(f"the mask of {finding.tracking_id} overlaps another finding's on slice {z}")
            window[mask] = number
    return labels, sorted(labels)


def plane(header: Dataset, frame_number: int | None) -> tuple[list[float], list[float], list[float]]:
    """Position, orientation and pixel spacing of an image or of one frame of a multi-frame image.

    Returns
    -------
    tuple of list of float
        (0020,0032), (0020,0037), (0028,0030) as stored.
    """
    if frame_number is None:
        return header.ImagePositionPatient, header.ImageOrientationPatient, header.PixelSpacing
    groups = (
        header.PerFrameFunctionalGroupsSequence[frame_number - 1],
        header.SharedFunctionalGroupsSequence[0],
    )

    def value(sequence: str, keyword: str) -> Any:
        return next(g[sequence][0][keyword].value for g in groups if sequence in g)

    return (
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        value("PixelMeasuresSequence", "PixelSpacing"),
    )


def header_of(volume: Volume, headers: Sequence[Dataset], z: int) -> Dataset:
    """The source header of slice `z`: its own, or the one multi-frame header."""
    return headers[0] if volume.frames[z].frame_number is not None else headers[z]


def _check_headers(volume: Volume, headers: Sequence[Dataset]) -> None:
    """Refuse headers that aren't the volume's, slice by slice and in space."""
    multi_frame = volume.frames[0].frame_number is not None
    if len(headers) != (1 if multi_frame else len(volume.frames)):
        raise ValueError(f"{len(headers)} headers for {len(volume.frames)} slices")
    z_spacing, y_spacing, x_spacing = volume.spacing_mm
    affine = volume.affine_index_to_lps
    for z, frame in enumerate(volume.frames):
        header = header_of(volume, headers, z)
        if header.SOPInstanceUID != frame.sop_instance_uid:
            raise ValueError(f"header {z} isn't the image of slice {z}")
        if (header.Rows, header.Columns) != volume.array.shape[1:]:
            raise ValueError(f"slice {z} has another matrix than the volume")
        position, orientation, spacing = plane(header, frame.frame_number)
        expected = affine[:3, 3] + z * affine[:3, 0]
        if np.abs(np.asarray(position, dtype=float) - expected).max() > 0.25 * z_spacing:
            raise ValueError(f"slice {z} lies elsewhere than the volume says")
        directions = np.concatenate([affine[:3, 2] / x_spacing, affine[:3, 1] / y_spacing])
        if not np.allclose(np.asarray(orientation, dtype=float), directions, atol=1e-2):
            raise ValueError(f"slice {z} is oriented otherwise than the volume says")
        if not np.allclose(np.asarray(spacing, dtype=float), (y_spacing, x_spacing), rtol=1e-2):
            raise ValueError(f"slice {z} has another pixel spacing than the volume")


def _stacked(labels: dict[int, Labels], chosen: Sequence[int], volume: Volume) -> Labels:
    """The chosen slices as one array, shape (z, y, x)."""
    kind = next(iter(labels.values())).dtype
    out = np.zeros((len(chosen), *volume.array.shape[1:]), dtype=kind)
    for plane_out, z in zip(out, chosen, strict=True):
        if z in labels:
            plane_out[:] = labels[z]
    return out


def _stand_in_uid(frame: SourceFrame) -> str:
    if frame.frame_number is None:
        return frame.sop_instance_uid
    return derived_uid(frame.sop_instance_uid, str(frame.frame_number))


def _stand_ins(volume: Volume, headers: Sequence[Dataset], chosen: Sequence[int]) -> list[Dataset]:
    """What highdicom needs to know of the chosen slices, as single-frame images.

    The source itself isn't given: highdicom refuses patient data that a scanner may well send, and
    multi-frame images whose spacing isn't shared. `_finish` puts the true patient and references in.
    """
    shared = _shared_part(volume, headers)
    out = []
    for z in chosen:
        header, frame = header_of(volume, headers, z), volume.frames[z]
        image = Dataset()
        image.update(shared)
        image.SOPInstanceUID = _stand_in_uid(frame)
        image.ImagePositionPatient = plane(header, frame.frame_number)[0]
        for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if (element := copied(header, keyword)) is not None:
                image[keyword] = element
        out.append(image)
    return out


def _shared_part(volume: Volume, headers: Sequence[Dataset]) -> Dataset:
    """What the stand-ins of all slices have in common."""
    _, orientation, spacing = plane(header_of(volume, headers, 0), volume.frames[0].frame_number)
    out = Dataset()
    for keyword in REQUIRED:
        setattr(out, keyword, "")
    out.SOPClassUID = CTImageStorage
    out.StudyInstanceUID, out.SeriesInstanceUID = volume.study_uid, volume.series_uid
    out.FrameOfReferenceUID = volume.frame_of_reference_uid
    indicator = copied(headers[0], "PositionReferenceIndicator")
    out.PositionReferenceIndicator = "" if indicator is None else indicator.value
    out.Modality = "CT"
    out.Rows, out.Columns = volume.array.shape[1:]
    out.ImageOrientationPatient, out.PixelSpacing = orientation, spacing
    # Explicit: computed from the chosen slices it would be wrong where some are left out.
    out.SpacingBetweenSlices = round(volume.spacing_mm[0], 6)
    out.SliceThickness = round(volume.slice_thickness_mm or volume.spacing_mm[0], 6)
    return out


def _segment(number: int, finding: Finding, context: ResultContext) -> hd.seg.SegmentDescription:
    anatomy, side = codes.site_codes(finding.site)
    region = hd.sr.CodedConcept.from_code(anatomy)
    if side is not None:
        region.AnatomicRegionModifierSequence = [code_item(side)]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=context.manufacturer_model_name,
        family=codes.algorithm_family(context.cards),
        version=context.pipeline_version,
        source=context.manufacturer,
    )
    hue = radians(40 + 137.5 * (number - 1))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=finding.tracking_id[:64],
        segmented_property_category=codes.MORPHOLOGICALLY_ABNORMAL,
        segmented_property_type=codes.finding_code(finding),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        tracking_uid=finding.tracking_uid,
        tracking_id=finding.tracking_id,
        anatomic_regions=[region],
        display_color=hd.color.CIELabColor(68.0, 60 * cos(hue), 60 * sin(hue)),
    )


def _name_sources(seg: Dataset, frames: dict[str, SourceFrame]) -> None:
    """Put the true sources in place of the stand-ins."""
    done: set[int] = set()
    for group in seg.PerFrameFunctionalGroupsSequence:
        item = group.DerivationImageSequence[0].SourceImageSequence[0]
        # the frames of one slice share their item, which must be changed only once
        if id(item) in done:
            continue
        done.add(id(item))
        frame = frames[item.ReferencedSOPInstanceUID]
        item.ReferencedSOPClassUID = frame.sop_class_uid
        item.ReferencedSOPInstanceUID = frame.sop_instance_uid
        if frame.frame_number is not None:
            item.ReferencedFrameNumber = frame.frame_number


def _finish(
    seg: Dataset,
    volume: Volume,
    source: Dataset,
    context: ResultContext,
    frames: dict[str, SourceFrame],
) -> Dataset:
    """Replace what highdicom made up (dates, UIDs, equipment) or took from the stand-ins."""
    out = Dataset(seg)
    for keyword in REQUIRED:
        del out[keyword]
    out.update(patient_and_study(source))
    stamp(out, context)
    out.ContentCreatorName = ""
    out.ContributingEquipmentSequence = contributing_equipment(source, context)
    organization = context.uid(volume.series_uid, "seg-dimensions")
    out.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in out.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    _name_sources(out, frames)
    instances = dict.fromkeys((f.sop_class_uid, f.sop_instance_uid) for f in volume.frames)
    images = [reference(*instance) for instance in instances]
    out.SourceImageSequence = images
    series = Dataset()
    series.SeriesInstanceUID = volume.series_uid
    series.ReferencedInstanceSequence = images
    out.ReferencedSeriesSequence = [series]
    finish(out, source)
    return out
