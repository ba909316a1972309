"""From a finding and a header to what the guidelines say in the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence

from inference.change import Change
from inference.guidelines.reading import SOLID_PART, guideline_observations, nodule_of
from inference.guidelines.screening import Occasion, occasion_of
from inference.record import ClinicalRecord
from inference.types import Attenuation, Descriptor, Finding, SemanticFeature
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_finding, make_volume

SCREENED = Occasion(True, "a test", prior=False)
CALM = (
    SemanticFeature("calcification", 6, 0.95),
    SemanticFeature("spiculation", 1, 0.8),
    SemanticFeature("lobulation", 1, 0.8),
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
        "lung_rads_rules": "4A: solid, 8 to below 15 mm, baseline "
        "(N1: solid, mean diameter 9.0 mm, baseline)",
    }
    assert said(None, SCREENED)["lung_rads"] == "1"


def test_what_the_reading_does_not_tell_stays_open(plain: Finding) -> None:
    calcified = sized(plain, 9, features=(SemanticFeature("calcification", 3, 0.9),))
    assert (
        "whether it has a benign calcification or fat" in said(calcified, SCREENED)["lung_rads_undetermined"]
    )
    touching = sized(plain, 7, descriptors=(Descriptor("pleural attachment", 0.9, "1", "pleura"),))
    assert "whether it is juxtapleural" in said(touching, SCREENED)["lung_rads_undetermined"]
    rough = replace(touching, features=(*CALM[:2], SemanticFeature("lobulation", 4, 0.6)))
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
    words = said(sized(plain, 9), Occasion(True, "a test"))["lung_rads_undetermined"]
    assert words == (
        "Lung-RADS v2022 cannot be determined: N1: whether it is new, stable or growing. As a first "
        "screening examination it would be 4A: 4A: solid, 8 to below 15 mm, baseline (N1: solid, mean "
        "diameter 9.0 mm, baseline)."
    )
    assert nodule_of(plain, prior=True).change is None
    assert nodule_of(plain, prior=False).change is Change.BASELINE


def test_nobody_says_screening(plain: Finding) -> None:
    words = said(sized(plain, 9), occasion_of(Dataset()))
    assert words["screening"] == "not known, no attribute of the images says"
    assert "whether this is a screening examination." in words["lung_rads_undetermined"]
    assert "it would be 4A" in words["lung_rads_undetermined"]
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
    assert occasion_of(coded("71250"), site_says=True) == Occasion(True, "as the node is set up")
    assert occasion_of(coded("71271"), site_says=False).screening is False
