from __future__ import annotations

from sqlalchemy import select

from pacs_node import jobs, lifecycle
from pacs_node.db import Artifact, Job
from pacs_node.states import JobState
from tests.faults.invariants import _one_result
from tests.small_node import START, SmallNode


def test_another_report_needs_an_operator_who_asked(node: SmallNode) -> None:
    """A job that was given up has a report; the one after a requeue isn't a duplicate, any other is."""
    node.queue()
    with node.database.write() as session:
        job = session.scalars(select(Job)).one()
        add_report(job, "1.2.1")
        session.flush()
        assert list(_one_result(session)) == []
        add_report(job, "1.2.2")
        session.flush()
        assert list(_one_result(session)) == [f"job {job.id} has 2 objects sr"]
        for state in (JobState.RUNNING, JobState.FAILED):
            lifecycle.move_job(session, job, state, at=START, actor="worker")
        jobs.requeue(session, job, at=START, actor="me")
        session.flush()
        assert list(_one_result(session)) == []
        add_report(job, "1.2.3")
        session.flush()
        assert list(_one_result(session)) == [f"job {job.id} has 3 objects sr"]


def add_report(job: Job, uid: str) -> None:
    job.artifacts.append(Artifact(kind="sr", path=f"results/{uid}", sha256=uid, sop_instance_uid=uid))
