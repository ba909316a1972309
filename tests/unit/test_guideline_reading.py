"""From a finding and a header to what the guidelines say in the report."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from inference.change import Change
from inference.guidelines.growth import change_of
from inference.guidelines.lung_rads import MANAGEMENT
from inference.guidelines.reading import SOLID_PART, guideline_observations, nodule_of, since
from inference.guidelines.screening import Occasion, occasion_of
from inference.record import ClinicalRecord
from inference.types import (
    Attenuation,
    AttenuationDoubt,
    Comparison,
    Descriptor,
    Finding,
    Pair,
    PriorReference,
    SecondLook,
    SemanticFeature,
    Standing,
)
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_finding, make_volume

SCREENED = Occasion(True, "a test", prior=False)
CALM = (
    SemanticFeature("calcification", 6, 0.95),
    SemanticFeature("spiculation", 1, 0.8),
    SemanticFeature("lobular_pattern", 1, 0.8),
)
APART = (Descriptor("pleural attachment", 0.01, "1", "pleura"),)


@pytest.fixture(scope="module")
def plain() -> Finding:
    finding = make_finding(make_volume(make_ct_series(12, matrix=64)), features=CALM, descriptors=APART)
    return replace(finding, tracking_id="N1")


def said(finding: Finding | None, occasion: Occasion, **record: Any) -> dict[str, str]:
    findings = () if finding is None else (finding,)
    return {
        one.name: one.value for one in guideline_observations(findings, occasion, ClinicalRecord(**record))
    }


def sized(finding: Finding, mm: float, **changes: Any) -> Finding:
    return replace(finding, measurements=replace(finding.measurements, mean_diameter_mm=mm), **changes)


def test_a_first_screening_has_its_category(plain: Finding) -> None:
    assert said(sized(plain, 9.04), SCREENED) == {
        "screening": "yes, a test",
        "lung_rads": "4A",
        "lung_rads_version": "2022",
        "lung_rads_management": MANAGEMENT["4A"],
        "lung_rads_rules": "N1: 4A: solid, 8 to below 15 mm, baseline "
        "(solid, mean diameter 9.0 mm, baseline)",
    }
    assert said(None, SCREENED)["lung_rads"] == "1"


def test_what_the_reading_does_not_tell_stays_open(plain: Finding) -> None:
    calcified = sized(plain, 9, features=(SemanticFeature("calcification", 3, 0.9),))
    assert (
        "whether it has a benign calcification or fat" in said(calcified, SCREENED)["lung_rads_undetermined"]
    )
    touching = sized(plain, 7, descriptors=(Descriptor("pleural attachment", 0.9, "1", "pleura"),))
    assert "whether it is juxtapleural" in said(touching, SCREENED)["lung_rads_undetermined"]
    rough = replace(touching, features=(*CALM[:2], SemanticFeature("lobular_pattern", 4, 0.6)))
    assert said(rough, SCREENED)["lung_rads"] == "3"


def test_the_solid_part_decides(plain: Finding) -> None:
    part = Descriptor(SOLID_PART, 6.4, "mm", "measured")
    finding = sized(plain, 12, attenuation=Attenuation.PART_SOLID, descriptors=(*APART, part))
    assert said(finding, SCREENED)["lung_rads"] == "4A"
    without = replace(finding, descriptors=APART)
    assert "the diameter of its solid part" in said(without, SCREENED)["lung_rads_undetermined"]


def test_likely_spicules_make_it_4x(plain: Finding) -> None:
    features = (CALM[0], SemanticFeature("spiculation", 5, 0.7))
    assert said(sized(plain, 9, features=features), SCREENED)["lung_rads"] == "4X"
    unsure = (CALM[0], SemanticFeature("spiculation", 5, 0.4))
    assert said(sized(plain, 9, features=unsure), SCREENED)["lung_rads"] == "4A"


def test_without_knowing_of_a_prior_it_is_conditional(plain: Finding) -> None:
    words = said(sized(plain, 9), Occasion(True, "a test"))
    del words["screening"]
    assert words == {
        "lung_rads_undetermined": "Lung-RADS v2022 cannot be determined. Not known: whether it is new, "
        "stable or growing (N1).",
        "lung_rads_if": "If this is a first screening examination: 4A (N1).",
        "lung_rads_rules_if": "N1: 4A: solid, 8 to below 15 mm, baseline (solid, mean diameter 9.0 mm, "
        "baseline)",
    }
    assert nodule_of(plain, prior=True).change is None
    assert nodule_of(plain, prior=False).change is Change.BASELINE


def test_nobody_says_screening(plain: Finding) -> None:
    words = said(sized(plain, 9), occasion_of(Dataset()))
    assert words["screening"] == "not known, no attribute of the images says"
    assert "whether this is a screening examination." in words["lung_rads_undetermined"]
    assert words["lung_rads_if"] == "If this is a first screening examination: 4A (N1)."
    assert "fleischner_2017" not in words


def test_outside_of_screening_fleischner_speaks(plain: Finding) -> None:
    words = said(sized(plain, 7), Occasion(False, "a test"), age_years=60, emphysema=True)
    assert (
        words["lung_rads_undetermined"]
        == "Lung-RADS v2022 cannot be determined: not a screening examination."
    )
    assert words["fleischner_2017"] == (
        "single solid nodule, 6 to 8 mm, high risk. CT at 6 to 12 months, then CT at 18 to 24 months "
        "(unless the patient has a known cancer or a suppressed immune system)"
    )
    for record, reason in (
        ({}, "the patient's age"),
        ({"age_years": 60, "cancer_history": True}, "a known cancer"),
    ):
        assert reason in said(sized(plain, 7), Occasion(False, "a test"), **record)["fleischner_2017"]
    assert (
        "whether the risk is low"
        in said(sized(plain, 7), Occasion(False, "a test"), age_years=60)["fleischner_2017"]
    )


DAY = date(2025, 1, 6)
REFERENCE = PriorReference("1.2.3", "1.2.4", DAY)


def followed(finding: Finding, before: Finding | None, days: int, **changes: Any) -> Comparison:
    """The comparison of one nodule with what it was before."""
    months = days / 30.4375
    if before is None:
        pair = Pair(finding, None, Standing.NEW, Change.NEW)
    else:
        sizes = before.measurements.mean_diameter_mm, finding.measurements.mean_diameter_mm
        pair = Pair(finding, before, Standing.MATCHED, change_of(*sizes, months))
    return Comparison(REFERENCE, days, (replace(pair, **changes),))


def by_comparison(
    comparison: Comparison, *findings: Finding, screening: bool | None = True
) -> dict[str, str]:
    occasion = Occasion(screening, "a test")
    said = guideline_observations(findings, occasion, ClinicalRecord(age_years=60), comparison)
    return {one.name: one.value for one in said}


def part_solid(finding: Finding, mm: float, solid: float) -> Finding:
    part = Descriptor(SOLID_PART, solid, "mm", "measured")
    return sized(finding, mm, attenuation=Attenuation.PART_SOLID, descriptors=(*APART, part))


def ground_glass(finding: Finding, mm: float) -> Finding:
    return sized(finding, mm, attenuation=Attenuation.GROUND_GLASS)


@pytest.mark.parametrize(
    ("now", "before", "days", "category"),
    [
        # solid, before and after, mean diameters in mm
        (3.9, None, 365, "2"),
        (4.0, None, 365, "3"),
        (6.0, None, 365, "4A"),
        (8.0, None, 365, "4B"),
        (7.9, 6.0, 365, "4A"),
        (8.5, 6.0, 365, "4B"),
        (7.0, 7.0, 365, "2"),
        (7.0, 7.0, 91, "3"),
        (9.0, 9.0, 91, "3"),
        (9.0, 9.0, 60, "4A"),
        (5.0, 7.0, 365, "2"),
        (6.5, 5.5, 365, "3"),
        (9.0, 7.0, 900, "4B"),
        (16.0, 16.0, 365, "4B"),
    ],
)
def test_follow_up_of_a_solid_nodule(
    plain: Finding, now: float, before: float | None, days: int, category: str
) -> None:
    finding = sized(plain, now)
    then = None if before is None else sized(plain, before)
    words = by_comparison(followed(finding, then, days), finding)
    assert words["lung_rads"] == category
    assert (
        "baseline" not in words["lung_rads_rules"] or "crossed a size threshold" in words["lung_rads_rules"]
    )


@pytest.mark.parametrize(
    ("now", "before", "category"),
    [
        ((9.0, 3.0), (8.9, 3.0), "2"),
        ((9.0, 5.0), (9.0, 3.0), "4B"),
        ((9.0, 3.5), (9.0, 1.5), "4A"),
        ((9.0, 7.0), (9.0, 7.0), "3"),
        ((5.0, 2.0), (5.0, 2.0), "2"),
    ],
)
def test_follow_up_of_a_part_solid_nodule(
    plain: Finding, now: tuple[float, float], before: tuple[float, float], category: str
) -> None:
    finding = part_solid(plain, *now)
    assert by_comparison(followed(finding, part_solid(plain, *before), 365), finding)["lung_rads"] == category


def test_what_was_ground_glass_has_a_new_solid_part(plain: Finding) -> None:
    finding, before = part_solid(plain, 9, 3), ground_glass(plain, 9)
    assert by_comparison(followed(finding, before, 365), finding)["lung_rads"] == "4A"
    assert since(nodule_of(finding), followed(finding, before, 365).pairs[0], 12).solid_part is Change.NEW
    still = ground_glass(plain, 12)
    assert by_comparison(followed(still, before, 365), still)["lung_rads"] == "2"


def test_a_solid_part_that_nobody_measured_before_stays_open(plain: Finding) -> None:
    finding = part_solid(plain, 11, 5)
    before = sized(plain, 9, attenuation=Attenuation.PART_SOLID, descriptors=APART)
    words = by_comparison(followed(finding, before, 365), finding)["lung_rads_undetermined"]
    assert "whether its solid part has grown" in words


def test_a_prior_that_could_not_be_compared_leaves_it_open(plain: Finding) -> None:
    refused = Comparison(REFERENCE, 365, reason="The lungs don't fall on each other.")
    finding = sized(plain, 9)
    words = by_comparison(refused, finding)
    assert words["lung_rads_undetermined"] == (
        "Lung-RADS v2022 cannot be determined. Not known: whether it is new, stable or growing (N1). The "
        "examination of 2025-01-06 could not be compared: The lungs don't fall on each other."
    )
    outside = by_comparison(refused, finding, screening=False)
    assert outside["fleischner_2017"].endswith("immune system, or it was seen before)")


def test_one_nodule_that_could_not_be_compared_leaves_it_open(plain: Finding) -> None:
    finding = sized(plain, 9)
    unseen = followed(finding, None, 365, standing=Standing.OUTSIDE_PRIOR, change=None)
    words = by_comparison(unseen, finding)["lung_rads_undetermined"]
    assert words.endswith("Compared with 2025-01-06: N1: outside what the prior examination shows.")
    strange = followed(finding, finding, 365, change=None, reason="Its outlines differ.")
    words = by_comparison(strange, finding)["lung_rads_undetermined"]
    assert words.endswith("growing (N1). Compared with 2025-01-06: N1: Its outlines differ.")


def test_nothing_left_is_category_1_and_a_second_look_counts(plain: Finding) -> None:
    gone = Comparison(REFERENCE, 365, (Pair(None, plain, Standing.RESOLVED),))
    assert by_comparison(gone)["lung_rads"] == "1"
    again = sized(plain, 8.5, tracking_id="N7")
    late = followed(again, sized(plain, 6), 365, second_look=SecondLook.SEEN_IN_CURRENT)
    words = by_comparison(late)
    assert words["lung_rads"] == "4B"
    assert words["lung_rads_rules"].startswith("N7: 4B: ")
    assert "(solid, mean diameter 8.5 mm, growing)" in words["lung_rads_rules"]


def test_nobody_says_screening_but_the_change_is_known(plain: Finding) -> None:
    finding = sized(plain, 8.5)
    words = by_comparison(followed(finding, sized(plain, 6), 365), finding, screening=None)
    assert words["lung_rads_if"] == "If this is a screening examination: 4B (N1)."


def in_doubt(finding: Finding, read: Attenuation, measured: Attenuation) -> Finding:
    doubt = AttenuationDoubt(read, 0.56, measured)
    return replace(finding, attenuation=None, attenuation_doubt=doubt)


def test_a_type_in_doubt_is_said_either_way_the_more_severe_first(plain: Finding) -> None:
    part = Descriptor(SOLID_PART, 6.4, "mm", "measured")
    finding = sized(plain, 16, descriptors=(*APART, part))
    finding = in_doubt(finding, Attenuation.SOLID, Attenuation.PART_SOLID)
    words = said(finding, SCREENED)
    assert words["lung_rads_undetermined"].endswith(
        "Not known: whether it is solid, part-solid or ground-glass (N1)."
    )
    assert words["lung_rads_if"] == "It is 4B (N1) with N1 solid, 4A (N1) with N1 part-solid."
    open_ = said(finding, Occasion(None, "a test"))["lung_rads_if"]
    assert open_ == (
        "If this is a first screening examination: 4B (N1) with N1 solid, 4A (N1) with N1 part-solid."
    )
    elsewhere = guideline_observations(
        (sized(finding, 9),), Occasion(False, "a test"), ClinicalRecord(age_years=60)
    )
    rows = [one.value for one in elsewhere if one.name == "fleischner_2017"]
    assert [row.split(":")[0] for row in rows] == ["with N1 solid", "with N1 part-solid"]


def test_a_type_in_doubt_leaves_nothing_open_that_does_not_depend_on_it(plain: Finding) -> None:
    large = sized(plain, 20)
    # both readings say ground-glass, but the network isn't sure: it may be anything
    unsure = sized(plain, 12, tracking_uid="1.2.9", tracking_id="N2")
    unsure = in_doubt(unsure, Attenuation.GROUND_GLASS, Attenuation.GROUND_GLASS)
    part = Descriptor(SOLID_PART, 3.0, "mm", "measured")
    unsure = replace(unsure, descriptors=(*APART, part))
    found = guideline_observations((large, unsure), SCREENED, ClinicalRecord())
    assert [one.value for one in found if one.name == "lung_rads"] == ["4B"]
    rules = [one.value for one in found if one.name == "lung_rads_rules"]
    assert [rule.split(" (")[0] for rule in rules] == [
        "N1: 4B: solid, 15 mm or more, baseline",
        "N2, if solid: 4A: solid, 8 to below 15 mm, baseline",
        "N2, if ground-glass: 2: ground-glass, below 30 mm",
    ]
    alone = said(unsure, SCREENED)
    assert alone["lung_rads_if"] == "It is 4A (N2) with N2 solid, 2 (N2) with N2 ground-glass."


def test_fleischner_is_asked_of_what_was_not_seen_before(plain: Finding) -> None:
    old, new = sized(plain, 7), sized(plain, 7, tracking_uid="1.2.9", tracking_id="N2")
    pairs = (*followed(old, sized(plain, 7), 365).pairs, *followed(new, None, 365).pairs)
    comparison = Comparison(REFERENCE, 365, pairs)
    said = [
        one.value
        for one in guideline_observations(
            (old, new), Occasion(False, "a test"), ClinicalRecord(age_years=60, emphysema=True), comparison
        )
        if one.name == "fleischner_2017"
    ]
    assert said[0] == "not asked for N1: seen before, on 2025-01-06"
    assert said[1].startswith("single solid nodule, 6 to 8 mm, high risk.")
    only = by_comparison(followed(old, sized(plain, 7), 365), old, screening=False)
    assert only["fleischner_2017"] == said[0]


def coded(value: str, keyword: str = "ProcedureCodeSequence") -> Dataset:
    item, header = Dataset(), Dataset()
    item.CodeValue = value
    setattr(header, keyword, Sequence([item]))
    return header


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (coded("71271"), True),
        (coded("G0297", "RequestedProcedureCodeSequence"), True),
        (coded("71250"), False),
        (coded("12345"), None),
    ],
)
def test_a_procedure_code_decides(header: Dataset, expected: bool | None) -> None:
    found = occasion_of(header)
    assert found.screening is expected
    assert (expected is None) or "procedure code" in found.because


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CT LUNG CANCER SCREENING", True),
        ("LDCT_SCREEN", True),
        ("Screening chest low dose", True),
        ("CT chest low-dose screening", True),
        ("CT CHEST WITH CONTRAST", None),
        ("Mammography screening", None),
        ("", None),
    ],
)
def test_words_of_the_request_decide(words: str, expected: bool | None) -> None:
    header = Dataset()
    header.StudyDescription = words
    assert occasion_of(header).screening is expected
    item = Dataset()
    item.ReasonForTheRequestedProcedure = words
    header = Dataset()
    header.RequestAttributesSequence = Sequence([item])
    assert occasion_of(header).screening is expected


def test_the_site_overrules_the_header() -> None:
    assert occasion_of(coded("71250"), site_says=True) == Occasion(True, "as the settings or the command say")
    assert occasion_of(coded("71271"), site_says=False).screening is False
