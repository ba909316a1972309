"""What a killed listener left behind: files without a row get their row at the next start.

A file says by its name which bytes it must have and by its file meta information who sent it. What has no
row was never acknowledged, but keeping it spares the sender a second time. What isn't what its name says is
set aside: it may be an image whose row was given up a moment before the end, see `pacs_node.damage`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pacs_node import reception
from pacs_node.errors import UnreadableInstanceError
from pacs_node.reception import Arrival
from pacs_node.recorder import Origin, Recorder

logger = logging.getLogger(__name__)

_AT_ONCE = 200
_LOST = "lost"


def recover(recorder: Recorder, files: Iterable[str]) -> int:
    """Write the rows of those stored files that have none, or set aside what isn't what its name says.

    Parameters
    ----------
    recorder
        Running; others may be recording at the same time.
    files
        Relative paths of what was there before anything was received.

    Returns
    -------
    int
        How many had no row.

    Raises
    ------
    SQLAlchemyError, OSError, RowsMissingError
        Rows can't be read or written now.
    """
    named = reception.recorded_paths(recorder.database)
    origins: dict[str, Origin] = {}
    count = 0
    for path in files:
        if path not in named:
            count += 1
            _recover(recorder, path, origins)
    for origin in origins.values():
        recorder.end(origin, _LOST)
    recorder.flush()
    return count


def _recover(recorder: Recorder, path: str, origins: dict[str, Origin]) -> None:
    try:
        found = recorder.spool.find(path, reception.HEAD_BYTES)
        if found is None:
            _set_aside(recorder, path)
            return
        identity = reception.read_identity(found.head, found.transfer_syntax_uid)
    except UnreadableInstanceError:
        _set_aside(recorder, path)
        return
    except FileNotFoundError:
        return
    except OSError:
        logger.exception("a file without a row can't be read now", extra={"path": path})
        return
    with recorder.claim(identity.sop_instance_uid, found.stored.sha256):
        if _is_recorded(recorder, path, identity.sop_instance_uid):
            return
        now = recorder.clock()
        origin = origins.setdefault(found.source_ae, Origin(found.source_ae, "", now))
        syntax = found.transfer_syntax_uid
        waiting = recorder.add(origin, Arrival(identity, found.stored, syntax, found.source_ae, now))
    logger.info("a file without a row is recorded", extra={"path": path})
    if waiting >= _AT_ONCE:
        recorder.flush()


def _is_recorded(recorder: Recorder, path: str, sop_instance_uid: str) -> bool:
    with recorder.database.read() as session:
        return reception.is_recorded(session, path, sop_instance_uid)


def _set_aside(recorder: Recorder, path: str) -> None:
    """Move what no row names, unless its bytes are arriving just now."""
    with recorder.nothing_arrives() as arriving, recorder.database.write() as session:
        if not reception.is_recorded(session, path) and not any(digest in path for digest in arriving):
            kept = recorder.spool.set_aside(path)
            logger.warning("a damaged file without a row is set aside", extra={"path": path, "as": kept})
