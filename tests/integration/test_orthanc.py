"""Delivery to a real Orthanc, by C-STORE and by STOW-RS."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from pacs_node.association import Timeouts
from pacs_node.destinations import Destination, OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.dimse import DimseDestination
from tests.ct_factory import make_ct_series, write_series
from tests.peers import Orthanc, orthanc
from tests.small_objects import reference, write_ct, write_sr

pytestmark = pytest.mark.peer("orthanc", "orthanc-dicomweb")

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")
PATIENT = Timeouts(connect=10, association=10, progress=10)
#: for a peer that is stopped
QUICK = Timeouts(connect=2, association=2, progress=2)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "pacs" in request.fixturenames:
        request.getfixturevalue("pacs").clear()


def by_dimse(pacs: Orthanc, *, called_ae: str = "ORTHANC", timeouts: Timeouts = PATIENT) -> DimseDestination:
    return DimseDestination("pacs", "127.0.0.1", pacs.dicom_port, called_ae, "NODE", timeouts=timeouts)


def by_web(pacs: Orthanc, **options: object) -> DicomWebDestination:
    return DicomWebDestination("pacs", pacs.dicomweb_url, **options)  # type: ignore[arg-type]  # passed through


@pytest.fixture(params=["dimse", "web"])
def destination(request: pytest.FixtureRequest, pacs: Orthanc) -> Destination:
    return by_dimse(pacs) if request.param == "dimse" else by_web(pacs)


def test_echo(destination: Destination) -> None:
    answer = destination.echo()
    assert answer.ok
    assert 0 < answer.seconds < 2


def test_objects_arrive_and_are_verified(destination: Destination, pacs: Orthanc, tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    objects = [reference(dcmread(path)) for path in paths]
    uids = [item.sop_instance_uid for item in objects]
    assert destination.verify(objects) == dict.fromkeys(uids, False)

    outcomes = destination.send(paths)

    assert [(outcome.sop_instance_uid, outcome.kind) for outcome in outcomes] == [
        (uid, OutcomeKind.STORED) for uid in uids
    ]
    # on a busy machine Orthanc has answered Success a moment before a query found the object
    deadline = time.monotonic() + 10
    while destination.verify(objects) != dict.fromkeys(uids, True):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert sorted(item["SOPInstanceUID"] for item in pacs.instances()) == sorted(uids)
    assert len(pacs.series(objects[0].study_uid)) == 2
    lost = next(item for item in pacs.instances() if item["SOPInstanceUID"] == uids[1])
    pacs.delete_instance(lost["OrthancID"])
    assert destination.verify(objects) == {**dict.fromkeys(uids, True), uids[1]: False}


def test_stored_data_set_is_what_was_sent(destination: Destination, pacs: Orthanc, tmp_path: Path) -> None:
    path = write_sr(tmp_path, text="Ünïcode, 2.5 mm")
    destination.send([path])
    (stored,) = pacs.instances()
    (tmp_path / "back.dcm").write_bytes(pacs.file(stored["OrthancID"]))
    assert dcmread(tmp_path / "back.dcm") == dcmread(path)


def test_stow_sends_the_bytes_of_the_file(pacs: Orthanc, tmp_path: Path) -> None:
    small = write_sr(tmp_path)
    noise = np.random.default_rng(1).integers(-1000, 1000, (1, 1024, 1024)).astype(np.int16)
    (large,) = write_series(make_ct_series(1, matrix=1024, hu=noise, seed="large"), tmp_path / "ct")
    assert large.stat().st_size > 2_000_000  # over the chunk size
    assert {outcome.kind for outcome in by_web(pacs).send([small, large])} == {OutcomeKind.STORED}
    stored = {item["SOPInstanceUID"]: item["OrthancID"] for item in pacs.instances()}
    for path in (small, large):
        assert pacs.file(stored[dcmread(path).SOPInstanceUID]) == path.read_bytes()


def test_sending_again_is_stored_and_adds_nothing(
    destination: Destination, pacs: Orthanc, tmp_path: Path
) -> None:
    paths = [*write_ct(tmp_path / "ct"), write_sr(tmp_path / "sr")]
    for _ in range(2):
        assert all(outcome.kind.stored for outcome in destination.send(paths))
    assert len(pacs.instances()) == len(paths)


def test_damaged_object_is_permanent_and_the_others_arrive(
    destination: Destination, pacs: Orthanc, tmp_path: Path
) -> None:
    good = write_sr(tmp_path / "good")
    whole = write_sr(tmp_path / "bad", seed="b").read_bytes()
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(whole[:400] + b"\xff" * 50)
    first, second = destination.send([bad, good])
    assert first.kind is OutcomeKind.PERMANENT
    assert second.kind is OutcomeKind.STORED
    assert len(pacs.instances()) == 1


def test_sop_class_without_context_is_permanent_and_named(pacs: Orthanc, tmp_path: Path) -> None:
    good = write_sr(tmp_path / "good")
    labels = dcmread(write_sr(tmp_path / "labels", seed="b"))
    labels.SOPClassUID = labels.file_meta.MediaStorageSOPClassUID = LABEL_MAP
    labels.save_as(tmp_path / "labels.dcm")
    first, second = by_dimse(pacs).send([tmp_path / "labels.dcm", good])
    assert first.kind is OutcomeKind.PERMANENT
    assert LABEL_MAP.name in first.detail
    assert second.kind is OutcomeKind.STORED
    (alone,) = by_dimse(pacs).send([tmp_path / "labels.dcm"])  # then the peer accepts no context at all
    assert (alone.kind, alone.detail) == (OutcomeKind.PERMANENT, first.detail)


def test_wrong_called_ae_title_is_permanent(tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct")
    with orthanc(tmp_path, settings={"DicomCheckCalledAet": True}) as pacs:
        wrong = by_dimse(pacs, called_ae="OTHER")
        outcomes = wrong.send(paths)
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.PERMANENT}
        assert "rejected" in outcomes[0].detail
        assert not wrong.echo().ok
        assert wrong.verify([reference(dcmread(paths[0]))]) == {outcomes[0].sop_instance_uid: None}
        assert by_dimse(pacs).echo().ok


def test_password(tmp_path: Path) -> None:
    path = write_sr(tmp_path / "sr")
    settings = {"AuthenticationEnabled": True, "RegisteredUsers": {"node": "secret"}}
    with orthanc(tmp_path, settings=settings, user=("node", "secret")) as pacs:
        for wrong in (by_web(pacs), by_web(pacs, user="node", password="guess")):
            (outcome,) = wrong.send([path])
            assert (outcome.kind, outcome.status) == (OutcomeKind.PERMANENT, 401)
            assert not wrong.echo().ok
            assert list(wrong.verify([reference(dcmread(path))]).values()) == [None]
        right = by_web(pacs, user="node", password="secret")
        assert right.echo().ok
        assert right.send([path])[0].kind is OutcomeKind.STORED


def test_wrong_path_of_the_url_is_permanent(pacs: Orthanc, tmp_path: Path) -> None:
    wrong = DicomWebDestination("pacs", f"{pacs.url}/nowhere/")
    (outcome,) = wrong.send([write_sr(tmp_path)])
    assert (outcome.kind, outcome.status) == (OutcomeKind.PERMANENT, 404)
    assert not wrong.echo().ok


def test_nobody_listens(free_port: int, tmp_path: Path) -> None:
    path = write_sr(tmp_path)
    objects = [reference(dcmread(path))]
    for nobody in (
        DimseDestination("pacs", "127.0.0.1", free_port, "ORTHANC", "NODE"),
        DicomWebDestination("pacs", f"http://127.0.0.1:{free_port}/dicom-web"),
    ):
        (outcome,) = nobody.send([path])
        assert (outcome.kind, outcome.status) == (OutcomeKind.TRANSIENT, None)
        assert outcome.sop_instance_uid == objects[0].sop_instance_uid
        assert not nobody.echo().ok
        assert list(nobody.verify(objects).values()) == [None]


def test_peer_killed_between_two_objects(tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct", n_slices=6)
    with orthanc(tmp_path) as pacs:

        def kill_after_two(done: int, _total: int) -> None:
            if done == 2:
                pacs.process.kill()
                pacs.process.wait()

        kinds = [outcome.kind for outcome in by_dimse(pacs).send(paths, kill_after_two)]
    assert kinds == [OutcomeKind.STORED] * 2 + [OutcomeKind.TRANSIENT] * 4


@pytest.mark.parametrize("way", ["dimse", "web"])
def test_stopped_peer_is_given_up(way: str, tmp_path: Path) -> None:
    path = write_sr(tmp_path / "sr")
    with orthanc(tmp_path) as pacs:
        destination: Destination = (
            by_dimse(pacs, timeouts=QUICK)
            if way == "dimse"
            else by_web(pacs, connect_timeout=2.0, read_timeout=2.0)
        )
        os.kill(pacs.process.pid, signal.SIGSTOP)
        start = time.monotonic()
        (outcome,) = destination.send([path])
        echo = destination.echo()
        assert time.monotonic() - start < 20
        assert (outcome.kind, echo.ok) == (OutcomeKind.TRANSIENT, False)
        os.kill(pacs.process.pid, signal.SIGCONT)
        destination = by_dimse(pacs) if way == "dimse" else by_web(pacs)
        assert destination.send([path])[0].kind is OutcomeKind.STORED
        assert list(destination.verify([reference(dcmread(path))]).values()) == [True]
