"""The clinical record's way: from a file or a header to the analysis, and what the results say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from rich.console import Console

from inference.fusion import SYNTHETIC_STATEMENT
from inference.record import RecordReading
from inference.registry import FUSION, Pipeline, load_pipeline
from inference.types import Malignancy, Observation, Result, Volume
from pacs_node import analyze, case
from tests.ct_factory import make_ct_series, write_series
from tests.finding_factory import TRAINED, make_finding

Analyse = Callable[..., Result]
NOTES = (
    Observation("record_items_used", "age_years (record.json)"),
    Observation("record_model", SYNTHETIC_STATEMENT.removesuffix(".")),
)


class Asked:
    """Stands in for the analysis: notes the record it is given and finds one nodule."""

    def __init__(self) -> None:
        self.records: list[RecordReading] = []

    def __call__(self, volume: Volume, pipeline: Pipeline, *, record: RecordReading, **_: Any) -> Result:
        self.records.append(record)
        fused = None if record.record.is_empty else 0.46
        finding = make_finding(volume, (8, 30, 20), malignancy=Malignancy(0.31, fused))
        notes = NOTES if fused else ()
        return Result(volume.series_uid, (finding,), pipeline.cards, pipeline.version, notes)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A profile that has a model for records."""
    stand_in = Asked()
    pipeline = load_pipeline("classical")
    with_fusion = replace(pipeline, cards=(*pipeline.cards, replace(TRAINED, task=FUSION)))
    monkeypatch.setattr(case, "analyse", stand_in)
    monkeypatch.setattr(case, "load_pipeline", lambda _profile, **_more: with_fusion)
    return stand_in


def write_study(folder: Path, seed: str = "one", **elements: str) -> Dataset:
    series = make_ct_series(seed=seed)
    for image in series:
        for keyword, value in elements.items():
            setattr(image, keyword, value)
    write_series(series, folder / seed)
    return series[0]


def run(folder: Path, out: Path, record: Path | None = None) -> tuple[int, str]:
    words = StringIO()
    status = analyze.analyze_directory(
        folder,
        out,
        profile="classical",
        device="cpu",
        console=Console(file=words, width=200),
        record=record,
    )
    return status, words.getvalue()


def write_record(path: Path, image: Dataset, **items: object) -> Path:
    row = {"study_instance_uid": image.StudyInstanceUID, "patient_id": image.PatientID, **items}
    path.write_text(json.dumps({"records": [row]}), encoding="utf-8")
    return path


def test_the_file_and_the_header_reach_the_analysis(tmp_path: Path, asked: Asked) -> None:
    image = write_study(tmp_path / "in", PatientAge="061Y", PatientSex="F", SmokingStatus="NO")
    path = write_record(tmp_path / "any.json", image, age_years=62, pack_years=30, history_text="Doe smokes")
    status, words = run(tmp_path / "in", tmp_path / "out", path)
    assert status == analyze.ANALYSED, words
    (reading,) = asked.records
    assert {name: str(value) for name, value in reading.record.items().items()} == {
        "age_years": "62.0",
        "sex": "female",
        "smoking": "former",
        "pack_years": "30.0",
    }
    assert reading.sources["sex"] == "DICOM Patient's Sex"
    (row,) = (line.split() for line in words.splitlines() if line.startswith("Nodule 1 "))
    assert row[-4:] == ["31", "%", "46", "%"]
    assert "+record: the same with the clinical record" in words
    assert "record items used: age_years (record.json)" in words
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "31 % image alone" in page
    assert "46 % with record" in page
    assert SYNTHETIC_STATEMENT.removesuffix(".") in page
    assert "Doe smokes" not in page + (tmp_path / "out" / "result.json").read_text(encoding="utf-8")
    assert b"Doe smokes" not in (tmp_path / "out" / "sr.dcm").read_bytes()
    assert b"trained and measured on synthetic records" in (tmp_path / "out" / "sr.dcm").read_bytes()


def test_the_record_beside_the_study_is_taken(tmp_path: Path, asked: Asked) -> None:
    image = write_study(tmp_path / "in")
    write_record(tmp_path / "in" / "record.json", image, emphysema=True)
    assert run(tmp_path / "in", tmp_path / "out")[0] == analyze.ANALYSED
    assert asked.records[0].record.emphysema is True


def test_the_header_alone_is_enough_and_nothing_is_a_record_too(tmp_path: Path, asked: Asked) -> None:
    write_study(tmp_path / "in", "one", PatientAge="070Y")
    assert run(tmp_path / "in", tmp_path / "out")[0] == analyze.ANALYSED
    assert asked.records[0].record.items() == {"age_years": 70.0}
    write_study(tmp_path / "bare", "two", PatientAge="", PatientSex="", PatientBirthDate="")
    status, words = run(tmp_path / "bare", tmp_path / "bare-out")
    assert status == analyze.ANALYSED
    assert asked.records[1].record.is_empty
    assert "with record" not in words
    result = json.loads((tmp_path / "bare-out" / "result.json").read_text(encoding="utf-8"))
    assert result["findings"][0]["malignancy"] == {"image_only": 0.31, "fused": None}
    assert "record_items_used" not in {one["name"] for one in result["observations"]}


def test_what_was_left_out_is_a_warning(tmp_path: Path, asked: Asked) -> None:
    image = write_study(tmp_path / "in", PatientAge="", PatientBirthDate="")
    path = write_record(tmp_path / "r.json", image, age_years=430, malignancy=5, sex="F")
    status, _ = run(tmp_path / "in", tmp_path / "out", path)
    assert status == analyze.ANALYSED
    warnings = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))["warnings"]
    assert any(
        w.startswith("Clinical record, AGE_RANGE: age_years is not a number between") for w in warnings
    )
    assert any("RATING_REFUSED" in w for w in warnings)
    assert not any("430" in w for w in warnings)


def test_another_patient_s_record_stops_the_study(tmp_path: Path, asked: Asked) -> None:
    image = write_study(tmp_path / "in")
    image.PatientID = "SOMEBODY ELSE"
    path = write_record(tmp_path / "r.json", image, age_years=62)
    status, words = run(tmp_path / "in", tmp_path / "out", path)
    assert status == analyze.WRONG_USAGE
    assert "MISMATCH" in words
    assert "SOMEBODY" not in words
    assert asked.records == []
    assert not (tmp_path / "out").exists()


def test_a_profile_that_reads_no_record_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Asked()
    monkeypatch.setattr(case, "analyse", stand_in)
    image = write_study(tmp_path / "in", PatientAge="070Y")
    path = write_record(tmp_path / "r.json", image, age_years=70)
    assert "no model that reads a clinical record" in run(tmp_path / "in", tmp_path / "with", path)[1]
    assert "clinical record: it was" not in run(tmp_path / "in", tmp_path / "without")[1]
