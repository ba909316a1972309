"""Retention: only what is finished and proved to have arrived, and one study never stops the others."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from pacs_node import audit, audit_chain, jobs
from pacs_node import retention as retention_module
from pacs_node.config import RetentionSettings
from pacs_node.db import Artifact, AuditEvent, Conflict, Delivery, Instance, Job, Series
from pacs_node.retention import Retention, attempt_folder
from pacs_node.spool import DAMAGED, Spool
from pacs_node.states import DeliveryState, JobState, SeriesState
from tests.ct_factory import make_ct_series
from tests.faults.invariants import Seen, violations
from tests.recovered import recover_store
from tests.small_node import SmallNode

BOTH = RetentionSettings(images_days=30, results_days=60)


def yes() -> bool:
    """The clock follows a time server."""
    return True


@pytest.fixture
def done(node: SmallNode) -> SmallNode:
    """A node with one study that was analysed, delivered and verified."""
    finish(node, "a")
    return node


def finish(node: SmallNode, seed: str) -> None:
    node.queue(seed)
    job, token = node.claim()
    node.finish(job, token, node.result(job))
    with node.database.write() as session:
        session.execute(update(Delivery).values(state=DeliveryState.COMMITTED))


def purge(node: SmallNode, settings: RetentionSettings = BOTH) -> int:
    return Retention(node.database, node.spool, settings, node.clock, synchronised=yes).purge()


def images(node: SmallNode) -> list[Path]:
    return sorted((node.spool.directory / "instances").rglob("*.dcm"))


def results(node: SmallNode) -> list[Path]:
    return sorted((node.spool.directory / "results").rglob("*.dcm"))


def test_images_go_after_their_days_results_after_theirs(done: SmallNode) -> None:
    done.clock.forward(days=29)
    assert purge(done) == 0
    done.clock.forward(days=2)
    assert purge(done) == 1
    assert (len(images(done)), len(results(done))) == (0, 2)
    assert purge(done) == 0
    done.clock.forward(days=30)
    assert purge(done) == 2
    assert (len(images(done)), len(results(done))) == (0, 0)
    assert purge(done) == 0
    with done.database.read() as session:
        assert session.execute(select(Instance.path)).scalars().all() == [None]
        assert session.execute(select(Artifact.path)).scalars().all() == [None, None]
        names = ["images removed", "results removed"]
        events = session.execute(select(AuditEvent).where(AuditEvent.event.in_(names))).scalars().all()
        assert [(e.event, e.objects["files"]) for e in events] == [(names[0], 1), (names[1], 2)]
        assert audit_chain.first_bad_row(session) is None


def test_zero_days_keep_for_ever(done: SmallNode) -> None:
    done.clock.forward(days=10_000)
    assert purge(done, RetentionSettings(images_days=0, results_days=0)) == 0
    assert (len(images(done)), len(results(done))) == (1, 2)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        (Delivery, {"state": DeliveryState.PENDING}),
        (Delivery, {"state": DeliveryState.SENDING}),
        (Delivery, {"state": DeliveryState.SENT}),
        (Delivery, {"state": DeliveryState.FAILED}),
        (Job, {"state": JobState.QUEUED}),
        (Job, {"state": JobState.RUNNING}),
        (Job, {"state": JobState.FAILED}),
        (Series, {"state": SeriesState.RECEIVING}),
        (Series, {"state": SeriesState.COMPLETE}),
    ],
)
def test_nothing_unfinished_is_touched(done: SmallNode, table: Any, values: dict[str, Any]) -> None:
    with done.database.write() as session:
        newest = session.execute(select(func.max(table.id))).scalar_one()
        session.execute(update(table).where(table.id == newest).values(**values))
    done.clock.forward(days=1000)
    assert purge(done) == 0
    assert (len(images(done)), len(results(done))) == (1, 2)


def test_the_youngest_series_of_a_study_counts(done: SmallNode) -> None:
    done.clock.forward(days=20)
    (late,) = make_ct_series(1, matrix=8, series_number=2)
    done.receive(late)
    with done.database.write() as session:
        session.execute(update(Series).values(state=SeriesState.INELIGIBLE))
    done.clock.forward(days=20)
    assert purge(done) == 0
    done.clock.forward(days=20)
    assert purge(done) == 2


def test_conflicting_copies_go_with_their_study(done: SmallNode) -> None:
    (ds,) = make_ct_series(1, matrix=8)
    ds.PatientID = "OTHER"
    done.receive(ds)
    done.clock.forward(days=31)
    assert purge(done) == 2
    assert images(done) == []
    with done.database.read() as session:
        assert session.execute(select(Conflict.path)).scalars().all() == [None]


def test_a_study_that_cannot_be_purged_does_not_stop_the_others(
    done: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(done, "b")
    with done.database.read() as session:
        bad = session.execute(select(Instance.path).order_by(Instance.id)).scalars().first()
    real = Spool.remove

    def remove(self: Spool, relative: str) -> None:
        if relative == bad:
            raise PermissionError(relative)
        real(self, relative)

    monkeypatch.setattr(Spool, "remove", remove)
    done.clock.forward(days=31)
    assert purge(done) == 1
    assert [str(path.relative_to(done.spool.directory)) for path in images(done)] == [bad]


def test_a_slice_that_comes_while_the_list_is_made_saves_its_study(
    done: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was acknowledged: it may not be removed by a decision that is older than it."""
    done.clock.forward(days=31)
    (late,) = make_ct_series(2, matrix=8)[1:]
    real = Retention._purge

    def first_receive(self: Retention, study_id: int, *, images: bool) -> int:
        done.receive(late)
        return real(self, study_id, images=images)

    monkeypatch.setattr(Retention, "_purge", first_receive)
    assert purge(done) == 0
    assert len(images(done)) == 2


def test_an_image_that_comes_again_while_it_is_removed_keeps_its_file(
    done: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    done.clock.forward(days=31)
    retention = Retention(done.database, done.spool, BOTH, done.clock, synchronised=yes)
    real, again = done.database.write, make_ct_series(1, matrix=8)
    transactions: list[int] = []

    def write() -> Any:
        transactions.append(1)
        if len(transactions) == 3:  # the clock, the rows, then the files
            done.receive(*again)
        return real()

    monkeypatch.setattr(retention._database, "write", write)
    retention.purge()
    with done.database.read() as session:
        path = session.execute(select(Instance.path)).scalar_one()
    assert path is not None
    assert done.spool.absolute(path).exists()


def test_a_purged_study_can_be_received_again(done: SmallNode) -> None:
    done.clock.forward(days=31)
    purge(done)
    done.receive(*make_ct_series(1, matrix=8))
    assert len(images(done)) == 1
    assert len(done.all_jobs()) == 1
    assert done.all_jobs()[0].kind == jobs.ANALYSIS


@pytest.mark.parametrize(
    ("days", "unproved", "removed"),
    [(0, ("fake",), 0), (40, ("fake",), 1), (40, ("other",), 0), (100, ("fake",), 0)],
)
def test_what_is_unverified_by_choice_goes_only_when_its_own_days_say_so(
    done: SmallNode, days: int, unproved: tuple[str, ...], removed: int
) -> None:
    with done.database.write() as session:
        sent = {"state": DeliveryState.SENT, "sent_at": done.clock()}
        session.execute(update(Delivery).values(**sent))
    done.clock.forward(days=50)
    settings = RetentionSettings(images_days=30, results_days=60, unverified_days=days)
    retention = Retention(
        done.database, done.spool, settings, done.clock, unproved=unproved, synchronised=yes
    )
    assert retention.purge() == removed


def test_a_file_that_no_row_names_goes_when_it_is_no_longer_young(
    done: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of attempts that came to nothing; what an attempt writes now is kept."""
    done.queue("b")
    job, token = done.claim()
    now, before = attempt_folder(job.id, token), attempt_folder(1, "serve:0123456789abcdef")
    for folder in (now, before):
        (done.spool.directory / folder).mkdir(parents=True)
        (done.spool.directory / folder / "seg.dcm").write_bytes(b"x")
    known = {*images(done), *results(done)}
    assert purge(done) == 0
    monkeypatch.setattr(retention_module, "_YOUNG_SECONDS", -1.0)
    assert purge(done) == 1
    assert {*images(done), *results(done)} == known - {done.spool.directory / before / "seg.dcm"}


FORK = multiprocessing.get_context("fork")


def _purge_and_die(node: SmallNode, point: int, *, after_commit: bool) -> None:
    """End the process like a kill: before the commit of the rows, or at a file."""
    calls = [0]

    def last(*_args: Any, **_values: Any) -> None:
        calls[0] += 1
        if calls[0] == point:
            os._exit(9)

    if after_commit:
        real = Spool.remove

        def remove(self: Spool, relative: str) -> None:
            last()
            real(self, relative)

        Spool.remove = remove  # type: ignore[method-assign]  # in a process of its own
    else:
        audit.record = last
    node.database.engine.dispose(close=False)
    purge(node)
    os._exit(0)


@pytest.mark.parametrize("after_commit", [False, True])
def test_a_kill_during_the_purge_loses_nothing_and_is_made_good(done: SmallNode, after_commit: bool) -> None:
    finish(done, "b")
    done.clock.forward(days=31)
    for point in range(1, 5):
        child = FORK.Process(target=_purge_and_die, args=(done, point), kwargs={"after_commit": after_commit})
        child.start()
        child.join()
        # rows without a file would be a loss; files without a row only take room
        assert violations(done.database, done.spool.directory, Seen(orphan_s=3600)) == []
        if child.exitcode == 0:
            break
    else:
        raise AssertionError("the purge never came to its end")
    assert point > 1
    # the next start of the listener finds the files, and the next purge removes them with their rows
    recover_store(done.database, done.spool, done.clock)
    purge(done)
    assert images(done) == []
    assert violations(done.database, done.spool.directory, Seen(orphan_s=0)) == []


@pytest.mark.parametrize(("days", "left"), [(30, ["young.dcm"]), (0, ["old.dcm", "young.dcm"])])
def test_damaged_images_go_with_their_time(node: SmallNode, days: int, left: list[str]) -> None:
    folder = node.spool.directory / DAMAGED
    folder.mkdir()
    for name in ("young.dcm", "old.dcm"):
        (folder / name).write_bytes(b"x")
    month_ago = time.time() - 31 * 86400
    os.utime(folder / "old.dcm", (month_ago, month_ago))
    purge(node, RetentionSettings(images_days=days, results_days=60))
    assert sorted(path.name for path in folder.iterdir()) == left
