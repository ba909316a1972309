"""The guidelines, rule by rule, as tables of cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.change import Change, GrowthClass
from inference.guidelines import fleischner, lung_rads
from inference.guidelines.facts import Airway, Cyst, CystChange, Earlier, Nodule
from inference.guidelines.growth import change_of, doubling, sphere_mm3
from inference.guidelines.lung_rads import CATEGORIES, Examination
from inference.types import Attenuation

SOLID, PART, GROUND = Attenuation.SOLID, Attenuation.PART_SOLID, Attenuation.GROUND_GLASS
BASELINE, NEW, GROWING = Change.BASELINE, Change.NEW, Change.GROWING
STABLE, SMALLER, SLOW = Change.STABLE, Change.SMALLER, Change.SLOWLY_GROWING


def nodule(
    mm: float = 7, attenuation: Attenuation | None = SOLID, solid: float | None = None, **more: Any
) -> Nodule:
    return Nodule("N1", mm, attenuation, solid, **more)


def category(one: Nodule) -> str | None:
    return lung_rads.assess_nodule(one).category


@pytest.mark.parametrize(
    ("change", "mm", "expected"),
    [
        (BASELINE, 5.9, "2"),
        (BASELINE, 6.0, "3"),
        (BASELINE, 7.9, "3"),
        (BASELINE, 8.0, "4A"),
        (BASELINE, 14.9, "4A"),
        (BASELINE, 15.0, "4B"),
        (BASELINE, 5.96, "3"),  # measured to 0.1 mm
        (NEW, 3.9, "2"),
        (NEW, 4.0, "3"),
        (NEW, 5.9, "3"),
        (NEW, 6.0, "4A"),
        (NEW, 7.9, "4A"),
        (NEW, 8.0, "4B"),
        (GROWING, 5.0, "4A"),
        (GROWING, 7.9, "4A"),
        (GROWING, 8.0, "4B"),
        (SLOW, 5.0, "4B"),
    ],
)
def test_lung_rads_of_solid_nodules(change: Change, mm: float, expected: str) -> None:
    assert category(nodule(mm, change=change)) == expected


@pytest.mark.parametrize(
    ("change", "mm", "solid", "part", "expected"),
    [
        (BASELINE, 5.9, None, None, "2"),
        (BASELINE, 6.0, 5.9, None, "3"),
        (BASELINE, 20, 0, None, "3"),
        (BASELINE, 9, 6.0, None, "4A"),
        (BASELINE, 9, 7.9, None, "4A"),
        (BASELINE, 9, 8.0, None, "4B"),
        (NEW, 5.9, None, None, "3"),
        (NEW, 6.0, 3.9, None, "4A"),
        (NEW, 6.0, 4.0, None, "4B"),
        (GROWING, 12, 3.9, GROWING, "4A"),
        (GROWING, 12, 4.0, GROWING, "4B"),
        (STABLE, 12, 3.0, NEW, "4A"),
        (STABLE, 12, 5.0, NEW, "4B"),
        (GROWING, 12, 5.0, STABLE, "3"),  # only its ground glass grew: by size
        (GROWING, 5.5, 2.0, STABLE, "2"),
        (SLOW, 12, 5.0, None, "4B"),
    ],
)
def test_lung_rads_of_part_solid_nodules(
    change: Change, mm: float, solid: float | None, part: Change | None, expected: str
) -> None:
    assert category(nodule(mm, PART, solid, change=change, solid_part=part)) == expected


@pytest.mark.parametrize(
    ("change", "mm", "expected"),
    [
        (BASELINE, 29.9, "2"),
        (NEW, 29.9, "2"),
        (GROWING, 29.9, "2"),
        (BASELINE, 30, "3"),
        (NEW, 30, "3"),
        (GROWING, 31, "3"),
        (STABLE, 35, "2"),
        (SLOW, 35, "2"),
    ],
)
def test_lung_rads_of_ground_glass(change: Change, mm: float, expected: str) -> None:
    assert category(nodule(mm, GROUND, change=change)) == expected


@pytest.mark.parametrize(
    ("mm", "change", "benign_form", "expected"),
    [
        (9.9, BASELINE, True, "2"),
        (9.9, NEW, True, "2"),
        (10.0, BASELINE, True, "4A"),
        (9.9, BASELINE, False, "4A"),
        (9.9, GROWING, True, "4B"),
        (9.9, BASELINE, None, None),
        (5.0, BASELINE, None, "2"),  # it makes no difference
        (5.0, NEW, None, None),
    ],
)
def test_lung_rads_of_juxtapleural_nodules(
    mm: float, change: Change, benign_form: bool | None, expected: str | None
) -> None:
    assert category(nodule(mm, change=change, juxtapleural_benign_form=benign_form)) == expected


@pytest.mark.parametrize(
    ("airway", "change", "expected"),
    [
        (Airway.SUBSEGMENTAL, BASELINE, "2"),
        (Airway.SUBSEGMENTAL, NEW, "2"),
        (Airway.SUBSEGMENTAL, STABLE, "2"),
        (Airway.SUBSEGMENTAL, GROWING, None),
        (Airway.SEGMENTAL_OR_PROXIMAL, BASELINE, "4A"),
        (Airway.SEGMENTAL_OR_PROXIMAL, NEW, "4A"),
        (Airway.SEGMENTAL_OR_PROXIMAL, STABLE, "4B"),
        (Airway.SEGMENTAL_OR_PROXIMAL, GROWING, "4B"),
        (Airway.SEGMENTAL_OR_PROXIMAL, SMALLER, None),
    ],
)
def test_lung_rads_of_airway_nodules(airway: Airway, change: Change, expected: str | None) -> None:
    earlier = Earlier("4A", 3)  # stepping down is not for airway nodules
    assert category(nodule(7, None, airway=airway, change=change, earlier=earlier)) == expected


@pytest.mark.parametrize(
    ("cyst", "change", "changes", "expected"),
    [
        (Cyst.THICK_WALLED, BASELINE, (), "4A"),
        (Cyst.MULTILOCULAR, BASELINE, (), "4A"),
        (Cyst.THICK_WALLED, GROWING, (CystChange.CYSTIC_PART_GROWS,), "3"),
        (Cyst.THICK_WALLED, GROWING, (CystChange.WALL_GROWS,), "4B"),
        (Cyst.THICK_WALLED, GROWING, (CystChange.CYSTIC_PART_GROWS, CystChange.WALL_GROWS), "4B"),
        (Cyst.MULTILOCULAR, STABLE, (CystChange.BECAME_MULTILOCULAR,), "4A"),
        (Cyst.MULTILOCULAR, GROWING, (CystChange.GROWS,), "4B"),
        (Cyst.MULTILOCULAR, STABLE, (CystChange.MORE_LOCULATION_OR_OPACITY,), "4B"),
    ],
)
def test_lung_rads_of_cysts(
    cyst: Cyst, change: Change, changes: tuple[CystChange, ...], expected: str
) -> None:
    assert category(nodule(20, None, cyst=cyst, change=change, cyst_changes=changes)) == expected


@pytest.mark.parametrize(
    ("mm", "before", "months", "mm_before", "expected"),
    [
        (7, "3", 6, 7, "2"),
        (7, "3", 3, 7, "3"),
        (10, "4A", 3, 10, "3"),
        (10, "4A", 1, 10, "4A"),
        (10, "3", 6, 10, "2"),  # it had stepped down from 4A before
        (20, "4B", 3, 20, "4B"),
        (20, "4X", 3, 20, "4B"),
        (5, "2", 12, 5, "2"),
        (7, "2", 12, 7, "2"),
        (6.2, "2", 12, 5.2, "3"),  # crossed 6 mm without growth
        (8.2, "3", 6, 7.0, "4A"),
        (7, None, 12, 7, "2"),  # its category follows from its size
        (10, None, 12, 10, "3"),
        (7, None, 12, None, None),
        (7, "0", 2, 7, None),
        (7, "3S", 6, 7, "2"),
    ],
)
def test_lung_rads_of_stable_solid_nodules(
    mm: float, before: str | None, months: float, mm_before: float | None, expected: str | None
) -> None:
    one = nodule(mm, change=STABLE, earlier=Earlier(before, months, mm_before))
    assert category(one) == expected


def test_lung_rads_of_what_is_proven_or_plainly_benign() -> None:
    assert category(nodule(20, benign_pattern=True)) == "1"
    assert category(nodule(20, change=STABLE, earlier=Earlier("4B", 3), proven_benign=True)) == "2"


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (nodule(7, suspicious=("spiculation",)), "4X"),
        (nodule(15, suspicious=("spiculation",)), "4X"),
        (nodule(5, suspicious=("spiculation",)), "2"),  # of category 3 and 4 only
    ],
)
def test_suspicious_findings_make_it_4x(one: Nodule, expected: str) -> None:
    assert category(one) == expected


@pytest.mark.parametrize(
    ("one", "fact"),
    [
        (nodule(7, None), "solid, part-solid or ground-glass"),
        (nodule(7, change=None), "new, stable or growing"),
        (nodule(7, benign_pattern=None), "benign calcification"),
        (nodule(7, PART), "diameter of its solid part"),
        (nodule(7, PART, 3.0, change=GROWING), "solid part has grown"),
        (nodule(7, change=STABLE), "prior examination"),
    ],
)
def test_lung_rads_says_what_is_missing(one: Nodule, fact: str) -> None:
    assessment = lung_rads.assess_nodule(one)
    assert assessment.category is None
    assert assessment.management == ""
    assert fact in assessment.words
    assert assessment.words.startswith("Lung-RADS v2022 cannot be determined")


def examined(*nodules: Nodule, **more: Any) -> Any:
    return lung_rads.assess(Examination(True, nodules, **more))


def test_an_examination_has_the_category_of_its_worst_nodule() -> None:
    found = examined(nodule(5), nodule(9), nodule(7))
    assert found.category == "4A"
    assert found.management.startswith("Low-dose CT in 3 months")
    assert [step.rule for step in found.trace] == [
        "2: solid, below 6 mm, baseline",
        "4A: solid, 8 to below 15 mm, baseline",
        "3: solid, 6 to below 8 mm, baseline",
    ]
    assert found.trace[1].because == "N1: solid, mean diameter 9.0 mm, baseline"
    assert examined().category == "1"
    assert examined(nodule(5), other_significant=True).category == "2S"


def test_an_incomplete_examination_is_0() -> None:
    for more in ({"prior_awaited": True}, {"lungs_complete": False}, {"infection": ("lobar consolidation",)}):
        found = examined(nodule(9), **more)
        assert found.category == "0"
        assert len(found.trace) == 1


def test_lung_rads_holds_for_screening_only() -> None:
    assert lung_rads.assess(Examination(False, (nodule(9),))).words == (
        "Lung-RADS v2022 cannot be determined: not a screening examination."
    )
    assert lung_rads.assess(Examination(None)).category is None


def test_an_unknown_nodule_leaves_the_examination_open_unless_it_is_4x_anyway() -> None:
    open_ = examined(nodule(9), nodule(7, None))
    assert open_.category is None
    assert "the other nodules make it 4A or higher" in open_.missing
    assert examined(nodule(9, suspicious=("spiculation",)), nodule(7, None)).category == "4X"


@given(
    mm=st.floats(1, 60),
    more=st.floats(0, 10),
    attenuation=st.sampled_from([SOLID, GROUND]),
    change=st.sampled_from([BASELINE, NEW, GROWING]),
)
def test_a_larger_nodule_is_never_less_suspicious(
    mm: float, more: float, attenuation: Attenuation, change: Change
) -> None:
    small, large = (category(nodule(size, attenuation, change=change)) for size in (mm, mm + more))
    assert small is not None
    assert large is not None
    assert CATEGORIES.index(small) <= CATEGORIES.index(large)


def test_a_nodule_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="a nodule of 0 mm"):
        nodule(0)
    with pytest.raises(ValueError, match="solid part of 9 mm"):
        nodule(8, PART, 9)


@pytest.mark.parametrize(
    ("before", "now", "months", "expected"),
    [
        (6.0, 7.5, 12, STABLE),  # growth is more than 1.5 mm
        (6.0, 7.6, 12, GROWING),
        (6.0, 7.6, 3, GROWING),
        (6.0, 7.6, 24, SLOW),
        (6.0, 9.2, 24, GROWING),
        (6.0, 4.5, 12, STABLE),
        (6.0, 4.4, 12, SMALLER),
    ],
)
def test_growth(before: float, now: float, months: float, expected: Change) -> None:
    assert change_of(before, now, months) is expected


def test_volumes_of_the_guideline() -> None:
    for mm, mm3 in ((4, 33.5), (6, 113.1), (8, 268.1), (10, 523.6), (15, 1767.1), (30, 14137.2)):
        assert sphere_mm3(mm) == pytest.approx(mm3, abs=0.05)


@pytest.mark.parametrize(
    ("before", "now", "days", "expected_days", "growth"),
    [
        (100, 200, 100, 100, GrowthClass.SUSPICIOUS),
        (100, 200, 500, 500, GrowthClass.INDETERMINATE),
        (100, 200, 700, 700, GrowthClass.SLOW),
        (100, 120, 100, 380.2, GrowthClass.NO_GROWTH),
        (200, 100, 100, -100, GrowthClass.NO_GROWTH),
        (100, 100, 100, math.inf, GrowthClass.NO_GROWTH),
    ],
)
def test_doubling_time(
    before: float, now: float, days: float, expected_days: float, growth: GrowthClass
) -> None:
    found = doubling(before, now, days)
    assert found.days == pytest.approx(expected_days, abs=0.05)
    assert found.growth is growth


def test_doubling_time_of_diameters_is_that_of_volumes() -> None:
    days = 90 * math.log(2) / (3 * math.log(7.5 / 6))
    assert doubling(sphere_mm3(6), sphere_mm3(7.5), 90).days == pytest.approx(days)


def test_there_is_no_growth_without_time() -> None:
    for call in (lambda: doubling(1, 2, 0), lambda: doubling(0, 2, 10), lambda: change_of(6, 7, 0)):
        with pytest.raises(ValueError):  # noqa: PT011 - each names another thing
            call()


def patient(**known: Any) -> fleischner.Patient:
    plain = {
        "age_years": 60.0,
        "screening": False,
        "known_cancer": False,
        "immunosuppressed": False,
        "high_risk": False,
    }
    return fleischner.Patient(**{**plain, **known})


@pytest.mark.parametrize(
    ("nodules", "high_risk", "row", "words"),
    [
        ([nodule(5.4)], False, "single solid nodule, below 6 mm, low risk", "No routine"),
        ([nodule(5.4)], True, "single solid nodule, below 6 mm, high risk", "Optional CT at 12"),
        ([nodule(5.5)], False, "single solid nodule, 6 to 8 mm, low risk", "6 to 12 months, then consider"),
        ([nodule(8.4)], True, "single solid nodule, 6 to 8 mm, high risk", "6 to 12 months, then CT"),
        ([nodule(8.5)], None, "single solid nodule, above 8 mm", "PET/CT or tissue"),
        ([nodule(4), nodule(5)], True, "multiple solid nodules, below 6 mm, high risk", "Optional"),
        (
            [nodule(4), nodule(9)],
            False,
            "multiple solid nodules, 6 mm or more, low risk",
            "3 to 6 months, then consider",
        ),
        ([nodule(5, GROUND)], None, "single ground-glass nodule, below 6 mm", "No routine"),
        ([nodule(9, GROUND)], None, "single ground-glass nodule, 6 mm or more", "every 2 years until 5"),
        ([nodule(5, PART)], None, "single part-solid nodule, below 6 mm", "No routine"),
        ([nodule(9, PART, 5)], None, "single part-solid nodule, 6 mm or more", "year for 5 years"),
        ([nodule(9, PART, 6)], None, "single part-solid nodule, 6 mm or more", "highly suspicious"),
        (
            [nodule(5, GROUND), nodule(4, PART)],
            None,
            "multiple subsolid nodules, below 6 mm",
            "2 and 4 years",
        ),
        (
            [nodule(7, GROUND), nodule(4, PART)],
            None,
            "multiple subsolid nodules, 6 mm or more",
            "most suspicious",
        ),
    ],
)
def test_fleischner(nodules: list[Nodule], high_risk: bool | None, row: str, words: str) -> None:
    (found,) = fleischner.assess(patient(high_risk=high_risk), nodules)
    assert found.category == row
    assert words in found.management


def test_fleischner_of_solid_and_subsolid_nodules_together() -> None:
    found = fleischner.assess(patient(), [nodule(7), nodule(9, GROUND)])
    assert [one.category for one in found] == [
        "single solid nodule, 6 to 8 mm, low risk",
        "single ground-glass nodule, 6 mm or more",
    ]


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"screening": True}, "Lung-RADS holds"),
        ({"screening": None}, "whether this is a screening"),
        ({"age_years": 34}, "younger than 35"),
        ({"age_years": None}, "the patient's age"),
        ({"known_cancer": True}, "known cancer"),
        ({"known_cancer": None}, "whether the patient has a known cancer"),
        ({"immunosuppressed": None}, "immune system"),
        ({"high_risk": None}, "whether the risk is low (CT at 6 to 12 months, then consider"),
    ],
)
def test_fleischner_says_where_it_does_not_hold(known: dict[str, Any], reason: str) -> None:
    (found,) = fleischner.assess(patient(**known), [nodule(7)])
    assert found.category is None
    assert reason in found.words


def test_fleischner_is_not_asked_about_benign_nodules() -> None:
    assert fleischner.assess(patient(), [nodule(20, benign_pattern=True)]) == ()
