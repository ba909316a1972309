"""M3, cross-attention: each item of the record is a token that looks at the views of the nodule.

As MedViLL and the unified transformers: attention masks leave out what is not known.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from inference.fusion.mechanism import (
    EMBEDDING,
    VIEWS,
    WIDTH,
    ImageParts,
    Mechanism,
    RecordParts,
    columns_of,
    head,
    weight,
)
from inference.fusion.table import ITEM_COLUMNS, TABLE

_HEADS: Final = 2
_TOKENS: Final = len(ITEM_COLUMNS) + 1


class CrossAttention(Mechanism):
    """Items among themselves say in which direction; items that have looked at the image say how far."""

    name: ClassVar[str] = "cross-attention"
    number: ClassVar[str] = "M3"
    reads_views: ClassVar[bool] = True
    columns: Tensor
    flags: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("columns", columns_of(ITEM_COLUMNS.values()), persistent=False)
        known = torch.tensor([TABLE.index(names[-1]) for names in ITEM_COLUMNS.values()])
        self.register_buffer("flags", known, persistent=False)
        self.items = nn.Parameter(0.2 * torch.randn(len(ITEM_COLUMNS), len(TABLE), WIDTH))
        self.places = nn.Parameter(0.2 * torch.randn(_TOKENS, WIDTH))
        self.text = nn.Sequential(nn.Dropout(0.1), nn.Linear(EMBEDDING, WIDTH))
        self.absent = nn.Parameter(0.02 * torch.randn(2, WIDTH))  # record, image
        self.among = nn.MultiheadAttention(WIDTH, _HEADS, batch_first=True)
        self.after = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.nodule = nn.Sequential(nn.Dropout(0.3), nn.Linear(EMBEDDING, WIDTH))
        self.view = nn.Sequential(nn.LayerNorm(EMBEDDING), nn.Dropout(0.3), nn.Linear(EMBEDDING, WIDTH))
        self.view_places = nn.Parameter(0.2 * torch.randn(VIEWS, WIDTH))
        self.across = nn.MultiheadAttention(WIDTH, _HEADS, batch_first=True)
        self.score = head(WIDTH)
        self.gate = head(2 * WIDTH)
        self.direct = nn.Linear(len(TABLE), 1, bias=False)

    def correction(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """See `Mechanism.correction`."""
        tokens, unknown = self._record_tokens(record)
        told = self._summary(tokens, unknown)
        nothing = self._summary(tokens[:, :1], unknown[:, :1])
        difference = self.score(told) - self.score(nothing) + self.direct(record.known)
        shown = self._image_tokens(image, len(tokens))
        looked, _ = self.across(tokens, shown, shown, need_weights=False)
        counted = (~unknown).unsqueeze(2).float()
        seen = (looked * counted).sum(1) / counted.sum(1)  # over what is known
        how_far = weight(self.gate(torch.cat([told, seen], dim=1)))
        return torch.mul(how_far, difference).squeeze(1)

    def _record_tokens(self, record: RecordParts) -> tuple[Tensor, Tensor]:
        """The absent token, one for each item, one for the text; and which of them are masked."""
        count = len(record.table)
        values = torch.einsum("nt,gt,gtw->ngw", record.known, self.columns, self.items)
        words = torch.zeros_like(values[:, 0]) if record.text is None else record.text
        text = self.text(words * EMBEDDING**0.5) if record.text is not None else words
        tokens = torch.cat([values, text.unsqueeze(1)], dim=1) + self.places
        first = self.absent[0].expand(count, 1, -1)
        has_text = torch.zeros_like(record.has_text) if record.text is None else record.has_text
        known = torch.cat([record.known[:, self.flags] > 0, has_text.unsqueeze(1)], dim=1)
        always = torch.ones_like(known[:, :1])
        return torch.cat([first, tokens], dim=1), ~torch.cat([always, known], dim=1)

    def _summary(self, tokens: Tensor, unknown: Tensor) -> Tensor:
        """The first token after it has looked at the known others, shape (n, `WIDTH`)."""
        first = tokens[:, :1]
        found, _ = self.among(first, tokens, tokens, key_padding_mask=unknown, need_weights=False)
        answer: Tensor = self.after((first + found).squeeze(1))
        return answer

    def _image_tokens(self, image: ImageParts | None, count: int) -> Tensor:
        """The nodule and its views, shape (n, 10, `WIDTH`); one absent token without an image."""
        if image is None:
            return self.absent[1].expand(count, 1, -1)
        views = self.view(image.each_view()) + self.view_places
        return torch.cat([self.nodule(self.standard(image)).unsqueeze(1), views], dim=1)
