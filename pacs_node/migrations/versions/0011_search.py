"""Searches of studies ask an index of parts of three letters; the Lung-RADS category of each analysis."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_OLD = "INSERT INTO study_words(study_words, rowid, search) VALUES ('delete', old.id, old.search);"
_NEW = "INSERT INTO study_words(rowid, search) VALUES (new.id, new.search);"
#: an extension that every database owner may add from PostgreSQL 13 on, if its files are there
_AVAILABLE = """
SELECT bool_or(trusted OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user))
       AND has_database_privilege(current_database(), 'CREATE')
FROM pg_available_extension_versions WHERE name = 'pg_trgm'
"""


def _sqlite() -> None:
    """Keep an index of all parts of three letters beside the rows, by triggers: SQLite's own FTS5."""
    if sqlite3.sqlite_version_info < (3, 34):
        raise CommandError(f"SQLite {sqlite3.sqlite_version} is too old: 3.34 or newer with FTS5 is needed")
    op.execute(
        "CREATE VIRTUAL TABLE study_words USING fts5(search, content='study', content_rowid='id', "
        "tokenize='trigram case_sensitive 1', detail='none', columnsize=0)"
    )
    op.execute("INSERT INTO study_words(study_words) VALUES ('rebuild')")
    op.execute(f"CREATE TRIGGER study_words_add AFTER INSERT ON study BEGIN {_NEW} END")
    op.execute(
        "CREATE TRIGGER study_words_change AFTER UPDATE OF id, search ON study "
        f"WHEN old.id <> new.id OR old.search <> new.search BEGIN {_OLD} {_NEW} END"
    )
    op.execute(f"CREATE TRIGGER study_words_remove AFTER DELETE ON study BEGIN {_OLD} END")


def _postgresql() -> None:
    """Index the same by pg_trgm; without it searches read all rows, and ``pacs-node doctor`` says so."""
    if op.get_bind().execute(sa.text(_AVAILABLE)).scalar():
        op.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
        op.execute("CREATE INDEX study_words ON study USING gin (search gin_trgm_ops)")


def upgrade() -> None:
    """Add the index, the column (filled by the scheduler) and what searches by findings read."""
    if op.get_bind().dialect.name == "postgresql":
        _postgresql()
    else:
        _sqlite()
    op.add_column("analysis_summary", sa.Column("lung_rads", sa.String(), nullable=True))
    op.create_index("analysis_summary_lung_rads", "analysis_summary", ["lung_rads", "job_id"])
    op.create_index("ix_study_shown_job_id", "study", ["shown_job_id"])
    op.create_index("nodule_by_size", "nodule", ["mean_diameter_mm", "malignancy", "attenuation", "job_id"])
