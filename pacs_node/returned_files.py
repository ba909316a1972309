"""Reads what a SEG or a structured report says of nodules; runs where files of strangers are opened.

What comes back is what JSON can hold. A report is read by the codes of TID 1500 wherever its groups stand, so
that one which a viewer, or an XML editor, has written anew is understood too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SegmentationStorage,
)

from dicom_sr import codes
from dicom_sr.header import LABEL_MAP_STORAGE
from inference.decode import MALFORMED_FILE
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.headers import frame_item, number, numbers, sequence, text
from inference.uids import derived_uid

REPORTS = (Comprehensive3DSRStorage, ComprehensiveSRStorage, EnhancedSRStorage)
SEGMENTATIONS = (SegmentationStorage, LABEL_MAP_STORAGE)

Progress = Callable[[], None]
Bits = NDArray[np.bool_]
Place = tuple[float, ...]
"""Position of a frame's first pixel, mm."""

_MOST_GROUPS = 1000
_SAME_PLANE_MM = 0.1
_DEEPEST = 16
_LONGEST = 128
_NUMBERS = {
    ("103339001", "SCT"): "long_axis_mm",
    ("G-A185", "SRT"): "long_axis_mm",
    ("103340004", "SCT"): "short_axis_mm",
    ("G-A186", "SRT"): "short_axis_mm",
    ("118565006", "SCT"): "volume_mm3",
    ("G-D705", "SRT"): "volume_mm3",
    (codes.PROBABILITY_OF_CANCER.value, "DCM"): "malignancy",
}
_UNITS = {"long_axis_mm": "mm", "short_axis_mm": "mm", "volume_mm3": "mm3", "malignancy": "%"}
_ATTENUATIONS = {code.value: str(kind) for kind, code in codes.ATTENUATION.items()}
_NODULES = {codes.NODULE.value, codes.MASS.value, *_ATTENUATIONS}
_MALIGNANCY = codes.FEATURES["malignancy"]


def read_object(paths: Sequence[Path], progress: Progress) -> dict[str, Any]:
    """Read one SEG, without its masks, or one report.

    Returns
    -------
    dict
        ``kind``: ``seg``, ``sr`` or empty for other objects; ``manufacturer``; ``references``: SOP Instance
        UIDs of the documents that it replaces, or of whatever a SEG names beside its frames; ``verified``,
        ``complete``, ``observers``: of a report; ``nodules``: by tracking UID, see `_nodule` and `_segment`.

    Raises
    ------
    UnsuitableSeriesError
        It can't be read.
    """
    (path,) = paths
    try:
        ds = dcmread(path, stop_before_pixels=True)
        progress()
        sop_class = text(ds, "SOPClassUID")
        found = _segmentation(ds) if sop_class in SEGMENTATIONS else None
        if sop_class in REPORTS:
            found = _report(ds)
    except MALFORMED_FILE as error:
        raise _unreadable(error) from error
    return {
        "kind": "",
        "manufacturer": text(ds, "Manufacturer")[:_LONGEST],
        "references": [],
        "nodules": {},
        **(found or {}),
    }


def compare_masks(paths: Sequence[Path], progress: Progress) -> dict[str, dict[str, float]]:
    """Hold the masks of two SEG of one series against each other.

    Parameters
    ----------
    paths
        Ours and theirs.

    Returns
    -------
    dict
        By the tracking UIDs that both have: ``ours``, ``theirs`` and ``both``, voxels. A frame of one that
        lies on no grid plane of the other overlaps nothing.

    Raises
    ------
    UnsuitableSeriesError
        One can't be read, or the two lie on different grids: another matrix, spacing or orientation.
    """
    try:
        ours, theirs = (hd.seg.segread(path) for path in paths)
        progress()
        shared = {uid for uid in _by_uid(ours) if uid in _by_uid(theirs)}
        grid = _grid(ours, 0)
        first, second = _masks(ours, shared, grid), _masks(theirs, shared, grid)
        progress()
    except MALFORMED_FILE as error:
        raise _unreadable(error) from error
    return {
        uid: {
            "ours": _voxels(first[uid].values()),
            "theirs": _voxels(second[uid].values()),
            "both": _voxels(_common(first[uid], second[uid])),
        }
        for uid in sorted(shared)
    }


def _unreadable(error: BaseException) -> UnsuitableSeriesError:
    return UnsuitableSeriesError(ReasonCode.DECODE, f"The object can't be read ({type(error).__name__}).")


# segmentations


def _segmentation(ds: Dataset) -> dict[str, Any]:
    nodules: dict[str, dict[str, Any]] = {}
    images = _first_images(ds)
    for item in sequence(ds, "SegmentSequence")[:_MOST_GROUPS]:
        segment = number(item, "SegmentNumber")
        if not segment:
            continue
        uid = text(item, "TrackingUID") or derived_uid(text(ds, "SOPInstanceUID"), "segment", str(segment))
        kinds = sequence(item, "SegmentedPropertyTypeCodeSequence")
        name = text(item, "TrackingID") or text(item, "SegmentLabel")
        nodules[uid] = {
            "name": name[:_LONGEST],
            "is_nodule": bool(kinds) and text(kinds[0], "CodeValue") in _NODULES,
            "image": images.get(int(segment), ""),
        }
    apart = {"PerFrameFunctionalGroupsSequence", "SegmentSequence", "ReferencedSeriesSequence"}
    references = {
        str(element.value)
        for holder in ds
        if holder.VR == "SQ" and holder.keyword not in apart
        for item in holder.value
        for element in item.iterall()
        if element.keyword == "ReferencedSOPInstanceUID"
    }
    return {"kind": "seg", "nodules": nodules, "references": sorted(references)[:_MOST_GROUPS]}


def _first_images(ds: Dataset) -> dict[int, str]:
    """The source image of the first frame of each segment, where the frames say so."""
    found: dict[int, str] = {}
    for index in range(len(sequence(ds, "PerFrameFunctionalGroupsSequence"))):
        segment = number(frame_item(ds, index, "SegmentIdentificationSequence"), "ReferencedSegmentNumber")
        if segment is None or int(segment) in found:
            continue
        for item in sequence(frame_item(ds, index, "DerivationImageSequence"), "SourceImageSequence")[:1]:
            found[int(segment)] = text(item, "ReferencedSOPInstanceUID")
    return found


def _by_uid(seg: Any) -> dict[str, int]:
    return {
        text(item, "TrackingUID"): int(item.SegmentNumber)
        for item in sequence(seg, "SegmentSequence")
        if text(item, "TrackingUID")
    }


def _grid(seg: Any, index: int) -> tuple[float, ...]:
    """Matrix, orientation and spacing of a frame."""
    orientation = numbers(frame_item(seg, index, "PlaneOrientationSequence"), "ImageOrientationPatient")
    spacing = numbers(frame_item(seg, index, "PixelMeasuresSequence"), "PixelSpacing")
    if (len(orientation), len(spacing)) != (6, 2):
        raise ValueError("a frame without a grid")
    return (float(seg.Rows), float(seg.Columns), *orientation, *spacing)


def _place(seg: Any, index: int) -> Place:
    position = numbers(frame_item(seg, index, "PlanePositionSequence"), "ImagePositionPatient")
    if len(position) != 3:
        raise ValueError("a frame that lies nowhere")
    return position


def _masks(seg: Any, wanted: set[str], grid: tuple[float, ...]) -> dict[str, dict[Place, Bits]]:
    """The frames of each wanted segment by where they lie, empty ones left out."""
    names = {segment: uid for uid, segment in _by_uid(seg).items() if uid in wanted}
    found: dict[str, dict[Place, Bits]] = {uid: {} for uid in wanted}
    half = 0.5 * float(seg.get("MaximumFractionalValue") or 1)
    labels = seg.SOPClassUID == LABEL_MAP_STORAGE
    for index in range(int(seg.NumberOfFrames)):
        if not np.allclose(_grid(seg, index), grid, rtol=0.0, atol=1e-3):
            raise UnsuitableSeriesError(ReasonCode.MIXED_GEOMETRY, "The masks lie on another grid than ours.")
        if labels:
            stored = seg.get_stored_frame(index, as_index=True)
            bits = {uid: stored == segment for segment, uid in names.items()}
        else:
            item = frame_item(seg, index, "SegmentIdentificationSequence")
            segment = int(item.ReferencedSegmentNumber)
            if segment not in names:
                continue
            bits = {names[segment]: seg.get_stored_frame(index, as_index=True) >= half}
        for uid, mask in bits.items():
            if mask.any():
                found[uid][_place(seg, index)] = mask
    return found


def _common(first: dict[Place, Bits], second: dict[Place, Bits]) -> Iterator[Bits]:
    """What two masks share, plane by plane."""
    for place, bits in first.items():
        for other, theirs in second.items():
            if np.abs(np.subtract(place, other)).max() < _SAME_PLANE_MM:
                yield bits & theirs


def _voxels(planes: Iterable[Bits]) -> float:
    return float(sum(int(bits.sum()) for bits in planes))


# reports


def _report(ds: Dataset) -> dict[str, Any]:
    nodules: dict[str, dict[str, Any]] = {}
    for position, group in enumerate(_groups(ds, 0)):
        if position >= _MOST_GROUPS:
            break
        own = derived_uid(text(ds, "SOPInstanceUID"), "group", str(position))
        uid, nodule = _nodule(group, own)
        # our reports have two groups for each nodule, one with the values and one with a point
        known = nodules.setdefault(uid, nodule)
        known["values"] = nodule["values"] | known["values"]
        known["is_nodule"] = known["is_nodule"] or nodule["is_nodule"]
    observers = [text(item, "VerifyingObserverName") for item in sequence(ds, "VerifyingObserverSequence")]
    return {
        "kind": "sr",
        "verified": text(ds, "VerificationFlag") == "VERIFIED",
        "complete": text(ds, "CompletionFlag") == "COMPLETE",
        "observers": [name[:_LONGEST] for name in observers[:4] if name],
        "references": [
            text(reference, "ReferencedSOPInstanceUID")
            for study in sequence(ds, "PredecessorDocumentsSequence")
            for series in sequence(study, "ReferencedSeriesSequence")
            for reference in sequence(series, "ReferencedSOPSequence")
        ][:_MOST_GROUPS],
        "nodules": nodules,
    }


def _groups(item: Dataset, depth: int) -> Iterator[Dataset]:
    """Measurement groups, at whatever depth."""
    for child in sequence(item, "ContentSequence"):
        if _is(child, codes.MEASUREMENT_GROUP):
            yield child
        elif depth < _DEEPEST:
            yield from _groups(child, depth + 1)


def _nodule(group: Dataset, own_uid: str) -> tuple[str, dict[str, Any]]:
    """Tracking UID and what a group says: name, values, whether it is a nodule, and an image."""
    uid, name, kind, image = own_uid, "", None, ""
    values: dict[str, float | str] = {}
    for child in sequence(group, "ContentSequence"):
        if _is(child, codes.TRACKING_UID):
            uid = text(child, "UID") or own_uid
        elif _is(child, codes.TRACKING_IDENTIFIER):
            name = text(child, "TextValue")[:_LONGEST]
        elif _is(child, codes.FINDING):
            kind = _code(child, "ConceptCodeSequence")[0]
        elif _is(child, codes.ATTENUATION_TYPE):
            value = _code(child, "ConceptCodeSequence")[0]
            if value in _ATTENUATIONS:
                values["attenuation"] = _ATTENUATIONS[value]
        elif _is(child, _MALIGNANCY.concept):
            ranks = [rank.value for rank in _MALIGNANCY.ranks]
            value = _code(child, "ConceptCodeSequence")[0]
            if value in ranks:
                values["suspicion"] = 1 + ranks.index(value)
        else:
            values |= _measured(child)
        image = image or _image(child)
    # what names no finding may be one: the viewers that write no code are many
    return uid, {
        "name": name,
        "values": values,
        "is_nodule": kind is None or kind in _NODULES,
        "image": image,
    }


def _measured(child: Dataset) -> dict[str, float]:
    """A number that we also give, in our unit; nothing for others."""
    key = _NUMBERS.get(_code(child, "ConceptNameCodeSequence"))
    for item in sequence(child, "MeasuredValueSequence")[:1]:
        unit = _code(item, "MeasurementUnitsCodeSequence")[0]
        value = number(item, "NumericValue")
        if key is not None and value is not None and unit == _UNITS[key]:
            return {key: value / 100 if key == "malignancy" else value}
    return {}


def _image(item: Dataset) -> str:
    """The first image that a content item names, itself or below."""
    for holder in (item, *sequence(item, "ContentSequence")):
        for reference in sequence(holder, "ReferencedSOPSequence"):
            if "ReferencedSegmentNumber" not in reference:
                return text(reference, "ReferencedSOPInstanceUID")
    return ""


def _is(item: Dataset, concept: Code) -> bool:
    return _code(item, "ConceptNameCodeSequence") == (concept.value, concept.scheme_designator)


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    for code in sequence(item, keyword)[:1]:
        return text(code, "CodeValue"), text(code, "CodingSchemeDesignator")
    return "", ""
