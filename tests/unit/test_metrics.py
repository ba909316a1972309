"""What Prometheus is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pacs_node.db import Database
from pacs_node.gpu import Gpu
from pacs_node.metrics import NodeCollector, exposition
from pacs_node.overview import DiskSpace
from pacs_node.states import DeliveryState
from tests.node_story import START, Story

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(database: Database, now: datetime = START, destinations: Iterable[str] = ("pacs",)) -> Values:
    disk = DiskSpace(free=7_000, total=9_000, reserve=5_000)
    gpu = Gpu("0", "H100", 0.5, 1.0, 2.0, 35.0)
    collector = NodeCollector(database, lambda: disk, tuple(destinations), lambda: now, lambda: (gpu,))
    families = text_string_to_metric_families(exposition(collector).decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(values: Values, name: str, /, **labels: str) -> float:
    return values[f"pacs_node_{name}", frozenset(labels.items())]


def test_an_empty_node_is_all_zeros(database: Database) -> None:
    values = scrape(database)
    assert value(values, "instances_total") == 0
    assert value(values, "jobs", state="queued") == 0
    assert value(values, "deliveries", destination="pacs", state="failed") == 0
    assert value(values, "delivery_age_seconds", destination="pacs") == 0
    assert value(values, "disk_free_bytes") == 7_000
    assert value(values, "disk_reserve_bytes") == 5_000
    assert not [name for name, _ in values if name == "pacs_node_analysis_seconds"]


def test_a_study_on_its_way(database: Database, story: Story) -> None:
    story.receive(3)
    received = story.now
    values = scrape(database, received.replace(minute=5))
    assert value(values, "instances_total") == 3
    assert value(values, "last_instance_age_seconds") == pytest.approx(300, abs=1)
    assert value(values, "series", state="receiving") == 1
    story.close().queue()
    values = scrape(database, story.now.replace(minute=30))
    assert value(values, "jobs", state="queued") == 1
    assert 1700 < value(values, "queue_age_seconds") <= 1800
    story.start()
    began = story.now
    story.finish()
    took = (story.now - began).total_seconds()
    values = scrape(database, story.now)
    assert value(values, "jobs", state="succeeded") == 1
    assert value(values, "queue_age_seconds") == 0
    for quantile in ("0.5", "0.9", "0.99"):
        assert value(values, "analysis_seconds", quantile=quantile) == took
    assert value(values, "deliveries", destination="pacs", state="pending") == 2
    story.deliver(DeliveryState.COMMITTED)
    values = scrape(database, story.now)
    assert value(values, "deliveries", destination="pacs", state="committed") == 2
    assert value(values, "delivery_seconds", quantile="0.5") > 0
    assert value(values, "audit_events_total") > 8


def test_percentiles_are_those_of_the_last_ones(database: Database, story: Story, tmp_path: object) -> None:
    for number in range(4):
        one = Story(database, story.directory, name=f"s{number}")
        one.receive(1).close().queue().start()
        one.wait(10 * number).finish()
    values = scrape(database)
    assert value(values, "jobs", state="succeeded") == 4
    middle = value(values, "analysis_seconds", quantile="0.5")
    assert middle == pytest.approx(value(values, "analysis_seconds", quantile="0.99") - 15, abs=1)


def test_only_configured_destinations_are_named(database: Database, story: Story) -> None:
    story.receive(1).close().queue().start().finish()
    values = scrape(database, destinations=("other",))
    named = {dict(labels).get("destination") for _, labels in values} - {None}
    assert named == {"other"}


def test_errors_are_counted(database: Database, story: Story) -> None:
    assert value(scrape(database), "errors_total", event="association refused") == 0
    story.refuse_association("A", "10.0.0.1").refuse_association("B", "10.0.0.1")
    assert value(scrape(database), "errors_total", event="association refused") == 2


def test_gpus_are_told_where_there_are_any(database: Database) -> None:
    values = scrape(database)
    assert value(values, "gpu_busy_ratio", gpu="0", name="H100") == 0.5
    assert value(values, "gpu_temperature_celsius", gpu="0", name="H100") == 35
    disk = DiskSpace(free=7_000, total=9_000, reserve=5_000)
    silent = Gpu("0", "H100", None, None, 2.0, None)

    def told(*found: Gpu) -> list[str]:
        text = exposition(NodeCollector(database, lambda: disk, (), lambda: START, lambda: found)).decode()
        return re.findall(r"^# TYPE (pacs_node_gpu\w+)", text, re.MULTILINE)

    assert told() == []
    assert told(silent) == ["pacs_node_gpu_memory_total_bytes"]


def test_no_patient_is_told(database: Database, story: Story) -> None:
    story.receive(1).close().queue().start().finish().deliver(DeliveryState.COMMITTED)
    text = repr(scrape(database))
    for secret in (story.patient_id, story.patient_name, story.accession_number, story.study_uid):
        assert secret not in text


def used(text: str) -> set[str]:
    return set(re.findall(r"pacs_node_[a-z_]+", text))


def test_alerts_and_dashboard_ask_for_what_is_told(database: Database, story: Story) -> None:
    story.receive(1).close().queue().start().finish().deliver(DeliveryState.COMMITTED)
    told = {name for name, _ in scrape(database)}
    folder = Path(__file__).parents[2] / "deploy" / "monitoring"
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"][0]["rules"]
    expressions = [rule["expr"] for rule in rules]
    panels = json.loads((folder / "dashboard.json").read_text())["panels"]
    expressions += [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) > 20
    for expression in expressions:
        assert used(expression) <= told, expression
    # what nobody looks at needs no place in a scrape
    assert told - used(" ".join(expressions)) == {"pacs_node_info"}
    for rule in rules:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["action"]
