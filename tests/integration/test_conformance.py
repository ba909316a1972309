"""The validators that other projects made, on a drawn result; each notices what is broken on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import dicom_validator
import pytest
from click.testing import CliRunner
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage

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


def write_edition(directory: Path) -> None:
    """An edition of the standard in which a report has two attributes, in the form that the tool keeps."""
    folder = directory / "2026a"
    (folder / "docbook").mkdir(parents=True)
    (folder / "json").mkdir()
    for part in ("part03", "part04", "part06"):
        (folder / "docbook" / f"{part}.xml").write_text("<book/>")
    modules = {
        "C.1": {
            "(0010,0010)": {"name": "Patient's Name", "type": "2"},
            "(0040,A491)": {"name": "Completion Flag", "type": "1"},
        }
    }
    iods = {
        Comprehensive3DSRStorage: {
            "title": "A report",
            "modules": {"Patient": {"ref": "C.1", "use": "M"}},
            "group_macros": {},
        }
    }
    tables = {"module_info": modules, "iod_info": iods, "dict_info": {}, "uid_info": {}}
    for name, table in tables.items():
        (folder / "json" / f"{name}.json").write_text(json.dumps(table))
    (folder / "json" / "version").write_text(dicom_validator.__version__)
    (directory / "editions.json").write_text(json.dumps(["2026a"]))


@pytest.mark.peer("validate_iods")
def test_dicom_validator_runs_where_there_is_an_edition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables of two attributes: what a whole edition says of the results is not known here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tool = TOOLS["dicom-validator"]
    assert tool.missing() == f"no edition of the standard in {tmp_path / 'dicom-validator'}"
    write_edition(programs.edition_directory())
    assert tool.missing() is None
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = Comprehensive3DSRStorage, "1.2.3"
    report.PatientName = ""
    save(report, tmp_path / "sr.dcm")
    complaints = "\n".join(said("dicom-validator", tmp_path / "sr.dcm"))
    assert "(0040,A491)" in complaints
    assert "missing" in complaints
    assert "(0010,0010)" not in complaints
