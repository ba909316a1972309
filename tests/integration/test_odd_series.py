"""Results of series with odd headers before the quick validators; `make conformance` runs all of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from conformance.objects import draw_odd_case
from pacs_node.validators.subjects import read_subjects
from pacs_node.validators.survey import TOOLS, run_survey
from pacs_node.validators.waivers import WAIVERS_FILE, load_waivers
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
