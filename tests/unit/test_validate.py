"""What validators say, what is waived, and the verdict; the tools here are made up, the rest is real."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import DataElement, Dataset, dcmread
from pydicom.config import IGNORE
from rich.console import Console

from conformance.objects import draw_case
from pacs_node.validate_cli import validate
from pacs_node.validators import dcmqi, libraries, show, voxels
from pacs_node.validators.subjects import Subject, kind_of, read_subjects
from pacs_node.validators.survey import TOOLS, Survey, run_survey
from pacs_node.validators.tool import Tool
from pacs_node.validators.waivers import (
    CONDITIONS,
    WAIVERS_FILE,
    WaiverError,
    Waivers,
    load_waivers,
)
from tests.ct_factory import make_ct_series
from tests.small_objects import write_ct, write_sr

ENTRY = """
[[waiver]]
tool = "loud"
objects = ["SR"]
pattern = '^Warning: .* of no weight$'
reason = "It has none."
"""


def loud(*said: str, name: str = "loud", missing: str | None = None, together: bool = False) -> Tool:
    def check(subjects: Sequence[Subject]) -> list[str]:
        return [*said, *(f"seen {subject.path.name}" for subject in subjects if together)]

    return Tool(name, "", "apt install loud", ("SR", "CT"), lambda: missing, check, together=together)


@pytest.fixture
def subjects(tmp_path: Path) -> list[Subject]:
    write_ct(tmp_path / "ct", n_slices=1)
    report = write_sr(tmp_path / "sr")
    (tmp_path / "sr" / "notes.txt").write_text("no DICOM")
    return list(read_subjects([report.parent], context=[tmp_path / "ct"]))


def waivers(tmp_path: Path, content: str = ENTRY) -> Waivers:
    path = tmp_path / "waivers.toml"
    path.write_text(content)
    return load_waivers(path, ["loud", "other"])


def verdict(survey: Survey, **options: bool) -> tuple[int, str]:
    written = StringIO()
    return show.show(survey, Console(file=written, width=200), **options), written.getvalue()


def test_the_projects_waivers_can_be_read_and_are_of_known_tools() -> None:
    loaded = load_waivers(WAIVERS_FILE, TOOLS)
    assert len(loaded.accepted) > 5
    assert {waiver.condition for waiver in loaded.accepted} - {""} == set(CONDITIONS)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('tool = "loud"', 'tool = "silent"', "no tool 'silent'"),
        ('["SR"]', '["XR"]', "objects are some of"),
        ('["SR"]', "[]", "objects are some of"),
        ("'^Warning", "'(", "pattern"),
        ('reason = "It has none."', "", "reason is missing"),
        ('"It has none."', '" "', "the reason is empty"),
        ("reason", "because = 1\nreason", "unknown key 'because'"),
        ("reason", 'condition = "new moon"\nreason', "no condition 'new moon'"),
        ("[[waiver]]", "[[waver]]", "unknown table 'waver'"),
        ("[[waiver]]", "[[", "waivers.toml"),
    ],
)
def test_a_waiver_that_says_nothing_definite_is_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(WaiverError, match=words.replace("(", r"\(")):
        waivers(tmp_path, ENTRY.replace(old, new, 1))


def test_a_message_stands_unless_a_waiver_covers_it(tmp_path: Path, subjects: list[Subject]) -> None:
    tools = [loud("Warning: a thing of no weight", "Error: a thing")]
    survey = run_survey(subjects, waivers(tmp_path), tools)
    (finding,) = survey.findings
    assert finding.messages == ("Error: a thing",)
    assert (finding.kind, len(finding.used)) == ("SR", 1)
    status, printed = verdict(survey)
    assert status == show.FAILED
    assert "Error: a thing" in printed
    assert "1 of 1 bad" in printed


def test_all_is_well(tmp_path: Path, subjects: list[Subject]) -> None:
    survey = run_survey(subjects, waivers(tmp_path), [loud("Warning: a thing of no weight")])
    assert verdict(survey, require_all=True, require_used=True)[0] == show.PASSED
    assert list(show.result_rows(survey)) == [
        ("validator", "SR", "waived", "verdict"),
        ("loud", "1 ok", "1", "passed"),
    ]


def test_a_waiver_that_covers_nothing_is_told(tmp_path: Path, subjects: list[Subject]) -> None:
    survey = run_survey(subjects, waivers(tmp_path), [loud()])
    assert verdict(survey)[0] == show.PASSED
    status, printed = verdict(survey, require_used=True)
    assert status == show.FAILED
    assert "unused waiver: loud: ^Warning: .* of no weight$" in printed


def test_a_missing_tool_is_told(tmp_path: Path, subjects: list[Subject]) -> None:
    survey = run_survey(subjects, waivers(tmp_path), [loud(missing="no program loud")])
    assert verdict(survey, require_used=True)[0] == show.PASSED
    status, printed = verdict(survey, require_all=True)
    assert status == show.NOT_INSTALLED
    assert "not installed" in printed
    assert "to install it: apt install loud" in printed
    allowed = waivers(tmp_path, ENTRY + '[[absent]]\ntool = "loud"\nreason = "Nobody has it."\n')
    status, printed = verdict(run_survey(subjects, allowed, survey.tools), require_all=True)
    assert status == show.PASSED
    assert "not run" in printed
    assert "Nobody has it." in printed


def test_only_tools_that_see_a_study_see_its_context(subjects: list[Subject]) -> None:
    tools = [loud(together=True), loud(name="other")]
    survey = run_survey(subjects, Waivers(), tools)
    said = {finding.tool: finding.messages for finding in survey.findings}
    assert said == {"loud": ("seen report.dcm", "seen 0000.dcm"), "other": ()}


def test_kinds() -> None:
    storage = "1.2.840.10008.5.1.4.1.1"
    named = {
        "66.4": "SEG",
        "66.7": "LABELMAP",
        "88.34": "SR",
        "88.22": "SR",
        "88.59": "other",
        "104.1": "PDF",
    }
    assert {kind: kind_of(f"{storage}.{kind}") for kind in named} == named


def test_the_verb_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    report = write_sr(tmp_path)
    for arguments, words in (
        ([str(report), "--tool", "phrenology"], "no validator 'phrenology'"),
        ([str(tmp_path / "none.dcm")], "does not exist"),
        ([__file__], "is no DICOM file"),
        (["--context", str(report), str(tmp_path / "empty")], "no DICOM file to check"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        answer = CliRunner().invoke(validate, arguments)
        assert answer.exit_code == 2
        assert words in answer.output


def test_the_verb_checks_a_file(tmp_path: Path) -> None:
    report = write_sr(tmp_path)
    answer = CliRunner().invoke(validate, [str(report), "--tool", "pydicom strict"])
    assert (answer.exit_code, "passed" in answer.output) == (0, True), answer.output
    broken = dcmread(report)
    broken.StudyDate = "20260101"
    broken.save_as(report)
    report.write_bytes(report.read_bytes().replace(b"20260101", b"2026-1-1"))
    answer = CliRunner().invoke(validate, [str(report), "--tool", "pydicom strict"])
    assert answer.exit_code == 1
    assert "2026-1-1" in answer.output


# voxels


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of one drawn result on an oblique grid."""
    oblique = (0.9659258, 0.0, -0.2588190, 0.1294095, 0.8660254, 0.4829629)
    case = draw_case(
        "oblique", make_ct_series(16, orientation=oblique), tmp_path_factory.mktemp("drawn") / "case"
    )
    return {path.stem: path for path in case.objects.iterdir()}


def read(path: Path) -> list[Subject]:
    return list(read_subjects([path]))


def test_highdicom_finds_the_voxels_where_the_frames_say(drawn: dict[str, Path]) -> None:
    check = next(tool.check for tool in libraries.TOOLS if tool.name == "highdicom")
    for path in drawn.values():
        assert check(read(path)) == []


def test_highdicom_notices(drawn: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    points = voxels.points_by_frames(dcmread(drawn["seg-binary-some-frames"]))
    mirrored = {number: place * (-1, 1, 1) for number, place in points.items()}
    monkeypatch.setattr(libraries, "points_by_frames", lambda _seg: mirrored)
    check = next(tool.check for tool in libraries.TOOLS if tool.name == "highdicom")
    said = check(read(drawn["seg-binary-some-frames"]))
    assert len(said) == 3


def test_all_frames_or_some_are_the_same_points(drawn: dict[str, Path]) -> None:
    some, every = (
        voxels.points_by_frames(dcmread(drawn[f"seg-binary-{which}-frames"])) for which in ("some", "all")
    )
    assert some.keys() == {1, 2, 3}
    for number in some:
        assert {tuple(row) for row in some[number]} == {tuple(row) for row in every[number]}


def grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A mask, its affine and the points of its voxels."""
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[1, 2, 3] = mask[1, 2, 4] = mask[2, 2, 3] = True
    affine = np.array([[0.7, 0.1, 0, -9], [-0.1, 0.7, 0, 4], [0, 0, 2.5, 100], [0, 0, 0, 1]])
    k, j, i = np.nonzero(mask)
    points = (affine @ np.array([i, j, k, np.ones(len(i))]))[:3].T
    return mask, affine, points


def test_equal_masks_have_no_difference() -> None:
    mask, affine, points = grid()
    assert voxels.difference(points, mask, affine) is None
    assert voxels.difference(points + 0.005, mask, affine) is None


def test_differences_of_masks() -> None:
    mask, affine, points = grid()
    assert voxels.difference(points + 0.02, mask, affine) == "voxels lie up to 0.035 mm away"
    assert voxels.difference(points[1:], mask, affine) == "0 of 2 voxels missing, 1 added"
    assert voxels.difference(points, mask[:, :, ::-1], affine) == "3 of 3 voxels missing, 3 added"


def test_nrrd(tmp_path: Path) -> None:
    mask, affine, _ = grid()
    vectors = " ".join("({:g},{:g},{:g})".format(*affine[:3, axis]) for axis in range(3))
    head = (
        "NRRD0004\n# a comment\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"
        f"space directions: {vectors}\nkinds: domain domain domain\nendian: little\nencoding: gzip\n"
        "space origin: (-9,4,100)\n\n"
    )
    path = tmp_path / "1.nrrd"
    path.write_bytes(head.encode() + gzip.compress(mask.astype("<i2").tobytes()))
    image = voxels.read_nrrd(path)
    assert np.array_equal(image.array, mask)
    assert np.allclose(image.affine, affine)
    path.write_bytes(head.replace("gzip", "raw").encode() + mask.astype("<i2").tobytes())
    with pytest.raises(ValueError, match=r"1\.nrrd"):
        voxels.read_nrrd(path)


# groups of a report


def test_groups_of_a_report_are_compared(drawn: dict[str, Path]) -> None:
    report: Dataset = dcmread(drawn["sr-comprehensive-3d-binary-some-frames"])
    groups = dcmqi.groups_of(report)
    assert [segment for _, segment, _ in groups if segment is not None] == [1, 2, 3]
    assert len({uid for uid, _, _ in groups}) == 3
    assert list(dcmqi._differing_groups(groups, groups)) == []
    assert len(list(dcmqi._differing_groups(groups, groups[1:]))) == 1
    uid, segment, numbers = groups[0]
    (*code, value), *rest = numbers
    wrong = [
        (uid, 2, numbers),
        ("1.2.3", segment, numbers),
        (uid, segment, rest),
        (uid, segment, [(*code, value + 0.1), *rest]),
    ]
    told = [len(list(dcmqi._differing_groups(groups, [first, *groups[1:]]))) for first in wrong]  # type: ignore[list-item]  # the code has three parts
    assert told == [1, 1, 1, 2]


def test_one_image_region_is_counted(drawn: dict[str, Path]) -> None:
    (subject,) = read(drawn["sr-comprehensive-3d-binary-some-frames"])
    assert not CONDITIONS["one image region"](subject)
    alone = Dataset()
    alone.ValueType = "SCOORD"
    alone.ConceptNameCodeSequence = [Dataset()]
    alone.ConceptNameCodeSequence[0].CodeValue = "111030"
    report = Dataset()
    report.ContentSequence = [alone]
    assert CONDITIONS["one image region"](replace(subject, header=report))
    assert not CONDITIONS["refers to a label map"](subject)


def test_pydicom_strict_takes_an_empty_number_for_no_value(tmp_path: Path) -> None:
    report = dcmread(write_sr(tmp_path))
    report.PatientWeight = None
    report.save_as(tmp_path / "empty.dcm")
    assert TOOLS["pydicom strict"].check(list(read_subjects([tmp_path / "empty.dcm"]))) == []
    report["PatientWeight"] = DataElement("PatientWeight", "DS", "1.2345678901234567", validation_mode=IGNORE)
    report.save_as(tmp_path / "long.dcm")
    (message,) = TOOLS["pydicom strict"].check(list(read_subjects([tmp_path / "long.dcm"])))
    assert "OverflowError" in message
