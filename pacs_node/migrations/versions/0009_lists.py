"""Lists of studies and of the audit record stay fast: words in the row of a study, and indexes."""

from __future__ import annotations

from itertools import islice

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
    failed = sa.text("outcome > 0")
    op.create_index(
        "audit_event_failures", "audit_event", ["at"], sqlite_where=failed, postgresql_where=failed
    )


def _fill_search() -> None:
    connection, columns = op.get_bind(), _STUDY.c
    rows = iter(connection.execute(sa.select(columns.id, *(columns[name] for name in _TEXTS))).all())
    fill = sa.update(_STUDY).where(columns.id == sa.bindparam("key")).values(search=sa.bindparam("folded"))
    while some := list(islice(rows, 5000)):
        connection.execute(fill, [{"key": row[0], "folded": folded(*row[1:])} for row in some])


def _fill_words() -> None:
    states = [("running",), ("queued",), ("succeeded", "failed"), ("cancelled",)]
    op.execute(
        sa.update(_STUDY).values(shown_job_id=sa.func.coalesce(*[_latest_job(*some) for some in states]))
    )
    op.execute(sa.update(_STUDY).values(state=_word()))
    on_its_way = _STUDY.c.state.in_(["receiving", "received"])
    op.execute(sa.update(_STUDY).where(on_its_way).values(shown_job_id=None))
    op.execute(sa.update(_STUDY).where(_STUDY.c.shown_job_id.is_not(None)).values(delivery=_worst()))


def _latest_job(*states: str) -> sa.ScalarSelect[int]:
    """Number of the last job of a study that has one of the states."""
    query = sa.select(sa.func.max(_JOB.c.id)).join(_SERIES, _JOB.c.series_id == _SERIES.c.id)
    its = _SERIES.c.study_id == _STUDY.c.id
    return query.where(its, _JOB.c.state.in_(states)).correlate(_STUDY).scalar_subquery()


def _word() -> sa.Case[str]:
    def has_series(state: str) -> sa.Exists:
        return sa.exists().where(_SERIES.c.study_id == _STUDY.c.id, _SERIES.c.state == state)

    of_job = sa.case(
        (_JOB.c.state == "running", "analysing"),
        (_JOB.c.state != "succeeded", _JOB.c.state),
        (_JOB.c.outcome == "not_analysed", "not analysed"),
        else_="analysed",
    )
    return sa.case(
        (has_series("receiving"), "receiving"),
        (has_series("complete"), "received"),
        (_STUDY.c.shown_job_id.is_(None), "nothing to analyse"),
        else_=sa.select(of_job).where(_JOB.c.id == _STUDY.c.shown_job_id).scalar_subquery(),
    )


def _worst() -> sa.Case[str]:
    def has(state: str, *further: sa.ColumnElement[bool]) -> sa.Exists:
        return sa.exists().where(
            _DELIVERY.c.artifact_id == _ARTIFACT.c.id,
            _ARTIFACT.c.job_id == _STUDY.c.shown_job_id,
            _DELIVERY.c.state == state,
            *further,
        )

    tried = sa.and_(_DELIVERY.c.attempts > 0, _DELIVERY.c.next_attempt_at != _DELIVERY.c.created_at)
    return sa.case(
        (has("failed"), "delivery failed"),
        (has("pending", tried), "delivery failing"),
        (has("sending"), "being sent"),
        (has("pending"), "waiting to be sent"),
        (has("sent"), "sent, not verified"),
        (has("committed"), "visible in PACS"),
    )
