"""The main job against real peers: DCMTK sends, the node analyses, Orthanc receives."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, SegmentationStorage

from inference.phantom import write_phantom
from inference.registry import DEFAULT_PROFILE
from pacs_node.config import DicomDestination, DicomWebDestination, load_settings
from tests import peers
from tests.acceptance.node import Node, running, small_phantom
from tests.sockets import listening

pytestmark = [pytest.mark.peer("storescu", "orthanc", "orthanc-dicomweb", "dciodvfy"), pytest.mark.slow]

REAL_SERIES = ("LIDC-IDRI-0001", "C3N-00247", "Lung_Dx-A0001")


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[peers.Orthanc]:
    directory = tmp_path / "orthanc"
    directory.mkdir()
    with peers.orthanc(directory) as orthanc:
        yield orthanc


@pytest.fixture
def node(request: pytest.FixtureRequest, tmp_path: Path, pacs: peers.Orthanc) -> Iterator[Node]:
    """A node with the default profile that sends by C-STORE, or as the test's parameter says."""
    way, profile = getattr(request, "param", ("c-store", DEFAULT_PROFILE))
    if way == "c-store":
        destination: DicomDestination | DicomWebDestination = DicomDestination(
            name="pacs", host="127.0.0.1", port=pacs.dicom_port, ae_title=pacs.ae_title
        )
    else:
        destination = DicomWebDestination(kind="dicomweb", name="pacs", url=pacs.dicomweb_url)
    directory = tmp_path / "node"
    directory.mkdir()
    yield from running(Node(directory, [destination], profile=profile))


@pytest.fixture(scope="module")
def phantom_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_phantom(small_phantom(1), tmp_path_factory.mktemp("phantom"))


def results(pacs: peers.Orthanc, study_uid: str) -> list[dict[str, str]]:
    return sorted(pacs.instances(study_uid), key=lambda item: item["SOPInstanceUID"])


def study_uid(files: list[Path]) -> str:
    return str(dcmread(files[0], stop_before_pixels=True).StudyInstanceUID)


def send(node: Node, *paths: Path) -> None:
    answer = peers.storescu(node.port, *paths, called_ae="CTNODE")
    assert answer.returncode == 0, answer.stderr


def check_one_seg_and_one_sr(pacs: peers.Orthanc, study: str) -> None:
    classes = []
    for item in results(pacs, study):
        content = pacs.file(item["OrthancID"])
        classes.append(dcmread(BytesIO(content), stop_before_pixels=True).SOPClassUID)
        check = subprocess.run(["dciodvfy", "-"], input=content, capture_output=True, check=False)
        errors = [line for line in check.stderr.decode("latin-1").splitlines() if line.startswith("Error")]
        assert not errors
    assert sorted(classes) == sorted([SegmentationStorage, Comprehensive3DSRStorage])


@pytest.mark.parametrize(
    "node",
    [("c-store", DEFAULT_PROFILE), ("stow-rs", "classical")],
    indirect=True,
    ids=["c-store", "stow-rs"],
)
def test_phantom_comes_back_once_whatever_the_order(
    node: Node, pacs: peers.Orthanc, phantom_files: list[Path], tmp_path: Path
) -> None:
    shuffled = phantom_files.copy()
    random.Random(3).shuffle(shuffled)
    send(node, *shuffled[: len(shuffled) // 2])
    send(node, *shuffled[len(shuffled) // 3 :])
    node.wait_finished(1)
    check_one_seg_and_one_sr(pacs, study_uid(phantom_files))
    first = results(pacs, study_uid(phantom_files))
    assert node.process is not None
    # all of its processes have worked by now; with the defaults nothing is reachable from elsewhere
    assert listening(node.process.pid) == {
        ("tcp", "127.0.0.1", node.port),
        ("tcp", "127.0.0.1", load_settings(node.config).web.port),
    }

    send(node, *phantom_files)
    node.until(lambda: node.process is not None, "still running", 1)
    node.wait_finished(1)
    assert results(pacs, study_uid(phantom_files)) == first


@pytest.mark.parametrize("node", [("c-store", "classical")], indirect=True, ids=["c-store"])
def test_two_studies_at_once_do_not_mix(
    node: Node, pacs: peers.Orthanc, phantom_files: list[Path], tmp_path: Path
) -> None:
    other = write_phantom(small_phantom(2), tmp_path / "other", patient_id="PHANTOM-0002")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda files: send(node, *files), [phantom_files, other]))
    node.wait_finished(2)
    for files in (phantom_files, other):
        check_one_seg_and_one_sr(pacs, study_uid(files))
        source = dcmread(files[0], stop_before_pixels=True)
        series = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in files}
        for item in results(pacs, study_uid(files)):
            result = dcmread(BytesIO(pacs.file(item["OrthancID"])))
            assert result.PatientID == source.PatientID
            referenced = {
                str(image.ReferencedSOPInstanceUID)
                for element in result.iterall()
                if element.keyword in {"SourceImageSequence", "ReferencedInstanceSequence"}
                for image in element.value
            }
            assert referenced <= series


@pytest.mark.shared_data
def test_real_series_come_back(node: Node, pacs: peers.Orthanc, real_ct: Callable[[str], Path]) -> None:
    studies = []
    for name in REAL_SERIES:
        files = sorted(real_ct(name).rglob("*.dcm"))
        send(node, *files)
        studies.append(study_uid(files))
    node.wait_finished(len(studies), 400)
    for study in studies:
        check_one_seg_and_one_sr(pacs, study)
