"""How fast the page is on a node that has run for years: ``python -m tests.benchmarks.page --directory DIR``.

100,000 studies and 5,000,000 rows of the audit record are written once (a quarter of an hour, 3 GB) and kept
in `DIR`; ``--postgresql`` asks a server of its own, whose rows are written anew each time. Each page is asked
for over the application as a browser would, with its account, its event in the record and its rendering; the
record is synced to the disk as on a node.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import select

from pacs_node import audit_chain, audit_list
from pacs_node.audit_export import Selection
from pacs_node.audit_message import Origin
from pacs_node.db import Database, Study, sqlite_url
from pacs_node.study_search import StudyOrder
from tests.benchmarks.page_rows import DAYS, NOW, fill
from tests.postgresql import postgresql
from tests.web_browser import Browser, make_settings


class RealBrowser(Browser):
    """As the tests' own, but nothing is made faster than on a node."""

    def __post_init__(self) -> None:
        """Leave the database as it is."""


@contextmanager
def filled(arguments: argparse.Namespace, console: Console) -> Iterator[Database]:
    """A database with the rows."""
    if arguments.postgresql:
        with postgresql() as server:
            database = Database(server.database())
            _fill(database, arguments, console)
            yield database
            database.dispose()
        return
    arguments.directory.mkdir(parents=True, exist_ok=True)
    database = Database(sqlite_url(arguments.directory))
    database.upgrade()
    with database.read() as session:
        fresh = session.execute(select(Study.id).limit(1)).first() is None
    if fresh:
        _fill(database, arguments, console)
    yield database
    database.dispose()


def _fill(database: Database, arguments: argparse.Namespace, console: Console) -> None:
    with Progress(console=console) as progress:
        task = progress.add_task("writing rows", total=DAYS)
        fill(
            database,
            arguments.studies,
            arguments.events,
            seed=arguments.seed,
            progress=lambda days: progress.advance(task, days),
        )


def pages(database: Database) -> dict[str, str]:
    """Name of each question and where it is asked."""
    with database.read() as session:
        middle = select(Study).order_by(Study.id).offset(session.query(Study).count() // 2).limit(1)
        study = session.execute(middle).scalar_one()
    day = f"{study.first_received_at:%Y-%m-%d}"
    found = {"overview": "/", "metrics": "/metrics", "study": f"/studies/{study.study_uid}"}
    for order in StudyOrder:
        found[f"studies by {order}"] = f"/studies?sort={order}"
        found[f"studies by {order}, page in the middle"] = f"/studies?sort={order}&after={study.id}"
    words = {
        "patient ID": study.patient_id,
        "part of a name": study.patient_name[:6],
        "what all have": "PID",
        "two letters": study.patient_name[:2],
        "accession number": study.accession_number,
        "study UID": study.study_uid,
        "nothing that is there": "no such words",
    }
    found |= {f"search: {name}": f"/studies?q={text}" for name, text in words.items()}
    return found | {
        "search: received on a day": f"/studies?since={day}&until={day}",
        "search: a day, by patient": f"/studies?since={day}&until={day}&sort=patient",
        "search: state": "/studies?state=failed",
        "search: state, by patient": "/studies?state=failed&sort=patient",
        "search: delivery failed": "/studies?delivery=delivery+failed",
        "search: nodule of 6 mm": "/studies?mm=6",
        "search: nodule of 30 mm, 90 %": "/studies?mm=30&malignancy=90",
        "search: Lung-RADS 2": "/studies?lungrads=2",
        "search: Lung-RADS 4B, by patient": "/studies?lungrads=4B&sort=patient",
        "record": "/audit",
        "record, page in the middle": "/audit?before=1000",
        "record: event": "/audit?event=association+refused",
        "record: user": "/audit?actor=user:jane",
        "record: user and event": "/audit?actor=user:jane&event=login",
        "record: a user who never did it": "/audit?actor=listener&event=login",
        "record: day": f"/audit?since={day}&until={day}",
        "record: failures": "/audit?outcome=failed",
        "record: study": f"/audit?study={study.study_uid}",
    }


def measure(ask: Callable[[], object], rounds: int) -> tuple[str, str, str]:
    """Median and 95th percentile of the wall clock, and median of this process's CPU, in ms."""
    ask()
    walls, cpus = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        ask()
        walls.append(1000 * (time.perf_counter() - start))
        cpus.append(1000 * (time.process_time() - busy))
    most = sorted(walls)[math.ceil(0.95 * rounds) - 1]
    return f"{median(walls):.0f}", f"{most:.0f}", f"{median(cpus):.0f}"


def _asked(browser: Browser, path: str) -> None:
    answer = browser.get(path)
    if answer.status_code != 200:
        raise RuntimeError(f"{path}: {answer.status_code}")


def _first_line(database: Database, selection: Selection) -> str:
    return next(audit_list.export(database, selection, "jsonl", Origin("CTNODE", "node", ""), 10**9))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--postgresql", action="store_true")
    arguments = parser.parse_args()
    console = Console(file=sys.stdout)
    with filled(arguments, Console(stderr=True)) as database:
        report(database, arguments.directory, arguments.rounds, console)


def report(database: Database, directory: Path, rounds: int, console: Console) -> None:
    """Ask everything and print it."""
    browser = RealBrowser(database, make_settings(directory), NOW + timedelta(hours=1))
    table = Table("page", "median, ms", "95 %, ms", "CPU, ms", title=database.engine.dialect.name)
    for name, path in pages(database).items():
        table.add_row(name, *measure(partial(_asked, browser, path), rounds))
    for name, selection in (("any", Selection()), ("a rare event", Selection(event="association refused"))):
        table.add_row(
            f"export, its first line: {name}", *measure(partial(_first_line, database, selection), rounds)
        )
    console.print(table)
    with database.read() as session:
        last = audit_list.last_row(session)
    start = time.process_time()
    after = max(0, (last.seq if last else 0) - 200_000)
    verdict = audit_chain.verify_in_pieces(database, after=after)
    rate = verdict.rows / (time.process_time() - start)
    console.print(
        f"chain: {verdict.rows} rows, first bad {verdict.first_bad}, {rate:,.0f} rows a second of CPU"
    )


if __name__ == "__main__":
    main()
