"""The story of a study, one line for each step, from the audit record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node.audit import Event
from pacs_node.db import AuditEvent, Series, Study
from pacs_node.jobs import NOT_ANALYSED, REFUSAL
from pacs_node.states import DeliveryState, JobState, SeriesState

#: who looked is told by the audit record: a story of the study would drown in it
_LOOKS = (Event.STUDY_VIEWED.value[0], Event.RESULT_VIEWED.value[0], Event.ACCESS_DENIED.value[0])
_CLOSED_BY = {
    "promised": "its sender asked whether all are safe here",
    "counted": "the archive has no more",
    "settled": "no gap and quiet",
    "quiet": "closed after a longer silence",
    "partial": "the archive has more, but the wait for them was over",
}


@dataclass(frozen=True, slots=True)
class TimelineLine:
    """One step.

    Parameters
    ----------
    at
        When it ended, UTC.
    step
        Two or three words.
    detail
        What, and why. No patient data.
    duration
        How long the step took, None where it takes no time.
    failure
        Something went wrong here, for good or until the next attempt.
    """

    at: datetime
    step: str
    detail: str
    duration: timedelta | None = None
    failure: bool = False


def timeline(session: Session, study_uid: str) -> tuple[TimelineLine, ...]:
    """Every step of a study in the order in which it happened; empty if nothing is known."""
    events = (
        session.execute(
            select(AuditEvent)
            .where(AuditEvent.study_uid == study_uid, AuditEvent.event.not_in(_LOOKS))
            .order_by(AuditEvent.seq)
        )
        .scalars()
        .all()
    )
    series = session.execute(
        select(Series.series_uid, Series.modality)
        .join(Study, Series.study_id == Study.id)
        .where(Study.study_uid == study_uid)
        .order_by(Series.id)
    ).all()
    names = {
        uid: f"series {number} ({modality or 'no modality'})"
        for number, (uid, modality) in enumerate(series, start=1)
    }
    return tuple(_Teller(names).tell(events))


@dataclass
class _Teller:
    """Turns events into lines; remembers when each series, job and delivery entered its state."""

    names: dict[str, str]
    _state: dict[tuple[object, ...], tuple[str, datetime]] = field(default_factory=dict)
    _lines: list[TimelineLine] = field(default_factory=list)
    #: the last line of what is being sent; replaced by how it ended
    _sending: dict[tuple[object, ...], TimelineLine] = field(default_factory=dict)
    #: kinds and destinations of the results that were handed over in one transaction
    _handed_over: tuple[datetime, list[str], list[str]] | None = None

    def tell(self, events: Iterable[AuditEvent]) -> list[TimelineLine]:
        """All lines."""
        for event in events:
            if event.event == Event.DELIVERY_CREATED.value[0]:
                self._hand_over(event)
                continue
            self._flush()
            _TELLERS.get(event.event, _Teller.other)(self, event, event.objects)
        self._flush()
        return self._lines

    def _add(
        self,
        event: AuditEvent,
        step: str,
        detail: str,
        *,
        since: datetime | None = None,
        failure: bool = False,
    ) -> TimelineLine:
        duration = None if since is None else event.at - since
        line = TimelineLine(event.at, step, detail, duration, failure or event.outcome > 0)
        self._lines.append(line)
        return line

    def _enter(self, event: AuditEvent, state: str, *key: object) -> tuple[str | None, datetime | None]:
        """Note the new state of a thing; return the old one and when it began."""
        old, since = self._state.get(key, (None, None))
        self._state[key] = (state, event.at)
        return old, since

    def _series_name(self, objects: dict[str, Any]) -> str:
        return self.names.get(str(objects.get("series_uid")), "a series")

    def series_arrived(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """The first image of a series."""
        self._enter(event, SeriesState.RECEIVING, "series", objects.get("series_uid"))
        self._add(
            event, "first image", f"{self._series_name(objects)} from {objects.get('calling_ae', 'unknown')}"
        )

    def series_changed(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """A series closed, opened again, was chosen or set aside."""
        name, state = self._series_name(objects), str(objects.get("state"))
        _, since = self._enter(event, state, "series", objects.get("series_uid"))
        if state == SeriesState.COMPLETE:
            signal = str(objects.get("closed_by"))
            detail = f"{name}: {_count(objects, 'n_instances', 'image')}, {_CLOSED_BY.get(signal, signal)}"
            self._add(event, "series complete", detail, since=since)
        elif state == SeriesState.INELIGIBLE:
            self._add(event, "series set aside", f"{name}: {_reason(objects)}")
        elif state == SeriesState.RECEIVING:
            why = objects.get("reason") or "late instance"
            what = "late image" if why == "late instance" else "series open again"
            self._add(event, what, f"{name} is open again" if what == "late image" else f"{name}: {why}")
        elif self._state.get(("created", objects.get("series_uid"))) != (JobState.QUEUED, event.at):
            # a new job says so itself
            self._add(event, "series chosen", f"{name}: the same work was done before")

    def job_created(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """Work was queued."""
        self._enter(event, JobState.QUEUED, "job", objects.get("job"))
        self._enter(event, JobState.QUEUED, "created", objects.get("series_uid"))
        if objects.get("kind") == REFUSAL:
            detail = f"job {objects.get('job')}, the report that says why not: {_reason(objects)}"
            self._add(event, "not to be analysed", detail)
            return
        version = objects.get("pipeline_version")
        detail = f"job {objects.get('job')}, {self._series_name(objects)} chosen, pipeline {version}"
        self._add(event, "analysis queued", detail)

    def job_changed(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """Work began, ended or was interrupted."""
        state, job = str(objects.get("state")), f"job {objects.get('job')}"
        what = "report" if objects.get("kind") == REFUSAL else "analysis"
        old, since = self._enter(event, state, "job", objects.get("job"))
        attempt = f"{job}, attempt {objects.get('attempt')}"
        if state == JobState.RUNNING:
            waited = "" if since is None else f", after {words(event.at - since)} in the queue"
            self._add(event, f"{what} started", attempt + waited)
        elif state == JobState.SUCCEEDED:
            not_analysed = objects.get("outcome_of_job") == NOT_ANALYSED
            reason = f": {_reason(objects)}" if not_analysed else ""
            self._add(event, "not analysed" if not_analysed else "analysed", f"{job}{reason}", since=since)
        elif state == JobState.FAILED:
            self._add(event, f"{what} failed", f"{attempt}: {_reason(objects)}", since=since, failure=True)
        elif state == JobState.CANCELLED:
            why = _joined(str(objects.get("cancelled_because") or ""), _reason(objects))
            self._add(event, f"{what} cancelled", f"{job}: {why}")
        elif old == JobState.RUNNING:
            detail = f"{attempt}: {objects.get('last_error', 'unknown')}; queued again"
            self._add(event, f"{what} interrupted", detail, since=since, failure=True)
        else:
            self._add(
                event, f"{what} queued again", f"{job}: {objects.get('last_error') or _reason(objects)}"
            )

    def _hand_over(self, event: AuditEvent) -> None:
        kind, destination = str(event.objects.get("kind", "")).upper(), str(event.objects.get("destination"))
        if self._handed_over is None or self._handed_over[0] != event.at:
            self._flush()
            self._handed_over = (event.at, [], [])
        for item, items in ((kind, self._handed_over[1]), (destination, self._handed_over[2])):
            if item not in items:
                items.append(item)

    def _flush(self) -> None:
        if self._handed_over is not None:
            at, kinds, destinations = self._handed_over
            self._lines.append(
                TimelineLine(at, "results to send", f"{' and '.join(kinds)} to {', '.join(destinations)}")
            )
            self._handed_over = None

    def delivery_changed(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """A result went its way, or didn't."""
        state = str(objects.get("state"))
        key = ("delivery", objects.get("destination"), objects.get("sop_instance_uid"))
        old, since = self._enter(event, state, *key)
        kind, destination = str(objects.get("kind", "")).upper(), objects.get("destination")
        what = f"{kind} to {destination}"
        status, attempt = objects.get("status", ""), f"attempt {objects.get('attempt')}"
        if key in self._sending:
            self._lines.remove(self._sending.pop(key))
        if state == DeliveryState.SENDING:
            self._sending[key] = self._add(event, "sending", f"{what}, {attempt}")
        elif state == DeliveryState.SENT:
            self._add(event, "sent", _joined(what, status), since=since)
        elif state == DeliveryState.COMMITTED:
            self._add(event, "verified", f"{kind} found at {destination}", since=since)
        elif state == DeliveryState.FAILED:
            self._add(event, "delivery failed", _joined(f"{what}, {attempt}", status), failure=True)
        elif old == DeliveryState.SENDING:
            detail = _joined(f"{what}, {attempt}", status)
            self._add(event, "sending failed", detail, since=since, failure=True)
        else:
            self._add(event, "to be sent again", _joined(what, status))

    def kept_here(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """The report that says why goes not to this destination."""
        self._add(event, "report kept here", f"not sent to {objects.get('destination')}: {_reason(objects)}")

    def conflict(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """Other bytes under a known UID."""
        detail = f"{self._series_name(objects)}: {objects.get('reason', '')}"
        self._add(event, "conflicting copy", detail, failure=True)

    def waits(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """The archive has more images than came."""
        self._add(event, "waiting for images", f"{self._series_name(objects)}: {objects.get('reason', '')}")

    def missed(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """The archive had it before it came here."""
        self._add(event, "not here yet", str(objects.get("reason", "")), failure=True)

    def removed(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """Retention removed files."""
        self._add(event, event.event, f"{_count(objects, 'files', 'file')} by {event.actor}")

    def acted(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """An operator requeued, held or sent it."""
        who = event.actor.removeprefix("user:")
        destination = f" to {objects['destination']}" if "destination" in objects else ""
        self._add(event, "operator", f"{who}: {objects.get('action')}{destination}, {_reason(objects)}")

    def judged(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """A radiologist's verdict; what it changes stands beside the findings."""
        reason = str(objects.get("reason_code") or "").replace("_", " ")
        source = objects.get("source")
        told = [event.actor, str(objects.get("kind")), reason]
        told.append("" if source in {None, "page"} else f"by an edited {str(source).upper()} that came back")
        self._add(event, "verdict", ", ".join(filter(None, told)))

    def other(self, event: AuditEvent, objects: dict[str, Any]) -> None:
        """An event that this version doesn't know: its facts as they are."""
        facts = ", ".join(f"{key} {value}" for key, value in sorted(objects.items()))
        self._add(event, event.event, _joined(event.actor, facts))


_TELLERS: dict[str, Callable[[_Teller, AuditEvent, dict[str, Any]], None]] = {
    Event.SERIES_ARRIVED.value[0]: _Teller.series_arrived,
    Event.SERIES_CHANGED.value[0]: _Teller.series_changed,
    Event.JOB_CREATED.value[0]: _Teller.job_created,
    Event.JOB_CHANGED.value[0]: _Teller.job_changed,
    Event.DELIVERY_CHANGED.value[0]: _Teller.delivery_changed,
    Event.REPORT_KEPT.value[0]: _Teller.kept_here,
    Event.INSTANCE_CONFLICT.value[0]: _Teller.conflict,
    Event.SERIES_WAITS.value[0]: _Teller.waits,
    Event.STUDY_MISSED.value[0]: _Teller.missed,
    Event.IMAGES_REMOVED.value[0]: _Teller.removed,
    Event.RESULTS_REMOVED.value[0]: _Teller.removed,
    Event.OPERATOR_ACTED.value[0]: _Teller.acted,
    Event.VERDICT_GIVEN.value[0]: _Teller.judged,
}


def words(duration: timedelta) -> str:
    """A duration for a person: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``, ``4 d 3 h``."""
    seconds = max(0.0, duration.total_seconds())
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _count(objects: dict[str, Any], key: str, noun: str) -> str:
    count = objects.get(key, "unknown number of")
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _reason(objects: dict[str, Any]) -> str:
    return _joined(str(objects.get("reason_code") or ""), objects.get("reason") or "") or "no reason recorded"


def _joined(first: str, second: object) -> str:
    """``first: second``, or the one that isn't empty."""
    return ": ".join(part for part in (first, str(second)) if part)
