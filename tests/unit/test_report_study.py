"""What the report says of the study: outcome, quality, models, conclusion, language."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from dicom_sr.context import OtherSeries, Predecessor
from dicom_sr.report import build_not_analysed_report, build_report
from dicom_sr.wording import SENTENCES, Wording
from inference.types import Observation, SemanticFeature
from tests.finding_factory import TRAINED, UNTRAINED, make_context, make_finding, make_findings, make_result
from tests.report_reading import (
    CONTEXT,
    HEADERS,
    VOLUME,
    coded,
    comments,
    conclusion,
    named,
    numbers,
    report_on,
)


@pytest.fixture(scope="module")
def report() -> Dataset:
    return report_on(make_findings(VOLUME, 3))


def test_run_outcome_and_no_nodules() -> None:
    report = report_on(())
    (container,) = named(report, "C0034375")
    assert container.ConceptNameCodeSequence[0].CodingSchemeDesignator == "UMLS"
    assert coded(container, "111017") == ["111241"]
    assert named(report, "126010") == []
    (comment,) = [c for c in comments(container) if "No nodule" in c]
    assert "Operating point: blob-detector: min_diameter_mm = 4." in comment
    assert "does not exclude nodules" in comment
    assert comment in conclusion(report)
    assert numbers(container) == {"Detection threshold": ("4.0", "mm")}
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(evidence) == 1


def test_with_nodules_the_outcome_says_so(report: Dataset) -> None:
    assert coded(named(report, "C0034375")[0], "111017") == ["111242"]


def test_warnings_and_observations_are_in_the_study_level_container() -> None:
    observations = (
        Observation("lung_rads", "4A"),
        Observation("lung_rads_version", "2022"),
        Observation("emphysema", "present", 0.83),
    )
    report = report_on(
        make_findings(VOLUME, 1), observations=observations, warnings=("The slices are 2.5 mm thick.",)
    )
    (container,) = named(report, "C0034375")
    assert coded(container, "RID50134") == ["RID50139"]
    assert named(container, "NN-1")[0].TextValue == "2022"
    assert named(container, "121071")[0].TextValue == "emphysema: present (probability 83 %)"
    assert "Warning: The slices are 2.5 mm thick." in comments(container)
    assert "Warning: The slices are 2.5 mm thick." in conclusion(report)


@pytest.mark.parametrize("words", ["0", "cannot be determined because the record says nothing of screening"])
def test_lung_rads_without_a_verified_code_is_text(words: str) -> None:
    report = report_on((), observations=(Observation("lung_rads", words),))
    (item,) = named(report, "RID50134")
    assert (item.ValueType, item.TextValue) == ("TEXT", words)
    assert f"Lung-RADS: {words}." in conclusion(report)


def test_lung_rads_s_stands_beside_its_category_and_none_is_explained() -> None:
    both = report_on((), observations=(Observation("lung_rads", "2"), Observation("lung_rads", "S")))
    assert coded(both, "RID50134") == ["RID50137", "RID50710"]
    assert "Lung-RADS: 2, S." in conclusion(both)
    (item,) = named(report_on(()), "RID50134")
    assert item.TextValue.startswith("Lung-RADS cannot be determined: it holds for screening")
    assert item.TextValue in conclusion(report_on(()))


def test_quality_findings() -> None:
    observations = (Observation("motion_blur", "present", 0.8), Observation("beam_hardening", "absent"))
    report = report_on((), observations=observations)
    assert coded(report, "111052") == ["111210"]
    assert [i.TextValue for i in named(report, "121071")] == ["beam hardening: absent"]
    thick = replace(VOLUME, slice_thickness_mm=5.0)
    result = make_result(thick, (), CONTEXT)
    assert coded(build_report(thick, result, None, HEADERS, CONTEXT), "111052") == ["RID13"]
    assert coded(report_on(()), "111052") == []


def test_models_input_and_software_are_named_for_programs_too() -> None:
    context = make_context(cards=(UNTRAINED, TRAINED))
    for report in (
        report_on((), context),
        build_not_analysed_report(HEADERS, "GAP", "A slice is missing.", context),
    ):
        (container,) = named(report, "C0034375")
        assert [i.TextValue for i in named(container, "NN-11")] == [f"classifier version 1: {'ab' * 32}"]
        assert named(container, "NN-12")[0].TextValue == context.input_digest
        assert named(container, "NN-13")[0].TextValue == report.SoftwareVersions
        assert "Not reviewed by a physician. Research use only" in comments(container)[0]
        described = [e.ContributionDescription for e in report.ContributingEquipmentSequence]
        assert f"classification, weights sha256 {'ab' * 32}" in described


def test_conclusion_says_what_a_reader_must_know() -> None:
    context = make_context(
        cards=(UNTRAINED, TRAINED),
        other_series=(OtherSeries("1.2.3", "CT", "TOO_THICK", "Slices are 8 mm thick."),),
        predecessors=(Predecessor(VOLUME.study_uid, "1.2.4", Comprehensive3DSRStorage, "1.2.5"),),
    )
    report = report_on(make_findings(VOLUME, 1), context)
    text = conclusion(report)
    for sentence in (
        "Automatic result. Not reviewed by a physician. Research use only, not for primary diagnosis.",
        "One nodule was marked.",
        "Nodule 1 is a solid nodule in the right upper lobe. It measures 8.0 x 6.2 mm (mean diameter 7.1 mm,",
        "The certainty of its detection is 88 %.",
        "blob-detector version 1 (detection), no trained weights.",
        f"classifier version 1 (classification), weights sha256 {'ab' * 32}.",
        f"Input digest: {'d1' * 32}.",
        "pipeline version 0.1.0+blobs1, software version 0.1.0",
        "Other series 1.2.3 (CT): TOO_THICK. Slices are 8 mm thick.",
        "replaces an earlier one of the same series: 1.2.5.",
    ):
        assert sentence in text
    assert "blob-detector version 1: Sensitivity 1 of 1 on one synthetic series." in comments(report)
    assert "3 nodules were marked." in conclusion(report_on(make_findings(VOLUME, 3)))


def test_unmeasured_performance_is_said() -> None:
    context = make_context(cards=(replace(UNTRAINED, performance=()),))
    said = comments(report_on((), context))
    assert "blob-detector version 1: Its performance has not been measured." in said


def in_german() -> Wording:
    sentences = {key: f"DE {sentence}" for key, sentence in SENTENCES.items()}
    return Wording(Code("de-DE", "RFC5646", "German"), sentences, {"nodule": "Rundherd", "Margin": "Rand"})


def test_another_language_changes_the_sentences_and_says_so() -> None:
    context = make_context(wording=in_german())
    features = (SemanticFeature("margin", 5, 0.9),)
    report = report_on((make_finding(VOLUME, features=features),), context)
    assert "DE Nodule 1 is a solid Rundherd in the right upper lobe." in conclusion(report)
    assert "DE Rand: Circumscribed margin (probability 90 %)" in conclusion(report)
    (item,) = named(report, "121077")
    assert coded(item, "121049") == ["de-DE"]
    top = [i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "121049"]
    assert top[0].ConceptCodeSequence[0].CodeValue == "en-US"
    assert coded(report, "C25563") == ["RID5707"]
    assert named(report, "C25563")[0].ConceptNameCodeSequence[0].CodeMeaning == "Margin"
    assert report.SOPInstanceUID != report_on(make_findings(VOLUME, 1)).SOPInstanceUID
    not_analysed = build_not_analysed_report(HEADERS, "GAP", "A slice is missing.", context)
    assert "DE This series was not analysed (GAP): A slice is missing." in conclusion(not_analysed)
