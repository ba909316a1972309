"""What the guidelines make of an analysed examination, as observations of its result.

The facts come from the node's own, unreviewed reading; what it can't see stays unknown, and a guideline that
needs it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inference.change import Change
from inference.guidelines import fleischner, lung_rads
from inference.guidelines.facts import Assessment, Nodule
from inference.guidelines.screening import Occasion
from inference.record import ClinicalRecord
from inference.types import Attenuation, Finding, Observation

SOLID_PART = "solid part, mean diameter"
"""Name of the descriptor that has the size of the solid part of a part-solid nodule, mm."""
_CALCIFICATION_ABSENT = 6
_SPICULATED = 4
_LIKELY = 0.5
_CONDITION = " (unless the patient has a known cancer or a suppressed immune system)"


def guideline_observations(
    findings: Sequence[Finding], occasion: Occasion, record: ClinicalRecord
) -> tuple[Observation, ...]:
    """What a report says by Lung-RADS and, outside of screening, by the Fleischner Society.

    Returns
    -------
    tuple
        ``lung_rads`` and ``lung_rads_version`` with a category, else ``lung_rads_undetermined`` with the
        reasons; ``lung_rads_rules`` where rules held; ``screening``, and ``fleischner_2017`` for each group.
    """
    nodules = tuple(nodule_of(finding, occasion.prior) for finding in findings)
    kind = {True: "yes", False: "no", None: "not known"}[occasion.screening]
    said = [Observation("screening", f"{kind}, {occasion.because}")]
    said += _lung_rads(nodules, occasion)
    if occasion.screening is False:
        said += _fleischner(nodules, record)
    return tuple(said)


def nodule_of(finding: Finding, prior: bool | None = None) -> Nodule:
    """Return what the node's own reading says of a nodule, as the guidelines ask it.

    Parameters
    ----------
    prior
        Whether there is a prior CT: without one the nodule is one of the baseline, with one (or where nobody
        knows) it is open how it has changed.
    """
    ranks = {feature.name: feature.value for feature in finding.features if feature.probability >= _LIKELY}
    spiculated = None if "spiculation" not in ranks else ranks["spiculation"] >= _SPICULATED
    return Nodule(
        name=finding.tracking_id,
        mean_diameter_mm=finding.measurements.mean_diameter_mm,
        attenuation=finding.attenuation,
        solid_mean_diameter_mm=_solid_part(finding),
        change=Change.BASELINE if prior is False else None,
        benign_pattern=_benign_pattern(ranks),
        juxtapleural_benign_form=_juxtapleural(finding, ranks),
        suspicious=("spiculation",) if spiculated else (),
        spiculated=spiculated,
    )


def _solid_part(finding: Finding) -> float | None:
    if finding.attenuation is not Attenuation.PART_SOLID:
        return None
    solid = next((one.value for one in finding.descriptors if one.name == SOLID_PART), None)
    return None if solid is None else min(solid, finding.measurements.mean_diameter_mm)


def _benign_pattern(ranks: dict[str, int]) -> bool | None:
    """The kind of a calcification is not read, so a calcified nodule stays open."""
    return False if ranks.get("calcification") == _CALCIFICATION_ABSENT else None


def _juxtapleural(finding: Finding, ranks: dict[str, int]) -> bool | None:
    """No without contact or without a smooth outline; whether it is oval or triangular is not read."""
    contact = next((one.value for one in finding.descriptors if one.name == "pleural attachment"), None)
    if contact is not None and contact < _LIKELY:
        return False
    rough = ranks.get("spiculation", 0) > 2 or ranks.get("lobulation", 0) > 2
    return False if rough else None


def _lung_rads(nodules: tuple[Nodule, ...], occasion: Occasion) -> list[Observation]:
    found = lung_rads.assess(lung_rads.Examination(occasion.screening, nodules))
    if found.category is not None:
        return [
            Observation("lung_rads", found.category),
            Observation("lung_rads_version", lung_rads.GUIDELINE.removeprefix("Lung-RADS v")),
            Observation("lung_rads_rules", _rules(found)),
        ]
    return [Observation("lung_rads_undetermined", f"{found.words}{_if_baseline(nodules, occasion)}")]


def _if_baseline(nodules: tuple[Nodule, ...], occasion: Occasion) -> str:
    """Say what it would be as a first screening examination, where that is what nobody knows."""
    if occasion.screening is False or occasion.prior:
        return ""
    first = tuple(replace(nodule, change=Change.BASELINE) for nodule in nodules)
    would = lung_rads.assess(lung_rads.Examination(True, first))
    if would.category is None:
        return f" Nor as a first screening examination: {'; '.join(would.missing)}."
    return f" As a first screening examination it would be {would.category}: {_rules(would)}."


def _fleischner(nodules: Sequence[Nodule], record: ClinicalRecord) -> list[Observation]:
    """The record has no recent cancer and no immune system, so the answer carries that condition."""
    risks = (record.emphysema, record.family_history_lung_cancer, *(nodule.spiculated for nodule in nodules))
    patient = fleischner.Patient(
        age_years=record.age_years,
        screening=False,
        known_cancer=bool(record.cancer_history),
        immunosuppressed=False,
        high_risk=True if any(risks) else None,
    )
    return [
        Observation("fleischner_2017", _words(one) + (_CONDITION if one.category is not None else ""))
        for one in fleischner.assess(patient, nodules)
    ]


def _rules(assessment: Assessment) -> str:
    return "; ".join(f"{step.rule} ({step.because})" for step in assessment.trace)


def _words(assessment: Assessment) -> str:
    return assessment.words.removeprefix(f"{fleischner.GUIDELINE}: ").removesuffix(".")
