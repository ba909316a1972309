"""Odd input ends analysed or in a named state with a reason and a report, never in silence."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SegmentationStorage,
)
from sqlalchemy import select

from inference.phantom import Phantom
from pacs_node.config import DicomDestination
from pacs_node.db import Job, Series, Study
from pacs_node.dimse import send_files
from pacs_node.peer import ReceivedObject, ReceivingPeer
from pacs_node.states import JobState
from tests.acceptance.node import Node, running, small_phantom
from tests.ct_factory import make_ct_series, make_enhanced_ct, write_series

pytestmark = pytest.mark.slow

Make = Callable[[Phantom, str], Sequence[Dataset]]


def chest(phantom: Phantom, seed: str, **options: object) -> list[Dataset]:
    volume = phantom.volume
    slices, rows, _ = volume.array.shape
    dz, dy, dx = volume.spacing_mm
    return make_ct_series(
        slices,
        seed=seed,
        matrix=rows,
        hu=volume.array.astype("int16"),
        pixel_spacing_mm=(dy, dx),
        spacing_mm=dz,
        **options,  # type: ignore[arg-type] # options of the factory
    )


def encoded(transfer_syntax: str) -> Make:
    return lambda phantom, seed: chest(phantom, seed, transfer_syntax=transfer_syntax)


def conflicting(phantom: Phantom, seed: str) -> list[Dataset]:
    series = chest(phantom, seed)
    other = deepcopy(series[10])
    other.PixelData = series[11].PixelData
    return [*series, other]


REFUSED: dict[str, tuple[str, Make]] = {
    "localizer": ("LOCALIZER", lambda p, s: chest(p, s, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))),
    "five slices": ("TOO_FEW_SLICES", lambda _, s: make_ct_series(5, seed=s)),
    "MR": ("NOT_CT", lambda _, s: make_ct_series(seed=s, modality="MR", sop_class_uid=MRImageStorage)),
    "8 mm": ("TOO_THICK", lambda _, s: make_ct_series(60, seed=s, spacing_mm=8.0, thickness_mm=8.0)),
    "gap": ("GAP", lambda p, s: chest(p, s, drop=[30, 31])),
    "duplicate positions": ("DUPLICATE", lambda p, s: chest(p, s, duplicates=[30])),
    "tilt": ("TILT", lambda p, s: chest(p, s, tilt_degrees=12.0)),
    "two contents under one UID": ("CONFLICT", conflicting),
    "head": ("NOT_CHEST", lambda p, s: chest(p, s, body_part="HEAD")),
}
ANALYSED: dict[str, Make] = {
    "RLE": encoded(RLELossless),
    "JPEG 2000": encoded(JPEG2000Lossless),
    "JPEG-LS": encoded(JPEGLSLossless),
    "deflated": encoded(DeflatedExplicitVRLittleEndian),
    "enhanced multi-frame": lambda p, s: [make_enhanced_ct(chest(p, s))],
    "legacy enhanced multi-frame": lambda p, s: [make_enhanced_ct(chest(p, s), legacy=True)],
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceivingPeer]:
    with ReceivingPeer(tmp_path_factory.mktemp("peer")) as receiving:
        yield receiving


@pytest.fixture(scope="module")
def curious(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceivingPeer]:
    """A peer that wants to know of every study why it was not analysed."""
    with ReceivingPeer(tmp_path_factory.mktemp("curious")) as receiving:
        yield receiving


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, peer: ReceivingPeer, curious: ReceivingPeer
) -> Iterator[Node]:
    where: dict[str, Any] = {"host": "127.0.0.1", "ae_title": "PEER"}
    destinations = [
        DicomDestination(name="pacs", port=peer.port, **where),
        DicomDestination(name="curious", port=curious.port, not_analysed="all", **where),
    ]
    yield from running(Node(tmp_path_factory.mktemp("node"), destinations, profile="classical"))


@pytest.fixture(scope="module")
def studies(node: Node, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Case -> study UID, after all of them went through one node."""
    phantom = small_phantom(6)
    cases: dict[str, Make] = {name: make for name, (_, make) in REFUSED.items()} | ANALYSED
    sent = {}
    for name, make in cases.items():
        datasets = make(phantom, name)
        files = write_series(datasets, tmp_path_factory.mktemp("case"))
        outcomes = send_files("127.0.0.1", node.port, "CTNODE", "STORESCU", files)
        assert all(outcome.kind.stored for outcome in outcomes), name
        sent[name] = str(datasets[0].StudyInstanceUID)
    node.wait_finished(len(cases), 400)
    return sent


def jobs(node: Node, study_uid: str) -> list[Job]:
    query = (
        select(Job)
        .join(Series, Job.series_id == Series.id)
        .join(Study, Series.study_id == Study.id)
        .where(Study.study_uid == study_uid)
    )
    found = node.ask(lambda session: session.scalars(query).all())
    assert isinstance(found, list)
    return found


def received(peer: ReceivingPeer, study_uid: str) -> list[ReceivedObject]:
    return [item for item in peer.objects if item.study_uid == study_uid]


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason_and_a_report(
    case: str, studies: dict[str, str], node: Node, peer: ReceivingPeer, curious: ReceivingPeer
) -> None:
    code, _ = REFUSED[case]
    (job,) = jobs(node, studies[case])
    assert (job.state, job.outcome, job.reason_code) == (JobState.SUCCEEDED, "not_analysed", code)
    assert job.reason
    (report,) = received(curious, studies[case])
    # a PACS that routes everything gets no word on lung nodules into a study without CT
    assert len(received(peer, studies[case])) == (case != "MR")
    text = "\n".join(str(e.value) for e in dcmread(report.path).iterall() if e.keyword == "TextValue")
    assert report.sop_class_uid == Comprehensive3DSRStorage
    assert f"was not analysed ({code})" in text
    assert job.reason in text


def test_what_was_kept_here_is_sent_by_an_operators_word(
    studies: dict[str, str], node: Node, peer: ReceivingPeer, curious: ReceivingPeer
) -> None:
    study = studies["MR"]
    assert received(peer, study) == []
    subprocess.run(node.command("send", study, "--to", "pacs"), check=True, cwd=node.directory)
    node.until(lambda: received(peer, study), "the report arrives", 30)
    (here,), (there,) = received(peer, study), received(curious, study)
    assert here.path.read_bytes() == there.path.read_bytes()


@pytest.mark.parametrize("case", ANALYSED)
def test_analysed_whatever_the_encoding(
    case: str, studies: dict[str, str], node: Node, peer: ReceivingPeer
) -> None:
    (job,) = jobs(node, studies[case])
    assert (job.state, job.outcome) == (JobState.SUCCEEDED, "analysed")
    objects = received(peer, studies[case])
    assert sorted(item.sop_class_uid for item in objects) == sorted(
        [SegmentationStorage, Comprehensive3DSRStorage]
    )
    seg = next(item.read() for item in objects if item.sop_class_uid == SegmentationStorage)
    plain = next(
        item.read() for item in received(peer, studies["RLE"]) if item.sop_class_uid == SegmentationStorage
    )
    assert seg.NumberOfFrames == plain.NumberOfFrames
    assert seg.PixelData == plain.PixelData


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore:Invalid value for VR:UserWarning:pydicom")
def test_every_odd_file_ends_in_a_named_state(
    node: Node, curious: ReceivingPeer, studies: dict[str, str], shared_data: Path
) -> None:
    sent = set()
    for path in sorted((shared_data / "dicom").rglob("*.dcm")):
        (outcome,) = send_files("127.0.0.1", node.port, "CTNODE", "STORESCU", [path])
        if outcome.kind.stored:
            sent.add(str(dcmread(path, specific_tags=["StudyInstanceUID"]).StudyInstanceUID))
        else:
            # refused with a status or without an accepted context: the sender knows
            assert outcome.detail
    assert len(sent) > 10
    node.wait_finished(len(studies) + len(sent), 200)
    for study_uid in sent:
        for job in jobs(node, study_uid):
            assert job.state is JobState.SUCCEEDED
            assert job.outcome == "not_analysed"
            assert job.reason_code
        assert received(curious, study_uid)


def test_enhanced_ct_is_what_the_factory_makes() -> None:
    enhanced = make_enhanced_ct(make_ct_series())
    assert enhanced.SOPClassUID == EnhancedCTImageStorage
