"""Volumes, findings and provenance for the tests of dicom_sr; made of synthetic series, no model involved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pydicom import Dataset

from dicom_sr.context import ResultContext
from dicom_sr.seg import plane
from inference.types import (
    Attenuation,
    Finding,
    Laterality,
    Lobe,
    Measurements,
    ModelCard,
    Result,
    Site,
    SourceFrame,
    Volume,
)
from inference.uids import derived_uid

UNTRAINED = ModelCard(
    name="blob-detector",
    version="1",
    task="detection",
    summary="Blobs in the lung field.",
    intended_use="Research.",
    limits="Small nodules are missed.",
    licence="Apache-2.0",
    training_data="none",
    performance=("Sensitivity 1 of 1 on one synthetic series.",),
    parameters={"min_diameter_mm": 4.0},
)
TRAINED = replace(
    UNTRAINED, name="classifier", task="classification", weights_sha256="ab" * 32, parameters={}
)


def make_volume(headers: Sequence[Dataset]) -> Volume:
    """The volume of single-frame images in slice order, or of one multi-frame image in frame order."""
    first = headers[0]
    multi = "NumberOfFrames" in first
    numbers: list[int | None] = list(range(1, first.NumberOfFrames + 1)) if multi else [None] * len(headers)
    sources = [first] * len(numbers) if multi else list(headers)
    corners = [np.array(plane(s, n)[0], dtype=float) for s, n in zip(sources, numbers, strict=True)]
    _, orientation, spacing = plane(first, numbers[0])
    cosines = np.array(orientation, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = (corners[-1] - corners[0]) / max(1, len(corners) - 1)
    affine[:3, 1] = cosines[3:] * float(spacing[0])
    affine[:3, 2] = cosines[:3] * float(spacing[1])
    affine[:3, 3] = corners[0]
    bits = b"".join(h.PixelData for h in headers)
    stored = np.frombuffer(bits, "<i2").reshape(len(numbers), first.Rows, first.Columns)
    return Volume(
        array=stored - np.int16(1024),
        affine_index_to_lps=affine,
        frame_of_reference_uid=str(first.FrameOfReferenceUID),
        study_uid=str(first.StudyInstanceUID),
        series_uid=str(first.SeriesInstanceUID),
        frames=tuple(
            SourceFrame(str(s.SOPClassUID), str(s.SOPInstanceUID), n)
            for s, n in zip(sources, numbers, strict=True)
        ),
        slice_thickness_mm=2.5,
    )


def make_finding(
    volume: Volume, centre: tuple[int, int, int] = (8, 30, 20), *, name: str = "Nodule 1", **changes: Any
) -> Finding:
    """A lopsided blob of 3 x 4 x 5 voxels whose first voxel is `centre`: a mirrored one is another."""
    mask = np.zeros((3, 4, 5), dtype=bool)
    mask[0, 1:3, 1:3] = True
    mask[1, :, :4] = True
    mask[1, 0, 4] = True
    mask[2, 1, 1:4] = True
    z, y, x = centre
    finding = Finding(
        tracking_uid=derived_uid(volume.series_uid, name),
        tracking_id=name,
        mask=mask,
        origin=centre,
        key_slice=z + 1,
        key_point=(float(y + 1), float(x + 2)),
        long_axis=((float(y), float(x)), (float(y), float(x + 4))),
        short_axis=((float(y), float(x + 2)), (float(y + 3), float(x + 2))),
        measurements=Measurements(
            volume_mm3=float(mask.sum() * volume.voxel_volume_mm3),
            long_axis_mm=8.04,
            short_axis_mm=6.16,
            mean_diameter_mm=7.1,
            max_3d_diameter_mm=8.44,
            mean_hu=-12.345,
            sd_hu=40.04,
            min_hu=-200.0,
            max_hu=90.0,
        ),
        detection_probability=0.8765,
        attenuation=Attenuation.SOLID,
        site=Site(Laterality.RIGHT, Lobe.UPPER),
    )
    return replace(finding, **changes)


def make_findings(volume: Volume, count: int = 2, *, first_slice: int = 8) -> tuple[Finding, ...]:
    """Findings side by side, with different sites and types."""
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"site": Site(Laterality.LEFT, Lobe.LOWER), "attenuation": Attenuation.GROUND_GLASS},
        {"site": Site(Laterality.RIGHT, Lobe.MIDDLE), "attenuation": Attenuation.PART_SOLID},
        {"site": Site(Laterality.LEFT), "attenuation": None},
    )
    return tuple(
        make_finding(
            volume,
            (first_slice, 10 + 6 * (i // 6), 10 + 7 * (i % 6)),
            name=f"Nodule {i + 1}",
            **changes[i % 4],
        )
        for i in range(count)
    )


def make_context(**changes: Any) -> ResultContext:
    """A context of a fixed moment with one untrained card."""
    context = ResultContext(
        software_version="0.1.0",
        pipeline_version="0.1.0+blobs1",
        input_digest="d1" * 32,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        cards=(UNTRAINED,),
    )
    return replace(context, **changes)


def make_result(
    volume: Volume, findings: tuple[Finding, ...], context: ResultContext, **changes: Any
) -> Result:
    """The result that belongs to `context`."""
    result = Result(volume.series_uid, findings, context.cards, context.pipeline_version)
    return replace(result, **changes)


def without_pixels(datasets: Sequence[Dataset]) -> list[Dataset]:
    """The headers, as the pipeline hands them on."""
    return [Dataset({e.tag: e for e in ds if e.keyword != "PixelData"}) for ds in datasets]
