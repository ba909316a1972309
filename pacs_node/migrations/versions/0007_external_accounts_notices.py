"""Accounts of an OpenID Connect provider; messages that wait for their receivers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pacs_node.db import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and tables; all accounts that are there stay the page's own."""
    op.add_column("account", sa.Column("issuer", sa.String(), nullable=True))
    op.add_column("account", sa.Column("subject", sa.String(), nullable=True))
    op.create_index("account_external", "account", ["issuer", "subject"], unique=True)
    op.create_table(
        "notice",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("channel", sa.String(), nullable=False),
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("message_id", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", UtcDateTime(), nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=True),
        sa.Column("failed_at", UtcDateTime(), nullable=True),
        sa.Column("status", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("seq", "channel"),
    )
    op.create_index("notice_queue", "notice", ["channel", "next_attempt_at"])
    op.create_table(
        "notice_position",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
