"""``kill -9`` between the question for storage commitment and its report: what was answered is reported."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
from pynetdicom import AE, evt

from pacs_node.clock import utc_now
from pacs_node.commitment import PUSH_MODEL, WELL_KNOWN, Reference, Report, Request, report_of
from pacs_node.commitment_scp import Reporter
from pacs_node.config import parse_settings
from pacs_node.db import Database, sqlite_url
from tests.ct_factory import make_ct_series
from tests.faults.receiver import (
    LONG,
    Given,
    Ledger,
    Receiver,
    injecting,
    make_storage,
    receiver,
    settings,
    store,
)
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.peer("strace"), pytest.mark.slow, pytest.mark.timeout(600)]

#: call -> which calls are the last, in the short form; the long form takes each until they run out
CALLS = {"fdatasync": (1, 2), "sendto": (2, 3)}


def ask(running: Receiver, request: Request) -> int | None:
    """Ask, and hold the association for the report; the status, None where no answer came."""
    entity = AE(ae_title="PACS")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 120
    entity.add_requested_context(PUSH_MODEL)
    handlers = [(evt.EVT_N_EVENT_REPORT, lambda _event: (0x0110, None))]
    association = entity.associate("127.0.0.1", running.port, ae_title="CTNODE", evt_handlers=handlers)  # type: ignore[arg-type]  # invariant list
    if not association.is_established:
        return None
    connection = association.dul.socket.socket if association.dul.socket else None
    answer, _ = association.send_n_action(request.dataset(), 1, PUSH_MODEL, WELL_KNOWN)
    running.process.join(1.0)
    association.abort()
    if connection is not None:
        connection.close()  # pynetdicom forgets to where the peer is gone already
    status = answer.get("Status")
    return None if status is None else int(status)


def reported(storage: Path) -> list[Report]:
    """What a scheduler reports that is started now, a minute later, to a sender that takes it."""
    taken: list[Report] = []
    database = Database(sqlite_url(storage))
    caller = {"ae_title": "PACS", "address": "127.0.0.1", "report_port": 4242}
    chosen = parse_settings({"callers": [caller], "storage": {"directory": str(storage)}}, base=storage)

    def take(_peer: object, report: Report) -> None:
        taken.append(report_of(report.dataset()))

    later = lambda: utc_now() + timedelta(seconds=61)  # noqa: E731 - a clock
    reporter = Reporter(database, chosen, later, take)
    reporter.report_to("PACS")
    reporter.stop()
    database.dispose()
    return taken


def sweep(
    storage: Path, call: str, points: Iterable[int], objects: tuple[Reference, ...], *, cheats: bool
) -> tuple[int, int]:
    """Kill at the points of one call; how often an answer came, and how many of those have no report."""
    answered: set[str] = set()
    for point in points:
        request = Request(f"2.25.{point}{sum(map(ord, call))}", objects)
        with receiver(Given(storage, settings(), cheats=cheats)) as running:
            with injecting(running.pid, f"{call}:signal=KILL:when={point}"):
                status = ask(running, request)
                running.process.join(1.0)
            alive = running.process.is_alive()
        if status == 0x0000:
            answered.add(request.transaction_uid)
        if alive:
            assert status == 0x0000, "neither killed nor answered"
            break
    reports = {report.transaction_uid: report for report in reported(storage)}
    assert all(report.committed == objects for report in reports.values())
    return len(answered), len(answered - set(reports))


@pytest.fixture
def objects(tmp_path: Path) -> tuple[Path, tuple[Reference, ...]]:
    """A store with two images, and their names."""
    storage, slices = make_storage(tmp_path / "storage"), make_ct_series(2, matrix=8)
    sent = [(str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0]) for ds in slices]
    with receiver(Given(storage, settings())) as running:
        assert store(running.port, Ledger(), sent) == [0, 0]
    Ledger().violations(storage)  # gives every file its row, as a start does
    return storage, tuple(Reference(sop_class, uid) for sop_class, uid, _ in sent)


@pytest.mark.parametrize("call", CALLS)
def test_what_was_answered_is_reported(objects: tuple[Path, tuple[Reference, ...]], call: str) -> None:
    storage, references = objects
    points = count(1) if LONG else CALLS[call]
    answered, lost = sweep(storage, call, points, references, cheats=False)
    logger.info("%s: answered %d times, %d without a report", call, answered, lost)
    assert lost == 0
    assert answered > 0 or call == "fdatasync"


def test_an_answer_without_a_row_would_be_noticed(objects: tuple[Path, tuple[Reference, ...]]) -> None:
    """The negative control: a listener that answers before it writes anything down."""
    storage, references = objects
    assert sweep(storage, "sendto", (3,), references, cheats=True) == (1, 1)
