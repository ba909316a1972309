"""What can be drawn into the phantom, and the truth about what was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum

import numpy as np

from inference.types import Attenuation, Laterality, Lobe, Point


class Margin(StrEnum):
    """Outline of a nodule."""

    SMOOTH = "smooth"
    LOBULATED = "lobulated"
    SPICULATED = "spiculated"


class Attachment(StrEnum):
    """What a nodule touches."""

    ISOLATED = "isolated"
    JUXTAPLEURAL = "juxtapleural"
    JUXTAVASCULAR = "juxtavascular"


class Calcification(StrEnum):
    """Pattern of calcification."""

    ABSENT = "absent"
    POPCORN = "popcorn"
    LAMINATED = "laminated"
    SOLID = "solid"
    NON_CENTRAL = "non-central"
    CENTRAL = "central"


class Content(StrEnum):
    """What a nodule holds besides soft tissue."""

    SOFT_TISSUE = "soft tissue"
    FLUID = "fluid"
    FAT = "fat"
    AIR = "air"


_CALCIFICATION_RATING = {
    Calcification.POPCORN: 1,
    Calcification.LAMINATED: 2,
    Calcification.SOLID: 3,
    Calcification.NON_CENTRAL: 4,
    Calcification.CENTRAL: 5,
    Calcification.ABSENT: 6,
}
_TEXTURE_RATING = {Attenuation.GROUND_GLASS: 1, Attenuation.PART_SOLID: 3, Attenuation.SOLID: 5}
_MARGIN_RATING = {Attenuation.GROUND_GLASS: 2, Attenuation.PART_SOLID: 3, Attenuation.SOLID: 5}


@dataclass(frozen=True)
class NoduleSpec:
    """What to draw; the place is drawn from the seed.

    Parameters
    ----------
    diameter_mm
        Of the ball that the shape is built on, 2 to 40.
    strength
        How marked lobules and spicules are, 0.25 to 2.
    elongation
        Longest half-axis over the others, 1 to 3, at the same volume.
    calcification, content
        Only solid nodules have any.
    pleural_tag
        A strand to the nearest pleura; only on isolated nodules, which then lie within 18 mm of it.
    """

    diameter_mm: float
    attenuation: Attenuation = Attenuation.SOLID
    margin: Margin = Margin.SMOOTH
    attachment: Attachment = Attachment.ISOLATED
    # not in the repr, which the UIDs of phantoms depend on: see `identity`
    strength: float = field(default=1.0, repr=False)
    elongation: float = field(default=1.0, repr=False)
    calcification: Calcification = field(default=Calcification.ABSENT, repr=False)
    content: Content = field(default=Content.SOFT_TISSUE, repr=False)
    pleural_tag: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not 2.0 <= self.diameter_mm <= 40.0:
            raise ValueError(f"a phantom nodule measures 2 to 40 mm, not {self.diameter_mm}")
        if not 0.25 <= self.strength <= 2.0:
            raise ValueError(f"the strength of a margin is 0.25 to 2, not {self.strength}")
        if not 1.0 <= self.elongation <= 3.0:
            raise ValueError(f"the elongation of a nodule is 1 to 3, not {self.elongation}")
        plain = self.calcification is Calcification.ABSENT and self.content is Content.SOFT_TISSUE
        if not plain and self.attenuation is not Attenuation.SOLID:
            raise ValueError("only a solid nodule is calcified or holds fluid, fat or air")
        if self.pleural_tag and self.attachment is not Attachment.ISOLATED:
            raise ValueError("only an isolated nodule has a pleural tag")

    @property
    def reach_mm(self) -> float:
        """Longest half-axis of the ellipsoid it is built on."""
        return float(self.diameter_mm / 2 * self.elongation ** (2 / 3))

    @property
    def identity(self) -> str:
        """Text that is equal for equal specs only; that of a plain one has stayed the same over time."""
        extra = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if not f.repr and getattr(self, f.name) != f.default
        }
        return f"{self!r}{extra or ''}"

    def ratings(self) -> dict[str, int]:
        """What was drawn on the scales of LIDC-IDRI (Armato et al., Med Phys 38:915-931, 2011).

        The names are those of the collection. Subtlety and malignancy are left out: nothing is drawn for
        them. Margin is how sharp the outline was drawn.
        """
        grade = 3 if self.strength < 0.75 else 4 if self.strength < 1.5 else 5
        spiculated = self.margin is Margin.SPICULATED and self.attenuation is not Attenuation.GROUND_GLASS
        return {
            "internalStructure": 1 + tuple(Content).index(self.content),
            "calcification": _CALCIFICATION_RATING[self.calcification],
            "sphericity": 5 - int(np.searchsorted([1.15, 1.4, 1.8, 2.5], self.elongation)),
            "margin": _MARGIN_RATING[self.attenuation] - (1 if spiculated else 0),
            "lobulation": grade if self.margin is Margin.LOBULATED else 1,
            "spiculation": grade if spiculated else 1,
            "texture": _TEXTURE_RATING[self.attenuation],
        }


@dataclass(frozen=True)
class PhantomNodule:
    """The truth of one drawn nodule.

    Parameters
    ----------
    label
        Its value in `Phantom.truth`.
    centre_lps
        Patient coordinates of the centre of the drawn shape, mm.
    diameter_mm
        Diameter of the sphere the shape was built on.
    volume_mm3
        Of the voxels of its label (spicules are not part of it, a cavity is).
    laterality
        Side of the patient.
    lobe
        By the fissures as they are drawn.
    spec
        All that was asked for.
    """

    label: int
    centre_lps: Point
    diameter_mm: float
    volume_mm3: float
    attenuation: Attenuation
    margin: Margin
    attachment: Attachment
    laterality: Laterality
    lobe: Lobe
    spec: NoduleSpec


DEFAULT_NODULES = (
    NoduleSpec(20.0, margin=Margin.SPICULATED),
    NoduleSpec(16.0, Attenuation.PART_SOLID),
    NoduleSpec(14.0, margin=Margin.LOBULATED),
    NoduleSpec(13.0, Attenuation.GROUND_GLASS),
    NoduleSpec(10.0, attachment=Attachment.JUXTAPLEURAL),
    NoduleSpec(8.0),
    NoduleSpec(7.0, attachment=Attachment.JUXTAVASCULAR),
)


def random_specs(rng: np.random.Generator, count: int, *, varied: bool = False) -> tuple[NoduleSpec, ...]:
    """Draw nodules of 4 to 34 mm: mostly solid and small, a third subsolid, every margin and attachment.

    Parameters
    ----------
    varied
        Also draw strength, elongation, calcification, content and pleural tags, after everything else:
        sizes, types, margins and attachments are the same as without.
    """
    specs: list[NoduleSpec] = []
    for _ in range(count):
        diameter = float(np.round(np.exp(rng.uniform(np.log(4), np.log(30))), 1))
        kind = rng.choice(3, p=(0.66, 0.17, 0.17))
        if kind and diameter < 7:
            diameter += 4
        margin = tuple(Margin)[rng.choice(3, p=(0.5, 0.25, 0.25))]
        attachment = tuple(Attachment)[rng.choice(3, p=(0.55, 0.25, 0.2))]
        specs.append(NoduleSpec(diameter, tuple(Attenuation)[kind], margin, attachment))
    return _varied(rng, specs) if varied else tuple(specs)


def _varied(rng: np.random.Generator, specs: Sequence[NoduleSpec]) -> tuple[NoduleSpec, ...]:
    """Draw the finer attributes: a fifth of the solid nodules calcified, a tenth with fluid, fat or air."""
    result = []
    for spec in specs:
        strength, elongation = float(rng.uniform(0.4, 1.8)), float(1 + rng.exponential(0.25))
        kind, pattern, content, tag = rng.uniform(), rng.integers(1, 6), rng.integers(1, 4), rng.uniform()
        fine = replace(spec, strength=strength, elongation=min(elongation, 2.5))
        if spec.attenuation is Attenuation.SOLID and spec.diameter_mm >= 5 and kind < 0.3:
            fine = (
                replace(fine, calcification=tuple(Calcification)[pattern])
                if kind < 0.2
                else replace(fine, content=tuple(Content)[content])
            )
        if spec.attachment is Attachment.ISOLATED and tag < 0.3:
            fine = replace(fine, pleural_tag=True)
        result.append(fine)
    return tuple(result)
