"""One patient at two dates through a whole node: what was there before keeps its name in SEG and report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select

from inference.phantom import grown, write_phantom
from pacs_node.db import Artifact, AuditEvent, Job, Series, Study
from tests import peers
from tests.acceptance.node import Node, running

pytestmark = [pytest.mark.peer("storescu"), pytest.mark.slow]

DATES = (datetime(2019, 1, 1, 12), datetime(2020, 1, 1, 12))  # noqa: DTZ001 - DICOM times are local


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    directory = tmp_path / "node"
    directory.mkdir()
    yield from running(Node(directory, profile="classical"))


def result_files(node: Node, study_uid: str) -> dict[str, Path]:
    """The files of the result of a study, by kind."""

    def paths(session: Any) -> dict[str, str]:
        query = (
            select(Artifact.kind, Artifact.path)
            .join(Job, Artifact.job_id == Job.id)
            .join(Series, Job.series_id == Series.id)
            .join(Study, Series.study_id == Study.id)
            .where(Study.study_uid == study_uid)
        )
        return dict(session.execute(query).tuples().all())

    found: Any = node.ask(paths)
    return {kind: node.storage / path for kind, path in found.items()}


def tracking_uids(files: dict[str, Path]) -> tuple[set[str], set[str], set[str]]:
    """In the SEG, the report and result.json."""
    seg, report = dcmread(files["seg"]), dcmread(files["sr"])
    of_report = {str(one.value) for one in report.iterall() if one.keyword == "UID"}
    summary = json.loads(files["json"].read_text(encoding="utf-8"))
    return (
        {str(one.TrackingUID) for one in seg.SegmentSequence},
        of_report,
        {row["tracking_uid"] for row in summary["findings"]},
    )


def test_two_dates_of_one_patient(node: Node, tmp_path: Path) -> None:
    dates = grown(1, shape=(75, 160, 160), spacing_mm=(4.0, 2.2, 2.2))
    studies = []
    for number, (phantom, day) in enumerate(zip((dates.prior, dates.current), DATES, strict=True), 1):
        files = write_phantom(phantom, tmp_path / str(number), patient_id="TWO-DATES", created=day)
        assert peers.storescu(node.port, *files, called_ae="CTNODE").returncode == 0
        node.wait_finished(number)
        studies.append(str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID))
    then, now = (result_files(node, study) for study in studies)

    before, _, _ = tracking_uids(then)
    in_seg, in_report, in_json = tracking_uids(now)
    assert in_seg == in_json
    assert in_seg <= in_report
    kept = before & in_seg
    assert len(kept) >= 2
    assert in_seg - before, "new nodules have names of their own"

    summary = json.loads(now["json"].read_text(encoding="utf-8"))
    compared = summary["comparison"]
    assert (compared["prior"]["study_uid"], compared["prior"]["date"]) == (studies[0], "2019-01-01")
    matched = {
        pair["current"]["tracking_uid"]: pair["prior"]["tracking_uid"]
        for pair in compared["pairs"]
        if pair["current"] and pair["prior"]
    }
    assert kept <= set(matched)
    assert all(one == other for one, other in matched.items())
    # what was found then was read again, not analysed anew
    assert "read prior result" in summary["timings_s"]
    assert "analyse prior" not in summary["timings_s"]
    events: Any = node.ask(lambda session: set(session.scalars(select(AuditEvent.event))))
    assert "prior fetched" in events
