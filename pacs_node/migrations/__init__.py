"""Schema versions (alembic)."""
