"""What analyses found, in columns, and what radiologists say of it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pacs_node.db import UtcDateTime

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def _summaries() -> None:
    op.create_index("job_finished", "job", ["finished_at"])
    op.create_table(
        "analysis_summary",
        sa.Column("job_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("finished_at", UtcDateTime(), nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("week", "outcome", "reason_code", "pipeline_version", "scanner", "kernel")
        ),
        sa.Column("slice_thickness_mm", sa.Float(), nullable=True),
        *(
            sa.Column(name, sa.Integer(), nullable=True)
            for name in ("n_findings", "n_solid", "n_part_solid", "n_ground_glass")
        ),
        sa.Column("largest_mm", sa.Float(), nullable=True),
        sa.Column("malignancy", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"]),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("analysis_summary_use", "analysis_summary", ["pipeline_version", "finished_at"])
    op.create_index("analysis_summary_week", "analysis_summary", ["week"])
    op.create_index("ix_analysis_summary_study_id", "analysis_summary", ["study_id"])
    op.create_table(
        "nodule",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("tracking_uid", "tracking_id", "site", "attenuation")
        ),
        *(
            sa.Column(name, sa.Float(), nullable=True)
            for name in (
                "long_axis_mm",
                "short_axis_mm",
                "mean_diameter_mm",
                "volume_mm3",
                "detection_probability",
                "malignancy",
                "malignancy_fused",
            )
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("job_id", "tracking_uid"),
    )
    op.create_index("ix_nodule_job_id", "nodule", ["job_id"])
    op.create_index("ix_nodule_tracking_uid", "nodule", ["tracking_uid"])
    op.create_table(
        "pipeline_cards",
        sa.Column("pipeline_version", sa.String(), nullable=False),
        sa.Column("cards", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline_version"),
    )


def _verdicts() -> None:
    op.create_table(
        "verdict",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("week", sa.String(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in ("pipeline_version", "tracking_uid", "kind")
        ),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("source", "actor", "observer")),
        sa.Column("sop_instance_uid", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"]),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("verdict_of", "verdict", ["study_id", "tracking_uid", "id"])
    op.create_index("ix_verdict_week", "verdict", ["week"])
    op.create_index("ix_verdict_job_id", "verdict", ["job_id"])
    op.create_table(
        "returned_object",
        sa.Column("instance_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("looked_at", UtcDateTime(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=True),
        sa.Column("n_verdicts", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["instance_id"], ["instance.id"]),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"]),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("instance_id"),
    )
    op.create_index("ix_returned_object_series_id", "returned_object", ["series_id"])


def _append_only(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION {table}_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{table} is append-only' USING ERRCODE = '23000'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            f"EXECUTE FUNCTION {table}_append_only()"
        )
        return
    for what in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{what.lower()} BEFORE {what} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def upgrade() -> None:
    """Add the tables; the results that are there already are read by the scheduler."""
    _summaries()
    _verdicts()
    _append_only("verdict")
    op.create_table(
        "drift_reading",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
