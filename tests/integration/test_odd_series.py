"""Results of series with odd headers before the quick validators; `make conformance` runs all of them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance.objects import draw_odd_case
from dicom_sr.part10 import save
from dicom_sr.report import build_report
from dicom_sr.seg import build_seg
from dicom_sr.verify import reread
from inference.types import Finding, Volume
from pacs_node.validators.subjects import read_subjects
from pacs_node.validators.survey import TOOLS, run_survey
from pacs_node.validators.waivers import WAIVERS_FILE, load_waivers
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_context, make_finding, make_result, make_volume
from tests.odd_series import CHANGES, LEADING_ZEROS, OTHERS, UNSOUND_IDENTITY

QUICK = ("dciodvfy", "dcentvfy", "pydicom strict")
IDENTITY = ("Accession", "PatientID", "PatientName", "Patient ID", "Patient's Name", "data values for Value")


def complaints(name: str, directory: Path) -> dict[str, set[str]]:
    """What the tools say of the results, waived messages left out; the first word tells errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about the series
        case = draw_odd_case(name, directory, n_slices=4)
        subjects = list(read_subjects([case.objects], context=[case.sources]))
        survey = run_survey(subjects, load_waivers(WAIVERS_FILE, TOOLS), [TOOLS[tool] for tool in QUICK])
    assert {finding.tool for finding in survey.findings} == set(QUICK)
    assert len({finding.path for finding in survey.findings}) == 5
    said: dict[str, set[str]] = {tool: set() for tool in QUICK}
    for finding in survey.failed:
        said[finding.tool] |= set(finding.messages)
    return said


@pytest.mark.peer("dciodvfy")
@pytest.mark.peer("dcentvfy")
@pytest.mark.parametrize("name", [*CHANGES, *OTHERS])
def test_no_validator_complains(name: str, tmp_path: Path) -> None:
    assert complaints(name, tmp_path) == {tool: set() for tool in QUICK}


@pytest.mark.peer("dciodvfy")
@pytest.mark.peer("dcentvfy")
@pytest.mark.parametrize("name", UNSOUND_IDENTITY)
def test_only_what_names_the_patient_keeps_its_faults(name: str, tmp_path: Path) -> None:
    said = complaints(name, tmp_path)
    about = [message for message in said["dciodvfy"] if not any(word in message for word in IDENTITY)]
    assert about == []
    assert said["dciodvfy"] | said["dcentvfy"] != set()


@pytest.mark.peer("dciodvfy")
@pytest.mark.peer("dcentvfy")
def test_uids_are_repeated_as_they_came(tmp_path: Path) -> None:
    said = complaints(LEADING_ZEROS, tmp_path)
    assert said["dcentvfy"] == set()
    assert said["dciodvfy"] != set()
    assert all("zeroes" in line or "data values for Value" in line for line in said["dciodvfy"])


def box(name: str, volume: Volume, origin: tuple[int, int, int], shape: tuple[int, int, int]) -> Finding:
    """A finding whose mask fills a box of voxels."""
    (z, y, x), (depth, height, width) = origin, shape
    return replace(
        make_finding(volume, name=name),
        mask=np.ones(shape, dtype=bool),
        origin=origin,
        key_slice=z + depth // 2,
        key_point=(float(y + height // 2), float(x + width // 2)),
        long_axis=((float(y), float(x)), (float(y), float(x + width - 1))),
        short_axis=((float(y), float(x)), (float(y + height - 1), float(x))),
    )


@pytest.mark.peer("dciodvfy")
@pytest.mark.peer("segimage2itkimage")
def test_nodules_of_one_voxel_at_the_edges_and_touching_each_other(tmp_path: Path) -> None:
    headers = make_ct_series(6)
    volume = make_volume(headers)
    places = {
        "first corner": ((0, 0, 0), (1, 1, 1)),
        "last corner": ((5, 63, 63), (1, 1, 1)),
        "one slice high": ((2, 20, 20), (1, 3, 4)),
        "beside it": ((2, 20, 24), (2, 3, 4)),
        "above it": ((3, 20, 20), (3, 3, 4)),
        "whole edge": ((0, 10, 0), (6, 2, 1)),
    }
    findings = tuple(box(name, volume, *where) for name, where in places.items())
    context = make_context()
    result = make_result(volume, findings, context)
    seg = build_seg(volume, findings, headers, context)
    save(seg, tmp_path / "seg.dcm")
    save(build_report(volume, result, seg, headers, context), tmp_path / "sr.dcm")
    reread(volume, result, tmp_path / "seg.dcm", tmp_path / "sr.dcm")
    tools = [TOOLS[tool] for tool in (*QUICK, "segimage2itkimage", "tid1500reader", "highdicom")]
    survey = run_survey(list(read_subjects([tmp_path])), load_waivers(WAIVERS_FILE, TOOLS), tools)
    assert [finding.messages for finding in survey.failed] == []
    assert len(survey.findings) == 9
