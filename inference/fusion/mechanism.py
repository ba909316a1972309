"""What every fusion mechanism shares: its inputs, its answer, and that no record means no correction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor, nn

from inference.fusion.table import TABLE

EMBEDDING: Final = 256
VIEWS: Final = 9
WIDTH: Final = 24
_MOST: Final = 2.0


@dataclass(frozen=True, slots=True)
class ImageParts:
    """What CADx says of n nodules.

    Parameters
    ----------
    embedding
        float32, shape (n, 256).
    views
        float32, shape (n, 9, 256); None where the mechanism reads no views.
    """

    embedding: Tensor
    views: Tensor | None = None

    def each_view(self) -> Tensor:
        """The views.

        Raises
        ------
        ValueError
            There are none.
        """
        if self.views is None:
            raise ValueError("this mechanism reads views, and there are none")
        return self.views

    def rows(self, at: Tensor) -> ImageParts:
        """Of these nodules."""
        return ImageParts(self.embedding[at], None if self.views is None else self.views[at])


@dataclass(frozen=True, slots=True)
class RecordParts:
    """The records of n nodules.

    Parameters
    ----------
    table
        float32, shape (n, len(`TABLE`)).
    text
        Embedding of the sentence, float32, shape (n, 256); None where there is no text tower.
    has_table, has_text
        bool, shape (n,): which rows count.
    """

    table: Tensor
    text: Tensor | None
    has_table: Tensor
    has_text: Tensor

    @property
    def has_record(self) -> Tensor:
        """Whether anything is known, bool, shape (n,)."""
        return self.has_table if self.text is None else self.has_table | self.has_text

    @property
    def known(self) -> Tensor:
        """The table, 0 in the rows that don't count, shape (n, len(`TABLE`))."""
        return torch.where(self.has_table[:, None], self.table, torch.zeros_like(self.table))


class Mechanism(nn.Module, ABC):
    """From image and record to a correction of the image-only logit."""

    name: ClassVar[str]
    """By which a model card chooses it."""
    number: ClassVar[str]
    """M1 to M6, as in the documentation."""
    reads_views: ClassVar[bool] = False
    """Whether it needs `ImageParts.views`."""

    image_mean: Tensor
    image_deviation: Tensor
    scale: Tensor
    offset: Tensor
    reads_text: Tensor
    reads_brock: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("image_mean", torch.zeros(EMBEDDING))
        self.register_buffer("image_deviation", torch.ones(EMBEDDING))
        # calibration of the correction, fitted after training
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        # what it was trained with; what it never saw is left out in use too
        self.register_buffer("reads_text", torch.zeros((), dtype=torch.bool))
        self.register_buffer("reads_brock", torch.zeros((), dtype=torch.bool))

    @abstractmethod
    def correction(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """Correction of the logit, shape (n,); rows without a record may hold anything."""

    def forward(self, image: ImageParts | None, record: RecordParts) -> Tensor:
        """Correction of the logit.

        Parameters
        ----------
        image
            None where only the record is to speak.

        Returns
        -------
        torch.Tensor
            Shape (n,), before calibration; exactly 0 for a row without a record.
        """
        correction = self.correction(image, record)
        return torch.where(record.has_record, correction, torch.zeros_like(correction))

    def calibrated(self, correction: Tensor, has_record: Tensor) -> Tensor:
        """Correction after calibration, shape (n,); still 0 without a record."""
        return torch.where(has_record, self.scale * correction + self.offset, torch.zeros_like(correction))

    def standard(self, image: ImageParts) -> Tensor:
        """The embedding on the scale of the training nodules, shape (n, 256)."""
        return (image.embedding - self.image_mean) / self.image_deviation


class Direction(nn.Module):
    """In which direction and how far the record moves the logit, before the image weighs it.

    One score with the record, and the same score with the learned absent tokens in its place: the difference.
    """

    def __init__(self) -> None:
        super().__init__()
        self.text = sentence_layer()
        self.table = nn.Sequential(nn.Linear(len(TABLE), WIDTH), nn.GELU())
        self.absent = nn.Parameter(0.02 * torch.randn(2, WIDTH))  # text, table
        self.score = head(2 * WIDTH)
        self.direct = nn.Linear(len(TABLE), 1, bias=False)

    def forward(self, record: RecordParts) -> tuple[Tensor, Tensor]:
        """Tokens of text and table, shape (n, 2 * `WIDTH`), and the difference, shape (n,)."""
        count = len(record.table)
        no_text, no_table = (self.absent[row].expand(count, -1) for row in range(2))
        read = text_or(no_text, self.text, record)
        told = torch.where(record.has_table[:, None], self.table(record.table), no_table)
        tokens = torch.cat([read, told], dim=1)
        difference = self.score(tokens) - self.score(torch.cat([no_text, no_table], dim=1))
        return tokens, (difference + self.direct(record.known)).squeeze(1)


def text_or(absent: Tensor, layer: nn.Module, record: RecordParts) -> Tensor:
    """What `layer` makes of the sentences, `absent` where there is none; shape (n, width)."""
    if record.text is None:
        return absent
    # embeddings have length 1: brought to a deviation of about 1
    return torch.where(record.has_text[:, None], layer(record.text * EMBEDDING**0.5), absent)


def sentence_layer() -> nn.Sequential:
    """From the embedding of a sentence to `WIDTH` numbers."""
    return _from_embedding(0.1)


def nodule_layer() -> nn.Sequential:
    """From the standard embedding of a nodule to `WIDTH` numbers."""
    return _from_embedding(0.3)


def _from_embedding(dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(EMBEDDING, WIDTH), nn.GELU())


def columns_of(groups: Iterable[Iterable[str]]) -> Tensor:
    """Which columns of the table each group names, 0 or 1, shape (groups, len(`TABLE`))."""
    return torch.tensor([[float(name in group) for name in TABLE] for group in map(set, groups)])


def head(width: int) -> nn.Sequential:
    """Two layers to one number."""
    return nn.Sequential(nn.Linear(width, WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDTH, 1))


def weight(logit: Tensor) -> Tensor:
    """How much the record counts: 0 to 2, and 1 for a logit of 0."""
    return _MOST * torch.sigmoid(logit)
