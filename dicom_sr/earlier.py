"""Reads a result of ours again: ``result.json`` and SEG back to the findings that they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_sr.header import nodule_segments
from dicom_sr.verify_seg import read_masks
from inference.types import (
    Attenuation,
    AttenuationDoubt,
    Descriptor,
    Finding,
    Index,
    Laterality,
    Lobe,
    Malignancy,
    Measurements,
    SemanticFeature,
    Site,
    Volume,
)

_Mask = NDArray[np.bool_]


def read_findings(volume: Volume, summary: Mapping[str, Any], seg: Dataset | None) -> tuple[Finding, ...]:
    """Return the findings of a result, with the tracking UIDs that they had.

    Parameters
    ----------
    volume
        The series that was analysed.
    summary
        ``result.json``, see `dicom_sr.summary`; its numbers are rounded there.
    seg
        Needed where there are findings.

    Raises
    ------
    ValueError
        The three don't belong together, or the result lacks something.
    """
    rows = summary.get("findings", [])
    analysed = summary["series"]["analysed"] or {}
    if summary.get("status") != "analysed" or analysed.get("series_uid") != volume.series_uid:
        raise ValueError("the result is not of this series")
    if not rows:
        return ()
    if seg is None:
        raise ValueError("the result has findings and no masks")
    masks = _cropped(volume, seg)
    try:
        return tuple(_finding(volume, row, *masks[row["tracking_uid"]]) for row in rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the result lacks something ({type(error).__name__}: {error})") from error


def _cropped(volume: Volume, seg: Dataset) -> dict[str, tuple[_Mask, Index]]:
    """Mask and origin of each segment by its tracking UID."""
    planes: dict[int, dict[int, _Mask]] = {}
    for number, z, mask in read_masks(seg, volume):
        if mask.any():
            planes.setdefault(number, {})[z] = mask
    found = {}
    for segment in nodule_segments(seg):
        of_one = planes.get(int(segment.SegmentNumber))
        if of_one is None:
            continue
        first, last = min(of_one), max(of_one)
        union = np.logical_or.reduce(list(of_one.values()))
        rows, columns = (np.flatnonzero(union.any(axis=axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        empty = np.zeros_like(union)
        mask = np.stack([of_one.get(z, empty)[box] for z in range(first, last + 1)])
        found[str(segment.TrackingUID)] = mask, (first, int(rows[0]), int(columns[0]))
    return found


def _finding(volume: Volume, row: Mapping[str, Any], mask: _Mask, origin: Index) -> Finding:
    side, lobe, kind = row["site"]["laterality"], row["site"]["lobe"], row["attenuation"]
    doubt = row.get("attenuation_doubt")

    def place(lps: Any) -> tuple[float, float]:
        _, y, x = volume.lps_to_index(np.asarray(lps, dtype=float))
        return float(y), float(x)

    def axis(name: str) -> tuple[tuple[float, float], tuple[float, float]]:
        first, second = row[name]
        return place(first), place(second)

    return Finding(
        tracking_uid=row["tracking_uid"],
        tracking_id=row["tracking_id"],
        mask=mask,
        origin=origin,
        key_slice=int(row["key_slice"]["index"]),
        key_point=place(row["point_lps_mm"]),
        long_axis=axis("long_axis_lps_mm"),
        short_axis=axis("short_axis_lps_mm"),
        measurements=Measurements(**row["measurements"]),
        detection_probability=float(row["detection_probability"]),
        attenuation=None if kind is None else Attenuation(kind),
        site=Site(None if side is None else Laterality(side), None if lobe is None else Lobe(lobe)),
        malignancy=None if row["malignancy"] is None else Malignancy(**row["malignancy"]),
        features=tuple(
            SemanticFeature(one["name"], one["value"], one["probability"]) for one in row["features"]
        ),
        descriptors=tuple(Descriptor(**one) for one in row["descriptors"]),
        attenuation_doubt=None
        if doubt is None
        else AttenuationDoubt(
            Attenuation(doubt["read"]), float(doubt["probability"]), Attenuation(doubt["measured"])
        ),
    )
