"""M6, attention over views: the record asks, and the nine views are pooled by what is asked.

Gated attention (Ilse et al., arXiv 1802.04712) with the record as a further input, as REFERS fuses views.
Earlier examinations could be further tokens; no collection at hand has any, so they are not built in.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from inference.fusion.mechanism import (
    EMBEDDING,
    WIDTH,
    Direction,
    ImageParts,
    Mechanism,
    RecordParts,
    head,
    nodule_layer,
    weight,
)


class ViewAttention(Mechanism):
    """The record says in which direction; the views that it attends to say how far."""

    name: ClassVar[str] = "view-attention"
    number: ClassVar[str] = "M6"
    reads_views: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.direction = Direction()
        self.view = nn.Sequential(
            nn.LayerNorm(EMBEDDING), nn.Dropout(0.3), nn.Linear(EMBEDDING, WIDTH), nn.GELU()
        )
        self.nodule = nodule_layer()
        self.of_view, self.of_record = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.openness = nn.Linear(WIDTH, WIDTH)
        self.attention = nn.Linear(WIDTH, 1)
        self.no_image = nn.Parameter(0.02 * torch.randn(2 * WIDTH))
        self.gate = head(4 * WIDTH)

    def correction(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """See `Mechanism.correction`."""
        tokens, difference = self.direction(record)
        seen = self.no_image.expand(len(tokens), -1) if image is None else self._pooled(image, tokens)
        how_far = weight(self.gate(torch.cat([seen, tokens], dim=1))).squeeze(1)
        return torch.mul(how_far, difference)

    def _pooled(self, image: ImageParts, tokens: Tensor) -> Tensor:
        """The views as the record attends to them, beside the nodule; shape (n, 2 * `WIDTH`)."""
        views = self.view(image.each_view())  # (n, 9, WIDTH)
        asked = torch.tanh(self.of_view(views) + self.of_record(tokens).unsqueeze(1))
        shares = self.attention(asked * torch.sigmoid(self.openness(views))).softmax(dim=1)
        return torch.cat([(shares * views).sum(1), self.nodule(self.standard(image))], dim=1)
