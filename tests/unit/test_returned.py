"""Edited SEG and reports that come back: recognised, read, and made into verdicts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import UID
from sqlalchemy import event, select

from dicom_sr.part10 import save
from dicom_sr.report import build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.summary import result_json
from inference import geometry
from inference.types import Finding, Volume
from inference.uids import derived_uid
from pacs_node import jobs
from pacs_node.db import Artifact, AuditEvent, Database, Job, sqlite_url
from pacs_node.db_feedback import ReturnedObject, Verdict
from pacs_node.jobs import NewArtifact
from pacs_node.reader import ConfinedReader, OpenReader
from pacs_node.reception import Reception
from pacs_node.spool import Spool
from pacs_node.states import SeriesState
from tests.conftest import find_peer
from tests.finding_factory import make_context, make_findings, make_result, make_volume, without_pixels
from tests.small_node import SMALL_LIMITS, SmallNode, TestClock, chest

OTHER_MAKER = "Viewer Company"


@dataclass
class Case:
    """A node that has analysed a series, and what it sent."""

    node: SmallNode
    volume: Volume
    findings: tuple[Finding, ...]
    headers: Sequence[Dataset]
    seg: Dataset
    sr: Dataset

    def edited_sr(self, findings: tuple[Finding, ...], name: str = "edited", **attributes: Any) -> Dataset:
        """The report on other findings, as a viewer saves it: another document that names its predecessor."""
        context = make_context(uid_salt=name)
        seg = build_seg(self.volume, findings, self.headers, context)
        sr = build_report(
            self.volume, make_result(self.volume, findings, context), seg, self.headers, context
        )
        sr.Manufacturer = OTHER_MAKER
        sr.PredecessorDocumentsSequence = [_naming(self.sr)]
        for keyword, value in attributes.items():
            setattr(sr, keyword, value)
        return sr

    def edited_seg(self, findings: tuple[Finding, ...], name: str = "edited", **options: Any) -> Dataset:
        return build_seg(self.volume, findings, self.headers, make_context(uid_salt=name), **options)

    def receive(self, *datasets: Dataset) -> None:
        for ds in datasets:
            assert self.node.receive(ds) == [Reception.NEW]
        self.node.quiet()

    def verdicts(self) -> list[Verdict]:
        with self.node.database.read() as session:
            return list(session.execute(select(Verdict).order_by(Verdict.id)).scalars())

    def said(self) -> list[tuple[str, str]]:
        """Kind of each verdict by the name of its nodule."""
        names = {finding.tracking_uid: finding.tracking_id for finding in self.findings}
        return [(names.get(row.tracking_uid, "new"), row.kind) for row in self.verdicts()]

    def looked_at(self) -> list[ReturnedObject]:
        with self.node.database.read() as session:
            return list(session.execute(select(ReturnedObject)).scalars())


def _naming(document: Dataset) -> Dataset:
    reference, series, study = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPClassUID = document.SOPClassUID
    reference.ReferencedSOPInstanceUID = document.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = document.SeriesInstanceUID, [reference]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = document.StudyInstanceUID, [series]
    return study


@dataclass(frozen=True)
class Made:
    """What one analysis gives; made once, as it takes a second."""

    images: Sequence[Dataset]
    headers: Sequence[Dataset]
    volume: Volume
    findings: tuple[Finding, ...]
    seg: Dataset
    sr: Dataset
    summary: str


@pytest.fixture(scope="module")
def made() -> Made:
    images = chest(matrix=32, pixel_spacing_mm=(10.0, 10.0))
    volume, headers, context = make_volume(images), without_pixels(images), make_context()
    findings = tuple(replace(one, tracking_id=f"N{n}") for n, one in enumerate(_findings(volume), start=1))
    result = make_result(volume, findings, context)
    seg = build_seg(volume, findings, headers, context)
    sr = build_report(volume, result, seg, headers, context)
    summary = json.dumps(result_json(volume, result, headers, context))
    return Made(images, headers, volume, findings, seg, sr, summary)


@pytest.fixture(scope="module")
def analysed_node(
    made: Made, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, datetime]]:
    """The storage of a node that has analysed the series, and the time there; each test has a copy."""
    directory = tmp_path_factory.mktemp("analysed") / "storage"
    directory.mkdir()
    shutil.copyfile(migrated, directory / "node.db")
    with pytest.MonkeyPatch.context() as patch:
        node = _node(directory, patch)
        node.receive(*made.images)
        node.settle()
        job, token = node.claim()
        folder = directory / "results" / f"{job.id:08d}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(made.summary)
        name = str(folder.relative_to(directory) / "result.json")
        artifacts = [
            _artifact(node, "seg", made.seg, folder),
            _artifact(node, "sr", made.sr, folder),
            NewArtifact("json", name, sha256(made.summary.encode()).hexdigest()),
        ]
        node.finish(job, token, artifacts)
        node.database.dispose()
        yield directory, node.clock.now


def _node(directory: Path, patch: pytest.MonkeyPatch) -> SmallNode:
    patch.setattr(os, "fsync", lambda _descriptor: None)
    for name, value in SMALL_LIMITS.items():
        patch.setattr(geometry, name, value)
    database = Database(sqlite_url(directory))
    event.listen(database.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF"))
    return SmallNode(database, Spool(directory, reserve_bytes=1), TestClock())


@pytest.fixture
def case(
    analysed_node: tuple[Path, datetime], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    directory, now = analysed_node
    shutil.copytree(directory, tmp_path / "storage")
    node = _node(tmp_path / "storage", monkeypatch)
    node.clock.forward(seconds=(now - node.clock.now).total_seconds())
    yield Case(node, made.volume, made.findings, made.headers, made.seg, made.sr)
    node.database.dispose()


def _findings(volume: Volume) -> tuple[Finding, ...]:
    return make_findings(volume, 3, first_slice=4)


def _artifact(node: SmallNode, kind: str, ds: Dataset, folder: Path) -> NewArtifact:
    path = folder / f"{kind}.dcm"
    return NewArtifact(
        kind=kind,
        path=str(path.relative_to(node.spool.directory)),
        sha256=save(ds, path),
        sop_instance_uid=str(ds.SOPInstanceUID),
        sop_class_uid=str(ds.SOPClassUID),
        series_uid=str(ds.SeriesInstanceUID),
    )


def _grown(finding: Finding) -> Finding:
    """A mask of one more voxel."""
    mask = finding.mask.copy()
    mask[0, 0, 0] = True
    return replace(finding, mask=mask)


def _longer(finding: Finding, by: float = 2.0) -> Finding:
    measured = finding.measurements
    return replace(finding, measurements=replace(measured, long_axis_mm=measured.long_axis_mm + by))


def test_a_signed_report_accepts_edits_rejects_and_adds(case: Case) -> None:
    first, second, third = case.findings
    new = replace(
        third, tracking_uid=derived_uid("a nodule of the reader"), tracking_id="R1", origin=(4, 20, 10)
    )
    observer = Dataset()
    observer.VerifyingObserverName = "Reader^Rita"
    observer.VerificationDateTime = "20260301130000"
    sr = case.edited_sr(
        (first, _longer(second), new), VerificationFlag="VERIFIED", VerifyingObserverSequence=[observer]
    )
    case.receive(sr)
    assert case.said() == [("N1", "accepted"), ("N2", "edited"), ("N3", "rejected"), ("new", "missed")]
    accepted, edited, rejected, missed = case.verdicts()
    assert (accepted.source, accepted.actor, accepted.observer) == ("sr", "ae:PACS", "Reader^Rita")
    assert accepted.sop_instance_uid == sr.SOPInstanceUID
    assert edited.changes == {"long_axis_mm": 10.0}
    assert rejected.reason == "not_stated"
    assert (missed.text, missed.tracking_uid) == ("R1", new.tracking_uid)
    assert missed.changes["image"] == case.volume.frames[new.key_slice].sop_instance_uid
    with case.node.database.read() as session:
        events = session.execute(select(AuditEvent).where(AuditEvent.event == "verdict")).scalars().all()
    assert [event.actor for event in events] == ["ae:PACS"] * 4
    assert "Rita" not in json.dumps([event.objects for event in events])


def test_it_is_neither_analysed_nor_answered_nor_delivered(case: Case) -> None:
    before = len(case.node.all_jobs()), len(case.node.all_deliveries())
    sr, seg = case.edited_sr(case.findings[:2]), case.edited_seg(case.findings[:2])
    case.receive(sr, seg)
    assert (len(case.node.all_jobs()), len(case.node.all_deliveries())) == before
    states = case.node.states()
    assert states[str(sr.SeriesInstanceUID)][0] is SeriesState.INELIGIBLE
    assert states[case.volume.series_uid][0] is SeriesState.QUEUED


def test_after_a_refusal_an_edited_report_gets_no_answer_either(case: Case) -> None:
    """The images are gone and nothing suitable is left in the study: still no report that says why not."""
    with case.node.database.write() as session:
        job = session.execute(select(Job)).scalar_one()
        job.series.state, job.series.rank = SeriesState.INELIGIBLE, None
        job.series.reason_code, job.series.reason = "NOT_CHEST", "It shows no lungs."
        for instance in job.series.instances:
            instance.path = None
    case.receive(case.edited_sr(case.findings[:2]))
    assert [job.kind for job in case.node.all_jobs()] == [jobs.ANALYSIS]


def test_again_and_after_a_restart_nothing_is_said_twice(case: Case) -> None:
    sr = case.edited_sr((case.findings[0], _longer(case.findings[1])), VerificationFlag="VERIFIED")
    case.receive(sr)
    said = case.said()
    assert case.node.receive(sr) == [Reception.DUPLICATE]
    case.node.restart_intake()
    case.node.quiet()
    copy = case.edited_sr((case.findings[0], _longer(case.findings[1])), "copy", VerificationFlag="VERIFIED")
    case.receive(copy)
    assert case.said() == said
    assert [row.n_verdicts for row in case.looked_at()] == [3, 0]


def test_what_is_left_out_is_rejected_only_by_a_whole_successor(case: Case) -> None:
    part = case.edited_sr(case.findings[:1], "part", CompletionFlag="PARTIAL")
    alone = case.edited_sr(case.findings[:1], "alone")
    del alone.PredecessorDocumentsSequence
    case.receive(part, alone)
    assert case.said() == []
    assert all(row.job_id is not None for row in case.looked_at())


def test_a_signed_report_without_any_finding_rejects_all(case: Case) -> None:
    stranger = replace(case.findings[0], tracking_uid=derived_uid("other"), tracking_id="R1")
    case.receive(case.edited_sr((stranger,)))
    said = [("N1", "rejected"), ("N2", "rejected"), ("N3", "rejected"), ("new", "missed")]
    assert sorted(case.said()) == said


def test_a_later_result_of_a_node_like_this_one_says_nothing(case: Case) -> None:
    """After a restore the node may not know a result of its own that names the one it knows."""
    later = replace(case.findings[0], tracking_uid=derived_uid("later result"))
    sr = case.edited_sr((later,), Manufacturer=str(case.sr.Manufacturer))
    case.receive(sr)
    assert case.said() == []
    assert [row.job_id for row in case.looked_at()] == [None]


def test_an_edited_mask_is_measured(case: Case) -> None:
    first, second, third = case.findings
    case.receive(case.edited_seg((first, _grown(second), third)))
    (verdict,) = case.verdicts()
    n = int(second.mask.sum())
    assert (verdict.tracking_uid, verdict.kind, verdict.source) == (second.tracking_uid, "edited", "seg")
    assert verdict.changes == {
        "dice": pytest.approx(2 * n / (2 * n + 1), abs=1e-4),
        "volume_change": pytest.approx(1 / n, abs=1e-4),
    }


@pytest.mark.parametrize("form", ["moved frames", "all frames", "label map", "shuffled frames"])
def test_masks_are_compared_where_they_lie(case: Case, form: str) -> None:
    """A nodule one slice higher has the same voxel count and another place."""
    first, *rest = case.findings
    moved = (replace(first, origin=(first.origin[0] + 1, *first.origin[1:])), *rest)
    forms: dict[str, dict[str, Any]] = {
        "all frames": {"omit_empty_frames": False},
        "label map": {"encoding": SegEncoding.LABELMAP},
    }
    options = forms.get(form, {})
    seg = case.edited_seg(moved, **options)
    if form == "shuffled frames":
        seg = _shuffled(seg)
    case.receive(seg)
    (verdict,) = case.verdicts()
    overlap = int((first.mask[1:] & first.mask[:-1]).sum())
    assert verdict.tracking_uid == first.tracking_uid
    assert verdict.changes == {
        "dice": pytest.approx(overlap / int(first.mask.sum()), abs=1e-4),
        "volume_change": 0.0,
    }


def _shuffled(seg: Dataset) -> Dataset:
    """Its frames in the opposite order."""
    out = deepcopy(seg)
    frames = seg.pixel_array[::-1]
    out.PixelData = np.packbits(frames.astype(bool), bitorder="little").tobytes()
    out.PixelData += b"\0" * (len(out.PixelData) % 2)
    out.PerFrameFunctionalGroupsSequence = list(seg.PerFrameFunctionalGroupsSequence)[::-1]
    return out


def test_a_segment_that_is_new_is_a_missed_nodule(case: Case) -> None:
    new = replace(case.findings[0], tracking_uid=derived_uid("of the reader"), origin=(4, 20, 20))
    seg = case.edited_seg((*case.findings, new))
    case.receive(seg)
    assert case.said() == [("new", "missed")]


def test_a_segment_left_out_is_rejected_where_the_seg_names_ours(case: Case) -> None:
    case.receive(case.edited_seg(case.findings[:2], "silent"))
    assert case.said() == []
    named = case.edited_seg(case.findings[:2], "named")
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
        case.seg.SOPClassUID,
        case.seg.SOPInstanceUID,
    )
    named.ReferencedInstanceSequence = [reference]
    case.receive(named)
    assert case.said() == [("N3", "rejected")]


def test_a_mask_on_another_grid_is_not_compared(case: Case) -> None:
    seg = case.edited_seg((_grown(case.findings[0]), *case.findings[1:]))
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [5.0, 5.0]
    case.receive(seg)
    assert case.said() == []
    assert [row.status for row in case.looked_at()] == ["The masks lie on another grid than ours."]


def test_a_corrected_outline_stays_an_edit_when_the_report_is_signed(case: Case) -> None:
    first, second, third = case.findings
    case.receive(case.edited_seg((_grown(first), second, third)))
    case.receive(case.edited_sr(case.findings, VerificationFlag="VERIFIED"))
    assert case.said() == [("N1", "edited"), ("N2", "accepted"), ("N3", "accepted")]


def _of_another_study(ds: Dataset) -> None:
    ds.StudyInstanceUID = derived_uid("another study")


def _nothing_of_ours(ds: Dataset) -> None:
    for element in ds.iterall():
        if element.keyword == "TrackingUID" or (element.keyword == "UID" and element.value):
            element.value = derived_uid("not ours", str(element.value))


@pytest.mark.parametrize("change", [_of_another_study, _nothing_of_ours])
@pytest.mark.parametrize("kind", ["sr", "seg"])
def test_objects_of_others_are_left_alone(case: Case, change: Callable[[Dataset], None], kind: str) -> None:
    grown = (_grown(case.findings[0]), *case.findings[1:])
    ds = case.edited_sr(grown) if kind == "sr" else case.edited_seg(grown)
    if kind == "sr":
        del ds.PredecessorDocumentsSequence
    change(ds)
    case.receive(ds)
    assert case.said() == []
    assert [row.job_id for row in case.looked_at()] == [None]


def test_our_own_object_that_a_peer_exports_again_says_nothing(case: Case) -> None:
    """As Orthanc does it when it is told to modify: new UIDs for series and object, all else as it was."""
    copies = []
    for ds in (case.seg, case.sr):
        copy = deepcopy(ds)
        copy.SOPInstanceUID = UID(derived_uid(ds.SOPInstanceUID, "m"))
        copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
        copy.SeriesInstanceUID = derived_uid(ds.SeriesInstanceUID, "m")
        copies.append(copy)
    case.receive(*copies)
    assert case.said() == []
    assert [row.job_id is not None for row in case.looked_at()] == [True, True]


def test_the_very_same_object_is_no_news(case: Case) -> None:
    assert case.node.receive(case.seg, case.sr) == [Reception.OWN_RESULT] * 2
    case.node.quiet()
    assert (case.said(), case.looked_at()) == ([], [])


def test_without_our_own_object_nothing_can_be_told(case: Case) -> None:
    with case.node.database.write() as session:
        for artifact in session.execute(select(Artifact).where(Artifact.kind != "json")).scalars():
            artifact.path = None
    case.receive(case.edited_seg((_grown(case.findings[0]), *case.findings[1:])))
    assert case.said() == []
    assert "was removed" in case.looked_at()[0].status


def test_a_damaged_object_is_said_to_be_one(case: Case) -> None:
    seg = case.edited_seg((_grown(case.findings[0]), *case.findings[1:]))
    seg.PixelData = seg.PixelData[: len(seg.PixelData) // 8]
    case.receive(seg)
    assert case.said() == []
    assert "can't be read" in case.looked_at()[0].status


def test_the_child_says_the_same(case: Case, tmp_path: Path) -> None:
    """Real files go through a child without network and without the right to write."""
    ours, theirs, report = tmp_path / "ours.dcm", tmp_path / "theirs.dcm", tmp_path / "sr.dcm"
    save(case.seg, ours)
    save(case.edited_seg((_grown(case.findings[0]), *case.findings[1:])), theirs)
    save(case.edited_sr(case.findings), report)
    confined, opened = ConfinedReader(), OpenReader()
    try:
        assert confined.masks(ours, theirs) == opened.masks(ours, theirs) != {}
        for path in (theirs, report):
            assert confined.returned(path) == opened.returned(path)
    finally:
        confined.close()


@pytest.mark.peer("dsr2xml")
@pytest.mark.peer("xml2dsr")
@pytest.mark.parametrize("edited", [False, True])
def test_a_report_that_dcmtk_has_written_anew(case: Case, tmp_path: Path, edited: bool) -> None:
    """Through XML and back, as an editor of reports does it; the long axis of one nodule is changed there."""
    ours, document, theirs = tmp_path / "ours.dcm", tmp_path / "sr.xml", tmp_path / "theirs.dcm"
    save(case.edited_sr(case.findings), ours)
    _run("dsr2xml", ours, document)
    if edited:
        text = document.read_text(encoding="utf-8")
        # of the first nodule: every nodule of these has the same long axis
        document.write_text(text.replace("<value>8.0</value>", "<value>11.5</value>", 1), encoding="utf-8")
        assert document.read_text(encoding="utf-8") != text
    _run("xml2dsr", document, theirs)
    case.receive(dcmread(theirs))
    assert case.said() == ([("N1", "edited")] if edited else [])
    assert [verdict.changes for verdict in case.verdicts()] == ([{"long_axis_mm": 11.5}] if edited else [])
    assert [row.job_id is not None for row in case.looked_at()] == [True]


def _run(program: str, *files: Path) -> None:
    path = find_peer(program)
    assert path is not None
    done = subprocess.run([str(path), *map(str, files)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
