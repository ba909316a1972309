"""What analyses found, in columns; and what is counted from it: use, drift, agreement."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scipy.stats import binomtest, chi2, ks_2samp
from sqlalchemy import insert, select, update

from pacs_node.agreement import agreement, median_interval, poisson_rate, verdict_rows, wilson
from pacs_node.config_drift import DriftSettings
from pacs_node.db import Artifact, Database, Job, Series, Study
from pacs_node.db_feedback import AnalysisSummary, Nodule, PipelineCards, RejectReason, VerdictKind
from pacs_node.drift import Drift, Reading, compare, distance, latest_reading
from pacs_node.drift import Study as Seen
from pacs_node.feedback import NewVerdict, record
from pacs_node.metrics import NodeCollector, exposition
from pacs_node.model_use import refusals, uses, weeks
from pacs_node.overview import DiskSpace
from pacs_node.states import JobState
from pacs_node.summaries import Summaries, monday
from tests.node_story import START, Story, analysed
from tests.web_browser import RESULT

SETTINGS = DriftSettings()


def result_of(*scores: float) -> dict[str, Any]:
    """A result with a finding of each malignancy."""
    result = deepcopy(RESULT)
    (pattern,) = result["findings"]
    result["findings"] = [
        deepcopy(pattern)
        | {"number": n, "tracking_uid": f"2.25.{n}", "malignancy": {"image_only": score, "fused": None}}
        for n, score in enumerate(scores, start=1)
    ]
    return result


def summary(database: Database) -> AnalysisSummary:
    with database.read() as session:
        return session.execute(select(AnalysisSummary)).scalar_one()


def test_a_result_becomes_columns(database: Database, story: Story) -> None:
    analysed(story, result_of(0.2, 0.7))
    assert Summaries(database, story.directory).tick() == 1
    row = summary(database)
    assert (row.outcome, row.n_findings, row.malignancy, row.week) == ("analysed", 2, 0.7, "2026-03-02")
    assert (row.scanner, row.kernel, row.slice_thickness_mm) == ("Synthetic One", "STANDARD", 2.5)
    assert (row.largest_mm, row.n_part_solid, row.n_solid) == (10.67, 2, 0)
    with database.read() as session:
        nodules = session.execute(select(Nodule).order_by(Nodule.number)).scalars().all()
        cards = session.execute(select(PipelineCards)).scalar_one().cards
    assert [(n.tracking_uid, n.malignancy, n.attenuation) for n in nodules] == [
        ("2.25.1", 0.2, "part-solid"),
        ("2.25.2", 0.7, "part-solid"),
    ]
    assert cards[0]["name"] == "Detector"


@pytest.mark.parametrize(
    ("observations", "category"),
    [
        ({"lung_rads": "4AS", "lung_rads_version": "2022"}, "4AS"),
        ({"lung_rads_undetermined": "No prior is known."}, "undetermined"),
        ({"emphysema": "present"}, ""),
    ],
)
def test_the_category_of_a_result_is_read_from_older_rows_too(
    database: Database, story: Story, observations: dict[str, str], category: str
) -> None:
    said = [{"name": name, "value": value} for name, value in observations.items()]
    analysed(story, result_of(0.2) | {"observations": said})
    summaries = Summaries(database, story.directory)
    summaries.tick()
    assert summary(database).lung_rads == category
    # a row of before the column
    with database.write() as session:
        session.execute(update(AnalysisSummary).values(lung_rads=None))
    assert (Summaries(database, story.directory).tick(), summary(database).lung_rads) == (1, category)
    # and one whose file was removed meanwhile: the rest of what is known stays
    with database.write() as session:
        session.execute(update(AnalysisSummary).values(lung_rads=None))
        session.execute(update(Artifact).values(path=None))
    again = Summaries(database, story.directory)
    assert (again.tick(), again.tick()) == (1, 0)
    assert (summary(database).lung_rads, summary(database).malignancy) == ("", 0.2)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"findings": [1, {"tracking_uid": 5}], "series": 3}', "[" * 9000]
)
def test_any_result_file_can_be_read(database: Database, story: Story, content: str) -> None:
    analysed(story, content)
    assert Summaries(database, story.directory).tick() == 1
    row = summary(database)
    assert (row.outcome, row.malignancy, row.scanner) == ("analysed", None, "")


def test_a_result_that_was_removed_is_counted_all_the_same(database: Database, story: Story) -> None:
    analysed(story, result_of(0.5))
    with database.write() as session:
        session.execute(update(Artifact).values(path=None))
    Summaries(database, story.directory).tick()
    assert (summary(database).outcome, summary(database).n_findings) == ("analysed", None)


def test_refusals_and_jobs_that_passed_on(database: Database, story: Story) -> None:
    story.receive().close().queue().start().finish(reason=("NOT_CHEST", "No lungs."), kinds=())
    story.queue(refusal=("NOT_CHEST", "No lungs.")).start()
    story.finish(reason=("NOT_CHEST", "No lungs."), kinds=("sr", "json"))
    Summaries(database, story.directory).tick()
    with database.read() as session:
        outcomes = session.scalars(select(AnalysisSummary.outcome).order_by(AnalysisSummary.job_id)).all()
        assert refusals(session, story.now) == (("NOT_CHEST", 1),)
    assert outcomes == ["passed_on", "not_analysed"]


def test_a_job_that_is_done_again_has_its_new_end(database: Database, story: Story) -> None:
    summaries = Summaries(database, story.directory)
    analysed(story, result_of(0.5, 0.6))
    assert (summaries.tick(), summaries.tick()) == (1, 0)
    with database.write() as session:
        session.execute(update(Job).values(state=JobState.FAILED, finished_at=story.now + timedelta(hours=2)))
    assert (summaries.tick(), summaries.tick()) == (1, 0)
    assert summary(database).outcome == "failed"
    with database.read() as session:
        assert session.execute(select(Nodule)).all() == []


def test_a_clock_that_was_set_back_hides_nothing_for_ever(
    database: Database, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pacs_node.summaries._LOOK_AT_ALL", 3)
    summaries = Summaries(database, story.directory)
    analysed(story, result_of(0.5))
    summaries.tick()
    other = Story(database, story.directory, "b", now=START - timedelta(days=3))
    analysed(other, result_of(0.4))
    assert [summaries.tick() for _ in range(3)] == [0, 0, 1]


def many(database: Database, values: list[dict[str, Any]]) -> None:
    """Rows of as many studies, each with a series and a job."""
    with database.write() as session:
        for number, value in enumerate(values, start=1):
            at = value["finished_at"]
            texts = dict.fromkeys(("patient_id", "patient_name", "accession_number", "study_date"), "")
            study = Study(study_uid=f"1.{number}", description="", first_received_at=at, **texts)
            session.add(study)
            session.flush()
            series = Series(
                study_id=study.id,
                series_uid=f"2.{number}",
                modality="CT",
                description="",
                calling_ae="A",
                last_received_at=at,
                state="queued",
            )
            session.add(series)
            session.flush()
            job = Job(
                series_id=series.id,
                kind="analysis",
                input_digest="d",
                pipeline_version="v",
                state="succeeded",
                created_at=at,
                not_before=at,
                finished_at=at,
            )
            session.add(job)
            session.flush()
            row: dict[str, Any] = {
                "outcome": "analysed",
                "reason_code": "",
                "pipeline_version": "v",
                "scanner": "S",
            }
            row |= {"kernel": "K", "slice_thickness_mm": 1.0, "n_findings": 1, "week": monday(at)}
            session.execute(
                insert(AnalysisSummary).values({**row, **value, "job_id": job.id, "study_id": study.id})
            )


def drifted(database: Database, shift: float, count: int = 60) -> Reading:
    random = Random(3)
    recent, before = START - timedelta(days=3), START - timedelta(days=60)
    many(
        database,
        [{"finished_at": before, "malignancy": random.random()} for _ in range(count)]
        + [{"finished_at": recent, "malignancy": min(1.0, random.random() + shift)} for _ in range(count)],
    )
    Drift(database, SETTINGS, lambda: START).tick()
    with database.read() as session:
        reading = latest_reading(session)
    assert reading is not None
    return reading


def test_drift_is_an_alarm(database: Database) -> None:
    reading = drifted(database, 0.5)
    assert {(one.dimension, one.measure) for one in reading.alarms} == {
        (dimension, "malignancy") for dimension in ("all", "scanner", "kernel", "thickness")
    }
    assert "drifted" in reading.alarms[0].sentence
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(
            exposition(NodeCollector(database, lambda: DiskSpace(1, 1, 1), (), lambda: START)).decode()
        )
        for sample in family.samples
    }
    assert samples["pacs_node_drift_alarms"] == 4


def test_chance_and_few_studies_are_none(database: Database) -> None:
    assert drifted(database, 0.0).alarms == ()


def test_few_studies_are_not_compared(database: Database) -> None:
    reading = drifted(database, 0.9, count=49)
    assert {one.distance for one in reading.comparisons} == {None}


def test_of_a_study_its_latest_analysis_counts(database: Database) -> None:
    many(database, [{"finished_at": START - timedelta(days=60), "malignancy": 0.1}] * 2)
    with database.write() as session:
        session.execute(update(AnalysisSummary).values(study_id=1))
        session.execute(update(AnalysisSummary).where(AnalysisSummary.job_id == 2).values(finished_at=START))
    Drift(database, SETTINGS, lambda: START).tick()
    with database.read() as session:
        reading = latest_reading(session)
    assert reading is not None
    assert {(one.n_recent, one.n_reference) for one in reading.comparisons} == {(1, 0)}


def test_no_false_alarm_in_many_comparisons() -> None:
    """Without any difference about one reading in twenty may have an alarm, not one comparison in twenty."""
    random = np.random.default_rng(5)
    settings = DriftSettings(distance=0.01, least_studies=20)
    alarmed = 0
    for _ in range(40):
        seen = [
            Seen(i % 2 == 0, f"S{i % 5}", f"K{i % 4}", 1.0 + i % 3, int(random.poisson(1)), random.random())
            for i in range(400)
        ]
        alarmed += any(one.alarm for one in compare(seen, settings))
    assert alarmed <= 6


@pytest.mark.parametrize("sizes", [(50, 50), (60, 400)])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    first, second = random.normal(size=sizes[0]), random.normal(0.3, size=sizes[1])
    expected = ks_2samp(first, second)
    largest, chance = distance(list(first), list(second))
    assert largest == pytest.approx(expected.statistic)
    assert chance == pytest.approx(expected.pvalue, rel=0.15)


def test_thickness_bands() -> None:
    pattern = Seen(True, "", "", None, 0, None)
    bands = [replace(pattern, slice_thickness_mm=mm).thickness for mm in (0.6, 1.0, 1.25, 2.5, 5.0)]
    assert bands == ["up to 1 mm", "up to 1 mm", "1 to 1.5 mm", "1.5 to 2.5 mm", "more than 2.5 mm"]
    assert pattern.thickness == ""


def test_use_by_version_and_week(database: Database) -> None:
    old = START - timedelta(weeks=3)
    rows: list[dict[str, Any]] = [{"finished_at": old, "malignancy": m} for m in (0.1, 0.2, 0.95)]
    rows += [{"finished_at": START, "malignancy": None, "n_findings": 0}]
    rows += [{"finished_at": START, "outcome": "not_analysed", "n_findings": None, "pipeline_version": "w"}]
    many(database, rows)
    with database.read() as session:
        found = {use.pipeline_version: use for use in uses(session)}
        shown = weeks(session, START, 4)
    assert (found["v"].analysed, found["v"].first_at, found["v"].last_at) == (4, old, START)
    assert (found["v"].analysed_first_at, found["v"].analysed_last_at) == (old, START)
    assert (found["w"].analysed, found["w"].not_analysed) == (0, 1)
    assert (found["w"].last_at, found["w"].analysed_last_at) == (START, None), "a report, no model"
    assert [week.analysed for week in shown] == [3, 0, 0, 1]
    assert shown[0].scores == (1, 1, 0, 0, 1)
    assert (shown[3].without, shown[3].refused, shown[3].refused_share) == (1, 1, 0.5)
    assert shown[1].mean_findings is None


def test_agreement_counts_the_verdict_that_holds(database: Database, story: Story) -> None:
    analysed(story, result_of(0.2, 0.4, 0.6, 0.8))
    Summaries(database, story.directory).tick()
    said = [
        NewVerdict("2.25.1", VerdictKind.REJECTED, RejectReason.VESSEL),
        NewVerdict("2.25.1", VerdictKind.ACCEPTED),
        NewVerdict("2.25.2", VerdictKind.REJECTED, RejectReason.SCAR),
        NewVerdict("2.25.3", VerdictKind.EDITED, changes={"dice": 0.8}),
        NewVerdict("2.25.4", VerdictKind.ACCEPTED),
        NewVerdict("2.25.4", VerdictKind.WITHDRAWN),
        NewVerdict("2.25.9", VerdictKind.MISSED, text="apex", changes={"slice": 4}),
    ]
    with database.write() as session:
        job = session.execute(select(Job)).scalar_one()
        for new in said:
            record(session, job, new, at=story.now, actor="user:r")
    with database.read() as session:
        (row,) = agreement(session)
        (total,) = agreement(session, weekly=False)
        rows = list(verdict_rows(session))
    assert (row.week, row.studies, row.findings, row.missed) == ("2026-03-02", 1, 3, 1)
    assert [round(e.value or 0, 3) for e in (row.accepted, row.rejected, row.edited)] == [0.333] * 3
    assert (row.false_positives.value, row.dice.value, row.dice.n) == (1.0, 0.8, 1)
    assert (total.week, total.findings) == ("", 3)
    assert [r["holds"] for r in rows] == [False, True, True, True, False, False, True]


@pytest.mark.parametrize(("hits", "total"), [(0, 7), (3, 11), (11, 11), (40, 900)])
def test_intervals_of_shares(hits: int, total: int) -> None:
    expected = binomtest(hits, total).proportion_ci(method="wilson")
    found = wilson(hits, total)
    assert found.low == pytest.approx(expected.low)
    assert found.high == pytest.approx(expected.high)
    assert wilson(0, 0).value is None


@pytest.mark.parametrize(("count", "units"), [(0, 5), (4, 9), (300, 70)])
def test_intervals_of_rates(count: int, units: int) -> None:
    found = poisson_rate(count, units)
    low = chi2.ppf(0.025, 2 * count) / 2 / units if count else 0.0
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 2 / units)


def test_intervals_of_medians() -> None:
    assert median_interval([]).n == 0
    assert median_interval([1, 2, 3, 4, 5]) == median_interval([5, 4, 3, 2, 1])
    assert median_interval([1, 2, 3, 4, 5]).low is None
    ten = median_interval(list(range(1, 11)))
    # David and Nagaraja, Order Statistics, 7.1: for ten values the second and the ninth
    assert (ten.value, ten.low, ten.high) == (5.5, 2, 9)


def test_an_empty_node_has_nothing_to_compare(database: Database) -> None:
    Drift(database, SETTINGS, lambda: START).tick()
    with database.read() as session:
        reading = latest_reading(session)
        assert (uses(session), agreement(session)) == ((), [])
    assert reading is not None
    assert reading.comparisons == ()
