"""``kill -9`` at every system call of the receive path: what was acknowledged is there afterwards.

Each run counts on in one thread of the listener: the k-th call of one kind is its last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ct_factory import make_ct_series
from tests.faults.receiver import LONG, Given, Ledger, injecting, make_storage, receiver, settings, store
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.peer("strace"), pytest.mark.slow, pytest.mark.timeout(900)]

#: call -> runs of the short form (first point, step); the long form takes every point
CALLS = {
    "fsync": (1, 1),
    "fdatasync": (1, 2),
    "link": (1, 1),
    "unlink": (1, 2),
    "pwrite64": (2, 7),
    "sendto": (1, 1),
}
MOST = 200
PER_RUN = 2


def points(call: str) -> Iterator[int]:
    """Which calls to kill at; the sweep ends where a run isn't reached any more."""
    first, step = (1, 1) if LONG else CALLS[call]
    return iter(range(first, MOST, step))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """One store for all runs: each one starts with what the one before left."""
    return make_storage(tmp_path / "storage")


def sweep(storage: Path, ledger: Ledger, call: str, *, cheats: bool = False) -> tuple[int, list[str]]:
    """Kill at the points of one call; how many runs died, and what was violated."""
    violations: list[str] = []
    for died, point in enumerate(points(call)):
        slices = make_ct_series(PER_RUN, matrix=8, seed=f"{call}{point}{cheats}")
        instances = [(str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0]) for ds in slices]
        with receiver(Given(storage, settings(), cheats=cheats)) as running:
            with injecting(running.pid, f"{call}:signal=KILL:when={point}"):
                store(running.port, ledger, instances)
                running.process.join(0.2)
            alive = running.process.is_alive()
        violations += [f"{call} {point}: {item}" for item in ledger.violations(storage)]
        if alive:
            logger.info("%s: killed at %d points, %d violations", call, died, len(violations))
            return died, violations
    raise AssertionError(f"{call} never ran out")


@pytest.mark.parametrize("call", CALLS)
def test_killed_at_a_call(storage: Path, call: str) -> None:
    ledger = Ledger()
    died, violations = sweep(storage, ledger, call)
    assert violations == []
    assert died > 0
    # a last one without a fault: the store still works, and nothing of the killed ones lies about
    slices = make_ct_series(2, matrix=8, seed="after")
    with receiver(Given(storage, settings())) as running:
        done = store(
            running.port,
            ledger,
            [(str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0]) for ds in slices],
        )
        assert done == [0, 0]
        assert running.leftovers() == []
    assert ledger.violations(storage) == []
    assert ledger.orphans(storage) == []


def test_an_early_acknowledgement_would_be_noticed(storage: Path) -> None:
    """The negative control: a listener that answers before it stores loses what it acknowledged."""
    _, violations = sweep(storage, Ledger(), "link", cheats=True)
    assert any("was acknowledged and has no row" in item for item in violations)
