"""The short form of ``make fuzz``: some hundred mutated inputs for each target, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest

from pacs_node.reader import ConfinedReader
from tests.fuzz import targets
from tests.fuzz.decoders import run_decoders
from tests.fuzz.mutate import mutations
from tests.fuzz.run import NAMES
from tests.fuzz.targets import TARGETS, seeds

RUNS = {"identity": 400, "request": 400, "association": 150, "negotiation": 150, "file": 150}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::RuntimeWarning:numpy")
@pytest.mark.parametrize("name", NAMES)
def test_mutated_inputs_end_in_nothing_but_the_errors_named(name: str) -> None:
    assert set(NAMES) == set(TARGETS)
    given = seeds(name)
    for data in given:
        TARGETS[name](data)
    for data in islice(mutations(given, seed=20261122), RUNS[name]):
        TARGETS[name](data)


def test_another_error_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: an error that is not named ends the run."""

    def careless(data: bytes, *_more: object) -> None:
        if len(data) % 3 == 0:
            raise IndexError

    monkeypatch.setattr(targets, "read_identity", careless)
    inputs = list(islice(mutations(seeds("identity"), seed=1), 100))
    with pytest.raises(IndexError):
        list(map(TARGETS["identity"], inputs))


@pytest.fixture
def reader() -> Iterator[ConfinedReader]:
    made = ConfinedReader()
    yield made
    made.close()


def test_damaged_pixel_data_are_decoded_or_refused_in_the_child(reader: ConfinedReader) -> None:
    ends = run_decoders(40, 20261122, reader)
    assert sum(ends.values()) == 40
    assert ends["refused"] > 5
    assert ends["decoded"] > 5
    assert reader._process is not None
    assert reader._process.poll() is None
