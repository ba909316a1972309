from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from pacs_node import audit, jobs
from pacs_node.db import Database, Study
from pacs_node.queries import (
    DeliveryWord,
    StudyState,
    StudyWord,
    TimelineLine,
    Tone,
    find_studies,
    study_state,
    timeline,
)
from pacs_node.states import DeliveryState
from pacs_node.study_search import StudyQuery, list_studies
from pacs_node.timeline import words
from tests.node_story import START, Story, analysed


def state_of(story: Story) -> StudyState:
    with story.database.read() as session:
        query = select(Study).where(Study.study_uid == story.study_uid)
        return study_state(session, session.execute(query).scalar_one())


def steps_of(story: Story) -> list[tuple[str, str]]:
    return [(line.step, line.detail) for line in lines_of(story)]


def lines_of(story: Story) -> tuple[TimelineLine, ...]:
    with story.database.read() as session:
        return timeline(session, story.study_uid)


def test_words_of_a_study_on_its_way(story: Story) -> None:
    story.receive(3)
    assert (state_of(story).word, state_of(story).detail) == (
        StudyWord.RECEIVING,
        "3 images so far, 1 of 1 series open",
    )
    assert state_of(story).since == story.now
    assert state_of(story.close()).word is StudyWord.RECEIVED
    queued_at = story.queue().now
    assert (state_of(story).word, state_of(story).since) == (StudyWord.QUEUED, queued_at)
    assert (state_of(story.start()).word, state_of(story).detail) == (StudyWord.ANALYSING, "attempt 1")
    assert not state_of(story).finished
    story.finish()
    assert (state_of(story).word, state_of(story).since) == (StudyWord.ANALYSED, story.now)
    assert state_of(story).result_path == "results/00000001/result.json"
    assert state_of(story).delivery is not None
    assert not state_of(story).finished


def delivery_of(story: Story) -> tuple[DeliveryWord, str]:
    summary = state_of(story).delivery
    assert summary is not None
    return summary.word, summary.detail


def test_words_of_results_on_their_way(story: Story) -> None:
    analysed(story)
    assert delivery_of(story) == (DeliveryWord.WAITING, "")
    story.deliver(DeliveryState.PENDING, status="connection refused")
    assert delivery_of(story) == (DeliveryWord.FAILING, "pacs: connection refused")
    story.wait(30).deliver(DeliveryState.SENT)
    assert delivery_of(story) == (DeliveryWord.SENT, "")
    story.wait(30)._move(DeliveryState.COMMITTED, only=DeliveryState.SENT, verified_at=story.now)
    assert delivery_of(story) == (DeliveryWord.VISIBLE, "")


def test_verified_results_end_the_study(story: Story) -> None:
    analysed(story).deliver(DeliveryState.COMMITTED)
    state = state_of(story)
    assert state.delivery is not None
    assert (state.delivery.word, state.delivery.since) == (DeliveryWord.VISIBLE, story.now)
    assert state.finished


def test_the_worst_destination_speaks(story: Story) -> None:
    story.receive().close().queue().start().finish(destinations=(("pacs", ("sr",)), ("viewer", ("seg",))))
    story.deliver(DeliveryState.FAILED, status="A900 refused")
    assert delivery_of(story) == (DeliveryWord.FAILED, "pacs: A900 refused; viewer: A900 refused")
    assert state_of(story).finished


def test_refused_study_says_why(story: Story) -> None:
    reason = ("TOO_THICK", "Slices are 8.0 mm thick; at most 3 mm.")
    story.receive().close().set_aside(1, *reason).queue(refusal=reason)
    assert state_of(story).word is StudyWord.QUEUED
    assert state_of(story).detail.endswith("TOO_THICK: Slices are 8.0 mm thick; at most 3 mm.")
    story.start().finish(reason=reason, kinds=("sr",))
    state = state_of(story)
    assert (state.word, state.detail) == (StudyWord.NOT_ANALYSED, ": ".join(reason))
    assert state.tone is Tone.NOTICE


def test_failed_study_says_why(story: Story) -> None:
    story.receive().close().queue().start().interrupt("time limit")
    assert (state_of(story).word, state_of(story).detail) == (StudyWord.QUEUED, "time limit")
    reason = ("SOFTWARE_FAILURE", "The analysis failed 2 times (time limit).")
    story.start().finish(failed=True, reason=reason, kinds=("sr",))
    assert (state_of(story).word, state_of(story).tone) == (StudyWord.FAILED, Tone.FAILED)
    assert state_of(story).detail == ": ".join(reason)


def test_study_without_a_job_says_what_it_was(story: Story) -> None:
    story.receive(1, modality="SR").close().set_aside(1, "NOT_CT", "It is a report.")
    state = state_of(story)
    assert (state.word, state.detail) == (StudyWord.NOTHING_TO_ANALYSE, "NOT_CT: It is a report.")
    assert state.finished


def test_late_image_opens_the_study_again(story: Story) -> None:
    analysed(story).wait(60).receive(1, first=10)
    assert state_of(story).word is StudyWord.RECEIVING
    assert ("late image", "series 1 (CT) is open again") in steps_of(story)


def test_timeline_of_the_whole_way(story: Story) -> None:
    story.receive(3).receive(1, series=2, modality="SR").close().close(2)
    story.set_aside(2, "NOT_CT", "It is a report.").queue().start().interrupt("time limit").start().finish()
    story.deliver(DeliveryState.PENDING, status="connection refused").wait(30)
    story.deliver(DeliveryState.COMMITTED)
    assert steps_of(story) == [
        ("first image", "series 1 (CT) from PACS"),
        ("first image", "series 2 (SR) from PACS"),
        ("series complete", "series 1 (CT): 3 images, no gap and quiet"),
        ("series complete", "series 2 (SR): 1 image, no gap and quiet"),
        ("series set aside", "series 2 (SR): NOT_CT: It is a report."),
        ("analysis queued", "job 1, series 1 (CT) chosen, pipeline classical-1.0+abcdef"),
        ("analysis started", "job 1, attempt 1, after 4.0 s in the queue"),
        ("analysis interrupted", "job 1, attempt 1: time limit; queued again"),
        ("analysis started", "job 1, attempt 2, after 9.0 s in the queue"),
        ("analysed", "job 1"),
        ("results to send", "SEG and SR to pacs"),
        ("sending failed", "SEG to pacs, attempt 1: connection refused"),
        ("sending failed", "SR to pacs, attempt 1: connection refused"),
        ("sent", "SEG to pacs: 0000 success"),
        ("sent", "SR to pacs: 0000 success"),
        ("verified", "SEG found at pacs"),
        ("verified", "SR found at pacs"),
    ]
    lines = lines_of(story)
    assert [line.at for line in lines] == sorted(line.at for line in lines)
    durations = {line.detail: line.duration for line in lines}
    assert durations["job 1"] == timedelta(seconds=60)
    assert durations["SEG to pacs: 0000 success"] == timedelta(seconds=2)
    assert durations["SEG found at pacs"] == timedelta(seconds=3)
    assert {line.step for line in lines if line.failure} == {"analysis interrupted", "sending failed"}


def test_timeline_says_who_asked_for_another_try(story: Story) -> None:
    story.receive().close().queue().start().finish(failed=True, reason=("DECODE", "Broken."), kinds=("sr",))
    with story.database.write() as session:
        study = session.scalars(select(Study)).one()
        assert jobs.requeue_study(session, study, at=story.now, actor="cli:me") == 1
    assert steps_of(story)[-1] == ("analysis queued again", "job 1: requeued by an operator")


def test_timeline_shows_what_is_being_sent_now(story: Story) -> None:
    analysed(story)
    story._move(DeliveryState.SENDING, only=DeliveryState.PENDING, count=True)
    assert steps_of(story)[-2:] == [
        ("sending", "SEG to pacs, attempt 1"),
        ("sending", "SR to pacs, attempt 1"),
    ]


def test_timeline_passes_on_events_that_it_doesnt_know(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    with story.database.write() as session:
        audit.record(
            session, audit.Event.NODE_STARTED, at=START, actor="web", study_uid=story.study_uid, pid=7
        )
    assert steps_of(story) == [("node started", "web: pid 7")]


def test_unknown_study_has_no_timeline(story: Story) -> None:
    assert steps_of(story) == []


@pytest.fixture
def three(database: Database, tmp_path: Path) -> list[Story]:
    people = [("Doe^Jane", "PID-1", "ACC-1"), ("Roe^Richard", "PID-2", "ACC_2"), ("Doe^John", "PID-3", "50%")]
    stories = [
        Story(database, tmp_path, name, patient_name=who, patient_id=pid, accession_number=accession)
        for name, (who, pid, accession) in zip("abc", people, strict=True)
    ]
    for story in stories:
        story.receive(1)
    return stories


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", "cba"),
        ("doe", "ca"),
        ("jane DOE", "a"),
        ("PID-2", "b"),
        ("_", "b"),
        ("%", "c"),
        ("doe pid-3", "c"),
        ("nobody", ""),
        ("\x00", "cba"),
        ("jane\x00doe", "a"),
        ("\\", ""),
        ("'; drop table study; --", ""),
    ],
)
def test_search(three: list[Story], search: str, found: str) -> None:
    names = {story.study_uid: story.name for story in three}
    with three[0].database.read() as session:
        lines = list_studies(session, StudyQuery(search))
    assert "".join(names[line.study_uid] for line in lines) == found


def test_search_by_study_uid(three: list[Story]) -> None:
    with three[0].database.read() as session:
        assert [line.patient_id for line in list_studies(session, StudyQuery(three[1].study_uid))] == [
            "PID-2"
        ]


def test_pages_follow_each_other(three: list[Story]) -> None:
    with three[0].database.read() as session:
        first = list_studies(session, StudyQuery(), limit=2)
        second = list_studies(session, StudyQuery(), first[-1].id, 2)
        assert [line.patient_id for line in (*first, *second)] == ["PID-3", "PID-2", "PID-1"]
        assert list_studies(session, StudyQuery(), second[-1].id) == ()
        assert list_studies(session, StudyQuery(), 10**30) == ()


def test_list_counts_images_and_names_modalities(story: Story) -> None:
    story.receive(3).receive(2, series=2, modality="SR")
    with story.database.read() as session:
        (line,) = list_studies(session, StudyQuery())
    assert (line.n_images, line.modalities, line.received_at) == (
        5,
        ("CT", "SR"),
        START + timedelta(seconds=0.1),
    )


def test_find_by_each_key(three: list[Story]) -> None:
    with three[0].database.read() as session:
        for key in (three[1].study_uid, "PID-2", "ACC_2"):
            assert [study.study_uid for study in find_studies(session, key)] == [three[1].study_uid]
        assert find_studies(session, "PID") == []
        assert find_studies(session, "") == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (356400, "4 d 3 h"),
        (-1, "0.0 s"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert words(timedelta(seconds=seconds)) == text


@given(st.floats(0, 1e8))
def test_durations_never_show_sixty(seconds: float) -> None:
    assert "60" not in words(timedelta(seconds=seconds)).split(" d ")[-1].split()
