"""The sentences that the text tower reads: structures, semantic pairs, captions.

Wordings in `unseen` are never trained on: figures that use them say how far a sentence generalises.
Pairs follow the sentence form and the LIDC-IDRI mapping of Zhuang et al. (arXiv 2504.21344).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import ge, gt, le
from typing import Final

import numpy as np

NODULE: Final = "nodule"

STRUCTURES: Final[Mapping[str, tuple[str, ...]]] = {
    NODULE: ("lung nodule", "pulmonary nodule", "nodule", "nodule in the lung", "lung lesion"),
    "vessel": ("blood vessel", "pulmonary vessel", "vessel", "lung artery or vein", "branching vessel"),
    "bronchus": ("bronchus", "airway", "bronchus with its wall", "air-filled bronchus"),
    "scar": ("scar", "fibrotic scar", "linear scar", "band of atelectasis"),
    "bone": ("bone", "rib", "vertebra", "bone of the chest"),
    "chest wall": (
        "chest wall",
        "soft tissue of the chest wall",
        "pleura and chest wall",
        "muscle of the chest wall",
    ),
}
"""What a crop of a chest CT may show, by name, in the wordings that are trained on."""

UNSEEN_STRUCTURES: Final[Mapping[str, tuple[str, ...]]] = {
    NODULE: ("small round lung nodule", "focal pulmonary lesion"),
    "vessel": ("pulmonary blood vessel", "artery of the lung"),
    "bronchus": ("air-filled airway",),
    "scar": ("scar with fibrotic band",),
    "bone": ("chest bone",),
    "chest wall": ("muscle and soft tissue of the chest",),
}

FRAMES: Final = (
    "{}",
    "a {}",
    "the {}",
    "a CT slice with a {}",
    "segment the {}",
    "this is a {}",
    "there is a {}",
)


@dataclass(frozen=True, slots=True)
class SentencePair:
    """A semantic feature as two sentences that exclude each other.

    Parameters
    ----------
    feature
        Name as in `inference.types.SemanticFeature`.
    rating
        Name of the LIDC-IDRI rating; None where the collection has none.
    threshold, is_above
        The positive sentence holds where the rating is at least (``ge``), above (``gt``) or at most (``le``)
        this value.
    positive, negative
        Wordings trained on.
    unseen
        One positive and one negative wording that are never trained on.
    """

    feature: str
    rating: str | None
    threshold: float
    compare: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    unseen: tuple[str, str]

    def holds(self, rating: float) -> bool:
        """Whether the positive sentence holds for a rating (the readers' median)."""
        return bool({"ge": ge, "gt": gt, "le": le}[self.compare](rating, self.threshold))


PAIRS: Final[tuple[SentencePair, ...]] = (
    SentencePair(
        "margin",
        "margin",
        3,
        "ge",
        (
            "The nodule is well marginated.",
            "The nodule has a sharp margin.",
            "Well marginated nodule.",
            "The border of the nodule is well defined.",
        ),
        (
            "The nodule is poorly marginated.",
            "The nodule has an ill-defined margin.",
            "Poorly marginated nodule.",
            "The border of the nodule is poorly defined.",
        ),
        (
            "The margin of the nodule is sharp and well defined.",
            "The margin of the nodule is blurred and poorly defined.",
        ),
    ),
    SentencePair(
        "texture",
        "texture",
        4,
        "gt",
        (
            "The nodule is solid.",
            "Solid nodule.",
            "The nodule has a solid consistency.",
            "A dense solid nodule.",
        ),
        (
            "The nodule is subsolid.",
            "Ground glass nodule.",
            "The nodule is part-solid or ground glass.",
            "A faint nonsolid nodule of ground glass.",
        ),
        (
            "The consistency of the nodule is solid.",
            "The consistency of the nodule is ground glass or part-solid.",
        ),
    ),
    SentencePair(
        "spiculation",
        "spiculation",
        3,
        "ge",
        (
            "The nodule is spiculated.",
            "Spiculated nodule.",
            "The nodule has spicules.",
            "The margin is spiculated.",
        ),
        (
            "The nodule is not spiculated.",
            "Nodule without spiculation.",
            "The nodule has no spicules.",
            "The margin is smooth without spicules.",
        ),
        ("Spicules radiate from the nodule.", "No spiculation of the nodule is seen."),
    ),
    SentencePair(
        "lobular_pattern",
        "lobulation",
        3,
        "ge",
        (
            "The nodule is lobulated.",
            "Lobulated nodule.",
            "The nodule has lobules.",
            "The contour is lobulated.",
        ),
        (
            "The nodule is not lobulated.",
            "Nodule without lobulation.",
            "The nodule has no lobules.",
            "The contour is even without lobulation.",
        ),
        ("Lobulation of the contour is seen.", "No lobulation of the contour is seen."),
    ),
    SentencePair(
        "sphericity",
        "sphericity",
        3,
        "gt",
        ("The nodule is round.", "Round nodule.", "The nodule has a spherical shape.", "The shape is round."),
        (
            "The nodule is ovoid or irregular.",
            "Ovoid nodule.",
            "The nodule has an elongated shape.",
            "The shape is ovoid or linear.",
        ),
        ("The shape of the nodule is spherical.", "The shape of the nodule is elongated or ovoid."),
    ),
    SentencePair(
        "calcification",
        "calcification",
        5.5,
        "le",
        (
            "The nodule is calcified.",
            "Calcified nodule.",
            "The nodule contains calcification.",
            "Calcification is present.",
        ),
        (
            "The nodule is not calcified.",
            "Noncalcified nodule.",
            "The nodule contains no calcification.",
            "Calcification is absent.",
        ),
        ("Calcium is seen and the nodule is calcified.", "No calcification of the nodule is seen."),
    ),
    SentencePair(
        "subtlety_score",
        "subtlety",
        4,
        "ge",
        (
            "The nodule is obvious.",
            "Obvious nodule.",
            "The nodule is conspicuous.",
            "The nodule is easy to see.",
        ),
        (
            "The nodule is subtle.",
            "Subtle nodule.",
            "The nodule is inconspicuous.",
            "The nodule is hard to see.",
        ),
        ("An obvious and conspicuous nodule.", "A subtle and inconspicuous nodule."),
    ),
    SentencePair(
        "internal_structure",
        "internalStructure",
        1.5,
        "le",
        ("The nodule consists of soft tissue.", "Soft tissue nodule.", "The interior is soft tissue."),
        (
            "The nodule contains fluid, fat or air.",
            "Nodule with fluid, fat or air.",
            "The interior is not soft tissue.",
        ),
        ("The internal structure is soft tissue.", "The internal structure is fluid, fat or air."),
    ),
    SentencePair(
        "malignancy",
        "malignancy",
        3,
        "gt",
        (
            "The nodule is suspicious for malignancy.",
            "Nodule of high suspicion.",
            "The nodule is likely malignant.",
            "The nodule is suspicious for lung cancer.",
        ),
        (
            "The nodule is benign.",
            "Nodule of low suspicion.",
            "The nodule is unlikely malignant.",
            "The nodule is not suspicious for lung cancer.",
        ),
        ("High suspicion of lung cancer in this nodule.", "Low suspicion of lung cancer in this nodule."),
    ),
    SentencePair(
        "pleural_attachment",
        None,
        0,
        "ge",
        ("The nodule is attached to the pleural surface.", "Nodule with pleural attachment."),
        ("The nodule is not attached to the pleural surface.", "Nodule without pleural attachment."),
        ("Pleural attachment of the nodule is seen.", "No pleural attachment of the nodule is seen."),
    ),
)

SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "small": ("The nodule is small.", "small nodule", "the smaller nodule"),
    "large": ("The nodule is large.", "large nodule", "the larger nodule"),
}
"""Below and from `LARGE_MM` on; in a crop with two nodules the smaller and the larger one."""

LARGE_MM: Final = 10.0

PLACES: Final[Mapping[str, tuple[str, ...]]] = {
    "left": ("the nodule on the left of the image", "left nodule"),
    "right": ("the nodule on the right of the image", "right nodule"),
    "top": ("the nodule at the top of the image", "upper nodule"),
    "bottom": ("the nodule at the bottom of the image", "lower nodule"),
}


def pair(feature: str) -> SentencePair:
    """The pair of one feature.

    Raises
    ------
    KeyError
        There is none.
    """
    for item in PAIRS:
        if item.feature == feature:
            return item
    raise KeyError(feature)


def structure_sentence(name: str, rng: np.random.Generator) -> str:
    """One of the trained wordings of a structure.

    Raises
    ------
    KeyError
        No such structure.
    """
    wording = str(rng.choice(STRUCTURES[name]))
    return str(rng.choice(FRAMES)).format(wording)


def caption(
    ratings: Mapping[str, float],
    rng: np.random.Generator,
    *,
    with_malignancy: bool = True,
    max_sentences: int = 4,
) -> str:
    """A short report of a nodule from ratings, for training only: truth never enters at inference.

    Parameters
    ----------
    ratings
        Readers' medians by LIDC-IDRI name; a missing one is left out.
    rng
        Draws order, number and wording.
    with_malignancy
        Whether the suspicion may be named.
    max_sentences
        At most so many features are named.

    Returns
    -------
    str
        At least one sentence.
    """
    known = [p for p in PAIRS if p.rating in ratings and (with_malignancy or p.feature != "malignancy")]
    number = int(rng.integers(1, max_sentences + 1))
    chosen = [known[index] for index in rng.permutation(len(known))[:number]]
    sentences = [
        str(rng.choice(p.positive if p.holds(ratings[p.rating or ""]) else p.negative)) for p in chosen
    ]
    return " ".join(sentences) or "The nodule."
