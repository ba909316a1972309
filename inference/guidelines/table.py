"""Guidelines and risk models for rows of a table: plain facts in, a plain answer with its rules out.

A row is a dictionary of texts, numbers and flags, as JSON or CSV have them; `answer` gives its category or
probability, or what it would take. A fact that a row doesn't name has the default of
`inference.guidelines.facts`; one that is ``unknown`` (or null) is not known: a rule that needs it says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from inference import risk
from inference.change import Change
from inference.guidelines import bts, fleischner, growth, lung_rads
from inference.guidelines.fact_row import FactError, FactRow, member
from inference.guidelines.facts import Airway, Assessment, Cyst, CystChange, Earlier, Nodule
from inference.types import Attenuation

Answer = dict[str, Any]
_MONTH_DAYS = 30.4375
_MOST_NODULES = 1000


def answer(row: Mapping[str, object]) -> Answer:
    """Answer one row.

    Parameters
    ----------
    row
        ``ask`` is a key of `ASKS`; the other facts are those of docs/guidelines.md.

    Returns
    -------
    dict
        ``ask``; ``category``, ``probability`` or ``days``, None where it can't be determined; ``rules`` and
        ``missing``.

    Raises
    ------
    FactError
        An unknown question or fact, or a value that can't be.
    """
    facts = FactRow(row)
    ask = facts.text("ask", "")
    if ask not in ASKS:
        raise FactError(f"ask = {ask!r}; known: {', '.join(ASKS)}")
    try:
        found = ASKS[ask](facts)
    except FactError:
        raise
    except ValueError as error:
        raise FactError(str(error)) from error
    facts.finish()
    return {"ask": ask, **found}


def _nodule(facts: FactRow, number: int = 1, *, by_volume: bool = False) -> Nodule | str:
    """The nodule of a row, or what of it is missing."""
    mean, solid, volume = _diameter(facts, ""), _diameter(facts, "solid_"), facts.number("volume_mm3")
    earlier = _earlier(facts)
    known: dict[str, Any] = {
        "name": facts.text("name", f"N{number}"),
        "attenuation": facts.one_of("attenuation", Attenuation),
        "change": facts.one_of("change", Change, Change.BASELINE),
        "solid_part": facts.one_of("solid_part", Change),
        "benign_pattern": facts.flag("benign_pattern", default=False),
        "juxtapleural_benign_form": facts.flag("juxtapleural_benign_form", default=False),
        "airway": facts.one_of("airway", Airway),
        "cyst": facts.one_of("cyst", Cyst),
        "cyst_changes": tuple(member("cyst_changes", CystChange, one) for one in facts.words("cyst_changes")),
        "suspicious": facts.words("suspicious"),
        "proven_benign": facts.flag("proven_benign", default=False) or False,
        "volume_mm3": volume if by_volume else None,
    }
    if mean is None:
        return "its mean diameter"
    if earlier is not None and not facts.given("change"):
        known["change"] = _since(earlier.mean_diameter_mm, mean, earlier.months)
    if earlier is not None and solid is not None and not facts.given("solid_part"):
        known["solid_part"] = _since(earlier.solid_mean_diameter_mm, solid, earlier.months)
    return Nodule(mean_diameter_mm=mean, solid_mean_diameter_mm=solid, earlier=earlier, **known)


def _diameter(facts: FactRow, part: str) -> float | None:
    """The mean diameter as it is given, of both axes, or of the volume."""
    mean, volume = facts.number(f"{part}mean_diameter_mm"), facts.number(f"{part}volume_mm3")
    axes = [facts.number(f"{part}long_mm"), facts.number(f"{part}short_mm")]
    if mean is not None:
        return mean
    if axes[0] is not None and axes[1] is not None:
        return (axes[0] + axes[1]) / 2
    return None if volume is None else growth.diameter_of_volume(volume)


def _earlier(facts: FactRow) -> Earlier | None:
    months = facts.number("earlier_months")
    category = facts.text("earlier_category", "") or None
    mean, solid = (facts.number(f"earlier_{part}mean_diameter_mm") for part in ("", "solid_"))
    if months is None:
        if category or mean is not None:
            raise FactError("earlier_months is missing")
        return None
    return Earlier(category, months, mean, solid)


def _since(before: float | None, now: float, months: float) -> Change | None:
    if before is None:
        return None
    return Change.NEW if before == 0 else growth.change_of(before, now, months)


def _lung_rads_nodule(facts: FactRow) -> Answer:
    one = _nodule(facts)
    if isinstance(one, str):
        return _said(Assessment(lung_rads.GUIDELINE, None, missing=(one,)))
    return _said(lung_rads.assess_nodule(one))


def _lung_rads(facts: FactRow) -> Answer:
    nodules, missing = _nodules(facts)
    infection = facts.words("infection")
    examination = lung_rads.Examination(
        facts.flag("screening"),
        nodules,
        facts.flag("prior_awaited", default=False) or False,
        facts.flag("lungs_complete", default=True) is not False,
        infection,
        facts.flag("other_significant", default=False) or False,
    )
    if missing:
        return _said(Assessment(lung_rads.GUIDELINE, None, missing=missing))
    return _said(lung_rads.assess(examination))


def _fleischner(facts: FactRow) -> Answer:
    nodules, missing = _nodules(facts, by_volume=True)
    patient = fleischner.Patient(
        facts.number("age_years"),
        facts.flag("screening"),
        facts.flag("known_cancer"),
        facts.flag("immunosuppressed"),
        facts.flag("high_risk"),
    )
    if missing:
        return _said(Assessment(fleischner.GUIDELINE, None, missing=missing))
    found = fleischner.assess(patient, nodules)
    if not found:
        return _said(Assessment(fleischner.GUIDELINE, "no nodule to follow", "No routine follow-up."))
    if len(found) == 1:
        return _said(found[0])
    return {
        **_said(found[0]),
        "category": None if None in {one.category for one in found} else "; ".join(_categories(found)),
        "management": " ".join(one.management for one in found if one.management),
        "rules": [rule for one in found for rule in _said(one)["rules"]],
        "missing": [fact for one in found for fact in one.missing],
    }


def _categories(found: tuple[Assessment, ...]) -> Iterator[str]:
    yield from (one.category for one in found if one.category is not None)


def _nodules(facts: FactRow, *, by_volume: bool = False) -> tuple[tuple[Nodule, ...], tuple[str, ...]]:
    """``nodules``, or the one of the row, ``count`` times; with what is missing."""
    rows = facts.rows("nodules")
    count = facts.number("count")
    if count is not None and not (count == int(count) and 1 <= count <= _MOST_NODULES):
        raise FactError(f"count = {count:g} is no number of nodules")
    nodules: list[Nodule] = []
    missing: list[str] = []
    if rows is None:
        sized = facts.given("mean_diameter_mm", "long_mm", "volume_mm3", "attenuation", "cyst", "airway")
        one = _nodule(facts, by_volume=by_volume)
        if isinstance(one, str):
            missing += [f"N1: {one}"] if sized or count else []
        else:
            nodules = [one] * (1 if count is None else int(count))
        return tuple(nodules), tuple(missing)
    for number, row in enumerate(rows, 1):
        own = FactRow(row)
        one = _nodule(own, number, by_volume=by_volume)
        own.finish()
        if isinstance(one, str):
            missing.append(f"N{number}: {one}")
        else:
            nodules.append(one)
    return tuple(nodules), tuple(missing)


def _bts(facts: FactRow) -> Answer:
    return _said(
        bts.assess(
            diameter_mm=facts.number("diameter_mm"),
            volume_mm3=facts.number("volume_mm3"),
            attenuation=facts.one_of("attenuation", Attenuation),
            benign_pattern=facts.flag("benign_pattern", default=False),
            brock_probability=facts.number("brock_probability"),
        )
    )


def _said(found: Assessment) -> Answer:
    return {
        "guideline": found.guideline,
        "category": found.category,
        "management": found.management,
        "rules": [asdict(step) for step in found.trace],
        "missing": list(found.missing),
    }


def _doubling(facts: FactRow) -> Answer:
    names = ("earlier_volume_mm3", "volume_mm3", "earlier_diameter_mm", "diameter_mm", "days")
    before, now, before_mm, now_mm, days = (facts.number(name) for name in names)
    if before is None and before_mm is not None:
        before = growth.sphere_mm3(before_mm)
    if now is None and now_mm is not None:
        now = growth.sphere_mm3(now_mm)
    if before is None or now is None or days is None:
        known = {"the earlier size": before, "the size now": now, "the days between": days}
        return {"days": None, "missing": [name for name, value in known.items() if value is None]}
    found = growth.doubling(before, now, days)
    return {
        "days": found.days if math.isfinite(found.days) else None,
        "change": found.change,
        "category": found.growth.value,
        "bts": bts.follow_up(found, days / _MONTH_DAYS).management,
        "missing": [],
    }


def _change(facts: FactRow) -> Answer:
    names = ("earlier_mean_diameter_mm", "mean_diameter_mm", "earlier_months")
    values = {name: facts.number(name) for name in names}
    before, now, months = values.values()
    if before is None or now is None or months is None:
        missing = [name.replace("_", " ") for name, value in values.items() if value is None]
        return {"category": None, "missing": missing}
    return {"category": growth.change_of(before, now, months).value, "missing": []}


_NUMBERS = ("age_years", "diameter_mm", "nodule_count", "years_since_quitting")
_MODELS: dict[str, tuple[Callable[..., risk.RiskEstimate], tuple[str, ...]]] = {
    "brock-2b": (
        risk.brock_2b,
        (
            *("age_years", "female", "family_history_lung_cancer", "emphysema", "diameter_mm", "attenuation"),
            *("upper_lobe", "spiculated", "nodule_count"),
        ),
    ),
    "brock-2a": (
        risk.brock_2a,
        (
            *("age_years", "female", "family_history_lung_cancer", "emphysema", "diameter_mm", "attenuation"),
            *("upper_lobe", "nodule_count"),
        ),
    ),
    "mayo": (
        risk.mayo,
        ("age_years", "ever_smoker", "cancer_history", "diameter_mm", "spiculated", "upper_lobe"),
    ),
    "va": (risk.va, ("age_years", "ever_smoker", "diameter_mm", "years_since_quitting")),
    "peking": (
        risk.peking,
        (
            *("age_years", "diameter_mm", "spiculated", "family_history_cancer", "calcified"),
            "smooth_border",
        ),
    ),
}


def _estimated(name: str) -> Callable[[FactRow], Answer]:
    def run(facts: FactRow) -> Answer:
        model, names = _MODELS[name]
        values = {one: _risk_fact(facts, one) for one in names}
        missing = [one for one, value in values.items() if value is None]
        if name == "va" and values["ever_smoker"] is False and "years_since_quitting" in missing:
            missing.remove("years_since_quitting")
        if missing:
            return {
                "probability": None,
                "range": _range(model, values, missing),
                "missing": [one.replace("_", " ") for one in missing],
            }
        found = model(**values)
        return {"probability": found.probability, "outside": list(found.outside), "missing": []}

    return run


def _range(
    model: Callable[..., risk.RiskEstimate], values: Mapping[str, Any], missing: list[str]
) -> list[float] | None:
    """Lowest and highest probability over what isn't known; None where a number isn't."""
    if set(missing) & set(_NUMBERS) or model is risk.va:
        return None
    return [one.probability for one in risk.bounds(model, values)]


def _risk_fact(facts: FactRow, name: str) -> Any:
    if name == "attenuation":
        return facts.one_of(name, Attenuation)
    if name not in _NUMBERS:
        return facts.flag(name)
    number = facts.number(name)
    return int(number) if name == "nodule_count" and number is not None else number


ASKS: Mapping[str, Callable[[FactRow], Answer]] = {
    "lung-rads": _lung_rads,
    "lung-rads-nodule": _lung_rads_nodule,
    "fleischner": _fleischner,
    "bts": _bts,
    "doubling": _doubling,
    "change": _change,
    **{name: _estimated(name) for name in _MODELS},
}
"""What can be asked of a row."""
