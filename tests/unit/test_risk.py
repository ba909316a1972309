"""The published equations, held against worked examples that were computed elsewhere."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest

from inference.risk import RiskEstimate, bounds, brock_2a, brock_2b, mayo, peking, va
from inference.types import Attenuation

PLAIN: dict[str, Any] = {
    "age_years": 62,
    "female": False,
    "family_history_lung_cancer": False,
    "emphysema": False,
    "diameter_mm": 8.0,
    "attenuation": Attenuation.SOLID,
    "upper_lobe": False,
    "spiculated": False,
    "nodule_count": 1,
}
WORST: dict[str, Any] = {
    "age_years": 70,
    "female": True,
    "family_history_lung_cancer": True,
    "emphysema": True,
    "diameter_mm": 15.0,
    "attenuation": Attenuation.PART_SOLID,
    "upper_lobe": True,
    "spiculated": True,
    "nodule_count": 1,
}
MAYO: dict[str, Any] = {
    "age_years": 65,
    "ever_smoker": True,
    "cancer_history": False,
    "diameter_mm": 12.0,
    "spiculated": True,
    "upper_lobe": True,
}


def without(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != name}


def test_brock_2b() -> None:
    assert brock_2b(**PLAIN).probability == pytest.approx(0.0172, abs=5e-5)
    assert brock_2b(**WORST).probability == pytest.approx(0.691, abs=5e-4)


def test_brock_2b_as_other_authors_tabulate_it() -> None:
    """PMC6717521, table 2: four decimals, all centring folded into one offset."""
    x = 0.2761 + 0.0287 * 70 + 0.6011 + 0.2961 + 0.2953 - 5.3854 * 1.5**-0.5
    x += 0.6581 + 0.7729 + 0.377 - 0.0824 * 1
    assert brock_2b(**WORST).logit == pytest.approx(x, abs=5e-3)


def test_brock_2a() -> None:
    facts = without(PLAIN, "spiculated")
    by_hand = -6.8071 - 5.6693 * (0.8**-0.5 - 1.58113883) + 3 * 0.0803
    assert brock_2a(**facts).logit == pytest.approx(by_hand)
    four_mm = brock_2a(**{**facts, "diameter_mm": 4.0, "nodule_count": 4})
    assert four_mm.logit == pytest.approx(-6.8071, abs=1e-6)  # every term is centred


def test_mayo() -> None:
    assert mayo(**MAYO).probability == pytest.approx(0.465, abs=5e-4)
    with_cancer = mayo(**{**MAYO, "cancer_history": True})
    assert with_cancer.logit - mayo(**MAYO).logit == pytest.approx(1.3388)


@pytest.mark.parametrize(
    ("name", "value", "coefficient"),
    [
        ("female", True, 0.6011),
        ("family_history_lung_cancer", True, 0.296109),
        ("emphysema", True, 0.2953112),
        ("upper_lobe", True, 0.6581383),
        ("spiculated", True, 0.7729335),
        ("attenuation", Attenuation.PART_SOLID, 0.377),
        ("attenuation", Attenuation.GROUND_GLASS, -0.1276),
        ("nodule_count", 2, -0.0824156),
        ("age_years", 63, 0.0286687),
    ],
)
def test_each_brock_coefficient(name: str, value: object, coefficient: float) -> None:
    changed = brock_2b(**{**PLAIN, name: value})
    assert changed.logit - brock_2b(**PLAIN).logit == pytest.approx(coefficient)


def test_larger_nodules_are_riskier() -> None:
    chances = [brock_2b(**{**PLAIN, "diameter_mm": d}).probability for d in (4, 6, 8, 15, 30)]
    assert chances == sorted(chances)


def test_what_lies_outside_the_cohort_is_said() -> None:
    assert brock_2b(**PLAIN).outside == ()
    assert "50 to 75" in brock_2b(**{**PLAIN, "age_years": 40}).outside[0]
    assert mayo(**MAYO).outside == ()
    assert "4 to 30 mm" in mayo(**{**MAYO, "diameter_mm": 35.0}).outside[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("age_years", -1),
        ("age_years", 130),
        ("age_years", math.nan),
        ("diameter_mm", 0.0),
        ("diameter_mm", math.inf),
        ("nodule_count", 0),
    ],
)
def test_impossible_facts_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"an age|a nodule|nodules"):
        brock_2b(**{**PLAIN, name: value})
    if name != "nodule_count":
        with pytest.raises(ValueError, match=r"an age|a nodule"):
            mayo(**{**MAYO, name: value})


def test_unknown_facts_make_a_range() -> None:
    low, high = bounds(brock_2b, {**PLAIN, "upper_lobe": None, "spiculated": None})
    assert low == brock_2b(**PLAIN)
    assert high == brock_2b(**{**PLAIN, "upper_lobe": True, "spiculated": True})
    low, high = bounds(brock_2b, {**PLAIN, "attenuation": None})
    assert high.logit - low.logit == pytest.approx(0.377 + 0.1276)
    assert bounds(mayo, MAYO) == (mayo(**MAYO), mayo(**MAYO))


def test_numbers_must_be_known() -> None:
    with pytest.raises(ValueError, match="age_years must be known"):
        bounds(brock_2b, {**PLAIN, "age_years": None})


def test_probability_and_logit_agree() -> None:
    assert RiskEstimate("x", 0.0).probability == 0.5
    assert RiskEstimate("x", math.log(3)).probability == pytest.approx(0.75)


def test_the_range_is_that_of_all_combinations() -> None:
    unknown = {"female": (False, True), "attenuation": tuple(Attenuation), "upper_lobe": (False, True)}
    every = [
        brock_2b(**{**PLAIN, **dict(zip(unknown, values, strict=True))}).logit
        for values in product(*unknown.values())
    ]
    low, high = bounds(brock_2b, {**PLAIN, **dict.fromkeys(unknown)})
    assert (low.logit, high.logit) == (min(every), max(every))


def test_va_as_its_authors_work_it_out() -> None:
    """PMC6717521, table 2: a never-smoker of 62 years with 10 mm."""
    found = va(age_years=62, ever_smoker=False, diameter_mm=10, years_since_quitting=None)
    assert found.logit == pytest.approx(-2.454, abs=5e-4)
    assert found.probability == pytest.approx(0.079, abs=5e-4)


def test_va_falls_with_the_years_since_quitting() -> None:
    """Gould et al.: odds ratio 0.6 (0.567 in logits) for ten years."""
    smokes, quit_ = (
        va(age_years=70, ever_smoker=True, diameter_mm=15, years_since_quitting=y) for y in (0, 10)
    )
    assert smokes.logit - quit_.logit == pytest.approx(0.567)
    for facts in (
        {"ever_smoker": False, "years_since_quitting": 5},
        {"ever_smoker": True, "years_since_quitting": None},
    ):
        with pytest.raises(ValueError, match="of smokers and former smokers"):
            va(age_years=70, diameter_mm=15, **facts)


def test_peking() -> None:
    found = peking(
        age_years=60,
        diameter_mm=20,
        spiculated=True,
        family_history_cancer=False,
        calcified=False,
        smooth_border=False,
    )
    assert found.logit == pytest.approx(-4.496 + 4.2 + 1.352 + 0.736)
    benign = peking(
        age_years=60,
        diameter_mm=20,
        spiculated=False,
        family_history_cancer=False,
        calcified=True,
        smooth_border=True,
    )
    assert benign.logit == pytest.approx(-4.496 + 4.2 + 1.352 - 1.615 - 1.408)
