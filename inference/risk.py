"""Published models of the probability that a nodule is cancer: Brock (PanCan) 2a and 2b, Mayo, VA and Peking.

Plain functions of known facts, without a trained part. They are shown beside the node's own estimate and
give its fusion head one input. Each was fitted on a cohort of its own; where a case lies outside of it the
estimate says so, and its number is then an extrapolation.

Sources: McWilliams et al., N Engl J Med 369:910-919, 2013 (Brock; coefficients as in PMC6717521, table 2);
Swensen et al., Arch Intern Med 157:849-855, 1997 (Mayo); Gould et al., Chest 131:383-388, 2007 (VA);
Peking University, 2011 (coefficients as in PMC6717521, table 2). Research use only, not for primary
diagnosis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inference.types import Attenuation

_SIZE_CENTRE = 1.58113883
"""``(4 mm / 10) ** -0.5``: Brock's size term is centred on 4 mm."""
_COUNT_CENTRE = 4
_AGE_CENTRE = 62.0


@dataclass(frozen=True, slots=True)
class RiskEstimate:
    """What a published model says of one nodule.

    Parameters
    ----------
    model
        Its name.
    logit
        Natural logarithm of the odds.
    outside
        What lies outside the cohort that the model was fitted on, one short sentence each.
    """

    model: str
    logit: float
    outside: tuple[str, ...] = ()

    @property
    def probability(self) -> float:
        """Probability of cancer, 0..1."""
        return 1 / (1 + math.exp(-self.logit))


def brock_2b(
    *,
    age_years: float,
    female: bool,
    family_history_lung_cancer: bool,
    emphysema: bool,
    diameter_mm: float,
    attenuation: Attenuation,
    upper_lobe: bool,
    spiculated: bool,
    nodule_count: int,
) -> RiskEstimate:
    """Brock (PanCan) model 2b: the full model with spiculation.

    Parameters
    ----------
    age_years
        At the time of the scan.
    female
        False for men.
    family_history_lung_cancer
        In a relative of the first degree.
    emphysema
        On CT.
    diameter_mm
        Longest diameter of the nodule, mm.
    attenuation
        Solid, part-solid or ground-glass (non-solid).
    upper_lobe
        The nodule lies in the right or left upper lobe.
    spiculated
        Its margin has spicules.
    nodule_count
        Nodules of the scan, this one counted; at least 1.

    Raises
    ------
    ValueError
        An age, diameter or count that no person has.
    """
    size = _size_term(age_years, diameter_mm, nodule_count)
    kind = {Attenuation.SOLID: 0.0, Attenuation.PART_SOLID: 0.377, Attenuation.GROUND_GLASS: -0.1276}
    logit = (
        -6.78917
        + 0.0286687 * (age_years - _AGE_CENTRE)
        + 0.6011 * female
        + 0.296109 * family_history_lung_cancer
        + 0.2953112 * emphysema
        - 5.385484 * size
        + kind[attenuation]
        + 0.6581383 * upper_lobe
        + 0.7729335 * spiculated
        - 0.0824156 * (nodule_count - _COUNT_CENTRE)
    )
    return RiskEstimate("Brock 2b", logit, _outside_pancan(age_years))


def brock_2a(
    *,
    age_years: float,
    female: bool,
    family_history_lung_cancer: bool,
    emphysema: bool,
    diameter_mm: float,
    attenuation: Attenuation,
    upper_lobe: bool,
    nodule_count: int,
) -> RiskEstimate:
    """Brock (PanCan) model 2a: the full model without spiculation.

    Parameters as for `brock_2b`. The coefficients are known from one public source only
    (medicalalgorithms.com); its remark that 4 mm be subtracted from the size is wrong, as the constant shows.

    Raises
    ------
    ValueError
        An age, diameter or count that no person has.
    """
    size = _size_term(age_years, diameter_mm, nodule_count)
    kind = {Attenuation.SOLID: 0.0, Attenuation.PART_SOLID: 0.3395, Attenuation.GROUND_GLASS: -0.3055}
    logit = (
        -6.8071
        + 0.0321 * (age_years - _AGE_CENTRE)
        + 0.5635 * female
        + 0.3013 * family_history_lung_cancer
        + 0.3462 * emphysema
        - 5.6693 * size
        + kind[attenuation]
        + 0.7116 * upper_lobe
        - 0.0803 * (nodule_count - _COUNT_CENTRE)
    )
    return RiskEstimate("Brock 2a", logit, _outside_pancan(age_years))


def mayo(
    *,
    age_years: float,
    ever_smoker: bool,
    cancer_history: bool,
    diameter_mm: float,
    spiculated: bool,
    upper_lobe: bool,
) -> RiskEstimate:
    """Mayo Clinic model of the solitary pulmonary nodule.

    Parameters
    ----------
    ever_smoker
        Smokes or has smoked.
    cancer_history
        A cancer outside the chest, diagnosed more than five years ago.
    diameter_mm
        Mm; the cohort had 4 to 30.

    Raises
    ------
    ValueError
        An age or diameter that no person has.
    """
    _check(age_years, diameter_mm)
    logit = (
        -6.8272
        + 0.0391 * age_years
        + 0.7917 * ever_smoker
        + 1.3388 * cancer_history
        + 0.1274 * diameter_mm
        + 1.0407 * spiculated
        + 0.7838 * upper_lobe
    )
    outside = () if 4 <= diameter_mm <= 30 else ("Mayo: the cohort's nodules measured 4 to 30 mm.",)
    return RiskEstimate("Mayo", logit, outside)


def va(
    *, age_years: float, ever_smoker: bool, diameter_mm: float, years_since_quitting: float | None
) -> RiskEstimate:
    """Veterans Affairs model of the solitary pulmonary nodule.

    Parameters
    ----------
    ever_smoker
        Smokes or has smoked.
    diameter_mm
        Mm; the cohort had 7 to 30.
    years_since_quitting
        0 for who still smokes; None for who never did.

    Raises
    ------
    ValueError
        An age, diameter or time that no person has, or a time that doesn't fit `ever_smoker`.
    """
    _check(age_years, diameter_mm)
    if ever_smoker != (years_since_quitting is not None):
        raise ValueError("the years since quitting are known of smokers and former smokers, and of them only")
    years = years_since_quitting or 0.0
    if not 0 <= years <= age_years:
        raise ValueError(f"{years} years since quitting at the age of {age_years}")
    logit = -8.404 + 0.0779 * age_years + 2.061 * ever_smoker + 0.112 * diameter_mm - 0.0567 * years
    outside = () if 7 <= diameter_mm <= 30 else ("VA: the cohort's nodules measured 7 to 30 mm.",)
    return RiskEstimate("VA", logit, outside)


def peking(
    *,
    age_years: float,
    diameter_mm: float,
    spiculated: bool,
    family_history_cancer: bool,
    calcified: bool,
    smooth_border: bool,
) -> RiskEstimate:
    """Peking University model of the solitary pulmonary nodule.

    Parameters
    ----------
    diameter_mm
        Mm; the cohort had up to 30.
    family_history_cancer
        Any cancer in the family.

    Raises
    ------
    ValueError
        An age or diameter that no person has.
    """
    _check(age_years, diameter_mm)
    logit = (
        -4.496
        + 0.07 * age_years
        + 0.0676 * diameter_mm
        + 0.736 * spiculated
        + 1.267 * family_history_cancer
        - 1.615 * calcified
        - 1.408 * smooth_border
    )
    outside = () if diameter_mm <= 30 else ("Peking: the cohort's nodules measured up to 30 mm.",)
    return RiskEstimate("Peking", logit, outside)


def bounds(
    model: Callable[..., RiskEstimate], facts: Mapping[str, float | bool | Attenuation | None]
) -> tuple[RiskEstimate, RiskEstimate]:
    """Lowest and highest estimate over the facts that aren't known.

    Parameters
    ----------
    model
        One of this module's functions: each fact adds to the logit by itself, so the extremes are found fact
        by fact.
    facts
        Its parameters by name. A fact that is None is tried with every value it can have; age, diameter and
        count must be known.

    Raises
    ------
    ValueError
        A number isn't known.

    Examples
    --------
    The node knows no lobes, so Brock is a range between "not in the upper lobe" and "in the upper lobe".
    """
    unknown = [name for name, value in facts.items() if value is None]
    numbers = [name for name in unknown if name in {"age_years", "diameter_mm", "nodule_count"}]
    if numbers:
        raise ValueError(f"{', '.join(numbers)} must be known")
    options = {name: tuple(Attenuation) if name == "attenuation" else (False, True) for name in unknown}
    low = high = model(**{**facts, **{name: values[0] for name, values in options.items()}})
    best, worst = ({name: values[0] for name, values in options.items()} for _ in range(2))
    for name, values in options.items():
        for value in values[1:]:
            lower = model(**{**facts, **best, name: value})
            higher = model(**{**facts, **worst, name: value})
            if lower.logit < low.logit:
                low, best[name] = lower, value
            if higher.logit > high.logit:
                high, worst[name] = higher, value
    return low, high


def _check(age_years: float, diameter_mm: float) -> None:
    if not 0 <= age_years <= 120:
        raise ValueError(f"an age of {age_years} years")
    if not 0 < diameter_mm <= 300:
        raise ValueError(f"a nodule of {diameter_mm} mm")


def _size_term(age_years: float, diameter_mm: float, nodule_count: int) -> float:
    _check(age_years, diameter_mm)
    if nodule_count < 1:
        raise ValueError(f"{nodule_count} nodules: the nodule itself counts")
    return float((diameter_mm / 10) ** -0.5 - _SIZE_CENTRE)


def _outside_pancan(age_years: float) -> tuple[str, ...]:
    """PanCan: current and former smokers of 50 to 75 years at their first screening CT."""
    if 50 <= age_years <= 75:
        return ()
    return ("Brock: the cohort's smokers and former smokers were 50 to 75 years old.",)
