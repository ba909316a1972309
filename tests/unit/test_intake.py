"""When a series counts as complete, which one of a study is analysed, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from dicom_sr.context import MANUFACTURER
from inference.errors import ReasonCode
from inference.geometry import has_no_gaps
from inference.select import judge_series
from inference.uids import derived_uid
from pacs_node import jobs, lifecycle
from pacs_node.db import Conflict, Instance, Job, Series
from pacs_node.states import JobState, SeriesState
from tests.ct_factory import make_ct_series
from tests.small_node import SmallNode, chest

JUDGE = "pacs_node.reader_tasks.judge_series"
STUDY = derived_uid("study of several series")
QUEUED, INELIGIBLE, RECEIVING = SeriesState.QUEUED, SeriesState.INELIGIBLE, SeriesState.RECEIVING


def uid(slices: list[Dataset]) -> str:
    return str(slices[0].SeriesInstanceUID)


def localizer(n_slices: int = 1, seed: str = "scout") -> list[Dataset]:
    return make_ct_series(
        n_slices, seed=seed, study_uid=STUDY, matrix=8, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")
    )


def closed_by(node: SmallNode) -> list[tuple[SeriesState, str | None]]:
    with node.database.read() as session:
        return [(row.state, row.closed_by) for row in session.execute(select(Series)).scalars()]


def summary(node: SmallNode) -> list[tuple[str, JobState, str | None]]:
    return [(row.kind, row.state, row.reason_code) for row in node.all_jobs()]


# --- closing ---------------------------------------------------------------------------------------


def test_a_whole_series_settles(node: SmallNode) -> None:
    node.receive(*chest())
    node.clock.forward(seconds=9)
    node.intake.tick()
    assert closed_by(node) == [(RECEIVING, None)]
    node.clock.forward(seconds=1)
    node.intake.tick()
    assert closed_by(node) == [(QUEUED, "settled")]
    (job,) = node.all_jobs()
    assert (job.kind, job.state, job.attempts) == (jobs.ANALYSIS, JobState.QUEUED, 0)


def test_the_silence_counts_from_the_last_slice(node: SmallNode) -> None:
    slices = chest()
    for start in (0, 6):
        node.receive(*slices[start : start + 6])
        node.clock.forward(seconds=6)
        node.intake.tick()
    assert closed_by(node) == [(RECEIVING, None)]


def test_a_gap_keeps_a_series_open_until_the_long_silence(node: SmallNode) -> None:
    node.receive(*chest(14, drop=[7]))
    node.settle()
    assert closed_by(node) == [(RECEIVING, None)]
    node.quiet()
    assert closed_by(node) == [(INELIGIBLE, "quiet")]
    assert summary(node) == [(jobs.REFUSAL, JobState.QUEUED, "GAP")]


def test_a_slice_that_fills_the_gap_lets_it_settle(node: SmallNode) -> None:
    slices = chest()
    missing = slices.pop(5)
    node.receive(*slices)
    node.settle()
    node.receive(missing)
    node.settle()
    assert closed_by(node) == [(QUEUED, "settled")]


def test_an_open_association_keeps_a_series_open(node: SmallNode) -> None:
    association = node.open_association()
    node.receive(*chest(), association_id=association)
    node.settle()
    assert closed_by(node) == [(RECEIVING, None)]
    node.close_association(association)
    node.intake.tick()
    assert closed_by(node) == [(QUEUED, "settled")]


@pytest.mark.parametrize("ending", ["aborted", "lost"])
def test_a_broken_association_is_no_sign_of_completeness(node: SmallNode, ending: str) -> None:
    slices = chest(24)
    association = node.open_association()
    node.receive(*slices[:12], association_id=association)
    node.close_association(association, ending)
    node.settle()
    assert closed_by(node) == [(RECEIVING, None)]
    again = node.open_association()
    node.receive(*slices[12:], association_id=again)
    node.close_association(again)
    node.settle()
    assert closed_by(node) == [(QUEUED, "settled")]


def test_an_association_that_never_ends_does_not_hold_a_series_for_ever(node: SmallNode) -> None:
    node.receive(*chest(), association_id=node.open_association())
    node.quiet()
    assert closed_by(node) == [(QUEUED, "quiet")]


def test_an_open_association_of_another_series_does_not_matter(node: SmallNode) -> None:
    node.receive(*chest())
    node.receive(*localizer(), association_id=node.open_association())
    node.settle()
    assert sorted(closed_by(node)) == [(QUEUED, "settled"), (RECEIVING, None)]


def test_a_slice_that_comes_while_the_headers_are_read_keeps_it_open(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    real = has_no_gaps

    def slow(headers: Any) -> bool:
        node.receive(late)
        return real(headers)

    monkeypatch.setattr("pacs_node.reader_tasks.has_no_gaps", slow)
    node.settle()
    assert closed_by(node) == [(RECEIVING, None)]


def test_a_restart_forgets_nothing(node: SmallNode) -> None:
    node.receive(*chest())
    node.restart_intake()
    node.settle()
    node.restart_intake()
    node.intake.tick()
    assert summary(node) == [(jobs.ANALYSIS, JobState.QUEUED, None)]


def test_the_order_of_arrival_changes_nothing(node: SmallNode) -> None:
    slices = chest()
    node.receive(*slices[::2], *reversed(slices), *slices[:7])
    node.settle()
    assert closed_by(node) == [(QUEUED, "settled")]
    (job,) = node.all_jobs()
    with node.database.read() as session:
        assert job.input_digest == jobs.input_digest(session.execute(select(Series)).scalar_one())


# --- choosing --------------------------------------------------------------------------------------


def test_the_best_series_is_queued_the_others_have_a_reason(node: SmallNode) -> None:
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    thick = chest(seed="thick", study_uid=STUDY)
    scout = localizer()
    node.receive(*thick, *scout, *thin)
    node.quiet()
    assert node.states() == {
        uid(thin): (QUEUED, None),
        uid(thick): (INELIGIBLE, "NOT_SELECTED"),
        uid(scout): (INELIGIBLE, "LOCALIZER"),
    }
    (job,) = node.all_jobs()
    assert job.series.series_uid == uid(thin)
    with node.database.read() as session:
        rows = {row.series_uid: row for row in session.execute(select(Series)).scalars()}
    assert [rows[uid(s)].rank for s in (thin, thick, scout)] == [0, 1, None]
    assert uid(thin) in (rows[uid(thick)].reason or "")


def test_a_study_waits_for_all_its_series(node: SmallNode) -> None:
    node.receive(*chest(seed="thick", study_uid=STUDY))
    node.clock.forward(seconds=5)
    node.receive(*localizer())
    node.clock.forward(seconds=6)
    node.intake.tick()
    assert node.all_jobs() == []
    node.quiet()
    assert len(node.all_jobs()) == 1


def test_two_studies_at_once_do_not_mix(node: SmallNode) -> None:
    first, second = chest(seed="one"), chest(seed="two")
    node.receive(*(ds for pair in zip(first, second, strict=True) for ds in pair))
    node.settle()
    assert {row.series.series_uid for row in node.all_jobs()} == {uid(first), uid(second)}


def test_an_unsuitable_study_is_refused_only_after_the_long_silence(node: SmallNode) -> None:
    """A suitable series may still be on its way."""
    node.receive(*chest(11))
    node.settle()
    assert node.all_jobs() == []
    node.intake.tick()
    assert node.all_jobs() == []
    node.clock.forward(seconds=50)
    node.intake.tick()
    (job,) = node.all_jobs()
    assert (job.kind, job.state, job.reason_code) == (jobs.REFUSAL, JobState.QUEUED, "TOO_FEW_SLICES")
    assert "11" in (job.reason or "")
    node.quiet()
    assert len(node.all_jobs()) == 1


def test_the_refusal_of_several_series_is_one_report(node: SmallNode) -> None:
    few = chest(11, seed="few", study_uid=STUDY)
    node.receive(*few, *localizer())
    node.quiet()
    (job,) = node.all_jobs()
    assert (job.kind, job.reason_code) == (jobs.REFUSAL, "NO_SUITABLE_SERIES")
    assert "None of the 2 series" in (job.reason or "")
    assert {code for _, code in node.states().values()} == {"TOO_FEW_SLICES", "LOCALIZER"}


def test_a_suitable_series_that_follows_takes_the_refusal_back(node: SmallNode) -> None:
    node.receive(*localizer())
    node.quiet()
    good = chest(seed="good", study_uid=STUDY)
    node.receive(*good)
    node.settle()
    assert summary(node) == [
        (jobs.REFUSAL, JobState.CANCELLED, "LOCALIZER"),
        (jobs.ANALYSIS, JobState.QUEUED, None),
    ]


def test_a_refusal_that_is_out_of_date_is_taken_back(node: SmallNode) -> None:
    scout, more = localizer(2)
    node.receive(scout)
    node.quiet()
    node.receive(more)
    node.quiet()
    assert [(row.kind, row.state) for row in node.all_jobs()] == [
        (jobs.REFUSAL, JobState.CANCELLED),
        (jobs.REFUSAL, JobState.QUEUED),
    ]


def test_other_patients_in_one_study_are_never_silent(node: SmallNode) -> None:
    """The first series was queued already when one of another patient came."""
    first = chest(seed="one", study_uid=STUDY)
    other = chest(seed="two", study_uid=STUDY, patient_id="SYNTHETIC-2")
    node.receive(*first)
    node.settle()
    node.receive(*other)
    node.quiet()
    assert set(node.states().values()) == {(INELIGIBLE, "MIXED_PATIENT")}
    assert [(row.kind, row.state) for row in node.all_jobs()] == [
        (jobs.ANALYSIS, JobState.CANCELLED),
        (jobs.REFUSAL, JobState.QUEUED),
    ]


def ours(ds: Dataset) -> Dataset:
    ds.Manufacturer = MANUFACTURER
    ds.Modality, ds.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.34"
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    return ds


def test_our_own_report_coming_back_gets_no_answer(node: SmallNode) -> None:
    """From another node of our kind, or after the rows were lost."""
    (report,) = make_ct_series(1, matrix=8)
    node.receive(ours(report))
    node.quiet()
    assert [state for state, _ in node.states().values()] == [INELIGIBLE]
    assert node.all_jobs() == []


def test_our_own_report_does_not_count_as_a_series_that_was_refused(node: SmallNode) -> None:
    (report,) = make_ct_series(1, matrix=8, seed="r", study_uid=STUDY)
    node.receive(ours(report), *localizer())
    node.quiet()
    (job,) = node.all_jobs()
    assert (job.reason_code, job.series.modality) == ("LOCALIZER", "CT")


# --- late slices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", ["queued", "running", "done"])
def test_late_slices_make_a_new_job(node: SmallNode, progress: str) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()
    if progress != "queued":
        row, token = node.claim()
        if progress == "done":
            node.finish(row, token, node.result(row))
    node.receive(late)
    assert closed_by(node)[0][0] is RECEIVING
    node.settle()
    first = JobState.SUCCEEDED if progress == "done" else JobState.CANCELLED
    assert [row.state for row in node.all_jobs()] == [first, JobState.QUEUED]
    assert len({row.input_digest for row in node.all_jobs()}) == 2


def test_late_slices_that_make_it_unsuitable_stop_the_running_job(node: SmallNode) -> None:
    """Otherwise its result and the refusal would contradict each other."""
    slices = chest(12, duplicates=[5])
    late = slices.pop(6)
    node.receive(*slices)
    node.settle()
    node.claim()
    node.receive(late)
    node.quiet()
    assert summary(node) == [
        (jobs.ANALYSIS, JobState.CANCELLED, None),
        (jobs.REFUSAL, JobState.QUEUED, "DUPLICATE"),
    ]


def test_the_same_slices_again_change_nothing(node: SmallNode) -> None:
    slices = chest()
    node.receive(*slices)
    node.settle()
    node.finish(*node.claim())
    node.receive(*slices)
    node.quiet()
    assert summary(node) == [(jobs.ANALYSIS, JobState.SUCCEEDED, None)]
    assert closed_by(node) == [(QUEUED, "settled")]


def test_a_better_series_takes_the_place_of_one_that_waits(node: SmallNode) -> None:
    thick = chest(seed="thick", study_uid=STUDY)
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    node.receive(*thick)
    node.settle()
    node.receive(*thin)
    node.settle()
    assert [(row.series.series_uid, row.state) for row in node.all_jobs()] == [
        (uid(thick), JobState.CANCELLED),
        (uid(thin), JobState.QUEUED),
    ]


def test_a_series_that_was_set_aside_is_analysed_when_the_better_one_spoils(node: SmallNode) -> None:
    """Its cancelled job is the same work: it must not count as done."""
    thick = chest(seed="thick", study_uid=STUDY)
    *thin, late = chest(19, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    late.ImagePositionPatient = [*late.ImagePositionPatient[:2], 500.0]
    node.receive(*thick)
    node.settle()
    node.receive(*thin)
    node.settle()
    node.receive(late)
    node.quiet()
    assert node.states() == {uid(thick): (QUEUED, None), uid(thin): (INELIGIBLE, "GAP")}
    assert [(row.series.series_uid, row.state) for row in node.all_jobs()] == [
        (uid(thick), JobState.QUEUED),
        (uid(thin), JobState.CANCELLED),
    ]


# --- conflicts -------------------------------------------------------------------------------------


def changed(slices: list[Dataset]) -> Dataset:
    ds = slices[7]
    ds.PixelData = bytes(len(ds.PixelData))
    return ds


def test_a_conflict_refuses_the_series(node: SmallNode) -> None:
    slices = chest()
    node.receive(*slices)
    node.receive(changed(slices))
    node.quiet()
    assert summary(node) == [(jobs.REFUSAL, JobState.QUEUED, "CONFLICT")]
    with node.database.read() as session:
        assert session.execute(select(Conflict.same_content)).scalars().all() == [False]


def test_a_conflict_while_the_job_waits_stops_it(node: SmallNode) -> None:
    slices = chest()
    node.receive(*slices)
    node.settle()
    node.receive(changed(slices))
    node.quiet()
    assert summary(node) == [
        (jobs.ANALYSIS, JobState.CANCELLED, None),
        (jobs.REFUSAL, JobState.QUEUED, "CONFLICT"),
    ]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
@pytest.mark.parametrize("when", ["receiving", "running"])
def test_a_copy_in_another_encoding_is_no_conflict(node: SmallNode, syntax: str, when: str) -> None:
    slices, copies = chest(), chest(transfer_syntax=syntax)
    node.receive(*slices)
    if when == "running":
        node.settle()
        node.claim()
    node.receive(*copies[:3])
    node.quiet()
    state = JobState.RUNNING if when == "running" else JobState.QUEUED
    assert summary(node) == [(jobs.ANALYSIS, state, None)]
    with node.database.read() as session:
        assert session.execute(select(Conflict.same_content)).scalars().all() == [True] * 3


def test_a_conflict_after_the_result_is_an_event_only(node: SmallNode) -> None:
    slices = chest()
    node.receive(*slices)
    node.settle()
    node.finish(*node.claim())
    node.receive(changed(slices))
    node.quiet()
    assert summary(node) == [(jobs.ANALYSIS, JobState.SUCCEEDED, None)]


# --- unsuitable pixels -----------------------------------------------------------------------------


def pixels_unsuitable(node: SmallNode) -> Job | None:
    """What the worker does when the pixels of a series turn out unsuitable."""
    row, token = node.claim()
    with node.database.write() as session:
        job = session.get_one(Job, row.id)
        now = node.clock()
        jobs.finish(
            session,
            job,
            token,
            at=now,
            actor="worker",
            state=JobState.SUCCEEDED,
            outcome=jobs.NOT_ANALYSED,
            artifacts=[],
            destinations=[],
            reason_code="HU_RANGE",
            reason="No air.",
        )
        lifecycle.move_series(
            session,
            job.series,
            SeriesState.INELIGIBLE,
            at=now,
            actor="worker",
            reason_code="HU_RANGE",
            reason="No air.",
        )
        return jobs.pass_on(session, job, pipeline_version=job.pipeline_version, at=now, actor="worker")


def test_the_next_best_series_follows(node: SmallNode) -> None:
    thick = chest(seed="thick", study_uid=STUDY)
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    node.receive(*thick, *thin, *localizer())
    node.quiet()
    assert pixels_unsuitable(node) is not None
    assert node.states()[uid(thin)] == (INELIGIBLE, "HU_RANGE")
    assert node.states()[uid(thick)] == (QUEUED, None)
    assert pixels_unsuitable(node) is None
    assert len(node.all_jobs()) == 2


def test_unsuitable_pixels_stay_known_when_the_study_is_judged_again(node: SmallNode) -> None:
    thick = chest(seed="thick", study_uid=STUDY)
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    node.receive(*thick, *thin)
    node.settle()
    pixels_unsuitable(node)
    node.receive(*localizer())
    node.quiet()
    assert node.states()[uid(thin)] == (INELIGIBLE, "HU_RANGE")
    assert node.states()[uid(thick)] == (QUEUED, None)
    assert len(node.all_jobs()) == 2


def test_a_series_that_was_analysed_before_is_the_answer(node: SmallNode) -> None:
    """A better one came later, but its pixels are unsuitable: the first result stands."""
    thick = chest(seed="thick", study_uid=STUDY)
    thin = chest(18, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    node.receive(*thick)
    node.settle()
    node.finish(*node.claim())
    node.receive(*thin)
    node.settle()
    following = pixels_unsuitable(node)
    assert following is not None
    assert following.state is JobState.SUCCEEDED
    assert node.states()[uid(thick)] == (QUEUED, None)


# --- what must not stop the others -----------------------------------------------------------------


def test_a_study_that_cannot_be_judged_does_not_stop_the_others(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = chest(seed="bad"), chest(seed="good")
    node.receive(*bad)
    node.receive(*good)
    real = judge_series

    def judge(headers: Any, *, series_uid: str) -> Any:
        if uid(bad) == series_uid:
            raise ZeroDivisionError
        return real(headers, series_uid=series_uid)

    monkeypatch.setattr(JUDGE, judge)
    node.settle()
    assert [row.series.series_uid for row in node.all_jobs()] == [uid(good)]
    monkeypatch.setattr(JUDGE, real)
    node.intake.tick()
    assert len(node.all_jobs()) == 2


def test_a_study_that_can_never_be_judged_ends_with_a_report(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_headers: Any, **_options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(JUDGE, broken)
    node.receive(*chest())
    node.settle()
    node.intake.tick()
    assert node.all_jobs() == []
    node.intake.tick()
    assert summary(node) == [(jobs.REFUSAL, JobState.QUEUED, "SOFTWARE_FAILURE")]
    assert [state for state, _ in node.states().values()] == [INELIGIBLE]
    node.quiet()
    assert len(node.all_jobs()) == 1


def test_a_busy_database_is_no_reason_to_give_a_study_up(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_headers: Any, **_options: Any) -> Any:
        raise OperationalError("BEGIN", {}, Exception("database is locked"))

    real = judge_series
    monkeypatch.setattr(JUDGE, busy)
    node.receive(*chest())
    for _ in range(9):
        node.settle()
    monkeypatch.setattr(JUDGE, real)
    node.intake.tick()
    assert summary(node) == [(jobs.ANALYSIS, JobState.QUEUED, None)]


def test_a_file_that_is_no_dicom_any_more_ends_in_a_refusal(node: SmallNode) -> None:
    node.receive(*chest())
    with node.database.read() as session:
        path = session.execute(select(Instance.path)).scalars().first()
    node.spool.absolute(path or "").write_bytes(b"\0" * 400)
    node.quiet()
    assert summary(node) == [(jobs.REFUSAL, JobState.QUEUED, ReasonCode.NOT_AN_IMAGE)]


def test_a_late_slice_of_a_series_whose_images_were_removed_ends_in_a_refusal(node: SmallNode) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()
    node.finish(*node.claim())
    with node.database.write() as session:
        for row in session.execute(select(Instance)).scalars():
            row.path = None
    node.receive(late)
    node.quiet()
    assert set(node.states().values()) == {(INELIGIBLE, "GAP")}
    assert summary(node)[1:] == [(jobs.REFUSAL, JobState.QUEUED, "GAP")]


def test_a_removed_series_of_the_study_keeps_its_end(node: SmallNode) -> None:
    first = chest(seed="first", study_uid=STUDY)
    node.receive(*first)
    node.settle()
    node.finish(*node.claim())
    with node.database.write() as session:
        for row in session.execute(select(Instance)).scalars():
            row.path = None
    node.receive(*localizer())
    node.quiet()
    assert node.states()[uid(first)] == (QUEUED, None)
    assert summary(node) == [(jobs.ANALYSIS, JobState.SUCCEEDED, None)]
