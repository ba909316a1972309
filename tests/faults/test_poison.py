"""Studies that end whatever analyses them, between healthy ones: the next begins soon, and they end too."""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from pacs_node import jobs
from pacs_node.clock import utc_now
from pacs_node.db import Database, Job, sqlite_url
from pacs_node.engines import ProcessEngine
from pacs_node.request import CaseOutcome, CaseRequest
from pacs_node.spool import Spool
from pacs_node.states import JobState
from pacs_node.worker import Worker
from tests.faults.receiver import LONG, make_storage
from tests.small_node import VERSION, SmallNode, TestClock
from tests.unit.test_worker import run, settings

logger = logging.getLogger(__name__)

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
#: an analysis that takes longer is given up; it includes the imports of a new process
LIMIT_S = 10.0 if LONG else 60.0
PROMISED_S = 5.0
POISONS = ("SIGSEGV", "SIGKILL", "hang") if LONG else ("SIGSEGV",)
"""SIGKILL is what the kernel sends where memory is short; `test_worker.py` has one that hangs, in short."""
_PLAN, _LOG = "poison.json", "begun.log"


def poisoned(request: CaseRequest) -> CaseOutcome:
    """What `run_case` promises, but for the studies that the plan names; notes when it began."""
    home = request.out_dir.parents[2]
    name = request.identity["SeriesInstanceUID"]
    with (home / _LOG).open("a", encoding="ascii") as log:
        log.write(json.dumps([name, time.time(), request.refusal is not None]) + "\n")
    poison = json.loads((home / _PLAN).read_text()).get(name)
    if request.refusal is None and poison == "hang":
        time.sleep(3600)
    if request.refusal is None and poison:
        os.kill(os.getpid(), signal.Signals[poison])
    return run(request)


@dataclass(frozen=True)
class Begun:
    """An analysis that began: of which series, when, and whether only its report was made."""

    series: str
    at: float
    report_only: bool


@pytest.fixture
def node() -> Iterator[SmallNode]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as place:
        directory = make_storage(Path(place) / "storage")
        database = Database(sqlite_url(directory))
        yield SmallNode(database, Spool(directory, 1), TestClock())
        database.dispose()


def _plan(node: SmallNode) -> dict[str, str]:
    """Queue a healthy study behind each that is not; which series is which."""
    for poison in POISONS:
        node.queue(poison)
        node.queue(f"behind {poison}")
    rows = node.all_jobs()
    plan = {row.series.series_uid: poison for row, poison in zip(rows[::2], POISONS, strict=True)}
    (node.spool.directory / _PLAN).write_text(json.dumps(plan))
    return plan


def _work(node: SmallNode, wanted: int) -> list[Begun]:
    engine, stop = ProcessEngine(), threading.Event()
    few = settings(node, timeout_seconds=LIMIT_S)
    # the child is ready once, as in a node that has worked before
    engine.submit(os.getpid).result()
    thread = threading.Thread(target=Worker(node.database, few, VERSION, engine, utc_now).run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 120
    ended: list[Job] = []
    while len(ended) < wanted and time.monotonic() < deadline:
        stop.wait(0.1)
        ended = [row for row in node.all_jobs() if row.state in {JobState.SUCCEEDED, JobState.FAILED}]
    stop.set()
    thread.join()
    lines = (node.spool.directory / _LOG).read_text().splitlines()
    return [Begun(*json.loads(line)) for line in lines]


def test_the_next_study_begins_soon_after_one_that_kills_its_worker(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.worker.run_case", poisoned)
    monkeypatch.setattr(jobs, "RETRY_WAIT", timedelta(seconds=5 if LONG else 0.3))
    plan = _plan(node)
    begun = _work(node, 2 * len(POISONS))
    states = {row.series.series_uid: (row.state, row.attempts, row.reason_code) for row in node.all_jobs()}
    for series, (state, attempts, code) in states.items():
        expected = (
            (JobState.FAILED, 3, "SOFTWARE_FAILURE") if series in plan else (JobState.SUCCEEDED, 1, None)
        )
        assert (state, attempts, code) == expected, plan.get(series)
    # a report that says so for each, beside the results of the healthy ones
    assert sorted(row.artifact.kind for row in node.all_deliveries()) == (
        ["seg"] * len(POISONS) + ["sr"] * 2 * len(POISONS)
    )
    assert sum(item.series in plan and not item.report_only for item in begun) == 3 * len(POISONS)
    gaps = [
        following.at - item.at - (LIMIT_S if plan[item.series] == "hang" else 0.0)
        for item, following in pairwise(begun)
        # where nothing else is left, the same one waits before it is tried again
        if item.series in plan and not item.report_only and following.series != item.series
    ]
    logger.info(
        "from the end of a poisoned analysis to the next one in its new process: "
        "median %.2f s, longest %.2f s of %d (load %.0f)",
        statistics.median(gaps),
        max(gaps),
        len(gaps),
        os.getloadavg()[0],
    )
    # in the short form the machine may do anything else
    assert max(gaps) <= (PROMISED_S if LONG else 60)
