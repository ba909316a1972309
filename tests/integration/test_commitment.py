"""Storage commitment with a real Orthanc: it asks us, and we ask it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from pydicom import dcmread
from sqlalchemy import select

from inference.uids import derived_uid
from pacs_node.association import Timeouts
from pacs_node.commitment_scp import Reporter
from pacs_node.commitment_scu import CommittingDestination
from pacs_node.config import Settings, parse_settings
from pacs_node.db import CommitmentItem, CommitmentRequest, Database, Instance, sqlite_url
from pacs_node.destinations import ObjectRef
from pacs_node.dimse import DimseDestination
from pacs_node.listener import Listener
from pacs_node.spool import Spool
from tests.conftest import find_free_port
from tests.peers import Orthanc, orthanc
from tests.small_objects import reference, write_ct

pytestmark = pytest.mark.peer("orthanc")

CT = "1.2.840.10008.5.1.4.1.1.2"
_NOT_AVAILABLE = "One or more of the elements in the Referenced SOP Instance Sequence was not available"


@dataclass(frozen=True)
class Both:
    """An Orthanc and a listener that know each other."""

    pacs: Orthanc
    settings: Settings
    database: Database

    def destination(self) -> CommittingDestination:
        """Orthanc, as the outbox of a destination with ``verify = "commitment"`` has it."""
        inner = DimseDestination(
            "pacs", "127.0.0.1", self.pacs.dicom_port, "ORTHANC", "CTNODE", timeouts=Timeouts(progress=10)
        )
        return CommittingDestination(inner, self.database, timedelta(hours=1))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    directory = tmp_path_factory.mktemp("node")
    database = Database(sqlite_url(directory))
    database.upgrade()
    port = find_free_port()
    peers = tmp_path_factory.mktemp("orthanc")
    with orthanc(peers, modalities={"node": ("CTNODE", "127.0.0.1", port)}) as pacs:
        caller = {"ae_title": "ORTHANC", "address": "127.0.0.1", "report_port": pacs.dicom_port}
        settings = parse_settings(
            {"listener": {"port": port}, "callers": [caller], "storage": {"directory": str(directory)}},
            base=directory,
        )
        listener = Listener(
            settings.listener, settings.callers, database, Spool(directory, 1), reporters={"pacs": "ORTHANC"}
        )
        listener.start()
        try:
            yield Both(pacs, settings, database)
        finally:
            listener.stop()
            database.dispose()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def asks(both: Both, *uids: str) -> dict[str, Any]:
    """Let Orthanc ask the node about objects; what it has to say in the end."""
    body = {"DicomInstances": [[CT, uid] for uid in uids]}
    started = requests.post(f"{both.pacs.url}/modalities/node/storage-commitment", json=body, timeout=20)
    started.raise_for_status()
    path = started.json()["Path"]
    assert both.pacs.get(path)["Status"] == "Pending"
    reporter = Reporter(both.database, both.settings)

    def answered() -> bool:
        reporter.tick()
        return bool(both.pacs.get(path)["Status"] != "Pending")

    until(answered)
    reporter.stop()
    answer: dict[str, Any] = both.pacs.get(path)
    return answer


def test_orthanc_is_told_what_is_safe_here(both: Both, tmp_path: Path) -> None:
    paths = write_ct(tmp_path)
    for path in paths:
        requests.post(f"{both.pacs.url}/instances", data=path.read_bytes(), timeout=10).raise_for_status()
    ids = [item["OrthancID"] for item in both.pacs.instances()]
    sent = requests.post(f"{both.pacs.url}/modalities/node/store", json=ids, timeout=30)
    sent.raise_for_status()
    uids = [str(dcmread(path).SOPInstanceUID) for path in paths]

    assert asks(both, *uids)["Status"] == "Success"
    unknown = derived_uid("nobody has it")
    answer = asks(both, *uids, unknown)

    assert answer["Status"] == "Failure"
    assert [(item["SOPInstanceUID"], item["Description"]) for item in answer["Failures"]] == [
        (unknown, _NOT_AVAILABLE)
    ]
    assert sorted(item["SOPInstanceUID"] for item in answer["Success"]) == sorted(uids)
    with both.database.read() as session:
        rows = session.execute(select(CommitmentRequest)).scalars().all()
        assert [(row.refused, row.next_attempt_at) for row in rows] == [(0, None), (1, None)]
        (series,) = {row.series for row in session.execute(select(Instance)).scalars()}
        assert series.promised_instances == len(paths)


def test_orthanc_commits_to_results_by_calling_us(both: Both, tmp_path: Path) -> None:
    both.pacs.clear()
    paths = write_ct(tmp_path)
    destination = both.destination()
    assert all(outcome.kind.stored for outcome in destination.send(paths))
    there = [reference(dcmread(path)) for path in paths]
    lost = ObjectRef(there[0].study_uid, there[0].series_uid, derived_uid("lost"), CT)
    asked = [*there, lost]
    destination.verify(asked)

    def answered() -> bool:
        with both.database.read() as session:
            items = session.execute(select(CommitmentItem)).scalars().all()
            return all(item.committed is not None for item in items)

    until(answered)
    assert destination.verify(asked) == {
        **{item.sop_instance_uid: True for item in there},
        lost.sop_instance_uid: False,
    }
    with both.database.read() as session:
        refused = select(CommitmentItem).where(CommitmentItem.failure_reason.is_not(None))
        assert session.execute(refused).scalars().first().failure_reason == 0x0112  # type: ignore[union-attr]
