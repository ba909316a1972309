"""The list of studies: every order page by page, every filter, and the words in the rows that filters ask."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text

from pacs_node.db import Database, Job, Series, Study, sqlite_url
from pacs_node.db_feedback import AnalysisSummary, Nodule
from pacs_node.queries import study_states
from pacs_node.states import DeliveryState
from pacs_node.study_search import (
    FindingQuery,
    LungRads,
    NoduleKind,
    StudyOrder,
    StudyQuery,
    count_studies,
    list_studies,
)
from pacs_node.study_state import DeliveryWord, StudyWord
from pacs_node.web.study_filter import read_filter
from tests.node_story import START, Story

REASON = ("TOO_THICK", "Slices are too thick.")

#: what may happen to a study, in an order that the node would allow
STEPS: dict[str, Callable[[Story], object]] = {
    "receive": lambda story: story.receive(2),
    "another series": lambda story: story.receive(1, series=2),
    "close": lambda story: story.close(),
    "close the other": lambda story: story.close(2),
    "set aside": lambda story: story.set_aside(1, *REASON),
    "set both aside": lambda story: story.set_aside(1, *REASON).set_aside(2, *REASON),
    "queue": lambda story: story.queue(),
    "refuse": lambda story: story.queue(refusal=REASON),
    "start": lambda story: story.start(),
    "interrupt": lambda story: story.interrupt("time limit"),
    "finish": lambda story: story.finish(),
    "refused": lambda story: story.finish(reason=REASON, kinds=("sr",)),
    "fail": lambda story: story.finish(failed=True, reason=REASON, kinds=("sr",)),
    "late": lambda story: story.receive(1, first=7),
    "sent": lambda story: story.deliver(DeliveryState.SENT),
    "verified": lambda story: story.deliver(DeliveryState.COMMITTED),
    "put off": lambda story: story.deliver(DeliveryState.PENDING, status="refused"),
    "given up": lambda story: story.deliver(DeliveryState.FAILED, status="A900"),
}
WAYS = (
    "receive, close, queue, start, finish, sent",
    "receive, close, queue, start, finish, put off, verified",
    "receive, close, queue, start, interrupt, start, fail, given up",
    "receive, another series, close, close the other, set both aside, refuse, start, refused, verified",
    "receive, close, set aside",
    "receive, close, queue, start, finish, another series",
    "receive, close, queue, start, late, finish",
)


#: what the migrations since 0008 add
INDEXES = {
    "study": "ix_{}_shown_job_id ix_{}_patient_name ix_{}_study_date {}_by_state {}_by_delivery",
    "audit_event": "ix_{}_at {}_by_event {}_by_actor {}_by_both {}_failures",
    "analysis_summary": "{}_lung_rads",
    "nodule": "{}_by_size",
}
COLUMNS = {
    "study": "search state delivery shown_job_id held_reason held_at",
    "job": "cancelled_because cancelled_reason",
    "instance": "damaged_at",
    "analysis_summary": "lung_rads",
}


def told(database: Database) -> tuple[list[tuple[str, str | None]], list[tuple[str, str | None]]]:
    """The words that rows hold, and those that follow from the other rows."""
    with database.read() as session:
        studies = session.execute(select(Study).order_by(Study.id)).scalars().all()
        states = [study_states(session, studies)[study.id] for study in studies]
    stored = [(study.state, study.delivery) for study in studies]
    return stored, [(state.word, None if state.delivery is None else state.delivery.word) for state in states]


@pytest.mark.parametrize("way", WAYS)
def test_the_row_of_a_study_holds_its_words_after_each_step(story: Story, way: str) -> None:
    seen = set()
    for step in way.split(", "):
        STEPS[step](story)
        stored, derived = told(story.database)
        assert stored == derived, step
        seen.update(stored)
    assert len(seen) > 1


@pytest.fixture(scope="module")
def filled(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a study for each way."""
    directory = tmp_path_factory.mktemp("ways")
    shutil.copyfile(migrated, directory / "node.db")
    database = Database(sqlite_url(directory))
    for number, way in enumerate(WAYS):
        story = Story(
            database,
            directory,
            f"way {number}",
            START + timedelta(days=number),
            patient_id=f"PID-{number % 3}",
            patient_name=f"M\u00dcLLER^{'CAB'[number % 3]}",
            accession_number=f"A{number % 2}",
            study_date=f"202603{10 - number:02d}",
        )
        for step in way.split(", "):
            STEPS[step](story)
    database.dispose()
    return directory / "node.db"


@pytest.fixture
def all_ways(filled: Path, tmp_path: Path) -> Iterator[Database]:
    """A study for each way."""
    shutil.copyfile(filled, tmp_path / "node.db")
    database = Database(sqlite_url(tmp_path))
    yield database
    database.dispose()


def test_an_upgrade_writes_the_words_of_what_is_there(all_ways: Database) -> None:
    before = told(all_ways)
    with all_ways.write() as session:
        for name in ("add", "change", "remove"):
            session.execute(text(f"DROP TRIGGER study_words_{name}"))
        for table, names in INDEXES.items():
            for name in names.split():
                session.execute(text(f"DROP INDEX {name.format(table)}"))
        for table, names in COLUMNS.items():
            for name in names.split():
                session.execute(text(f"ALTER TABLE {table} DROP COLUMN {name}"))
        for name in ("study_words", "clinical_fact", "clinical_message"):
            session.execute(text(f"DROP TABLE {name}"))
        session.execute(text("UPDATE alembic_version SET version_num = '0008'"))
    all_ways.upgrade()
    assert told(all_ways) == before
    assert found(all_ways, StudyQuery("m\u00fcller pid-1")) == [4, 1]


def found(database: Database, query: StudyQuery, after: int | None = None, limit: int = 50) -> list[int]:
    """Numbers of the ways that a query lists."""
    with database.read() as session:
        return [line.id - 1 for line in list_studies(session, query, after, limit)]


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", StudyOrder)
def test_pages_of_every_order_hold_each_study_once(
    all_ways: Database, order: StudyOrder, descending: bool
) -> None:
    query = StudyQuery(order=order, descending=descending)
    whole, after, paged = found(all_ways, query), None, []
    while page := found(all_ways, query, after, 2):
        paged += page
        after = page[-1] + 1
    assert paged == whole
    assert sorted(whole) == list(range(len(WAYS)))
    assert whole == found(all_ways, replace(query, descending=not descending))[::-1]


@pytest.mark.parametrize(
    ("query", "ways"),
    [
        (StudyQuery(order=StudyOrder.PATIENT, descending=False), [1, 4, 2, 5, 0, 3, 6]),
        (StudyQuery(order=StudyOrder.STUDY_DATE, descending=False), [6, 5, 4, 3, 2, 1, 0]),
        (StudyQuery(state=StudyWord.ANALYSED), [1, 0]),
        (StudyQuery(state=StudyWord.RECEIVING), [6, 5]),
        (StudyQuery(state=StudyWord.NOT_ANALYSED), [3]),
        (StudyQuery(state=StudyWord.NOTHING_TO_ANALYSE), [4]),
        (StudyQuery(delivery=DeliveryWord.VISIBLE), [3, 1]),
        (StudyQuery(delivery=DeliveryWord.FAILED), [2]),
        (StudyQuery("pid-0", since=START + timedelta(days=1), until=START + timedelta(days=6)), [3]),
        (StudyQuery(first_day="20260308", last_day="20260309"), [2, 1]),
        (StudyQuery("a1 pid-1", state=StudyWord.ANALYSED), [1]),
    ],
)
def test_filters(all_ways: Database, query: StudyQuery, ways: list[int]) -> None:
    assert found(all_ways, query) == ways
    with all_ways.read() as session:
        assert count_studies(session, query) == len(ways)


def test_a_count_ends_where_nobody_counts_on(all_ways: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.study_search.MOST_COUNTED", 4)
    with all_ways.read() as session:
        assert count_studies(session, StudyQuery()) == 5


def test_words_don_t_reach_from_one_text_into_the_next(story: Story) -> None:
    story.receive(1)
    assert found(story.database, StudyQuery("doe^jane")) == [0]
    assert found(story.database, StudyQuery("1doe")) == []
    assert found(story.database, StudyQuery("1\ndoe")) == [0]


NODULES = ((6.0, 0.2, "solid"), (12.0, 0.7, "part-solid"))


@pytest.mark.parametrize(
    ("finding", "ways"),
    [
        (FindingQuery(), [1, 0]),
        (FindingQuery(mean_diameter_mm=6.0), [1, 0]),
        (FindingQuery(mean_diameter_mm=6.1), [1]),
        (FindingQuery(malignancy=0.7, kind=NoduleKind.PART_SOLID), [1]),
        (FindingQuery(mean_diameter_mm=7, kind=NoduleKind.SOLID), []),
        (FindingQuery(kind=NoduleKind.GROUND_GLASS), []),
    ],
)
@pytest.mark.parametrize("few", [2000, 0], ids=["few", "many"])
def test_search_by_what_was_found(
    all_ways: Database, monkeypatch: pytest.MonkeyPatch, few: int, finding: FindingQuery, ways: list[int]
) -> None:
    monkeypatch.setattr("pacs_node.study_search._FEW", few)
    with all_ways.write() as session:
        for job_id, nodules in ((1, NODULES[:1]), (2, NODULES)):
            for number, (size, malignancy, kind) in enumerate(nodules):
                session.add(
                    Nodule(
                        job_id=job_id,
                        number=number,
                        tracking_uid=f"1.2.{number}",
                        tracking_id="",
                        site="",
                        attenuation=kind,
                        mean_diameter_mm=size,
                        malignancy=malignancy,
                    )
                )
    assert found(all_ways, StudyQuery(finding=finding)) == ways


def test_search_by_lung_rads(all_ways: Database) -> None:
    """The analysis that speaks for the study counts; the modifier S doesn't part a category."""
    with all_ways.write() as session:
        for job_id, category in ((1, "4AS"), (2, "4A"), (3, "undetermined")):
            study_id = session.execute(
                select(Series.study_id).join(Job, Job.series_id == Series.id).where(Job.id == job_id)
            ).scalar_one()
            row = AnalysisSummary(
                job_id=job_id,
                study_id=study_id,
                finished_at=START,
                week="2026-03-02",
                outcome="analysed",
                reason_code="",
                pipeline_version="1",
                scanner="",
                kernel="",
                lung_rads=category,
            )
            session.add(row)
    for category, ways in ((LungRads.SUSPICIOUS_4A, [1, 0]), (LungRads.NONE, [2]), (LungRads.BENIGN, [])):
        assert found(all_ways, StudyQuery(lung_rads=category)) == ways
    with all_ways.read() as session:
        assert [line.lung_rads for line in list_studies(session, StudyQuery())][-3:] == [
            "undetermined",
            "4A",
            "4AS",
        ]
    assert read_filter({"lungrads": "4A"}).query == StudyQuery(lung_rads=LungRads.SUSPICIOUS_4A)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("since", "2026-02-30", "is no day"),
        ("until", "9999-12-31", "is no day"),
        ("from", "today", "is no day"),
        ("mm", "large", "from 0 to 1000"),
        ("mm", "nan", "from 0 to 1000"),
        ("malignancy", "101", "from 0 to 100"),
        ("lungrads", "5", "known: 0, 1, 2"),
        ("kind", "vessel", "known: solid, part-solid, ground-glass"),
        ("state", "lost", "known: receiving"),
        ("delivery", "lost", "known: waiting to be sent"),
        ("sort", "id; drop table", "known: received"),
        ("order", "sideways", "write up or down"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: str, said: str) -> None:
    (trouble,) = read_filter({field: value}).troubles
    assert value in trouble
    assert said in trouble


def test_fields_become_a_query() -> None:
    chosen = read_filter(
        {"q": " doe ", "state": "not analysed", "from": "2026-03-02", "mm": "6,5", "malignancy": "50",
         "sort": "patient", "order": "up", "after": "7", "until": ""}
    )  # fmt: skip
    assert chosen.query == StudyQuery(
        words="doe",
        first_day="20260302",
        state=StudyWord.NOT_ANALYSED,
        finding=FindingQuery(6.5, 0.5),
        order=StudyOrder.PATIENT,
        descending=False,
    )
    assert chosen.address(after=9).endswith("sort=patient&order=up&after=9")
    assert chosen.sorted_by("patient").endswith("sort=patient&order=down")
    assert chosen.sorted_by("state").endswith("sort=state&order=down")
