"""Fleischner Society 2017: what to do about nodules that were found by chance.

Source: MacMahon et al., Radiology 284:228-243, 2017. Sizes are means of the long and the short axis on the
same plane, to the nearest whole millimetre. It does not hold for screening, below 35 years, with a known
cancer, or with a suppressed immune system.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inference.change import Change
from inference.guidelines.facts import Assessment, Nodule, Reasoning
from inference.types import Attenuation

GUIDELINE = "Fleischner Society 2017"
_ADULT_YEARS = 35
_SMALL_MM = 6
_LARGE_MM = 8
#: by volumetry: below the first, up to the second, above
_SMALL_MM3 = 100.0
_LARGE_MM3 = 250.0
_GROWING = frozenset({Change.GROWING, Change.SLOWLY_GROWING})
_NONE = "No routine follow-up."
_OPTIONAL = "Optional CT at 12 months."
#: (several nodules, size, high risk) -> recommendation; sizes as `_solid_size` names them
_SOLID = {
    (False, "below 6 mm", False): _NONE,
    (False, "below 6 mm", True): _OPTIONAL,
    (False, "6 to 8 mm", False): "CT at 6 to 12 months, then consider CT at 18 to 24 months.",
    (False, "6 to 8 mm", True): "CT at 6 to 12 months, then CT at 18 to 24 months.",
    (False, "above 8 mm", False): "Consider CT at 3 months, PET/CT or tissue sampling.",
    (False, "above 8 mm", True): "Consider CT at 3 months, PET/CT or tissue sampling.",
    (True, "below 6 mm", False): _NONE,
    (True, "below 6 mm", True): _OPTIONAL,
    (True, "6 mm or more", False): "CT at 3 to 6 months, then consider CT at 18 to 24 months.",
    (True, "6 mm or more", True): "CT at 3 to 6 months, then CT at 18 to 24 months.",
}
_GROUND_GLASS = "CT at 6 to 12 months to confirm persistence, then CT every 2 years until 5 years."
_PART_SOLID = (
    "CT at 3 to 6 months to confirm persistence; if unchanged and the solid part stays below 6 mm, CT every "
    "year for 5 years."
)
_SUSPICIOUS_PART = (
    "CT at 3 to 6 months to confirm persistence; a persistent part-solid nodule with a solid part of 6 mm or "
    "more is highly suspicious: PET/CT, biopsy or resection."
)
_GROWING_PART = "A part-solid nodule that grows is highly suspicious: PET/CT, biopsy or resection."
_SUBSOLID_SMALL = "CT at 3 to 6 months; if stable, consider CT at 2 and 4 years."
_SUBSOLID = "CT at 3 to 6 months, then as the most suspicious nodule requires."


@dataclass(frozen=True, slots=True)
class Patient:
    """What the recommendations ask of the patient; None where nobody knows.

    Parameters
    ----------
    high_risk
        By the clinician's judgement or a risk model (above 5 %): heavy smoking, emphysema, upper lobe,
        spiculation, family history, age.
    """

    age_years: float | None
    screening: bool | None
    known_cancer: bool | None
    immunosuppressed: bool | None
    high_risk: bool | None


def assess(patient: Patient, nodules: Sequence[Nodule]) -> tuple[Assessment, ...]:
    """Recommendations, one for the solid and one for the subsolid nodules.

    Returns
    -------
    tuple
        One assessment that says why not where the recommendations don't hold; none without a nodule.
        ``category`` is the row of the table, e.g. ``single solid nodule, 6 to 8 mm, low risk``.
    """
    indeterminate = [nodule for nodule in nodules if not nodule.benign_pattern]
    if not indeterminate:
        return ()
    reasoning = Reasoning()
    _applies(patient, reasoning)
    for nodule in indeterminate:
        if nodule.attenuation is None:
            reasoning.need(f"{nodule.name}: whether it is solid, part-solid or ground-glass")
        if nodule.benign_pattern is None:
            reasoning.need(f"{nodule.name}: whether it has a benign calcification or fat")
    if reasoning.missing:
        missing, known = tuple(reasoning.missing), tuple(reasoning.known)
        return (Assessment(GUIDELINE, None, missing=missing, known=known),)
    solid = [nodule for nodule in indeterminate if nodule.attenuation is Attenuation.SOLID]
    subsolid = [nodule for nodule in indeterminate if nodule.attenuation is not Attenuation.SOLID]
    found = [_solid(solid, patient.high_risk)] if solid else []
    return (*found, *([_subsolid(subsolid)] if subsolid else []))


def _applies(patient: Patient, reasoning: Reasoning) -> None:
    asked = (
        (
            patient.screening,
            "a screening examination: Lung-RADS holds",
            "whether this is a screening examination",
        ),
        (patient.known_cancer, "the patient has a known cancer", "whether the patient has a known cancer"),
        (
            patient.immunosuppressed,
            "the patient's immune system is suppressed",
            "whether the patient's immune system is suppressed",
        ),
    )
    for value, holds, unknown in asked:
        if value is None:
            reasoning.need(unknown)
        elif value:
            reasoning.know(holds)
    if patient.age_years is None:
        reasoning.need("the patient's age")
    elif patient.age_years < _ADULT_YEARS:
        reasoning.know("the patient is younger than 35 years")


def _solid(nodules: Sequence[Nodule], high_risk: bool | None) -> Assessment:
    several = len(nodules) > 1
    size = _solid_size(max(map(_size, nodules)), several)
    options = {risk: _SOLID[several, size, risk] for risk in (False, True)}
    words = f"{'multiple solid nodules' if several else 'single solid nodule'}, {size}"
    because = _sizes(nodules)
    if options[False] == options[True]:
        return _said(words, options[True], because)
    if high_risk is None:
        reason = f"whether the risk is low ({options[False]}) or high ({options[True]})"
        return Assessment(GUIDELINE, None, missing=(reason,))
    return _said(f"{words}, {'high' if high_risk else 'low'} risk", options[high_risk], because)


def _solid_size(size: int, several: bool) -> str:
    if size == 0:
        return "below 6 mm"
    if several:
        return "6 mm or more"
    return "6 to 8 mm" if size == 1 else "above 8 mm"


def _size(nodule: Nodule) -> int:
    """0 small, 1 between, 2 large: by volume where it was measured, else by the whole mm of the diameter."""
    if nodule.volume_mm3 is not None:
        return 0 if nodule.volume_mm3 < _SMALL_MM3 else 1 if nodule.volume_mm3 <= _LARGE_MM3 else 2
    millimetres = _whole_mm(nodule.mean_diameter_mm)
    return 0 if millimetres < _SMALL_MM else 1 if millimetres <= _LARGE_MM else 2


def _subsolid(nodules: Sequence[Nodule]) -> Assessment:
    small = not any(map(_size, nodules))
    size = "below 6 mm" if small else "6 mm or more"
    because = _sizes(nodules)
    if len(nodules) > 1:
        management = _SUBSOLID_SMALL if small else _SUBSOLID
        return _said(f"multiple subsolid nodules, {size}", management, because)
    (nodule,) = nodules
    ground_glass = nodule.attenuation is Attenuation.GROUND_GLASS
    words = f"single {'ground-glass' if ground_glass else 'part-solid'} nodule, {size}"
    if small:
        return _said(words, _NONE, because)
    if ground_glass:
        return _said(words, _GROUND_GLASS, because)
    if nodule.solid_mean_diameter_mm is None:
        return Assessment(GUIDELINE, None, missing=(f"{nodule.name}: the diameter of its solid part",))
    solid = _whole_mm(nodule.solid_mean_diameter_mm)
    grows = bool({nodule.change, nodule.solid_part} & _GROWING)
    because += f", solid part {solid} mm" + (", growing" if grows else "")
    if solid >= _SMALL_MM:
        return _said(words, _SUSPICIOUS_PART, because)
    return _said(words, _GROWING_PART if grows else _PART_SOLID, because)


def _said(category: str, management: str, because: str) -> Assessment:
    reasoning = Reasoning()
    reasoning.hold(category, because)
    return Assessment(GUIDELINE, category, management, tuple(reasoning.steps))


def _whole_mm(diameter_mm: float) -> int:
    return math.floor(diameter_mm + 0.5)


def _sizes(nodules: Sequence[Nodule]) -> str:
    """Who is meant, and the largest size."""
    largest = max(nodules, key=lambda nodule: (_size(nodule), nodule.mean_diameter_mm))
    by_volume = largest.volume_mm3
    size = f"{_whole_mm(largest.mean_diameter_mm)} mm" if by_volume is None else f"{by_volume:.0f} mm3"
    return f"{', '.join(nodule.name for nodule in nodules)}: {size}"
