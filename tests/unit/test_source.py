"""What objects take over from their source: identity as it came, everything else only where it is sound."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import DataElement, Dataset, config
from pydicom.sequence import Sequence as DicomSequence

from dicom_sr.charset import character_set
from dicom_sr.report import build_not_analysed_report
from dicom_sr.source import COPIED, REQUIRED, copied, patient_and_study, readable
from inference.load import read_header
from tests.ct_factory import make_ct_series, write_series
from tests.finding_factory import make_context
from tests.odd_series import odd_series
from tests.report_reading import walk


def source(**values: object) -> Dataset:
    out = Dataset()
    out.StudyInstanceUID = "1.2.3"
    with config.disable_value_validation():
        for keyword, value in values.items():
            setattr(out, keyword, value)
    return out


def item(**values: object) -> DicomSequence:
    return DicomSequence([source(**values)])


@pytest.mark.parametrize(
    ("keyword", "good", "bad"),
    [
        ("StudyDescription", "Thorax", "T" * 65),
        ("StudyDescription", "Thorax, süß", "Thorax\r\nnative"),
        ("StudyDescription", "Thorax", "Thorax\x00"),
        ("StudyDescription", "Thorax", "Thorax\\Abdomen"),
        ("PatientComments", "One\r\ntwo", "One\x07"),
        ("PatientComments", "c" * 10240, "c" * 10241),
        ("EthnicGroup", "European", "European, Mediterranean"),
        ("PatientAge", "045Y", "45"),
        ("PatientSex", "O", "male"),
        ("PatientSex", "F", "X"),
        ("StudyDate", "20200131", "2020.01.31"),
        ("StudyTime", "235959.123", "12:00"),
        ("PatientWeight", "72.5", "72.1234567890123456"),
        ("TimezoneOffsetFromUTC", "+0100", "+01:00"),
        ("LossyImageCompression", "01", "1"),
        ("LossyImageCompressionRatio", ["10", "5"], ["10", "5.123456789012345678"]),
        ("ReferringPhysicianName", "Doe^Jane", "D" * 65),
    ],
)
def test_what_breaks_its_vr_or_multiplicity_is_left_out(keyword: str, good: object, bad: object) -> None:
    element = copied(source(**{keyword: good}), keyword)
    assert element is not None
    assert element.value == source(**{keyword: good})[keyword].value
    assert copied(source(**{keyword: bad}), keyword) is None
    assert readable(source(**{keyword: bad}), keyword) is not None


def test_an_element_gets_the_vr_of_the_dictionary() -> None:
    given = source()
    for keyword, value in (("PatientWeight", "72.5"), ("StudyDate", "20200131"), ("PatientSize", "tall")):
        given[keyword] = DataElement(keyword, "LO", value)
    given["PatientID"] = DataElement("PatientID", "SH", "ID-1")
    given["StudyDescription"] = DataElement("StudyDescription", "OB", b"x")
    out = patient_and_study(given)
    assert [(out[k].VR, str(out[k].value)) for k in ("PatientWeight", "StudyDate", "PatientID")] == [
        ("DS", "72.5"),
        ("DA", "20200131"),
        ("LO", "ID-1"),
    ]
    assert "PatientSize" not in out
    assert "StudyDescription" not in out


@pytest.mark.parametrize("value", ["thick", ["1", "2"], ["", "a"], "NaN"])
def test_a_number_that_is_none_does_not_cost_the_report(value: object) -> None:
    header = Dataset(make_ct_series(1)[0])
    with config.disable_value_validation():
        header["SliceThickness"] = DataElement("SliceThickness", "LO", value)
    report = build_not_analysed_report([header], "GAP", "Why.", make_context())
    concepts = [
        item.ConceptNameCodeSequence[0].CodeMeaning
        for item in walk(report)
        if "ConceptNameCodeSequence" in item
    ]
    assert "Vertical Pixel Spacing" in concepts
    assert "Slice Thickness" not in concepts


@pytest.mark.parametrize("value", ["X" * 70, "P1\\P2", "a\tb"])
def test_what_names_the_patient_is_passed_on_as_it_is(value: str) -> None:
    given = source(PatientID=value, AccessionNumber=value, PatientName=value)
    out = patient_and_study(given)
    assert [out[k].value for k in ("PatientID", "AccessionNumber", "PatientName")] == [
        given[k].value for k in ("PatientID", "AccessionNumber", "PatientName")
    ]


def test_type_2_is_empty_where_unknown_or_unsound() -> None:
    out = patient_and_study(source(PatientSex="male", StudyDate="yesterday"))
    assert [out[keyword].is_empty for keyword in REQUIRED] == [True] * len(REQUIRED)
    assert {element.keyword for element in out} == {"StudyInstanceUID", *REQUIRED}


def test_an_empty_attribute_stays_empty_and_an_absent_one_absent() -> None:
    out = patient_and_study(source(PatientComments="", ProcedureCodeSequence=[], PatientIdentityRemoved=""))
    assert out["PatientComments"].is_empty
    assert {element.keyword for element in out} & set(COPIED) == {"PatientComments"}


@pytest.mark.parametrize(
    ("keyword", "good", "bad"),
    [
        (
            "ProcedureCodeSequence",
            item(CodeValue="1", CodingSchemeDesignator="L", CodeMeaning="CT"),
            item(CodeValue="1", CodeMeaning="CT"),
        ),
        (
            "ProcedureCodeSequence",
            item(LongCodeValue="1" * 20, CodingSchemeDesignator="L", CodeMeaning="CT"),
            item(CodeValue="1" * 20, CodingSchemeDesignator="L", CodeMeaning="CT"),
        ),
        (
            "ReferencedStudySequence",
            item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.3"),
            item(ReferencedSOPInstanceUID="1.3"),
        ),
        (
            "OtherPatientIDsSequence",
            item(PatientID="1", TypeOfPatientID="TEXT", IssuerOfPatientID=""),
            item(PatientID="1"),
        ),
        ("IssuerOfAccessionNumberSequence", item(LocalNamespaceEntityID="A"), item(UniversalEntityID="1.2")),
        ("DeidentificationMethodCodeSequence", item(URNCodeValue="urn:1", CodeMeaning="m"), item()),
    ],
)
def test_a_sequence_is_copied_where_its_items_are_complete(
    keyword: str, good: DicomSequence, bad: DicomSequence
) -> None:
    assert copied(source(**{keyword: good}), keyword) is not None
    assert copied(source(**{keyword: bad}), keyword) is None


def test_identity_removed_needs_its_method() -> None:
    assert "PatientIdentityRemoved" not in patient_and_study(source(PatientIdentityRemoved="YES"))
    told = patient_and_study(source(PatientIdentityRemoved="YES", DeidentificationMethod="by hand"))
    assert told.PatientIdentityRemoved == "YES"
    assert patient_and_study(source(PatientIdentityRemoved="NO")).PatientIdentityRemoved == "NO"


def test_a_clinical_trial_is_copied_whole_or_not_at_all() -> None:
    trial = {"ClinicalTrialSponsorName": "S", "ClinicalTrialProtocolID": "P", "ClinicalTrialSubjectID": "1"}
    out = patient_and_study(source(**trial))
    assert {key: out[key].value for key in trial} == trial
    filled = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
    assert [out[key].is_empty for key in filled] == [True] * 3
    for missing in trial:
        rest = {key: value for key, value in trial.items() if key != missing}
        out = patient_and_study(source(**rest, ClinicalTrialSiteID="site"))
        assert [element for element in out if element.keyword.startswith("ClinicalTrial")] == []
    out = patient_and_study(source(ClinicalTrialTimePointDescription="after"))
    assert out["ClinicalTrialTimePointID"].is_empty


def written(text: str, charset: str | list[str], given: Dataset) -> str | list[str]:
    """The character set of an object with this text, made of a source in that character set."""
    given.SpecificCharacterSet = charset
    out = Dataset()
    out.PatientName = given.PatientName
    out.ContentSequence = item(TextValue=text)
    return character_set(out, given)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("latin 1", "ISO_IR 100"),
        ("cyrillic", "ISO_IR 144"),
        ("japanese", ["", "ISO 2022 IR 87"]),
        ("korean", ["", "ISO 2022 IR 149"]),
        ("chinese, GB18030", "GB18030"),
        ("chinese, GBK", "GB18030"),
    ],
)
def test_names_keep_the_character_set_of_the_source(
    case: str, expected: str | list[str], tmp_path: Path
) -> None:
    (path,) = write_series(odd_series(case, 1), tmp_path)
    header = read_header(path)
    assert character_set(patient_and_study(header), header) == expected


def test_utf_8_where_the_source_has_only_ascii_or_its_set_does_not_hold_our_text() -> None:
    (header,) = make_ct_series(1)
    assert written("plain", "ISO_IR 144", header) == "ISO_IR 192"
    header.PatientName = "Иванова^Мария"
    assert written("plain", "ISO_IR 144", header) == "ISO_IR 144"
    assert written("süß", "ISO_IR 144", header) == "ISO_IR 192"
    assert written("plain", "ISO_IR 999", header) == "ISO_IR 192"


def test_latin_bytes_without_a_name_get_one() -> None:
    (header,) = make_ct_series(1)
    del header.SpecificCharacterSet
    header.PatientName = "Müller^Jörg"
    assert character_set(patient_and_study(header), header) == "ISO_IR 100"
