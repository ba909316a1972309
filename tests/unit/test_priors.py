"""Earlier examinations: which are taken, from where, of whom, and what an archive may not do to a study."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from threading import Event as Signal
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import select

from inference.same_patient import Identity
from pacs_node import jobs, priors
from pacs_node.archive import ArchiveError
from pacs_node.config import (
    DicomDestination,
    PipelineSettings,
    Settings,
    StorageSettings,
    parse_settings,
)
from pacs_node.config_priors import PriorsSettings
from pacs_node.db import AuditEvent, Job
from pacs_node.destinations import OutcomeKind
from pacs_node.engines import InProcessEngine
from pacs_node.errors import AnalysisFailedError, ConfigurationError, OutOfSpaceError
from pacs_node.file_meta import file_head
from pacs_node.priors import StudyPriors
from pacs_node.priors_archive import FoundExamination, FoundSeries, Patience
from pacs_node.priors_store import PriorFolder, sweep
from pacs_node.reader import OpenReader
from pacs_node.request import CaseOutcome, CaseRequest
from pacs_node.states import JobState
from pacs_node.worker import Worker
from tests.prior_studies import NOW, PATIENT, TODAY, examination, look_in, scout
from tests.small_node import VERSION, SmallNode, encoded
from tests.unit.test_worker import run

pytestmark = pytest.mark.usefixtures("node")

LAST_YEAR = date(2019, 1, 1)
OFF = ArchiveError(OutcomeKind.TRANSIENT, "the receiver answered with HTTP 500")


@dataclass
class Shelf:
    """An archive in memory; `spoil` changes what it gives out for a series, or raises."""

    studies: Sequence[list[Dataset]] = ()
    spoil: Callable[[list[Dataset]], list[Dataset]] = lambda series: series
    listing: Exception | None = None
    description: str = "CT CHEST"
    name: str = "pacs"
    fetched: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def examinations(self, patient_id: str, first: date, last: date) -> list[FoundExamination]:
        self.asked.append(patient_id)
        assert first.year == 1900
        if self.listing is not None:
            raise self.listing
        # it heeds no filter: whatever it has
        return [
            FoundExamination(
                str(one.StudyInstanceUID),
                date.fromisoformat(f"{one.StudyDate[:4]}-{one.StudyDate[4:6]}-{one.StudyDate[6:]}"),
                replace(Identity.of(one), name=""),
                ("CT",),
                self.description,
            )
            for one in {str(series[0].StudyInstanceUID): series[0] for series in self.studies}.values()
        ]

    def series(self, study_uid: str) -> list[FoundSeries]:
        return [
            FoundSeries(str(series[0].SeriesInstanceUID), "CT", len(series))
            for series in self.studies
            if series[0].StudyInstanceUID == study_uid
        ]

    def images(self, study_uid: str, series_uid: str) -> list[str]:
        return [str(ds.SOPInstanceUID) for ds in self._of(series_uid)]

    def _of(self, series_uid: str) -> list[Dataset]:
        (series,) = (one for one in self.studies if one[0].SeriesInstanceUID == series_uid)
        return series

    def fetch(
        self, study_uid: str, series_uid: str, images: Sequence[str], folder: PriorFolder, patience: Patience
    ) -> list[Path]:
        self.fetched.append((series_uid, len(images)))
        series = self._of(series_uid)
        if len(images) == 1:
            return [write(folder, series[0])]
        return [write(folder, ds) for ds in self.spoil(series)]


def write(folder: PriorFolder, ds: Dataset) -> Path:
    data, syntax = encoded(ds)
    return folder.write(file_head(str(ds.SOPClassUID), str(ds.SOPInstanceUID), syntax), data)


def taken(shelf: Shelf, tmp_path: Path, **options: Any) -> tuple[list[str], list[str]]:
    """Study UIDs of what is taken, and the sentences."""
    gathered = look_in(shelf, tmp_path, **options)
    return [one.study_uid for one in gathered.priors], gathered.notes


def test_the_best_series_of_the_latest_earlier_study(tmp_path: Path) -> None:
    thick = examination(LAST_YEAR, "thick", spacing_mm=5.0)
    thin = examination(LAST_YEAR, "thin", 40, spacing_mm=1.0)
    for ds in thin:
        ds.StudyInstanceUID = thick[0].StudyInstanceUID
    shelf = Shelf(
        [examination(TODAY, "today"), examination(date(2018, 1, 1), "old"), thick, scout(thick), thin]
    )
    (prior,) = look_in(shelf, tmp_path).priors
    assert (prior.series_uid, prior.examined_on) == (thin[0].SeriesInstanceUID, LAST_YEAR)
    # of the localizer nothing is fetched: it has one image
    assert [count for _, count in shelf.fetched] == [1, 1, 40]
    assert len(prior.files) == len(list((tmp_path / "fetched").iterdir())) == 40


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PatientBirthDate": "19500102"}, "another birth date"),
        ({"IssuerOfPatientID": "ELSEWHERE"}, ""),
        ({"PatientBirthDate": "", "PatientName": "Other^One"}, "no birth date and no name in common"),
        ({"PatientBirthDate": "", "PatientName": "Synthetic^Phantom"}, ""),
    ],
)
def test_of_this_patient_only(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    shelf = Shelf([examination(LAST_YEAR, "x", **changes)])
    uids, notes = taken(shelf, tmp_path)
    assert [words in note for note in notes] == ([True] if words else [])
    assert len(uids) == (not words)


def test_one_image_of_somebody_else_is_enough(tmp_path: Path) -> None:
    """What the archive says, and the image that was looked at, are of the patient; one of the rest isn't."""
    series = examination(LAST_YEAR, "mixed")
    series[7].PatientBirthDate = "19770707"
    uids, notes = taken(Shelf([series]), tmp_path)
    assert (uids, notes) == ([], ["The CT of 2019-01-01 (pacs) was not compared: it has another birth date."])
    assert list((tmp_path / "fetched").iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda series: series[:-1], "only 11 of its 12 images came"),
        (lambda series: [*series[:5], *series[6:]], "only 11 of its 12 images came"),
        (lambda _series: examination(LAST_YEAR, "another"), "its images are of another study or series"),
        (lambda _series: [], "no readable image"),
    ],
)
def test_a_series_comes_whole_or_not(
    tmp_path: Path, spoil: Callable[[list[Dataset]], list[Dataset]], words: str
) -> None:
    uids, (note,) = taken(Shelf([examination(LAST_YEAR, "x")], spoil), tmp_path)
    assert uids == []
    assert words in note


def fails(_series: list[Dataset]) -> list[Dataset]:
    raise OFF


def full(_series: list[Dataset]) -> list[Dataset]:
    raise OutOfSpaceError("3 MB are free, and 100 MB must stay so")


@pytest.mark.parametrize(("spoil", "words"), [(fails, "HTTP 500"), (full, "must stay so")])
def test_an_archive_that_breaks_off_is_said(
    tmp_path: Path, spoil: Callable[[list[Dataset]], list[Dataset]], words: str
) -> None:
    uids, (note,) = taken(Shelf([examination(LAST_YEAR, "x")], spoil), tmp_path)
    assert (uids, words in note) == ([], True)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("CT ABDOMEN PELVIS", 0), ("CT CHEST ABDOMEN", 1), ("", 1), ("CT HEAD", 0), ("Thorax nativ", 1)],
)
def test_descriptions_that_speak_of_elsewhere(tmp_path: Path, words: str, wanted: int) -> None:
    shelf = Shelf([examination(LAST_YEAR, "x")], description=words)
    gathered = look_in(shelf, tmp_path)
    # there is an earlier CT all the same: nobody says that there is none
    assert (len(gathered.priors), gathered.no_prior) == (wanted, "")


def test_an_archive_that_has_none_says_so(tmp_path: Path) -> None:
    assert look_in(Shelf(), tmp_path).no_prior == "pacs"
    broken = look_in(Shelf(listing=OFF), tmp_path)
    assert broken.no_prior == ""
    assert "HTTP 500" in broken.notes[0]


def test_a_folder_has_its_limit_and_gives_back(tmp_path: Path) -> None:
    folder = PriorFolder(tmp_path / "a", max_bytes=10, reserve_bytes=0)
    first = folder.write(b"12", b"345")
    with pytest.raises(OutOfSpaceError):
        folder.write(b"123456")
    folder.discard([first, tmp_path / "elsewhere"])
    assert folder.write(b"1234567890").read_bytes() == b"1234567890"
    folder.remove()
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError):
        folder.write(b"1")
    with pytest.raises(OutOfSpaceError):
        PriorFolder(tmp_path / "b", max_bytes=10, reserve_bytes=1 << 60).write(b"1")


def test_what_killed_workers_left_is_swept(tmp_path: Path) -> None:
    for name in ("00000001-a", "00000002-b"):
        (tmp_path / "priors" / name).mkdir(parents=True)
    assert sweep(tmp_path, {"00000002-b"}) == 1
    assert [path.name for path in (tmp_path / "priors").iterdir()] == ["00000002-b"]


# in a node


@dataclass
class Cases:
    """Stands in for `run_case`: remembers requests, and whether the priors' files were there."""

    requests: list[CaseRequest] = field(default_factory=list)
    fails_with_priors: bool = False

    def __call__(self, request: CaseRequest) -> CaseOutcome:
        assert all(path.exists() for one in request.priors for path in one.files)
        self.requests.append(request)
        if request.priors and self.fails_with_priors:
            raise AnalysisFailedError("died")
        return run(request)


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Cases:
    made = Cases()
    monkeypatch.setattr("pacs_node.worker.run_case", made)
    return made


def node_settings(node: SmallNode, **chosen: Any) -> Settings:
    pacs = DicomDestination(name="pacs", host="127.0.0.1", port=104, ae_title="PACS")
    return Settings(
        storage=StorageSettings(directory=str(node.spool.directory), reserve_mb=1),
        pipeline=PipelineSettings(engine="in-process"),
        destinations=(pacs,),
        priors=PriorsSettings(**chosen),
    )


def analyse(node: SmallNode, shelf: Shelf | None = None, **chosen: Any) -> Worker:
    """Analyse what is queued, with a worker of its own."""
    worker = Worker(node.database, node_settings(node, **chosen), VERSION, InProcessEngine(), node.clock)
    worker._priors._source = shelf
    while worker.tick():
        pass
    return worker


def arrive(node: SmallNode, series: list[Dataset]) -> None:
    node.receive(*series)
    node.quiet()


def events(node: SmallNode) -> list[tuple[str, int, dict[str, Any]]]:
    with node.database.read() as session:
        rows = session.scalars(select(AuditEvent).order_by(AuditEvent.seq)).all()
    return [(row.event, row.outcome, row.objects) for row in rows if row.event.startswith("prior")]


def test_the_nodes_own_earlier_study(node: SmallNode, cases: Cases) -> None:
    last, today = examination(LAST_YEAR, "last"), examination(TODAY, "today")
    for series in (last, today):
        arrive(node, series)
        analyse(node)
    first, second = cases.requests
    assert (first.priors, first.uid_salt, first.notes) == ((), "", ())
    (prior,) = second.priors
    assert (prior.study_uid, prior.source) == (last[0].StudyInstanceUID, "this node")
    assert prior.input_digest == first.input_digest
    assert set(prior.files) == set(first.files)
    assert second.uid_salt != ""
    (event,) = events(node)
    assert event[:2] == ("prior fetched", 0)
    assert PATIENT not in json.dumps(event)


def test_another_patient_with_the_same_id_in_the_node(node: SmallNode, cases: Cases) -> None:
    for series in (
        examination(LAST_YEAR, "last", PatientSex="M"),
        examination(TODAY, "today", PatientSex="F"),
    ):
        arrive(node, series)
        analyse(node)
    assert cases.requests[1].priors == ()
    assert cases.requests[1].notes == (
        "The CT of 2019-01-01 (this node) was not compared: it has another sex.",
    )
    ((name, outcome, told),) = events(node)
    assert (name, outcome, told["reason"]) == ("prior refused", 4, "it has another sex")


def test_nobody_looks_where_nobody_may(node: SmallNode, cases: Cases) -> None:
    for series in (examination(LAST_YEAR, "last"), examination(TODAY, "today")):
        arrive(node, series)
        analyse(node, own=False)
    assert [request.priors for request in cases.requests] == [(), ()]
    assert events(node) == []


def test_what_was_found_then_is_kept_where_only_the_archive_has_the_images(
    node: SmallNode, cases: Cases
) -> None:
    last, today = examination(LAST_YEAR, "last"), examination(TODAY, "today")
    arrive(node, last)
    job, token = node.claim()
    summary = node.spool.directory / "results" / "x" / "result.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    plain = jobs.NewArtifact("json", str(summary.relative_to(node.spool.directory)), "0" * 64)
    node.finish(job, token, [plain, *node.result(job)])
    with node.database.write() as session:
        series = session.get_one(Job, job.id).series
        for instance in series.instances:
            node.spool.remove(str(instance.path))
            instance.path = None
    arrive(node, today)
    shelf = Shelf([last])
    analyse(node, shelf)
    (request,) = cases.requests
    (prior,) = request.priors
    assert prior.source == "pacs"
    assert prior.input_digest == job.input_digest
    assert prior.result is not None
    assert (prior.result.summary, prior.result.seg) == (
        summary,
        node.spool.directory / "results" / f"{job.id:08d}" / "seg.dcm",
    )
    # the result is made: what was fetched is gone
    assert not any((node.spool.directory / "priors").glob("*"))
    assert [name for name, _, _ in events(node)] == ["prior fetched", "prior asked"]


def test_an_archive_that_hangs_holds_a_study_no_longer_than_set(
    node: SmallNode, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Signal()

    def hang(series: list[Dataset]) -> list[Dataset]:
        release.wait(20)
        return series

    shelf = Shelf([examination(LAST_YEAR, "last")], hang)
    arrive(node, examination(TODAY, "today"))
    worker = analyse(node, shelf, wait_seconds=0.2)
    arrive(node, examination(TODAY, "again"))
    while worker.tick():
        pass
    release.set()
    first, second = cases.requests
    assert (first.priors, second.priors) == ((), ())
    assert "did not answer, or send, in time" in first.notes[0]
    assert "still owes an earlier answer" in second.notes[0]
    assert len(shelf.asked) == 1
    thread = worker._priors._asking
    assert thread is not None
    thread.join(20)
    # nothing of it is written into a folder that was removed
    assert not any((node.spool.directory / "priors").glob("*"))
    found = worker._priors
    assert "has not answered in time a moment ago" in found._reason_not_to_ask(NOW)
    monkeypatch.setattr(found, "_rests_until", 0.0)
    assert found._reason_not_to_ask(NOW) == ""
    assert all(job.state is JobState.SUCCEEDED for job in node.all_jobs())


def test_a_patient_id_with_a_wildcard_is_never_asked_for(node: SmallNode, cases: Cases) -> None:
    shelf = Shelf()
    arrive(node, examination(TODAY, "today", PatientID="SYN*"))
    analyse(node, shelf)
    assert shelf.asked == []
    assert "would ask for others too" in cases.requests[0].notes[0]


def test_no_earlier_ct_in_the_archive_is_a_fact_for_the_guidelines(node: SmallNode, cases: Cases) -> None:
    arrive(node, examination(TODAY, "today"))
    analyse(node, Shelf())
    assert cases.requests[0].no_prior == "pacs"
    assert cases.requests[0].notes == (
        "The archive pacs has no earlier CT of the patient: read as a first examination.",
    )


def test_an_earlier_examination_costs_no_study(node: SmallNode, cases: Cases) -> None:
    arrive(node, examination(LAST_YEAR, "last"))
    analyse(node)
    cases.fails_with_priors = True
    arrive(node, examination(TODAY, "today"))
    analyse(node)
    tried, done = cases.requests[1:]
    assert (len(tried.priors), done.priors) == (1, ())
    assert "nothing was compared" in done.notes[-1]
    assert done.uid_salt not in ("", tried.uid_salt)
    assert [(job.state, job.attempts) for job in node.all_jobs()] == [(JobState.SUCCEEDED, 1)] * 2


def test_a_fault_of_ours_costs_no_study(
    node: SmallNode, cases: Cases, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: Any, **_more: Any) -> Any:
        raise OSError("the disk failed")

    arrive(node, examination(TODAY, "today"))
    monkeypatch.setattr(priors, "own_priors", broken)
    analyse(node)
    assert cases.requests[0].notes == (
        "Earlier CTs of the patient could not be looked for: the node failed.",
    )


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"priors": {"retrieve": "c-get"}}, "needs archive.destination"),
        ({"priors": {"retrieve": "wado-rs"}, "archive": {"destination": "pacs"}}, "of kind dicomweb"),
        ({"priors": {"retrieve": "c-move"}, "archive": {"destination": "pacs"}}, "needs move_ae_title"),
        (
            {
                "priors": {"retrieve": "c-move", "move_ae_title": "CTNODE"},
                "archive": {"destination": "pacs"},
            },
            "another one than listener.ae_title",
        ),
        (
            {
                "priors": {"retrieve": "c-move", "move_ae_title": "CTPRIOR", "move_host": "0.0.0.0"},
                "archive": {"destination": "pacs"},
            },
            "reachable from outside",
        ),
    ],
)
def test_settings_that_can_not_work(tables: dict[str, Any], words: str, tmp_path: Path) -> None:
    pacs = {"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "port": 104, "ae_title": "PACS"}
    with pytest.raises(ConfigurationError, match=words):
        parse_settings({"destinations": [pacs], **tables}, base=tmp_path)


def test_a_source_for_each_way(tmp_path: Path) -> None:
    pacs = {"name": "pacs", "kind": "dicom", "host": "127.0.0.1", "port": 104, "ae_title": "PACS"}
    web = {"name": "web", "kind": "dicomweb", "url": "http://127.0.0.1/dicom-web"}
    for how, name in (("c-get", "pacs"), ("c-move", "pacs"), ("wado-rs", "web")):
        tables = {
            "destinations": [pacs, web],
            "archive": {"destination": name},
            "priors": {"retrieve": how, "move_ae_title": "CTPRIOR"},
        }
        source = priors.open_source(parse_settings(tables, base=tmp_path))
        assert source is not None
        assert source.name == name
    assert priors.open_source(Settings()) is None


def test_settings_that_break_later_cost_no_study(node: SmallNode, cases: Cases, tmp_path: Path) -> None:
    web = {
        "name": "web",
        "kind": "dicomweb",
        "url": "http://127.0.0.1/dicom-web",
        "user": "node",
        "password_file": "gone.txt",
    }
    tables = {
        "destinations": [web],
        "archive": {"destination": "web"},
        "priors": {"retrieve": "wado-rs"},
        "storage": {"directory": str(node.spool.directory)},
    }
    arrive(node, examination(TODAY, "today"))
    having = parse_settings(tables, base=tmp_path)
    assert Worker(node.database, having, VERSION, InProcessEngine(), node.clock).tick()
    (note,) = cases.requests[0].notes
    assert note.endswith("its settings can't be used.")


def test_study_priors_leave_a_study_without_a_date_alone(node: SmallNode) -> None:
    found = StudyPriors(node.database, node_settings(node), OpenReader())
    request = CaseRequest(
        (),
        Path(),
        "classical",
        "cpu",
        "0",
        node.clock(),
        {"StudyDate": "", "PatientID": NOW.patient_id, "StudyInstanceUID": "1.2"},
    )
    with found.added_to(request, "x", lambda: False) as same:
        assert same is request
