"""Each hazard is controlled by a requirement, each requirement is held by a test that exists."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conformance.traceability import TABLE, Requirement, gaps, read, render, soup

HAZARDS, REQUIREMENTS = read()


def test_nothing_is_missing() -> None:
    assert list(gaps(HAZARDS, REQUIREMENTS)) == []


def test_the_table_is_the_one_of_the_requirements() -> None:
    assert TABLE.read_text(encoding="utf-8") == render(HAZARDS, REQUIREMENTS), (
        "run python -m conformance.traceability"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tests": ()}, "no test"),
        ({"tests": ("tests/unit/test_that_never_was.py",)}, "there is no test"),
        ({"tests": ("tests/unit/test_traceability.py::no such word",)}, "there is no test"),
        ({"hazards": ("H99",)}, "no such hazard"),
        ({"id": REQUIREMENTS[1].id}, "twice"),
    ],
)
def test_a_gap_is_seen(changes: dict[str, object], said: str) -> None:
    broken: Requirement = replace(REQUIREMENTS[0], **changes)  # type: ignore[arg-type] # values of each case
    assert any(said in gap for gap in gaps(HAZARDS, (broken, *REQUIREMENTS[1:])))


def test_a_hazard_that_nothing_controls_is_seen() -> None:
    assert "X: no requirement controls it" in set(gaps(HAZARDS | {"X": "unheard of"}, REQUIREMENTS))


def test_what_others_wrote_is_listed() -> None:
    rows = {name: (version, licence) for name, version, licence in soup()}
    assert len(rows) > 50
    assert "MIT" in rows["pydicom"][1]
