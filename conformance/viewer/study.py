"""What a viewer ought to show of a study, read from its files with pydicom alone.

Nothing of the code that wrote the results is used: frames are placed by their own position in space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import SegmentationStorage

Mask = NDArray[np.bool_]

_SAME_PLACE_MM = 0.01
_TRACKING_IDENTIFIER, _TRACKING_UID, _GROUP = "112039", "112040", "125007"
_LONG_AXIS, _COMMENT = "103339001", "121106"


class UnusableStudyError(Exception):
    """The files aren't a CT series with our SEG and SR; the text says why."""


@dataclass(frozen=True)
class Slice:
    """One CT image.

    Parameters
    ----------
    sop_uid, instance_number
        As in its header; the viewer shows the number.
    position
        Of the centre of its first pixel, mm, LPS.
    hu
        float32, (rows, columns).
    """

    sop_uid: str
    instance_number: int
    position: NDArray[np.float64]
    hu: NDArray[np.float32]


@dataclass
class Nodule:
    """One nodule as SEG and SR have it.

    Parameters
    ----------
    name
        Its Tracking Identifier, which is the label of its segment too.
    masks
        SOP Instance UID of a CT image to the mask on it.
    key_image
        SOP Instance UID of the image that the SR points at.
    point
        The SR's point, (column, row) by PS3.3 C.18.6: the centre of the first pixel is (0.5, 0.5).
    long_axis_mm
        As the SR says.
    comment
        The SR's comment at the point, which the viewer takes for its name; empty where there is none.
    drawn
        The same as `masks` for the nodule of a phantom as it was drawn; empty where nothing was.
    """

    name: str
    masks: dict[str, Mask] = field(default_factory=dict)
    key_image: str = ""
    point: tuple[float, float] = (0.0, 0.0)
    long_axis_mm: float = 0.0
    comment: str = ""
    drawn: dict[str, Mask] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A CT series and what was found in it.

    Parameters
    ----------
    uid
        Study Instance UID.
    slices
        In order along the normal of the image plane.
    row_direction, column_direction
        Image Orientation (Patient): along a row, along a column.
    spacing_mm
        Between rows, between columns.
    nodules
        In the order of the SEG's segments.
    """

    uid: str
    patient_name: str
    patient_id: str
    slices: tuple[Slice, ...]
    row_direction: NDArray[np.float64]
    column_direction: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    nodules: tuple[Nodule, ...]

    def index(self, sop_uid: str) -> int:
        """Place of an image in `slices`."""
        return next(n for n, image in enumerate(self.slices) if image.sop_uid == sop_uid)

    def listed_as(self) -> list[str]:
        """What a study list writes of it: the family name and the identifier, where it has them."""
        return [word for word in (self.patient_name.partition("^")[0], self.patient_id) if word]

    def mask(self, sop_uid: str) -> Mask:
        """All nodules on an image."""
        found = [nodule.masks[sop_uid] for nodule in self.nodules if sop_uid in nodule.masks]
        blank: Mask = np.zeros(self.slices[0].hu.shape, dtype=np.bool_)
        for mask in found:
            blank |= mask
        return blank

    def markers(self) -> tuple[str, str]:
        """Patient directions at the left and at the top edge of the picture (PS3.3 C.7.6.1.1.1)."""
        return _side(-self.row_direction), _side(-self.column_direction)


def read_study(ct: Sequence[Path], seg: Path, sr: Path) -> Study:
    """Read what is to be shown.

    Parameters
    ----------
    ct
        Single-frame images of one series.
    seg, sr
        The node's results on it.

    Raises
    ------
    UnusableStudyError
        The images aren't one series of one orientation, or a frame of the SEG lies on none of them.
    """
    images = [dcmread(path) for path in ct]
    first = images[0]
    if len({image.SeriesInstanceUID for image in images}) != 1:
        raise UnusableStudyError("the CT files are of several series")
    directions = np.array(first.ImageOrientationPatient, dtype=float)
    if any(
        not np.allclose(np.array(i.ImageOrientationPatient, float), directions, atol=1e-4) for i in images
    ):
        raise UnusableStudyError("the CT images have several orientations")
    normal = np.cross(directions[:3], directions[3:])
    slices = sorted(map(_slice, images), key=lambda image: float(image.position @ normal))
    return Study(
        uid=str(first.StudyInstanceUID),
        patient_name=str(first.get("PatientName") or ""),
        patient_id=str(first.get("PatientID") or ""),
        slices=tuple(slices),
        row_direction=directions[:3],
        column_direction=directions[3:],
        spacing_mm=(float(first.PixelSpacing[0]), float(first.PixelSpacing[1])),
        nodules=_nodules(dcmread(seg), dcmread(sr), slices),
    )


def _slice(image: Dataset) -> Slice:
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    position = np.array(image.ImagePositionPatient, dtype=float)
    return Slice(str(image.SOPInstanceUID), int(image.InstanceNumber), position, hu.astype(np.float32))


def _nodules(seg: Dataset, sr: Dataset, slices: Sequence[Slice]) -> tuple[Nodule, ...]:
    if seg.SOPClassUID != SegmentationStorage:
        raise UnusableStudyError(f"not a Segmentation but {seg.SOPClassUID.name}")
    nodules = {
        int(item.SegmentNumber): (str(item.TrackingUID), Nodule(str(item.SegmentLabel)))
        for item in seg.SegmentSequence
    }
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for mask, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        near = [s for s in slices if np.abs(s.position - position).max() < _SAME_PLACE_MM]
        if len(near) != 1:
            raise UnusableStudyError(f"a frame at {position} lies on {len(near)} images")
        if mask.any():
            number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            nodules[number][1].masks[near[0].sop_uid] = mask.astype(np.bool_)
    by_uid = dict(nodules.values())
    for group in _groups(sr):
        nodule = by_uid[_child(group, _TRACKING_UID).UID]
        _take(nodule, group)
    missing = [nodule.name for _, nodule in nodules.values() if not nodule.key_image]
    if missing:
        raise UnusableStudyError(f"the SR has no point for {', '.join(missing)}")
    return tuple(nodules[number][1] for number in sorted(nodules))


def _take(nodule: Nodule, group: Dataset) -> None:
    """Put what one measurement group says into its nodule."""
    name = str(_child(group, _TRACKING_IDENTIFIER).TextValue)
    if name != nodule.name:
        raise UnusableStudyError(f"{nodule.name} of the SEG is {name} in the SR")
    for item in group.ContentSequence:
        concept = item.ConceptNameCodeSequence[0].get("CodeValue")
        if item.ValueType == "SCOORD":
            column, row = item.GraphicData
            nodule.point = (float(column), float(row))
            nodule.key_image = str(item.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        elif item.ValueType == "NUM" and concept == _LONG_AXIS:
            nodule.long_axis_mm = float(item.MeasuredValueSequence[0].NumericValue)
        elif item.ValueType == "TEXT" and concept == _COMMENT:
            nodule.comment = str(item.TextValue)


def _groups(sr: Dataset) -> Iterator[Dataset]:
    for container in sr.ContentSequence:
        for item in container.get("ContentSequence", []):
            if "ConceptNameCodeSequence" in item and item.ConceptNameCodeSequence[0].CodeValue == _GROUP:
                yield item


def _child(group: Dataset, code: str) -> Dataset:
    found: Dataset = next(
        item for item in group.ContentSequence if item.ConceptNameCodeSequence[0].get("CodeValue") == code
    )
    return found


def _side(direction: NDArray[np.float64]) -> str:
    """Main patient direction of a vector; the coordinates grow to left, posterior, head."""
    axis = int(np.abs(direction).argmax())
    return ("RL", "AP", "FH")[axis][int(direction[axis] > 0)]
