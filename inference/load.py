"""DICOM files to one `Volume` in Hounsfield units.

Headers are read and judged first; then the files are read again one by one, and each decoded slice goes into
its place of one array allocated beforehand, so that memory holds the volume and one file, never the series
twice.

The array is int16 (float32 only where a rescale isn't in whole numbers). Rescaling is done in 32 bits
and clipped before it is narrowed: -1000 stored as an unsigned 64536 never comes out as a bright voxel by
wrapping, and never the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from inference.decode import MALFORMED_FILE, decode_frames, read_file
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.geometry import Grid, distinct_images, judge_geometry
from inference.headers import frame_item, is_multiframe, number, text
from inference.select import judge_series
from inference.types import Volume

AIR_HU = -1024
"""What padding becomes."""
LARGEST_VOLUME = 2**30
"""Voxels; 2 GiB as int16, twice the 2000 slices of 512 x 512 of a long thin-slice scan."""
MAX_DEPTH = 64
"""Sequences within sequences; DCMTK reads as many."""
LUNG_AIR_HU = -800
SOFT_TISSUE_HU = (-100, 200)
LEAST_FRACTION = 0.01
"""Least part of the voxels that must be air, and soft tissue, for values to be HU of a chest."""

_HU_TYPES = ("", "HU", "US")


@dataclass(frozen=True, slots=True)
class LoadedSeries:
    """A volume and where it came from.

    Parameters
    ----------
    volume
        HU with geometry.
    headers
        Source Datasets without Pixel Data, one for each slice in slice order, or the one of a multi-frame
        image. All other readable attributes are kept.
    """

    volume: Volume
    headers: tuple[Dataset, ...]


@dataclass(frozen=True, slots=True)
class _Rescale:
    """Stored values to HU for one slice (PS3.3 C.11.1), and which stored values are padding (C.7.5.1.1.2)."""

    slope: float
    intercept: float
    padding: tuple[int, int] | None

    @property
    def is_whole(self) -> bool:
        return self.slope.is_integer() and self.intercept.is_integer()


def read_header(path: Path) -> Dataset:
    """Read a file without its pixels.

    Elements whose value can't be parsed are left out, so that reading an element later never raises.

    Raises
    ------
    UnsuitableSeriesError
        NOT_AN_IMAGE for what isn't DICOM or names no SOP Class and Instance, DECODE for what can't be read.
    """
    header = read_file(path, pixels=False)
    _drop_unreadable(header)
    _drop_unreadable(getattr(header, "file_meta", Dataset()))
    if not text(header, "SOPClassUID") or not text(header, "SOPInstanceUID"):
        raise UnsuitableSeriesError(
            ReasonCode.NOT_AN_IMAGE, "A file has no SOP Class UID or no SOP Instance UID."
        )
    return header


@dataclass(frozen=True, slots=True)
class SeriesPlan:
    """What the headers of a series say about its voxels; no pixel has been read.

    Parameters
    ----------
    grid
        Geometry.
    headers
        SOP Instance UID -> header.
    files
        SOP Instance UID -> its files; more than one where an image came more than once.
    rescales
        (SOP Instance UID, frame number or None) -> how its stored values become HU.
    """

    grid: Grid
    headers: dict[str, Dataset]
    files: dict[str, list[Path]]
    rescales: dict[tuple[str, int | None], _Rescale]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the HU: int16, or float32 where a rescale isn't in whole numbers."""
        whole = all(rescale.is_whole for rescale in self.rescales.values())
        return np.dtype(np.int16 if whole else np.float32)

    @property
    def nbytes(self) -> int:
        """Of all voxels."""
        return int(np.prod(self.grid.shape, dtype=np.int64)) * self.dtype.itemsize


def plan_series(files: Sequence[Path], read: Callable[[], None] = lambda: None) -> SeriesPlan:
    """Read and judge the headers of one series.

    Parameters
    ----------
    files
        All files of the series in any order. The same image twice counts once.
    read
        Called after each file.

    Raises
    ------
    UnsuitableSeriesError
        Whatever `inference.select.judge_series` refuses; HU_RANGE where a rescale makes no HU; DECODE for a
        volume of more than `LARGEST_VOLUME` voxels.
    """
    headers = []
    paths: dict[str, list[Path]] = {}
    for path in files:
        headers.append(read_header(path))
        paths.setdefault(text(headers[-1], "SOPInstanceUID"), []).append(path)
        read()
    images = distinct_images(headers)
    verdict = judge_series(images)
    if verdict.code is not None:
        raise UnsuitableSeriesError(verdict.code, verdict.sentence)
    grid = judge_geometry(images)
    if int(np.prod(grid.shape, dtype=np.int64)) > LARGEST_VOLUME:
        raise UnsuitableSeriesError(
            ReasonCode.DECODE, f"The volume {grid.shape} is larger than {LARGEST_VOLUME} voxels."
        )
    by_uid = {text(header, "SOPInstanceUID"): header for header in images}
    places = [(frame.sop_instance_uid, frame.frame_number) for frame in grid.frames]
    rescales = {(uid, n): _read_rescale(by_uid[uid], None if n is None else n - 1) for uid, n in places}
    return SeriesPlan(grid, by_uid, paths, rescales)


def decode_slices(plan: SeriesPlan) -> Iterator[tuple[int, NDArray[Any]]]:
    """Decode every file once.

    Yields
    ------
    int, ndarray
        Index of the slice in the volume, and its HU, shape (rows, columns), `SeriesPlan.dtype`.

    Raises
    ------
    UnsuitableSeriesError
        DECODE where pixels can't be decoded or don't fit their header; CONFLICT where one SOP Instance UID
        names two different images.
    """
    grid, dtype = plan.grid, plan.dtype
    place = {(frame.sop_instance_uid, frame.frame_number): z for z, frame in enumerate(grid.frames)}
    for uid, copies in plan.files.items():
        multiframe = is_multiframe(plan.headers[uid])
        for index, stored in enumerate(_decode_one(copies)):
            key = (uid, index + 1 if multiframe else None)
            if key not in place or stored.shape != grid.shape[1:]:
                raise UnsuitableSeriesError(
                    ReasonCode.DECODE, "The pixel data don't fit their header (frames, rows or columns)."
                )
            yield place.pop(key), _to_hu(stored, plan.rescales[key], dtype)
    if place:
        raise UnsuitableSeriesError(ReasonCode.DECODE, f"{len(place)} slices have no pixel data.")


def assemble(plan: SeriesPlan, array: NDArray[Any]) -> LoadedSeries:
    """Make the volume of a plan and the HU of all its slices.

    Raises
    ------
    UnsuitableSeriesError
        HU_RANGE where the values aren't HU of a chest.
    """
    _check_hu(array)
    grid = plan.grid
    uids = dict.fromkeys(frame.sop_instance_uid for frame in grid.frames)
    headers = tuple(plan.headers[uid] for uid in uids)
    volume = Volume(
        array,
        grid.affine_index_to_lps,
        grid.frame_of_reference_uid,
        text(headers[0], "StudyInstanceUID"),
        text(headers[0], "SeriesInstanceUID"),
        grid.frames,
        grid.thickness_mm,
    )
    return LoadedSeries(volume, headers)


def load_series(files: Sequence[Path]) -> LoadedSeries:
    """Load one series in this process: `plan_series`, `decode_slices`, `assemble`.

    Parameters
    ----------
    files
        All files of the series in any order. The same image twice counts once.

    Returns
    -------
    LoadedSeries
        The same for every order and repetition of `files`.

    Raises
    ------
    UnsuitableSeriesError
        See the three steps.
    """
    plan = plan_series(files)
    array = np.empty(plan.grid.shape, dtype=plan.dtype)
    for z, hu in decode_slices(plan):
        array[z] = hu
    return assemble(plan, array)


def _drop_unreadable(ds: Dataset, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise UnsuitableSeriesError(
            ReasonCode.DECODE, f"A file has sequences nested more than {MAX_DEPTH} deep."
        )
    for tag in list(ds.keys()):
        try:
            element = ds[tag]
        except MALFORMED_FILE:
            del ds[tag]
            continue
        if element.VR == "SQ":
            for item in element.value:
                _drop_unreadable(item, depth + 1)


def _decode_one(copies: Sequence[Path]) -> Iterator[NDArray[Any]]:
    """Frames of an image; where it came more than once, of its first file after comparing all."""
    first = read_file(copies[0], pixels=True)
    for other in copies[1:]:
        again = read_file(other, pixels=True)
        pairs = zip(decode_frames(first), decode_frames(again), strict=True)
        if not all(np.array_equal(one, two) for one, two in pairs):
            raise UnsuitableSeriesError(
                ReasonCode.CONFLICT, "Two images with the same SOP Instance UID have different pixels."
            )
    return decode_frames(first)


def _read_rescale(header: Dataset, frame_index: int | None) -> _Rescale:
    holder = frame_item(header, frame_index, "PixelValueTransformationSequence")
    kind = text(holder, "RescaleType").upper()
    if kind not in _HU_TYPES:
        raise UnsuitableSeriesError(
            ReasonCode.HU_RANGE, f"The values are of Rescale Type {kind[:16]}, not Hounsfield units."
        )
    if "ModalityLUTSequence" in holder:
        raise UnsuitableSeriesError(
            ReasonCode.HU_RANGE, "The values go through a Modality LUT, not a rescale to Hounsfield units."
        )
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    given = [
        (value, limit)
        for keyword, value, limit in (("RescaleSlope", slope, 1e4), ("RescaleIntercept", intercept, 1e6))
        if keyword in holder
    ]
    if slope == 0 or any(value is None or abs(value) > limit for value, limit in given):
        raise UnsuitableSeriesError(
            ReasonCode.HU_RANGE, "Rescale Slope or Intercept is malformed, zero or absurdly large."
        )
    # Absent altogether: the values may still be HU (some converters leave it out); `_check_hu` decides.
    return _Rescale(
        1.0 if slope is None else slope, 0.0 if intercept is None else intercept, _padding(header)
    )


def _padding(header: Dataset) -> tuple[int, int] | None:
    """Inclusive range of stored values that are padding.

    The value is written as US by some devices whose pixels are signed (63536 for -2000), so its 16 bits are
    read again with the sign of the pixels.
    """
    value = number(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(header, "PixelPaddingRangeLimit")
    bits = int(number(header, "BitsAllocated") or 16)
    signed = number(header, "PixelRepresentation") == 1

    def reread(raw: float) -> int:
        unsigned = int(raw) % (1 << bits)
        return unsigned - (1 << bits) if signed and unsigned >= 1 << (bits - 1) else unsigned

    ends = reread(value), reread(value if limit is None else limit)
    return min(ends), max(ends)


def _to_hu(stored: NDArray[Any], rescale: _Rescale, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.int16:
        # 16 bits times at most 1e4 plus at most 1e6 (`_read_rescale`) fit
        wide = stored.astype(np.int32)
        wide *= np.int32(rescale.slope)
        wide += np.int32(rescale.intercept)
        hu: NDArray[Any] = np.clip(wide, -32768, 32767, out=wide).astype(np.int16)
    else:
        hu = (stored * rescale.slope + rescale.intercept).astype(np.float32)
    if rescale.padding is not None:
        low, high = rescale.padding
        hu[(stored >= low) & (stored <= high)] = AIR_HU
    return hu


def _check_hu(array: NDArray[Any]) -> None:
    """A chest has air in the lungs and soft tissue around them; raw values have not both."""
    sample = array[:, ::4, ::4]
    air = float((sample < LUNG_AIR_HU).mean())
    low, high = SOFT_TISSUE_HU
    soft = float(((sample >= low) & (sample <= high)).mean())
    if air < LEAST_FRACTION or soft < LEAST_FRACTION:
        raise UnsuitableSeriesError(
            ReasonCode.HU_RANGE,
            f"The values aren't Hounsfield units of a chest: {100 * air:.1f} % lie below {LUNG_AIR_HU} (air) "
            f"and {100 * soft:.1f} % between {low} and {high} (soft tissue), at least "
            f"{100 * LEAST_FRACTION:.0f} % of each is needed.",
        )
