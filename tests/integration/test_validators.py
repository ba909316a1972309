"""Independent validators on every kind of object that the node writes.

What is accepted, and why, stands in pacs_node/validators/waivers.toml; any other message fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom import dcmread

from conformance.objects import SERIES, Case, draw_case
from pacs_node.validators.subjects import read_subjects
from pacs_node.validators.survey import TOOLS, run_survey
from pacs_node.validators.waivers import WAIVERS_FILE, load_waivers

CASES = (
    "several nodules",
    "one nodule",
    "no nodule",
    "everything in the report",
    "not analysed",
    "not analysed, MR",
    "multi-frame source",
    "other script",
)
SEG, SR = "seg-binary-some-frames.dcm", "sr-comprehensive-3d-binary-some-frames.dcm"
SR_ALONE = "sr-comprehensive-3d.dcm"

Draw = Callable[[str], Case]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """``drawn("one nodule")`` is that case; made once."""
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            made[name] = draw_case(name, SERIES[name](f"validators {name}"), tmp_path_factory.mktemp("case"))
        return made[name]

    return make


def complaints(tool: str, *paths: Path, context: Path | None = None) -> list[str]:
    """What a tool says of the files, without what is waived."""
    subjects = list(read_subjects(paths, context=[] if context is None else [context]))
    survey = run_survey(subjects, load_waivers(WAIVERS_FILE, TOOLS), [TOOLS[tool]])
    assert survey.findings != ()
    return [f"{finding.path.name}: {line}" for finding in survey.failed for line in finding.messages]


@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("name", CASES)
def test_dciodvfy(name: str, drawn: Draw) -> None:
    assert complaints("dciodvfy", drawn(name).objects) == []


@pytest.mark.peer("dciodvfy")
def test_dciodvfy_would_notice(drawn: Draw, tmp_path: Path) -> None:
    content = (drawn("several nodules").objects / SEG).read_bytes()
    assert content.count(b"BINARY") == 1
    (tmp_path / "bad.dcm").write_bytes(content.replace(b"BINARY", b"BIMARY"))
    assert any("Error" in line for line in complaints("dciodvfy", tmp_path / "bad.dcm"))


@pytest.mark.peer("dcentvfy")
@pytest.mark.parametrize("name", [name for name in CASES if name != "not analysed, MR"])
def test_dcentvfy(name: str, drawn: Draw) -> None:
    case = drawn(name)
    assert complaints("dcentvfy", case.objects, context=case.sources) == []


@pytest.mark.peer("dcentvfy")
def test_dcentvfy_would_notice(drawn: Draw, tmp_path: Path) -> None:
    case = drawn("several nodules")
    report = dcmread(case.objects / SR)
    report.PatientBirthDate = "19510101"
    report.save_as(tmp_path / "sr.dcm")
    assert "Birth" in "".join(complaints("dcentvfy", tmp_path / "sr.dcm", case.objects / SEG))


@pytest.mark.peer("dsrdump")
@pytest.mark.parametrize("name", CASES)
def test_dsrdump(name: str, drawn: Draw) -> None:
    assert complaints("dsrdump", drawn(name).objects) == []


@pytest.mark.peer("dsrdump")
def test_dsrdump_would_notice(drawn: Draw, tmp_path: Path) -> None:
    report = dcmread(drawn("no nodule").objects / SR_ALONE)
    report.ContentSequence[0].ValueType = "WORD"
    report.save_as(tmp_path / "sr.dcm")
    assert complaints("dsrdump", tmp_path / "sr.dcm") != []


@pytest.mark.slow
@pytest.mark.peer("pixelmed")
@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("one nodule", SR),
        ("everything in the report", SR),
        ("not analysed", "sr-0.dcm"),
    ],
)
def test_pixelmed_finds_the_templates_kept(name: str, report: str, drawn: Draw) -> None:
    assert complaints("PixelMed", drawn(name).objects / report) == []


@pytest.mark.slow
@pytest.mark.peer("pixelmed")
def test_pixelmed_would_notice(drawn: Draw, tmp_path: Path) -> None:
    report = dcmread(drawn("no nodule").objects / SR_ALONE)
    report.ConceptNameCodeSequence[0].CodeValue = "126001"
    report.save_as(tmp_path / "sr.dcm")
    assert complaints("PixelMed", tmp_path / "sr.dcm") != []
