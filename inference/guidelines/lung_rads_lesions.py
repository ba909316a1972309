"""Lung-RADS v2022: airway nodules, atypical cysts, and what a stable lesion steps down to.

Source: as `inference.guidelines.lung_rads`, with its notes 11 (airways) and 12 (cysts).
"""

from __future__ import annotations

from inference.change import Change
from inference.guidelines.facts import Airway, Cyst, CystChange, Nodule, Reasoning

CATEGORIES = ("1", "2", "3", "4A", "4B", "4X")
"""From the least to the most suspicious."""
UNCHANGED = frozenset({Change.STABLE, Change.SMALLER})
_GROWING = frozenset({Change.GROWING, Change.SLOWLY_GROWING})
#: category before, months that must have passed, category now
_STEPS_DOWN = (("3", 6.0, "2"), ("4A", 3.0, "3"))
#: appointments are not kept to the day
_TOLERANCE_MONTHS = 0.5
_UNFORESEEN = "the guideline does not name {}"


def airway(where: Airway, change: Change, reasoning: Reasoning) -> str | None:
    """Category of an airway nodule."""
    because = f"airway nodule, {where.value}, {change.value}"
    if where is Airway.SUBSEGMENTAL:
        if change in _GROWING:
            reasoning.need(_UNFORESEEN.format("a growing subsegmental airway nodule"))
            return None
        reasoning.hold("2: subsegmental airway nodule", because)
        return "2"
    if change in {Change.BASELINE, Change.NEW}:
        reasoning.hold("4A: segmental or more proximal airway nodule at baseline or new", because)
        return "4A"
    if change is Change.SMALLER:
        reasoning.need(_UNFORESEEN.format("an airway nodule that has become smaller"))
        return None
    reasoning.hold("4B: segmental or more proximal airway nodule, stable or growing", because)
    return "4B"


def is_unclassified(nodule: Nodule) -> bool:
    """Whether it is a thin-walled unilocular cyst, which has no category."""
    classified = nodule.benign_pattern or nodule.proven_benign or nodule.airway is not None
    return nodule.cyst is Cyst.THIN_WALLED and not classified and _by_changes(nodule, Change.STABLE) is None


def cyst(nodule: Nodule, change: Change, reasoning: Reasoning) -> str | None:
    """Category of an atypical cyst; the most suspicious of its changes counts."""
    kind = "" if nodule.cyst is None else nodule.cyst.value
    because = ", ".join([f"{kind} cyst", change.value, *(c.value for c in nodule.cyst_changes)])
    if (found := _by_changes(nodule, change)) is not None:
        category, rule = found
        reasoning.hold(f"{category}: {rule}", because)
        return category
    if nodule.cyst is Cyst.THIN_WALLED:
        reasoning.need("a thin-walled unilocular cyst is not classified")
        return None
    if change in _GROWING:
        reasoning.need("whether its wall or its cystic part grows")
        return None
    return _still(nodule, change, because, reasoning)


def _by_changes(nodule: Nodule, change: Change) -> tuple[str, str] | None:
    """The category and the rule of what has changed."""
    changes = set(nodule.cyst_changes)
    became = CystChange.BECAME_MULTILOCULAR in changes
    if CystChange.WALL_GROWS in changes:
        return "4B", "thick-walled cyst with growing wall or nodularity"
    named = changes - {CystChange.BECAME_MULTILOCULAR}
    if nodule.cyst is Cyst.MULTILOCULAR and (named or (change in _GROWING and not became)):
        return "4B", "multilocular cyst that grows, or with more loculation or opacity"
    if became:
        return "4A", "a cyst that has become multilocular"
    if nodule.cyst is Cyst.THICK_WALLED and {CystChange.CYSTIC_PART_GROWS, CystChange.GROWS} & changes:
        return "3", "thick-walled cyst with a growing cystic part"
    return None


def _still(nodule: Nodule, change: Change, because: str, reasoning: Reasoning) -> str | None:
    if change in UNCHANGED:
        if nodule.earlier is not None and nodule.earlier.category is not None:
            return stepped_down(nodule.earlier.category, nodule.earlier.months, reasoning)
        reasoning.need("its category in the prior examination")
        return None
    reasoning.hold("4A: thick-walled or multilocular cyst", because)
    return "4A"


def stepped_down(category: str, months: float, reasoning: Reasoning) -> str | None:
    """Category of a stable or smaller lesion.

    Parameters
    ----------
    category
        In the prior examination.
    months
        Since then.
    """
    before = category.removesuffix("S")
    for had, after_months, now in _STEPS_DOWN:
        if before == had and months >= after_months - _TOLERANCE_MONTHS:
            because = f"stable or smaller after {months:g} months"
            reasoning.hold(f"{now}: category {had}, stable or smaller after {after_months:g} months", because)
            return now
    if before not in CATEGORIES:
        reasoning.need("its category in the prior examination, which was incomplete")
        return None
    now = {"1": "2", "4X": "4B"}.get(before, before)
    reasoning.hold(f"{now}: stable or smaller, category {before} before", f"after {months:g} months")
    return now
