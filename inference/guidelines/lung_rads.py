"""Lung-RADS v2022: the category of a nodule and of a screening examination, with the rules that gave it.

Source: American College of Radiology, Lung-RADS v2022 assessment categories (November 2022), as explained in
Christensen et al., Chest 165:738-753, 2024. Diameters are means of the long and the short axis, to 0.1 mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from inference.change import Change
from inference.guidelines.facts import Assessment, Cyst, Earlier, Nodule, Reasoning, to_tenths
from inference.guidelines.lung_rads_lesions import (
    CATEGORIES,
    UNCHANGED,
    airway,
    cyst,
    is_unclassified,
    stepped_down,
)
from inference.types import Attenuation

__all__ = ["CATEGORIES", "MANAGEMENT", "Examination", "assess", "assess_nodule", "infection_signs"]

GUIDELINE = "Lung-RADS v2022"
MANAGEMENT = {
    "0": "Compare with the prior CT, complete the examination, or repeat low-dose CT in 1 to 3 months.",
    "1": "Screening low-dose CT in 12 months.",
    "2": "Screening low-dose CT in 12 months.",
    "3": "Low-dose CT in 6 months.",
    "4A": "Low-dose CT in 3 months; PET/CT may be considered if a solid nodule or part measures 8 mm or "
    "more.",
    "4B": "Referral for clinical evaluation: diagnostic chest CT, PET/CT if a solid nodule or part measures "
    "8 mm or more, or tissue sampling.",
    "4X": "Referral for clinical evaluation: diagnostic chest CT, PET/CT if a solid nodule or part measures "
    "8 mm or more, or tissue sampling.",
}
#: upper limits in mm (exclusive) and the category below each; what is larger is 4B
_SOLID = {
    Change.BASELINE: ((6.0, "2"), (8.0, "3"), (15.0, "4A")),
    Change.NEW: ((4.0, "2"), (6.0, "3"), (8.0, "4A")),
    Change.GROWING: ((8.0, "4A"),),
}
_SOLID_PART_AT_BASELINE = ((6.0, "3"), (8.0, "4A"))
_SOLID_PART_NEW_OR_GROWING = ((4.0, "4A"),)
_SMALL_PART_SOLID_MM = 6.0
_LARGE_GROUND_GLASS_MM = 30.0
_JUXTAPLEURAL_MM = 10.0
_YEAR_MONTHS = 12.0
_MANY_NEW_NODULES = 6
_LARGE_NEW_MM = 8.0


@dataclass(frozen=True, slots=True)
class Examination:
    """What Lung-RADS asks of a whole examination.

    Parameters
    ----------
    screening
        Whether it is a lung cancer screening CT: Lung-RADS holds for no other. None where nobody knows.
    nodules
        All of them.
    prior_awaited
        A prior CT exists and is being fetched.
    lungs_complete
        All of both lungs can be evaluated.
    infection
        Findings that suggest an infection or inflammation, in words.
    other_significant
        A clinically significant finding that has nothing to do with lung cancer: modifier S.
    """

    screening: bool | None
    nodules: tuple[Nodule, ...] = ()
    prior_awaited: bool = False
    lungs_complete: bool = True
    infection: tuple[str, ...] = ()
    other_significant: bool = False


def assess(examination: Examination) -> Assessment:
    """Give an examination the category of its most suspicious nodule, or 0 where it is incomplete.

    Returns
    -------
    Assessment
        The trace names each nodule; modifier S is part of the category (``2S``).
    """
    if examination.screening is not True:
        unknown = examination.screening is None
        reason = "whether this is a screening examination" if unknown else "not a screening examination"
        return Assessment(GUIDELINE, None, missing=(reason,), known=() if unknown else (reason,))
    reasoning = Reasoning()
    ways = _incomplete(examination, reasoning)
    category = "0" if ways else _worst(examination.nodules, reasoning)
    if category is None:
        missing, known = tuple(reasoning.missing), tuple(reasoning.known)
        return Assessment(GUIDELINE, None, "", tuple(reasoning.steps), missing, known)
    management = " ".join(ways) or MANAGEMENT[category]
    if examination.other_significant:
        reasoning.hold("S: a significant finding unrelated to lung cancer", "reported")
        category += "S"
    return Assessment(GUIDELINE, category, management, tuple(reasoning.steps))


def assess_nodule(nodule: Nodule) -> Assessment:
    """Give one nodule of a screening examination its category."""
    reasoning = Reasoning()
    category = _category(nodule, reasoning)
    suspicious = (*nodule.suspicious, *_doubled(nodule))
    if category in {"3", "4A", "4B"} and suspicious:
        category = "4X"
        reasoning.hold("4X: category 3 or 4 with findings that raise the suspicion", _list(suspicious))
    if category is None:
        return Assessment(GUIDELINE, None, "", tuple(reasoning.steps), tuple(reasoning.missing))
    return Assessment(GUIDELINE, category, MANAGEMENT[category], tuple(reasoning.steps))


def infection_signs(
    *,
    consolidation: bool = False,
    new_nodules: int = 0,
    large_new_solid_mm: float | None = None,
    short_interval: bool = False,
    immunocompromised: bool = False,
) -> tuple[str, ...]:
    """Name the findings that may make an examination category 0 as inflammatory or infectious (note 10).

    The guideline leaves it to the reader whether they do: what is returned is for
    `Examination.infection`, and an examination without it is judged by its nodules.

    Parameters
    ----------
    consolidation
        Of a segment or a lobe.
    new_nodules
        Their number; more than six count.
    large_new_solid_mm
        Mean diameter of the largest new solid nodule; 8 mm or more within a short interval counts.
    immunocompromised
        A patient in whom new nodules are suspect of an infection.
    """
    signs = ["segmental or lobar consolidation"] if consolidation else []
    if new_nodules > _MANY_NEW_NODULES:
        signs.append(f"{new_nodules} new nodules")
    if large_new_solid_mm is not None and to_tenths(large_new_solid_mm) >= _LARGE_NEW_MM and short_interval:
        signs.append(f"a solid nodule of {large_new_solid_mm:.1f} mm that appeared in a short interval")
    if immunocompromised and new_nodules:
        signs.append("new nodules in an immunocompromised patient")
    return tuple(signs)


def _doubled(nodule: Nodule) -> tuple[str, ...]:
    """A ground-glass nodule that has doubled in size within a year."""
    earlier = nodule.earlier
    if nodule.attenuation is not Attenuation.GROUND_GLASS or earlier is None:
        return ()
    if earlier.mean_diameter_mm is None or earlier.months > _YEAR_MONTHS:
        return ()
    doubled = to_tenths(nodule.mean_diameter_mm) >= 2 * to_tenths(earlier.mean_diameter_mm)
    return ("ground-glass nodule that doubled in size within a year",) if doubled else ()


def _incomplete(examination: Examination, reasoning: Reasoning) -> list[str]:
    """What to do about each reason for category 0; empty where there is none."""
    ways = []
    if examination.prior_awaited:
        reasoning.hold(
            "0: a prior chest CT is being located for comparison", "a prior examination is awaited"
        )
        ways.append("Comparison with the prior chest CT.")
    if not examination.lungs_complete:
        reasoning.hold("0: part or all of the lungs can't be evaluated", "the lungs are not complete")
        ways.append("Additional low-dose CT images.")
    if examination.infection:
        reasoning.hold(
            "0: findings suggest an inflammatory or infectious process", _list(examination.infection)
        )
        ways.append("Low-dose CT in 1 to 3 months.")
    return ways


def _worst(nodules: Sequence[Nodule], reasoning: Reasoning) -> str | None:
    classified = [nodule for nodule in nodules if not is_unclassified(nodule)]
    if not classified:
        reasoning.hold("1: no lung nodule", "a thin-walled cyst is none" if nodules else "no nodule found")
        return "1"
    worst: str | None = None
    for nodule in classified:
        one = assess_nodule(nodule)
        for step in one.trace:
            reasoning.hold(step.rule, f"{nodule.name}: {step.because}")
        for fact in one.missing:
            reasoning.need(f"{nodule.name}: {fact}")
        if one.category is not None and (worst is None or _rank(one.category) > _rank(worst)):
            worst = one.category
    if reasoning.missing and worst != CATEGORIES[-1]:
        if worst is not None:
            reasoning.know(f"the other nodules make it {worst} or higher")
        return None
    return worst


def _category(nodule: Nodule, reasoning: Reasoning) -> str | None:
    """Ask the rules in the order in which one overrules the next."""
    if nodule.benign_pattern:
        reasoning.hold("1: benign calcification, or fat", "the nodule has a benign pattern")
        return "1"
    if nodule.proven_benign:
        reasoning.hold("2: proven benign by a diagnostic work-up", "proven benign")
        return "2"
    if nodule.benign_pattern is None:
        reasoning.need("whether it has a benign calcification or fat")
    if nodule.change is None:
        reasoning.need("whether it is new, stable or growing")
    if nodule.benign_pattern is None or nodule.change is None:
        return None
    change = nodule.change
    if nodule.airway is not None:
        return airway(nodule.airway, change, reasoning)
    if nodule.cyst is Cyst.CAVITARY:
        nodule = replace(nodule, cyst=None, attenuation=Attenuation.SOLID)
    if nodule.cyst is not None:
        return cyst(nodule, change, reasoning)
    return _parenchymal(nodule, change, reasoning)


def _parenchymal(nodule: Nodule, change: Change, reasoning: Reasoning) -> str | None:
    if nodule.attenuation is None:
        reasoning.need("whether it is solid, part-solid or ground-glass")
        return None
    if _is_benign_juxtapleural(nodule, change, reasoning):
        return "2"
    if reasoning.missing:
        return None
    if change in UNCHANGED and nodule.solid_part not in {Change.NEW, Change.GROWING}:
        return _unchanged(nodule, nodule.attenuation, reasoning)
    return _by_size(nodule, nodule.attenuation, change, reasoning)


def _is_benign_juxtapleural(nodule: Nodule, change: Change, reasoning: Reasoning) -> bool:
    mean = to_tenths(nodule.mean_diameter_mm)
    first = change in {Change.BASELINE, Change.NEW}
    if not (nodule.attenuation is Attenuation.SOLID and mean < _JUXTAPLEURAL_MM):
        return False
    if nodule.juxtapleural_benign_form and change in UNCHANGED:
        reasoning.hold("2: juxtapleural, below 10 mm, of benign form, stable or smaller", _facts(nodule))
        return True
    if not first:
        return False
    if nodule.juxtapleural_benign_form:
        reasoning.hold(
            "2: juxtapleural, below 10 mm, solid, smooth, oval, lentiform or triangular", _facts(nodule)
        )
        return True
    if nodule.juxtapleural_benign_form is None and _band(mean, _SOLID[change]) != "2":
        reasoning.need("whether it is juxtapleural, smooth, and oval, lentiform or triangular")
    return False


def _by_size(nodule: Nodule, attenuation: Attenuation, change: Change, reasoning: Reasoning) -> str | None:
    mean = to_tenths(nodule.mean_diameter_mm)
    if attenuation is Attenuation.GROUND_GLASS:
        return _ground_glass(nodule, mean, change, reasoning)
    if change is Change.SLOWLY_GROWING:
        reasoning.hold("4B: solid or part-solid, grows slowly over several examinations", _facts(nodule))
        return "4B"
    if attenuation is Attenuation.PART_SOLID:
        return _part_solid(nodule, mean, change, reasoning)
    category = _band(mean, _SOLID[change])
    reasoning.hold(f"{category}: solid, {_range(mean, _SOLID[change])}, {change.value}", _facts(nodule))
    return category


def _ground_glass(nodule: Nodule, mean: float, change: Change, reasoning: Reasoning) -> str:
    if mean < _LARGE_GROUND_GLASS_MM:
        reasoning.hold("2: ground-glass, below 30 mm", _facts(nodule))
        return "2"
    if change is Change.SLOWLY_GROWING:
        reasoning.hold("2: ground-glass, 30 mm or more, stable or slowly growing", _facts(nodule))
        return "2"
    reasoning.hold("3: ground-glass, 30 mm or more, at baseline, new, or grown to that size", _facts(nodule))
    return "3"


def _part_solid(nodule: Nodule, mean: float, change: Change, reasoning: Reasoning) -> str | None:
    small = mean < _SMALL_PART_SOLID_MM
    if small and change is Change.BASELINE:
        reasoning.hold("2: part-solid, below 6 mm in total, baseline", _facts(nodule))
        return "2"
    if small and change is Change.NEW:
        reasoning.hold("3: part-solid, below 6 mm in total, new", _facts(nodule))
        return "3"
    part = Change.NEW if change is Change.NEW else nodule.solid_part
    if nodule.solid_mean_diameter_mm is None:
        reasoning.need("the diameter of its solid part")
    if part is None and change is not Change.BASELINE:
        reasoning.need("whether its solid part has grown")
    if nodule.solid_mean_diameter_mm is None or (part is None and change is not Change.BASELINE):
        return None
    solid = to_tenths(nodule.solid_mean_diameter_mm)
    changed = part in {Change.NEW, Change.GROWING}
    if small and not changed:
        reasoning.hold("2: part-solid, below 6 mm in total, its solid part has not grown", _facts(nodule))
        return "2"
    bands = _SOLID_PART_NEW_OR_GROWING if changed else _SOLID_PART_AT_BASELINE
    category = _band(solid, bands)
    how = "new or growing" if changed else "by its size"
    reasoning.hold(f"{category}: part-solid, solid part {_range(solid, bands)}, {how}", _facts(nodule))
    return category


def _unchanged(nodule: Nodule, attenuation: Attenuation, reasoning: Reasoning) -> str | None:
    """A stable or smaller nodule steps down from the category it had, unless it crossed a size threshold."""
    if attenuation is Attenuation.GROUND_GLASS:
        reasoning.hold("2: ground-glass, stable", _facts(nodule))
        return "2"
    if nodule.earlier is None:
        reasoning.need("its category or size in the prior examination")
        return None
    before = _size_before(nodule, attenuation, nodule.earlier)
    by_size = _by_size(nodule, attenuation, Change.BASELINE, silent := Reasoning())
    if before is not None and by_size is not None and _rank(by_size) > _rank(before):
        reasoning.steps += silent.steps
        reasoning.hold(f"{by_size}: crossed a size threshold, if without growth", _facts(nodule))
        return by_size
    category = nodule.earlier.category or before
    if category is None:
        reasoning.need("its category or size in the prior examination")
        return None
    return stepped_down(category, nodule.earlier.months, reasoning)


def _size_before(nodule: Nodule, attenuation: Attenuation, earlier: Earlier) -> str | None:
    if earlier.mean_diameter_mm is None:
        return None
    solid = earlier.solid_mean_diameter_mm
    then = Nodule(nodule.name, earlier.mean_diameter_mm, attenuation, solid)
    return _by_size(then, attenuation, Change.BASELINE, Reasoning())


def _band(mm: float, bands: Sequence[tuple[float, str]]) -> str:
    return next((category for limit, category in bands if mm < limit), "4B")


def _range(mm: float, bands: Sequence[tuple[float, str]]) -> str:
    limits = [0.0, *(limit for limit, _ in bands)]
    above = max(limit for limit in limits if mm >= limit)
    below = min((limit for limit in limits if mm < limit), default=None)
    if below is None:
        return f"{above:g} mm or more"
    return f"below {below:g} mm" if above == 0 else f"{above:g} to below {below:g} mm"


def _rank(category: str) -> int:
    return CATEGORIES.index(category)


def _facts(nodule: Nodule) -> str:
    kind = "" if nodule.attenuation is None else f"{nodule.attenuation.value}, "
    solid = nodule.solid_mean_diameter_mm
    part = "" if solid is None else f", solid part {solid:.1f} mm"
    change = "" if nodule.change is None else f", {nodule.change.value}"
    return f"{kind}mean diameter {nodule.mean_diameter_mm:.1f} mm{part}{change}"


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)
