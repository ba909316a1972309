"""What HL7 messages told of patients."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pacs_node.db import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two tables."""
    op.create_table(
        "clinical_message",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        *(
            sa.Column(name, sa.String(), nullable=False)
            for name in (
                "sender",
                "address",
                "control_id",
                "kind",
                "digest",
                "patient_id",
                "birth_date",
                "sex",
            )
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sender", "control_id"),
    )
    op.create_index("ix_clinical_message_received_at", "clinical_message", ["received_at"])
    op.create_index("ix_clinical_message_patient_id", "clinical_message", ["patient_id"])
    op.create_table(
        "clinical_fact",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("message_id", sa.Integer(), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("item", sa.String(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("on_date", sa.String(), nullable=True),
        sa.Column("source", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["message_id"], ["clinical_message.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_clinical_fact_message_id", "clinical_fact", ["message_id"])
