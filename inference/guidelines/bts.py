"""British Thoracic Society 2015: what to do about a nodule, and about one that is followed.

Source: Callister et al., Thorax 70 (Suppl. 2):ii1-ii54, 2015, algorithms 1 to 3, as tabulated in PMC6784443,
table 4. Diameters are the longest ones, mm; a volume counts before a diameter. It holds from 18 years on.
"""

from __future__ import annotations

from inference.certainty import Percent
from inference.change import Doubling
from inference.guidelines.facts import Assessment, Reasoning
from inference.types import Attenuation

GUIDELINE = "British Thoracic Society 2015"
_DISCHARGE = "Discharge."
_IN_3_MONTHS = "CT at 3 months."
_IN_12_MONTHS = "CT at 12 months."
_BY_RISK = "CT surveillance: CT at 3 months."
_WORK_UP = "PET/CT, then by the risk with it: surveillance, biopsy or resection."
_SUBSOLID = "CT at 3 months, then by risk: CT at 1, 2 and 4 years, biopsy or resection."
#: mm and mm3
_SMALL, _MIDDLE_MM, _LARGE = (5.0, 80.0), 6.0, (8.0, 300.0)
_HIGH_RISK = 0.10
#: relative change of volume, days
_GROWTH, _FAST, _SLOW = 0.25, 400.0, 600.0
_YEAR_MONTHS, _TOLERANCE_MONTHS = 12.0, 1.0


def assess(
    *,
    diameter_mm: float | None = None,
    volume_mm3: float | None = None,
    attenuation: Attenuation | None,
    benign_pattern: bool | None = False,
    brock_probability: float | None = None,
) -> Assessment:
    """What to do about a nodule that is seen for the first time.

    Parameters
    ----------
    diameter_mm, volume_mm3
        One of them at least; the volume decides where it is known.
    attenuation
        None where not known.
    benign_pattern
        Benign calcification, fat, or a typical perifissural or subpleural lymph node.
    brock_probability
        0..1 by `inference.risk.brock_2b`; asked only from 8 mm or 300 mm3 on.

    Raises
    ------
    ValueError
        A size or probability that can't be.
    """
    _check(diameter_mm, volume_mm3, brock_probability)
    reasoning = Reasoning()
    if benign_pattern:
        return _said("benign pattern", _DISCHARGE, "the nodule has a benign pattern")
    if benign_pattern is None:
        reasoning.need("whether it has a benign pattern")
    if diameter_mm is None and volume_mm3 is None:
        reasoning.need("the diameter or the volume of the nodule")
    elif _below(_SMALL, diameter_mm, volume_mm3) and benign_pattern is not None:
        return _said("below 5 mm or 80 mm3", _DISCHARGE, _size(diameter_mm, volume_mm3))
    if attenuation is None:
        reasoning.need("whether it is solid, part-solid or ground-glass")
    if reasoning.missing:
        return Assessment(GUIDELINE, None, missing=tuple(reasoning.missing))
    if attenuation is not Attenuation.SOLID:
        return _said("subsolid, 5 mm or more", _SUBSOLID, _size(diameter_mm, volume_mm3))
    return _solid(diameter_mm, volume_mm3, brock_probability)


def _solid(diameter_mm: float | None, volume_mm3: float | None, probability: float | None) -> Assessment:
    size = _size(diameter_mm, volume_mm3)
    if not _below(_LARGE, diameter_mm, volume_mm3):
        return _large(size, probability)
    if volume_mm3 is None and diameter_mm is not None and diameter_mm < _MIDDLE_MM:
        return _said("solid, 5 to below 6 mm", _IN_12_MONTHS, size)
    return _said("solid, 6 to below 8 mm, or 80 to below 300 mm3", _IN_3_MONTHS, size)


def follow_up(found: Doubling, months: float) -> Assessment:
    """What to do about a solid nodule whose volume was measured twice.

    Parameters
    ----------
    found
        From `inference.guidelines.growth.doubling`.
    months
        Since the first CT.

    Raises
    ------
    ValueError
        An interval that isn't positive.
    """
    if not months > 0:
        raise ValueError("the examinations must be of different days")
    at_a_year = months >= _YEAR_MONTHS - _TOLERANCE_MONTHS
    because = f"volume {100 * found.change:+.0f} % in {months:g} months"
    if found.change < _GROWTH:
        return _said("stable: less than 25 % more", _DISCHARGE if at_a_year else _IN_12_MONTHS, because)
    because += f", doubling in {found.days:.0f} days"
    if found.days <= _FAST:
        return _said("doubling in 400 days or less", "Further work-up: biopsy or resection.", because)
    if not at_a_year:
        return _said("doubling in more than 400 days", _IN_12_MONTHS, because)
    if found.days <= _SLOW:
        return _said("doubling in 400 to 600 days", "Biopsy or further surveillance.", because)
    return _said("doubling in more than 600 days", "Discharge or yearly surveillance.", because)


def _large(size: str, probability: float | None) -> Assessment:
    if probability is None:
        return Assessment(GUIDELINE, None, missing=("the probability of cancer by the Brock model",))
    because = f"{size}, Brock {Percent(probability):.1f} %"
    if probability < _HIGH_RISK:
        return _said("solid, 8 mm or 300 mm3 or more, risk below 10 %", _BY_RISK, because)
    return _said("solid, 8 mm or 300 mm3 or more, risk of 10 % or more", _WORK_UP, because)


def _below(limit: tuple[float, float], diameter_mm: float | None, volume_mm3: float | None) -> bool:
    if volume_mm3 is not None:
        return volume_mm3 < limit[1]
    return diameter_mm is not None and diameter_mm < limit[0]


def _size(diameter_mm: float | None, volume_mm3: float | None) -> str:
    return f"{diameter_mm:.1f} mm" if volume_mm3 is None else f"{volume_mm3:.0f} mm3"


def _said(category: str, management: str, because: str) -> Assessment:
    reasoning = Reasoning()
    reasoning.hold(category, because)
    return Assessment(GUIDELINE, category, management, tuple(reasoning.steps))


def _check(diameter_mm: float | None, volume_mm3: float | None, probability: float | None) -> None:
    if diameter_mm is not None and not 0 < diameter_mm <= 300:
        raise ValueError(f"a nodule of {diameter_mm} mm")
    if volume_mm3 is not None and not 0 < volume_mm3 <= 1.5e7:
        raise ValueError(f"a nodule of {volume_mm3} mm3")
    if probability is not None and not 0 <= probability <= 1:
        raise ValueError(f"a probability of {probability}")
