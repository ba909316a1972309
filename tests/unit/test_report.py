"""The report as a document: groups, references, identity."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from dicom_sr.context import Predecessor, ResultContext
from dicom_sr.header import LABEL_MAP_STORAGE
from dicom_sr.part10 import encode, save
from dicom_sr.report import build_report
from dicom_sr.seg import SegEncoding, build_seg
from inference.types import Result
from tests.ct_factory import make_ct_series, make_enhanced_ct
from tests.finding_factory import make_context, make_findings, make_result, make_volume, without_pixels
from tests.report_reading import CONTEXT, HEADERS, VOLUME, coded, named, numbers, report_on, walk


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
    assert str(dcmread(tmp_path / "sr.dcm").file_meta.ImplementationVersionName) == "PACSNODE_0.1.0"


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
