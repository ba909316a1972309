"""What is told: rows of the audit record in the words of a message, which names no patient."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from dicom_sr.context import RESEARCH_USE
from pacs_node.audit import Event
from pacs_node.config_notify import Topic
from pacs_node.db import AuditEvent


@dataclass(frozen=True, slots=True)
class Message:
    """One event as a receiver gets it.

    Parameters
    ----------
    message_id
        The same at each repetition.
    body
        JSON object with ``type``, ``timestamp`` and ``data``.
    """

    message_id: str
    topic: str
    body: str

    @property
    def data(self) -> dict[str, Any]:
        """What it tells."""
        found: dict[str, Any] = json.loads(self.body)["data"]
        return found


def topic_of(row: AuditEvent) -> Topic | None:
    """Say what a row of the audit record is about; None for what is never told."""
    state, outcome = row.objects.get("state"), row.objects.get("outcome_of_job")
    if row.event == Event.JOB_CHANGED.value[0]:
        return _of_job(state, outcome)
    if row.event == Event.DELIVERY_CHANGED.value[0]:
        return "delivery failed" if state == "failed" else None
    if row.event == Event.ARCHIVE_SEARCHED.value[0]:
        return "studies missed" if row.objects.get("new") else None
    if row.event == Event.AUDIT_CHECKED.value[0]:
        # a check from the page fails nothing, so its outcome is success whatever it found
        broken = row.outcome or row.objects.get("first_bad") is not None
        return "audit broken" if broken else None
    return _PLAIN.get(row.event)


def _of_job(state: object, outcome: object) -> Topic | None:
    if state == "failed":
        return "study failed"
    if state != "succeeded":
        return None
    return "study analysed" if outcome == "analysed" else "study not analysed"


_PLAIN: dict[str, Topic] = {
    Event.DESTINATION_AWAY.value[0]: "destination away",
    Event.DESTINATION_BACK.value[0]: "destination back",
    Event.INTAKE_PAUSED.value[0]: "intake paused",
    Event.INTAKE_RESUMED.value[0]: "intake resumed",
    Event.DISK_LOW.value[0]: "disk low",
    Event.DISK_ENOUGH.value[0]: "disk enough",
    Event.CLOCK_DOUBTED.value[0]: "clock doubted",
    Event.LOGIN_LOCKED.value[0]: "login locked",
    Event.ACCOUNT_CHANGED.value[0]: "account changed",
}

#: only words of our own and names of the settings: what a peer wrote stays behind the link
_SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "study failed": lambda o: f"The analysis of a study failed (job {o.get('job')}).",
    "study analysed": lambda o: f"A study was analysed (job {o.get('job')}).",
    "study not analysed": lambda o: f"A study was not analysed: {o.get('reason_code') or 'no reason code'}.",
    "delivery failed": lambda o: f"A result could not be delivered to {o.get('destination')}: given up.",
    "destination away": lambda o: f"{o.get('destination')} does not answer; results wait.",
    "destination back": lambda o: f"{o.get('destination')} answers again.",
    "intake paused": lambda o: f"No new associations are taken: {o.get('reason')}.",
    "intake resumed": lambda _: "New associations are taken again.",
    "disk low": lambda o: (
        f"{o.get('free_mb')} MB are free; below {o.get('reserve_mb')} MB nothing is received."
    ),
    "disk enough": lambda o: f"{o.get('free_mb')} MB are free again.",
    "clock doubted": lambda o: f"The clock went {o.get('reason')}: nothing is removed until it is right.",
    "studies missed": lambda o: f"{o.get('new')} studies that {o.get('archive')} has never came here.",
    "audit broken": lambda o: f"The audit record is not whole: {_where(o)}.",
    "login locked": lambda _: "Too many failed logins: an account or an address is locked for a time.",
    "account changed": lambda o: f"The account {o.get('account')} was changed: {o.get('change')}.",
}


def _where(objects: dict[str, Any]) -> str:
    row = objects.get("first_bad")
    return f"row {row}" if row is not None else str(objects.get("reason"))


def message_of(row: AuditEvent, topic: str, node: str, page_url: str) -> Message:
    """Word a row.

    Parameters
    ----------
    node
        Name of the node.
    page_url
        For the link to the study; empty: none.
    """
    data = {
        "id": row.hash[:32],
        "node": node,
        "sentence": _SENTENCES[topic](row.objects),
        "study_uid": row.study_uid,
        "link": _link(page_url, row.study_uid),
        "audit_row": row.seq,
        "notice": RESEARCH_USE,
    }
    return worded(row.hash[:32], topic, row.at, data)


def worded(message_id: str, topic: str, at: datetime, data: dict[str, Any]) -> Message:
    """Write a message down."""
    body = {
        "type": topic.replace(" ", "."),
        "timestamp": at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "data": {key: value for key, value in data.items() if value is not None},
    }
    return Message(message_id, topic, json.dumps(body, ensure_ascii=True))


def _link(page_url: str, study_uid: str | None) -> str | None:
    if not page_url:
        return None
    root = page_url.rstrip("/")
    return f"{root}/studies/{quote(study_uid, safe='')}" if study_uid else f"{root}/"
