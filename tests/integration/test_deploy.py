"""The Orthanc of the compose example, run as it is configured there, knows the node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pacs_node.destinations import ObjectRef
from pacs_node.dimse import DimseDestination
from tests import peers

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
# where it runs here is the test's affair; who may do what is the example's
PLACES = {"StorageDirectory", "IndexDirectory", "Plugins", "DicomPort", "HttpPort", "RemoteAccessAllowed"}
NOBODY = ObjectRef("2.25.1", "2.25.2", "2.25.3", "1.2.840.10008.5.1.4.1.1.88.34")

pytestmark = pytest.mark.peer("orthanc")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Orthanc]:
    configuration = json.loads((DEPLOY / "orthanc.json").read_text())
    settings = {key: value for key, value in configuration.items() if key not in PLACES}
    with peers.orthanc(tmp_path_factory.mktemp("orthanc"), settings=settings) as running:
        yield running


def _node(orthanc: peers.Orthanc, *, called: str = "ORTHANC", calling: str = "CTNODE") -> DimseDestination:
    return DimseDestination("orthanc", "127.0.0.1", orthanc.dicom_port, called, calling)


def test_orthanc_answers_the_node(orthanc: peers.Orthanc) -> None:
    assert _node(orthanc).echo().ok


def test_orthanc_lets_the_node_verify_and_nobody_else(orthanc: peers.Orthanc) -> None:
    assert _node(orthanc).verify([NOBODY]) == {NOBODY.sop_instance_uid: False}
    assert _node(orthanc, calling="SOMEBODY").verify([NOBODY]) == {NOBODY.sop_instance_uid: None}


def test_orthanc_refuses_another_name(orthanc: peers.Orthanc) -> None:
    assert not _node(orthanc, called="OTHER").echo().ok


def test_orthanc_knows_where_to_send(orthanc: peers.Orthanc) -> None:
    assert orthanc.get("/modalities") == ["ctnode"]
