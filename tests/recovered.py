"""What the start of a listener does with the files that it finds, without a listener."""

from __future__ import annotations

from pacs_node.clock import Clock, utc_now
from pacs_node.db import Database
from pacs_node.recorder import Recorder
from pacs_node.recovery import recover
from pacs_node.spool import Spool


def recover_store(database: Database, spool: Spool, clock: Clock = utc_now) -> int:
    """Wait until all files have their rows; how many had none."""
    recorder = Recorder(database, spool, clock)
    recorder.start()
    try:
        spool.sweep()
        return recover(recorder, list(spool.stored()))
    finally:
        recorder.stop()
