"""A whole node beside an Orthanc: archive, destination and sender; counts, and commitment both ways."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests
from pydicom import Dataset
from sqlalchemy import select

from pacs_node.config import Caller, DicomDestination, DicomWebDestination
from pacs_node.config_template import render_settings
from pacs_node.db import CommitmentItem, Delivery, Series
from pacs_node.states import DeliveryState, SeriesState
from tests.acceptance.node import Node
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series, write_series
from tests.faults.receiver import LONG
from tests.peers import Orthanc, orthanc

pytestmark = [pytest.mark.peer("orthanc", "orthanc-dicomweb"), pytest.mark.timeout(300)]

CT = "1.2.840.10008.5.1.4.1.1.2"
SIZE = 8


class ArchivedNode(Node):
    """Results go to the PACS by storage commitment; the archive, the same one here, is only asked."""

    def configure(self, pacs: Orthanc, archive: DicomDestination | DicomWebDestination) -> None:
        """Write its configuration."""
        results = DicomDestination(
            name="pacs",
            host="127.0.0.1",
            port=pacs.dicom_port,
            ae_title="ORTHANC",
            verify="commitment",
        )
        text = render_settings(
            callers=[Caller(ae_title="ORTHANC", address="127.0.0.1", report_port=pacs.dicom_port)],
            destinations=[results, archive],
            overrides={
                "listener": {"port": self.port},
                "storage": {"reserve_mb": 100},
                "pipeline": {"profile": self.profile},
                "completeness": {"settle_seconds": 1.5, "quiet_seconds": 4.0},
                "archive": {"destination": archive.name, "answer_seconds": 240.0},
                "delivery": {"retry_first_seconds": 1.0},
                "web": {"enabled": False},
            },
        )
        self.config.write_text(text)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Orthanc]:
    # it reports to the AE title, so there is one node of that title, at one port
    with orthanc(
        tmp_path_factory.mktemp("orthanc"), modalities={"node": ("CTNODE", "127.0.0.1", port)}
    ) as it:
        yield it


@pytest.fixture(scope="module")
def port() -> int:
    return find_free_port()


def upload(pacs: Orthanc, directory: Path, seed: str) -> tuple[list[Dataset], list[str]]:
    """Put a series into Orthanc; its images, and what Orthanc calls them."""
    images = make_ct_series(SIZE, matrix=16, seed=seed)
    names = []
    for path in write_series(images, directory):
        answer = requests.post(f"{pacs.url}/instances", data=path.read_bytes(), timeout=30)
        answer.raise_for_status()
        names.append(answer.json()["ID"])
    return images, names


def send(pacs: Orthanc, names: Sequence[str]) -> None:
    """Have Orthanc send some of its images."""
    requests.post(f"{pacs.url}/modalities/node/store", json=list(names), timeout=60).raise_for_status()


def series_of(node: Node) -> Series:
    with node.database().read() as session:
        return session.scalars(select(Series)).one()


def asks(pacs: Orthanc, node: Node, images: Sequence[Dataset]) -> str:
    """Let Orthanc ask the node for storage commitment; what it is told."""
    body = {"DicomInstances": [[CT, str(ds.SOPInstanceUID)] for ds in images]}
    started = requests.post(f"{pacs.url}/modalities/node/storage-commitment", json=body, timeout=20)
    started.raise_for_status()
    path = started.json()["Path"]
    node.until(lambda: pacs.get(path)["Status"] != "Pending", "a report of storage commitment", 60)
    return str(pacs.get(path)["Status"])


@pytest.mark.parametrize("how", ["c-find", "qido"] if LONG else ["c-find"])
def test_the_archive_holds_a_part_and_closes_the_whole(
    pacs: Orthanc, port: int, tmp_path: Path, how: str
) -> None:
    archive: DicomDestination | DicomWebDestination = DicomWebDestination(
        kind="dicomweb", name="archive", url=pacs.dicomweb_url, send=()
    )
    if how == "c-find":
        archive = DicomDestination(
            name="archive", host="127.0.0.1", port=pacs.dicom_port, ae_title="ORTHANC", send=()
        )
    node = ArchivedNode(tmp_path, port=port, profile="classical")
    node.configure(pacs, archive)
    try:
        node.start()
        follow(node, pacs, how, tmp_path / "ct")
    finally:
        node.kill()


def follow(node: Node, pacs: Orthanc, seed: str, directory: Path) -> None:
    """A part comes and is held; the rest comes; the report is sent, and committed to by the PACS."""
    images, names = upload(pacs, directory, seed)
    send(pacs, names[:5])
    node.until(
        lambda: node.ask(lambda session: session.scalars(select(Series.archive_instances)).first()) == SIZE,
        "the archive's count",
        60,
    )
    # without the archive's word it would be closed by now: no gap, silent, released
    assert series_of(node).state is SeriesState.RECEIVING
    send(pacs, names[5:])
    node.until(lambda: series_of(node).closed_by == "counted", "the series is closed", 60)
    assert asks(pacs, node, images) == "Success"

    def delivered() -> bool:
        with node.database().read() as session:
            rows = session.scalars(select(Delivery)).all()
            return bool(rows) and all(row.state is DeliveryState.COMMITTED for row in rows)

    node.until(delivered, "the report is committed to", 120)
    with node.database().read() as session:
        assert {row.destination for row in session.scalars(select(Delivery))} == {"pacs"}
        assert [item.committed for item in session.scalars(select(CommitmentItem))] == [True]
    modalities = sorted(item["Modality"] for item in pacs.series(str(images[0].StudyInstanceUID)))
    assert modalities == ["CT", "SR"]
