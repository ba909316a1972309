"""M5, attributes and knowledge: what the nodule looks like decides which parts of the record count.

The image enters as the eight attributes that LIDC-IDRI rates, learnt from those ratings and never given as
such; the record as groups of a small fixed graph (tobacco, host, disease, published model, words). One weight
stands on each edge between attributes and a group. As LesaNet and Zheng's knowledge-graph attention.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from inference.fusion.mechanism import (
    EMBEDDING,
    WIDTH,
    ImageParts,
    Mechanism,
    RecordParts,
    columns_of,
    head,
    sentence_layer,
    text_or,
    weight,
)
from inference.fusion.table import ITEM_COLUMNS, TABLE

ATTRIBUTES: Final = (
    *("subtlety", "internalStructure", "calcification", "sphericity"),
    *("margin", "lobulation", "spiculation", "texture"),
)
"""By their names in LIDC-IDRI; malignancy is none of them."""

GROUPS: Final = {
    "tobacco": ("smoking", "pack_years", "years_quit"),
    "host": ("age", "sex", "family_history_lung_cancer"),
    "disease": ("cancer_history", "emphysema"),
    "published model": ("brock",),
}
"""Items of the record by what they tell of; the sentence is a group of its own."""


class Attributes(Mechanism):
    """Each group of the record gives a correction of its own, weighed by the nodule's attributes."""

    name: ClassVar[str] = "attributes"
    number: ClassVar[str] = "M5"
    columns: Tensor

    def __init__(self) -> None:
        super().__init__()
        groups = ([name for item in items for name in ITEM_COLUMNS[item]] for items in GROUPS.values())
        self.register_buffer("columns", columns_of(groups), persistent=False)
        self.attributes = nn.Sequential(nn.Dropout(0.3), nn.Linear(EMBEDDING, len(ATTRIBUTES)))
        self.no_image = nn.Parameter(torch.zeros(len(ATTRIBUTES)))
        self.groups = nn.ModuleList(head(len(TABLE)) for _ in GROUPS)
        self.words = sentence_layer()
        self.absent = nn.Parameter(0.02 * torch.randn(WIDTH))
        self.score = head(WIDTH)
        self.direct = nn.Linear(len(TABLE), 1, bias=False)
        self.edges = nn.Linear(len(ATTRIBUTES), len(GROUPS) + 1)

    def correction(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """See `Mechanism.correction`."""
        count = len(record.table)
        logits = self.no_image.expand(count, -1) if image is None else self.attribute_logits(image)
        edges = weight(self.edges(2 * torch.sigmoid(logits) - 1))
        return (edges * self.told(record)).sum(1)

    def attribute_logits(self, image: ImageParts) -> Tensor:
        """Logit of each attribute's place between its lowest and highest rank, shape (n, 8)."""
        answer: Tensor = self.attributes(self.standard(image))
        return answer

    def told(self, record: RecordParts) -> Tensor:
        """What each group says by itself, shape (n, groups and words); 0 for a group that isn't known."""
        found = []
        for columns, group in zip(self.columns, self.groups, strict=True):
            here = record.known * columns
            found.append(group(here) - group(torch.zeros_like(here)) + self.direct(here))
        absent = self.absent.expand(len(record.table), -1)
        found.append(self.score(text_or(absent, self.words, record)) - self.score(absent))
        return torch.cat(found, dim=1)
