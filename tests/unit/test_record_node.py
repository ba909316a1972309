"""A node that asks for the clinical record: from the queue to the result, and never another patient's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from inference.registry import FUSION, load_pipeline
from pacs_node import case
from pacs_node.config import Settings
from pacs_node.config_record import RecordSettings
from pacs_node.engines import InProcessEngine
from pacs_node.record_sources import RecordSources, Subject
from pacs_node.request import CaseOutcome, CaseRequest
from pacs_node.states import JobState
from pacs_node.worker import Worker
from tests import fhir_server as fhir
from tests.ct_factory import make_ct_series, write_series
from tests.finding_factory import TRAINED
from tests.small_node import VERSION, SmallNode
from tests.unit.test_intake import localizer
from tests.unit.test_record_path import Asked
from tests.unit.test_worker import run, settings

#: of all series of `tests.ct_factory`
BORN, PATIENT = "1950-01-01", "SYNTHETIC-1"


@pytest.fixture
def server() -> Iterator[fhir.FhirServer]:
    with fhir.running() as found:
        yield found


def worker(node: SmallNode, server: fhir.FhirServer) -> Worker:
    record = RecordSettings(fhir_url=server.base, fhir_patient_system=fhir.SYSTEM, wait_seconds=5.0)
    changed = Settings(**{**dict(settings(node)), "record": record})
    return Worker(node.database, changed, VERSION, InProcessEngine(), node.clock)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[CaseRequest]:
    taken: list[CaseRequest] = []

    def note(request: CaseRequest) -> CaseOutcome:
        taken.append(request)
        return run(request)

    monkeypatch.setattr("pacs_node.worker.run_case", note)
    return taken


def test_the_worker_asks_before_the_analysis(
    node: SmallNode, server: fhir.FhirServer, requests: list[CaseRequest]
) -> None:
    node.queue()
    server.resources = [fhir.patient(PATIENT, born=BORN), fhir.smoker(day="2018-01-01")]
    assert worker(node, server).tick()
    (request,) = requests
    (told,) = request.told
    assert told.source == "FHIR"
    assert told.reading.record.items().keys() == {"age_years", "sex", "smoking"}
    assert request.uid_salt != ""
    assert node.all_jobs()[0].state is JobState.SUCCEEDED


def test_a_server_that_fails_costs_no_study(
    node: SmallNode, server: fhir.FhirServer, requests: list[CaseRequest]
) -> None:
    node.queue()
    server.instead["Patient"] = (500, b"", {})
    assert worker(node, server).tick()
    assert "status 500" in str(requests[0].told[0].reading.issues[0])
    assert node.all_jobs()[0].state is JobState.SUCCEEDED


def test_a_refused_study_asks_nobody(
    node: SmallNode, server: fhir.FhirServer, requests: list[CaseRequest]
) -> None:
    node.receive(*localizer())
    node.quiet()
    assert worker(node, server).tick()
    assert requests[0].refusal is not None
    assert (requests[0].told, server.asked) == ((), [])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    stand_in = Asked()
    pipeline = load_pipeline("classical")
    with_fusion = replace(pipeline, cards=(*pipeline.cards, replace(TRAINED, task=FUSION)))
    monkeypatch.setattr(case, "analyse", stand_in)
    monkeypatch.setattr(case, "load_pipeline", lambda _profile, **_more: with_fusion)
    return stand_in


def result_of(folder: Path, told: tuple[Any, ...]) -> dict[str, Any]:
    write_series(make_ct_series(), folder / "in")
    first = make_ct_series()[0]
    request = CaseRequest(
        files=tuple(sorted((folder / "in").iterdir())),
        out_dir=folder / "out",
        profile="classical",
        device="cpu",
        input_digest="0" * 64,
        created_at=datetime(2026, 3, 1, tzinfo=UTC),
        identity={"SeriesInstanceUID": str(first.SeriesInstanceUID)},
        told=told,
    )
    case.run_case(request)
    found: dict[str, Any] = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    return found


def told_by(server: fhir.FhirServer, **patient: Any) -> tuple[Any, ...]:
    server.resources = [fhir.patient(PATIENT, **{"born": BORN, **patient}), fhir.smoker(day="2019")]
    record = RecordSettings(fhir_url=server.base, fhir_patient_system=fhir.SYSTEM)
    return RecordSources(record).ask(Subject(PATIENT, "", "20200101"), lambda: False)


def test_what_was_told_reaches_the_analysis(tmp_path: Path, server: fhir.FhirServer, asked: Asked) -> None:
    result = result_of(tmp_path, told_by(server))
    (reading,) = asked.records
    assert reading.sources["smoking"] == "FHIR Observation"
    assert reading.used_words().startswith("age_years (FHIR birth date and Study Date), ")
    assert not any("FHIR" in warning for warning in result["warnings"])


def test_another_patient_s_record_is_said_and_not_used(
    tmp_path: Path, server: fhir.FhirServer, asked: Asked
) -> None:
    result = result_of(tmp_path, told_by(server, born="1950-01-02"))
    (reading,) = asked.records
    assert "smoking" not in reading.record.items()
    (warning,) = [one for one in result["warnings"] if "FHIR" in one]
    assert warning == (
        "Clinical record, MISMATCH: FHIR has another birth date than the images; nothing of it was used."
    )
    assert "MISMATCH" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert b"FHIR has another birth date" in (tmp_path / "out" / "sr.dcm").read_bytes()
