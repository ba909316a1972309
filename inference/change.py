"""Words and numbers for what became of a nodule between two examinations.

Source: volume doubling time as in NELSON (van Klaveren et al., N Engl J Med 361:2221-2229, 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

#: NELSON: from this increase on volumetry calls it growth
_VOLUME_GROWTH = 0.25
#: in days
_SUSPICIOUS, _INDETERMINATE = 400.0, 600.0


class Change(Enum):
    """How a nodule compares with the prior examination."""

    BASELINE = "baseline"
    NEW = "new"
    STABLE = "stable"
    SMALLER = "smaller"
    GROWING = "growing"
    SLOWLY_GROWING = "slowly growing"


class GrowthClass(Enum):
    """What NELSON's protocol makes of two volumes."""

    NO_GROWTH = "no growth (volume change below 25 %)"
    SUSPICIOUS = "growing, doubling in less than 400 days"
    INDETERMINATE = "growing, doubling in 400 to 600 days"
    SLOW = "growing, doubling in more than 600 days"


@dataclass(frozen=True, slots=True)
class Doubling:
    """Two volumes and what follows from them.

    Parameters
    ----------
    change
        Relative change of volume: 0.25 is a quarter more.
    days
        Volume doubling time; infinite where the volume is the same, negative where it shrinks.
    """

    change: float
    days: float

    @property
    def growth(self) -> GrowthClass:
        """By NELSON's thresholds."""
        if self.change < _VOLUME_GROWTH:
            return GrowthClass.NO_GROWTH
        if self.days < _SUSPICIOUS:
            return GrowthClass.SUSPICIOUS
        return GrowthClass.INDETERMINATE if self.days <= _INDETERMINATE else GrowthClass.SLOW
