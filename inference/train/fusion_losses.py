"""What single mechanisms learn beside the correction itself: contrast, a teacher, attributes.

Each is a loss of its own on a batch, 0 for the mechanisms that have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from inference.datasets.lidc_crops import RATINGS
from inference.fusion import ImageParts, Mechanism, RecordParts
from inference.fusion.attributes import ATTRIBUTES, Attributes
from inference.fusion.contrast import Contrast
from inference.fusion.distilled import Distilled

RANKS: Final = {"internalStructure": 4, "calcification": 6}
"""Highest rank of a rating; 5 for the others."""

CONTRAST, TAUGHT, STUDENT, ATTRIBUTE = 0.2, 0.3, 0.1, 0.3
_SHARPNESS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Some nodules with their records, and what is known of them in training only.

    Parameters
    ----------
    image
        None in a step where only the record speaks.
    given
        Logit of the image alone, float32, shape (n,).
    truth
        float32, 0 or 1, shape (n,).
    ratings
        float32, shape (n, 9).
    taught
        Correction of the teacher, who saw the whole records; None without one.
    """

    image: ImageParts | None
    record: RecordParts
    given: Tensor
    truth: Tensor
    ratings: Tensor
    taught: Tensor | None = None


def extra_loss(network: Mechanism, batch: Batch, correction: Tensor) -> Tensor:
    """The loss beside that of the correction, a scalar."""
    if isinstance(network, Contrast):
        return CONTRAST * contrast_loss(network, batch)
    if isinstance(network, Attributes) and batch.image is not None:
        return ATTRIBUTE * attribute_loss(network, batch.image, batch.ratings)
    if isinstance(network, Distilled) and batch.taught is not None:
        return taught_loss(network, batch, correction, batch.taught)
    return torch.zeros(())


def contrast_loss(network: Contrast, batch: Batch) -> Tensor:
    """Images and records of the same class are near, softly (MedCLIP); 0 without images."""
    if batch.image is None:
        return torch.zeros(())
    image, record = network.embed_image(batch.image), network.embed_record(batch.record)
    same = (batch.truth[:, None] == batch.truth[None]).float()
    wanted = same / same.sum(1, keepdim=True)
    logits = _SHARPNESS * image @ record.T
    return (functional.cross_entropy(logits, wanted) + functional.cross_entropy(logits.T, wanted)) / 2


def attribute_loss(network: Attributes, image: ImageParts, ratings: Tensor) -> Tensor:
    """Cross-entropy of each attribute's place between its lowest and highest rank."""
    columns = [RATINGS.index(name) for name in ATTRIBUTES]
    highest = torch.tensor([RANKS.get(name, 5) for name in ATTRIBUTES])
    wanted = ((ratings[:, columns] - 1) / (highest - 1)).clamp(0, 1)
    return functional.binary_cross_entropy_with_logits(network.attribute_logits(image), wanted)


def taught_loss(network: Distilled, batch: Batch, correction: Tensor, taught: Tensor) -> Tensor:
    """Squared distance to what the teacher said with the whole record; of the student of the image too."""
    here = batch.record.has_record
    loss = TAUGHT * functional.mse_loss(correction[here], taught[here]) if here.any() else torch.zeros(())
    if batch.image is not None:
        loss = loss + STUDENT * functional.mse_loss(network.image_only(batch.image), taught)
    return loss
