"""The audit record in front of somebody who reviews it: the check of its chain, and exports as files."""

from __future__ import annotations

from pathlib import Path

from pacs_node import audit_chain, audit_list
from pacs_node.audit_chain import HeadsUnreadableError, Verdict
from pacs_node.db import Database
from pacs_node.errors import NodeError

MOST_CHECKED = 200_000
"""Rows at the end of the record that are checked here: somebody waits for the answer."""

MEDIA_TYPES = {
    "jsonl": ("application/x-ndjson", "jsonl"),
    "csv": ("text/csv; charset=utf-8", "csv"),
    "dicom": ("text/plain; charset=utf-8", "xml.txt"),
    "fhir": ("application/x-ndjson", "fhir.jsonl"),
}
"""Of the forms of an export: media type and end of the file's name."""


class RecordError(NodeError):
    """The record can't be checked here; the text says why."""


def check_record(database: Database, heads_file: Path) -> Verdict:
    """Check the last rows of the chain, as ``pacs-node audit verify`` checks all.

    Parameters
    ----------
    heads_file
        Heads noted earlier; need not exist.

    Raises
    ------
    RecordError
        The heads can't be read.
    """
    try:
        heads = audit_chain.read_heads(heads_file) if heads_file.exists() else []
    except HeadsUnreadableError as error:
        raise RecordError(f"The noted heads can't be read: {error}") from None
    with database.read() as session:
        last = audit_list.last_row(session)
    after = max(0, (0 if last is None else last.seq) - MOST_CHECKED)
    return audit_chain.verify_in_pieces(database, heads, after=after)
