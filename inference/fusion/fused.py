"""A trained mechanism for use: image-only probability and record in, fused probability out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.fusion.mechanism import ImageParts, Mechanism, RecordParts
from inference.fusion.mechanisms import mechanism_of
from inference.fusion.table import NoduleFacts, encode_table
from inference.openclip_model import REFERENCE, ClipSize, build_clip, embed_sentences
from inference.record import ClinicalRecord
from inference.types import Malignancy
from inference.weights import load_into, read_weights

Floats = NDArray[np.float32]
TextTower = Callable[[Sequence[str]], Floats]
"""Sentences to embeddings, float32, shape (n, 256)."""


@dataclass(frozen=True, slots=True)
class ImageEvidence:
    """What CADx says of one nodule.

    Parameters
    ----------
    probability
        Calibrated image-only probability (`CadxReading.malignancy`).
    embedding
        float32, shape (256,).
    views
        float32, shape (9, 256): of each view.
    """

    probability: float
    embedding: Floats
    views: Floats

    @property
    def logit(self) -> float:
        """Of the probability, within +-14."""
        inside = min(max(self.probability, 1e-6), 1 - 1e-6)
        return math.log(inside / (1 - inside))


class Fusion:
    """A trained `Mechanism` for use.

    Parameters
    ----------
    network
        With its weights.
    text_tower
        Embeds the record's sentence; None leaves the text part absent.
    """

    def __init__(self, network: Mechanism, text_tower: TextTower | None = None) -> None:
        self._network = network.eval()
        self._text_tower = text_tower

    @classmethod
    def load(
        cls,
        path: Traversable,
        sha256: str,
        text_tower: TextTower | None = None,
        *,
        mechanism: str | None,
    ) -> Fusion:
        """Read the weights.

        Parameters
        ----------
        mechanism
            Its name, from the model card.

        Raises
        ------
        ModelUnavailableError
            The mechanism is unknown; the weights are missing, differ from `sha256`, or don't fit it.
        """
        network = mechanism_of(mechanism)()
        load_into(network, read_weights(path, sha256), name=path.name)
        return cls(network, text_tower)

    @torch.inference_mode()
    def probability(
        self, evidence: ImageEvidence, record: ClinicalRecord, nodule: NoduleFacts | None = None
    ) -> float:
        """Probability with the record; ``evidence.probability`` itself where the record is empty.

        Parameters
        ----------
        nodule
            For Brock's part of the table; None leaves it out.
        """
        if record.is_empty:
            return evidence.probability
        text = None
        if self._text_tower is not None and self._network.reads_text:
            text = torch.from_numpy(np.asarray(self._text_tower([record.sentence()]), np.float32))
        seen = [
            torch.from_numpy(np.asarray(one, np.float32))[None]
            for one in (evidence.embedding, evidence.views)
        ]
        table = torch.from_numpy(encode_table(record, nodule if self._network.reads_brock else None))[None]
        yes = torch.ones(1, dtype=torch.bool)
        correction = self._network(ImageParts(*seen), RecordParts(table, text, yes, yes))
        return _probability(evidence.logit + float(self._network.calibrated(correction, yes)))

    def malignancy(
        self, evidence: ImageEvidence, record: ClinicalRecord, nodule: NoduleFacts | None = None
    ) -> Malignancy:
        """Both probabilities; the fused one is None without a record."""
        fused = None if record.is_empty else self.probability(evidence, record, nodule)
        return Malignancy(evidence.probability, fused)


def _probability(logit: float) -> float:
    """The logistic function without overflow."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


def clip_text_tower(text: Mapping[str, Tensor], size: ClipSize = REFERENCE) -> TextTower:
    """The frozen text tower of CADx as a function from sentences to unit vectors.

    Parameters
    ----------
    text
        Its tensors by the keys of open_clip's CLIP, from `inference.train.text`.

    Raises
    ------
    ModelUnavailableError
        They don't fit.
    """
    clip = build_clip(size).eval()
    load_into(clip, {**clip.state_dict(), **text}, name="the text tower")

    @torch.inference_mode()
    def embed(sentences: Sequence[str]) -> Floats:
        return np.asarray(embed_sentences(clip, sentences).numpy())

    return embed
