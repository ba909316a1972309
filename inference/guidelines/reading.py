"""What the guidelines make of an analysed examination, as observations of its result.

The facts come from the node's own, unreviewed reading; what it can't see stays unknown, and a guideline that
needs it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from inference.change import Change
from inference.guidelines import fleischner, lung_rads
from inference.guidelines.facts import Assessment, Earlier, Nodule
from inference.guidelines.growth import change_of
from inference.guidelines.screening import Occasion
from inference.record import ClinicalRecord
from inference.types import Attenuation, Comparison, Finding, Observation, Pair, SecondLook

SOLID_PART = "solid part, mean diameter"
"""Name of the descriptor that has the size of the solid part of a part-solid nodule, mm."""
_CALCIFICATION_ABSENT = 6
_SPICULATED = 4
_LIKELY = 0.5
_MONTH_DAYS = 365.25 / 12
_CONDITION = " (unless the patient has a known cancer or a suppressed immune system{})"


def guideline_observations(
    findings: Sequence[Finding],
    occasion: Occasion,
    record: ClinicalRecord,
    comparison: Comparison | None = None,
) -> tuple[Observation, ...]:
    """What a report says by Lung-RADS and, outside of screening, by the Fleischner Society.

    Parameters
    ----------
    comparison
        With a prior examination. A nodule of the prior that was seen again only when its place was looked at
        is a nodule of this examination too. None where there is no prior, or nobody knows of one.

    Returns
    -------
    tuple
        ``lung_rads`` and ``lung_rads_version`` with a category, else ``lung_rads_undetermined`` with the
        reasons; ``lung_rads_rules`` where rules held; ``screening``, and ``fleischner_2017`` for each group.
    """
    if comparison is not None:
        occasion = replace(occasion, prior=True)
    nodules = tuple(nodule_of(finding, occasion.prior) for finding in findings)
    if comparison is not None and comparison.reason is None:
        nodules = _followed(nodules, findings, comparison)
    kind = {True: "yes", False: "no", None: "not known"}[occasion.screening]
    said = [Observation("screening", f"{kind}, {occasion.because}")]
    said += _lung_rads(nodules, occasion, comparison)
    if occasion.screening is False:
        said += _fleischner(nodules, record, comparison)
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


def _followed(
    nodules: Sequence[Nodule], findings: Sequence[Finding], comparison: Comparison
) -> tuple[Nodule, ...]:
    """The nodules with what has become of them, and those that only a second look has seen."""
    months = round(comparison.days / _MONTH_DAYS, 1)
    pairs = {pair.current.tracking_uid: pair for pair in comparison.pairs if pair.current is not None}
    known = [
        since(nodule, pairs[finding.tracking_uid], months) if finding.tracking_uid in pairs else nodule
        for nodule, finding in zip(nodules, findings, strict=True)
    ]
    seen_late = [
        since(nodule_of(pair.current, prior=True), pair, months)
        for pair in comparison.pairs
        if pair.current is not None and pair.second_look is SecondLook.SEEN_IN_CURRENT
    ]
    return (*known, *seen_late)


def since(nodule: Nodule, pair: Pair, months: float) -> Nodule:
    """Return the nodule with its change, and with what it was in the prior examination.

    Parameters
    ----------
    months
        Between the two examinations.
    """
    prior = pair.prior
    if prior is None:
        return replace(nodule, change=pair.change)
    solid = _solid_part(prior)
    earlier = Earlier(None, months, prior.measurements.mean_diameter_mm, solid)
    part = None
    if nodule.attenuation is Attenuation.PART_SOLID:
        part = _part_change(prior.attenuation, solid, nodule.solid_mean_diameter_mm, months)
    return replace(nodule, change=pair.change, solid_part=part, earlier=earlier)


def _part_change(
    before: Attenuation | None, solid_before: float | None, solid_now: float | None, months: float
) -> Change | None:
    """How the solid part has changed; it is new in what was ground-glass."""
    if before is Attenuation.GROUND_GLASS:
        return Change.NEW
    if not solid_before or not solid_now:
        return None
    return change_of(solid_before, solid_now, months)


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
    rough = ranks.get("spiculation", 0) > 2 or ranks.get("lobular_pattern", 0) > 2
    return False if rough else None


def _lung_rads(
    nodules: tuple[Nodule, ...], occasion: Occasion, comparison: Comparison | None
) -> list[Observation]:
    found = lung_rads.assess(lung_rads.Examination(occasion.screening, nodules))
    if found.category is not None:
        return [
            Observation("lung_rads", found.category),
            Observation("lung_rads_version", lung_rads.GUIDELINE.removeprefix("Lung-RADS v")),
            Observation("lung_rads_management", found.management),
            Observation("lung_rads_rules", _rules(found)),
        ]
    return [
        Observation(
            "lung_rads_undetermined", f"{found.words}{_not_told(comparison)}{_otherwise(nodules, occasion)}"
        )
    ]


def _not_told(comparison: Comparison | None) -> str:
    """Say why a prior examination doesn't tell how the nodules have changed."""
    if comparison is None:
        return ""
    day = comparison.prior.examined_on
    if comparison.reason is not None:
        return f" The examination of {day} could not be compared: {comparison.reason.removesuffix('.')}."
    open_ = [
        f"{pair.current.tracking_id}: {(pair.reason or pair.standing).removesuffix('.')}"
        for pair in comparison.pairs
        if pair.current is not None and pair.change is None
    ]
    return f" Compared with {day}: {'; '.join(open_)}." if open_ else ""


def _otherwise(nodules: tuple[Nodule, ...], occasion: Occasion) -> str:
    """Say what it would be as a (first) screening examination, where that is what nobody knows."""
    if occasion.screening is False:
        return ""
    if occasion.prior:
        follows = lung_rads.assess(lung_rads.Examination(True, nodules))
        if occasion.screening or follows.category is None:
            return ""
        return f" As a screening examination it would be {follows.category}: {_rules(follows)}."
    first = tuple(replace(nodule, change=Change.BASELINE) for nodule in nodules)
    would = lung_rads.assess(lung_rads.Examination(True, first))
    if would.category is None:
        return f" Nor as a first screening examination: {'; '.join(would.missing)}."
    return f" As a first screening examination it would be {would.category}: {_rules(would)}."


def _fleischner(
    nodules: Sequence[Nodule], record: ClinicalRecord, comparison: Comparison | None
) -> list[Observation]:
    """What the Society recommends for nodules that are seen for the first time.

    The record has no recent cancer and no immune system, so the answer carries that condition.
    """
    known = [nodule.name for nodule in nodules if nodule.earlier is not None]
    followed = []
    if known and comparison is not None:
        words = f"not asked for {', '.join(known)}: seen before, on {comparison.prior.examined_on}"
        followed.append(Observation("fleischner_2017", words))
        nodules = [nodule for nodule in nodules if nodule.earlier is None]
        if not nodules:
            return followed
    unsure = comparison is not None and comparison.reason is not None
    condition = _CONDITION.format(", or it was seen before" if unsure else "")
    risks = (record.emphysema, record.family_history_lung_cancer, *(nodule.spiculated for nodule in nodules))
    patient = fleischner.Patient(
        age_years=record.age_years,
        screening=False,
        known_cancer=bool(record.cancer_history),
        immunosuppressed=False,
        high_risk=True if any(risks) else None,
    )
    return followed + [
        Observation("fleischner_2017", _words(one) + (condition if one.category is not None else ""))
        for one in fleischner.assess(patient, nodules)
    ]


def _rules(assessment: Assessment) -> str:
    return "; ".join(f"{step.rule} ({step.because})" for step in assessment.trace)


def _words(assessment: Assessment) -> str:
    return assessment.words.removeprefix(f"{fleischner.GUIDELINE}: ").removesuffix(".")
