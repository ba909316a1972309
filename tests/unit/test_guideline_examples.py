"""Worked examples of the guidelines and risk models, each with its source.

LR: American College of Radiology, Lung-RADS v2022, by row of its table or number of its note. FS: MacMahon et
al., Radiology 284:228, 2017, by table. BTS: Callister et al., Thorax 70:ii1, 2015, as in PMC6784443, table 4.
NELSON: van Klaveren et al., N Engl J Med 361:2221, 2009. T2: PMC6717521, table 2.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.change import Change, GrowthClass
from inference.guidelines import bts, fleischner, growth, lung_rads
from inference.guidelines.facts import Airway, Assessment, Cyst, CystChange, Earlier, Nodule, to_tenths
from inference.guidelines.fleischner import Patient
from inference.guidelines.lung_rads import CATEGORIES, Examination
from inference.risk import brock_2a, brock_2b, mayo, peking, va
from inference.types import Attenuation

SOLID, PART, GROUND = Attenuation.SOLID, Attenuation.PART_SOLID, Attenuation.GROUND_GLASS
BASELINE, NEW, GROWING = Change.BASELINE, Change.NEW, Change.GROWING
STABLE, SMALLER, SLOW = Change.STABLE, Change.SMALLER, Change.SLOWLY_GROWING
PROXIMAL, SUBSEGMENTAL = Airway.SEGMENTAL_OR_PROXIMAL, Airway.SUBSEGMENTAL


def nodule(mm: float, kind: Attenuation | None = SOLID, solid: float | None = None, **more: Any) -> Nodule:
    return Nodule("N1", mm, kind, solid, **more)


def part(mm: float, solid: float | None, change: Change = BASELINE, grown: Change | None = None) -> Nodule:
    return nodule(mm, PART, solid, change=change, solid_part=grown)


def cyst(kind: Cyst, change: Change, *changes: CystChange, earlier: Earlier | None = None) -> Nodule:
    return nodule(20, None, cyst=kind, change=change, cyst_changes=changes, earlier=earlier)


def airway(where: Airway, change: Change, earlier: Earlier | None = None) -> Nodule:
    return nodule(8, None, airway=where, change=change, earlier=earlier)


def then(category: str | None, months: float, mm: float | None = None, **more: Any) -> Earlier:
    return Earlier(category, months, mm, **more)


LUNG_RADS: list[tuple[str, Nodule, str | None]] = [
    # category 1
    ("LR 1 benign calcification or fat", nodule(25, benign_pattern=True), "1"),
    ("LR 1 whatever has become of it", nodule(25, benign_pattern=True, change=GROWING), "1"),
    # category 2
    ("LR 2 juxtapleural below 10 mm", nodule(9.9, juxtapleural_benign_form=True), "2"),
    ("LR 2 juxtapleural, new", nodule(7, change=NEW, juxtapleural_benign_form=True), "2"),
    (
        "LR 2 juxtapleural, stable",
        nodule(8.2, change=STABLE, earlier=then(None, 12, 7.8), juxtapleural_benign_form=True),
        "2",
    ),
    ("LR 2 no benign form from 10 mm on", nodule(10, juxtapleural_benign_form=True), "4A"),
    ("LR 2 solid below 6 mm", nodule(5.9), "2"),
    ("LR 2 solid, new, below 4 mm", nodule(3.9, change=NEW), "2"),
    ("LR 2 part-solid below 6 mm in total", part(5.9, 4), "2"),
    ("LR 2 GGN below 30 mm", nodule(29.9, GROUND), "2"),
    ("LR 2 GGN below 30 mm, new", nodule(29.9, GROUND, change=NEW), "2"),
    ("LR 2 GGN below 30 mm, growing", nodule(29.9, GROUND, change=GROWING), "2"),
    ("LR 2 GGN from 30 mm on, stable", nodule(34, GROUND, change=STABLE), "2"),
    ("LR 2 GGN from 30 mm on, slowly growing", nodule(34, GROUND, change=SLOW), "2"),
    ("LR 2 subsegmental airway nodule", airway(SUBSEGMENTAL, BASELINE), "2"),
    ("LR 2 subsegmental airway nodule, stable", airway(SUBSEGMENTAL, STABLE), "2"),
    ("LR 2 category 3 stable at 6 months", nodule(7, change=STABLE, earlier=then("3", 6, 7)), "2"),
    ("LR 2 category 3 smaller at 6 months", nodule(5, change=SMALLER, earlier=then("3", 6, 7)), "2"),
    ("LR 2 category 3 only after 3 months", nodule(7, change=STABLE, earlier=then("3", 3, 7)), "3"),
    ("LR 2 category 4B proven benign", nodule(18, change=None, proven_benign=True), "2"),
    # category 3
    ("LR 3 solid 6 mm", nodule(6), "3"),
    ("LR 3 solid below 8 mm", nodule(7.9), "3"),
    ("LR 3 solid, new, 4 mm", nodule(4, change=NEW), "3"),
    ("LR 3 solid, new, below 6 mm", nodule(5.9, change=NEW), "3"),
    ("LR 3 part-solid, solid part below 6 mm", part(6, 5.9), "3"),
    ("LR 3 part-solid of any size, small solid part", part(25, 2), "3"),
    ("LR 3 part-solid, new, below 6 mm", part(5.9, None, NEW), "3"),
    ("LR 3 GGN from 30 mm on", nodule(30, GROUND), "3"),
    ("LR 3 GGN from 30 mm on, new", nodule(30, GROUND, change=NEW), "3"),
    (
        "LR 3 cyst, cystic part grows",
        cyst(Cyst.THICK_WALLED, GROWING, CystChange.CYSTIC_PART_GROWS),
        "3",
    ),
    ("LR 3 category 4A stable at 3 months", nodule(9, change=STABLE, earlier=then("4A", 3, 9)), "3"),
    (
        "LR 3 category 4A smaller at 3 months, part-solid",
        nodule(9, PART, 6.5, change=SMALLER, earlier=then("4A", 3, 12)),
        "3",
    ),
    (
        "LR 3 cyst 4A stable at 3 months",
        cyst(Cyst.MULTILOCULAR, STABLE, earlier=then("4A", 3)),
        "3",
    ),
    # category 4A
    ("LR 4A solid 8 mm", nodule(8), "4A"),
    ("LR 4A solid below 15 mm", nodule(14.9), "4A"),
    ("LR 4A solid growing below 8 mm", nodule(7.9, change=GROWING), "4A"),
    ("LR 4A solid, new, 6 mm", nodule(6, change=NEW), "4A"),
    ("LR 4A solid, new, below 8 mm", nodule(7.9, change=NEW), "4A"),
    ("LR 4A part-solid, solid part 6 mm", part(10, 6), "4A"),
    ("LR 4A part-solid, solid part below 8 mm", part(10, 7.9), "4A"),
    ("LR 4A part-solid, solid part new, below 4 mm", part(10, 3.9, STABLE, NEW), "4A"),
    ("LR 4A part-solid, solid part growing, below 4 mm", part(10, 3.9, GROWING, GROWING), "4A"),
    ("LR 4A part-solid, new, solid part below 4 mm", part(8, 3.9, NEW), "4A"),
    ("LR 4A proximal airway nodule", airway(PROXIMAL, BASELINE), "4A"),
    ("LR 4A thick-walled cyst", cyst(Cyst.THICK_WALLED, BASELINE), "4A"),
    ("LR 4A multilocular cyst", cyst(Cyst.MULTILOCULAR, BASELINE), "4A"),
    (
        "LR 4A thin-walled cyst becomes multilocular",
        cyst(Cyst.THIN_WALLED, GROWING, CystChange.BECAME_MULTILOCULAR),
        "4A",
    ),
    (
        "LR 4A cyst has become multilocular",
        cyst(Cyst.MULTILOCULAR, GROWING, CystChange.BECAME_MULTILOCULAR),
        "4A",
    ),
    # category 4B
    ("LR 4B proximal airway nodule, stable", airway(PROXIMAL, STABLE, then("4A", 3)), "4B"),
    ("LR 4B proximal airway nodule, growing", airway(PROXIMAL, GROWING), "4B"),
    ("LR 4B solid 15 mm", nodule(15), "4B"),
    ("LR 4B solid, new, 8 mm", nodule(8, change=NEW), "4B"),
    ("LR 4B solid, growing, 8 mm", nodule(8, change=GROWING), "4B"),
    ("LR 4B part-solid, solid part 8 mm", part(12, 8), "4B"),
    ("LR 4B part-solid, solid part growing, 4 mm", part(12, 4, GROWING, GROWING), "4B"),
    ("LR 4B part-solid, new, solid part 4 mm", part(8, 4, NEW), "4B"),
    ("LR 4B cyst, wall grows", cyst(Cyst.THICK_WALLED, STABLE, CystChange.WALL_GROWS), "4B"),
    ("LR 4B multilocular cyst grows", cyst(Cyst.MULTILOCULAR, GROWING, CystChange.GROWS), "4B"),
    ("LR 4B multilocular cyst grows, no more said", cyst(Cyst.MULTILOCULAR, GROWING), "4B"),
    (
        "LR 4B multilocular cyst, more loculation",
        cyst(Cyst.MULTILOCULAR, STABLE, CystChange.MORE_LOCULATION_OR_OPACITY),
        "4B",
    ),
    ("LR 4B slowly growing solid", nodule(6, change=SLOW), "4B"),
    ("LR 4B slowly growing part-solid", part(9, 3, SLOW), "4B"),
    # category 4X
    ("LR 4X category 3 with spicules", nodule(7, suspicious=("spiculation",)), "4X"),
    ("LR 4X category 4A with lymph nodes", nodule(9, suspicious=("lymphadenopathy",)), "4X"),
    ("LR 4X category 4B with metastasis", nodule(20, suspicious=("metastasis",)), "4X"),
    ("LR 4X not from category 2", nodule(5, suspicious=("spiculation",)), "2"),
    (
        "LR 4X GGN of category 3 that doubled in a year",
        nodule(32, GROUND, change=GROWING, earlier=then("2", 12, 15)),
        "4X",
    ),
    (
        "LR 4X GGN that doubled in two years",
        nodule(32, GROUND, change=GROWING, earlier=then("2", 24, 15)),
        "3",
    ),
    # notes
    ("LR note 4 mean of 10.1 and 9.8 mm to 0.1 mm", nodule((15.1 + 14.8) / 2), "4B"),
    ("LR note 6 crosses 6 mm", nodule(6.2, change=STABLE, earlier=then("2", 12, 5.4)), "3"),
    ("LR note 6 crosses 8 mm", nodule(8.1, change=STABLE, earlier=then("3", 6, 7.4)), "4A"),
    ("LR note 6 crosses 15 mm", nodule(15.1, change=STABLE, earlier=then("4A", 3, 14.2)), "4B"),
    (
        "LR note 6 the solid part crosses 6 mm",
        nodule(12, PART, 6.2, change=STABLE, earlier=then("3", 6, 12, solid_mean_diameter_mm=5.4)),
        "4A",
    ),
    ("LR note 12 cavitary nodule", nodule(16, None, cyst=Cyst.CAVITARY), "4B"),
    ("LR note 12 cavitary nodule, new", nodule(5, None, cyst=Cyst.CAVITARY, change=NEW), "3"),
    ("LR note 12 thin-walled cyst", cyst(Cyst.THIN_WALLED, BASELINE), None),
    ("LR note 12 thick-walled cyst grows, unknown where", cyst(Cyst.THICK_WALLED, GROWING), None),
    ("LR multilocular cyst, stable, category unknown", cyst(Cyst.MULTILOCULAR, STABLE), None),
]


@pytest.mark.parametrize(("source", "one", "expected"), LUNG_RADS, ids=[row[0] for row in LUNG_RADS])
def test_lung_rads_of_a_nodule(source: str, one: Nodule, expected: str | None) -> None:
    found = lung_rads.assess_nodule(one)
    assert found.category == expected, source
    assert bool(found.trace) == (expected is not None) or found.missing
    if expected is not None:
        assert found.management == lung_rads.MANAGEMENT[expected]
        assert found.trace[-1].rule.startswith(f"{expected}: ")
    else:
        assert found.missing


EXAMINATIONS: list[tuple[str, Examination, str | None, str]] = [
    ("LR 0 prior awaited", Examination(True, prior_awaited=True), "0", "Comparison with the prior"),
    ("LR 0 not evaluable", Examination(True, (nodule(20),), lungs_complete=False), "0", "Additional"),
    ("LR 0 infection", Examination(True, (), infection=("consolidation",)), "0", "1 to 3 months"),
    ("LR 1 nothing", Examination(True), "1", "12 months"),
    ("LR 1 benign nodules only", Examination(True, (nodule(9, benign_pattern=True),)), "1", "12 months"),
    ("LR note 12 thin-walled cyst only", Examination(True, (cyst(Cyst.THIN_WALLED, NEW),)), "1", "12 months"),
    (
        "LR the most suspicious nodule",
        Examination(True, (nodule(5), nodule(16), nodule(7))),
        "4B",
        "Referral",
    ),
    ("LR S", Examination(True, (nodule(7),), other_significant=True), "3S", "6 months"),
    ("LR S with 0", Examination(True, prior_awaited=True, other_significant=True), "0S", "prior"),
    ("LR not screening", Examination(False, (nodule(7),)), None, ""),
]


@pytest.mark.parametrize(
    ("source", "one", "expected", "words"), EXAMINATIONS, ids=[r[0] for r in EXAMINATIONS]
)
def test_lung_rads_of_an_examination(source: str, one: Examination, expected: str | None, words: str) -> None:
    found = lung_rads.assess(one)
    assert found.category == expected, source
    assert words in found.management


@pytest.mark.parametrize(
    ("facts", "signs"),
    [
        ({}, 0),
        ({"consolidation": True}, 1),
        ({"new_nodules": 6}, 0),
        ({"new_nodules": 7}, 1),
        ({"new_nodules": 1, "immunocompromised": True}, 1),
        ({"immunocompromised": True}, 0),
        ({"large_new_solid_mm": 8.0, "short_interval": True}, 1),
        ({"large_new_solid_mm": 7.9, "short_interval": True}, 0),
        ({"large_new_solid_mm": 9.0}, 0),
    ],
)
def test_what_may_be_an_infection(facts: dict[str, Any], signs: int) -> None:
    """LR, note 10."""
    assert len(lung_rads.infection_signs(**facts)) == signs


def test_rounding_and_volumes_keep_the_side_of_a_limit() -> None:
    """LR, notes 4 and 5: 0.1 mm, whole mm3; the volumes are those of its table."""
    assert [to_tenths(mm) for mm in (5.94, 5.95, 14.95, 9.95)] == [5.9, 6.0, 15.0, 10.0]
    assert to_tenths((10.1 + 9.8) / 2) == 10.0
    for mm, mm3 in ((4, 34), (6, 113), (8, 268), (10, 524), (15, 1767), (30, 14137)):
        assert growth.diameter_of_volume(mm3) == mm
        assert growth.diameter_of_volume(mm3 - 0.6) < mm
        assert growth.sphere_mm3(mm) == pytest.approx(mm3, abs=0.5)
    for volume in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="a volume of"):
            growth.diameter_of_volume(volume)


def patient(*, high: bool | None = False, **known: Any) -> Patient:
    plain = {"age_years": 60.0, "screening": False, "known_cancer": False, "immunosuppressed": False}
    return Patient(high_risk=high, **{**plain, **known})


LOW, HIGH = patient(high=False), patient(high=True)
NO_FOLLOW_UP, OPTIONAL = "No routine", "Optional CT at 12"
FLEISCHNER: list[tuple[str, Patient, list[Nodule], str]] = [
    ("FS 1 single below 6 mm, low", LOW, [nodule(5.4)], NO_FOLLOW_UP),
    ("FS 1 single below 6 mm, high", HIGH, [nodule(5.4)], OPTIONAL),
    ("FS 1 single below 100 mm3, low", LOW, [nodule(6, volume_mm3=99)], NO_FOLLOW_UP),
    ("FS 1 single 6 to 8 mm, low", LOW, [nodule(5.5)], "6 to 12 months, then consider CT at 18 to 24"),
    ("FS 1 single 6 to 8 mm, high", HIGH, [nodule(8.4)], "6 to 12 months, then CT at 18 to 24"),
    ("FS 1 single 100 mm3, high", HIGH, [nodule(5, volume_mm3=100)], "6 to 12 months, then CT at 18"),
    ("FS 1 single 250 mm3, low", LOW, [nodule(9, volume_mm3=250)], "6 to 12 months, then consider"),
    ("FS 1 single above 8 mm, low", LOW, [nodule(8.5)], "3 months, PET/CT or tissue"),
    ("FS 1 single above 8 mm, high", HIGH, [nodule(12)], "3 months, PET/CT or tissue"),
    ("FS 1 single above 250 mm3", LOW, [nodule(7, volume_mm3=251)], "3 months, PET/CT or tissue"),
    ("FS 1 several below 6 mm, low", LOW, [nodule(4), nodule(5)], NO_FOLLOW_UP),
    ("FS 1 several below 6 mm, high", HIGH, [nodule(4), nodule(5)], OPTIONAL),
    ("FS 1 several 6 to 8 mm, low", LOW, [nodule(4), nodule(7)], "3 to 6 months, then consider CT at 18"),
    ("FS 1 several 6 to 8 mm, high", HIGH, [nodule(4), nodule(7)], "3 to 6 months, then CT at 18"),
    ("FS 1 several above 8 mm, low", LOW, [nodule(4), nodule(12)], "3 to 6 months, then consider CT at 18"),
    ("FS 1 several above 8 mm, high", HIGH, [nodule(9), nodule(12)], "3 to 6 months, then CT at 18"),
    ("FS 2 single GGN below 6 mm", LOW, [nodule(5.4, GROUND)], NO_FOLLOW_UP),
    ("FS 2 single GGN from 6 mm on", LOW, [nodule(5.5, GROUND)], "6 to 12 months to confirm persistence"),
    ("FS 2 its end", HIGH, [nodule(20, GROUND)], "every 2 years until 5 years"),
    ("FS 2 single part-solid below 6 mm", HIGH, [part(5.4, 3)], NO_FOLLOW_UP),
    ("FS 2 single part-solid from 6 mm on", LOW, [part(6, 5)], "3 to 6 months to confirm persistence"),
    ("FS 2 solid part below 6 mm", LOW, [part(9, 5.4)], "every year for 5 years"),
    ("FS 2 solid part of 6 mm", LOW, [part(9, 5.5)], "PET/CT, biopsy or resection"),
    ("FS 2 part-solid that grows", LOW, [part(9, 4, GROWING, GROWING)], "PET/CT, biopsy or resection"),
    (
        "FS 2 several subsolid below 6 mm",
        LOW,
        [part(5, 1), nodule(4, GROUND)],
        "consider CT at 2 and 4 years",
    ),
    ("FS 2 several subsolid from 6 mm on", LOW, [part(7, 1), nodule(4, GROUND)], "most suspicious nodule"),
]


@pytest.mark.parametrize(
    ("source", "who", "nodules", "words"), FLEISCHNER, ids=[row[0] for row in FLEISCHNER]
)
def test_fleischner(source: str, who: Patient, nodules: list[Nodule], words: str) -> None:
    (found,) = fleischner.assess(who, nodules)
    assert words in found.management, source
    assert found.trace


BTS: list[tuple[str, dict[str, Any], str]] = [
    ("BTS below 5 mm", {"diameter_mm": 4.9}, "Discharge"),
    ("BTS below 80 mm3 counts before the diameter", {"diameter_mm": 6, "volume_mm3": 79}, "Discharge"),
    ("BTS below 5 mm, subsolid", {"diameter_mm": 4, "attenuation": GROUND}, "Discharge"),
    ("BTS benign", {"diameter_mm": 20, "benign_pattern": True}, "Discharge"),
    ("BTS 5 mm", {"diameter_mm": 5}, "12 months"),
    ("BTS 6 mm", {"diameter_mm": 6}, "3 months"),
    ("BTS 80 mm3", {"volume_mm3": 80}, "3 months"),
    ("BTS below 300 mm3", {"volume_mm3": 299}, "3 months"),
    ("BTS 8 mm, low risk", {"diameter_mm": 8, "brock_probability": 0.099}, "surveillance"),
    ("BTS 300 mm3, risk of 10 %", {"volume_mm3": 300, "brock_probability": 0.1}, "PET/CT"),
    ("BTS subsolid from 5 mm on", {"diameter_mm": 5, "attenuation": PART}, "1, 2 and 4 years"),
]


@pytest.mark.parametrize(("source", "facts", "words"), BTS, ids=[row[0] for row in BTS])
def test_bts(source: str, facts: dict[str, Any], words: str) -> None:
    assert words in bts.assess(**{"attenuation": SOLID, **facts}).management, source


@pytest.mark.parametrize(
    ("facts", "missing"),
    [
        ({"diameter_mm": 9}, "the Brock model"),
        ({}, "the diameter or the volume"),
        ({"diameter_mm": 9, "attenuation": None}, "whether it is solid"),
        ({"diameter_mm": 9, "benign_pattern": None}, "a benign pattern"),
    ],
)
def test_bts_says_what_is_missing(facts: dict[str, Any], missing: str) -> None:
    found = bts.assess(**{"attenuation": SOLID, **facts})
    assert found.category is None
    assert missing in found.words


@pytest.mark.parametrize(
    ("before", "now", "days", "months", "growth_class", "words"),
    [
        # 90 days, 200 mm3: the doubling time is 90 ln 2 / ln(now / before)
        (100, 120, 90, 3, GrowthClass.NO_GROWTH, "CT at 12 months"),
        (100, 124.9, 365, 12, GrowthClass.NO_GROWTH, "Discharge"),
        (100, 125, 90, 3, GrowthClass.SUSPICIOUS, "biopsy or resection"),
        (100, 125, 129, 4, GrowthClass.INDETERMINATE, "CT at 12 months"),
        (100, 160, 365, 12, GrowthClass.INDETERMINATE, "further surveillance"),
        (100, 150, 365, 12, GrowthClass.SLOW, "yearly surveillance"),
        (100, 50, 90, 3, GrowthClass.NO_GROWTH, "CT at 12 months"),
    ],
)
def test_doubling_times(
    before: float, now: float, days: float, months: float, growth_class: GrowthClass, words: str
) -> None:
    """NELSON's classes, and what BTS's algorithm 2 makes of them."""
    found = growth.doubling(before, now, days)
    assert found.days == pytest.approx(days * math.log(2) / math.log(now / before))
    assert found.growth is growth_class
    assert words in bts.follow_up(found, months).management


BROCK: dict[str, Any] = {
    "age_years": 62,
    "female": False,
    "family_history_lung_cancer": False,
    "emphysema": False,
    "diameter_mm": 8.0,
    "attenuation": SOLID,
    "upper_lobe": False,
    "nodule_count": 1,
}
WORST: dict[str, Any] = {
    **BROCK,
    "age_years": 70,
    "female": True,
    "family_history_lung_cancer": True,
    "emphysema": True,
    "diameter_mm": 15.0,
    "attenuation": PART,
    "upper_lobe": True,
}
SOLITARY: dict[str, Any] = {
    "age_years": 65,
    "ever_smoker": True,
    "diameter_mm": 12.0,
    "spiculated": True,
    "upper_lobe": True,
}
RISKS: list[tuple[str, Any, dict[str, Any], float]] = [
    # worked out of the published coefficients by another program (awk)
    ("Brock 2b, T2", brock_2b, {**BROCK, "spiculated": False}, 0.017160),
    ("Brock 2b, T2", brock_2b, {**WORST, "spiculated": True}, 0.691254),
    ("Brock 2b, T2", brock_2b, {**BROCK, "spiculated": False, "attenuation": GROUND}, 0.015135),
    ("Brock 2a, medicalalgorithms.com", brock_2a, BROCK, 0.019064),
    ("Brock 2a, medicalalgorithms.com", brock_2a, WORST, 0.571430),
    ("Mayo, Swensen 1997", mayo, {**SOLITARY, "cancer_history": False}, 0.464883),
    ("Mayo, Swensen 1997", mayo, {**SOLITARY, "cancer_history": True}, 0.768187),
    (
        "VA, T2",
        va,
        {"age_years": 62, "ever_smoker": False, "diameter_mm": 10, "years_since_quitting": None},
        0.079132,
    ),
    (
        "VA, Gould 2007",
        va,
        {"age_years": 70, "ever_smoker": True, "diameter_mm": 20, "years_since_quitting": 10},
        0.686326,
    ),
    (
        "Peking, T2",
        peking,
        {
            "age_years": 60,
            "diameter_mm": 20,
            "spiculated": True,
            "family_history_cancer": True,
            "calcified": False,
            "smooth_border": False,
        },
        0.955169,
    ),
]


@pytest.mark.parametrize(("source", "model", "facts", "expected"), RISKS)
def test_risk_models(source: str, model: Any, facts: dict[str, Any], expected: float) -> None:
    assert model(**facts).probability == pytest.approx(expected, abs=5e-6), source


# what must hold of every nodule
CHANGES = st.sampled_from([BASELINE, NEW, GROWING])
SIZES = st.integers(10, 400).map(lambda tenths: tenths / 10)


@st.composite
def any_nodule(draw: st.DrawFn) -> Nodule:
    mm = draw(SIZES)
    before = draw(st.none() | st.sampled_from([None, *CATEGORIES, "0", "3S"]))
    has_earlier = draw(st.booleans())
    return nodule(
        mm,
        draw(st.none() | st.sampled_from(Attenuation)),
        draw(st.none() | st.floats(0, mm)),
        change=draw(st.none() | st.sampled_from(Change)),
        solid_part=draw(st.none() | st.sampled_from(Change)),
        earlier=Earlier(before, draw(st.floats(0.5, 36)), draw(st.none() | SIZES)) if has_earlier else None,
        benign_pattern=draw(st.none() | st.booleans()),
        juxtapleural_benign_form=draw(st.none() | st.booleans()),
        airway=draw(st.none() | st.sampled_from(Airway)),
        cyst=draw(st.none() | st.sampled_from(Cyst)),
        cyst_changes=tuple(draw(st.sets(st.sampled_from(CystChange), max_size=2))),
        suspicious=draw(st.sampled_from([(), ("spiculation",)])),
        proven_benign=draw(st.booleans()),
    )


def consistent(found: Assessment) -> None:
    """A category with rules and a recommendation, or none with the reason."""
    if found.category is None:
        assert found.missing
        assert not found.management
        assert "cannot be determined" in found.words
        assert found.missing[0].rpartition(": ")[2] in found.words
    else:
        assert found.trace
        assert found.management
        assert not found.missing


@settings(max_examples=60, deadline=None)
@given(any_nodule(), any_nodule(), st.sampled_from([True, False, None]))
def test_lung_rads_always_answers_or_says_why_not(one: Nodule, other: Nodule, screening: bool | None) -> None:
    consistent(lung_rads.assess_nodule(one))
    whole = lung_rads.assess(Examination(screening, (one, other)))
    consistent(whole)
    if whole.category is not None:
        found = [lung_rads.assess_nodule(n).category for n in (one, other)]
        ranks = [CATEGORIES.index(c) for c in found if c is not None]
        assert CATEGORIES.index(whole.category) == max(ranks, default=0)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.floats(0, 1), CHANGES)
def test_a_larger_part_or_whole_is_never_less_suspicious(
    first: float, second: float, share: float, change: Change
) -> None:
    small, large = sorted((first, second))
    rank = {
        mm: [
            CATEGORIES.index(lung_rads.assess_nodule(one).category or "?")
            for one in (
                nodule(mm, SOLID, change=change),
                nodule(mm, GROUND, change=change),
                part(mm, to_tenths(share * mm), change, change),
                part(40, mm, change, change),
            )
        ]
        for mm in (small, large)
    }
    assert all(a <= b for a, b in zip(rank[small], rank[large], strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(SIZES, st.sampled_from(Attenuation)), max_size=4),
    st.none() | st.floats(20, 90),
    st.tuples(*[st.sampled_from([True, False, None])] * 4),
)
def test_fleischner_always_answers_or_says_why_not(
    nodules: list[tuple[float, Attenuation]],
    age: float | None,
    known: tuple[bool | None, bool | None, bool | None, bool | None],
) -> None:
    screening, cancer, immune, high = known
    who = Patient(age, screening, cancer, immune, high)
    said = fleischner.assess(who, [nodule(mm, kind, mm / 3) for mm, kind in nodules])
    assert bool(said) == bool(nodules)
    for found in said:
        consistent(found)
    applies = age is not None and age >= 35 and (screening, cancer, immune) == (False,) * 3
    assert applies or all(found.category is None for found in said)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(20, 90), st.sampled_from(Attenuation))
def test_a_larger_nodule_is_never_less_risky(
    first: float, second: float, age: int, kind: Attenuation
) -> None:
    small, large = sorted((first, second))
    facts = {**BROCK, "age_years": age, "attenuation": kind}
    low, high = ({**facts, "diameter_mm": mm} for mm in (small, large))
    assert brock_2b(**low, spiculated=False).logit <= brock_2b(**high, spiculated=False).logit
    assert brock_2b(**low, spiculated=False).logit < brock_2b(**low, spiculated=True).logit
    assert brock_2a(**low).logit <= brock_2a(**high).logit


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 20000), st.floats(0.5, 20000))
def test_a_larger_volume_is_never_a_smaller_diameter(first: float, second: float) -> None:
    small, large = sorted((first, second))
    assert growth.diameter_of_volume(small) <= growth.diameter_of_volume(large)
    assert growth.diameter_of_volume(large) == pytest.approx((6 * large / math.pi) ** (1 / 3), abs=0.35)
