"""Long reads, cut by the numbers of the rows, each piece with a transaction of its own.

A reader of SQLite holds up every commit for as long as its transaction lasts, and the images that come wait
for their commits. So what goes through a table that grows for ever is read so, and is of no single moment.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import InstrumentedAttribute

from pacs_node.db import Database

ROWS = 5000


def ranges(
    database: Database, key: InstrumentedAttribute[int], size: int = ROWS
) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that together cover the rows that a table has now.

    Parameters
    ----------
    key
        The primary key, a number that counts up.
    size
        Numbers in each range.
    """
    with database.read() as session:
        last = session.execute(select(func.max(key))).scalar_one() or 0
    for start in range(0, last, size):
        yield and_(key > start, key <= min(start + size, last))
