"""CADx: a nodule's malignancy, semantic features, structure and likeness to radiomic descriptions.

Nine views of the nodule and a few numbers of its mask become one embedding; what it means is read off by
comparing it with sentences (Zhuang et al., arXiv 2504.21344): a feature is present where the embedding lies
nearer to its positive than to its negative sentence. Malignancy is the readers' rating, not histology.
Research use only, not for primary diagnosis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.cadx_network import REFERENCE_CADX, CadxNetwork, CadxSize
from inference.descriptors import NAMES, describe
from inference.errors import ModelUnavailableError
from inference.lora import add_lora, remove_lora
from inference.prompts import PAIRS, STRUCTURES
from inference.types import Index, SemanticFeature
from inference.views import CROP_MM, Spacing, block_of, draw_views
from inference.weights import load_into

CALCIFICATION: Final = "calcification"
RANKED: Final = tuple(pair.feature for pair in PAIRS if pair.rating is not None)
"""Features that get a rank: those that the collection rates."""

_MEMBER: Final = "member"
_CALIBRATION: Final = "calibration."
_BASE: Final = ".original"

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CadxReading:
    """What the network says of one nodule.

    Parameters
    ----------
    malignancy
        Calibrated probability that the median of radiologists' ratings (1 to 5) is above 3 rather than below,
        of nodules that they don't rate 3. It is no probability of histological cancer.
    logit
        Uncalibrated, for `inference.fusion`.
    features
        Ranks on the scales of LIDC-IDRI, each the most probable one.
    pair_probabilities
        By feature: that the positive sentence holds.
    embedding
        float32, shape (256,), length 1.
    views
        float32, shape (9, 256): what each view alone says, for `inference.fusion`.
    structure_similarity
        Probability of each of `inference.prompts.STRUCTURES`, told without the mask.
    radiomic_similarity
        By name of a number of the mask: similarity of the embedding to training nodules where it is high
        less the similarity to those where it is low, -2..2. EMeRALDS, arXiv 2509.11714.
    """

    malignancy: float
    logit: float
    features: tuple[SemanticFeature, ...]
    pair_probabilities: Mapping[str, float]
    embedding: NDArray[np.float32]
    views: NDArray[np.float32]
    structure_similarity: Mapping[str, float]
    radiomic_similarity: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Calibration:
    """From logits to what is reported; fitted by `inference.train.cadx_calibrate`.

    Parameters
    ----------
    malignancy
        Slope and offset of the logit.
    linear
        Shape (len(NAMES) + 1,): weights and offset of a plain linear model of the mask's numbers, which is
        added to the networks' logit.
    ranks
        By feature: slope of the pair's logit, then one falling threshold for each step between ranks: a
        rank of at least k + 2 has the logit ``slope * pair + threshold[k]`` (proportional odds). For
        calcification, whose ranks have no order: "absent" against present, then the share of each kind.
    prototypes
        Shape (len(NAMES), 2, 256): mean embedding of training nodules where a number is high, and low.
    """

    malignancy: tuple[float, float]
    linear: NDArray[np.float32]
    ranks: Mapping[str, NDArray[np.float64]]
    prototypes: NDArray[np.float32]


def rank_probabilities(feature: str, pair_logit: float, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability of each rank of a feature, summing to 1."""
    if feature == CALCIFICATION:
        present = _sigmoid(ranks[0] * pair_logit + ranks[1])
        return np.concatenate([present * ranks[2:], [1 - present]])
    at_least = np.concatenate([[1.0], _sigmoid(ranks[0] * pair_logit + ranks[1:]), [0.0]])
    return np.asarray(at_least[:-1] - at_least[1:])


def _sigmoid(logit: Any) -> Any:
    return 1 / (1 + np.exp(-logit))


class NineViewReader:
    """Reads nodules: one or more networks whose logits are averaged.

    Parameters
    ----------
    members
        Trained networks.
    calibration
        Fitted for these members.
    """

    def __init__(
        self, members: Sequence[CadxNetwork], calibration: Calibration, *, unseen: bool = False
    ) -> None:
        if not members:
            raise ValueError("there is no network to read with")
        self._members = [member.eval() for member in members]
        self._calibration = calibration
        with torch.inference_mode():
            self._pairs = [member.pair_sentences(unseen=unseen) for member in self._members]
            self._structures = [member.structure_sentences() for member in self._members]

    def in_unseen_words(self) -> NineViewReader:
        """The same networks asked in wordings that they were never trained on, to measure the difference."""
        return NineViewReader(self._members, self._calibration, unseen=True)

    def read(
        self,
        hu: NDArray[Any],
        spacing_mm: Spacing,
        mask: Mask,
        origin: Index = (0, 0, 0),
    ) -> CadxReading:
        """Read one nodule of a CT or of a strip of slices.

        Parameters
        ----------
        hu
            HU, shape (z, y, x).
        spacing_mm
            Voxel pitch (z, y, x).
        mask
            bool: the nodule, cropped.
        origin
            Index in `hu` of ``mask[0, 0, 0]``.

        Raises
        ------
        ValueError
            The mask is empty or reaches outside the array.
        """
        part, shown, place = _around(hu, mask, origin, spacing_mm)
        views = draw_views(block_of(part, spacing_mm, shown), self._members[0].size.views).unsqueeze(0)
        numbers = describe(part, shown, spacing_mm)
        described = torch.from_numpy(numbers).unsqueeze(0)
        logits, pairs, embeddings, tokens = [], [], [], []
        with torch.inference_mode():
            for member, (positive, negative) in zip(self._members, self._pairs, strict=True):
                each = member.embed_each(views)
                embedding = member.pool_views(each, described)
                logits.append(member.suspicion(embedding, positive, negative)[0])
                pairs.append(member.pair_logits(embedding, positive, negative)[0])
                embeddings.append(embedding[0].numpy())
                tokens.append(each[0].numpy())
        linear = self._calibration.linear
        depth = float(shown.any((1, 2)).sum() * spacing_mm[0])
        return self._reading(
            float(torch.stack(logits).mean()) + float(numbers @ linear[:-1] + linear[-1]),
            torch.stack(pairs).mean(0).numpy(),
            (embeddings[0], tokens[0]),
            self.structures(part, spacing_mm, place, depth),
        )

    def _reading(
        self,
        logit: float,
        pairs: NDArray[np.float32],
        seen: tuple[NDArray[np.float32], NDArray[np.float32]],
        structures: Mapping[str, float],
    ) -> CadxReading:
        embedding, views = seen
        slope, offset = self._calibration.malignancy
        by_feature = {pair.feature: float(value) for pair, value in zip(PAIRS, pairs, strict=True)}
        features = []
        for feature in RANKED:
            chances = rank_probabilities(feature, by_feature[feature], self._calibration.ranks[feature])
            features.append(SemanticFeature(feature, int(chances.argmax()) + 1, float(chances.max())))
        high, low = (self._calibration.prototypes[:, side] @ embedding for side in (0, 1))
        return CadxReading(
            malignancy=float(_sigmoid(slope * logit + offset)),
            logit=logit,
            features=tuple(features),
            pair_probabilities={feature: float(_sigmoid(by_feature[feature])) for feature in RANKED},
            embedding=embedding,
            views=views,
            structure_similarity=structures,
            radiomic_similarity=dict(zip(NAMES, (high - low).tolist(), strict=True)),
        )

    def structures(
        self, hu: NDArray[Any], spacing_mm: Spacing, place: tuple[float, float, float], extent_mm: float
    ) -> dict[str, float]:
        """Probability of each of `inference.prompts.STRUCTURES` at a place, without a mask.

        Parameters
        ----------
        place
            Fractional index (z, y, x).
        extent_mm
            How far the candidate reaches along z.
        """
        half = max(0, round((extent_mm / spacing_mm[0] - 1) / 2))
        middle = round(place[0])
        first, stop = max(0, middle - half), min(len(hu), middle + half + 1)
        block = block_of(hu[first:stop], spacing_mm, None, (place[0] - first, place[1], place[2]))
        views = draw_views(block, self._members[0].size.views).unsqueeze(0)
        with torch.inference_mode():
            found = [
                member.structure_logits(member.embed_views(views, None), sentences).softmax(1).mean(0)
                for member, sentences in zip(self._members, self._structures, strict=True)
            ]
        return dict(zip(STRUCTURES, torch.stack(found).mean(0).tolist(), strict=True))


def _around(
    hu: NDArray[Any], mask: Mask, origin: Index, spacing_mm: Spacing
) -> tuple[NDArray[Any], Mask, tuple[float, float, float]]:
    """The part of an array that a reading needs, the mask in it, and the middle of the mask there."""
    if not mask.any():
        raise ValueError("an empty mask can't be read")
    ends = [o + n for o, n in zip(origin, mask.shape, strict=True)]
    if min(origin) < 0 or any(end > n for end, n in zip(ends, hu.shape, strict=True)):
        raise ValueError("the mask reaches outside the array")
    margins = [0, *(int(CROP_MM * 0.75 / pitch) + 2 for pitch in spacing_mm[1:])]
    low = [max(0, o - m) for o, m in zip(origin, margins, strict=True)]
    high = [min(n, end + m) for n, end, m in zip(hu.shape, ends, margins, strict=True)]
    part = hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    shown = np.zeros(part.shape, dtype=bool)
    start = [o - a for o, a in zip(origin, low, strict=True)]
    shown[tuple(slice(s, s + n) for s, n in zip(start, mask.shape, strict=True))] = mask
    found = np.argwhere(shown)
    z, y, x = ((found.min(0) + found.max(0)) / 2).tolist()
    return part, shown, (z, y, x)


def build_reader(
    text: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    size: CadxSize = REFERENCE_CADX,
    *,
    malignancy_shift: float = 0.0,
) -> NineViewReader:
    """Put a reader together from its two files of weights.

    Parameters
    ----------
    text
        The frozen text tower, by the keys of open_clip's CLIP; from `inference.train.text`.
    tensors
        The trained members and their calibration, from `pack`.
    malignancy_shift
        Added to the calibrated logit of malignancy: what the segmenter's masks take from it, beside the
        readers' outlines that it was calibrated under (`inference.train.cadx_shift`).

    Raises
    ------
    ModelUnavailableError
        A tensor is missing, unknown or of another shape.
    """
    count = len({key.split(".")[1] for key in tensors if key.startswith(f"{_MEMBER}.")})
    if not count:
        raise ModelUnavailableError("the CADx weights hold no network")
    members = []
    for number in range(count):
        start = f"{_MEMBER}.{number}."
        own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
        network = CadxNetwork(size)
        add_lora(network.clip.transformer)
        load_into(network, own | _base_keys(text, network), name=f"CADx member {number}")
        remove_lora(network.clip.transformer)
        members.append(network)
    calibration = _calibration_of(tensors)
    slope, offset = calibration.malignancy
    return NineViewReader(members, replace(calibration, malignancy=(slope, offset + malignancy_shift)))


def _base_keys(text: Mapping[str, Tensor], network: CadxNetwork) -> dict[str, Tensor]:
    """The text tower's tensors by the keys that they have under LoRA."""
    keys = set(network.state_dict())
    renamed = {}
    for key, value in text.items():
        stem, _, last = f"clip.{key}".rpartition(".")
        adapted = f"{stem}.parametrizations.{last}{_BASE}"
        renamed[adapted if adapted in keys else f"clip.{key}"] = value
    return renamed


def pack(
    members: Sequence[Mapping[str, Tensor]], text: Mapping[str, Tensor], calibration: Calibration
) -> dict[str, Tensor]:
    """What `build_reader` reads: state of each member under LoRA, without the shared text tower."""
    packed = {}
    for number, state in enumerate(members):
        for key, value in state.items():
            plain = key.replace(".parametrizations", "").removesuffix(_BASE).removeprefix("clip.")
            if plain not in text:
                packed[f"{_MEMBER}.{number}.{key}"] = value
    packed[f"{_CALIBRATION}malignancy"] = torch.tensor(calibration.malignancy)
    packed[f"{_CALIBRATION}linear"] = torch.from_numpy(calibration.linear)
    packed[f"{_CALIBRATION}prototypes"] = torch.from_numpy(calibration.prototypes)
    for feature, ranks in calibration.ranks.items():
        packed[f"{_CALIBRATION}ranks.{feature}"] = torch.from_numpy(ranks).float()
    return packed


def _calibration_of(tensors: Mapping[str, Tensor]) -> Calibration:
    try:
        slope, offset = tensors[f"{_CALIBRATION}malignancy"].tolist()
        linear = tensors[f"{_CALIBRATION}linear"].numpy()
        ranks = {feature: tensors[f"{_CALIBRATION}ranks.{feature}"].double().numpy() for feature in RANKED}
        prototypes = tensors[f"{_CALIBRATION}prototypes"].numpy()
    except (KeyError, ValueError) as error:
        raise ModelUnavailableError(f"the CADx weights lack their calibration: {error}") from error
    if prototypes.shape[:2] != (len(NAMES), 2):
        raise ModelUnavailableError(f"the CADx prototypes have shape {prototypes.shape}")
    if linear.shape != (len(NAMES) + 1,):
        raise ModelUnavailableError(f"the CADx linear model has shape {linear.shape}")
    return Calibration((slope, offset), linear, ranks, prototypes)
