"""One study in random orders: slices of several series mixed, twice, late, in conflict; the end is the same.

Without network: rows, files, intake and a worker's claims, with pauses, associations and restarts wherever
chance puts them. `PACS_NODE_ORDERS` says how many orders, `PACS_NODE_ORDERS_SEED` which.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import select

from inference import geometry
from pacs_node import jobs
from pacs_node.db import Conflict, Database, Job, Series, Study, sqlite_url
from pacs_node.spool import Spool
from pacs_node.states import JobState
from tests.faults.receiver import LONG, make_storage
from tests.small_node import SmallNode, TestClock, chest
from tests.unit.test_intake import localizer

logger = logging.getLogger(__name__)

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
ORDERS = int(os.environ.get("PACS_NODE_ORDERS", "10000" if LONG else "25"))
SEED = int(os.environ.get("PACS_NODE_ORDERS_SEED", "20261122"))
STUDY = "1.2.826.0.1.3680043.8.498.7"
PAUSES_S = (0, 0, 1, 5, 11, 61)

pytestmark = pytest.mark.timeout(120 + ORDERS)


@pytest.fixture(autouse=True)
def small_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suitable series has four slices; syncing files is proved elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(geometry, "FEW_SLICES", 4)
    monkeypatch.setattr(geometry, "MIN_SLICES", 4)
    monkeypatch.setattr(geometry, "MIN_EXTENT_MM", 9.0)


class Place:
    """A storage that is as new for each order; the engine stays, with the statements that it has compiled."""

    def __init__(self, folder: Path) -> None:
        self._empty = make_storage(folder / "empty")
        self._directory = folder / "storage"
        self.database = Database(sqlite_url(self._directory))

    def node(self) -> SmallNode:
        """A node without rows."""
        self.database.dispose()
        shutil.rmtree(self._directory, ignore_errors=True)
        shutil.copytree(self._empty, self._directory)
        return SmallNode(self.database, Spool(self._directory, 1), TestClock())


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        made = Place(Path(folder))
        yield made
        made.database.dispose()


def _other_bytes(ds: Dataset) -> Dataset:
    """The same object with other pixels."""
    new = deepcopy(ds)
    new.PixelData = bytes(len(ds.PixelData))
    return new


def studies() -> list[list[Dataset]]:
    """Two kinds of a study: all is well; or one slice of the best series comes with two contents."""
    thick = chest(4, seed="thick", study_uid=STUDY)
    thin = chest(7, seed="thin", study_uid=STUDY, spacing_mm=2.0)
    scout = localizer(seed="scout")
    for ds in scout:
        ds.StudyInstanceUID = STUDY
        ds.PatientID, ds.PatientName = thick[0].PatientID, thick[0].PatientName
    whole = [*thick, *thin, *scout]
    return [whole, [*whole, _other_bytes(thin[3])]]


class Arrival:
    """One order, played on a node of its own."""

    def __init__(self, node: SmallNode, dice: random.Random | None) -> None:
        self.node = node
        self.dice = dice
        self.association: int | None = None

    def play(self, objects: Sequence[Dataset]) -> None:
        """All objects, then the time that the study needs."""
        for ds in objects:
            self.node.receive(ds, association_id=self.association)
            if self.dice is not None:
                self.happen(self.dice)
        self.close("released")
        for _ in range(3):
            self.node.quiet()
            self.work()

    def happen(self, dice: random.Random) -> None:
        """Whatever may lie between two objects."""
        kind = dice.randrange(8)
        if kind == 0:
            self.node.clock.forward(seconds=dice.choice(PAUSES_S))
            self.node.intake.tick()
        elif kind == 1:
            self.close(dice.choice(("released", "aborted")))
            self.association = self.node.open_association()
        elif kind == 2:
            self.work(at_most=1)
        elif kind == 3 and dice.random() < 0.3:
            self.node.restart_intake()

    def close(self, ending: str) -> None:
        if self.association is not None:
            self.node.close_association(self.association, ending)
        self.association = None

    def work(self, at_most: int = 10) -> None:
        """What a worker does with what is queued."""
        for _ in range(at_most):
            with self.node.database.read() as session:
                queued = session.execute(select(Job.id).where(jobs.is_due(self.node.clock()))).first()
            if queued is None:
                return
            job, token = self.node.claim()
            outcome = jobs.ANALYSED if job.kind == jobs.ANALYSIS else jobs.NOT_ANALYSED
            self.node.finish(job, token, outcome=outcome)


def end_state(node: SmallNode) -> dict[str, Any]:
    """All that may not depend on the order: what is here, what was decided, which result counts."""
    with node.database.read() as session:
        (study,) = session.scalars(select(Study)).all()
        contents: dict[str, set[str]] = {}
        series: dict[str, Any] = {}
        for row in session.scalars(select(Series)):
            series[row.series_uid] = (row.state, row.reason_code, row.rank, row.n_instances)
            for instance in row.instances:
                contents[instance.sop_instance_uid] = {instance.sha256}
        for conflict in session.scalars(select(Conflict)):
            contents[conflict.instance.sop_instance_uid].add(conflict.sha256)
        ended = [JobState.SUCCEEDED, JobState.FAILED]
        last = session.scalars(select(Job).where(Job.state.in_(ended)).order_by(Job.id.desc())).first()
        going_on = select(Job.id).where(Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
        assert last is not None
        return {
            "contents": contents,
            "series": series,
            "result": (last.series.series_uid, last.kind, last.input_digest, last.outcome),
            "study": study.state,
            "unfinished": list(session.scalars(going_on)),
        }


def play(place: Place, objects: Sequence[Dataset], dice: random.Random | None) -> dict[str, Any]:
    """The end of one order."""
    node = place.node()
    Arrival(node, dice).play(objects)
    return end_state(node)


def shuffled(objects: Sequence[Dataset], dice: random.Random) -> list[Dataset]:
    """All objects, some of them again."""
    order = [*objects, *dice.sample(list(objects), dice.randrange(4))]
    dice.shuffle(order)
    return order


def differences(place: Place, orders: int, seed: int) -> list[str]:
    """The seeds whose end is another one than that of the plain order, and what differs."""
    kinds = studies()
    wanted = [play(place, kind, None) for kind in kinds]
    found = []
    for number in range(orders):
        dice = random.Random(f"{seed}/{number}")
        chosen = number % len(kinds)
        end = play(place, shuffled(kinds[chosen], dice), dice)
        found += [
            f"{seed}/{number}: {name}: {end[name]} and not {value}"
            for name, value in wanted[chosen].items()
            if end[name] != value
        ]
    return found


def test_every_order_ends_in_the_same_state(place: Place) -> None:
    found = differences(place, ORDERS, SEED)
    logger.info("%d orders (seed %d): %d with another end", ORDERS, SEED, len(found))
    assert found == []


def test_a_node_that_goes_by_the_order_would_be_noticed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a digest of the input in the order in which it came."""

    def hasty(series: Series) -> str:
        return "".join(row.sha256[:4] for row in sorted(series.instances, key=lambda row: row.id))[:64]

    monkeypatch.setattr("pacs_node.jobs.input_digest", hasty)
    assert differences(place, 6, SEED)
