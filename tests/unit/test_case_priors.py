"""A case with an earlier examination: its result is read again, and no trouble with it costs a study."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from dicom_sr.earlier import read_findings
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.load import LoadedSeries
from inference.priors import PriorExamination
from inference.types import Comparison, Finding, Pair, Standing
from pacs_node import case_priors
from pacs_node.case_priors import tracked_as_before
from pacs_node.reader import OpenReader
from pacs_node.request import KeptResult, PriorFiles
from tests.finding_factory import make_findings
from tests.packed_case import HEADERS, VOLUME, Pack, packing

FINDINGS = make_findings(VOLUME, 2)
THEN = PriorFiles(
    tuple(Path(str(number)) for number in range(len(HEADERS))),
    "1.2.3",
    VOLUME.series_uid,
    date(2019, 1, 1),
    "this node",
    "d0" * 32,
)
#: what the prior's findings are called in these tests
OLD = tuple(replace(one, tracking_uid=f"2.25.{number}") for number, one in enumerate(FINDINGS, 77))


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[Pack]:
    with packing(tmp_path) as found:
        yield found


@pytest.fixture
def priors(monkeypatch: pytest.MonkeyPatch) -> list[PriorExamination]:
    """Stands in for the comparison: matches by the order, and remembers what it was given."""
    given: list[PriorExamination] = []

    def compare(_volume: Any, now: tuple[Finding, ...], _day: Any, prior: Any, **_more: Any) -> Comparison:
        given.append(prior)
        pairs = tuple(
            Pair(replace(one, tracking_uid=old.tracking_uid), old, Standing.MATCHED)
            for one, old in zip(now, prior.findings, strict=True)
        )
        return Comparison(prior.reference, 365, pairs)

    monkeypatch.setattr(case_priors, "compare", compare)
    monkeypatch.setattr(case_priors, "second_look", lambda *_given, **_more: None)
    return given


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the analysis of the prior; remembers the digests that it was given."""
    digests: list[str] = []

    def analyse(_volume: Any, _pipeline: Any, *, input_digest: str, **_more: Any) -> Any:
        digests.append(input_digest)
        found: Any = type("Found", (), {"findings": OLD})
        return found

    monkeypatch.setattr(case_priors, "analyse", analyse)
    return digests


def told(outcome: Any) -> Any:
    (path,) = (file.path for file in outcome.files if file.kind == "json")
    return json.loads(path.read_text(encoding="utf-8"))


def whole(finding: Finding) -> NDArray[np.bool_]:
    """Its mask in the whole volume."""
    full = np.zeros(VOLUME.array.shape, bool)
    full[finding.slices()] = finding.mask
    return full


def tracked(outcome: Any) -> dict[str, list[str]]:
    """Tracking UIDs in result.json, the SEG and the report, each in its order."""
    seg, report = (dcmread(file.path) for file in outcome.files if file.kind in ("seg", "sr"))
    in_report = [str(one.value) for one in report.iterall() if one.keyword == "UID"]
    return {
        "json": [row["tracking_uid"] for row in told(outcome)["findings"]],
        "seg": [str(one.TrackingUID) for one in seg.SegmentSequence],
        "sr": [uid for uid in dict.fromkeys(in_report) if uid.startswith("2.25.7")],
    }


def test_a_result_is_read_again_as_it_was(pack: Pack) -> None:
    outcome = pack(("seg", "sr"))
    seg = next(file.path for file in outcome.files if file.kind == "seg")
    read = read_findings(VOLUME, told(outcome), dcmread(seg))
    for one, again in zip(FINDINGS, read, strict=True):
        assert (again.tracking_uid, again.tracking_id) == (one.tracking_uid, one.tracking_id)
        assert (again.site, again.attenuation, again.key_slice) == (one.site, one.attenuation, one.key_slice)
        assert again.measurements.volume_mm3 == pytest.approx(one.measurements.volume_mm3, abs=1e-3)
        assert np.array_equal(whole(one), whole(again))
        assert again.key_point == pytest.approx(one.key_point, abs=0.05)
        assert np.allclose(again.long_axis, one.long_axis, atol=0.05)
    with pytest.raises(ValueError, match="no masks"):
        read_findings(VOLUME, told(outcome), None)
    with pytest.raises(ValueError, match="not of this series"):
        read_findings(replace(VOLUME, series_uid="1.2"), told(outcome), dcmread(seg))


def test_what_was_found_then_keeps_its_tracking_uids(
    pack: Pack, priors: list[PriorExamination], now: list[str]
) -> None:
    first = pack(("seg", "sr"))
    files = {file.kind: file.path for file in first.files}
    kept = replace(THEN, result=KeptResult(files["json"], files["seg"]))
    outcome = pack(("seg", "sr"), priors=(kept,))
    assert now == []
    assert [one.tracking_uid for one in priors[0].findings] == [one.tracking_uid for one in FINDINGS]
    assert "read prior result" in told(outcome)["timings_s"]
    assert "analyse prior" not in told(outcome)["timings_s"]


def test_without_a_result_the_prior_is_analysed_now(
    pack: Pack, priors: list[PriorExamination], now: list[str]
) -> None:
    outcome = pack(("seg", "sr"), priors=(THEN,))
    assert now == [THEN.input_digest]
    uids = [one.tracking_uid for one in OLD]
    assert tracked(outcome) == {"json": uids, "seg": uids, "sr": uids}
    assert (priors[0].examined_on, priors[0].volume) == (THEN.examined_on, VOLUME)
    assert {"load prior", "analyse prior", "compare with prior"} <= set(told(outcome)["timings_s"])
    assert told(outcome)["comparison"]["prior"]["date"] == "2019-01-01"
    assert not any("not compared" in one for one in told(outcome)["warnings"])


def test_a_result_of_another_pipeline_gives_uids_and_no_sizes(
    pack: Pack, priors: list[PriorExamination], now: list[str]
) -> None:
    first = pack(("seg", "sr"))
    files = {file.kind: file.path for file in first.files}
    summary = told(first)
    summary["provenance"]["pipeline_version"] = "older"
    files["json"].write_text(json.dumps(summary))
    pack(("seg", "sr"), priors=(replace(THEN, result=KeptResult(files["json"], files["seg"])),))
    assert now == [THEN.input_digest]
    assert [one.tracking_uid for one in priors[0].findings] == [one.tracking_uid for one in FINDINGS]


def test_an_unreadable_result_is_as_none(
    pack: Pack, priors: list[PriorExamination], now: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"status": "analysed"}')
    outcome = pack(("seg", "sr"), priors=(replace(THEN, result=KeptResult(broken, None)),))
    assert now == [THEN.input_digest]
    assert len(priors) == 1
    assert told(outcome)["status"] == "analysed"


def test_tracking_is_taken_over_once_and_by_the_largest_overlap() -> None:
    moved = replace(FINDINGS[0], tracking_uid="2.25.9", origin=(0, 0, 0))
    again = tracked_as_before((moved, FINDINGS[0], FINDINGS[1]), (OLD[1], OLD[0]))
    assert [one.tracking_uid for one in again] == ["2.25.9", OLD[0].tracking_uid, OLD[1].tracking_uid]
    twice = tracked_as_before((FINDINGS[0], FINDINGS[0]), OLD)
    assert [one.tracking_uid for one in twice] == [OLD[0].tracking_uid, FINDINGS[0].tracking_uid]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (UnsuitableSeriesError(ReasonCode.GAP, "A slice is missing."), "A slice is missing"),
        (OSError("gone"), "the comparison failed (OSError)"),
        (RuntimeError("the registration failed"), "the comparison failed (RuntimeError)"),
        (MemoryError(), "the comparison failed (MemoryError)"),
    ],
)
def test_no_trouble_costs_a_study(
    pack: Pack,
    priors: list[PriorExamination],
    now: list[str],
    monkeypatch: pytest.MonkeyPatch,
    trouble: Exception,
    words: str,
) -> None:
    assert (priors, now) == ([], [])

    def fails(*_given: Any, **_more: Any) -> Any:
        raise trouble

    monkeypatch.setattr(case_priors, "compare", fails)
    outcome = pack(("sr",), priors=(THEN,))
    assert told(outcome)["status"] == "analysed"
    assert told(outcome)["comparison"] is None
    assert f"The CT of 2019-01-01 (this node) was not compared: {words}." in told(outcome)["warnings"]


def test_another_patient_is_refused_where_the_images_are_read_too(
    pack: Pack, priors: list[PriorExamination], now: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = [replace_birth(header) for header in HEADERS]
    loaded = iter([LoadedSeries(VOLUME, tuple(HEADERS)), LoadedSeries(VOLUME, tuple(stranger))])
    monkeypatch.setattr(OpenReader, "load", lambda _self, _files: next(loaded))
    outcome = pack(("sr",), priors=(THEN,))
    assert (priors, now) == ([], [])
    assert any("it has another birth date" in one for one in told(outcome)["warnings"])


def replace_birth(header: Any) -> Any:
    other = deepcopy(header)
    other.PatientBirthDate = "19331231"
    return other


def test_the_next_is_compared_where_the_first_can_not_be(
    pack: Pack, priors: list[PriorExamination], now: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    matched: Any = vars(case_priors)["compare"]

    def first_fails(volume: Any, found: Any, day: Any, prior: Any, **more: Any) -> Comparison:
        if prior.examined_on.year == 2019:
            return Comparison(prior.reference, 365, reason="The lungs don't fall on each other.")
        compared: Comparison = matched(volume, found, day, prior, **more)
        return compared

    monkeypatch.setattr(case_priors, "compare", first_fails)
    older = replace(THEN, examined_on=date(2018, 1, 1))
    outcome = pack(("sr",), priors=(THEN, older))
    assert told(outcome)["comparison"]["prior"]["date"] == "2018-01-01"
    assert (len(priors), len(now)) == (1, 2)
