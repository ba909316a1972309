"""The trained models as ``pacs-node evaluate lidc-crops`` calls them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.datasets.lidc_crops import NoduleCrop
from inference.errors import ModelUnavailableError
from inference.evaluate.lidc_crops import (
    MIDDLE,
    UNKNOWN_PITCH_MM,
    BoxPrompt,
    CropReading,
    Place,
)
from inference.evaluate.lidc_run import Named
from inference.intensity import HounsfieldEstimate
from inference.registry import HOUNSFIELD, SEGMENTATION, load_pipeline
from inference.stack import Stack, load_stack
from inference.weights import load_into, read_weights

CROPS_PROFILE = "crops"
LEAST_MM = 4.0

Spacing = tuple[float, float, float]


class StackOnCrops:
    """Segmentation and reading of a profile on strips of scaled slices.

    Parameters
    ----------
    stack
        The models of the profile.
    estimate
        HU of the scaled slices.
    """

    def __init__(self, stack: Stack, estimate: HounsfieldEstimate) -> None:
        self._stack, self._estimate = stack, estimate
        self._unseen = stack.reader.in_unseen_words()

    def segment(
        self,
        crop: NoduleCrop,
        sentence: str,
        *,
        centre: Place | None = None,
        box: BoxPrompt | None = None,
        key_slice: int | None = None,
    ) -> NDArray[np.bool_]:
        """See `inference.evaluate.lidc_crops.CropModels`."""
        return self._stack.segmenter.segment_strip(
            self._estimate.hounsfield(crop.image),
            _spacing(crop),
            sentence,
            centre=centre,
            box=box,
            key_slice=key_slice,
        )

    def classify(self, crop: NoduleCrop, mask: NDArray[np.bool_]) -> CropReading:
        """See `inference.evaluate.lidc_crops.CropModels`; an empty mask is read as a dot in the middle."""
        spacing, shown = _spacing(crop), mask if mask.any() else _dot(mask.shape, _spacing(crop))
        hu = self._estimate.hounsfield(crop.image)
        reading = self._stack.reader.read(hu, spacing, shown)
        return CropReading(
            malignancy=reading.malignancy,
            features={
                "trained": reading.pair_probabilities,
                "unseen": self._unseen.read(hu, spacing, shown).pair_probabilities,
            },
        )


def load_crop_models(profile: str, device: str) -> Named:
    """Load the models of a profile that segment a crop by a sentence and read it.

    Raises
    ------
    ModelUnavailableError
        The profile has none, or their weights are missing or differ.
    """
    pipeline = load_pipeline(profile)
    if not pipeline.has(SEGMENTATION):
        names = ", ".join(card.name for card in pipeline.cards)
        raise ModelUnavailableError(
            f"profile {profile} has no models that segment a crop by a sentence and read it: {names}"
        )
    scaled = load_pipeline(CROPS_PROFILE)
    estimate = HounsfieldEstimate()
    load_into(estimate, read_weights(*scaled.weights(HOUNSFIELD)), name=scaled.card(HOUNSFIELD).name)
    models = StackOnCrops(load_stack(pipeline, device=device), estimate)
    return Named(models, pipeline.cards + scaled.cards, pipeline.version)


def _spacing(crop: NoduleCrop) -> Spacing:
    return crop.spacing_mm or (2 * UNKNOWN_PITCH_MM, UNKNOWN_PITCH_MM, UNKNOWN_PITCH_MM)


def _dot(shape: tuple[int, ...], spacing: Spacing) -> NDArray[np.bool_]:
    """A disc of `LEAST_MM` in the middle of the middle slice."""
    dot = np.zeros(shape, np.bool_)
    y, x = np.ogrid[: shape[1], : shape[2]]
    dot[shape[0] // 2] = np.hypot(y - MIDDLE, x - MIDDLE) * spacing[1] <= LEAST_MM / 2
    return dot
