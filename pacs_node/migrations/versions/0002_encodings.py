"""Objects in more than one encoding: what was made so far is the standard form."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the encoding of an artifact, empty for all that there are."""
    op.add_column("artifact", sa.Column("encoding", sa.String(), nullable=False, server_default=""))
