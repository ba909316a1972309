"""Does a series form one regular grid, and which? Judged from headers alone, before any pixel is read.

Two steps: `read_planes` turns single-frame and enhanced multi-frame headers into the same `Plane` list,
`judge_geometry` turns that list into a `Grid` or says why not. Slices are ordered by position along their
normal (PS3.3 C.7.6.2.1.1); Instance Number and file names are never used.

Tolerances. Scanners and exporters round Image Position (Patient): 0.01 mm is usual, one decimal (an error up
to 0.05 mm for a slice, so 0.1 mm for a distance) is seen. `POSITION_TOLERANCE_MM` accepts that; for slices
more than 1 mm apart a tenth of the spacing is accepted. That is far below the half spacing that would confuse
a missing or doubled slice with jitter. highdicom's ``get_volume_from_series`` is stricter (it refuses 0.05 mm
unless told otherwise), so it isn't used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.headers import (
    MALFORMED_VALUE,
    count_patients,
    frame_item,
    is_multiframe,
    number,
    numbers,
    patient,
    sequence,
    text,
)
from inference.types import SourceFrame

POSITION_TOLERANCE_MM = 0.1
"""Greatest distance of a slice from its place on the regular grid (or a tenth of the spacing, if more)."""
DUPLICATE_MM = 0.05
"""Slices nearer than this (or a tenth of the usual spacing, if more) lie at one position."""
ORIENTATION_TOLERANCE = 1e-3
"""Greatest difference of a direction cosine within a series (0.06 degrees)."""
SPACING_TOLERANCE = 5e-4
"""Greatest relative difference of Pixel Spacing within a series (0.25 mm over 500 mm)."""
TILT_LIMIT_DEGREES = 0.2
"""Greatest angle between the stacking direction and the slice normal (1 mm over 300 mm)."""
AXIAL_LIMIT = 0.9
"""Smallest |normal . z| of an axial series."""
THICKNESS_LIMIT_MM = 5.0
"""Greatest slice thickness and spacing."""
MIN_SLICES = 50
MIN_EXTENT_MM = 150.0
FEW_SLICES = 10
"""Below this the spacing can't be judged, so the count is the reason given."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One slice as its header describes it.

    Parameters
    ----------
    source
        The image, and the frame of a multi-frame image.
    position
        Image Position (Patient), mm, shape (3,).
    row, column
        Direction cosines along a row and along a column, shape (3,) each.
    pixel_spacing_mm
        Distance between rows, distance between columns.
    thickness_mm
        Slice Thickness, None where absent or zero.
    matrix
        Rows, columns.
    """

    source: SourceFrame
    position: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    pixel_spacing_mm: tuple[float, float]
    thickness_mm: float | None
    matrix: tuple[int, int]
    frame_of_reference_uid: str

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector of row x column."""
        cross = np.cross(self.row, self.column)
        return np.asarray(cross / np.linalg.norm(cross))


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid of slices.

    Parameters
    ----------
    affine_index_to_lps
        Shape (4, 4), float64, mm: maps the array index ``[z, y, x, 1]`` of a voxel centre to LPS.
    shape
        Slices, rows, columns.
    frames
        Source of each slice, in rising order of position along the slice normal.
    spacing_mm
        Distance of neighbouring voxel centres along (z, y, x).
    thickness_mm
        Greatest Slice Thickness of the series, None where absent.
    frame_of_reference_uid
        Frame of reference of the affine.
    """

    affine_index_to_lps: NDArray[np.float64]
    shape: tuple[int, int, int]
    frames: tuple[SourceFrame, ...]
    spacing_mm: tuple[float, float, float]
    thickness_mm: float | None
    frame_of_reference_uid: str

    @property
    def extent_mm(self) -> float:
        """Length covered along the slice normal: number of slices times their distance."""
        return self.shape[0] * self.spacing_mm[0]


def judge_geometry(headers: Sequence[Dataset]) -> Grid:
    """Find the regular grid of a series.

    The checks run so that the reason that helps most comes first: what the images are (patient, orientation,
    thickness), then what is wrong with the stack (duplicate, tilt, gap), then its size. With fewer than
    `FEW_SLICES` slices their number is the reason.

    Parameters
    ----------
    headers
        All images of one series in any order; the same image twice counts once.

    Returns
    -------
    Grid
        Independent of the order of `headers`.

    Raises
    ------
    UnsuitableSeriesError
        MIXED_PATIENT, CONFLICT, NO_GEOMETRY, MIXED_GEOMETRY, NOT_AXIAL, TOO_FEW_SLICES, TOO_THICK, DUPLICATE,
        TILT, GAP or TOO_SHORT, with the measured value and the limit.
    """
    images = distinct_images(headers)
    _check_one_patient(images)
    planes = read_planes(images)
    if not planes:
        raise UnsuitableSeriesError(ReasonCode.NO_GEOMETRY, "The series has no images.")
    _check_one_geometry(planes)
    normal = planes[0].normal
    _check_axial(normal)
    if len(planes) < FEW_SLICES:
        raise _too_few(len(planes))
    thickness = max((p.thickness_mm for p in planes if p.thickness_mm is not None), default=None)
    if thickness is not None and thickness > THICKNESS_LIMIT_MM + 0.01:
        raise _too_thick("The slices are", thickness)
    planes = sorted(planes, key=lambda plane: float(plane.position @ normal))
    _check_stack(planes, images)
    grid = _grid(planes, thickness)
    _check_size(grid)
    return grid


def has_no_gaps(headers: Sequence[Dataset]) -> bool:
    """Whether at least two slices are there and none is missing between them.

    A sign, not a proof, that a series is complete: slices may still be missing at either end. Reads position
    and orientation only. Never raises; unreadable geometry is False.
    """
    try:
        planes = read_planes(distinct_images(headers))
        if len(planes) < 2:
            return False
        along = np.sort([float(plane.position @ planes[0].normal) for plane in planes])
    except UnsuitableSeriesError:
        return False
    steps = np.diff(along)
    steps = steps[steps > DUPLICATE_MM]
    return bool(len(steps)) and bool(np.all(np.abs(steps - np.median(steps)) <= _tolerance(np.median(steps))))


def distinct_images(headers: Sequence[Dataset]) -> list[Dataset]:
    """Drop repeated images and sort by SOP Instance UID, so that the input order can't matter.

    Raises
    ------
    UnsuitableSeriesError
        CONFLICT where two headers share a SOP Instance UID but not their content; NO_GEOMETRY where an image
        has no SOP Instance UID.
    """
    found: dict[str, Dataset] = {}
    for header in headers:
        uid = text(header, "SOPInstanceUID")
        if not uid:
            raise UnsuitableSeriesError(ReasonCode.NO_GEOMETRY, "An image has no SOP Instance UID.")
        if uid in found and not _same_header(found[uid], header):
            raise UnsuitableSeriesError(
                ReasonCode.CONFLICT,
                "Two images with the same SOP Instance UID have different content.",
            )
        found.setdefault(uid, header)
    return [found[uid] for uid in sorted(found)]


def read_planes(headers: Sequence[Dataset]) -> list[Plane]:
    """Describe every slice: one for a single-frame image, one for each frame of a multi-frame image.

    Raises
    ------
    UnsuitableSeriesError
        NO_GEOMETRY where position, orientation, spacing, matrix or frame of reference is missing or
        malformed; MIXED_GEOMETRY where a multi-frame image isn't alone in its series.
    """
    if len(headers) > 1 and any(is_multiframe(header) for header in headers):
        raise UnsuitableSeriesError(
            ReasonCode.MIXED_GEOMETRY,
            f"The series holds {len(headers)} objects of which at least one is multi-frame; "
            "a multi-frame image must be alone in its series.",
        )
    planes: list[Plane] = []
    for header in headers:
        if not is_multiframe(header):
            planes.append(_plane(header, None))
            continue
        count = number(header, "NumberOfFrames")
        described = sequence(header, "PerFrameFunctionalGroupsSequence")
        if count is None or count != len(described) or not described:
            raise _no_geometry(
                f"the image has {int(count or 0)} frames but describes the position of {len(described)}"
            )
        planes += [_plane(header, index) for index in range(len(described))]
    return planes


def _plane(header: Dataset, index: int | None) -> Plane:
    position = numbers(frame_item(header, index, "PlanePositionSequence"), "ImagePositionPatient")
    orientation = numbers(frame_item(header, index, "PlaneOrientationSequence"), "ImageOrientationPatient")
    measures = frame_item(header, index, "PixelMeasuresSequence")
    spacing = numbers(measures, "PixelSpacing")
    matrix = (number(header, "Rows"), number(header, "Columns"))
    frame_of_reference = text(header, "FrameOfReferenceUID")
    wrong = [
        name
        for name, good in (
            ("Image Position (Patient)", len(position) == 3),
            ("Image Orientation (Patient)", _is_orientation(orientation)),
            ("Pixel Spacing", len(spacing) == 2 and min(spacing, default=0) > 0),
            ("Rows and Columns", all(side is not None and side > 0 for side in matrix)),
            ("Frame of Reference UID", bool(frame_of_reference)),
        )
        if not good
    ]
    if wrong:
        raise _no_geometry(f"{', '.join(wrong)} missing or malformed")
    thickness = number(measures, "SliceThickness")
    return Plane(
        SourceFrame(
            text(header, "SOPClassUID"), text(header, "SOPInstanceUID"), None if index is None else index + 1
        ),
        np.array(position),
        np.array(orientation[:3]),
        np.array(orientation[3:]),
        (spacing[0], spacing[1]),
        thickness if thickness is not None and thickness > 0 else None,
        (int(matrix[0] or 0), int(matrix[1] or 0)),
        frame_of_reference,
    )


def _is_orientation(values: tuple[float, ...]) -> bool:
    if len(values) != 6:
        return False
    row, column = np.array(values[:3]), np.array(values[3:])
    lengths = abs(np.linalg.norm(row) - 1), abs(np.linalg.norm(column) - 1)
    return bool(max(lengths) < 0.01 and abs(row @ column) < 0.01)


def _same_header(one: Dataset, other: Dataset) -> bool:
    try:
        return one is other or bool(one == other)
    except MALFORMED_VALUE:
        return False


def _check_one_patient(images: Sequence[Dataset]) -> None:
    found = {
        "patients": count_patients({patient(image) for image in images}),
        "studies": len({text(image, "StudyInstanceUID") for image in images}),
    }
    for plural, count in found.items():
        if count > 1:
            raise UnsuitableSeriesError(
                ReasonCode.MIXED_PATIENT, f"The images of the series belong to {count} different {plural}."
            )


def _check_one_geometry(planes: Sequence[Plane]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        turned = max(
            float(np.abs(plane.row - first.row).max()), float(np.abs(plane.column - first.column).max())
        )
        scaled = max(
            abs(a / b - 1) for a, b in zip(plane.pixel_spacing_mm, first.pixel_spacing_mm, strict=True)
        )
        if plane.frame_of_reference_uid != first.frame_of_reference_uid:
            what = "more than one frame of reference"
        elif plane.matrix != first.matrix:
            what = f"matrices of {_by(first.matrix)} and {_by(plane.matrix)}"
        elif turned > ORIENTATION_TOLERANCE:
            what = (
                f"slices of different orientation (direction cosines differ by {turned:.4f}, "
                f"limit {ORIENTATION_TOLERANCE})"
            )
        elif scaled > SPACING_TOLERANCE:
            what = f"pixel spacings of {_by(first.pixel_spacing_mm)} mm and {_by(plane.pixel_spacing_mm)} mm"
        else:
            continue
        raise UnsuitableSeriesError(ReasonCode.MIXED_GEOMETRY, f"The series holds {what}.")


def _check_axial(normal: NDArray[np.float64]) -> None:
    upright = abs(float(normal[2]))
    if upright < AXIAL_LIMIT:
        raise UnsuitableSeriesError(
            ReasonCode.NOT_AXIAL,
            f"The slices aren't axial: |normal . z| is {upright:.2f}, at least {AXIAL_LIMIT} is needed.",
        )


def _check_stack(planes: Sequence[Plane], images: Sequence[Dataset]) -> None:
    """Refuse duplicates, tilt and gaps in slices sorted along their normal."""
    normal = planes[0].normal
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    steps = np.diff(along)
    usual = float(np.median(steps))
    near = max(DUPLICATE_MM, 0.1 * usual)
    repeated = np.flatnonzero(steps < near)
    if len(repeated):
        raise UnsuitableSeriesError(
            ReasonCode.DUPLICATE,
            f"{len(repeated)} pair(s) of neighbouring slices share a position, the first at "
            f"{along[repeated[0]]:.2f} mm along the slice normal ({steps[repeated[0]]:.3f} mm apart).",
        )
    _check_tilt(positions, normal, images)
    odd = np.flatnonzero(np.abs(steps - usual) > _tolerance(usual))
    if len(odd):
        i = int(odd[np.argmax(np.abs(steps[odd] - usual))])
        missing = round(float(steps[i] / usual)) - 1
        raise UnsuitableSeriesError(
            ReasonCode.GAP,
            f"The slices aren't evenly spaced: from {along[i]:.2f} mm to {along[i + 1]:.2f} mm along the "
            f"slice normal is {steps[i]:.2f} mm, where {usual:.2f} mm is usual"
            + (f" (about {missing} missing)." if missing > 0 else "."),
        )
    line = np.linspace(along[0], along[-1], len(along))
    drift = float(np.abs(along - line).max())
    if drift > _tolerance(usual):
        raise UnsuitableSeriesError(
            ReasonCode.GAP,
            f"The slices aren't evenly spaced: one lies {drift:.2f} mm from its place on a regular grid, "
            f"limit {_tolerance(usual):.2f} mm.",
        )


def _check_tilt(
    positions: NDArray[np.float64], normal: NDArray[np.float64], images: Sequence[Dataset]
) -> None:
    whole = positions[-1] - positions[0]
    sideways = float(np.linalg.norm(whole - (whole @ normal) * normal))
    angle = math.degrees(math.atan2(sideways, float(whole @ normal)))
    named = max((abs(number(image, "GantryDetectorTilt") or 0.0) for image in images), default=0.0)
    shown = math.degrees(math.acos(min(1.0, abs(float(normal[2])))))
    if angle > TILT_LIMIT_DEGREES:
        raise UnsuitableSeriesError(
            ReasonCode.TILT,
            f"The stack is sheared by {angle:.1f} degrees (gantry tilt), limit {TILT_LIMIT_DEGREES} degrees.",
        )
    if named > TILT_LIMIT_DEGREES and shown < named / 2:
        raise UnsuitableSeriesError(
            ReasonCode.TILT,
            f"The header names a gantry tilt of {named:.1f} degrees that the image orientation "
            f"({shown:.1f} degrees) doesn't show; the geometry can't be trusted.",
        )
    line = positions[0] + np.linspace(0, 1, len(positions))[:, None] * whole
    offset = (positions - line) - ((positions - line) @ normal)[:, None] * normal
    shift = float(np.linalg.norm(offset, axis=1).max())
    if shift > POSITION_TOLERANCE_MM + 1e-6:
        raise UnsuitableSeriesError(
            ReasonCode.TILT,
            f"A slice is shifted sideways by {shift:.2f} mm against the others, "
            f"limit {POSITION_TOLERANCE_MM} mm.",
        )


def _check_size(grid: Grid) -> None:
    if grid.spacing_mm[0] > THICKNESS_LIMIT_MM + 0.01:
        raise _too_thick("The distance between slices is", grid.spacing_mm[0])
    if grid.shape[0] < MIN_SLICES:
        raise _too_few(grid.shape[0])
    if grid.extent_mm < MIN_EXTENT_MM - 0.01:
        raise UnsuitableSeriesError(
            ReasonCode.TOO_SHORT,
            f"The slices cover {grid.extent_mm:.0f} mm, at least {MIN_EXTENT_MM:.0f} mm are needed.",
        )


def _grid(planes: Sequence[Plane], thickness: float | None) -> Grid:
    first, last = planes[0], planes[-1]
    affine = np.eye(4)
    affine[:3, 0] = (last.position - first.position) / (len(planes) - 1)
    affine[:3, 1] = first.column * first.pixel_spacing_mm[0]
    affine[:3, 2] = first.row * first.pixel_spacing_mm[1]
    affine[:3, 3] = first.position
    between, rows, columns = np.linalg.norm(affine[:3, :3], axis=0)
    return Grid(
        affine,
        (len(planes), *first.matrix),
        tuple(plane.source for plane in planes),
        (float(between), float(rows), float(columns)),
        thickness,
        first.frame_of_reference_uid,
    )


def _tolerance(spacing: float) -> float:
    # The last term keeps binary rounding from refusing a position that is off by exactly the limit.
    return max(POSITION_TOLERANCE_MM, 0.1 * spacing) + 1e-6


def _by(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g} x {pair[1]:g}"


def _no_geometry(what: str) -> UnsuitableSeriesError:
    return UnsuitableSeriesError(ReasonCode.NO_GEOMETRY, f"The position of the slices isn't known: {what}.")


def _too_few(count: int) -> UnsuitableSeriesError:
    return UnsuitableSeriesError(
        ReasonCode.TOO_FEW_SLICES,
        f"The series has {count} slice{'s' * (count != 1)}, at least {MIN_SLICES} are needed.",
    )


def _too_thick(what: str, value: float) -> UnsuitableSeriesError:
    return UnsuitableSeriesError(
        ReasonCode.TOO_THICK, f"{what} {value:.2f} mm, at most {THICKNESS_LIMIT_MM:.1f} mm is accepted."
    )
