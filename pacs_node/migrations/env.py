"""Alembic environment: always online, on the engine that `Database.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from pacs_node import db_accounts, db_feedback, db_notices, db_record, db_tokens  # noqa: F401 - tables
from pacs_node.db import Base

with context.config.attributes["engine"].connect() as connection:
    # one transaction for all steps: else two that start together meet between them, each with old news
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
