"""Changes of state: a compare-and-set, its event row and the word of the study in one transaction."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.db import Delivery, Job, Series
from pacs_node.errors import StaleStateError
from pacs_node.states import (
    DELIVERY_CHANGES,
    JOB_CHANGES,
    SERIES_CHANGES,
    DeliveryState,
    JobState,
    SeriesState,
)
from pacs_node.study_state import restate


def move_series(
    session: Session, series: Series, new: SeriesState, *, at: datetime, actor: str, **values: Any
) -> None:
    """Change the state of a series; `values` are further columns to set."""
    _compare_and_set(session, series, SERIES_CHANGES, new, values)
    restate(session, series.study)
    audit.record(
        session,
        audit.Event.SERIES_CHANGED,
        at=at,
        actor=actor,
        study_uid=series.study.study_uid,
        series_uid=series.series_uid,
        state=new.value,
        n_instances=series.n_instances,
        closed_by=values.get("closed_by"),
        reason_code=values.get("reason_code"),
        reason=values.get("reason"),
    )


def move_job(
    session: Session,
    job: Job,
    new: JobState,
    *,
    at: datetime,
    actor: str,
    token: str | None = None,
    **values: Any,
) -> None:
    """Change the state of a job.

    Parameters
    ----------
    token
        The lease that the caller holds; with another one in the row the change is refused.
        None is for changes that need no lease (requeue, cancel, reclaim).

    Raises
    ------
    StaleStateError
        The row has another state or another lease by now.
    """
    _compare_and_set(session, job, JOB_CHANGES, new, values, token=token)
    restate(session, job.series.study)
    note_job(session, job, at=at, actor=actor, **values)


def note_job(session: Session, job: Job, *, at: datetime, actor: str, **values: Any) -> None:
    """Record how a job stands and what was changed in its row just now."""
    failed = job.state is JobState.FAILED
    audit.record(
        session,
        audit.Event.JOB_CHANGED,
        at=at,
        actor=actor,
        study_uid=job.series.study.study_uid,
        outcome=audit.Outcome.SERIOUS_FAILURE if failed else audit.Outcome.SUCCESS,
        series_uid=job.series.series_uid,
        job=job.id,
        kind=job.kind,
        state=job.state.value,
        attempt=job.attempts,
        outcome_of_job=values.get("outcome"),
        reason_code=values.get("reason_code"),
        reason=values.get("reason") or values.get("cancelled_reason"),
        cancelled_because=values.get("cancelled_because"),
        last_error=values.get("last_error"),
        pipeline_version=job.pipeline_version,
        input_digest=job.input_digest,
    )


def move_delivery(
    session: Session,
    delivery: Delivery,
    new: DeliveryState,
    *,
    at: datetime,
    actor: str,
    token: str | None = None,
    **values: Any,
) -> None:
    """Change the state of a delivery; `token` and errors as for `move_job`."""
    _compare_and_set(session, delivery, DELIVERY_CHANGES, new, values, token=token)
    artifact = delivery.artifact
    restate(session, artifact.job.series.study)
    audit.record(
        session,
        audit.Event.DELIVERY_CHANGED,
        at=at,
        actor=actor,
        study_uid=artifact.job.series.study.study_uid,
        outcome=audit.Outcome.SERIOUS_FAILURE if new is DeliveryState.FAILED else audit.Outcome.SUCCESS,
        destination=delivery.destination,
        kind=artifact.kind,
        encoding=artifact.encoding,
        sop_instance_uid=artifact.sop_instance_uid,
        job=artifact.job_id,
        state=new.value,
        attempt=delivery.attempts,
        status=values.get("status"),
    )


def _compare_and_set(
    session: Session,
    row: Series | Job | Delivery,
    allowed: frozenset[tuple[Any, Any]],
    new: SeriesState | JobState | DeliveryState,
    values: dict[str, Any],
    *,
    token: str | None = None,
) -> None:
    old = row.state
    if (old, new) not in allowed:
        raise StaleStateError(f"{type(row).__name__.lower()} {row.id}: {old} -> {new} is not allowed")
    table = type(row)
    statement = update(table).where(table.id == row.id, table.state == old)
    if token is not None:
        statement = statement.where(table.lease_token == token)  # type: ignore[union-attr] # series have no lease
    result = session.execute(
        statement.values(state=new, **values).execution_options(synchronize_session=False)
    )
    if not isinstance(result, CursorResult) or result.rowcount != 1:
        raise StaleStateError(f"{table.__name__.lower()} {row.id} was changed by somebody else")
    session.refresh(row)
