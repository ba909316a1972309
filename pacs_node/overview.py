"""What the whole node is doing now, for the first page and for health checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node.audit import Event
from pacs_node.breaker import Away, away
from pacs_node.config import Caller
from pacs_node.db import Artifact, AuditEvent, Breaker, Delivery, Job, Series, Study
from pacs_node.dead_letters import destinations_with_results, failed_everywhere
from pacs_node.states import DeliveryState, JobState
from pacs_node.study_state import StudyWord

_RECENT_EVENTS = 20_000
"""How far back in the audit record a refusal is of late."""
_RECENT_REFUSALS = 200
_MOST = 20
_WAITING = (DeliveryState.PENDING, DeliveryState.SENDING)


@dataclass(frozen=True, slots=True)
class RunningJob:
    """What is being analysed."""

    job_id: int
    study_uid: str
    attempt: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class DestinationLine:
    """The outbox of one destination.

    Parameters
    ----------
    pending, unverified, failed
        Objects that wait or are being sent; that were sent but not yet found there; that need an operator.
    oldest_pending
        When the oldest of the pending was made.
    last_sent, last_verified
        When an object last arrived, and last was found there.
    away
        Since when nobody reaches it, and why; None where its breaker is closed.
    last_error, last_failure
        Status of the pending object that was tried last, and of the last that failed for good.
    """

    name: str
    pending: int = 0
    unverified: int = 0
    failed: int = 0
    oldest_pending: datetime | None = None
    last_sent: datetime | None = None
    last_verified: datetime | None = None
    last_error: str | None = None
    last_failure: str | None = None
    away: Away | None = None


@dataclass(frozen=True, slots=True)
class FailedStudy:
    """A study whose analysis or delivery failed for good."""

    study_uid: str
    what: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class RefusedAssociation:
    """A peer that was turned away, with how often of late."""

    calling_ae: str
    called_ae: str
    address: str
    last_at: datetime
    count: int

    def toml(self) -> str:
        """Lines for the configuration file that would admit this peer."""
        # a JSON string of these characters is a TOML basic string too
        return f"[[callers]]\nae_title = {json.dumps(self.calling_ae)}\naddress = {json.dumps(self.address)}"

    def admitted_by(self, callers: Sequence[Caller]) -> bool:
        """Whether the present configuration would let the peer in."""
        try:
            return any(caller.admits(self.calling_ae, self.address) for caller in callers)
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class RefusedInstance:
    """An object that the listener didn't take."""

    calling_ae: str
    status: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Free space where images are kept, bytes."""

    free: int
    total: int
    reserve: int

    @property
    def low(self) -> bool:
        """Whether the listener refuses images."""
        return self.free < self.reserve


@dataclass(frozen=True, slots=True)
class Overview:
    """The state of the node.

    Parameters
    ----------
    today
        Studies since midnight of the asked day by state; every state has a count.
    queued, oldest_queued
        Jobs that wait, and when the oldest was made.
    failures
        Failed jobs and deliveries, the newest first, at most 20.
    last_pipeline
        Version of the pipeline of the newest job.
    """

    now: datetime
    today: dict[StudyWord, int]
    queued: int
    oldest_queued: datetime | None
    running: tuple[RunningJob, ...]
    destinations: tuple[DestinationLine, ...]
    failures: tuple[FailedStudy, ...]
    refused_associations: tuple[RefusedAssociation, ...]
    refused_instances: tuple[RefusedInstance, ...]
    last_pipeline: str | None


def overview(
    session: Session, now: datetime, midnight: datetime, destinations: Sequence[str] = ()
) -> Overview:
    """Ask for all of it.

    Parameters
    ----------
    now, midnight
        The present time, and the beginning of the day where the node stands.
    destinations
        Names from the configuration; others are listed where something is on its way to them.
    """
    queued, oldest = session.execute(
        select(func.count(), func.min(Job.created_at)).where(Job.state == JobState.QUEUED)
    ).one()
    newest = select(Job.pipeline_version).order_by(Job.id.desc()).limit(1)
    return Overview(
        now=now,
        today=_today(session, midnight),
        queued=queued,
        oldest_queued=oldest,
        running=_running(session),
        destinations=_destinations(session, destinations),
        failures=_failures(session),
        refused_associations=_refused_associations(session),
        refused_instances=_refused_instances(session),
        last_pipeline=session.execute(newest).scalar_one_or_none(),
    )


def disk_space(directory: Path, reserve_bytes: int) -> DiskSpace:
    """Measure the file system of the storage directory."""
    usage = shutil.disk_usage(directory)
    return DiskSpace(usage.free, usage.total, reserve_bytes)


def _today(session: Session, midnight: datetime) -> dict[StudyWord, int]:
    # one range of the index for each word; grouped, all studies would be read
    arrived = select(func.count()).where(Study.first_received_at >= midnight)
    return {word: session.execute(arrived.where(Study.state == word)).scalar_one() for word in StudyWord}


def _running(session: Session) -> tuple[RunningJob, ...]:
    query = (
        select(Job, Study.study_uid)
        .join(Series, Job.series_id == Series.id)
        .join(Study, Series.study_id == Study.id)
        .where(Job.state == JobState.RUNNING)
        .order_by(Job.id)
    )
    return tuple(
        RunningJob(job.id, study_uid, job.attempts, job.started_at or job.created_at)
        for job, study_uid in session.execute(query)
    )


def _destinations(session: Session, names: Sequence[str]) -> tuple[DestinationLine, ...]:
    # all of it is answered from the index over destination, state and next attempt; those that arrived, which
    # are nearly all, are not counted
    lines = []
    for name in [*names, *(other for other in destinations_with_results(session) if other not in names)]:
        by_state = {
            state: session.execute(
                select(func.count()).where(Delivery.destination == name, Delivery.state == state)
            ).scalar_one()
            for state in (*_WAITING, DeliveryState.SENT, DeliveryState.FAILED)
        }
        if name not in names and not any(by_state.values()):
            continue
        arrived = _last_arrived(session, name)
        lines.append(
            DestinationLine(
                name=name,
                pending=sum(by_state[state] for state in _WAITING),
                unverified=by_state[DeliveryState.SENT],
                failed=by_state[DeliveryState.FAILED],
                oldest_pending=_oldest_pending(session, name),
                last_sent=max((sent for sent, _ in arrived if sent), default=None),
                last_verified=max((verified for _, verified in arrived if verified), default=None),
                last_error=_last_error(session, name, *_WAITING),
                last_failure=_last_error(session, name, DeliveryState.FAILED),
                away=away(session.get(Breaker, name)),
            )
        )
    return tuple(lines)


def _oldest_pending(session: Session, destination: str) -> datetime | None:
    oldest = select(func.min(Delivery.created_at)).where(
        Delivery.destination == destination, Delivery.state.in_(_WAITING)
    )
    return session.execute(oldest).scalar_one()


def _last_arrived(session: Session, destination: str) -> list[tuple[datetime | None, datetime | None]]:
    """When the objects that were due last were sent and verified."""
    found: list[tuple[datetime | None, datetime | None]] = []
    for state in (DeliveryState.SENT, DeliveryState.COMMITTED):
        query = (
            select(Delivery.sent_at, Delivery.verified_at)
            .where(Delivery.destination == destination, Delivery.state == state)
            .order_by(Delivery.next_attempt_at.desc())
            .limit(100)
        )
        found += session.execute(query).tuples().all()
    return found


def _last_error(session: Session, destination: str, *states: DeliveryState) -> str | None:
    """Status of the object in one of the states that was due last."""
    query = (
        select(Delivery.status)
        .where(
            Delivery.destination == destination,
            Delivery.state.in_(states),
            Delivery.attempts > 0,
            Delivery.status.is_not(None),
        )
        .order_by(Delivery.next_attempt_at.desc())
        .limit(1)
    )
    return session.execute(query).scalar_one_or_none()


def _failures(session: Session) -> tuple[FailedStudy, ...]:
    failed_jobs = (
        select(Job, Study.study_uid)
        .join(Series, Job.series_id == Series.id)
        .join(Study, Series.study_id == Study.id)
        .where(Job.state == JobState.FAILED)
        .order_by(Job.id.desc())
        .limit(_MOST)
    )
    failed_deliveries = (
        select(Delivery, Artifact.kind, Study.study_uid)
        .join(Artifact, Delivery.artifact_id == Artifact.id)
        .join(Job, Artifact.job_id == Job.id)
        .join(Series, Job.series_id == Series.id)
        .join(Study, Series.study_id == Study.id)
        .where(failed_everywhere(session))
        .order_by(Delivery.id.desc())
        .limit(_MOST)
    )
    found = [
        FailedStudy(
            uid, "Analysis failed", job.reason or job.last_error or "", job.finished_at or job.created_at
        )
        for job, uid in session.execute(failed_jobs)
    ]
    together: dict[tuple[str, str, str], list[tuple[str, datetime]]] = {}
    for delivery, kind, uid in session.execute(failed_deliveries):
        key = (uid, delivery.destination, delivery.status or "no status")
        together.setdefault(key, []).append((kind.upper(), delivery.next_attempt_at))
    found += [
        FailedStudy(
            uid,
            f"Delivery of {' and '.join(sorted({kind for kind, _ in rows}))} to {destination} failed",
            status,
            max(at for _, at in rows),
        )
        for (uid, destination, status), rows in together.items()
    ]
    return tuple(sorted(found, key=lambda row: row.at, reverse=True)[:_MOST])


def _recent(session: Session, event: Event) -> Sequence[tuple[datetime, dict[str, Any]]]:
    last = session.execute(select(func.max(AuditEvent.seq))).scalar_one() or 0
    query = (
        select(AuditEvent.seq, AuditEvent.at, AuditEvent.objects)
        .where(AuditEvent.event == event.value[0])
        .order_by(AuditEvent.at.desc(), AuditEvent.seq.desc())
        .limit(_RECENT_REFUSALS)
    )
    rows = session.execute(query).tuples()
    return [(at, objects) for seq, at, objects in rows if seq > last - _RECENT_EVENTS]


def _refused_associations(session: Session) -> tuple[RefusedAssociation, ...]:
    """Newest first, equal ones once."""
    found: dict[tuple[str, str, str], RefusedAssociation] = {}
    for at, objects in _recent(session, Event.ASSOCIATION_REFUSED):
        calling, called, address = (
            str(objects.get(name, "")) for name in ("calling_ae", "called_ae", "address")
        )
        if not calling:
            # no sender that could be admitted; pacs-node doctor tells about it
            continue
        key = (calling, called, address)
        count = int(objects.get("count", 1)) + (found[key].count if key in found else 0)
        last = found[key].last_at if key in found else at
        found[key] = RefusedAssociation(calling, called, address, last, count)
    return tuple(found.values())[:5]


def _refused_instances(session: Session) -> tuple[RefusedInstance, ...]:
    return tuple(
        RefusedInstance(
            calling_ae=str(objects.get("calling_ae", "")),
            status=str(objects.get("status", "")),
            reason=str(objects.get("reason", "")),
            at=at,
        )
        for at, objects in _recent(session, Event.INSTANCE_REFUSED)[:5]
    )
