"""Whom the report that a study was not analysed goes to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage
from sqlalchemy import select

from pacs_node.config import DicomDestination, PipelineSettings, Settings, StorageSettings
from pacs_node.db import AuditEvent, Job, Study
from pacs_node.engines import InProcessEngine
from pacs_node.operator_actions import Word, send
from pacs_node.queries import timeline
from pacs_node.request import CaseFile, CaseOutcome, CaseRequest
from pacs_node.states import JobState
from pacs_node.study_state import StudyWord
from pacs_node.worker import Worker
from tests.ct_factory import make_ct_series
from tests.small_node import SmallNode, chest

Choice = Literal["ct", "all", "none"]
CHOICES: tuple[Choice, ...] = ("ct", "all", "none")


def settings(node: SmallNode, choices: Sequence[Choice] = CHOICES) -> Settings:
    """One destination of each choice, which has its name."""
    return Settings(
        storage=StorageSettings(directory=str(node.spool.directory)),
        pipeline=PipelineSettings(engine="in-process"),
        destinations=tuple(
            DicomDestination(name=choice, host="127.0.0.1", port=104, ae_title="PACS", not_analysed=choice)
            for choice in choices
        ),
    )


@pytest.fixture
def requests(node: SmallNode, monkeypatch: pytest.MonkeyPatch) -> list[CaseRequest]:
    """What the engine is asked for; it makes a SEG and an SR of what is suitable, and else a report."""
    asked: list[CaseRequest] = []

    def made(request: CaseRequest) -> CaseOutcome:
        asked.append(request)
        kinds = ("sr",) if request.refusal else ("seg", "sr")
        with node.database.read() as session:
            job = session.scalars(select(Job).where(Job.state == JobState.RUNNING)).one()
            files = tuple(
                CaseFile(
                    new.kind,
                    Path(settings(node).storage.directory) / new.path,
                    new.sha256,
                    new.sop_instance_uid,
                    new.sop_class_uid,
                    new.series_uid,
                )
                for new in node.result(job, kinds)
            )
        if request.refusal is None:
            return CaseOutcome("analysed", files)
        return CaseOutcome("not_analysed", files, request.refusal.code, request.refusal.sentence)

    monkeypatch.setattr("pacs_node.worker.run_case", made)
    return asked


def work(node: SmallNode, *datasets: Dataset, choices: Sequence[Choice] = CHOICES) -> None:
    """A study arrives, and what is queued for it is done."""
    node.receive(*datasets)
    node.quiet()
    node.quiet()
    version, wanted = node.intake._pipeline_version, settings(node, choices)
    worker = Worker(node.database, wanted, version, InProcessEngine(), node.clock)
    while worker.tick():
        pass


def deliveries(node: SmallNode) -> list[tuple[str, str]]:
    return [(row.destination, row.artifact.kind) for row in node.all_deliveries()]


def told(node: SmallNode) -> list[tuple[str, str]]:
    with node.database.read() as session:
        rows = session.scalars(select(AuditEvent).where(AuditEvent.event == "report kept here"))
        return [(row.objects["destination"], row.objects["reason"]) for row in rows]


def mr(**options: Any) -> Sequence[Dataset]:
    return make_ct_series(2, matrix=8, modality="MR", sop_class_uid=MRImageStorage, **options)


NO_CT = 'the study has no CT images, and not_analysed = "ct"'


def test_a_study_without_ct_puts_no_report_into_the_pacs(
    node: SmallNode, requests: list[CaseRequest]
) -> None:
    work(node, *mr())
    assert deliveries(node) == [("all", "sr")]
    assert told(node) == [("ct", NO_CT), ("none", 'not_analysed = "none"')]
    assert {row.name: row.told_why for row in requests[0].receivers} == {
        "ct": False,
        "all": True,
        "none": False,
    }
    with node.database.read() as session:
        study = session.scalars(select(Study)).one()
        (job,) = session.scalars(select(Job))
        assert (study.state, study.delivery) == (StudyWord.NOT_ANALYSED, "waiting to be sent")
        assert (job.state, job.outcome, job.reason_code) == (JobState.SUCCEEDED, "not_analysed", "NOT_CT")
        steps = [(line.step, line.detail) for line in timeline(session, study.study_uid)]
    assert ("report kept here", f"not sent to ct: {NO_CT}") in steps


def test_an_operator_sends_what_was_kept(node: SmallNode, requests: list[CaseRequest]) -> None:
    work(node, *(series := mr()))
    word = Word("user:jo", "127.0.0.1", "asked for by telephone", node.clock())
    with node.database.write() as session:
        count = send(session, str(series[0].StudyInstanceUID), word, settings(node).destinations, "ct")
    assert (count, deliveries(node)) == (1, [("all", "sr"), ("ct", "sr")])
    assert len(requests) == 1


@pytest.mark.parametrize(
    "wrong", [{}, {"modality": "OT"}, {"sop_class_uid": MRImageStorage}], ids=["CT", "class", "modality"]
)
def test_a_study_with_ct_puts_its_report_there(
    node: SmallNode, requests: list[CaseRequest], wrong: dict[str, str]
) -> None:
    series = make_ct_series(2, matrix=8, **({"sop_class_uid": CTImageStorage} | wrong))  # type: ignore[arg-type]
    work(node, *series)
    assert requests[0].refusal is not None
    assert deliveries(node) == [("ct", "sr"), ("all", "sr")]
    assert told(node) == [("none", 'not_analysed = "none"')]


def test_a_result_replaces_no_report_that_went_nowhere(node: SmallNode, requests: list[CaseRequest]) -> None:
    images, other = chest(12), mr(seed="other")
    for ds in other:
        ds.StudyInstanceUID, ds.PatientID = images[0].StudyInstanceUID, images[0].PatientID
    work(node, *other, choices=("ct", "none"))
    assert (deliveries(node), len(told(node))) == ([], 2)
    work(node, *images, choices=("ct", "none"))
    assert deliveries(node) == [(choice, kind) for kind in ("seg", "sr") for choice in ("ct", "none")]
    assert [request.refusal is None for request in requests] == [False, True]
    assert (requests[1].predecessors, len(told(node))) == ((), 2)
