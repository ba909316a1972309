"""The report on a series that was not analysed."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import DataElement, Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import Comprehensive3DSRStorage, MRImageStorage, SecondaryCaptureImageStorage

from dicom_sr.part10 import save
from dicom_sr.report import build_not_analysed_report
from dicom_sr.seg import build_seg
from inference.errors import ReasonCode
from tests.finding_factory import make_findings
from tests.report_reading import CONTEXT, HEADERS, VOLUME, coded, comments, conclusion, named


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
    assert "PatientWeight" not in dcmread(tmp_path / "sr.dcm")
