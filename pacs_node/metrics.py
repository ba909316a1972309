"""The node in numbers, for Prometheus: read from the database and the disk at each scrape.

No part counts for itself, so a restart resets nothing and one scrape tells of all parts. No label holds a
patient, a study, or text that a peer chose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node import __version__
from pacs_node.agreement import given_counts
from pacs_node.audit import Event
from pacs_node.clock import Clock, utc_now
from pacs_node.db import AuditEvent, Breaker, Database, Delivery, Instance, Job, MissedStudy, Series
from pacs_node.db_feedback import VerdictKind, VerdictSource
from pacs_node.drift import latest_reading
from pacs_node.gpu import Gpu, gpus
from pacs_node.latency import Percentiles, latency
from pacs_node.overview import DiskSpace
from pacs_node.states import DeliveryState, JobState, SeriesState

_UNSENT = (DeliveryState.PENDING, DeliveryState.SENDING)


class NodeCollector(Collector):
    """Makes the metrics of one scrape.

    Parameters
    ----------
    disk
        Looks where images are kept.
    destinations
        Names of those that are configured.
    gpus
        Looks at the GPUs of this machine.
    """

    def __init__(
        self,
        database: Database,
        disk: Callable[[], DiskSpace],
        destinations: tuple[str, ...],
        clock: Clock = utc_now,
        gpus: Callable[[], tuple[Gpu, ...]] = gpus,
    ) -> None:
        self._database, self._disk, self._destinations, self._clock = database, disk, destinations, clock
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        """Yield one family after the other."""
        now = self._clock()
        yield _labelled("pacs_node_info", "Version of the software.", ("version",), [((__version__,), 1)])
        with self._database.read() as session:
            yield from _ingest(session, now)
            yield from _analysis(session, now)
            yield from _delivery(session, now, self._destinations)
            yield _counter(
                "pacs_node_audit_events",
                "Rows of the audit record.",
                session.scalar(select(func.max(AuditEvent.seq))),
            )
            missed = select(func.count()).select_from(MissedStudy).where(MissedStudy.arrived_at.is_(None))
            yield _gauge(
                "pacs_node_missed_studies",
                "Studies that the archive has and the node never got.",
                session.scalar(missed),
            )
            yield _errors(session)
            yield from _quality(session)
        disk = self._disk()
        yield _gauge("pacs_node_disk_free_bytes", "Free space where images are kept.", disk.free)
        yield _gauge(
            "pacs_node_disk_reserve_bytes", "Below this free space objects are refused (A700).", disk.reserve
        )
        yield _gauge("pacs_node_disk_total_bytes", "Size of the file system there.", disk.total)
        yield from _gpu(self._gpus())


def exposition(collector: NodeCollector) -> bytes:
    """Return the metrics in Prometheus' text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


def _gauge(name: str, help_text: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=value or 0)


def _counter(name: str, help_text: str, value: float | None) -> CounterMetricFamily:
    return CounterMetricFamily(name, help_text, value=value or 0)


def _labelled(
    name: str, help_text: str, labels: tuple[str, ...], values: Sequence[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _ingest(session: Session, now: datetime) -> Iterator[Metric]:
    # rows are never removed, so the highest number is how many there were
    yield _counter("pacs_node_instances", "Objects received.", session.scalar(select(func.max(Instance.id))))
    last = session.scalar(select(Instance.received_at).order_by(Instance.id.desc()).limit(1))
    if last is not None:
        age = (now - last).total_seconds()
        yield _gauge("pacs_node_last_instance_age_seconds", "Since an object was received.", age)
    rows = session.execute(select(Series.state, func.count()).group_by(Series.state))
    counts = {str(state): count for state, count in rows}
    states = [((state.value,), counts.get(state.value, 0)) for state in SeriesState]
    yield _labelled("pacs_node_series", "Series by state.", ("state",), states)


def _analysis(session: Session, now: datetime) -> Iterator[Metric]:
    rows = session.execute(select(Job.state, func.count()).group_by(Job.state))
    counts = {str(state): count for state, count in rows}
    states = [((state.value,), counts.get(state.value, 0)) for state in JobState]
    yield _labelled("pacs_node_jobs", "Analyses by state.", ("state",), states)
    oldest = session.scalar(select(func.min(Job.created_at)).where(Job.state == JobState.QUEUED))
    age = (now - oldest).total_seconds() if oldest else 0.0
    yield _gauge("pacs_node_queue_age_seconds", "Age of the oldest analysis that waits.", age)
    took = latency(session)
    yield _percentiles("pacs_node_analysis_seconds", "Time of the last analyses.", took.analysis)
    yield _percentiles("pacs_node_queue_wait_seconds", "Time that the last analyses waited.", took.waited)
    yield _percentiles(
        "pacs_node_delivery_seconds", "From result to proof of arrival, of the last ones.", took.delivery
    )
    yield _percentiles(
        "pacs_node_study_seconds", "From the last image to proof of arrival, of the last ones.", took.whole
    )


def _delivery(session: Session, now: datetime, destinations: tuple[str, ...]) -> Iterator[Metric]:
    rows = session.execute(
        select(Delivery.destination, Delivery.state, func.count()).group_by(
            Delivery.destination, Delivery.state
        )
    )
    counts = {(name, str(state)): count for name, state, count in rows}
    values = [
        ((name, state.value), counts.get((name, state.value), 0))
        for name in destinations
        for state in DeliveryState
    ]
    yield _labelled(
        "pacs_node_deliveries", "Results by destination and state.", ("destination", "state"), values
    )
    oldest = dict(
        session.execute(
            select(Delivery.destination, func.min(Delivery.created_at))
            .where(Delivery.destination.in_(destinations), Delivery.state.in_(_UNSENT))
            .group_by(Delivery.destination)
        )
        .tuples()
        .all()
    )
    ages = [
        ((name,), (now - oldest[name]).total_seconds() if name in oldest else 0.0) for name in destinations
    ]
    yield _labelled(
        "pacs_node_delivery_age_seconds", "Age of the oldest result that waits.", ("destination",), ages
    )
    open_until = dict(session.execute(select(Breaker.destination, Breaker.open_until)).tuples().all())
    states = [((name,), float(open_until.get(name) is not None)) for name in destinations]
    yield _labelled("pacs_node_destination_away", "1 while nobody answers there.", ("destination",), states)


#: what went wrong, as the audit record calls it
_ERRORS = (
    Event.ASSOCIATION_REFUSED,
    Event.INSTANCE_REFUSED,
    Event.INSTANCE_CONFLICT,
    Event.INTAKE_PAUSED,
    Event.DESTINATION_AWAY,
    Event.LOGIN_REFUSED,
    Event.ACCESS_DENIED,
)


def _errors(session: Session) -> Metric:
    names = [event.value[0] for event in _ERRORS]
    counts = dict(
        session.execute(
            select(AuditEvent.event, func.count())
            .where(AuditEvent.event.in_(names))
            .group_by(AuditEvent.event)
        )
        .tuples()
        .all()
    )
    family = CounterMetricFamily("pacs_node_errors", "What went wrong, by audit event.", labels=("event",))
    for name in names:
        family.add_metric((name,), counts.get(name, 0))
    return family


def _gpu(found: Sequence[Gpu]) -> Iterator[Metric]:
    """Nothing without a GPU: a zero would be a measurement."""
    for name, help_text, values in (
        ("gpu_busy_ratio", "Share of time in which the GPU computed.", [one.busy for one in found]),
        ("gpu_memory_used_bytes", "Memory in use.", [one.memory_used for one in found]),
        ("gpu_memory_total_bytes", "Memory that there is.", [one.memory_total for one in found]),
        ("gpu_temperature_celsius", "Temperature.", [one.celsius for one in found]),
    ):
        rows = [
            ((one.index, one.name), value)
            for one, value in zip(found, values, strict=True)
            if value is not None
        ]
        if rows:
            yield _labelled(f"pacs_node_{name}", help_text, ("gpu", "name"), rows)


def _quality(session: Session) -> Iterator[Metric]:
    verdicts = CounterMetricFamily(
        "pacs_node_verdicts", "Verdicts of radiologists.", labels=("kind", "source")
    )
    given = given_counts(session)
    for kind in VerdictKind:
        for source in VerdictSource:
            verdicts.add_metric((kind.value, source.value), given.get((kind.value, source.value), 0))
    yield verdicts
    reading = latest_reading(session)
    alarms = 0 if reading is None else len(reading.alarms)
    yield _gauge("pacs_node_drift_alarms", "Comparisons in which recent results differ.", alarms)


def _percentiles(name: str, help_text: str, found: Percentiles | None) -> Metric:
    values: list[tuple[tuple[str, ...], float]] = []
    if found is not None:
        parts = (("0.5", found.p50), ("0.9", found.p90), ("0.99", found.p99))
        values = [((part,), time.total_seconds()) for part, time in parts]
    return _labelled(name, help_text, ("quantile",), values)
