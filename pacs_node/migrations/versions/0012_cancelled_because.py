"""Columns for why a job was cancelled, for studies that are held, and for images given up as damaged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_HELD = "held: "
_WITHDRAWN = ("a suitable series arrived", "the study has changed")
_LATE = ("late instances arrived meanwhile", "its instances have changed")
_CAUSES = ("late", "withdrawn", "set aside", "held")
_STUDY = sa.table("study", *map(sa.column, ("id", "study_uid", "held_reason", "held_at")))
_SERIES = sa.table("series", *map(sa.column, ("id", "study_id")))
_REASONS = ("reason_code", "reason", "cancelled_because", "cancelled_reason", "last_error")
_JOB = sa.table("job", *map(sa.column, ("id", "series_id", "kind", "state", "finished_at", *_REASONS)))
_EVENT = sa.table(
    "audit_event", *map(sa.column, ("seq", "event", "study_uid")), sa.column("objects", sa.JSON())
)


def upgrade() -> None:
    """Add the columns and fill them from what the reasons of cancelled jobs begin with."""
    # as text: SQLite adds a checked column only so, Alembic would add the check by a second statement
    known = ", ".join(f"'{cause}'" for cause in _CAUSES)
    op.execute(
        "ALTER TABLE job ADD COLUMN cancelled_because VARCHAR(9) "
        f"CONSTRAINT cancelcause_known CHECK (cancelled_because IN ({known}))"
    )
    op.add_column("job", sa.Column("cancelled_reason", sa.String(), nullable=True))
    op.add_column("study", sa.Column("held_reason", sa.String(), nullable=True))
    op.add_column("study", sa.Column("held_at", sa.DateTime(), nullable=True))
    op.add_column("instance", sa.Column("damaged_at", sa.DateTime(), nullable=True))
    _name_causes()
    _hold_studies()
    _restore_reasons()


def _name_causes() -> None:
    """The reason of a cancelled job said why it was cancelled; for an analysis nothing else stood there."""
    job = _JOB.c
    held = job.reason.startswith(_HELD, autoescape=True)
    cause = sa.case(
        (held, "held"), (job.reason.in_(_WITHDRAWN), "withdrawn"), (job.reason.in_(_LATE), "late"),
        else_="set aside",
    )  # fmt: skip
    why = sa.case((held, sa.func.substr(job.reason, len(_HELD) + 1)), else_=job.reason)
    own = [sa.case((job.kind == "refusal", column), else_=None) for column in (job.reason_code, job.reason)]
    op.execute(
        _JOB.update()
        .where(job.state == "cancelled")
        .values(cancelled_because=cause, cancelled_reason=why, reason_code=own[0], reason=own[1])
    )


def _hold_studies() -> None:
    """Hold the studies that have a series whose newest job is held."""
    connection, later = op.get_bind(), _JOB.alias()
    newest = ~sa.exists().where(later.c.series_id == _JOB.c.series_id, later.c.id > _JOB.c.id)
    rows = connection.execute(
        sa.select(_SERIES.c.study_id, _JOB.c.cancelled_reason, _JOB.c.finished_at)
        .join(_SERIES, _JOB.c.series_id == _SERIES.c.id)
        .where(_JOB.c.cancelled_because == "held", newest)
        .order_by(_JOB.c.id)
    ).all()
    for study_id, reason, at in rows:
        op.execute(_STUDY.update().where(_STUDY.c.id == study_id).values(held_reason=reason, held_at=at))


def _restore_reasons() -> None:
    """What a report was to say was overwritten when its job stopped or failed: the audit record has it."""
    connection = op.get_bind()
    jobs = connection.execute(
        sa.select(_JOB.c.id, _JOB.c.state, _JOB.c.reason, _STUDY.c.study_uid)
        .join(_SERIES, _JOB.c.series_id == _SERIES.c.id)
        .join(_STUDY, _SERIES.c.study_id == _STUDY.c.id)
        .where(_JOB.c.kind == "refusal", _JOB.c.state != "succeeded")
    ).all()
    for job_id, state, reason, study_uid in jobs:
        events = connection.scalars(
            sa.select(_EVENT.c.objects)
            .where(_EVENT.c.study_uid == study_uid, _EVENT.c.event.in_(["job created", "job"]))
            .order_by(_EVENT.c.seq)
        )
        told = [
            objects
            for objects in events
            if objects.get("job") == job_id
            and objects.get("state", "queued") == "queued"
            and objects.get("reason_code")
        ]
        if told:
            values = {"reason_code": told[-1]["reason_code"], "reason": told[-1].get("reason", "")}
            if state == "failed":
                values["last_error"] = reason
            op.execute(_JOB.update().where(_JOB.c.id == job_id).values(**values))
