"""Reading by the two Python libraries: pydicom with its strictest checks, highdicom with its own meaning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom import DataElement, config, dcmread
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from pacs_node.validators.subjects import CT, LABELMAP, OTHER, PDF, SC, SEG, SR, Subject
from pacs_node.validators.tool import Tool
from pacs_node.validators.voxels import difference, points_by_frames

#: What the libraries raise about an object that they can't read, warnings made errors included.
_COMPLAINTS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    IndexError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    Warning,
)


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _saying(read: Callable[[Path], list[str]]) -> Callable[[Sequence[Subject]], list[str]]:
    """Make a check of a reader: what it raises or warns about is its complaint."""

    def check(subjects: Sequence[Subject]) -> list[str]:
        try:
            with _warnings_are_errors():
                return read(subjects[0].path)
        except _COMPLAINTS as error:
            return [f"{type(error).__name__}: {' '.join(str(error).split())}"]

    return check


def _read_by_pydicom(path: Path) -> list[str]:
    """Hold every value of every sequence against the rules of its VR (PS3.5 6.2).

    Strict reading alone looks at some VRs only; the others are validated as for writing.
    """
    with config.strict_reading():
        return [
            f"{element.tag} {element.keyword}: {error}"
            for element in dcmread(path).iterall()
            if element.VR != "SQ"
            for error in _errors(element)
        ]


def _errors(element: DataElement) -> Iterator[str]:
    values = element.value if isinstance(element.value, MultiValue | list) else [element.value]
    for value in values:
        if value is None:  # an empty number
            continue
        try:
            as_text = element.VR in {"DS", "IS", "PN"}
            validate_value(element.VR, str(value) if as_text else value, config.RAISE)
        except ValueError as error:
            yield str(error)


def _read_by_highdicom(path: Path) -> list[str]:
    header = dcmread(path, stop_before_pixels=True)
    reader = _READERS[str(header.SOPClassUID).removeprefix("1.2.840.10008.5.1.4.1.1.").partition(".")[0]]
    return reader(path)


def _segmentation(path: Path) -> list[str]:
    """Compare the voxels of each segment, as highdicom arranges them, with the frames of the object."""
    seg = hd.seg.segread(path)
    labelmap = seg.segmentation_type == hd.seg.SegmentationTypeValues.LABELMAP
    expected = {} if labelmap else points_by_frames(dcmread(path))
    said = []
    for number in seg.segment_numbers:
        volume = seg.get_volume(segment_numbers=[number], combine_segments=False)
        mask = volume.array[..., 0] > 0
        if not mask.any():
            said.append(f"segment {number} is empty")
        elif not labelmap:
            # highdicom's affine takes indices in the order of its array: slice, row, column
            swapped = volume.affine[:, [2, 1, 0, 3]]
            answer = difference(expected[number], mask, swapped)
            said += [] if answer is None else [f"segment {number}: {answer}"]
    return said


def _report(path: Path) -> list[str]:
    """Count the groups by template and match each segment's tracking UID with a point of the same UID."""
    content = hd.sr.srread(path).content
    if not isinstance(content, hd.sr.MeasurementReport):
        return []  # another template: read, nothing more to compare
    volumetric = content.get_volumetric_roi_measurement_groups()
    planar = content.get_planar_roi_measurement_groups()
    tracked = {str(group.tracking_uid or "") for group in volumetric}
    located = {str(group.tracking_uid or "") for group in planar}
    if "" in tracked | located:
        return ["a measurement group has no tracking UID"]
    return [f"no point for tracking UID {uid}" for uid in sorted(tracked - located)]


def _image(path: Path) -> list[str]:
    pixels = hd.imread(path).get_frames(apply_icc_profile=False)
    return [] if np.ptp(pixels) else ["every pixel of the image has the same value"]


_READERS = {"66": _segmentation, "88": _report, "7": _image}


def _is_installed() -> None:
    return None


TOOLS = (
    Tool(
        "pydicom strict",
        "every value by its VR",
        "a dependency of the node",
        (SEG, LABELMAP, SR, SC, PDF, CT, OTHER),
        _is_installed,
        _saying(_read_by_pydicom),
        in_process=True,
    ),
    Tool(
        "highdicom",
        "segments voxel for voxel, groups and points of a report",
        "a dependency of the node",
        (SEG, LABELMAP, SR, SC),
        _is_installed,
        _saying(_read_by_highdicom),
        in_process=True,
    ),
)
