"""Where the voxels of a segment lie in the patient, by one reader and by another."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

TOLERANCE_MM = 0.01
"""How far the centre of a voxel may lie from where the other reader puts it."""


@dataclass(frozen=True, slots=True)
class LabelImage:
    """Labels on a regular grid.

    Parameters
    ----------
    array
        (K, J, I), integers.
    affine
        (4, 4): from (i, j, k, 1) to LPS, mm.
    """

    array: NDArray[np.integer]
    affine: NDArray[np.float64]


def points_by_frames(seg: Dataset) -> dict[int, NDArray[np.float64]]:
    """Centres of the voxels of each segment, from the functional groups alone (PS3.3 C.7.6.2.1.1).

    Parameters
    ----------
    seg
        A BINARY segmentation with its pixel data.

    Returns
    -------
    dict
        Segment number -> (N, 3), LPS, mm.
    """
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    found: dict[int, list[NDArray[np.float64]]] = {
        int(item.SegmentNumber): [] for item in seg.SegmentSequence
    }
    for frame, own in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = int(_macro(own, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        corner = np.array(_macro(own, shared, "PlanePositionSequence").ImagePositionPatient, dtype=float)
        cosines = np.array(
            _macro(own, shared, "PlaneOrientationSequence").ImageOrientationPatient, dtype=float
        )
        row_mm, column_mm = map(float, _macro(own, shared, "PixelMeasuresSequence").PixelSpacing)
        rows, columns = np.nonzero(frame)
        found[number].append(
            corner + columns[:, None] * column_mm * cosines[:3] + rows[:, None] * row_mm * cosines[3:]
        )
    return {number: np.concatenate([np.empty((0, 3)), *parts]) for number, parts in found.items()}


def _macro(own: Dataset, shared: Dataset, keyword: str) -> Dataset:
    item: Dataset = (own if keyword in own else shared)[keyword].value[0]
    return item


def read_nrrd(path: Path) -> LabelImage:
    """Read what ``segimage2itkimage --outputType nrrd`` writes: gzip, little endian, LPS.

    Raises
    ------
    ValueError
        Another form of NRRD.
    """
    head, _, body = path.read_bytes().partition(b"\n\n")
    lines = [line for line in head.decode("ascii").splitlines()[1:] if not line.startswith("#")]
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    types = {
        "unsigned char": "u1",
        "short": "<i2",
        "unsigned short": "<u2",
        "int": "<i4",
        "unsigned int": "<u4",
    }
    if (
        fields.get("encoding") != "gzip"
        or fields.get("space") != "left-posterior-superior"
        or fields.get("type") not in types
    ):
        raise ValueError(f"{path.name}: not the form of NRRD that dcmqi writes")
    sizes = [int(size) for size in fields["sizes"].split()]
    affine = np.eye(4)
    affine[:3, :3] = np.array([_vector(text) for text in fields["space directions"].split(" ")]).T
    affine[:3, 3] = _vector(fields["space origin"])
    array = np.frombuffer(gzip.decompress(body), types[fields["type"]]).reshape(sizes[::-1])
    return LabelImage(array, affine)


def _vector(text: str) -> list[float]:
    return [float(number) for number in text.strip("()").split(",")]


def difference(
    points: NDArray[np.float64], labelled: NDArray[np.bool_], affine: NDArray[np.float64]
) -> str | None:
    """Say how a mask differs from the points that it should be.

    Parameters
    ----------
    points
        (N, 3), LPS, mm.
    labelled
        (K, J, I).
    affine
        (4, 4): from (i, j, k, 1) to LPS, mm.

    Returns
    -------
    str or None
        None where each point is the centre of a labelled voxel, within `TOLERANCE_MM`, and no other is one.
    """
    index = (np.linalg.inv(affine) @ np.c_[points, np.ones(len(points))].T).T[:, :3]
    nearest = np.rint(index).astype(int)
    off = (nearest - index) @ affine[:3, :3].T
    furthest = float(np.linalg.norm(off, axis=1).max(initial=0.0))
    if furthest > TOLERANCE_MM:
        return f"voxels lie up to {furthest:.3f} mm away"
    expected = {tuple(int(n) for n in voxel) for voxel in nearest}
    actual = {(int(i), int(j), int(k)) for k, j, i in zip(*np.nonzero(labelled), strict=True)}
    if expected == actual:
        return None
    return f"{len(expected - actual)} of {len(expected)} voxels missing, {len(actual - expected)} added"
