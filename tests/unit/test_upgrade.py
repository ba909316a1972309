"""Databases of earlier versions, with what stood in them: nothing is lost, and what was held stays held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select, text

from pacs_node.db import Database, Job, Study, sqlite_url
from pacs_node.states import CancelCause, JobState

AT = "2026-03-01 12:00:00"
SENTENCE = "The series has 3 slices, at least 12 are needed."
#: study, kind, state, reason_code, reason
JOBS = [
    (1, "refusal", "cancelled", None, "late instances arrived meanwhile"),
    (1, "analysis", "queued", None, None),
    (2, "refusal", "cancelled", "TOO_FEW_SLICES", "a suitable series arrived"),
    (2, "analysis", "cancelled", None, "held: asked Dr Miller first"),
    (3, "refusal", "cancelled", "TOO_FEW_SLICES", "held: 100% _sure_"),
    (4, "analysis", "cancelled", None, "held: wrong series"),
    (4, "analysis", "failed", "SOFTWARE_FAILURE", "The analysis failed 3 times."),
    (5, "analysis", "cancelled", None, "Series 2 was preferred."),
    (5, "refusal", "queued", "TOO_FEW_SLICES", "held: then requeued"),
    (5, "refusal", "failed", "SOFTWARE_FAILURE", "The analysis failed 3 times."),
]


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Database]:
    """A database of version 0011."""
    database = Database(sqlite_url(tmp_path))
    fill(database)
    yield database
    database.dispose()


def fill(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", "pacs_node:migrations")
    config.attributes["engine"] = database._writer
    command.upgrade(config, "0011")
    with database.write() as session:
        for study in range(1, 6):
            add(session, "study", id=study, study_uid=f"1.{study}", patient_id="", patient_name="",
                accession_number="", study_date="", description="", first_received_at=AT)  # fmt: skip
            add(session, "series", id=study, study_id=study, series_uid=f"1.{study}.1", modality="CT",
                description="", calling_ae="PACS", n_instances=1, last_received_at=AT,
                state="queued")  # fmt: skip
        for number, (study, kind, state, code, reason) in enumerate(JOBS, 1):
            add(session, "job", id=number, series_id=study, kind=kind, input_digest=str(number),
                pipeline_version="1", state=state, attempts=0, created_at=AT, not_before=AT, finished_at=AT,
                reason_code=code, reason=reason)  # fmt: skip
            said = {"reason_code": "TOO_FEW_SLICES", "reason": SENTENCE} if kind == "refusal" else {}
            add(session, "audit_event", seq=number, at=AT, actor="intake", event="job created",
                code="110103", outcome=0, study_uid=f"1.{study}", previous_hash="", hash=str(number),
                objects=json.dumps({"job": number, "kind": kind, **said}))  # fmt: skip


def add(session: Any, table: str, **values: Any) -> None:
    names = ", ".join(values)
    marks = ", ".join(f":{name}" for name in values)
    session.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), values)


def test_what_was_cancelled_gets_its_cause(old: Database) -> None:
    old.upgrade()
    check(old)


def check(database: Database) -> None:
    """What is right after the upgrade of `fill`."""
    late, withdrawn, aside, held = CancelCause
    with database.read() as session:
        jobs = session.scalars(select(Job).order_by(Job.id)).all()
        assert [(job.cancelled_because, job.cancelled_reason) for job in jobs] == [
            (late, "late instances arrived meanwhile"),
            (None, None),
            (withdrawn, "a suitable series arrived"),
            (held, "asked Dr Miller first"),
            (held, "100% _sure_"),
            (held, "wrong series"),
            (None, None),
            (aside, "Series 2 was preferred."),
            (None, None),
            (None, None),
        ]
        refusals = [(job.reason_code, job.reason) for job in jobs if job.kind == "refusal"]
        assert refusals == [("TOO_FEW_SLICES", SENTENCE)] * 5
        assert jobs[-1].last_error == "The analysis failed 3 times."
        assert [job.reason for job in jobs if job.kind == "analysis"] == [
            None, None, None, "The analysis failed 3 times.", None,
        ]  # fmt: skip
        assert [job.state for job in jobs] == [JobState(row[2]) for row in JOBS]
        assert session.scalars(select(Study.held_reason).order_by(Study.id)).all() == [
            None, "asked Dr Miller first", "100% _sure_", None, None,
        ]  # fmt: skip
