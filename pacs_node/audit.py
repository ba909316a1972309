"""The append-only, hash-chained record of what happened. Event names and codes: PS3.15 A.5.3.

Rows name studies, series, instances and jobs by UID or number, never patients.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node.db import AuditEvent

GENESIS = "0" * 64


class Event(Enum):
    """What is recorded: our name and the DCM code of the audit message it belongs to."""

    NODE_STARTED = ("node started", "110120")
    NODE_STOPPED = ("node stopped", "110121")
    ASSOCIATION_REFUSED = ("association refused", "110113")
    INSTANCE_REFUSED = ("instance refused", "110104")
    INSTANCE_CONFLICT = ("instance conflict", "110104")
    SERIES_ARRIVED = ("series arrived", "110104")
    SERIES_CHANGED = ("series", "110104")
    SERIES_WAITS = ("series waits", "110104")
    COMMITMENT_REQUESTED = ("commitment requested", "110104")
    COMMITMENT_REPORTED = ("commitment reported", "110104")
    COMMITMENT_ANSWERED = ("commitment answered", "110104")
    ARCHIVE_SEARCHED = ("archive searched", "110112")
    STUDY_MISSED = ("study missed", "110112")
    RECORD_TOLD = ("clinical record told", "110107")
    RECORD_ASKED = ("clinical record asked", "110112")
    PRIOR_ASKED = ("prior asked", "110112")
    PRIOR_FETCHED = ("prior fetched", "110104")
    PRIOR_REFUSED = ("prior refused", "110104")
    JOB_CREATED = ("job created", "110103")
    JOB_CHANGED = ("job", "110103")
    REPORT_KEPT = ("report kept here", "110103")
    DELIVERY_CREATED = ("delivery created", "110102")
    DELIVERY_CHANGED = ("delivery", "110104")
    DESTINATION_AWAY = ("destination away", "110100")
    DESTINATION_BACK = ("destination back", "110100")
    INTAKE_PAUSED = ("intake paused", "110100")
    INTAKE_RESUMED = ("intake resumed", "110100")
    DISK_LOW = ("disk low", "110100")
    DISK_ENOUGH = ("disk enough", "110100")
    NOTIFIED = ("notification", "110100")
    CLOCK_DOUBTED = ("clock doubted", "110100")
    CLOCK_TRUSTED = ("clock trusted", "110100")
    IMAGES_REMOVED = ("images removed", "110105")
    IMAGE_UNCHECKED = ("image not checked", "110103")
    RESULTS_REMOVED = ("results removed", "110105")
    LOGGED_IN = ("login", "110114")
    LOGGED_OUT = ("logout", "110114")
    LOGIN_REFUSED = ("login refused", "110114")
    LOGIN_LOCKED = ("login locked", "110113")
    ACCESS_DENIED = ("access denied", "110113")
    ACCOUNT_CHANGED = ("account", "110113")
    STUDIES_LISTED = ("studies listed", "110112")
    STUDY_VIEWED = ("study viewed", "110103")
    RESULT_VIEWED = ("result viewed", "110103")
    OPERATOR_ACTED = ("operator action", "110103")
    VERDICT_GIVEN = ("verdict", "110103")
    VERDICTS_EXPORTED = ("verdicts exported", "110106")
    AUDIT_READ = ("audit record read", "110101")
    AUDIT_EXPORTED = ("audit record exported", "110101")
    AUDIT_CHECKED = ("audit record checked", "110101")


class Outcome(Enum):
    """EventOutcomeIndicator of PS3.15 A.5.2."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8


def record(
    session: Session,
    event: Event,
    *,
    at: datetime,
    actor: str,
    study_uid: str | None = None,
    outcome: Outcome = Outcome.SUCCESS,
    **objects: Any,
) -> None:
    """Append one event inside the caller's write transaction.

    Parameters
    ----------
    session
        Of `Database.write`: the write lock makes the chain linear.
    actor
        The part of the node or the user.
    **objects
        JSON values: UIDs, numbers, states, reasons; no patient data.
    """
    last = session.execute(select(AuditEvent).order_by(AuditEvent.seq.desc()).limit(1)).scalar_one_or_none()
    row = AuditEvent(
        seq=1 if last is None else last.seq + 1,
        at=at,
        actor=actor,
        event=event.value[0],
        code=event.value[1],
        outcome=outcome.value,
        study_uid=study_uid,
        objects={key: value for key, value in objects.items() if value is not None},
        previous_hash=GENESIS if last is None else last.hash,
    )
    row.hash = row_hash(row)
    session.add(row)
    session.flush()


def row_hash(row: AuditEvent) -> str:
    """SHA-256 over the row's content and the hash of the row before it."""
    content = [
        row.seq,
        row.at.astimezone(UTC).isoformat(),
        row.actor,
        row.event,
        row.code,
        row.outcome,
        row.study_uid,
        row.objects,
        row.previous_hash,
    ]
    encoded = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()
