"""The CADx network: nine views and a mask's numbers to one embedding that sentences are compared with.

Image tower and text tower are a CLIP (open_clip). Each of nine views is embedded; attention pooling over the
views (Ilse et al., arXiv 1802.04712) and a few numbers of the mask give the embedding of the nodule. What it
means is read off by comparing it with sentences: a feature is present where the embedding lies nearer to its
positive than to its negative sentence. Zhuang et al., arXiv 2504.21344. Research use only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.descriptors import NAMES
from inference.openclip_model import REFERENCE, VIT_B_32, ClipSize, build_clip, tokenize
from inference.prompts import PAIRS, STRUCTURES
from inference.views import REFERENCE_VIEWS, VIT_B_32_VIEWS, ViewSize, normalise

EMBEDDING: Final = 256
ATTENTION: Final = 128
MALIGNANCY: Final = [pair.feature for pair in PAIRS].index("malignancy")


@dataclass(frozen=True, slots=True)
class CadxSize:
    """Towers and views that belong together."""

    clip: ClipSize
    views: ViewSize


REFERENCE_CADX: Final = CadxSize(REFERENCE, REFERENCE_VIEWS)
FULL_CADX: Final = CadxSize(VIT_B_32, VIT_B_32_VIEWS)


class TextHead(nn.Module):
    """From the text tower's embedding to the joint one: Linear, GELU, Linear, dropout, residual, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, EMBEDDING)
        self.second = nn.Linear(EMBEDDING, EMBEDDING)
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(EMBEDDING)

    def forward(self, text: Tensor) -> Tensor:
        """(n, width) to (n, 256)."""
        start = self.first(text)
        answer: Tensor = self.norm(start + self.dropout(self.second(functional.gelu(start))))
        return answer


class CadxNetwork(nn.Module):
    """Nine views, a mask's numbers and sentences in one space of 256 dimensions.

    Parameters
    ----------
    size
        Of towers and views.
    """

    described_mean: Tensor
    described_deviation: Tensor

    def __init__(self, size: CadxSize = REFERENCE_CADX) -> None:
        super().__init__()
        self.size = size
        self.clip = build_clip(size.clip)
        self.view_head = nn.Sequential(nn.Linear(size.clip.embed_dim, EMBEDDING), nn.ReLU())
        self.attention = nn.Sequential(nn.Linear(EMBEDDING, ATTENTION), nn.Tanh(), nn.Linear(ATTENTION, 1))
        self.describe_head = nn.Sequential(
            nn.Linear(len(NAMES), 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, EMBEDDING)
        )
        self.norm = nn.LayerNorm(EMBEDDING)
        self.text_head = TextHead(size.clip.embed_dim)
        self.malignancy = nn.Linear(EMBEDDING, 1)
        # one scale and offset for each pair: how far apart its two sentences lie differs
        self.pair_scale = nn.Parameter(torch.full((len(PAIRS),), 5.0))
        self.pair_offset = nn.Parameter(torch.zeros(len(PAIRS)))
        self.structure_scale = nn.Parameter(torch.tensor(8.0))
        self.register_buffer("described_mean", torch.zeros(len(NAMES)))
        self.register_buffer("described_deviation", torch.ones(len(NAMES)))

    def embed_views(self, views: Tensor, described: Tensor | None, has_mask: Tensor | None = None) -> Tensor:
        """Embed nodules.

        Parameters
        ----------
        views
            float, shape (n, views, 3, pixels, pixels), 0..1; any number of views.
        described
            float32, shape (n, len(NAMES)), from `inference.descriptors.describe`; None without masks.
        has_mask
            bool, shape (n,): which rows of `described` count; None for all.

        Returns
        -------
        torch.Tensor
            float32, shape (n, 256), of length 1.
        """
        return self.pool_views(self.embed_each(views), described, has_mask)

    def embed_each(self, views: Tensor) -> Tensor:
        """Embed each view by itself.

        Parameters
        ----------
        views
            As for `embed_views`.

        Returns
        -------
        torch.Tensor
            float32, shape (n, views, 256).
        """
        number, count = views.shape[:2]
        pixels = normalise(views.flatten(0, 1), self.size.views).contiguous(memory_format=torch.channels_last)
        each: Tensor = self.view_head(self.clip.encode_image(pixels)).float()
        return each.view(number, count, EMBEDDING)

    def pool_views(self, each: Tensor, described: Tensor | None, has_mask: Tensor | None = None) -> Tensor:
        """From `embed_each` to the embedding of the nodule; see `embed_views`."""
        weights = self.attention(each).float().softmax(dim=1)  # (n, views, 1)
        pooled = (weights * each).sum(1)
        if described is not None:
            standard = ((described - self.described_mean) / self.described_deviation).clamp(-4, 4)
            added = self.describe_head(standard).float()
            pooled = pooled + (added if has_mask is None else added * has_mask.unsqueeze(1))
        return functional.normalize(self.norm(pooled.float()), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Embed sentences, int64 (n, context), to float32 (n, 256) of length 1."""
        return functional.normalize(self.text_head(self.clip.encode_text(tokens)).float(), dim=-1)

    def embed_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Embed sentences to float32 (n, 256) of length 1."""
        tokens = tokenize(sentences, self.size.clip.context_length)
        return self.embed_tokens(tokens.to(self.pair_scale.device))

    def pair_sentences(self, *, unseen: bool = False) -> tuple[Tensor, Tensor]:
        """Mean embedding of the wordings of each side of each pair, (pairs, 256) twice.

        Parameters
        ----------
        unseen
            The wordings that are never trained on, to measure how far a sentence generalises.
        """
        sides = [((p.unseen[0],), (p.unseen[1],)) if unseen else (p.positive, p.negative) for p in PAIRS]
        positive = torch.stack([self.embed_sentences(side[0]).mean(0) for side in sides])
        return positive, torch.stack([self.embed_sentences(side[1]).mean(0) for side in sides])

    def structure_sentences(self) -> Tensor:
        """Mean embedding of the wordings of each structure, (structures, 256)."""
        return torch.stack([self.embed_sentences(words).mean(0) for words in STRUCTURES.values()])

    def malignancy_logit(self, embedding: Tensor) -> Tensor:
        """Uncalibrated logit, shape (n,)."""
        answer: Tensor = self.malignancy(embedding * EMBEDDING**0.5).squeeze(-1)
        return answer

    def pair_logits(self, embedding: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Logit that the positive sentence holds.

        Parameters
        ----------
        embedding
            Shape (n, 256).
        positive, negative
            Shape (pairs, 256), one sentence each of every pair in the order of `PAIRS`.

        Returns
        -------
        torch.Tensor
            Shape (n, pairs).
        """
        return self.pair_scale * (embedding @ (positive - negative).T) + self.pair_offset

    def suspicion(self, embedding: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Mean of the classifier's logit and that of the sentence pair on malignancy, shape (n,)."""
        pair = self.pair_logits(embedding, positive, negative)[:, MALIGNANCY]
        return (self.malignancy_logit(embedding) + pair) / 2

    def structure_logits(self, embedding: Tensor, sentences: Tensor) -> Tensor:
        """Scaled similarity to the sentence of each structure, (n, 256) and (s, 256) to (n, s)."""
        return self.structure_scale * (embedding @ sentences.T)
