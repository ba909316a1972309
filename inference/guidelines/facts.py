"""What guidelines ask of a nodule, and what they answer.

A fact that nobody knows is None: it is never taken for "no". A rule that needs it says so.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum

from inference.change import Change
from inference.types import Attenuation

_OF_A_NODULE = re.compile(r"(\w[\w.-]*): (.+)")


class Airway(Enum):
    """Where an airway nodule lies."""

    SUBSEGMENTAL = "subsegmental"
    SEGMENTAL_OR_PROXIMAL = "segmental or more proximal"


class Cyst(Enum):
    """A pulmonary cyst, by its wall and its chambers.

    A thin-walled unilocular one (wall below 2 mm) is not classified. Where the wall is what one sees and not
    the hole in it, it is a cavitary nodule and counts as a solid one.
    """

    THIN_WALLED = "thin-walled"
    THICK_WALLED = "thick-walled"
    MULTILOCULAR = "multilocular"
    CAVITARY = "cavitary"


class CystChange(Enum):
    """What of a cyst has changed since the prior examination."""

    CYSTIC_PART_GROWS = "growing cystic part"
    WALL_GROWS = "growing wall or nodularity"
    BECAME_MULTILOCULAR = "has become multilocular"
    GROWS = "growing"
    MORE_LOCULATION_OR_OPACITY = "more loculation, or new or increased opacity"


def to_tenths(mm: float) -> float:
    """Round to 0.1 mm as people do, half up: the mean of 10.1 and 9.8 mm is 10.0 mm.

    The mean of two lengths in tenths often lies in the middle between two tenths, where `round` goes by the
    last bit of its binary form.
    """
    return math.floor(mm * 10 + 0.5 + 1e-9) / 10


@dataclass(frozen=True, slots=True)
class Earlier:
    """The nodule in the prior examination.

    Parameters
    ----------
    category
        The Lung-RADS category that it had, e.g. ``3``; None where it had none or nobody knows.
    months
        Since then.
    mean_diameter_mm, solid_mean_diameter_mm
        As in `Nodule`; None where not known.
    """

    category: str | None
    months: float
    mean_diameter_mm: float | None = None
    solid_mean_diameter_mm: float | None = None


@dataclass(frozen=True, slots=True)
class Nodule:
    """The facts of one nodule.

    Parameters
    ----------
    name
        What the reader calls it, e.g. ``N1``.
    mean_diameter_mm
        Mean of the long and the short axis, mm.
    attenuation
        Of what it consists; None where not known.
    solid_mean_diameter_mm
        Of the solid part of a part-solid nodule, mm.
    change
        Against the prior examination; None where there is one and nobody has compared.
    solid_part
        How the solid part of a part-solid nodule has changed.
    earlier
        The same nodule in the prior examination.
    benign_pattern
        It is calcified completely, centrally, like popcorn or in concentric rings, or has fat in it.
    juxtapleural_benign_form
        It touches the pleura, is solid and smooth, and oval, lentiform or triangular.
    airway, cyst, cyst_changes
        For an airway nodule or an atypical cyst.
    suspicious
        What else speaks for cancer, in words: spicules, enlarged lymph nodes, a metastasis, ...
    proven_benign
        By a diagnostic work-up.
    upper_lobe, spiculated
        For risk models and the Fleischner Society's risk.
    volume_mm3
        By volumetry, mm3. Where it is given, the Fleischner Society's limits of volume decide; Lung-RADS asks
        for the diameter (`inference.guidelines.growth.diameter_of_volume`).

    Raises
    ------
    ValueError
        A diameter or volume that no nodule has, or a solid part larger than the nodule.
    """

    name: str
    mean_diameter_mm: float
    attenuation: Attenuation | None
    solid_mean_diameter_mm: float | None = None
    change: Change | None = Change.BASELINE
    solid_part: Change | None = None
    earlier: Earlier | None = None
    benign_pattern: bool | None = False
    juxtapleural_benign_form: bool | None = False
    airway: Airway | None = None
    cyst: Cyst | None = None
    cyst_changes: tuple[CystChange, ...] = ()
    suspicious: tuple[str, ...] = ()
    proven_benign: bool = False
    upper_lobe: bool | None = None
    spiculated: bool | None = None
    volume_mm3: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mean_diameter_mm <= 300:
            raise ValueError(f"a nodule of {self.mean_diameter_mm} mm")
        if self.volume_mm3 is not None and not 0 < self.volume_mm3 < math.inf:
            raise ValueError(f"a nodule of {self.volume_mm3} mm3")
        solid = self.solid_mean_diameter_mm
        if solid is not None and not 0 <= solid <= self.mean_diameter_mm:
            raise ValueError(f"a solid part of {solid} mm in a nodule of {self.mean_diameter_mm} mm")


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that held, or could not be asked.

    Parameters
    ----------
    rule
        As the guideline has it, in our words.
    because
        The facts by which it held.
    """

    rule: str
    because: str


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a guideline says of one nodule or of an examination.

    Parameters
    ----------
    guideline
        Its name and edition.
    category
        E.g. ``4A``, or None where it can't be determined: then `missing` says why.
    management
        What the guideline recommends; empty without a category.
    trace
        The rules that led there, in their order.
    missing
        What it would take, or what speaks against it, one short sentence each.
    known
        Those of `missing` that are known, such as that the guideline doesn't hold; the others are facts that
        nobody knows.
    """

    guideline: str
    category: str | None
    management: str = ""
    trace: tuple[Step, ...] = ()
    missing: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One or two sentences for a reader."""
        if self.category is not None:
            return f"{self.guideline}: {self.category}. {self.management}"
        known = f": {'; '.join(self.known)}" if self.known else ""
        unknown = self.unknown
        return f"{self.guideline} cannot be determined{known}.{f' Not known: {unknown}.' if unknown else ''}"

    @property
    def unknown(self) -> str:
        """The facts that nobody knows; one that several nodules lack is named once, with the nodules."""
        lacking: dict[str, list[str]] = {}
        for one in self.missing:
            if one not in self.known:
                name, fact = found.groups() if (found := _OF_A_NODULE.fullmatch(one)) else ("", one)
                lacking.setdefault(fact, []).extend([name] if name else [])
        return "; ".join(f"{fact} ({', '.join(names)})" if names else fact for fact, names in lacking.items())


@dataclass
class Reasoning:
    """The steps of an assessment while it is made."""

    steps: list[Step] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def hold(self, rule: str, because: str) -> None:
        """Note a rule that holds."""
        self.steps.append(Step(rule, because))

    def know(self, reason: str) -> None:
        """Note what is known and leaves the question open."""
        self.need(reason)
        self.known.append(reason)

    def need(self, fact: str) -> None:
        """Note a fact that is missing."""
        if fact not in self.missing:
            self.missing.append(fact)
