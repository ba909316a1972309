"""What somebody should look at: each alarm says what is so, what to do, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node import tls
from pacs_node.audit import Event
from pacs_node.backlog import waiting
from pacs_node.clock_guard import doubt
from pacs_node.config import Settings
from pacs_node.db import AuditEvent, Instance, MissedStudy
from pacs_node.drift import latest_reading
from pacs_node.overview import DestinationLine, DiskSpace, Overview
from pacs_node.timeline import words

_STUCK = timedelta(minutes=10)
_LATE = timedelta(minutes=5)
_SILENT = timedelta(days=3)
_EXPIRES = timedelta(days=30)
_NEAR = 1.5
#: more failures of one kind are one alarm
_SINGLE = 3


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that somebody should look at.

    Parameters
    ----------
    todo
        What to do about it.
    link, link_words
        Where on the page; empty where it is not to be done there.
    study_uid
        Of the one study that it is about.
    """

    sentence: str
    todo: str = ""
    link: str = ""
    link_words: str = ""
    study_uid: str | None = None
    urgent: bool = True


@dataclass(frozen=True, slots=True)
class Further:
    """What alarms need beside the overview.

    Parameters
    ----------
    excess
        Why the listener takes no more associations; None where it does.
    missed
        Studies that never came.
    bad_record
        Whether the last check of the audit record found something.
    last_image
        When the last image came; None where none ever came.
    certificates
        Setting, and when what it names ends, of those that end soon.
    jump
        How the clock went, where it is doubted.
    drift
        In what recent results differ from earlier ones, a sentence each.
    """

    excess: str | None = None
    missed: int = 0
    bad_record: bool = False
    last_image: datetime | None = None
    certificates: tuple[tuple[str, datetime], ...] = ()
    drift: tuple[str, ...] = ()
    jump: str | None = None


def further(session: Session, settings: Settings, now: datetime) -> Further:
    """Ask for it."""
    checked = session.execute(
        select(AuditEvent)
        .where(AuditEvent.event == Event.AUDIT_CHECKED.value[0])
        .order_by(AuditEvent.at.desc(), AuditEvent.seq.desc())
        .limit(1)
    ).scalar_one_or_none()
    missed = select(func.count()).select_from(MissedStudy).where(MissedStudy.arrived_at.is_(None))
    reading = latest_reading(session)
    return Further(
        excess=waiting(session).excess(settings.backlog, now),
        missed=session.execute(missed).scalar_one(),
        bad_record=checked is not None
        and (checked.outcome != 0 or checked.objects.get("first_bad") is not None),
        last_image=session.execute(
            select(Instance.received_at).order_by(Instance.id.desc()).limit(1)
        ).scalar_one_or_none(),
        certificates=tuple(_ending(settings, now)),
        jump=doubt(session),
        drift=() if reading is None else tuple(one.sentence for one in reading.alarms),
    )


def _ending(settings: Settings, now: datetime) -> Iterator[tuple[str, datetime]]:
    for key, path in (
        ("listener.tls_certificate_file", settings.listener.tls_certificate_file),
        ("listener.tls_client_ca_file", settings.listener.tls_client_ca_file),
        ("web.tls_certificate_file", settings.web.tls_certificate_file),
    ):
        if not path:
            continue
        try:
            ends = tls.read_validity(Path(path)).ends
        except (OSError, ValueError):
            # the doctor says so; a part that needs it did not start
            continue
        if ends - now < _EXPIRES:
            yield key, ends


def alarms(seen: Overview, disk: DiskSpace, more: Further | None = None) -> tuple[Alarm, ...]:
    """What somebody should look at, the urgent first."""
    known = more or Further()
    found = [
        *_of_disk(disk),
        *_of_record(known),
        *_of_clock(known),
        *_of_failures(seen),
        *_of_queue(seen, known),
        *(alarm for row in seen.destinations for alarm in _of_destination(row, seen.now)),
        *_of_senders(seen, known),
        *_of_certificates(seen, known),
        *_of_drift(known),
    ]
    return tuple(sorted(found, key=lambda alarm: not alarm.urgent))


def _of_disk(disk: DiskSpace) -> Iterator[Alarm]:
    left = f"The disk has {disk.free >> 20} MiB left"
    todo = "Free space, enlarge the disk, or shorten retention.images_days."
    if disk.low:
        sentence = f"{left}, less than the reserve of {disk.reserve >> 20} MiB: images are refused."
        yield Alarm(sentence, todo, "/#disk", "See the disk")
    elif disk.free < _NEAR * disk.reserve:
        sentence = f"{left}; below {disk.reserve >> 20} MiB images are refused."
        yield Alarm(sentence, todo, "/#disk", "See the disk", urgent=False)


def _of_record(known: Further) -> Iterator[Alarm]:
    if known.bad_record:
        yield Alarm(
            "The last check of the audit record found that it is changed or broken.",
            "Stop the node, keep the database as it is, and compare it with a backup.",
            "/audit",
            "See the record",
        )


def _of_clock(known: Further) -> Iterator[Alarm]:
    if known.jump is not None:
        yield Alarm(
            f"The clock went {known.jump}: it is doubted, and nothing is removed.",
            "Let it follow a time server, set it right, or if the node was off so long: "
            "pacs-node retention --clock-is-right REASON.",
        )


def _of_failures(seen: Overview) -> Iterator[Alarm]:
    counts = Counter((row.what, row.reason) for row in seen.failures)
    told = set()
    for row in seen.failures:
        kind = (row.what, row.reason)
        if counts[kind] <= _SINGLE:
            todo = "Correct the cause, then requeue or send it again on its page."
            link = f"/studies/{quote(row.study_uid, safe='')}"
            yield Alarm(_ended(f"{row.what}: {row.reason}"), todo, link, "Open the study", row.study_uid)
        elif kind not in told:
            told.add(kind)
            sentence = f"{row.what} for {counts[kind]} of the last studies: {_ended(row.reason)}"
            todo = "Correct the cause, then give them another chance together."
            yield Alarm(sentence, todo, "/missed#failed", "See all that failed")


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def _of_queue(seen: Overview, known: Further) -> Iterator[Alarm]:
    if known.excess is not None:
        todo = "See whether the worker runs and what it does; new associations are rejected until then."
        yield Alarm(f"Images are turned away: {known.excess}.", todo, "/#queue", "See the queue")
    if seen.oldest_queued is not None and not seen.running and seen.now - seen.oldest_queued > _STUCK:
        waited = words(seen.now - seen.oldest_queued)
        todo = "Start pacs-node serve or pacs-node work, and look into its log."
        sentence = f"A job has waited for {waited} and none is running: is a worker up?"
        yield Alarm(sentence, todo, "/#queue", "See the queue")


def _of_destination(row: DestinationLine, now: datetime) -> Iterator[Alarm]:
    link = f"/destinations#at-{quote(row.name, safe='')}"
    if row.away is not None:
        since, again = f"{row.away.since:%Y-%m-%d %H:%M} UTC", f"{row.away.next_probe_at:%H:%M}"
        yield Alarm(
            f"{row.name} is not reached since {since} ({row.away.reason}); next attempt {again} UTC.",
            "Ask its doctor; results wait and go by themselves when it answers.",
            link,
            "See the destination",
        )
    elif row.oldest_pending is not None and now - row.oldest_pending > _LATE:
        waited = words(now - row.oldest_pending)
        because = f" ({row.last_error})" if row.last_error else ""
        yield Alarm(
            f"Results for {row.name} have waited for {waited}{because}.",
            "Ask its doctor what it takes, or try again now.",
            link,
            "See the destination",
            urgent=False,
        )


def _of_senders(seen: Overview, known: Further) -> Iterator[Alarm]:
    if known.missed:
        studies = "1 study" if known.missed == 1 else f"{known.missed} studies"
        yield Alarm(
            f"The archive has {studies} that never came here.",
            "Have them sent, and look why the PACS did not.",
            "/missed",
            "See which",
            urgent=False,
        )
    if known.last_image is not None and seen.now - known.last_image > _SILENT:
        yield Alarm(
            f"No image has come for {words(seen.now - known.last_image)}.",
            "See whether the PACS still routes to this node, and who was turned away.",
            "/destinations#refused",
            "See who was turned away",
            urgent=False,
        )


def _of_drift(known: Further) -> Iterator[Alarm]:
    for sentence in known.drift[:_SINGLE]:
        todo = "Ask what has changed at the scanner, its protocol or the patients who are sent."
        yield Alarm(sentence, todo, "/models#drift", "See the comparison", urgent=False)


def _of_certificates(seen: Overview, known: Further) -> Iterator[Alarm]:
    for key, ends in known.certificates:
        over = seen.now >= ends
        sentence = f"The certificate of {key} {'ended' if over else 'ends'} on {ends:%Y-%m-%d}."
        todo = "Put a new certificate there and restart the node."
        yield Alarm(sentence, todo, "/settings", "See the settings", urgent=over)
