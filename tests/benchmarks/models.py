"""How fast the models page and what feeds it are with very many studies.

python -m tests.benchmarks.models --studies 100000 [--postgresql]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import insert

from pacs_node import agreement, feedback, model_use
from pacs_node.config_drift import DriftSettings
from pacs_node.db import Database, Job, Series, Study, sqlite_url
from pacs_node.db_feedback import AnalysisSummary, Nodule, Verdict
from pacs_node.drift import Drift, latest_reading
from pacs_node.summaries import Summaries, monday
from tests.postgresql import postgresql

NOW = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)
_PORTION = 2000
_TIMES = 5


def fill(database: Database, studies: int) -> None:
    """Write studies of 1,000 days, each with an analysis, two findings and, for every fifth, a verdict."""
    random = Random(1)
    for first in range(1, studies + 1, _PORTION):
        rows: dict[type, list[dict[str, Any]]] = {
            table: [] for table in (Study, Series, Job, AnalysisSummary, Nodule, Verdict)
        }
        for number in range(first, min(first + _PORTION, studies + 1)):
            at = NOW - timedelta(days=1000 * (studies - number) / studies)
            for table, row in _rows(number, at, random):
                rows[table].append(row)
        with database.write() as session:
            for table, made in rows.items():
                if made:
                    session.execute(insert(table), made)


def _rows(number: int, at: datetime, random: Random) -> Iterator[tuple[type, dict[str, Any]]]:
    texts = dict.fromkeys(("patient_id", "patient_name", "accession_number", "study_date", "description"), "")
    yield Study, {"id": number, "study_uid": f"1.{number}", "first_received_at": at, **texts}
    series = {"id": number, "study_id": number, "series_uid": f"2.{number}", "modality": "CT"}
    yield (
        Series,
        series
        | {
            "description": "",
            "calling_ae": "PACS",
            "n_instances": 300,
            "last_received_at": at,
            "state": "queued",
        },
    )
    ended = {"id": number, "series_id": number, "kind": "analysis", "input_digest": "d", "attempts": 1}
    yield (
        Job,
        ended
        | {
            "pipeline_version": "v",
            "state": "succeeded",
            "outcome": "analysed",
            "created_at": at,
            "not_before": at,
            "finished_at": at,
        },
    )
    yield (
        AnalysisSummary,
        {
            "job_id": number,
            "study_id": number,
            "finished_at": at,
            "week": monday(at),
            "outcome": "analysed",
            "reason_code": "",
            "pipeline_version": "v",
            "scanner": f"Maker {number % 5}",
            "kernel": f"K{number % 7}",
            "slice_thickness_mm": (0.6, 1.0, 2.0, 5.0)[number % 4],
            "n_findings": 2,
            "largest_mm": 8.0,
            "malignancy": random.random(),
        },
    )
    for nodule in (1, 2):
        uid = f"3.{number}.{nodule}"
        named = {"job_id": number, "number": nodule, "tracking_uid": uid, "tracking_id": f"N{nodule}"}
        yield Nodule, named | {"site": "left lung", "attenuation": "solid", "malignancy": 0.5}
    if number % 5 == 0:
        kind = random.choice(("accepted", "rejected", "edited"))
        yield (
            Verdict,
            {
                "at": at,
                "week": monday(at),
                "study_id": number,
                "job_id": number,
                "pipeline_version": "v",
                "tracking_uid": f"3.{number}.1",
                "kind": kind,
                "reason": "vessel" if kind == "rejected" else None,
                "text": "",
                "changes": {"dice": random.random()} if kind == "edited" else {},
                "source": "page",
                "actor": "user:r",
                "observer": "",
            },
        )


def measure(database: Database, directory: Path) -> None:
    """Write the best of a few times of each part."""
    summaries = Summaries(database, directory)
    drift = Drift(database, DriftSettings(), lambda: NOW)
    _say("first look for results without rows", summaries.tick, times=1)
    _say("every later one", summaries.tick)
    _say("comparison for drift", drift.tick)
    with database.read() as session:
        _say("versions", lambda: model_use.uses(session))
        _say("weeks and refusals", lambda: (model_use.weeks(session, NOW), model_use.refusals(session, NOW)))
        _say("agreement by version", lambda: agreement.agreement(session, weekly=False))
        _say("agreement by week", lambda: agreement.agreement(session, since=NOW - timedelta(weeks=25)))
        _say("latest reading", lambda: latest_reading(session))
        _say("verdicts of a page of studies", lambda: feedback.judged_counts(session, range(1, 251, 5)))
        _say("verdicts of one study", lambda: feedback.study_feedback(session, 5))


def _say(what: str, do: Callable[[], object], times: int = _TIMES) -> None:
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        do()
        took.append(time.perf_counter() - begun)
    sys.stdout.write(f"{what:38} {1000 * min(took):8.1f} ms\n")


@contextmanager
def _opened(*, on_postgresql: bool) -> Iterator[tuple[Database, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        if on_postgresql:
            with postgresql() as server:
                database = Database(server.database())
                yield database, Path(folder)
                database.dispose()
        else:
            database = Database(sqlite_url(Path(folder)))
            database.upgrade()
            yield database, Path(folder)
            database.dispose()


def main() -> None:
    """Fill a database and measure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.models", description=__doc__)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--postgresql", action="store_true")
    chosen = parser.parse_args()
    with _opened(on_postgresql=chosen.postgresql) as (database, folder):
        fill(database, chosen.studies)
        measure(database, folder)


if __name__ == "__main__":
    main()
