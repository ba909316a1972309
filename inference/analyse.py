"""One volume in, one `Result` out: lungs, nodules, measurements, and what trained models say of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

from inference.cade import detect
from inference.guidelines.reading import SOLID_PART
from inference.lungs import Lungs, find_lungs
from inference.measure import attenuation, measure, site, solid_part_mm
from inference.pleura import pleural_contact
from inference.radiomics import radiomics
from inference.record import RecordReading
from inference.registry import DETECTION, SEGMENTATION, Pipeline
from inference.types import Attenuation, Descriptor, Finding, Index, Malignancy, Observation, Result, Volume
from inference.uids import derived_uid

if TYPE_CHECKING:
    from inference.cade import Mask
    from inference.cadx import CadxReading
    from inference.fusion import ImageEvidence
    from inference.stack import Stack

THICK_SLICE_MM: Final = 2.5
RATING_STATEMENT: Final = (
    "Probabilities of malignancy estimate how radiologists would rate the nodule on CT (LIDC-IDRI, median "
    "rating above rather than below 3 of 5); they were not trained on histology."
)

UNTOLD: Final = "internal_structure"
"""Its rank is no finding: nearly every nodule of LIDC-IDRI is rated soft tissue, so it is always that, and
fat or a cavity would be denied. The sentence pair's number stays among the descriptors."""

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class _Found:
    """A nodule before it is measured; `reading` and `evidence` only from trained models."""

    mask: Mask
    origin: Index
    probability: float
    reading: CadxReading | None = None
    evidence: ImageEvidence | None = None


def analyse(
    volume: Volume,
    pipeline: Pipeline,
    *,
    input_digest: str,
    record: RecordReading | None = None,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    stack: Stack | None = None,
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
    record
        The patient's clinical record, as far as it is known. Only a profile with a model for it uses it; the
        image-only probability is always given.
    progress
        Called with the name of the stage that begins and the share that is done, 0..1.
    device
        Where torch computes.
    stack
        The trained models, if they are loaded already.

    Returns
    -------
    Result
        The same input and pipeline always give the same result. No finding is a result too.

    Raises
    ------
    UnsuitableSeriesError
        The volume shows no chest.
    ModelUnavailableError
        Weights that a card names are missing or altered.
    """
    report = progress or (lambda _stage, _share: None)
    report("lungs", 0.0)
    lungs = find_lungs(volume)
    report("nodules", 0.2)
    if pipeline.has(SEGMENTATION):
        stack = stack or _load(pipeline, device)
        found = _trained(volume, lungs, stack, report)
    else:
        found = _classical(volume, lungs, pipeline, device)
    report("measurements", 0.95)
    identity = (volume.series_uid, input_digest, pipeline.version)
    findings = tuple(_finding(volume, lungs, one, number, identity) for number, one in enumerate(found, 1))
    observations: tuple[Observation, ...] = ()
    if stack is not None and record is not None:
        findings, observations = stack.with_record(findings, [one.evidence for one in found], record)
    report("done", 1.0)
    return Result(
        series_uid=volume.series_uid,
        findings=findings,
        cards=pipeline.cards,
        pipeline_version=pipeline.version,
        observations=observations,
        warnings=_warnings(volume, lungs, pipeline, findings),
    )


@lru_cache(maxsize=1)
def _load(pipeline: Pipeline, device: str | torch.device) -> Stack:
    """The models, kept from one analysis to the next: a worker has one pipeline."""
    # torchvision, MONAI, SAM 2 and open_clip take seconds to import: only who needs them waits
    from inference.stack import load_stack  # noqa: PLC0415

    return load_stack(pipeline, device=device)


def _trained(volume: Volume, lungs: Lungs, stack: Stack, report: Progress) -> list[_Found]:
    nodules = stack.find(volume, lungs, progress=lambda share: report("nodules", 0.4 + 0.55 * share))
    return [_Found(one.mask, one.origin, one.probability, one.reading, one.evidence()) for one in nodules]


def _classical(volume: Volume, lungs: Lungs, pipeline: Pipeline, device: str | torch.device) -> list[_Found]:
    marks = detect(volume, lungs, pipeline.card(DETECTION).parameters, device=device)
    return [_Found(one.mask, one.origin, one.score) for one in marks]


def _finding(
    volume: Volume, lungs: Lungs, found: _Found, number: int, identity: tuple[str, str, str]
) -> Finding:
    mask, origin, reading = found.mask, found.origin, found.reading
    measured = measure(volume, mask, origin)
    kind = attenuation(volume, mask, origin) if reading is None else _rated_attenuation(reading)
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
        detection_probability=found.probability,
        attenuation=kind,
        site=site(lungs.labels, mask, origin),
        malignancy=None if reading is None else Malignancy(reading.malignancy),
        features=() if reading is None else tuple(one for one in reading.features if one.name != UNTOLD),
        descriptors=(
            *(_solid_part(volume, found) if kind is Attenuation.PART_SOLID else ()),
            *(() if reading is None else _descriptors(volume, lungs, found, reading)),
        ),
    )


def _rated_attenuation(reading: CadxReading) -> Attenuation:
    """By the texture rank, as LIDC-IDRI is read by Zhuang et al.: below 2.5 ground glass, 5 solid."""
    (texture,) = (feature for feature in reading.features if feature.name == "texture")
    if texture.value <= 2:
        return Attenuation.GROUND_GLASS
    return Attenuation.SOLID if texture.value == 5 else Attenuation.PART_SOLID


def _solid_part(volume: Volume, found: _Found) -> tuple[Descriptor, ...]:
    size = solid_part_mm(volume, found.mask, found.origin)
    return () if size is None else (Descriptor(SOLID_PART, size, "mm", "measured"),)


def _descriptors(volume: Volume, lungs: Lungs, found: _Found, reading: CadxReading) -> tuple[Descriptor, ...]:
    contact = pleural_contact(volume, lungs, found.mask, found.origin)
    rows: list[Descriptor] = [
        Descriptor(one.name, one.value, one.unit, f"IBSI {one.code}".strip())
        for one in radiomics(volume, found.mask, found.origin)
    ]
    if contact is not None:
        rows += [
            Descriptor("pleural attachment", contact.probability, "1", "pleura"),
            Descriptor("distance to the pleura", contact.distance_mm, "mm", "pleura"),
        ]
    for source, numbers in (
        ("sentence pair", reading.pair_probabilities),
        ("structure sentence", reading.structure_similarity),
        ("radiomic similarity", reading.radiomic_similarity),
    ):
        rows += [Descriptor(name, value, "1", source) for name, value in numbers.items()]
    return tuple(rows)


def _warnings(
    volume: Volume, lungs: Lungs, pipeline: Pipeline, findings: Sequence[Finding]
) -> tuple[str, ...]:
    """What the reader must know about this result."""
    sentences = list(lungs.warnings)
    thickness = max(volume.slice_thickness_mm or 0.0, volume.spacing_mm[0])
    if thickness > THICK_SLICE_MM:
        sentences.append(
            f"Slices of {thickness:g} mm: nodules thinner than a slice may be missed and measurements are "
            f"less exact than on slices of up to {THICK_SLICE_MM:g} mm."
        )
    if len(findings) >= pipeline.card(DETECTION).parameters["max_findings"]:
        sentences.append(
            "More candidates than the limit of findings were found; the most probable are shown."
        )
    if findings and pipeline.has(SEGMENTATION):
        sentences.append(RATING_STATEMENT)
    return tuple(sentences)
