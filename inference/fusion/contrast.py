"""M1, contrast: image, record and two opposite sentences in one space.

As ConVIRT, MedCLIP and CheXzero: trained so that images and records of the same class lie near each other
(soft targets), and read off by comparing with a positive and a negative sentence.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.fusion.mechanism import (
    EMBEDDING,
    WIDTH,
    ImageParts,
    Mechanism,
    RecordParts,
    sentence_layer,
    text_or,
)
from inference.fusion.table import TABLE

PROMPTS: Final = ("The nodule is malignant.", "The nodule is benign.")
_COMMON: Final = 32


class Contrast(Mechanism):
    """The nodule with its record is compared with both sentences, and the nodule without the record."""

    name: ClassVar[str] = "contrast"
    number: ClassVar[str] = "M1"
    prompts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # sentences of the text tower, filled in before training; opposite directions without a tower
        start = functional.normalize(torch.ones(EMBEDDING), dim=0)
        self.register_buffer("prompts", torch.stack([start, -start]))
        self.image = nn.Sequential(nn.Dropout(0.3), nn.Linear(EMBEDDING, _COMMON))
        self.words = nn.Linear(EMBEDDING, _COMMON)
        self.text = sentence_layer()
        self.table = nn.Sequential(nn.Linear(len(TABLE), 2 * WIDTH), nn.GELU())
        self.absent = nn.Parameter(0.02 * torch.randn(3 * WIDTH))  # text and table
        self.no_image = nn.Parameter(0.02 * torch.randn(_COMMON))
        self.record = nn.Linear(3 * WIDTH, _COMMON)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def correction(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """See `Mechanism.correction`."""
        with_record = self.embed_record(record)
        without = functional.normalize(self.record(self.absent), dim=0)
        seen = self.no_image.expand_as(with_record) if image is None else self.embed_image(image)
        return self.suspicion(seen + with_record) - self.suspicion(seen + without)

    def suspicion(self, embedding: Tensor) -> Tensor:
        """How much nearer it lies to the positive sentence, (n, 32) to (n,)."""
        positive, negative = functional.normalize(self.words(self.prompts * EMBEDDING**0.5), dim=1)
        found = functional.normalize(embedding, dim=1) @ (positive - negative)
        return torch.mul(self.temperature.exp(), found)

    def embed_image(self, image: ImageParts) -> Tensor:
        """Embeddings of length 1, shape (n, 32)."""
        return functional.normalize(self.image(self.standard(image)), dim=1)

    def embed_record(self, record: RecordParts) -> Tensor:
        """Embeddings of length 1, shape (n, 32)."""
        absent = self.absent.expand(len(record.table), -1)
        no_text, no_table = absent[:, :WIDTH], absent[:, WIDTH:]
        read = text_or(no_text, self.text, record)
        told = torch.where(record.has_table[:, None], self.table(record.table), no_table)
        return functional.normalize(self.record(torch.cat([read, told], dim=1)), dim=1)
