"""The main job against real peers: DCMTK sends, the node analyses, Orthanc receives."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage
from sqlalchemy import func, select

from inference.phantom import write_phantom
from inference.registry import DEFAULT_PROFILE
from pacs_node.config import DicomDestination, DicomWebDestination, load_settings
from pacs_node.db import Study
from tests import peers
from tests.acceptance.node import Node, running, small_phantom
from tests.sockets import listening

pytestmark = [pytest.mark.peer("storescu", "orthanc", "orthanc-dicomweb", "dciodvfy"), pytest.mark.slow]


@dataclass(frozen=True)
class Site:
    """A node and the archive behind it."""

    node: Node
    pacs: peers.Orthanc

    def send(self, *paths: Path) -> None:
        answer = peers.storescu(self.node.port, *paths, called_ae="CTNODE")
        assert answer.returncode == 0, answer.stderr

    def wait_for_all(self, seconds: float = 180) -> None:
        """Until every study that was ever sent here is at an end."""
        found = self.node.ask(lambda session: session.scalar(select(func.count(Study.id))))
        assert isinstance(found, int)
        self.node.wait_finished(max(found, 1), seconds)

    def results(self, study_uid: str) -> list[dict[str, str]]:
        return sorted(self.pacs.instances(study_uid), key=lambda item: item["SOPInstanceUID"])


SiteOf = Callable[[str], Site]


@pytest.fixture(scope="module")
def site_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteOf]:
    """``site_of("c-store")`` has the default profile, ``site_of("stow-rs")`` is light; started once."""
    started: dict[str, Site] = {}
    with ExitStack() as stack:

        def start(way: str) -> Site:
            if way not in started:
                started[way] = stack.enter_context(site(way, tmp_path_factory.mktemp(way)))
            return started[way]

        yield start


@contextmanager
def site(way: str, directory: Path) -> Iterator[Site]:
    for name in ("orthanc", "node"):
        (directory / name).mkdir()
    with peers.orthanc(directory / "orthanc") as pacs:
        if way == "c-store":
            destination: DicomDestination | DicomWebDestination = DicomDestination(
                name="pacs", host="127.0.0.1", port=pacs.dicom_port, ae_title=pacs.ae_title
            )
        else:
            destination = DicomWebDestination(kind="dicomweb", name="pacs", url=pacs.dicomweb_url)
        profile = DEFAULT_PROFILE if way == "c-store" else "classical"
        for node in running(Node(directory / "node", [destination], profile=profile)):
            yield Site(node, pacs)


@pytest.fixture(scope="module")
def phantom_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(small_phantom(1), tmp_path_factory.mktemp("phantom"))


def study_uid(files: list[Path]) -> str:
    return str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def check_one_seg_and_one_sr(site: Site, study: str) -> None:
    classes = []
    for item in site.results(study):
        content = site.pacs.file(item["OrthancID"])
        classes.append(dcmread(BytesIO(content), stop_before_pixels=True).SOPClassUID)
        check = subprocess.run(["dciodvfy", "-"], input=content, capture_output=True, check=False)
        errors = [line for line in check.stderr.decode("latin-1").splitlines() if line.startswith("Error")]
        assert not errors
    assert sorted(classes) == sorted([SegmentationStorage, Comprehensive3DSRStorage])


@pytest.mark.parametrize("way", ["c-store", "stow-rs"])
def test_phantom_comes_back_once_whatever_the_order(
    way: str, site_of: SiteOf, phantom_files: list[Path]
) -> None:
    site = site_of(way)
    shuffled = phantom_files.copy()
    random.Random(3).shuffle(shuffled)
    site.send(*shuffled[: len(shuffled) // 2])
    site.send(*shuffled[len(shuffled) // 3 :])
    site.wait_for_all()
    check_one_seg_and_one_sr(site, study_uid(phantom_files))
    first = site.results(study_uid(phantom_files))
    node = site.node
    assert node.process is not None
    # all of its processes have worked by now; with the defaults nothing is reachable from elsewhere
    assert listening(node.process.pid) == {
        ("tcp", "127.0.0.1", node.port),
        ("tcp", "127.0.0.1", load_settings(node.config).web.port),
    }

    site.send(*phantom_files)
    site.wait_for_all()
    assert node.process.poll() is None
    assert site.results(study_uid(phantom_files)) == first


def test_two_studies_at_once_do_not_mix(site_of: SiteOf, tmp_path: Path) -> None:
    site = site_of("stow-rs")
    both = [
        write_phantom(small_phantom(seed), tmp_path / str(seed), patient_id=f"PHANTOM-000{seed}")
        for seed in (2, 3)
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda files: site.send(*files), both))
    site.wait_for_all()
    for files in both:
        check_one_seg_and_one_sr(site, study_uid(files))
        source = dcmread(files[0], stop_before_pixels=True)
        own = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
        own |= {item["SOPInstanceUID"] for item in site.results(study_uid(files))}
        for item in site.results(study_uid(files)):
            result = dcmread(BytesIO(site.pacs.file(item["OrthancID"])))
            assert result.PatientID == source.PatientID
            referenced = {
                str(element.value)
                for element in result.iterall()
                if element.keyword == "ReferencedSOPInstanceUID"
            }
            assert referenced
            assert referenced <= own


# what the networks make of the two others: test_stack.py, test_analyse.py
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("way", "names"), [("c-store", ["C3N-00247"]), ("stow-rs", ["LIDC-IDRI-0001", "Lung_Dx-A0001"])]
)
def test_real_series_come_back(
    way: str, names: list[str], site_of: SiteOf, real_ct: Callable[[str], Path]
) -> None:
    site = site_of(way)
    studies = []
    for name in names:
        files = sorted(real_ct(name).rglob("*.dcm"))
        site.send(*files)
        studies.append(study_uid(files))
    site.wait_for_all(400)
    for study in studies:
        check_one_seg_and_one_sr(site, study)
