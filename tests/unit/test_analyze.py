"""A folder of studies: one that fails in an unforeseen way costs a sentence, not the others."""

from __future__ import annotations

from datetime import date
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dicom_sr.verify import VerificationError
from inference import geometry
from pacs_node import analyze
from pacs_node.case import run_case
from pacs_node.request import CaseOutcome, CaseRequest
from tests.ct_factory import make_ct_series, write_series
from tests.prior_studies import examination
from tests.small_node import SMALL_LIMITS


@pytest.mark.parametrize("error", [VerificationError(["[wrong] " * 500]), KeyError("x"), MemoryError()])
def test_whatever_one_study_dies_of_is_a_sentence(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uids = []
    for seed in ("one", "two"):
        series = make_ct_series(3, seed=seed)
        write_series(series, tmp_path / "in" / seed)
        uids.append(series[0].StudyInstanceUID)

    def fails_once(request: CaseRequest, *given: object) -> CaseOutcome:
        if request.identity["StudyInstanceUID"] == min(uids):
            raise error
        return run_case(request)

    monkeypatch.setattr(analyze, "run_case", fails_once)
    text = StringIO()
    status = analyze.analyze_directory(
        tmp_path / "in", tmp_path / "out", profile="classical", device="cpu", console=Console(file=text)
    )
    assert status == analyze.FAILED
    assert f"the analysis failed: {type(error).__name__}" in text.getvalue()
    assert len(text.getvalue()) < 5000
    assert (tmp_path / "out" / "study-2" / "sr.dcm").exists()


def test_the_latest_earlier_study_of_a_folder_is_the_prior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    years = {"now": 2020, "old": 2018, "last": 2019, "later": 2021}
    days = {name: date(year, 1, 1) for name, year in years.items()}
    studies = {name: examination(day, name) for name, day in days.items()}
    studies["stranger"] = examination(date(2019, 6, 1), "stranger", PatientSex="M")
    for ds in studies["now"]:
        ds.PatientSex = "F"
    for name, series in studies.items():
        write_series(series, tmp_path / ("in" if name == "now" else "priors") / name)
    for name, value in SMALL_LIMITS.items():
        monkeypatch.setattr(geometry, name, value)
    requests: list[CaseRequest] = []

    def taken(request: CaseRequest, *_given: object) -> CaseOutcome:
        requests.append(request)
        raise MemoryError

    monkeypatch.setattr(analyze, "run_case", taken)
    analyze.analyze_directory(
        tmp_path / "in",
        tmp_path / "out",
        profile="classical",
        device="cpu",
        console=Console(file=StringIO()),
        prior=tmp_path / "priors",
    )
    (prior,) = requests[0].priors
    assert (prior.study_uid, prior.examined_on) == (studies["last"][0].StudyInstanceUID, days["last"])
    assert prior.input_digest == analyze._digest(prior.files)
    assert requests[0].notes == ("The CT of 2019-06-01 (priors) was not compared: it has another sex.",)
