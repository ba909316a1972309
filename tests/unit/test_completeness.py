"""No result is made silently on a part of a series: the signals, the archive's word, and random arrivals."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from sqlalchemy import select

from inference.geometry import has_no_gaps
from pacs_node import jobs
from pacs_node.archive import ArchiveError, FoundStudy, StudyFilter
from pacs_node.commitment import Reference, Request
from pacs_node.commitment_scp import record_request
from pacs_node.completeness import (
    Evidence,
    Limits,
    Signal,
    Silences,
    closing_signal,
    lacks_images,
    sentence_of_lack,
)
from pacs_node.config import ArchiveSettings, CompletenessSettings
from pacs_node.db import AuditEvent, Job, Series
from pacs_node.destinations import OutcomeKind
from pacs_node.reconcile import NOT_SAID, Reconciler
from pacs_node.states import JobState, SeriesState
from tests.small_node import SmallNode, TestClock, chest

SECOND = timedelta(seconds=1)
ALONE = Limits(10 * SECOND, 60 * SECOND)
ASKING = Limits(10 * SECOND, 60 * SECOND, answer=60 * SECOND, wait=600 * SECOND)
ARCHIVE = ArchiveSettings(destination="pacs")
#: e.g. 10000 for the long form
EXAMPLES = int(os.environ.get("PACS_NODE_ARRIVALS", "12"))


@dataclass
class FakeArchive:
    """Says what it is told to say, or fails."""

    name: str = "pacs"
    counts: dict[str, int] = field(default_factory=dict)
    failure: ArchiveError | None = None
    asked: int = 0

    def count(self, _study_uid: str, series_uid: str) -> int:
        """What it was told."""
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.counts.get(series_uid, 0)

    def studies(self, _wanted: StudyFilter) -> list[FoundStudy]:
        """None."""
        return []

    def modalities(self, _study_uid: str) -> set[str]:
        """None."""
        return set()


# --- the signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "limits", "signal"),
    [
        ({"silence": 9}, ALONE, None),
        ({"silence": 10}, ALONE, Signal.SETTLED),
        ({"silence": 10, "gaps": True}, ALONE, None),
        ({"silence": 10, "released": False}, ALONE, None),
        ({"silence": 60, "released": False, "gaps": True}, ALONE, Signal.QUIET),
        ({"silence": 0, "promised": 12}, ALONE, Signal.PROMISED),
        ({"silence": 0, "promised": 11}, ALONE, None),
        # the archive's word is awaited, but not for ever
        ({"silence": 59}, ASKING, None),
        ({"silence": 60}, ASKING, Signal.QUIET),
        ({"silence": 59, "promised": 12}, ASKING, None),
        ({"silence": 10, "asked": True, "archive": 12}, ASKING, Signal.COUNTED),
        ({"silence": 10, "asked": True, "archive": 11}, ASKING, Signal.COUNTED),
        ({"silence": 10, "asked": True, "archive": 12, "gaps": True}, ASKING, Signal.COUNTED),
        ({"silence": 59, "asked": True, "archive": 12, "released": False}, ASKING, None),
        ({"silence": 60, "asked": True, "archive": 12, "released": False}, ASKING, Signal.COUNTED),
        ({"silence": 0, "asked": True, "archive": 12, "promised": 12}, ASKING, Signal.COUNTED),
        # an old answer closes nothing, but it can hold
        ({"silence": 10, "asked": False, "archive": 12}, ASKING, None),
        ({"silence": 599, "asked": False, "archive": 13}, ASKING, None),
        ({"silence": 599, "asked": True, "archive": 13, "promised": 12}, ASKING, None),
        ({"silence": 600, "asked": True, "archive": 13}, ASKING, Signal.PARTIAL),
        # one that knows nothing, or lies
        ({"silence": 59, "asked": True, "archive": 0}, ASKING, None),
        ({"silence": 60, "asked": True, "archive": 0}, ASKING, Signal.QUIET),
        ({"silence": 60, "asked": True, "archive": None}, ASKING, Signal.QUIET),
    ],
)
def test_signals(facts: dict[str, Any], limits: Limits, signal: Signal | None) -> None:
    known = {"released": True, **facts}
    gaps = known.pop("gaps", False)
    known["silence"] *= SECOND
    assert closing_signal(Evidence(n_instances=12, **known), limits, lambda: not gaps) is signal


def test_only_series_that_could_be_analysed_are_asked_about() -> None:
    assert ASKING.for_modality("CT") == ASKING.for_modality("") == ASKING
    assert ASKING.for_modality("SR") == ALONE


def test_nobody_is_asked_without_a_destination_or_a_wish() -> None:
    own = CompletenessSettings()
    assert Limits.of(own, ArchiveSettings()) == Limits.of(own, None) == ALONE
    assert Limits.of(own, ArchiveSettings(destination="pacs", count_images=False)) == ALONE
    assert Limits.of(own, ARCHIVE) == ASKING


# --- silence, when somebody sets the clock -----------------------------------------------------------


@dataclass
class Watched:
    """A series, the time of day and a clock that is never set."""

    clock: TestClock = field(default_factory=TestClock)
    seconds: float = 1000.0

    def __post_init__(self) -> None:
        self.silences = Silences(self.clock, lambda: self.seconds)
        self.series = Series(id=1, last_received_at=self.clock())

    def pass_by(self, seconds: float) -> float:
        """Let time pass, then look."""
        self.clock.forward(seconds=seconds)
        self.seconds += seconds
        return self.look()

    def look(self) -> float:
        """How long the series is silent."""
        return self.silences.of(self.series).total_seconds()


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_is_set_closes_nothing_early_or_late(jump: int) -> None:
    watched = Watched()
    assert watched.pass_by(1) == 1
    watched.clock.forward(seconds=jump)
    assert watched.look() == 1
    assert watched.pass_by(4) == 5
    # an instance that comes after the jump, with the time of day as it is then
    watched.series.last_received_at = watched.clock.forward(seconds=1)
    watched.seconds += 1
    assert watched.pass_by(2) == 2


def test_an_instance_cannot_be_older_than_the_last_look() -> None:
    watched = Watched()
    watched.pass_by(5)
    watched.series.last_received_at += SECOND
    watched.clock.forward(seconds=3600)
    assert watched.pass_by(2) == 2


def test_a_new_process_goes_by_the_time_of_day() -> None:
    watched = Watched()
    assert watched.pass_by(30) == 30
    watched.silences.forget([1])
    assert watched.pass_by(1) == 31
    watched.silences.forget([1])
    watched.clock.forward(seconds=-3600)
    assert watched.look() == 0


# --- with an archive -------------------------------------------------------------------------------


@dataclass
class Asking:
    """A node with an archive."""

    node: SmallNode
    archive: FakeArchive
    reconciler: Reconciler

    def settle(self) -> None:
        """Let the short silence pass; the archive is asked, then series close."""
        self.forward(self.node.settle_seconds + 1)

    def forward(self, seconds: float) -> None:
        """Let time pass, and tick."""
        self.node.clock.forward(seconds=seconds)
        self.reconciler.tick()
        self.node.intake.tick()

    def series(self) -> Series:
        """The only one."""
        with self.node.database.read() as session:
            row = session.execute(select(Series)).scalar_one()
            assert row.study is not None
            return row

    def states(self) -> list[tuple[SeriesState, str | None]]:
        """State and closing signal of all."""
        with self.node.database.read() as session:
            return [(row.state, row.closed_by) for row in session.execute(select(Series)).scalars()]


def asking_node(node: SmallNode, policy: str = "label") -> Asking:
    node.archive = ARCHIVE.model_copy(update={"incomplete": policy})
    node.restart_intake()
    archive = FakeArchive()
    reconciler = Reconciler(node.database, archive, timedelta(seconds=node.settle_seconds), node.clock)
    return Asking(node, archive, reconciler)


@pytest.fixture
def asking(node: SmallNode) -> Asking:
    return asking_node(node)


def uid(slices: list[Dataset]) -> str:
    return str(slices[0].SeriesInstanceUID)


def summary(node: SmallNode) -> list[tuple[str, JobState, str | None]]:
    return [(row.kind, row.state, row.reason_code) for row in node.all_jobs()]


QUEUED_JOB = (jobs.ANALYSIS, JobState.QUEUED, None)


def test_a_series_that_the_archive_has_whole_closes_at_once(asking: Asking) -> None:
    slices = chest()
    asking.archive.counts[uid(slices)] = 12
    asking.node.receive(*slices)
    asking.settle()
    assert asking.states() == [(SeriesState.QUEUED, "counted")]
    assert summary(asking.node) == [QUEUED_JOB]


def test_a_part_waits_with_a_reason_and_goes_on_when_the_rest_comes(asking: Asking) -> None:
    slices = chest(15)
    asking.archive.counts[uid(slices)] = 15
    asking.node.receive(*slices[:12])
    asking.settle()
    asking.forward(100)
    assert asking.states() == [(SeriesState.RECEIVING, None)]
    assert asking.series().archive_answer == "it has 15"
    with asking.node.database.read() as session:
        events = session.execute(select(AuditEvent).where(AuditEvent.event == "series waits")).scalars()
        assert [row.objects["reason"] for row in events] == [
            "the archive has 15 images of this series, 12 have come"
        ]
    asking.node.receive(*slices[12:])
    asking.settle()
    assert asking.states() == [(SeriesState.QUEUED, "counted")]
    assert summary(asking.node) == [QUEUED_JOB]


def test_after_the_wait_a_part_is_analysed_and_says_so(asking: Asking) -> None:
    slices = chest(15)
    asking.archive.counts[uid(slices)] = 15
    asking.node.receive(*slices[:12])
    asking.settle()
    asking.forward(588)
    assert summary(asking.node) == []
    asking.forward(1)
    assert asking.states() == [(SeriesState.QUEUED, "partial")]
    series = asking.series()
    assert lacks_images(series)
    assert "15 images of this series; 12 of them had come" in sentence_of_lack(series)
    # the rest comes after all
    asking.node.finish(*asking.node.claim())
    asking.node.receive(*slices[12:])
    asking.settle()
    assert summary(asking.node) == [(jobs.ANALYSIS, JobState.SUCCEEDED, None), QUEUED_JOB]
    assert not lacks_images(asking.series())


def test_a_part_is_refused_where_the_settings_say_so(node: SmallNode) -> None:
    asking = asking_node(node, "refuse")
    slices = chest(15)
    asking.archive.counts[uid(slices)] = 15
    asking.node.receive(*slices[:12])
    asking.settle()
    asking.forward(600)
    assert summary(node) == [(jobs.REFUSAL, JobState.QUEUED, "INCOMPLETE")]
    asking.node.receive(*slices[12:])
    asking.settle()
    assert summary(node) == [(jobs.REFUSAL, JobState.CANCELLED, "INCOMPLETE"), QUEUED_JOB]


def test_a_gap_is_refused_even_if_the_archive_has_no_more(asking: Asking) -> None:
    slices = chest(14, drop=[7])
    asking.archive.counts[uid(slices)] = 13
    asking.node.receive(*slices)
    asking.settle()
    asking.forward(60)
    assert summary(asking.node) == [(jobs.REFUSAL, JobState.QUEUED, "GAP")]


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (None, NOT_SAID),
        (ArchiveError(OutcomeKind.TRANSIENT, "nobody listens"), "nobody listens"),
        (ArchiveError(OutcomeKind.PERMANENT, "it refuses"), "it refuses"),
    ],
)
def test_an_archive_that_says_nothing_holds_a_series_only_for_a_while(
    asking: Asking, failure: ArchiveError | None, answer: str
) -> None:
    asking.archive.failure = failure
    asking.node.receive(*chest())
    asking.settle()
    assert asking.states() == [(SeriesState.RECEIVING, None)]
    assert asking.series().archive_answer == answer
    asking.forward(48)
    assert asking.states() == [(SeriesState.RECEIVING, None)]
    asking.forward(1)
    assert summary(asking.node) == [QUEUED_JOB]
    assert not lacks_images(asking.series())


def test_an_archive_that_never_returns_holds_nothing(asking: Asking) -> None:
    """Nobody ticks the reconciler: its thread waits for the archive."""
    asking.node.receive(*chest())
    asking.node.quiet()
    assert summary(asking.node) == [QUEUED_JOB]


def test_an_archive_that_is_away_is_asked_once_for_all(asking: Asking) -> None:
    asking.archive.failure = ArchiveError(OutcomeKind.TRANSIENT, "nobody listens")
    asking.node.receive(*chest(seed="one"), *chest(seed="two"), *chest(seed="three"))
    asking.settle()
    assert asking.archive.asked == 1
    asking.archive.failure = None
    asking.forward(0)
    assert asking.archive.asked == 3


def test_a_sender_that_asks_for_commitment_to_all_has_sent_all(node: SmallNode) -> None:
    slices = chest()
    node.receive(*slices, association_id=node.open_association())
    promise(node, slices[:5])
    node.intake.tick()
    assert summary(node) == []
    promise(node, slices)
    node.intake.tick()
    assert summary(node) == [QUEUED_JOB]


def test_a_promise_that_names_what_is_not_here_closes_nothing(node: SmallNode) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    promise(node, [*slices, late])
    node.intake.tick()
    assert summary(node) == []


def promise(node: SmallNode, slices: list[Dataset]) -> None:
    """Do what the listener does with an N-ACTION."""
    objects = tuple(Reference(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in slices)
    with node.database.write() as session:
        record_request(
            session,
            Request("2.25.1", objects),
            calling_ae="PACS",
            called_ae="CTNODE",
            address="127.0.0.1",
            at=node.clock(),
        )


# --- random arrivals ---------------------------------------------------------------------------------

_SIZE = 16
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.lists(st.integers(0, _SIZE - 1), min_size=1, max_size=_SIZE)),
        st.tuples(st.just("pause"), st.sampled_from([1, 5, 11, 30, 61, 200, 700])),
        st.tuples(st.just("open"), st.none()),
        st.tuples(st.just("close"), st.sampled_from(["released", "aborted"])),
        st.tuples(st.just("work"), st.none()),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=14,
)


class Arrival:
    """Plays one random arrival of a series, and looks after every step."""

    def __init__(self, asking: Asking, slices: list[Dataset], *, with_archive: bool) -> None:
        self.asking, self.node, self.slices = asking, asking.node, slices
        self.with_archive = with_archive
        self.here: set[int] = set()
        self.association: int | None = None
        self.silent_since = self.node.clock()
        self.released = True
        self.last_job = 0
        self.new_jobs()

    def play(self, steps: list[tuple[str, Any]]) -> None:
        """All steps, then the rest of the series, and the time that it needs."""
        for name, value in steps:
            getattr(self, name)(value)
            self.look()
        self.send([number for number in range(_SIZE) if number not in self.here])
        self.close("released")
        for _ in range(3):
            self.pause(700)
            self.work(None)

    def send(self, numbers: list[int]) -> None:
        new = set(numbers) - self.here
        self.node.receive(*(self.slices[n] for n in numbers), association_id=self.association)
        if new:
            self.here |= new
            self.silent_since = self.node.clock()

    def pause(self, seconds: float) -> None:
        self.asking.forward(seconds)
        self.look()

    def open(self, _value: None) -> None:
        self.association = self.node.open_association()

    def close(self, ending: str) -> None:
        if self.association is not None:
            self.node.close_association(self.association, ending)
        self.association = None

    def work(self, _value: None) -> None:
        with self.node.database.read() as session:
            queued = session.execute(select(Job.id).where(Job.state == JobState.QUEUED)).first()
        if queued is not None:
            job, token = self.node.claim()
            self.node.finish(
                job, token, outcome=jobs.ANALYSED if job.kind == jobs.ANALYSIS else "not_analysed"
            )

    def restart(self, _value: None) -> None:
        self.node.restart_intake()

    def look(self) -> None:
        """A new analysis of a part has a reason that its result, or a later one, tells."""
        for job in self.new_jobs():
            if job.kind != jobs.ANALYSIS:
                continue
            part = [self.slices[n] for n in sorted(self.here)]
            if len(part) == _SIZE:
                continue
            assert has_no_gaps(part), "a part with a gap was to be analysed"
            silence = (self.node.clock() - self.silent_since).total_seconds()
            if self.with_archive:
                assert lacks_images(job.series), "the result would not say that images are missing"
                assert silence >= ARCHIVE.wait_seconds
            else:
                assert silence >= self.node.settle_seconds

    def new_jobs(self) -> list[Job]:
        """Those that were made since the last call."""
        with self.node.database.read() as session:
            rows = session.execute(select(Job).where(Job.id > self.last_job).order_by(Job.id)).scalars().all()
            for row in rows:
                assert row.series.series_uid
                self.last_job = row.id
            return list(rows)

    def final_job(self) -> Job:
        """The last analysis of the series."""
        mine = select(Job).join(Series).where(Series.series_uid == uid(self.slices)).order_by(Job.id.desc())
        with self.node.database.read() as session:
            return session.execute(mine.limit(1)).scalar_one()


@pytest.mark.timeout(300 + 30 * EXAMPLES)
@pytest.mark.parametrize("with_archive", [True, False])
def test_random_arrivals_never_end_silently_on_a_part(node: SmallNode, *, with_archive: bool) -> None:
    asking = asking_node(node)
    if not with_archive:
        node.archive = None
        node.restart_intake()
    numbers = itertools.count()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(_STEPS)
    def arrivals(steps: list[tuple[str, Any]]) -> None:
        slices = chest(_SIZE, seed=f"arrival {next(numbers)}")
        asking.archive.counts = {uid(slices): _SIZE} if with_archive else {}
        arrival = Arrival(asking, slices, with_archive=with_archive)
        arrival.play(steps)
        job = arrival.final_job()
        assert (job.kind, job.state) == (jobs.ANALYSIS, JobState.SUCCEEDED)
        with node.database.read() as session:
            series = session.get_one(Series, job.series_id)
            assert (series.n_instances, series.state) == (_SIZE, SeriesState.QUEUED)
            assert job.input_digest == jobs.input_digest(series), "the last result is of a part"

    arrivals()


def test_the_property_would_notice(node: SmallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a node that closes after any silence analyses parts."""

    def hasty(_evidence: Evidence, _limits: Limits, _no_gaps: Callable[[], bool]) -> Signal:
        return Signal.QUIET

    monkeypatch.setattr("pacs_node.intake.closing_signal", hasty)
    asking = asking_node(node)
    slices = chest(_SIZE, seed="control")
    asking.archive.counts = {uid(slices): _SIZE}
    arrival = Arrival(asking, slices, with_archive=True)
    with pytest.raises(AssertionError, match="600"):
        arrival.play([("send", list(range(12))), ("pause", 11)])
