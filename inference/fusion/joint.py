"""M2, late joint embedding: image, sentence and table of the record to one head.

As in TieNet, LesaNet and others of the joint-embedding kind.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from inference.fusion.mechanism import (
    WIDTH,
    ImageParts,
    Mechanism,
    RecordParts,
    head,
    nodule_layer,
    sentence_layer,
    text_or,
    weight,
)
from inference.fusion.table import TABLE


class JointEmbedding(Mechanism):
    """The record says in which direction, and all three parts together how far."""

    name: ClassVar[str] = "joint-embedding"
    number: ClassVar[str] = "M2"

    def __init__(self) -> None:
        super().__init__()
        self.image = nodule_layer()
        self.text = sentence_layer()
        self.table = nn.Sequential(nn.Linear(len(TABLE), WIDTH), nn.GELU())
        self.absent = nn.Parameter(0.02 * torch.randn(3, WIDTH))  # image, text, table
        self.score = head(2 * WIDTH)
        self.gate = head(3 * WIDTH)
        self.direct = nn.Linear(len(TABLE), 1, bias=False)

    def correction(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """See `Mechanism.correction`."""
        count = len(record.table)
        nothing, no_text, no_table = (self.absent[row].expand(count, -1) for row in range(3))
        seen = nothing if image is None else self.image(self.standard(image))
        read = text_or(no_text, self.text, record)
        told = torch.where(record.has_table[:, None], self.table(record.table), no_table)
        with_record = self.score(torch.cat([read, told], dim=1)) + self.direct(record.known)
        without = self.score(torch.cat([no_text, no_table], dim=1))
        logit = self.gate(torch.cat([seen, read, told], dim=1))
        return torch.mul(weight(logit), with_record - without).squeeze(1)
