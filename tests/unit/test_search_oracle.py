"""The search of studies against the same search in Python: no word of it is ever part of a statement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pacs_node import study_search
from pacs_node.db import Database, Study
from pacs_node.study_search import StudyQuery, count_studies, list_studies
from tests.node_story import START

EXAMPLES = int(os.environ.get("PACS_NODE_SEARCHES", "30"))

PIECES = (
    "doe", "Doe^Jane", "%", "_", "\\", "\\%", "'", "''", '"', ";", "--", "/*", "*", "?", "[a-z]",
    "' OR 1=1 --", "'); DROP TABLE study; --", "UNION SELECT", "\x00", "\n", "\t", "ß", "SS", "İ", "Ä", "ä",
    "山田", "\u202e", "1.2", ".", "{0}", "%s", ":x", "?1", "$1",
)  # fmt: skip

texts = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
words = st.lists(st.sampled_from(PIECES), max_size=3).map(" ".join) | texts


def fields_of(number: int) -> tuple[str, str, str, str]:
    """The same 60 studies each time: each piece stands in one field or another."""
    one, two = PIECES[number % len(PIECES)], PIECES[(7 * number + 3) % len(PIECES)]
    fields = [f"P{number}{one}", f"{two}^{one} x", f"A{two}{number}"]
    turned = fields[number % 3 :] + fields[: number % 3]
    return turned[0], turned[1], turned[2], f"1.2.826.{number}"


def expected(asked: str, rows: Sequence[tuple[str, ...]]) -> set[int]:
    """Each word occurs somewhere in one of the fields, whatever its case."""
    parts = asked.casefold().replace("\x00", " ").split()
    shown = [[field.casefold().replace("\x00", " ") for field in row] for row in rows]
    return {
        number
        for number, row in enumerate(shown)
        if all(any(part in field for field in row) for part in parts)
    }


def fill(database: Database, rows: Sequence[tuple[str, str, str, str]]) -> None:
    with database.write() as session:
        for number, (patient_id, name, accession, uid) in enumerate(rows):
            session.add(
                Study(
                    id=number + 1,
                    study_uid=uid,
                    patient_id=patient_id,
                    patient_name=name,
                    accession_number=accession,
                    study_date="20260302",
                    description="",
                    first_received_at=START + timedelta(seconds=number),
                )
            )


@pytest.mark.parametrize("few", [study_search._FEW, 2], ids=["by the index", "or without it"])
def test_every_search_finds_what_python_finds(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(study_search, "_FEW", few)
    rows = [fields_of(number) for number in range(60)]
    fill(database, rows)

    @given(words)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def search(asked: str) -> None:
        wanted = expected(asked, rows)
        with database.read() as session:
            found = {line.id - 1 for line in list_studies(session, StudyQuery(words=asked), limit=100)}
            assert count_studies(session, StudyQuery(words=asked)) == len(wanted)
        assert found == wanted, asked

    search()
    for piece in PIECES:
        assert expected(piece, rows), "the pieces are there to be found"
    assert expected("no such word", rows) == set()
