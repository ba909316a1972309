"""A real Orthanc as the archive, by C-FIND and by QIDO-RS: counts, studies of some days, what it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import pytest
import requests

from pacs_node.archive import Archive, StudyFilter
from pacs_node.archive_dimse import DimseArchive
from pacs_node.archive_web import DicomWebArchive
from pacs_node.association import Peer
from pacs_node.dicomweb import DicomWebDestination
from tests.ct_factory import make_ct_series, write_series
from tests.peers import Orthanc, orthanc

pytestmark = pytest.mark.peer("orthanc", "orthanc-dicomweb")

CT = make_ct_series(5, matrix=8, seed="archive ct")
MR = make_ct_series(2, matrix=8, seed="archive mr", modality="MR", sop_class_uid="1.2.840.10008.5.1.4.1.1.4")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        directory = tmp_path_factory.mktemp("files")
        for name, series in (("ct", CT), ("mr", MR)):
            for path in write_series(series, Path(directory) / name):
                requests.post(
                    f"{running.url}/instances", data=path.read_bytes(), timeout=30
                ).raise_for_status()
        yield running


@pytest.fixture(params=["dimse", "web"])
def there(request: pytest.FixtureRequest, pacs: Orthanc) -> Archive:
    if request.param == "dimse":
        return DimseArchive("pacs", Peer("127.0.0.1", pacs.dicom_port, "ORTHANC", "CTNODE"), 60)
    return DicomWebArchive(DicomWebDestination("pacs", pacs.dicomweb_url))


def test_it_says_how_many_images_a_series_has(there: Archive) -> None:
    for series in (CT, MR):
        assert there.count(str(series[0].StudyInstanceUID), str(series[0].SeriesInstanceUID)) == len(series)
    assert there.count(str(CT[0].StudyInstanceUID), "1.2.3") == 0
    assert there.count("1.2.3", str(CT[0].SeriesInstanceUID)) == 0


def test_it_says_which_studies_of_some_days_it_has(there: Archive) -> None:
    day = datetime.strptime(str(CT[0].StudyDate), "%Y%m%d").date()  # noqa: DTZ007 - a date has no zone
    wanted = StudyFilter(day, day, "CT")
    (study,) = [found for found in there.studies(wanted) if wanted.takes(found)]
    assert (study.study_uid, study.study_date) == (str(CT[0].StudyInstanceUID), str(CT[0].StudyDate))
    assert there.modalities(study.study_uid) == {"CT"}
    assert study.n_instances in {5, None}
    before = StudyFilter(date(1990, 1, 1), date(1990, 1, 2), "CT")
    assert there.studies(before) == []
