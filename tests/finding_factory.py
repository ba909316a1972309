"""Volumes, findings and provenance for the tests of dicom_sr; made of synthetic series, no model involved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
from pydicom import Dataset

from dicom_sr.context import ResultContext
from dicom_sr.seg import plane
from inference.change import Change, Doubling
from inference.types import (
    Attenuation,
    Comparison,
    Finding,
    Laterality,
    Lobe,
    Measurements,
    ModelCard,
    Pair,
    PriorReference,
    RegistrationQuality,
    Result,
    SecondLook,
    Site,
    SourceFrame,
    Standing,
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


def make_prior_volume(volume: Volume) -> Volume:
    """The same grid as another examination: study, series, frame of reference and instances of its own."""
    frames = [
        replace(frame, sop_instance_uid=derived_uid(volume.series_uid, "prior", str(number)))
        for number, frame in enumerate(volume.frames)
    ]
    uids = [derived_uid(volume.series_uid, "prior", what) for what in ("frame", "study", "series")]
    return replace(
        volume,
        frame_of_reference_uid=uids[0],
        study_uid=uids[1],
        series_uid=uids[2],
        frames=tuple(frames),
    )


def make_comparison(volume: Volume, findings: Sequence[Finding], **changes: Any) -> Comparison:
    """With a prior examination of 2025-01-06, 361 days earlier, in which the first finding was smaller.

    The second finding is new, the place of the third was not shown, of the fourth it is not known; one nodule
    has gone, another is out of sight, a third was seen again only when its place was looked at.
    """
    prior = make_prior_volume(volume)
    pairs = [_pair(prior, finding, at) for at, finding in enumerate(findings)]
    for name, standing in (("Nodule 8", Standing.RESOLVED), ("Nodule 9", Standing.OUTSIDE_CURRENT)):
        gone = _shrunk(make_finding(prior, (4, 40, 24), name=name))
        point = _centre(prior, gone) if standing is Standing.RESOLVED else None
        pairs.append(Pair(None, gone, standing, prior_point_mm=point))
    again = make_finding(volume, (4, 46, 40), name="Nodule 7")
    before, growth = _shrunk(again), Doubling(2.0, 223.4)
    late = SecondLook.SEEN_IN_CURRENT
    pairs.append(Pair(again, before, Standing.MATCHED, Change.SLOWLY_GROWING, "", growth, second_look=late))
    comparison = Comparison(
        PriorReference(prior.study_uid, prior.series_uid, date(2025, 1, 6)),
        361,
        tuple(pairs),
        RegistrationQuality(0.97, 0.885, 0.998),
    )
    return replace(comparison, **changes)


def _pair(prior: Volume, finding: Finding, at: int) -> Pair:
    """As `make_comparison` says, the volumes of a shift of nothing."""
    point = _centre(prior, finding)
    if at == 0:
        before = _shrunk(finding)
        growth = Doubling(finding.measurements.volume_mm3 / before.measurements.volume_mm3 - 1, 223.4)
        return Pair(finding, before, Standing.MATCHED, Change.GROWING, "", growth, point, point)
    if at == 1:
        look = SecondLook.NOTHING
        return Pair(finding, None, Standing.NEW, Change.NEW, current_point_mm=point, second_look=look)
    if at == 2:
        return Pair(finding, None, Standing.OUTSIDE_PRIOR, reason="its place is not shown")
    seen = SecondLook.SEEN_IN_PRIOR
    return Pair(finding, finding, Standing.MATCHED, None, "the masks differ.", None, point, point, seen)


def _shrunk(finding: Finding) -> Finding:
    """The same finding measured smaller: 5.2 mm, a third of the volume."""
    m = finding.measurements
    smaller = replace(
        m, volume_mm3=m.volume_mm3 / 3, long_axis_mm=6.0, short_axis_mm=4.4, mean_diameter_mm=5.2
    )
    return replace(finding, mask=finding.mask.copy(), measurements=smaller)


def _centre(volume: Volume, finding: Finding) -> tuple[float, float, float]:
    x, y, z = volume.index_to_lps((finding.key_slice, *finding.key_point)).tolist()
    return x, y, z


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
