"""Hold and requeue: an operator's word revives what is wanted, nothing else, and lasts until the next one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import select, update

from pacs_node import dead_letters, jobs, operator_actions
from pacs_node.config import RetentionSettings
from pacs_node.damage import give_up_damaged
from pacs_node.db import Instance, Job
from pacs_node.held import held_studies
from pacs_node.operator_actions import NothingToDoError, Word
from pacs_node.retention import Retention
from pacs_node.states import CancelCause, JobState, SeriesState
from tests.small_node import START, SmallNode, chest
from tests.unit.test_intake import STUDY, localizer
from tests.unit.test_worker import Case, case, drain, fail, make_worker  # noqa: F401 - a fixture

Act = Callable[..., int]
QUEUED, CANCELLED, SUCCEEDED, FAILED = (
    JobState.QUEUED,
    JobState.CANCELLED,
    JobState.SUCCEEDED,
    JobState.FAILED,
)


def act(node: SmallNode, action: Act, reason: str = "asked Dr Miller first", study: str = STUDY) -> int:
    with node.database.write() as session:
        return action(session, study, Word("user:op", "", reason, node.clock()))


def story(node: SmallNode) -> list[tuple[str, JobState, CancelCause | None]]:
    return [(row.kind, row.state, row.cancelled_because) for row in node.all_jobs()]


def end(node: SmallNode, state: JobState = SUCCEEDED) -> None:
    job, token = node.claim()
    outcome = jobs.NOT_ANALYSED if job.kind == jobs.REFUSAL else jobs.ANALYSED
    node.finish(job, token, state=state, outcome=outcome if state is SUCCEEDED else None)


def good(**options: Any) -> list[Dataset]:
    return chest(study_uid=STUDY, **options)


def held(node: SmallNode) -> list[str]:
    with node.database.read() as session:
        return [row.reason for row in held_studies(session)]


def test_a_withdrawn_report_is_not_revived(node: SmallNode) -> None:
    """A scout comes first, then the chest: its analysis failed, and only that is done again."""
    node.receive(*localizer())
    node.quiet()
    node.receive(*good())
    node.quiet()
    end(node, FAILED)
    assert act(node, operator_actions.requeue) == 1
    withdrawn = (jobs.REFUSAL, CANCELLED, CancelCause.WITHDRAWN)
    assert story(node) == [withdrawn, (jobs.ANALYSIS, QUEUED, None)]
    end(node)
    assert story(node) == [withdrawn, (jobs.ANALYSIS, SUCCEEDED, None)]
    with pytest.raises(NothingToDoError):
        act(node, operator_actions.requeue)


def test_a_series_that_was_set_aside_is_not_analysed_too(node: SmallNode) -> None:
    thick, thin = good(seed="thick", spacing_mm=4.0), good(n_slices=14, seed="thin", spacing_mm=2.8)
    node.receive(*thick)
    node.quiet()
    node.receive(*thin)
    node.quiet()
    end(node, FAILED)
    assert act(node, operator_actions.requeue) == 1
    end(node)
    analysis = jobs.ANALYSIS
    assert story(node) == [(analysis, CANCELLED, CancelCause.SET_ASIDE), (analysis, SUCCEEDED, None)]


def test_a_failure_that_later_images_overtook_is_no_work(node: SmallNode) -> None:
    *slices, late = good(n_slices=13)
    node.receive(*slices)
    node.quiet()
    end(node, FAILED)
    node.receive(late)
    node.quiet()
    end(node)
    with pytest.raises(NothingToDoError):
        act(node, operator_actions.requeue)
    with node.database.write() as session:
        letters = dead_letters.dead_letters(session)
        assert dead_letters.requeue(session, letters, at=node.clock(), actor="op") == 0


def test_a_report_that_was_held_keeps_its_own_reason(node: SmallNode, case: Case) -> None:  # noqa: F811
    node.receive(*localizer())
    node.quiet()
    before = node.all_jobs()[0].reason
    act(node, operator_actions.hold)
    (job,) = node.all_jobs()
    assert (job.reason_code, job.reason, job.cancelled_reason) == (
        "LOCALIZER",
        before,
        "asked Dr Miller first",
    )
    act(node, operator_actions.requeue)
    drain(node, make_worker(node))
    assert [request.refusal.sentence for request in case.requests if request.refusal] == [before]


def test_a_report_that_failed_keeps_its_own_reason(node: SmallNode, case: Case) -> None:  # noqa: F811
    node.receive(*localizer())
    node.quiet()
    case.script = [fail] * 6
    drain(node, make_worker(node))
    (job,) = node.all_jobs()
    assert (job.state, job.reason_code, job.last_error) == (FAILED, "LOCALIZER", "ZeroDivisionError")
    act(node, operator_actions.requeue)
    drain(node, make_worker(node))
    assert story(node) == [(jobs.REFUSAL, SUCCEEDED, None)]
    assert node.all_jobs()[0].reason_code == "LOCALIZER"


def test_late_images_of_a_report_leave_its_reason(node: SmallNode) -> None:
    *scout, late = localizer(2)
    node.receive(*scout)
    node.quiet()
    job, token = node.claim()
    node.receive(late, *good())
    node.finish(job, token, outcome=jobs.NOT_ANALYSED)
    (job,) = node.all_jobs()
    assert (job.state, job.cancelled_because, job.reason_code) == (CANCELLED, CancelCause.LATE, "LOCALIZER")


def test_no_job_blocks_those_behind_it(node: SmallNode, case: Case) -> None:  # noqa: F811
    """Whatever its request raises is an attempt of its own: also a row that no version of ours writes."""
    node.receive(*localizer())
    node.quiet()
    node.receive(*chest(seed="another patient"))
    node.quiet()
    with node.database.write() as session:
        session.execute(update(Job).where(Job.id == 1).values(reason_code=None))
    drain(node, make_worker(node))
    assert story(node) == [(jobs.REFUSAL, FAILED, None), (jobs.ANALYSIS, SUCCEEDED, None)]
    assert node.all_jobs()[0].last_error == "a fault of this software (ValueError)"


def test_a_result_that_cannot_be_noted_is_an_attempt(
    node: SmallNode,
    case: Case,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node.receive(*good())
    node.quiet()

    def broken(*_args: object, **_values: object) -> None:
        raise LookupError

    monkeypatch.setattr(jobs, "finish", broken)
    drain(node, make_worker(node))
    assert story(node) == [(jobs.ANALYSIS, FAILED, None)]


def test_a_refusal_needs_a_reason_code(node: SmallNode) -> None:
    node.queue()
    with node.database.write() as session, pytest.raises(ValueError, match="reason code"):
        jobs.enqueue(
            session,
            session.get_one(Job, 1).series,
            kind=jobs.REFUSAL,
            input_digest="x",
            pipeline_version="x",
            at=START,
            actor="test",
        )


# --- hold


def test_late_images_do_not_undo_a_hold(node: SmallNode) -> None:
    *slices, late = good(n_slices=13)
    node.receive(*slices)
    node.quiet()
    act(node, operator_actions.hold)
    node.receive(late)
    node.quiet()
    analysis = jobs.ANALYSIS
    overtaken = (analysis, CANCELLED, CancelCause.LATE)
    assert story(node) == [overtaken, (analysis, CANCELLED, CancelCause.HELD)]
    assert held(node) == ["asked Dr Miller first"]
    assert act(node, operator_actions.requeue) == 1
    assert story(node) == [overtaken, (analysis, QUEUED, None)]
    assert held(node) == []


@pytest.mark.parametrize("hours", [0, 1])
def test_a_better_series_is_held_too(node: SmallNode, hours: int) -> None:
    node.receive(*localizer())
    node.quiet()
    act(node, operator_actions.hold)
    node.clock.forward(hours=hours)
    node.receive(*good())
    node.quiet()
    withdrawn = (jobs.REFUSAL, CANCELLED, CancelCause.WITHDRAWN)
    assert story(node) == [withdrawn, (jobs.ANALYSIS, CANCELLED, CancelCause.HELD)]
    act(node, operator_actions.requeue)
    assert story(node) == [withdrawn, (jobs.ANALYSIS, QUEUED, None)]


def test_released_while_images_come_it_is_analysed_with_them(node: SmallNode) -> None:
    *slices, late = good(n_slices=13)
    node.receive(*slices)
    node.quiet()
    act(node, operator_actions.hold)
    node.receive(late)
    assert act(node, operator_actions.requeue) == 1
    node.quiet()
    assert [row for row in story(node) if row[1] is QUEUED] == [(jobs.ANALYSIS, QUEUED, None)]


def test_released_while_another_series_comes_the_chosen_one_is_analysed(node: SmallNode) -> None:
    node.receive(*good())
    node.quiet()
    act(node, operator_actions.hold)
    node.receive(*localizer())
    assert act(node, operator_actions.requeue) == 1
    node.quiet()
    assert story(node) == [(jobs.ANALYSIS, QUEUED, None)]


def test_a_doubtful_copy_of_a_held_series_is_judged(node: SmallNode) -> None:
    slices = good()
    node.receive(*slices)
    node.quiet()
    act(node, operator_actions.hold)
    slices[0].PatientComments = "other bytes"
    node.receive(slices[0])
    node.quiet()
    assert [code for _, code in node.states().values()] == ["CONFLICT"]
    assert held(node) == ["asked Dr Miller first"]


def test_retention_keeps_what_was_never_analysed(node: SmallNode) -> None:
    node.receive(*good())
    node.quiet()
    act(node, operator_actions.hold)
    retention = Retention(node.database, node.spool, RetentionSettings(images_days=30), node.clock)
    node.clock.forward(days=400)
    assert retention.purge() == 0
    with node.database.write() as session:
        # however it came to be: work that nobody ended
        session.execute(update(Job).values(cancelled_because=CancelCause.SET_ASIDE))
    assert retention.purge() == 0


# --- images that were damaged


def damage(node: SmallNode, slices: list[Dataset]) -> None:
    uids = [str(ds.SOPInstanceUID) for ds in slices]
    with node.database.read() as session:
        rows = session.scalars(select(Instance).where(Instance.sop_instance_uid.in_(uids))).all()
    for row in rows:
        node.spool.absolute(row.path or "").write_bytes(b"\0" * 4096)
    assert give_up_damaged(node.database, node.spool, START, node.clock) == len(slices)


@pytest.mark.parametrize("begun", ["receiving", "queued", "held"])
def test_a_part_of_a_series_is_refused_and_the_whole_analysed(
    node: SmallNode,
    case: Case,  # noqa: F811
    begun: str,
) -> None:
    slices = good(n_slices=14)
    node.receive(*slices)
    if begun != "receiving":
        node.quiet()
    if begun == "held":
        act(node, operator_actions.hold)
    damage(node, slices[:6])
    node.quiet()
    if begun == "held":
        assert held(node)
        act(node, operator_actions.requeue)
    drain(node, make_worker(node))
    assert [request.refusal.code.value for request in case.requests if request.refusal] == ["GAP"]
    assert len(case.requests) == 1
    node.receive(*slices[:3])
    node.quiet()
    drain(node, make_worker(node))
    assert len(case.requests) == 1
    node.receive(*slices[3:6])
    node.quiet()
    drain(node, make_worker(node))
    assert len(case.requests) == 2
    assert (case.requests[1].refusal, len(case.requests[1].files)) == (None, 14)
    assert node.all_jobs()[-1].state is SUCCEEDED
    node.receive(*slices[:6])
    assert not make_worker(node).tick()


def test_images_that_are_damaged_after_the_analysis_change_nothing(node: SmallNode, case: Case) -> None:  # noqa: F811
    slices = good()
    node.receive(*slices)
    node.quiet()
    drain(node, make_worker(node))
    damage(node, slices[:2])
    node.receive(slices[0])
    node.quiet()
    assert story(node) == [(jobs.ANALYSIS, SUCCEEDED, None)]
    assert [state for state, _ in node.states().values()] == [SeriesState.QUEUED]


def test_an_image_damaged_while_its_series_is_open_again_leaves_no_job_behind(node: SmallNode) -> None:
    slices = good()
    node.receive(*slices)
    node.quiet()
    other = copy.deepcopy(slices[0])
    other.PixelData = other.PixelData[::-1]
    node.receive(other)
    damage(node, slices[:2])
    assert [state for _, state, _ in story(node)] == [JobState.CANCELLED]


def test_an_image_that_is_gone_whatever_for_is_seen_before_the_analysis(node: SmallNode, case: Case) -> None:  # noqa: F811
    node.receive(*good())
    node.quiet()
    with node.database.write() as session:
        session.execute(update(Instance).where(Instance.id == 1).values(path=None))
    drain(node, make_worker(node))
    assert case.requests == []
    node.quiet()
    drain(node, make_worker(node))
    assert [request.refusal.code.value for request in case.requests if request.refusal] == ["GAP"]
