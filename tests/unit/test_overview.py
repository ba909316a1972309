from __future__ import annotations

import tomllib
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pacs_node import audit
from pacs_node.alarms import alarms
from pacs_node.config import Caller
from pacs_node.db import Database
from pacs_node.overview import DiskSpace, Overview, RefusedAssociation, disk_space, overview
from pacs_node.queries import StudyWord
from pacs_node.states import DeliveryState
from tests.node_story import START, VERSION, Story, analysed

MIDNIGHT = START.replace(hour=0)
ROOM = DiskSpace(free=10 << 30, total=20 << 30, reserve=5 << 30)


def ask(story: Story, now: datetime | None = None, destinations: tuple[str, ...] = ()) -> Overview:
    with story.database.read() as session:
        return overview(session, now or story.now, MIDNIGHT, destinations)


def test_empty_node_is_calm(story: Story) -> None:
    seen = ask(story, destinations=("pacs",))
    assert (seen.queued, seen.running, seen.failures, seen.last_pipeline) == (0, (), (), None)
    assert not any(seen.today.values())
    assert [row.name for row in seen.destinations] == ["pacs"]
    assert alarms(seen, ROOM) == ()


def test_studies_of_today_by_state(story: Story, database: Database, tmp_path: Path) -> None:
    yesterday = Story(database, tmp_path, "old", now=START - timedelta(days=1))
    analysed(yesterday)
    analysed(story)
    Story(database, tmp_path, "b", now=START).receive().close().queue().start()
    Story(database, tmp_path, "c", now=START).receive()
    counts = {word: count for word, count in ask(story).today.items() if count}
    assert counts == {StudyWord.ANALYSED: 1, StudyWord.ANALYSING: 1, StudyWord.RECEIVING: 1}


def test_queue_and_running_job(story: Story, database: Database, tmp_path: Path) -> None:
    story.receive().close().queue().start()
    waiting = Story(database, tmp_path, "b", now=START).receive().close().queue()
    seen = ask(story)
    assert [(job.study_uid, job.attempt, job.started_at) for job in seen.running] == [
        (story.study_uid, 1, story.now)
    ]
    assert (seen.queued, seen.oldest_queued, seen.last_pipeline) == (1, waiting.now, VERSION)


def test_outbox_of_each_destination(story: Story, database: Database, tmp_path: Path) -> None:
    analysed(story).deliver(DeliveryState.COMMITTED)
    failing = Story(database, tmp_path, "b", now=story.now).receive().close().queue().start()
    failing.finish(destinations=(("pacs", ("seg",)), ("viewer", ("sr",))))
    made_at = failing.now
    failing.deliver(DeliveryState.PENDING, status="connection refused")
    pacs, viewer = ask(failing, destinations=("pacs",)).destinations
    assert (pacs.name, pacs.pending, pacs.unverified, pacs.failed) == ("pacs", 1, 0, 0)
    assert (pacs.oldest_pending, pacs.last_verified) == (made_at, story.now)
    assert (viewer.name, viewer.last_sent, viewer.last_error) == ("viewer", None, "connection refused")


def test_a_destination_without_news_that_left_the_configuration_is_not_listed(story: Story) -> None:
    analysed(story).deliver(DeliveryState.COMMITTED)
    assert ask(story).destinations == ()


def test_refused_callers_are_counted_the_newest_first(story: Story) -> None:
    story.refuse_association("A", "10.0.0.1").wait(1)
    story.refuse_association("B", "10.0.0.2", "OTHER").wait(1).refuse_association("A", "10.0.0.1")
    assert ask(story).refused_associations == (
        RefusedAssociation("A", "CTNODE", "10.0.0.1", story.now, 2),
        RefusedAssociation("B", "OTHER", "10.0.0.2", story.now - timedelta(seconds=1), 1),
    )


@pytest.mark.parametrize("ae_title", ["PACS", 'QUO"TE', "\x1b[31m", "ÄE", "\x7f"])
def test_toml_lines_admit_the_refused_caller(ae_title: str) -> None:
    refused = RefusedAssociation(ae_title, "CTNODE", "10.0.0.1", START, 1)
    (table,) = tomllib.loads(refused.toml())["callers"]
    assert table == {"ae_title": ae_title, "address": "10.0.0.1"}


def test_a_caller_may_have_been_admitted_since() -> None:
    refused = RefusedAssociation("PACS", "CTNODE", "10.0.0.1", START, 1)
    assert refused.admitted_by([Caller(ae_title="PACS", address="10.0.0.0/24")])
    assert not refused.admitted_by([Caller(ae_title="OTHER", address="10.0.0.0/24")])
    nameless = RefusedAssociation("PACS", "CTNODE", "no address", START, 1)
    assert not nameless.admitted_by([Caller(ae_title="PACS", address="10.0.0.0/24")])


def test_refused_objects(story: Story) -> None:
    with story.database.write() as session:
        audit.record(
            session,
            audit.Event.INSTANCE_REFUSED,
            at=START,
            actor="listener",
            calling_ae="PACS",
            status="C000",
            reason="no valid UID",
        )
    (refused,) = ask(story).refused_instances
    assert (refused.calling_ae, refused.status, refused.reason, refused.at) == (
        "PACS",
        "C000",
        "no valid UID",
        START,
    )


def test_disk_space_is_that_of_the_directory(tmp_path: Path) -> None:
    assert not disk_space(tmp_path, 0).low
    assert disk_space(tmp_path, 1 << 62).low
