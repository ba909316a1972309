"""Image and clinical record to one probability: a joint embedding with a learned token for what is missing.

Three parts meet: the embedding of the nodule from its nine views, the embedding of the record's sentence by
the text tower, and a table of the record's items with the range of Brock's model. The network gives a
correction to the logit of the image alone. The record says in which direction: the difference of one score
with the record and the same score with the learned "absent" tokens in its place, so without a record it is
exactly 0 and the fused result is the image-only one, bit for bit. The image says how much the record counts:
a factor between 0 and 2. It can't do more, because the network that made the embedding has seen the training
nodules: a head that may read their label off it does, and then fails on unseen patients.

The part that reads the record was trained on synthetic records (`inference.train.fusion`): see
`SYNTHETIC_STATEMENT`. Research use only, not for primary diagnosis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inference.openclip_model import REFERENCE, ClipSize, build_clip, embed_sentences
from inference.record import ClinicalRecord, RecordReading, Sex, Smoking
from inference.risk import RiskEstimate, bounds, brock_2b
from inference.types import Attenuation, Finding, Lobe, Malignancy, Observation
from inference.weights import load_into, read_weights

EMBEDDING: Final = 256
WIDTH: Final = 24
FLAGS: Final = ("family_history_lung_cancer", "cancer_history", "emphysema")
TABLE: Final = (
    *("age", "sex", "never", "former", "current", "pack_years", "years_quit", *FLAGS),
    *("age known", "sex known", "smoking known", "pack_years known", "years_quit known"),
    *(f"{flag} known" for flag in FLAGS),
    *("brock middle", "brock half width", "brock known"),
)
"""Columns of the table, in the order of `encode_table`."""

SYNTHETIC_STATEMENT: Final = (
    "The part of the model that reads the clinical record was trained and measured on synthetic records "
    "drawn from published risk models; its gain says nothing about patients."
)

Floats = NDArray[np.float32]
TextTower = Callable[[Sequence[str]], Floats]
"""Sentences to embeddings, float32, shape (n, 256)."""


@dataclass(frozen=True, slots=True)
class NoduleFacts:
    """What Brock's model asks of the image; None where the pipeline can't tell.

    Parameters
    ----------
    diameter_mm
        Longest diameter.
    count
        Nodules of the scan.
    """

    diameter_mm: float
    count: int
    attenuation: Attenuation | None = None
    upper_lobe: bool | None = None
    spiculated: bool | None = None


@dataclass(frozen=True, slots=True)
class ImageEvidence:
    """What CADx says of one nodule.

    Parameters
    ----------
    probability
        Calibrated image-only probability (`CadxReading.malignancy`).
    embedding
        float32, shape (256,).
    """

    probability: float
    embedding: Floats

    @property
    def logit(self) -> float:
        """Of the probability, within +-14."""
        inside = min(max(self.probability, 1e-6), 1 - 1e-6)
        return math.log(inside / (1 - inside))


def brock_range(record: ClinicalRecord, nodule: NoduleFacts) -> tuple[RiskEstimate, RiskEstimate] | None:
    """Lowest and highest estimate of Brock 2b over what isn't known; None without an age."""
    if record.age_years is None:
        return None
    return bounds(
        brock_2b,
        {
            "age_years": record.age_years,
            "female": None if record.sex is None else record.sex is Sex.FEMALE,
            "family_history_lung_cancer": record.family_history_lung_cancer,
            "emphysema": record.emphysema,
            "diameter_mm": nodule.diameter_mm,
            "attenuation": nodule.attenuation,
            "upper_lobe": nodule.upper_lobe,
            "spiculated": nodule.spiculated,
            "nodule_count": nodule.count,
        },
    )


def encode_table(record: ClinicalRecord, nodule: NoduleFacts | None) -> Floats:
    """The record as numbers.

    Returns
    -------
    ndarray
        float32, shape (len(`TABLE`),): values near 1 in size, 0 where not known, then a 1 for each item
        that is known.
    """
    smoking = [float(record.smoking is status) for status in (Smoking.NEVER, Smoking.FORMER, Smoking.CURRENT)]
    if record.smoking is Smoking.NOT_CURRENT:
        smoking = [0.5, 0.5, 0.0]
    sex = {Sex.FEMALE: 1.0, Sex.MALE: -1.0, None: 0.0}[record.sex]
    flags = [getattr(record, flag) for flag in FLAGS]
    asked = (record.age_years, record.sex, record.smoking, record.pack_years, record.years_quit, *flags)
    brock = None if nodule is None else brock_range(record, nodule)
    middle, half = (0.0, 0.0) if brock is None else _middle(*brock)
    return np.array(
        [
            0.0 if record.age_years is None else (record.age_years - 62) / 10,
            sex,
            *smoking,
            (record.pack_years or 0.0) / 20,
            (record.years_quit or 0.0) / 10,
            *(0.0 if flag is None else 2.0 * flag - 1 for flag in flags),
            *(float(value is not None) for value in asked),
            middle / 3,
            half,
            float(brock is not None),
        ],
        dtype=np.float32,
    )


def _middle(low: RiskEstimate, high: RiskEstimate) -> tuple[float, float]:
    return (low.logit + high.logit) / 2, (high.logit - low.logit) / 2


class FusionNetwork(nn.Module):
    """From image, text and table to a correction of the image-only logit."""

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
        self.image = nn.Sequential(nn.Dropout(0.3), nn.Linear(EMBEDDING, WIDTH), nn.GELU())
        self.text = nn.Sequential(nn.Dropout(0.1), nn.Linear(EMBEDDING, WIDTH), nn.GELU())
        self.table = nn.Sequential(nn.Linear(len(TABLE), WIDTH), nn.GELU())
        self.absent = nn.Parameter(0.02 * torch.randn(3, WIDTH))  # image, text, table
        self.score = nn.Sequential(
            nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDTH, 1)
        )
        self.gate = nn.Sequential(
            nn.Linear(3 * WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(WIDTH, 1)
        )
        self.direct = nn.Linear(len(TABLE), 1, bias=False)
        # calibration of the correction, fitted after training
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        # what it was trained with; what it never saw is left out in use too
        self.register_buffer("reads_text", torch.zeros((), dtype=torch.bool))
        self.register_buffer("reads_brock", torch.zeros((), dtype=torch.bool))

    def forward(
        self, image: Tensor | None, text: Tensor | None, table: Tensor, has_text: Tensor, has_table: Tensor
    ) -> Tensor:
        """Correction of the logit.

        Parameters
        ----------
        image
            float32, shape (n, 256); None where only the record is to speak.
        text
            float32, shape (n, 256); None where there is no text tower.
        table
            float32, shape (n, len(`TABLE`)).
        has_text, has_table
            bool, shape (n,): which rows count.

        Returns
        -------
        torch.Tensor
            Shape (n,), before calibration; 0 for a row with neither text nor table.
        """
        count = len(table)
        seen = (
            self.absent[0].expand(count, -1)
            if image is None
            else self.image((image - self.image_mean) / self.image_deviation)
        )
        no_text, no_table = self.absent[1].expand(count, -1), self.absent[2].expand(count, -1)
        read = (
            no_text
            if text is None
            else torch.where(has_text[:, None], self.text(text * EMBEDDING**0.5), no_text)
        )
        told = torch.where(has_table[:, None], self.table(table), no_table)
        known = torch.where(has_table[:, None], table, torch.zeros_like(table))
        with_record = self.score(torch.cat([read, told], dim=1)) + self.direct(known)
        without = self.score(torch.cat([no_text, no_table], dim=1))
        weight = 2 * torch.sigmoid(self.gate(torch.cat([seen, read, told], dim=1)))
        correction = (weight * (with_record - without)).squeeze(1)  # (n,)
        has_record = has_table if text is None else has_table | has_text
        return torch.where(has_record, correction, torch.zeros_like(correction))

    def calibrated(self, correction: Tensor, has_record: Tensor) -> Tensor:
        """Correction after calibration, shape (n,); still 0 without a record."""
        return torch.where(has_record, self.scale * correction + self.offset, torch.zeros_like(correction))


class Fusion:
    """A trained `FusionNetwork` for use.

    Parameters
    ----------
    network
        With its weights.
    text_tower
        Embeds the record's sentence; None leaves the text part absent.
    """

    def __init__(self, network: FusionNetwork, text_tower: TextTower | None = None) -> None:
        self._network = network.eval()
        self._text_tower = text_tower

    @classmethod
    def load(cls, path: Traversable, sha256: str, text_tower: TextTower | None = None) -> Fusion:
        """Read the weights.

        Raises
        ------
        ModelUnavailableError
            They are missing, differ from `sha256`, or don't fit the network.
        """
        network = FusionNetwork()
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
        image = torch.from_numpy(np.asarray(evidence.embedding, np.float32))[None]
        table = torch.from_numpy(encode_table(record, nodule if self._network.reads_brock else None))[None]
        yes = torch.ones(1, dtype=torch.bool)
        correction = self._network(image, text, table, yes, yes)
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


def nodule_facts(finding: Finding, count: int) -> NoduleFacts:
    """What Brock's model asks, as far as a finding answers it."""
    lobe = finding.site.lobe
    return NoduleFacts(
        finding.measurements.long_axis_mm,
        count,
        finding.attenuation,
        None if lobe is None else lobe is Lobe.UPPER,
    )


def apply_record(
    findings: Sequence[Finding],
    evidence: Sequence[ImageEvidence | None],
    reading: RecordReading,
    fusion: Fusion,
) -> tuple[tuple[Finding, ...], tuple[Observation, ...]]:
    """Give each nodule its fused probability and say what the record was used for.

    Parameters
    ----------
    findings
        Of one scan; each with its image-only probability where CADx could judge it.
    evidence
        For each finding; None where there is no image-only probability.

    Returns
    -------
    findings, observations
        The findings with `Malignancy.fused` set, and what a report must say: the items used with their
        sources, `SYNTHETIC_STATEMENT`, and Brock's estimate for each nodule. Findings as they came and
        no observation where the record is empty.
    """
    record = reading.record
    if record.is_empty:
        return tuple(findings), ()
    fused: list[Finding] = []
    notes: list[Observation] = []
    for finding, seen in zip(findings, evidence, strict=True):
        facts = nodule_facts(finding, len(findings))
        changed = (
            finding if seen is None else replace(finding, malignancy=fusion.malignancy(seen, record, facts))
        )
        fused.append(changed)
        if (estimate := brock_range(record, facts)) is not None:
            notes.append(Observation(f"brock_2b_of_{finding.tracking_id}", _brock_words(*estimate)))
    observations = (
        Observation("record_items_used", reading.used_words()),
        Observation("record_model", SYNTHETIC_STATEMENT.removesuffix(".")),
        *notes,
    )
    return tuple(fused), observations


def _brock_words(low: RiskEstimate, high: RiskEstimate) -> str:
    first, last = f"{100 * low.probability:.1f} %", f"{100 * high.probability:.1f} %"
    chance = first if first == last else f"{first} to {last}, by what is not known"
    return " ".join((f"{chance}.", *low.outside)).removesuffix(".")


def table_rows(records: Sequence[ClinicalRecord], nodules: Sequence[NoduleFacts | None]) -> Floats:
    """`encode_table` of many records, float32, shape (n, len(`TABLE`))."""
    return np.stack([encode_table(*pair) for pair in zip(records, nodules, strict=True)])
