"""Lists of studies and of the audit record stay fast: words in the row of a study, and indexes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

from pacs_node.db import folded

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TEXTS = ("patient_id", "patient_name", "accession_number", "study_uid")
_STUDY = sa.table("study", *map(sa.column, ("id", *_TEXTS, "search", "state", "delivery", "shown_job_id")))
_SERIES = sa.table("series", *map(sa.column, ("id", "study_id", "state")))
_JOB = sa.table("job", *map(sa.column, ("id", "series_id", "state", "outcome")))
_ARTIFACT = sa.table("artifact", *map(sa.column, ("id", "job_id")))
_DELIVERY = sa.table(
    "delivery", *map(sa.column, ["artifact_id", "state", "attempts", "created_at", "next_attempt_at"])
)
#: the job that speaks for a study: what runs, else what waits, else the last that ended
_RANKS = {"cancelled": 0, "succeeded": 1, "failed": 1, "queued": 2, "running": 3}
#: of the results of a study the last of these that one of them has
_DELIVERIES = (
    "visible in PACS",
    "sent, not verified",
    "waiting to be sent",
    "being sent",
    "delivery failing",
    "delivery failed",
)
_WORDS = {"committed": 0, "sent": 1, "pending": 2, "sending": 3, "failed": 5}
_STILL_OPEN = (("receiving", "receiving"), ("complete", "received"))
_PIECE = 5000


def upgrade() -> None:
    """Add the columns, fill them from the rows that are there, add the indexes."""
    op.add_column("study", sa.Column("search", sa.String(), nullable=False, server_default=""))
    op.add_column("study", sa.Column("state", sa.String(), nullable=False, server_default="receiving"))
    op.add_column("study", sa.Column("delivery", sa.String(), nullable=True))
    op.add_column("study", sa.Column("shown_job_id", sa.Integer(), nullable=True))
    _fill_search()
    _fill_words()
    for column in ("patient_name", "study_date"):
        op.create_index(f"ix_study_{column}", "study", [column])
    for column in ("state", "delivery"):
        op.create_index(f"study_by_{column}", "study", [column, "first_received_at"])
    op.create_index("ix_audit_event_at", "audit_event", ["at"])
    for column in ("event", "actor"):
        op.create_index(f"audit_event_by_{column}", "audit_event", [column, "at"])
    op.create_index("audit_event_by_both", "audit_event", ["actor", "event", "at"])
    failed = sa.text("outcome > 0")
    op.create_index(
        "audit_event_failures", "audit_event", ["at"], sqlite_where=failed, postgresql_where=failed
    )


def _fill_search() -> None:
    connection, columns = op.get_bind(), _STUDY.c
    rows = connection.execute(sa.select(columns.id, *(columns[name] for name in _TEXTS))).all()
    _update([{"key": row[0], "new_search": folded(*row[1:])} for row in rows])


def _fill_words() -> None:
    """Write the words, reading each table once: a question for each study would take hours for 100,000."""
    connection = op.get_bind()
    open_: dict[int, set[str]] = {}
    for study_id, state in connection.execute(sa.select(_SERIES.c.study_id, _SERIES.c.state)):
        open_.setdefault(study_id, set()).add(state)
    jobs: dict[int, tuple[int, int, str]] = {}
    query = sa.select(_SERIES.c.study_id, _JOB.c.id, _JOB.c.state, _JOB.c.outcome)
    for study_id, job_id, state, outcome in connection.execute(
        query.join(_JOB, _JOB.c.series_id == _SERIES.c.id)
    ):
        jobs[study_id] = max(jobs.get(study_id, (-1, 0, "")), (_RANKS[state], job_id, _word(state, outcome)))
    deliveries = _worst(connection)
    rows: list[dict[str, object]] = []
    for study_id in connection.scalars(sa.select(_STUDY.c.id)):
        states = open_.get(study_id, set())
        state = next((new for old, new in _STILL_OPEN if old in states), None)
        job = jobs.get(study_id) if state is None else None
        rows.append(
            {
                "key": study_id,
                "new_state": state or (job[2] if job else "nothing to analyse"),
                "new_shown_job_id": job[1] if job else None,
                "new_delivery": deliveries.get(job[1]) if job else None,
            }
        )
    _update(rows)


def _word(state: str, outcome: str | None) -> str:
    if state == "succeeded":
        return "not analysed" if outcome == "not_analysed" else "analysed"
    return "analysing" if state == "running" else state


def _worst(connection: sa.Connection) -> dict[int, str]:
    """The word for the results of each job."""
    tried = sa.and_(_DELIVERY.c.attempts > 0, _DELIVERY.c.next_attempt_at != _DELIVERY.c.created_at)
    query = sa.select(_ARTIFACT.c.job_id, _DELIVERY.c.state, tried)
    worst: dict[int, int] = {}
    for job_id, state, was_tried in connection.execute(
        query.join(_DELIVERY, _DELIVERY.c.artifact_id == _ARTIFACT.c.id)
    ):
        place = 4 if state == "pending" and was_tried else _WORDS[state]
        worst[job_id] = max(worst.get(job_id, 0), place)
    return {job_id: _DELIVERIES[place] for job_id, place in worst.items()}


def _update(rows: Sequence[dict[str, object]]) -> None:
    if not rows:
        return
    values: dict[str, Any] = {
        name.removeprefix("new_"): sa.bindparam(name) for name in rows[0] if name != "key"
    }
    statement = sa.update(_STUDY).where(_STUDY.c.id == sa.bindparam("key")).values(values)
    for start in range(0, len(rows), _PIECE):
        op.get_bind().execute(statement, list(rows[start : start + _PIECE]))
