"""What the guidelines make of an analysed examination, as observations of its result.

The facts come from the node's own, unreviewed reading; what it can't see stays unknown, and a guideline that
needs it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
_IF_FIRST = "If this is a first screening examination"
_IF_SCREENING = "If this is a screening examination"
_Read = Callable[[Sequence[Finding]], tuple[Nodule, ...]]
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
        ``lung_rads`` and ``lung_rads_version`` with a category, and ``lung_rads_rules`` for each nodule; else
        ``lung_rads_undetermined`` with the reasons, ``lung_rads_if`` with what it would be and
        ``lung_rads_rules_if``; ``screening``, and ``fleischner_2017`` for each group. A nodule whose type is
        in doubt leaves open what depends on it only.
    """
    if comparison is not None:
        occasion = replace(occasion, prior=True)

    def read(chosen: Sequence[Finding]) -> tuple[Nodule, ...]:
        nodules = tuple(nodule_of(finding, occasion.prior) for finding in chosen)
        if comparison is not None and comparison.reason is None:
            return _followed(nodules, chosen, comparison)
        return nodules

    kind = {True: "yes", False: "no", None: "not known"}[occasion.screening]
    said = [Observation("screening", f"{kind}, {occasion.because}")]
    said += _lung_rads(findings, read, occasion, comparison)
    if occasion.screening is False:
        said += _fleischner_either_way(findings, read, record, comparison)
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
    findings: Sequence[Finding], read: _Read, occasion: Occasion, comparison: Comparison | None
) -> list[Observation]:
    ways = _ways(findings, lambda finding: lung_rads.assess_nodule(read((finding,))[0]).category)
    high, low = (lung_rads.assess(lung_rads.Examination(occasion.screening, read(way))) for way in ways)
    if high.category is not None and high.category == low.category:
        return [
            Observation("lung_rads", high.category),
            Observation("lung_rads_version", lung_rads.GUIDELINE.removeprefix("Lung-RADS v")),
            Observation("lung_rads_management", high.management),
            *_rules("lung_rads_rules", ways, read),
        ]
    found = lung_rads.assess(lung_rads.Examination(occasion.screening, read(findings)))
    return [
        Observation("lung_rads_undetermined", f"{found.words}{_not_told(comparison)}"),
        *_otherwise(findings, read, occasion),
    ]


def _ways(
    findings: Sequence[Finding], category_of: Callable[[Finding], str | None]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings with each type in doubt at its most and at its least severe.

    A type stays open where one of those that it may be has no category.
    """
    severe, mild = [], []
    for finding in findings:
        doubt = finding.attenuation_doubt
        options = [] if doubt is None else [replace(finding, attenuation=kind) for kind in doubt.options]
        ranks = [category_of(one) for one in options]
        if not options or None in ranks:
            options, ranks = [finding], ["1"]
        order = [lung_rads.CATEGORIES.index(rank or "1") for rank in ranks]
        severe.append(options[order.index(max(order))])
        mild.append(options[max(place for place, one in enumerate(order) if one == min(order))])
    return tuple(severe), tuple(mild)


def _rules(name: str, ways: Sequence[Sequence[Finding]], read: _Read) -> Iterator[Observation]:
    """The rules that hold, one line a nodule; two for one whose type is in doubt."""
    lines: dict[str, None] = {}
    in_doubt = {one.tracking_id for way in ways for one in way if one.attenuation and one.attenuation_doubt}
    for way in ways:
        if not (nodules := read(way)):
            found = lung_rads.assess(lung_rads.Examination(True))
            lines |= dict.fromkeys(f"{step.rule} ({step.because})" for step in found.trace)
        for nodule in nodules:
            steps = lung_rads.assess_nodule(nodule).trace
            taken = f", if {nodule.attenuation}" if nodule.name in in_doubt else ""
            if steps:
                rules = "; ".join(f"{step.rule} ({step.because})" for step in steps)
                lines[f"{nodule.name}{taken}: {rules}"] = None
    return (Observation(name, line) for line in lines)


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


def _otherwise(findings: Sequence[Finding], read: _Read, occasion: Occasion) -> Iterator[Observation]:
    """Say what it would be, the more severe first: where that is open, as a (first) screening examination."""
    in_doubt = any(finding.attenuation_doubt for finding in findings)
    if occasion.screening is False or (occasion.screening and occasion.prior is not None and not in_doubt):
        return

    def as_first(chosen: Sequence[Finding]) -> tuple[Nodule, ...]:
        return tuple(replace(nodule, change=Change.BASELINE) for nodule in read(chosen))

    would, condition = (read, _IF_SCREENING) if occasion.prior else (as_first, _IF_FIRST)
    if occasion.screening and occasion.prior is not None:
        condition = ""
    ways = _ways(findings, lambda finding: lung_rads.assess_nodule(would((finding,))[0]).category)
    high, low = (lung_rads.assess(lung_rads.Examination(True, would(way))) for way in ways)
    if high.category is None or low.category is None:
        open_ = (high if high.category is None else low).unknown
        if condition:
            yield Observation(
                "lung_rads_if", f"{condition} it cannot be determined either: not known {open_}."
            )
        return
    said = _with_names(high, would(ways[0]))
    if high.category != low.category:
        first, second = (_types(findings, way) for way in ways)
        said = f"{said} with {first}, {_with_names(low, would(ways[1]))} with {second}"
    yield Observation("lung_rads_if", f"{condition}: {said}." if condition else f"It is {said}.")
    yield from _rules("lung_rads_rules_if", ways, would)


def _with_names(found: Assessment, nodules: Sequence[Nodule]) -> str:
    """The category and the nodules that give it."""
    names = [one.name for one in nodules if lung_rads.assess_nodule(one).category == found.category]
    return f"{found.category} ({', '.join(names)})" if names else str(found.category)


def _types(findings: Sequence[Finding], way: Sequence[Finding]) -> str:
    """What the types in doubt are taken for, e.g. ``N2 solid and N5 part-solid``."""
    return " and ".join(
        f"{taken.tracking_id} {taken.attenuation}"
        for finding, taken in zip(findings, way, strict=True)
        if finding.attenuation is not taken.attenuation
    )


def _fleischner_either_way(
    findings: Sequence[Finding], read: _Read, record: ClinicalRecord, comparison: Comparison | None
) -> list[Observation]:
    """With each type in doubt as the first and as the last of those that it may be: solid first."""
    ways = [
        tuple(
            finding
            if finding.attenuation_doubt is None
            else replace(finding, attenuation=finding.attenuation_doubt.options[end])
            for finding in findings
        )
        for end in (0, -1)
    ]
    said = [_fleischner(read(way), record, comparison) for way in ways]
    if said[0] == said[1]:
        return said[0]
    return [
        replace(one, value=f"with {_types(findings, way)}: {one.value}")
        for way, rows in zip(ways, said, strict=True)
        for one in rows
    ]


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


def _words(assessment: Assessment) -> str:
    return assessment.words.removeprefix(f"{fleischner.GUIDELINE}: ").removesuffix(".")
