"""A folder of studies: one that fails in an unforeseen way costs a sentence, not the others."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dicom_sr.verify import VerificationError
from pacs_node import analyze
from pacs_node.case import run_case
from pacs_node.request import CaseOutcome, CaseRequest
from tests.ct_factory import make_ct_series, write_series


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
