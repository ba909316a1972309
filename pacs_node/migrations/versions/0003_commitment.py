"""Storage commitment in both roles, what the archive answered, and studies that never came."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pacs_node.db import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what the archive and the senders say of series, and the tables of commitments and errands."""
    for name, kind in (
        ("promised_instances", sa.Integer()),
        ("archive_instances", sa.Integer()),
        ("archive_asked_at", UtcDateTime()),
        ("archive_answer", sa.String()),
    ):
        op.add_column("series", sa.Column(name, kind, nullable=True))
    _commitments()
    op.create_table(
        "missed_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("archive", sa.String(), nullable=False),
        sa.Column("study_uid", sa.String(), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("study_date", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("modalities", sa.String(), nullable=False),
        sa.Column("n_instances", sa.Integer(), nullable=True),
        sa.Column("noticed_at", UtcDateTime(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.Column("arrived_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("archive", "study_uid"),
    )
    op.create_index("ix_missed_study_study_uid", "missed_study", ["study_uid"])
    op.create_index("ix_missed_study_noticed_at", "missed_study", ["noticed_at"])
    op.create_table(
        "errand",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("due_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=True),
        sa.Column("finished_at", UtcDateTime(), nullable=True),
        sa.Column("status", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )


def _commitments() -> None:
    op.create_table(
        "commitment_request",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("transaction_uid", sa.String(), nullable=False),
        sa.Column("calling_ae", sa.String(), nullable=False),
        sa.Column("called_ae", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("objects", sa.JSON(), nullable=False),
        sa.Column("requested_at", UtcDateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("reported_at", UtcDateTime(), nullable=True),
        sa.Column("refused", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("calling_ae", "transaction_uid"),
    )
    op.create_index("ix_commitment_request_next_attempt_at", "commitment_request", ["next_attempt_at"])
    op.create_table(
        "commitment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(), nullable=False),
        sa.Column("transaction_uid", sa.String(), nullable=False),
        sa.Column("asked_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("answered_at", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("transaction_uid"),
    )
    op.create_table(
        "commitment_item",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("commitment_id", sa.Integer(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("committed", sa.Boolean(), nullable=True),
        sa.Column("failure_reason", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["commitment_id"], ["commitment.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_commitment_item_commitment_id", "commitment_item", ["commitment_id"])
    op.create_index("ix_commitment_item_sop_instance_uid", "commitment_item", ["sop_instance_uid"])
