"""How long the last studies took, step by step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import quantiles

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node.db import Artifact, Delivery, Job, Series
from pacs_node.states import DeliveryState, JobState

LAST = 500
"""So many of the last analyses and deliveries are looked at."""

_PARTS = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Half, nine in ten, and 99 in a hundred took no longer.

    Parameters
    ----------
    count
        Of how many.
    """

    count: int
    p50: timedelta
    p90: timedelta
    p99: timedelta


@dataclass(frozen=True, slots=True)
class Latency:
    """Times of the last ones; None where nothing was done yet.

    Parameters
    ----------
    waited
        From the analysis being queued to its last start.
    analysis
        From its last start to its end.
    delivery
        From the result to the proof that it arrived.
    whole
        From the last image of the series to that proof.
    """

    waited: Percentiles | None
    analysis: Percentiles | None
    delivery: Percentiles | None
    whole: Percentiles | None


def percentiles(times: Iterable[timedelta]) -> Percentiles | None:
    """Of some times, by linear interpolation; None of none."""
    seconds = sorted(time.total_seconds() for time in times)
    if not seconds:
        return None
    cuts = quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else seconds * 99
    return Percentiles(len(seconds), *(timedelta(seconds=cuts[part - 1]) for part in _PARTS))


def latency(session: Session) -> Latency:
    """Ask for all of it."""
    finished = session.execute(
        select(Job.created_at, Job.started_at, Job.finished_at)
        .where(Job.state == JobState.SUCCEEDED, Job.kind == "analysis")
        .order_by(Job.id.desc())
        .limit(LAST)
    ).tuples()
    jobs = [(made, begun, done) for made, begun, done in finished if begun and done]
    last = (
        select(Delivery.id, Delivery.artifact_id, Delivery.created_at, Delivery.verified_at)
        .where(Delivery.state == DeliveryState.COMMITTED)
        .order_by(Delivery.id.desc())
        .limit(LAST)
        .subquery()
    )
    arrived = session.execute(
        select(last.c.created_at, last.c.verified_at, Series.last_received_at)
        .join(Artifact, Artifact.id == last.c.artifact_id)
        .join(Job, Artifact.job_id == Job.id)
        .join(Series, Job.series_id == Series.id)
    ).tuples()
    proved: list[tuple[datetime, datetime, datetime]] = [row for row in arrived if row[1]]
    return Latency(
        waited=percentiles(begun - made for made, begun, _ in jobs),
        analysis=percentiles(done - begun for _, begun, done in jobs),
        delivery=percentiles(there - made for made, there, _ in proved),
        # a late image makes another result: what was proved before it came is no time of this series
        whole=percentiles(there - came for _, there, came in proved if there > came),
    )
