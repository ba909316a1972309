"""Dead letters: listed with their cause, and given another chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from pacs_node.cli import main
from pacs_node.db import Delivery, Job
from pacs_node.dead_letters import ANALYSIS, dead_letters, requeue
from pacs_node.states import DeliveryState, JobState
from tests.small_node import SmallNode


@pytest.fixture
def failed(node: SmallNode) -> SmallNode:
    """One study whose SEG one destination refused, one that could not be analysed."""
    for seed in "ab":
        node.queue(seed)
    job, token = node.claim()
    both = [("pacs", ("seg", "sr")), ("archive", ("sr",))]
    node.finish(job, token, node.result(job), destinations=both)
    with node.database.write() as session:
        lost = {"state": DeliveryState.FAILED, "status": "refused: not authorised", "attempts": 4}
        session.execute(update(Delivery).where(Delivery.id == 1).values(**lost))
    job, token = node.claim()
    node.finish(job, token, state=JobState.FAILED, outcome=None)
    with node.database.write() as session:
        session.execute(update(Job).where(Job.id == job.id).values(reason="it died three times"))
    return node


def test_each_has_its_cause(failed: SmallNode) -> None:
    with failed.database.read() as session:
        found = [(item.place, item.what, item.cause, item.attempts) for item in dead_letters(session)]
        assert found == [
            (ANALYSIS, "analysis", "it died three times", 1),
            ("pacs", "seg", "refused: not authorised", 4),
        ]
        assert [item.place for item in dead_letters(session, place="pacs")] == ["pacs"]
        study = failed.all_jobs()[1].series.study.study_uid
        assert [item.place for item in dead_letters(session, study_uid=study)] == [ANALYSIS]


def test_another_chance_is_given_once_and_whole(failed: SmallNode) -> None:
    failed.clock.forward(hours=100)
    with failed.database.write() as session:
        letters = dead_letters(session)
        assert requeue(session, letters, at=failed.clock(), actor="operator") == 2
        assert requeue(session, letters, at=failed.clock(), actor="operator") == 0
        assert dead_letters(session) == []
    delivery = failed.all_deliveries()[0]
    assert (delivery.state, delivery.created_at) == (DeliveryState.PENDING, failed.clock.now)
    job = failed.all_jobs()[1]
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


def test_the_command_lists_and_requeues(failed: SmallNode, tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'[storage]\ndirectory = "{failed.spool.directory}"\n')
    run = CliRunner()
    listed = run.invoke(main, ["failed", "--config", str(config)])
    assert "pacs  seg: refused: not authorised (4 attempts)" in listed.output
    again = run.invoke(main, ["failed", "--config", str(config), "--to", "pacs", "--requeue"])
    assert again.output.endswith("requeued 1\n")
    assert failed.all_deliveries()[0].state is DeliveryState.PENDING
    rest = run.invoke(main, ["failed", "--config", str(config), "--to", "pacs"])
    assert rest.output == "nothing has failed\n"
