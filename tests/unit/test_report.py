from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import (
    Comprehensive3DSRStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_sr.context import OtherSeries, Predecessor, ResultContext
from dicom_sr.header import LABEL_MAP_STORAGE
from dicom_sr.part10 import encode, save
from dicom_sr.report import build_not_analysed_report, build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.wording import SENTENCES, Wording
from inference.errors import ReasonCode
from inference.types import Descriptor, Malignancy, Observation, Result, SemanticFeature
from tests.ct_factory import make_ct_series, make_enhanced_ct
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_context,
    make_finding,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)

CONTEXT = make_context()
HEADERS = without_pixels(make_ct_series(16))
VOLUME = make_volume(make_ct_series(16))


def report_on(
    findings: tuple[Any, ...],
    context: ResultContext = CONTEXT,
    headers: list[Dataset] = HEADERS,
    **changes: Any,
) -> Dataset:
    volume = VOLUME if headers is HEADERS else changes.pop("volume")
    seg = build_seg(volume, findings, headers, context) if findings else None
    return build_report(volume, make_result(volume, findings, context, **changes), seg, headers, context)


def walk(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from walk(child)


def named(item: Dataset, value: str) -> list[Dataset]:
    return [
        c
        for c in walk(item)
        if c.get("ConceptNameCodeSequence") and c.ConceptNameCodeSequence[0].CodeValue == value
    ]


def numbers(group: Dataset) -> dict[str, tuple[str, str]]:
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: (
            str(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    }


def conclusion(report: Dataset) -> str:
    (item,) = named(report, "121077")
    return str(item.TextValue)


def comments(container: Dataset) -> list[str]:
    return [str(item.TextValue) for item in named(container, "121106")]


def coded(item: Dataset, concept: str) -> list[str]:
    return [c.ConceptCodeSequence[0].CodeValue for c in named(item, concept)]


@pytest.fixture(scope="module")
def report() -> Dataset:
    return report_on(make_findings(VOLUME, 3))


def test_document(report: Dataset) -> None:
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag) == (
        "COMPLETE",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    assert report.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (report.SeriesNumber, report.Modality) == (1002, "SR")
    assert (report.ManufacturerModelName, report.SoftwareVersions, report.DeviceSerialNumber) == (
        CONTEXT.manufacturer_model_name,
        "0.1.0",
        "1",
    )
    assert (report.ContentDate, report.ContentTime) == ("20260102", "030405")
    assert coded(report, "121058") == ["25045-6"]
    assert coded(report, "121049") == ["en-US"]


def test_each_nodule_has_its_two_groups(report: Dataset) -> None:
    (container,) = named(report, "126010")
    groups = list(container.ContentSequence)
    assert [g.ContentTemplateSequence[0].TemplateIdentifier for g in groups] == ["1411", "1410"] * 3
    for number, finding in enumerate(make_findings(VOLUME, 3), start=1):
        volumetric, planar = groups[2 * number - 2 : 2 * number]
        for group in (volumetric, planar):
            assert group.ConceptNameCodeSequence[0].CodeMeaning == "Measurement Group"
            first_uid = next(i for i in group.ContentSequence if i.ValueType == "UIDREF")
            assert first_uid.ConceptNameCodeSequence[0].CodeMeaning == "Tracking Unique Identifier"
            assert finding.tracking_uid == first_uid.UID
            assert named(group, "112039")[0].TextValue == finding.tracking_id
        (segment,) = named(volumetric, "121191")
        assert segment.ReferencedSOPSequence[0].ReferencedSegmentNumber == number
        assert segment.ReferencedSOPSequence[0].ReferencedSOPClassUID == SegmentationStorage
        (region,) = named(planar, "111030")
        assert (region.GraphicType, numbers(planar)) == ("POINT", {})
        y, x = finding.key_point
        assert list(region.GraphicData) == [x + 0.5, y + 0.5]
        source = region.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == HEADERS[finding.key_slice].SOPInstanceUID
        assert "ReferencedFrameNumber" not in source


def test_measurements_are_rounded_and_have_units(report: Dataset) -> None:
    (container,) = named(report, "126010")
    assert numbers(container.ContentSequence[0]) == {
        "Long Axis": ("8.0", "mm"),
        "Short Axis": ("6.2", "mm"),
        "average diameter": ("7.1", "mm"),
        "Maximum 3D Diameter of a Mesh": ("8.4", "mm"),
        "Volume": ("1500.0", "mm3"),
        "Mean Attenuation Coefficient": ("-12.3", "[hnsf'U]"),
        "Standard Deviation of Attenuation Coefficient": ("40.0", "[hnsf'U]"),
        "Minimum Attenuation Coefficient": ("-200.0", "[hnsf'U]"),
        "Maximum Attenuation Coefficient": ("90.0", "[hnsf'U]"),
        "Certainty of Finding": ("87.6", "%"),
    }


def test_site_and_attenuation(report: Dataset) -> None:
    (container,) = named(report, "126010")
    volumetric = container.ContentSequence[::2]
    assert [coded(g, "363698007") for g in volumetric] == [["45653009"], ["90572001"], ["72481006"]]
    assert [coded(g, "272741003") for g in volumetric] == [["24028007"], ["7771000"], []]
    assert [coded(g, "NN-2") for g in volumetric] == [["RID50151"], ["RID50153"], ["RID50152"]]


def test_unknown_attenuation_is_not_made_up() -> None:
    report = report_on((make_finding(VOLUME, attenuation=None),))
    assert named(report, "NN-2") == []
    assert "Nodule 1 is a nodule in the right upper lobe." in conclusion(report)


def test_no_malignancy_and_no_features_unless_the_pipeline_has_them(report: Dataset) -> None:
    assert named(report, "111047") == []
    assert named(report, "C28749") == []
    assert "Not assessed: malignancy and semantic features." in conclusion(report)


def test_malignancy_from_the_image_alone() -> None:
    report = report_on((make_finding(VOLUME, malignancy=Malignancy(0.3125)),))
    (container,) = named(report, "126010")
    values = numbers(container.ContentSequence[0])
    assert values["Probability of cancer"] == ("31.2", "%")
    assert "Probability of cancer with the clinical record" not in values
    assert "Not assessed: semantic features." in conclusion(report)


def test_fused_malignancy_keeps_the_image_only_value() -> None:
    report = report_on((make_finding(VOLUME, malignancy=Malignancy(0.3125, 0.456)),))
    (container,) = named(report, "126010")
    values = numbers(container.ContentSequence[0])
    assert values["Probability of cancer"] == ("31.2", "%")
    assert values["Probability of cancer with the clinical record"] == ("45.6", "%")
    names = list(values)
    assert names.index("Probability of cancer") < names.index(
        "Probability of cancer with the clinical record"
    )
    assert "from the image alone: 31.2 %, with the clinical record: 45.6 %" in conclusion(report)


def test_semantic_features() -> None:
    features = (
        SemanticFeature("spiculation", 4, 0.71),
        SemanticFeature("calcification", 6, 0.9),
        SemanticFeature("malignancy", 5, 0.6),
    )
    report = report_on((make_finding(VOLUME, features=features),))
    assert coded(report, "C28749") == ["004"]
    assert coded(report, "C3672") == ["RID28473"]
    assert coded(report, "RID36042") == ["905"]
    assert [certainty(report, c) for c in ("C28749", "C3672", "RID36042")] == ["71.0", "90.0", "60.0"]
    assert "Spiculation: 4 out of 5 (probability 71 %)" in conclusion(report)
    schemes = [i.CodingSchemeDesignator for i in report.CodingSchemeIdentificationSequence]
    assert schemes == ["99CTNODULE", "99LIDCQIICR"]


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


def test_pleural_attachment_is_coded_with_its_certainty() -> None:
    def groups(probability: float, distance: float) -> Dataset:
        pleura = [
            Descriptor("pleural attachment", probability, "1", "pleura"),
            Descriptor("distance to the pleura", distance, "mm", "pleura"),
        ]
        report = report_on((make_finding(VOLUME, descriptors=tuple(pleura)),))
        group: Dataset = named(report, "126010")[0].ContentSequence[0]
        return group

    near, far = groups(0.83, 0.0), groups(0.1, 7.26)
    assert (coded(near, "NN-3"), coded(far, "NN-3")) == (["52101004"], ["272519000"])
    assert (certainty(near, "NN-3"), certainty(far, "NN-3")) == ("83.0", "90.0")
    assert (coded(near, "112013"), coded(far, "112013")) == (["68599007"], [])
    assert numbers(far)["Distance to the pleura"] == ("7.3", "mm")
    assert numbers(near)["Distance to the pleura"] == ("0.0", "mm")


def certainty(group: Dataset, concept: str) -> str:
    (item,) = named(group, concept)
    (number,) = item.ContentSequence
    assert number.RelationshipType == "HAS PROPERTIES"
    assert number.ConceptNameCodeSequence[0].CodeValue == "111011"
    return str(number.MeasuredValueSequence[0].NumericValue)


def test_above_30_mm_it_is_a_mass_in_seg_and_report() -> None:
    finding = make_finding(VOLUME)
    large = replace(finding, measurements=replace(finding.measurements, long_axis_mm=30.1))
    limit = replace(finding, measurements=replace(finding.measurements, long_axis_mm=30.0))
    assert coded(report_on((large,)), "121071") == ["4147007"] * 2
    assert coded(report_on((limit,)), "121071") == ["27925004"] * 2
    (segment,) = build_seg(VOLUME, (large,), HEADERS, CONTEXT).SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "4147007"
    assert "Nodule 1 is a solid mass in the right upper lobe." in conclusion(report_on((large,)))


def test_each_group_shows_its_key_image_and_its_algorithms(report: Dataset) -> None:
    (container,) = named(report, "126010")
    for group, finding in zip(container.ContentSequence[::2], make_findings(VOLUME, 3), strict=True):
        (image,) = named(group, "121200")
        uid = image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        assert uid == HEADERS[finding.key_slice].SOPInstanceUID
        assert [i.TextValue for i in named(group, "111002")] == [
            "blob-detector version 1: min_diameter_mm = 4"
        ]
        assert coded(group, "111000") == ["123106"]


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
        "The certainty of its detection is 87.6 %.",
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


def test_a_final_report_is_another_document() -> None:
    final = report_on((), make_context(preliminary=False))
    assert final.PreliminaryFlag == "FINAL"
    assert final.SOPInstanceUID != report_on(()).SOPInstanceUID


def test_predecessors_are_the_earlier_reports_not_the_segs() -> None:
    context = make_context(
        predecessors=(
            Predecessor(VOLUME.study_uid, "1.2.3", SegmentationStorage, "1.2.4"),
            Predecessor(VOLUME.study_uid, "1.2.5", Comprehensive3DSRStorage, "1.2.6"),
        )
    )
    (study,) = report_on((), context).PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    assert [i.ReferencedSOPInstanceUID for i in series.ReferencedSOPSequence] == ["1.2.6"]


def test_observer_algorithm_and_equipment_agree(report: Dataset) -> None:
    whole = report.ContributingEquipmentSequence[1]
    assert whole.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert named(report, "121012")[0].UID == whole.DeviceUID == CONTEXT.device_uid
    assert named(report, "121014")[0].TextValue == whole.Manufacturer
    assert named(report, "121015")[0].TextValue == whole.ManufacturerModelName
    assert {i.TextValue for i in named(report, "111001")} == {whole.ManufacturerModelName}
    assert {i.TextValue for i in named(report, "111003")} == {whole.SoftwareVersions}


def test_evidence_holds_every_reference(report: Dataset) -> None:
    rows = {
        instance.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    referenced = {
        r.ReferencedSOPInstanceUID for item in walk(report) for r in item.get("ReferencedSOPSequence", [])
    }
    assert referenced == rows
    assert len(rows) == 17


def test_image_library_lists_all_images_with_shared_descriptors(report: Dataset) -> None:
    (library,) = named(report, "111028")
    (group,) = library.ContentSequence
    images = [i for i in group.ContentSequence if i.ValueType == "IMAGE"]
    uids = [i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in images]
    assert uids == [h.SOPInstanceUID for h in HEADERS]
    assert coded(group, "121139") == ["CT"]
    values = {k: v[0] for k, v in numbers(group).items()}
    assert values == {
        "Pixel Data Rows": "64.0",
        "Pixel Data Columns": "64.0",
        "Horizontal Pixel Spacing": "5.0",
        "Vertical Pixel Spacing": "5.0",
        "Slice Thickness": "2.5",
    }


def test_enhanced_ct_points_name_their_frame() -> None:
    enhanced = make_enhanced_ct(make_ct_series(16))
    volume = make_volume([enhanced])
    findings = make_findings(volume, 2)
    report = report_on(findings, headers=without_pixels([enhanced]), volume=volume)
    sources = [r.ContentSequence[0].ReferencedSOPSequence[0] for r in named(report, "111030")]
    assert [s.ReferencedFrameNumber for s in sources] == [f.key_slice + 1 for f in findings]
    assert {s.ReferencedSOPInstanceUID for s in sources} == {enhanced.SOPInstanceUID}


def test_the_same_input_gives_the_same_bytes(report: Dataset, tmp_path: Path) -> None:
    again = report_on(make_findings(VOLUME, 3))
    assert encode(report) == encode(again)
    digest = save(report, tmp_path / "sr.dcm")
    content = (tmp_path / "sr.dcm").read_bytes()
    assert digest == hashlib.sha256(content).hexdigest() == hashlib.sha256(encode(report)).hexdigest()
    assert content[:132] == bytes(128) + b"DICM"
    assert [p.name for p in tmp_path.iterdir()] == ["sr.dcm"]
    assert str(dcmread(tmp_path / "sr.dcm").file_meta.ImplementationVersionName) == "PACS_NODE"


def test_highdicom_reads_the_groups_back(report: Dataset, tmp_path: Path) -> None:
    save(report, tmp_path / "sr.dcm")
    content: Any = hd.sr.srread(tmp_path / "sr.dcm").content
    for finding in make_findings(VOLUME, 3):
        (volumetric,) = content.get_volumetric_roi_measurement_groups(tracking_uid=finding.tracking_uid)
        (planar,) = content.get_planar_roi_measurement_groups(tracking_uid=finding.tracking_uid)
        assert volumetric.tracking_identifier == planar.tracking_identifier == finding.tracking_id


def test_a_report_on_another_form_of_the_seg_is_another_document(report: Dataset) -> None:
    findings = make_findings(VOLUME, 3)
    seg = build_seg(VOLUME, findings, HEADERS, CONTEXT, encoding=SegEncoding.LABELMAP)
    other = build_report(VOLUME, make_result(VOLUME, findings, CONTEXT), seg, HEADERS, CONTEXT)
    assert other.SOPInstanceUID != report.SOPInstanceUID == CONTEXT.uid(VOLUME.series_uid, "sr")
    references = [i.ReferencedSOPSequence[0] for i in named(other, "121191")]
    assert {r.ReferencedSOPInstanceUID for r in references} == {seg.SOPInstanceUID}
    assert {r.ReferencedSOPClassUID for r in references} == {LABEL_MAP_STORAGE}


def test_result_seg_and_context_must_belong_together() -> None:
    findings = make_findings(VOLUME, 2)
    seg = build_seg(VOLUME, findings, HEADERS, CONTEXT)
    result = make_result(VOLUME, findings, CONTEXT)
    cases: dict[str, tuple[Result, Dataset | None, ResultContext]] = {
        "only to one": (result, None, CONTEXT),
        "order": (replace(result, findings=findings[::-1]), seg, CONTEXT),
        "different series": (replace(result, series_uid="1.2"), seg, CONTEXT),
        "different pipeline": (result, seg, make_context(pipeline_version="2")),
        "or models": (result, seg, make_context(cards=())),
    }
    for message, (said, object_, context) in cases.items():
        with pytest.raises(ValueError, match=message):
            build_report(VOLUME, said, object_, HEADERS, context)


def odd_headers(kind: str) -> list[Dataset]:
    ds = Dataset()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = "1.2.1", "1.2.2", "1.2.3"
    if kind == "MR":
        ds.SOPClassUID, ds.Modality, ds.Rows, ds.Columns = MRImageStorage, "MR", 64, 64
    elif kind == "SC":
        ds.SOPClassUID, ds.Modality, ds.Rows, ds.Columns = SecondaryCaptureImageStorage, "OT", 64, 64
    elif kind == "SR":
        ds.SOPClassUID, ds.Modality = Comprehensive3DSRStorage, "SR"
    elif kind == "private":
        ds.SOPClassUID, ds.Modality = "1.2.3.4.5.6", "ZZ"
    elif kind == "SEG":
        return [build_seg(VOLUME, make_findings(VOLUME, 1), HEADERS, CONTEXT)]
    return [ds]


@pytest.mark.parametrize(
    ("kind", "procedure", "library"),
    [
        ("MR", "25056-3", 1),
        ("SC", "363679005", 1),
        ("SR", "363679005", 0),
        ("private", "363679005", 0),
        ("nothing", "363679005", 0),
        ("SEG", "363679005", 1),
    ],
)
def test_not_analysed_works_for_any_object(kind: str, procedure: str, library: int, tmp_path: Path) -> None:
    headers = odd_headers(kind)
    report = build_not_analysed_report(headers, "NOT_CT", "This is no CT.", CONTEXT)
    save(report, tmp_path / "sr.dcm")
    report = hd.sr.srread(tmp_path / "sr.dcm")
    assert coded(report, "121058") == [procedure]
    assert len(named(report, "111028")) == library
    assert report.StudyInstanceUID == headers[0].StudyInstanceUID
    assert report.get("PatientID") in (None, "", "SYNTHETIC-1")


@pytest.mark.parametrize("reason", ReasonCode)
def test_not_analysed_says_why_in_code_and_text(reason: ReasonCode) -> None:
    report = build_not_analysed_report(HEADERS, reason, "The reason in words.", CONTEXT)
    assert (report.CompletionFlag, report.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    (container,) = named(report, "C0034375")
    assert coded(container, "111017") == ["111245"]
    assert len(coded(container, "111052")) == 1
    assert f"This series was not analysed ({reason}): The reason in words." in comments(container)
    assert "No statement is made on the presence or absence of nodules." in conclusion(report)
    assert "Research use only" in conclusion(report)
    assert named(report, "126010") == []


def test_not_analysed_for_two_reasons_are_two_objects() -> None:
    uids = {build_not_analysed_report(HEADERS, r, "Why.", CONTEXT).SOPInstanceUID for r in ("GAP", "TILT")}
    assert len(uids) == 2


def test_not_analysed_keeps_instances_of_another_study_apart() -> None:
    other = deepcopy(HEADERS[1])
    other.StudyInstanceUID = "1.2.3"
    report = build_not_analysed_report([HEADERS[0], other], "MIXED_PATIENT", "Two studies.", CONTEXT)
    assert report.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID == HEADERS[0].StudyInstanceUID
    assert report.PertinentOtherEvidenceSequence[0].StudyInstanceUID == "1.2.3"


def test_not_analysed_refuses_what_cannot_be_filed() -> None:
    with pytest.raises(ValueError, match="at least one header"):
        build_not_analysed_report([], "GAP", "Why.", CONTEXT)
    with pytest.raises(ValueError, match="NO_SUCH_CODE"):
        build_not_analysed_report(HEADERS, "NO_SUCH_CODE", "Why.", CONTEXT)
    ds = Dataset()
    ds.SeriesInstanceUID = "1.2"
    with pytest.raises(ValueError, match="no Study Instance UID"):
        build_not_analysed_report([ds], "GAP", "Why.", CONTEXT)
    with pytest.raises(ValueError, match="no Series Instance UID"):
        build_not_analysed_report([Dataset()], "GAP", "Why.", CONTEXT)


def test_a_broken_copied_value_does_not_cost_the_report(tmp_path: Path) -> None:
    header = deepcopy(HEADERS[0])
    tag = tag_for_keyword("OtherPatientIDsSequence")
    assert tag is not None
    broken = b"\xfe\xff\x00\xe0\x01\x02"
    header[tag] = RawDataElement(Tag(tag), "SQ", len(broken), broken, 0, False, True)
    header["PatientWeight"] = DataElement("PatientWeight", "LO", "kg")
    report = build_not_analysed_report([header], "GAP", "Why.", CONTEXT)
    assert "OtherPatientIDsSequence" not in report
    save(report, tmp_path / "sr.dcm")
    assert "PatientWeight" in dcmread(tmp_path / "sr.dcm")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("created_at", datetime(2026, 1, 1)),  # noqa: DTZ001 - the missing zone is the point
        ("pipeline_version", ""),
        ("software_version", "x" * 65),
        ("manufacturer", "a\\b"),
        ("institution", "x" * 65),
        ("input_digest", ""),
    ],
)
def test_context_refuses_what_dicom_cannot_hold(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        make_context(**{field: value})
