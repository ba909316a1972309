"""Where the next page of a list begins, as an opaque word."""

from __future__ import annotations

import base64
import binascii

from pacs_node.queries import LARGEST_ID
from pacs_node.web.api.problems import Code, ProblemError


def to_cursor(row: int) -> str:
    """Return the word for the page after a row."""
    return base64.urlsafe_b64encode(str(row).encode()).decode().rstrip("=")


def row_of(cursor: str | None) -> int | None:
    """Return the last row of the page before; None for the first page.

    Raises
    ------
    ProblemError
        It is no word of ours.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), b"-_", validate=True)
    except (ValueError, binascii.Error):
        text = b""
    if not (text.isdigit() and len(text) <= 19) or int(text) > LARGEST_ID:
        raise ProblemError(Code.INVALID, "This cursor is none of ours.")
    return int(text)
