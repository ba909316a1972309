"""How a nodule has changed between two examinations.

Sources: Lung-RADS v2022, note on growth (American College of Radiology); volume doubling time as in NELSON
(van Klaveren et al., N Engl J Med 361:2221-2229, 2009).
"""

from __future__ import annotations

import math

from inference.change import Change, Doubling
from inference.guidelines.facts import to_tenths

GROWTH_MM = 1.5
"""Lung-RADS: more than this within twelve months is growth."""
_YEAR_MONTHS = 12.0


def sphere_mm3(diameter_mm: float) -> float:
    """Volume of a ball, mm3: how guidelines turn diameters into volumes."""
    return math.pi / 6 * diameter_mm**3


def diameter_of_volume(mm3: float) -> float:
    """The mean diameter, to 0.1 mm, that stands on the same side of Lung-RADS's limits as a volume.

    Lung-RADS gives each limit as a diameter and as the volume of the ball of it, to the whole mm3 (6 mm and
    113 mm3): the answer is the largest tenth whose ball, so rounded, isn't larger than the volume.

    Raises
    ------
    ValueError
        A volume that isn't positive and finite, or that is below that of 0.1 mm.
    """
    if not 0 < mm3 < math.inf:
        raise ValueError(f"a volume of {mm3} mm3")
    whole = math.floor(mm3 + 0.5)
    tenths = round(10 * math.cbrt(6 * mm3 / math.pi)) + 1
    while tenths > 1 and math.floor(sphere_mm3(tenths / 10) + 0.5) > whole:
        tenths -= 1
    return tenths / 10


def doubling(earlier_mm3: float, now_mm3: float, days: float) -> Doubling:
    """Volume doubling time: ``days * ln 2 / ln(now / earlier)``.

    Parameters
    ----------
    days
        Between the two examinations.

    Raises
    ------
    ValueError
        A volume or an interval that isn't positive.
    """
    if not (earlier_mm3 > 0 and now_mm3 > 0):
        raise ValueError("a volume must be more than 0 mm3")
    if not days > 0:
        raise ValueError("the examinations must be of different days")
    ratio = math.log(now_mm3 / earlier_mm3)
    return Doubling(now_mm3 / earlier_mm3 - 1, math.inf if ratio == 0 else days * math.log(2) / ratio)


def change_of(earlier_mm: float, now_mm: float, months: float) -> Change:
    """Lung-RADS v2022: growth is more than 1.5 mm of mean diameter within twelve months.

    More than that over a longer time, but less within any twelve months at an even pace, is slow growth.

    Parameters
    ----------
    earlier_mm, now_mm
        Mean diameters, rounded to 0.1 mm as the guideline measures.
    months
        Between the two examinations.

    Raises
    ------
    ValueError
        A diameter or an interval that isn't positive.
    """
    if not (earlier_mm > 0 and now_mm > 0 and months > 0):
        raise ValueError("diameters and the interval must be positive")
    increase = round(to_tenths(now_mm) - to_tenths(earlier_mm), 1)
    if increase < -GROWTH_MM:
        return Change.SMALLER
    if increase <= GROWTH_MM:
        return Change.STABLE
    within_a_year = increase * _YEAR_MONTHS / max(months, _YEAR_MONTHS)
    return Change.GROWING if within_a_year > GROWTH_MM else Change.SLOWLY_GROWING
