"""Questions to an archive over the network: pynetdicom and a small web server play it, well and badly."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # made at run time
    StudyRootQueryRetrieveInformationModelFind,
)

from pacs_node import archive, archive_dimse
from pacs_node.archive import ArchiveError, FoundStudy, StudyFilter
from pacs_node.archive_dimse import DimseArchive
from pacs_node.archive_web import DicomWebArchive
from pacs_node.association import Peer, Timeouts
from pacs_node.config import parse_settings
from pacs_node.destinations import OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.reconcile import open_archive
from tests.conftest import find_free_port
from tests.unit.test_dicomweb import Answer, server

pytestmark = pytest.mark.usefixtures("short_poll")

WANTED = StudyFilter(date(2026, 1, 1), date(2026, 1, 2), "CT", "CHEST")
FOUND = FoundStudy("1.2", "20260101", "A1", "CHEST", ("CT", "SR"), ("PACS",), 300)
TRANSIENT, PERMANENT = OutcomeKind.TRANSIENT, OutcomeKind.PERMANENT

Answers = Iterator[tuple[int, Dataset | None]]


@contextmanager
def by_dimse(answer: Callable[[Dataset], Answers], seconds: float = 60.0) -> Iterator[DimseArchive]:
    entity = AE(ae_title="PACS")
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)

    def find(event: evt.Event) -> Answers:
        yield from answer(event.identifier)

    there: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    timeouts = Timeouts(connect=10, association=10, progress=30)
    peer = Peer("127.0.0.1", int(there.server_address[1]), "PACS", "CTNODE", timeouts)
    yield DimseArchive("pacs", peer, seconds)
    there.shutdown()


def match(**values: Any) -> tuple[int, Dataset]:
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return 0xFF00, ds


def test_a_count_that_the_archive_says() -> None:
    def answer(query: Dataset) -> Answers:
        assert query.QueryRetrieveLevel == "SERIES"
        yield match(SeriesInstanceUID=query.SeriesInstanceUID, NumberOfSeriesRelatedInstances=300)

    with by_dimse(answer) as there:
        assert there.count("1.2", "1.2.3") == 300


@pytest.mark.parametrize("said", [{}, {"NumberOfSeriesRelatedInstances": None}])
def test_a_count_that_it_does_not_say_is_counted(said: dict[str, Any]) -> None:
    def answer(query: Dataset) -> Answers:
        if query.QueryRetrieveLevel == "SERIES":
            yield match(SeriesInstanceUID=query.SeriesInstanceUID, **said)
        for number in (1, 2, 2, 3):
            if query.QueryRetrieveLevel == "IMAGE":
                yield match(SOPInstanceUID=f"1.2.3.{number}")

    with by_dimse(answer) as there:
        assert there.count("1.2", "1.2.3") == 3


def test_an_archive_that_answers_for_another_series_or_not_at_all_says_nothing() -> None:
    def other(_query: Dataset) -> Answers:
        yield match(SeriesInstanceUID="1.9", NumberOfSeriesRelatedInstances=300)

    def nothing(_query: Dataset) -> Answers:
        yield from ()

    for answer in (other, nothing):
        with by_dimse(answer) as there:
            assert there.count("1.2", "1.2.3") == 0


def test_studies_and_their_modalities() -> None:
    def answer(query: Dataset) -> Answers:
        if query.QueryRetrieveLevel == "STUDY":
            assert (query.StudyDate, query.ModalitiesInStudy) == ("20260101-20260102", "CT")
            yield match(
                StudyInstanceUID="1.2",
                StudyDate="20260101",
                AccessionNumber="A1",
                StudyDescription="CHEST",
                ModalitiesInStudy=["CT", "SR"],
                RetrieveAETitle="PACS",
                NumberOfStudyRelatedInstances="300",
            )
            yield match(StudyInstanceUID="1.3")
            yield match(StudyDate="20260101")
        for modality in ("CT", "SR"):
            if query.QueryRetrieveLevel == "SERIES":
                yield match(Modality=modality)

    with by_dimse(answer) as there:
        assert there.studies(WANTED) == [FOUND, FoundStudy("1.3", "", "", "", (), (), None)]
        assert there.modalities("1.2") == {"CT", "SR"}


@pytest.mark.parametrize(("status", "kind"), [(0xA700, TRANSIENT), (0xA900, PERMANENT), (0xC001, PERMANENT)])
def test_an_archive_that_refuses(status: int, kind: OutcomeKind) -> None:
    def answer(_query: Dataset) -> Answers:
        yield status, None

    with by_dimse(answer) as there, pytest.raises(ArchiveError, match=f"{status:04X}H") as error:
        there.count("1.2", "1.2.3")
    assert error.value.kind is kind


def test_an_archive_that_is_slow_is_given_up_in_time() -> None:
    def answer(_query: Dataset) -> Answers:
        for number in itertools.count():
            time.sleep(0.1)
            yield match(SeriesInstanceUID=f"1.9.{number}")

    with by_dimse(answer, seconds=0.5) as there:
        start = time.monotonic()
        with pytest.raises(ArchiveError) as error:
            there.count("1.2", "1.2.3")
        assert (error.value.kind, time.monotonic() - start < 20) == (TRANSIENT, True)


def test_an_archive_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_query: Dataset) -> Answers:
        for number in itertools.count():
            yield match(StudyInstanceUID=f"1.9.{number}")

    assert archive.MAX_MATCHES >= 10_000
    monkeypatch.setattr(archive_dimse, "MAX_MATCHES", 20)
    with by_dimse(answer) as there, pytest.raises(ArchiveError, match="more than 20"):
        there.studies(WANTED)


def test_nobody_there() -> None:
    port = find_free_port()
    peer = Peer("127.0.0.1", port, "PACS", "CTNODE", Timeouts(connect=2))
    web = DicomWebDestination("web", f"http://127.0.0.1:{port}/dicom-web")
    for there in (DimseArchive("pacs", peer, 5), DicomWebArchive(web)):
        with pytest.raises(ArchiveError) as error:
            there.count("1.2", "1.2.3")
        assert error.value.kind is TRANSIENT


# --- by QIDO-RS ------------------------------------------------------------------------------------------


def row(**values: Any) -> dict[str, Any]:
    """A match in DICOM JSON, by tag."""
    return {name.removeprefix("t"): {"Value": value} for name, value in values.items()}


SERIES = row(t0020000E=["1.2.3"], t00201209=[300])


@contextmanager
def by_web(*answers: Answer) -> Iterator[DicomWebArchive]:
    with server(*answers) as running:
        yield DicomWebArchive(DicomWebDestination("web", running.url))


def test_web_counts() -> None:
    with by_web(Answer(200, [SERIES]), Answer(200, []), Answer(404, [])) as there:
        assert [there.count("1.2", "1.2.3") for _ in range(3)] == [300, 0, 0]
    uncounted, images = row(t0020000E=["1.2.3"]), [row(t00080018=[f"1.2.3.{n}"]) for n in range(3)]
    with by_web(Answer(200, [uncounted]), Answer(200, images)) as there:
        assert there.count("1.2", "1.2.3") == 3


def test_web_studies() -> None:
    found = row(
        t0020000D=["1.2"],
        t00080020=["20260101"],
        t00080050=["A1"],
        t00081030=["CHEST"],
        t00080061=["CT", "SR"],
        t00080054=["PACS"],
        t00201208=[300],
    )
    with by_web(
        Answer(200, [found, {}, row(t0020000D=[])]), Answer(200, [row(t00080060=["CT"], t0020000E=["1"])])
    ) as there:
        assert there.studies(WANTED) == [FOUND]
        assert there.modalities("1.2") == {"CT"}


@pytest.mark.parametrize(("status", "kind"), [(503, TRANSIENT), (401, PERMANENT), (400, PERMANENT)])
def test_web_refuses(status: int, kind: OutcomeKind) -> None:
    with by_web(Answer(status, [])) as there, pytest.raises(ArchiveError) as error:
        there.count("1.2", "1.2.3")
    assert error.value.kind is kind


def test_the_settings_choose_who_is_asked() -> None:
    destinations = [
        {"name": "pacs", "kind": "dicom", "host": "10.0.0.9", "port": 104, "ae_title": "PACS"},
        {"name": "web", "kind": "dicomweb", "url": "https://pacs.example/dicom-web"},
    ]
    kinds = []
    for name in ("pacs", "web", ""):
        raw = {"destinations": destinations, "archive": {"destination": name}}
        kinds.append(type(open_archive(parse_settings(raw, base=Path()), 5.0)))
    assert kinds == [DimseArchive, DicomWebArchive, type(None)]
