"""Where a pipeline points in a whole scan, far below its operating point: what a FROC curve needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inference.cade import detect
from inference.evaluate.marks import MOST_MARKS, Mark
from inference.lungs import find_lungs
from inference.prompts import NODULE
from inference.registry import DETECTION, SEGMENTATION, Pipeline
from inference.types import Finding, Result, Volume

if TYPE_CHECKING:
    from inference.stack import Stack

Marker = Callable[[Volume], Sequence[Mark]]
"""A scan to at most `MOST_MARKS` marks in any order."""


def marker(pipeline: Pipeline, *, device: str = "cpu") -> Marker:
    """The candidate scoring of a pipeline; its models are loaded here.

    Raises
    ------
    ModelUnavailableError
        Weights are missing or differ.
    """
    if not pipeline.has(SEGMENTATION):
        return classical_marker(pipeline.card(DETECTION).parameters, device=device)
    from inference.stack import load_stack  # noqa: PLC0415 - torchvision and MONAI, only where needed

    stack = load_stack(pipeline, device=device)
    return lambda volume: marks_of_stack(stack, volume)


def marks_of_stack(stack: Stack, volume: Volume) -> list[Mark]:
    """All detections that the stack would go on with if its operating point were 0."""
    found = []
    least = stack.parameters["min_likeness"]
    for one in stack.detector.detect(volume, find_lungs(volume)):
        z, y, x = (
            float(np.clip(at, 0, size - 1)) for at, size in zip(one.index, volume.array.shape, strict=True)
        )
        likeness = stack.reader.structures(volume.array, volume.spacing_mm, (z, y, x), one.diameter_mm)
        if likeness[NODULE] >= least:
            found.append(Mark(one.centre_lps, one.probability))
    return found


def classical_marker(parameters: dict[str, float], *, device: str = "cpu") -> Marker:
    """Candidates of `inference.cade` with its decision, however improbable."""
    every = {**parameters, "min_probability": 0.0, "max_findings": float(MOST_MARKS)}

    def mark(volume: Volume) -> Sequence[Mark]:
        found = detect(volume, find_lungs(volume), every, device=device)
        return [
            _mark(volume, np.argwhere(one.mask).mean(axis=0) + np.array(one.origin), one.score)
            for one in found
        ]

    return mark


def marks_of_findings(result: Result, volume: Volume) -> list[Mark]:
    """What the pipeline shows: the centre of mass of each finding, with its detection probability."""
    return [_mark(volume, centre_of(finding), finding.detection_probability) for finding in result.findings]


def centre_of(finding: Finding) -> np.ndarray:
    """Centre of mass of the mask, fractional index in the volume, (3,)."""
    return np.asarray(np.argwhere(finding.mask).mean(axis=0) + np.array(finding.origin))


def _mark(volume: Volume, index: np.ndarray, score: float) -> Mark:
    x, y, z = volume.index_to_lps(index)
    return Mark((float(x), float(y), float(z)), score)
