"""One volume in, one `Result` out: lungs, nodules, measurements."""

from __future__ import annotations

from collections.abc import Callable

import torch

from inference.cade import Candidate, detect
from inference.lungs import Lungs, find_lungs
from inference.measure import attenuation, measure, site
from inference.registry import DETECTION, Pipeline
from inference.types import Finding, Result, Volume
from inference.uids import derived_uid

THICK_SLICE_MM = 2.5

Progress = Callable[[str, float], None]


def analyse(
    volume: Volume,
    pipeline: Pipeline,
    *,
    input_digest: str,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
) -> Result:
    """Analyse one chest CT.

    Parameters
    ----------
    volume
        HU on a regular grid.
    pipeline
        From `inference.registry.load_pipeline`.
    input_digest
        Identifies the set of instances; the tracking UIDs depend on it.
    progress
        Called with the name of the stage that begins and the share that is done, 0..1.
    device
        Where torch computes.

    Returns
    -------
    Result
        The same input and pipeline always give the same result. No finding is a result too.

    Raises
    ------
    UnsuitableSeriesError
        The volume shows no chest.
    """
    report = progress or (lambda _stage, _share: None)
    card = pipeline.card(DETECTION)
    report("lungs", 0.0)
    lungs = find_lungs(volume)
    report("nodules", 0.2)
    found = detect(volume, lungs, card.parameters, device=device)
    report("measurements", 0.95)
    findings = tuple(
        _finding(volume, lungs, candidate, number, (volume.series_uid, input_digest, pipeline.version))
        for number, candidate in enumerate(found, start=1)
    )
    report("done", 1.0)
    return Result(
        series_uid=volume.series_uid,
        findings=findings,
        cards=pipeline.cards,
        pipeline_version=pipeline.version,
        warnings=_warnings(volume, lungs, len(findings) >= card.parameters["max_findings"]),
    )


def _finding(
    volume: Volume, lungs: Lungs, candidate: Candidate, number: int, identity: tuple[str, str, str]
) -> Finding:
    mask, origin = candidate.mask, candidate.origin
    measured = measure(volume, mask, origin)
    return Finding(
        tracking_uid=derived_uid(*identity, "finding", str(number)),
        tracking_id=f"N{number}",
        mask=mask,
        origin=origin,
        key_slice=measured.key_slice,
        key_point=measured.key_point,
        long_axis=measured.long_axis,
        short_axis=measured.short_axis,
        measurements=measured.measurements,
        detection_probability=candidate.score,
        attenuation=attenuation(volume, mask, origin),
        site=site(lungs.labels, mask, origin),
    )


def _warnings(volume: Volume, lungs: Lungs, is_full: bool) -> tuple[str, ...]:
    """What the reader must know about this result."""
    sentences = list(lungs.warnings)
    thickness = max(volume.slice_thickness_mm or 0.0, volume.spacing_mm[0])
    if thickness > THICK_SLICE_MM:
        sentences.append(
            f"Slices of {thickness:g} mm: nodules thinner than a slice may be missed and measurements are "
            f"less exact than on slices of up to {THICK_SLICE_MM:g} mm."
        )
    if is_full:
        sentences.append(
            "More candidates than the limit of findings were found; the most probable are shown."
        )
    return tuple(sentences)
