"""One volume in, one `Result` out: lungs, nodules, measurements, and what trained models say of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from inference.cade import detect
from inference.guidelines.reading import SOLID_PART
from inference.lungs import Lungs, find_lungs
from inference.measure import attenuation, measure, site, solid_part_mm
from inference.pleura import pleural_contact
from inference.radiomics import radiomics
from inference.record import RecordReading
from inference.registry import DETECTION, SEGMENTATION, Pipeline
from inference.types import (
    Attenuation,
    AttenuationDoubt,
    Descriptor,
    Finding,
    Index,
    Malignancy,
    Observation,
    Point,
    Result,
    Volume,
)
from inference.uids import derived_uid

if TYPE_CHECKING:
    from inference.cade import Mask
    from inference.cadx import CadxReading
    from inference.detector import Detection
    from inference.fusion import ImageEvidence
    from inference.stack import NoduleDetector, Stack

THICK_SLICE_MM: Final = 2.5
RATING_STATEMENT: Final = (
    "Probabilities of malignancy estimate how radiologists would rate the nodule on CT (LIDC-IDRI, median "
    "rating above rather than below 3 of 5); they were not trained on histology."
)

UNTOLD: Final = "internal_structure"
"""Its rank is no finding: nearly every nodule of LIDC-IDRI is rated soft tissue, so it is always that, and
fat or a cavity would be denied. The sentence pair's number stays among the descriptors."""

LOOK_MM: Final = 60.0
LOOK_REACH_MM: Final = 7.0
LOOK_SHARE: Final = 0.4
"""A nodule that another examination shows at the place needs this share of the detector's threshold."""

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


def second_look(
    pipeline: Pipeline, *, device: str | torch.device = "cpu", stack: Stack | None = None
) -> Callable[[Volume, Lungs, Point, float], Finding | None]:
    """How to look for one nodule at a place where another examination shows one.

    The detector and, with trained models, the segmentation by text of the same pipeline, on `LOOK_MM` around
    the place and from `LOOK_SHARE` of the probability on that a nodule needs elsewhere.

    Parameters
    ----------
    pipeline, device, stack
        As for `analyse`.

    Returns
    -------
    callable
        Takes a volume, its lungs, a place (LPS mm) and the diameter expected there (mm); gives the finding
        nearest to the place, or None. Its tracking IDs are S1, S2, ...
    """
    numbers = count(1)

    def look(volume: Volume, lungs: Lungs, place: Point, diameter_mm: float) -> Finding | None:
        reach = LOOK_REACH_MM + diameter_mm / 2
        part = _part(volume, lungs, place, reach + LOOK_MM / 2)
        if part is None:
            return None
        inner, its_lungs, corner = part
        if pipeline.has(SEGMENTATION):
            found = _trained_near(inner, its_lungs, stack or _load(pipeline, device), (place, reach))
        else:
            found = _classical(inner, its_lungs, pipeline, device, share=LOOK_SHARE)
        gaps = [float(np.linalg.norm(_middle(inner, one) - place)) for one in found]
        if not gaps or min(gaps) > reach:
            return None
        nearest = found[int(np.argmin(gaps))]
        z, y, x = (a + b for a, b in zip(nearest.origin, corner, strict=True))
        number = next(numbers)
        told = (volume.series_uid, f"second look {place}", pipeline.version)
        return replace(
            _finding(volume, lungs, replace(nearest, origin=(z, y, x)), number, told),
            tracking_id=f"S{number}",
        )

    return look


def _part(volume: Volume, lungs: Lungs, place: Point, half_mm: float) -> tuple[Volume, Lungs, Index] | None:
    """A cube around a place with its lungs, and its first index; None where no lung is in it."""
    middle = volume.lps_to_index(place)
    z, y, x = (
        slice(max(0, int(at - half_mm / d)), max(0, min(n, int(at + half_mm / d) + 1)))
        for at, d, n in zip(middle, volume.spacing_mm, volume.array.shape, strict=True)
    )
    labels = lungs.labels[z, y, x]
    if not labels.any():
        return None
    corner = (z.start, y.start, x.start)
    affine = np.array(volume.affine_index_to_lps)
    affine[:3, 3] = volume.index_to_lps(corner)
    inner = replace(volume, array=volume.array[z, y, x], affine_index_to_lps=affine, frames=volume.frames[z])
    return inner, replace(lungs, labels=labels), corner


def _middle(volume: Volume, found: _Found) -> NDArray[np.float64]:
    """Centre of a mask, LPS mm."""
    return volume.index_to_lps(np.argwhere(found.mask).mean(axis=0) + np.array(found.origin))


@dataclass(frozen=True, slots=True)
class _NearBy:
    """A detector that marks near a place only."""

    detector: NoduleDetector
    place: Point
    reach_mm: float

    def detect(self, volume: Volume, lungs: Lungs) -> tuple[Detection, ...]:
        """Mark nodules."""
        return tuple(
            one
            for one in self.detector.detect(volume, lungs)
            if np.linalg.norm(np.subtract(one.centre_lps, self.place)) <= self.reach_mm
        )


def _trained_near(volume: Volume, lungs: Lungs, stack: Stack, where: tuple[Point, float]) -> list[_Found]:
    least = LOOK_SHARE * stack.parameters["min_probability"]
    near = replace(
        stack,
        detector=_NearBy(stack.detector, *where),
        parameters={**stack.parameters, "min_probability": least},
    )
    return _trained(volume, lungs, near, lambda _stage, _share: None)


@lru_cache(maxsize=1)
def _load(pipeline: Pipeline, device: str | torch.device) -> Stack:
    """The models, kept from one analysis to the next: a worker has one pipeline."""
    # torchvision, MONAI, SAM 2 and open_clip take seconds to import: only who needs them waits
    from inference.stack import load_stack  # noqa: PLC0415

    return load_stack(pipeline, device=device)


def _trained(volume: Volume, lungs: Lungs, stack: Stack, report: Progress) -> list[_Found]:
    nodules = stack.find(volume, lungs, progress=lambda share: report("nodules", 0.4 + 0.55 * share))
    return [_Found(one.mask, one.origin, one.probability, one.reading, one.evidence()) for one in nodules]


def _classical(
    volume: Volume, lungs: Lungs, pipeline: Pipeline, device: str | torch.device, *, share: float = 1.0
) -> list[_Found]:
    """With a `share` of the probability that a nodule needs."""
    card = pipeline.card(DETECTION).parameters
    parameters = {**card, "min_probability": share * card["min_probability"]}
    marks = detect(volume, lungs, parameters, device=device)
    return [_Found(one.mask, one.origin, one.score) for one in marks]


def _finding(
    volume: Volume, lungs: Lungs, found: _Found, number: int, identity: tuple[str, str, str]
) -> Finding:
    mask, origin, reading = found.mask, found.origin, found.reading
    measured = measure(volume, mask, origin)
    kind, doubt = _kind(attenuation(volume, mask, origin), reading)
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
            *_solid_part(volume, found),
            *(() if reading is None else _descriptors(volume, lungs, found, reading)),
        ),
        attenuation_doubt=doubt,
    )


def _kind(
    measured: Attenuation, reading: CadxReading | None
) -> tuple[Attenuation | None, AttenuationDoubt | None]:
    """The type by HU and by the network where one has read it; certain where both say the same.

    Neither is better: the network knows no part-solid nodules, HU call small solid ones ground-glass
    (docs/evaluation.md, Attenuation type).
    """
    if reading is None:
        return measured, None
    (texture,) = (feature for feature in reading.features if feature.name == "texture")
    read = _rated_attenuation(texture.value)
    if read is measured and texture.is_certain:
        return read, None
    return None, AttenuationDoubt(read, texture.probability, measured)


def _rated_attenuation(rank: int) -> Attenuation:
    """By the texture rank, as LIDC-IDRI is read by Zhuang et al.: below 2.5 ground glass, 5 solid."""
    if rank <= 2:
        return Attenuation.GROUND_GLASS
    return Attenuation.SOLID if rank == 5 else Attenuation.PART_SOLID


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
    if open_ := [f"{f.tracking_id} ({f.attenuation_doubt.words})" for f in findings if f.attenuation_doubt]:
        sentences.append(f"Not certain whether solid, part-solid or ground-glass: {', '.join(open_)}.")
    if findings and pipeline.has(SEGMENTATION):
        sentences.append(RATING_STATEMENT)
    return tuple(sentences)
