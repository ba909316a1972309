"""Earlier examinations from real archives: Orthanc by DICOMweb, C-GET and C-MOVE, dcmqrscp by C-GET."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from inference import geometry
from pacs_node.association import Peer
from pacs_node.audit import Event
from pacs_node.config_listener import ListenerSettings
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.priors_archive import PriorSource
from pacs_node.priors_dimse import DimsePriors
from pacs_node.priors_move import MoveSettings
from pacs_node.priors_web import WebPriors
from tests import peers
from tests.conftest import find_free_port
from tests.ct_factory import write_series
from tests.prior_studies import examination, look_in, scout
from tests.small_node import SMALL_LIMITS

pytestmark = [
    pytest.mark.peer("storescu", "dcmqrscp", "orthanc", "orthanc-dicomweb"),
    pytest.mark.usefixtures("small_limits"),
]

LATEST, EARLIER = examination(date(2019, 5, 1), "latest"), examination(date(2018, 5, 1), "earlier")
#: of later, too old, or another patient's with the same ID
NOT_MEANT = (
    examination(date(2020, 1, 1), "same day"),
    examination(date(2021, 1, 1), "later"),
    examination(date(2010, 1, 1), "too old"),
)
STRANGER = examination(date(2019, 12, 1), "stranger", PatientBirthDate="19600101")
MOVE_AE, MOVE_PORT = "CTPRIOR", find_free_port()


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_LIMITS.items():
        monkeypatch.setattr(geometry, name, value)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("studies")
    for number, series in enumerate((LATEST, scout(LATEST), EARLIER, *NOT_MEANT, STRANGER)):
        write_series(series, directory / str(number))
    return directory


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[peers.Orthanc]:
    known = {"node": (MOVE_AE, "127.0.0.1", MOVE_PORT)}
    settings = {"DicomAlwaysAllowGet": True, "DicomAlwaysAllowMove": True}
    with peers.orthanc(tmp_path_factory.mktemp("pacs"), modalities=known, settings=settings) as running:
        assert peers.storescu(running.dicom_port, files).returncode == 0
        yield running


@pytest.fixture(scope="module")
def dcmtk(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[int]:
    with peers.dcmqrscp(tmp_path_factory.mktemp("dcmtk")) as port:
        assert peers.storescu(port, files, called_ae="QRSCP").returncode == 0
        yield port


@pytest.fixture(params=["wado-rs", "c-get", "c-move", "c-get from dcmtk"])
def source(request: pytest.FixtureRequest, pacs: peers.Orthanc) -> PriorSource:
    peer = Peer("127.0.0.1", pacs.dicom_port, pacs.ae_title, "CTNODE")
    if request.param == "wado-rs":
        return WebPriors(DicomWebDestination("pacs", pacs.dicomweb_url))
    if request.param == "c-get":
        return DimsePriors("pacs", peer, 20.0)
    if request.param == "c-move":
        move = MoveSettings(MOVE_AE, "127.0.0.1", MOVE_PORT, ListenerSettings())
        return DimsePriors("pacs", peer, 20.0, move)
    return DimsePriors("pacs", Peer("127.0.0.1", request.getfixturevalue("dcmtk"), "QRSCP", "CTNODE"), 20.0)


def uids(series: Sequence[Dataset]) -> set[str]:
    return {str(ds.SOPInstanceUID) for ds in series}


def test_the_latest_of_this_patient_is_fetched_whole(source: PriorSource, tmp_path: Path) -> None:
    gathered = look_in(source, tmp_path)
    (prior,) = gathered.priors
    assert (prior.study_uid, prior.examined_on) == (LATEST[0].StudyInstanceUID, date(2019, 5, 1))
    assert prior.source == "pacs"
    read = [dcmread(path) for path in prior.files]
    assert uids(read) == uids(LATEST)
    assert {ds.PixelData for ds in read} == {ds.PixelData for ds in LATEST}
    # nothing else lies there: neither the localizer nor the image of each series that was looked at
    assert {path.name for path in prior.files} == {path.name for path in (tmp_path / "fetched").iterdir()}
    refused = [told["prior_study_uid"] for event, _, told in gathered.events if event is Event.PRIOR_REFUSED]
    assert refused == [STRANGER[0].StudyInstanceUID]
    assert gathered.notes == ["The CT of 2019-12-01 (pacs) was not compared: it has another birth date."]


def test_as_many_as_are_wanted(source: PriorSource, tmp_path: Path) -> None:
    found = look_in(source, tmp_path, number=3).priors
    assert [prior.study_uid for prior in found] == [one[0].StudyInstanceUID for one in (LATEST, EARLIER)]
