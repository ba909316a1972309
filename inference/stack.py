"""The trained stages in a row: detector, structure by sentences, mask by sentence, nine-view reading.

Loaded from the cards of a pipeline; each file's sha256 is checked before it is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inference.cadx import CadxReading, NineViewReader, build_reader
from inference.detector import LARGE_MM, Calibration, Detection, load_detector
from inference.full_detector import NETWORK, load_published_detector
from inference.fusion import Fusion, ImageEvidence, TextTower, apply_record
from inference.lungs import Lungs
from inference.openclip_model import REFERENCE as CLIP_SIZE
from inference.openclip_model import build_clip, embed_sentences
from inference.prompted import PromptedSegmenter
from inference.record import RecordReading
from inference.registry import CLASSIFICATION, DETECTION, FUSION, SEGMENTATION, TEXT, Pipeline
from inference.sam2_model import REFERENCE as SAM2
from inference.sam2_model import TextPromptedSam2
from inference.types import Finding, Index, Observation, Volume
from inference.weights import load_into, read_weights

SENTENCE: Final = "lung nodule"
NODULE: Final = "nodule"

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Nodule:
    """One candidate that was kept.

    Parameters
    ----------
    mask
        bool, cropped; shares no voxel with the mask of another nodule of the scan.
    origin
        Index in the volume of ``mask[0, 0, 0]``.
    probability
        0..1, of the detector.
    reading
        What the nine views say.
    mask_score
        The segmenter's own estimate of its mask, 0..1.
    """

    mask: Mask
    origin: Index
    probability: float
    reading: CadxReading
    mask_score: float

    def evidence(self) -> ImageEvidence:
        """What the clinical record is joined with."""
        return ImageEvidence(self.reading.malignancy, self.reading.embedding, self.reading.views)


class NoduleDetector(Protocol):
    """Marks places that may be nodules, in falling order of probability."""

    def detect(self, volume: Volume, lungs: Lungs) -> tuple[Detection, ...]:
        """Mark nodules of a volume in HU."""
        ...


@dataclass(frozen=True)
class Stack:
    """The models of a profile, ready to run."""

    detector: NoduleDetector
    segmenter: PromptedSegmenter
    reader: NineViewReader
    parameters: Mapping[str, float]
    fusion: Fusion | None = field(default=None)

    def find(
        self, volume: Volume, lungs: Lungs, *, progress: Callable[[float], None] | None = None
    ) -> tuple[Nodule, ...]:
        """Detect, outline and read nodules.

        Parameters
        ----------
        volume
            CT in HU.
        lungs
            Its lung field.
        progress
            Called with the share of the candidates that are done.

        Returns
        -------
        tuple of Nodule
            In falling order of probability.
        """
        report = progress or (lambda _share: None)
        chosen = [
            one
            for one in self.detector.detect(volume, lungs)
            if one.probability >= self.parameters["min_probability"]
        ]
        taken = np.zeros(volume.array.shape, np.bool_)
        found: list[Nodule] = []
        for number, detection in enumerate(chosen):
            if len(found) >= self.parameters["max_findings"]:
                break
            nodule = self._nodule(volume, detection, taken)
            if nodule is not None:
                found.append(nodule)
                taken[_slices(nodule.mask, nodule.origin)] |= nodule.mask
            report((number + 1) / len(chosen))
        return tuple(found)

    def with_record(
        self,
        findings: Sequence[Finding],
        evidence: Sequence[ImageEvidence | None],
        record: RecordReading,
    ) -> tuple[tuple[Finding, ...], tuple[Observation, ...]]:
        """See `inference.fusion.apply_record`; without a model for it the findings stay as they are."""
        if self.fusion is None:
            return tuple(findings), ()
        return apply_record(findings, evidence, record, self.fusion)

    def _is_something_else(self, volume: Volume, centre: tuple[float, float, float], diameter: float) -> bool:
        """Whether the sentences name another structure; a mass fills the crop like bone, and is not asked."""
        if diameter >= LARGE_MM:
            return False
        likeness = self.reader.structures(volume.array, volume.spacing_mm, centre, diameter)
        return likeness[NODULE] < self.parameters["min_likeness"]

    def _nodule(self, volume: Volume, detection: Detection, taken: Mask) -> Nodule | None:
        """Outline and read one candidate; None where it is another structure, too small or taken."""
        spacing, parameters = volume.spacing_mm, self.parameters
        place = tuple(
            float(np.clip(one, 0, size - 1))
            for one, size in zip(detection.index, volume.array.shape, strict=True)
        )
        centre = (place[0], place[1], place[2])
        if self._is_something_else(volume, centre, detection.diameter_mm):
            return None
        segmented = self.segmenter.segment(
            volume.array, spacing, centre, SENTENCE, diameter_mm=detection.diameter_mm
        )
        where = _slices(segmented.mask, segmented.origin)
        free = segmented.mask & ~taken[where]
        # most of it belongs to a nodule that is more probable: the same one again
        if free.sum() < 0.5 * max(int(segmented.mask.sum()), 1):
            return None
        mask, origin = _tight(free, segmented.origin)
        if _diameter_mm(mask, volume.voxel_volume_mm3) < parameters["min_diameter_mm"]:
            return None
        reading = self.reader.read(volume.array, spacing, mask, origin)
        return Nodule(mask, origin, detection.probability, reading, segmented.score)


def load_stack(pipeline: Pipeline, *, device: str | torch.device = "cpu") -> Stack:
    """Load the models that the cards name.

    Raises
    ------
    ModelUnavailableError
        A card or its weights are missing, differ or don't fit.
    """
    text = read_weights(*pipeline.weights(TEXT))
    clip = build_clip(CLIP_SIZE)
    # the image tower of this CLIP isn't used: it keeps what it was built with
    load_into(clip, {**clip.state_dict(), **text}, name=pipeline.card(TEXT).name)
    network = TextPromptedSam2(SAM2)
    load_into(network, read_weights(*pipeline.weights(SEGMENTATION)), name=pipeline.card(SEGMENTATION).name)
    reader = build_reader(
        text,
        read_weights(*pipeline.weights(CLASSIFICATION)),
        malignancy_shift=pipeline.card(CLASSIFICATION).parameters.get("malignancy_shift", 0.0),
    )
    return Stack(
        detector=_detector(pipeline, str(device)),
        segmenter=PromptedSegmenter(network.to(device), clip.to(device), CLIP_SIZE.context_length),
        reader=reader,
        parameters=pipeline.card(DETECTION).parameters,
        fusion=_fusion(pipeline, lambda sentences: embed_sentences(clip, sentences).numpy()),
    )


def _detector(pipeline: Pipeline, device: str) -> NoduleDetector:
    card = pipeline.card(DETECTION)
    if card.network == NETWORK:
        return load_published_detector(*pipeline.weights(DETECTION), device=device)
    calibration = Calibration(card.parameters["calibration_slope"], card.parameters["calibration_intercept"])
    return load_detector(*pipeline.weights(DETECTION), calibration, device=device)


def _fusion(pipeline: Pipeline, tower: TextTower) -> Fusion | None:
    if not pipeline.has(FUSION):
        return None
    return Fusion.load(*pipeline.weights(FUSION), tower, mechanism=pipeline.card(FUSION).mechanism)


def _slices(mask: Mask, origin: Index) -> tuple[slice, slice, slice]:
    z, y, x = (slice(start, start + size) for start, size in zip(origin, mask.shape, strict=True))
    return z, y, x


def _tight(mask: Mask, origin: Index) -> tuple[Mask, Index]:
    """Crop to the voxels that are left; an empty mask stays as it is."""
    if not mask.any():
        return mask, origin
    ends: Sequence[NDArray[np.intp]] = [
        np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis))) for axis in range(3)
    ]
    block = tuple(slice(int(one[0]), int(one[-1]) + 1) for one in ends)
    z, y, x = (start + int(one[0]) for start, one in zip(origin, ends, strict=True))
    return mask[block].copy(), (z, y, x)


def _diameter_mm(mask: Mask, voxel_mm3: float) -> float:
    """Diameter of the ball of the same volume."""
    return float((6 * mask.sum() * voxel_mm3 / np.pi) ** (1 / 3))
