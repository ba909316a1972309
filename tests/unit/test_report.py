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
from inference.errors import ReasonCode
from inference.types import Malignancy, Observation, Result, SemanticFeature
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
    assert "CodingSchemeIdentificationSequence" not in report


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
    assert "from the image alone 31.2 %, with the clinical record 45.6 %" in conclusion(report)


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
    assert "Spiculation: 4 out of 5 (probability 71 %)" in conclusion(report)
    schemes = [i.CodingSchemeDesignator for i in report.CodingSchemeIdentificationSequence]
    assert schemes == ["99CTNODULE", "99LIDCQIICR"]


def test_run_outcome_and_no_nodules() -> None:
    report = report_on(())
    (container,) = named(report, "C0034375")
    assert container.ConceptNameCodeSequence[0].CodingSchemeDesignator == "UMLS"
    assert coded(container, "111017") == ["111241"]
    assert named(report, "126010") == []
    (comment,) = named(container, "121106")
    assert "Operating point: blob-detector: min_diameter_mm = 4." in comment.TextValue
    assert "does not exclude nodules" in comment.TextValue
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
    assert named(container, "121106")[0].TextValue == "Warning: The slices are 2.5 mm thick."
    assert "Warning: The slices are 2.5 mm thick." in conclusion(report)


def test_lung_rads_zero_is_text_because_its_code_is_not_verified() -> None:
    report = report_on((), observations=(Observation("lung_rads", "0"),))
    assert named(report, "RID50134") == []
    assert named(report, "121071")[0].TextValue == "lung rads: 0"


def test_conclusion_says_what_a_reader_must_know() -> None:
    context = make_context(
        cards=(UNTRAINED, TRAINED),
        other_series=(OtherSeries("1.2.3", "CT", "TOO_THICK", "Slices are 8 mm thick."),),
        predecessors=(Predecessor(VOLUME.study_uid, "1.2.4", Comprehensive3DSRStorage, "1.2.5"),),
    )
    text = conclusion(report_on(make_findings(VOLUME, 1), context))
    for sentence in (
        "Not reviewed by a physician.",
        "Research use only, not for primary diagnosis.",
        "Nodule 1: right upper lobe, solid, 8.0 x 6.2 mm",
        "blob-detector version 1 (detection), no trained weights. Parameters: min_diameter_mm = 4.",
        f"classifier version 1 (classification), weights sha256 {'ab' * 32}.",
        "Sensitivity 1 of 1 on one synthetic series.",
        f"Input digest: {'d1' * 32}.",
        "pipeline version 0.1.0+blobs1, software version 0.1.0",
        "Other series 1.2.3 (CT): TOO_THICK. Slices are 8 mm thick.",
        "replaces an earlier one of the same series: 1.2.5.",
    ):
        assert sentence in text


def test_unmeasured_performance_is_said() -> None:
    context = make_context(cards=(replace(UNTRAINED, performance=()),))
    assert "Its performance has not been measured." in conclusion(report_on((), context))


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
    assert named(container, "121106")[0].TextValue == f"Not analysed ({reason}): The reason in words."
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
