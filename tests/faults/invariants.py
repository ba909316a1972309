"""What is always true of a node, whatever was done to it: rows, files and peers held against each other.

For every proof: it takes a storage directory and what the test saw outside, and returns sentences.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node import audit, audit_chain, jobs
from pacs_node.db import Artifact, AuditEvent, Conflict, Database, Delivery, Instance, Job, Series, Study
from pacs_node.states import DeliveryState, JobState, SeriesState

_JOB_CHANGED = audit.Event.JOB_CHANGED.value[0]
_PREAMBLE_BYTES = 128 + 4
_GROUP_LENGTH_BYTES = 12


@dataclass(frozen=True)
class Seen:
    """What the test saw outside the node, and how patient it is.

    Parameters
    ----------
    acknowledged
        (SOP Instance UID, SHA-256 of the data set) of each object that was answered with success.
    arrived
        For each destination the objects that its peer has: SHA-256 of the file by SOP Instance UID, None
        where the peer may have written it anew. A destination that is not named is not judged.
    forgetful
        Peers that may have lost what they had: then sent and committed needn't be there.
    temporary_s, orphan_s
        Oldest age of an unfinished file, and of a finished one without a row, seconds: a file becomes durable
        before its row does.
    leftover_s
        The same for files of attempts that came to nothing; None doesn't judge them.
    unproved
        Destinations with ``verify = "none"``: what was sent there may have been removed.
    now, lease_slack
        A lease that ran out longer ago than this is a violation; None doesn't judge them.
    """

    acknowledged: Iterable[tuple[str, str]] = ()
    arrived: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    forgetful: frozenset[str] = frozenset()
    temporary_s: float = 60.0
    orphan_s: float = 60.0
    leftover_s: float | None = None
    unproved: frozenset[str] = frozenset()
    now: datetime | None = None
    lease_slack: timedelta = timedelta(seconds=60)


def violations(database: Database, directory: Path, seen: Seen | None = None) -> list[str]:
    """Return one sentence for each thing that isn't as it must be."""
    seen = seen or Seen()
    # first the list of files: what is made after it needs no row yet, what is removed after it is gone
    files = dict(_files(directory))
    found = [] if (answer := database.check()) == "ok" else [f"database: {answer}"]
    with database.read() as session:
        if (row := audit_chain.first_bad_row(session)) is not None:
            found.append(f"the audit chain is broken at row {row}")
        found += _instances(session, directory, seen)
        found += _results(session, directory)
        found += _one_result(session)
        found += _wanted(session)
        found += _one_word(session)
        found += _outbox(session, seen)
        found += _kept(session, seen)
        found += _leases(session, seen)
        found += _orphans(session, files, seen)
    return found


def dataset_sha256(path: Path) -> str:
    """SHA-256 of the data set of a stored file, without what stands before it (PS3.10 7.1)."""
    data = path.read_bytes()
    length_at = _PREAMBLE_BYTES + _GROUP_LENGTH_BYTES - 4
    meta = int.from_bytes(data[length_at : length_at + 4], "little")
    return hashlib.sha256(data[_PREAMBLE_BYTES + _GROUP_LENGTH_BYTES + meta :]).hexdigest()


def _files(directory: Path) -> Iterator[tuple[str, float]]:
    """Relative path and age in seconds of every file of received objects and results."""
    now = time.time()
    for name in ("incoming", "instances", "results"):
        for path in sorted((directory / name).rglob("*")):
            try:
                if path.is_file():
                    yield str(path.relative_to(directory)), now - path.stat().st_mtime
            except FileNotFoundError:
                continue


def _instances(session: Session, directory: Path, seen: Seen) -> Iterator[str]:
    have: dict[str, set[str | None]] = {}
    rows: list[tuple[str, str, str | None, str]] = [
        (row.sop_instance_uid, row.sha256, row.path, row.transfer_syntax_uid)
        for row in session.execute(select(Instance)).scalars()
    ]
    rows += [
        (row.instance.sop_instance_uid, row.sha256, row.path, row.transfer_syntax_uid)
        for row in session.execute(select(Conflict)).scalars()
    ]
    for uid, sha256, path, syntax in rows:
        # removed by retention, which leaves the row: None stands for any content
        digests = have.setdefault(uid, set())
        if path is None:
            digests.add(None)
        elif not (directory / path).exists():
            yield f"{uid} has a row and no file"
        else:
            digests.add(dataset_sha256(directory / path))
            if not _is_the_content(directory / path, sha256, syntax):
                yield f"{uid}: the file isn't what the row says"
    for uid, digest in seen.acknowledged:
        if uid not in have:
            yield f"{uid} was acknowledged and has no row"
        elif digest not in have[uid] and None not in have[uid]:
            yield f"{uid} was acknowledged with other bytes"


def _is_the_content(path: Path, sha256: str, transfer_syntax_uid: str) -> bool:
    data = path.read_bytes()
    length_at = _PREAMBLE_BYTES + _GROUP_LENGTH_BYTES - 4
    meta = int.from_bytes(data[length_at : length_at + 4], "little")
    digest = hashlib.sha256(transfer_syntax_uid.encode("ascii") + b"\n")
    digest.update(data[_PREAMBLE_BYTES + _GROUP_LENGTH_BYTES + meta :])
    return digest.hexdigest() == sha256


def _results(session: Session, directory: Path) -> Iterator[str]:
    for row in session.execute(select(Artifact)).scalars():
        if row.path is None:
            continue
        if not (directory / row.path).exists():
            yield f"result {row.path} has a row and no file"
        elif hashlib.sha256((directory / row.path).read_bytes()).hexdigest() != row.sha256:
            yield f"result {row.path}: the file isn't what the row says"


def _one_result(session: Session) -> Iterator[str]:
    """At most one result for the same content of a study by the same pipeline."""
    analysed = (
        select(Study.study_uid, Job.input_digest, Job.pipeline_version)
        .join(Series, Series.study_id == Study.id)
        .join(Job, Job.series_id == Series.id)
        .where(Job.outcome == jobs.ANALYSED)
    )
    for key, count in Counter(session.execute(analysed).tuples()).items():
        if count > 1:
            yield f"study {key[0]} has {count} results for the same content"
    objects = select(Artifact).where(Artifact.sop_instance_uid.is_not(None))
    forms = Counter((row.job_id, row.form) for row in session.execute(objects).scalars())
    # a job that was given up has a report that says so; whoever asks for another analysis gets another report
    asked = Counter(
        event.objects["job"]
        for event in session.scalars(select(AuditEvent).where(AuditEvent.event == _JOB_CHANGED))
        if event.objects.get("last_error") == "requeued by an operator"
    )
    for (job, form), count in forms.items():
        if count > 1 + asked[job]:
            yield f"job {job} has {count} objects {form}"


def _wanted(session: Session) -> Iterator[str]:
    """What waits in the queue is what intake decided last, and nothing that an operator stopped."""
    for job in session.execute(select(Job)).scalars():
        study, states = job.series.study, {row.state for row in job.series.study.series}
        if (job.state is JobState.CANCELLED) != (job.cancelled_because is not None):
            yield f"job {job.id} is {job.state}, cancelled because {job.cancelled_because}"
        if job.kind == jobs.REFUSAL and not job.reason_code:
            yield f"job {job.id} is a refusal without a reason code"
        if job.state not in {JobState.QUEUED, JobState.RUNNING}:
            continue
        if study.held_reason is not None:
            yield f"job {job.id} is {job.state} and its study is held"
        if states <= {SeriesState.QUEUED, SeriesState.INELIGIBLE}:
            chosen = job.series.state is SeriesState.QUEUED
            if not chosen if job.kind == jobs.ANALYSIS else SeriesState.QUEUED in states:
                yield f"job {job.id}, {job.kind}, is {job.state} and not wanted"


def _one_word(session: Session) -> Iterator[str]:
    """As long as no series of a study changes, it is analysed once, and then never said not to be."""
    of_series = {audit.Event.SERIES_ARRIVED.value[0], audit.Event.SERIES_CHANGED.value[0]}
    events = select(AuditEvent).where(AuditEvent.event.in_([*of_series, _JOB_CHANGED]))
    analysed: set[str | None] = set()
    for event in session.scalars(events.order_by(AuditEvent.seq)):
        state, outcome = event.objects.get("state"), event.objects.get("outcome_of_job")
        if event.event in of_series:
            analysed.discard(event.study_uid)
        elif state in {JobState.SUCCEEDED, JobState.FAILED} and event.study_uid in analysed:
            yield f"study {event.study_uid} is analysed, and job {event.objects['job']} {state}: {outcome}"
        elif outcome == jobs.ANALYSED:
            analysed.add(event.study_uid)


def _outbox(session: Session, seen: Seen) -> Iterator[str]:
    promised: dict[str, dict[str, tuple[str, DeliveryState]]] = {name: {} for name in seen.arrived}
    for row in session.execute(select(Delivery)).scalars():
        artifact = row.artifact
        promised.setdefault(row.destination, {})[artifact.sop_instance_uid or ""] = (
            artifact.sha256,
            row.state,
        )
    for name, objects in seen.arrived.items():
        for uid, digest in objects.items():
            if uid not in promised[name]:
                yield f"{name} has {uid}, which never stood in its outbox"
            elif digest not in {None, promised[name][uid][0]}:
                yield f"{name} has {uid} with other bytes"
        if name in seen.forgetful:
            continue
        for uid, (_, state) in promised[name].items():
            if state in {DeliveryState.SENT, DeliveryState.COMMITTED} and uid not in objects:
                yield f"{uid} counts as {state} and {name} doesn't have it"


def _kept(session: Session, seen: Seen) -> Iterator[str]:
    """What is not yet delivered, or not analysed, is still there."""
    for row in session.execute(select(Delivery)).scalars():
        by_choice = row.destination in seen.unproved and row.state is DeliveryState.SENT
        if row.state is not DeliveryState.COMMITTED and not by_choice and row.artifact.path is None:
            yield f"delivery {row.id} is {row.state} and its object was removed"
    waiting = select(Job).where(Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
    for job in session.execute(waiting).scalars():
        if job.kind == jobs.ANALYSIS and any(row.path is None for row in job.series.instances):
            yield f"job {job.id} is {job.state} and an image was removed"


def _leases(session: Session, seen: Seen) -> Iterator[str]:
    if seen.now is None:
        return
    limit = seen.now - seen.lease_slack
    jobs_held = select(Job).where(Job.state == JobState.RUNNING, Job.lease_expires_at < limit)
    yield from (f"job {row.id}: its lease ran out" for row in session.execute(jobs_held).scalars())
    held = select(Delivery).where(Delivery.state == DeliveryState.SENDING, Delivery.lease_expires_at < limit)
    yield from (f"delivery {row.id}: its lease ran out" for row in session.execute(held).scalars())
    yield from _holders(session)


def _holders(session: Session) -> Iterator[str]:
    for job in session.execute(select(Job)).scalars():
        if (job.state is JobState.RUNNING) != (job.lease_token is not None):
            yield f"job {job.id} is {job.state} with lease {job.lease_token}"
    for row in session.execute(select(Delivery)).scalars():
        if (row.state is DeliveryState.SENDING) != (row.lease_token is not None):
            yield f"delivery {row.id} is {row.state} with lease {row.lease_token}"


def _orphans(session: Session, files: Mapping[str, float], seen: Seen) -> Iterator[str]:
    named: set[str] = set()
    for table in (Instance, Conflict, Artifact):
        named.update(path for path in session.scalars(select(table.path)) if path is not None)
    running = set(session.scalars(select(Job.id).where(Job.state == JobState.RUNNING)))
    for path, age in files.items():
        place, _, rest = path.partition("/")
        if place == "incoming":
            if age > seen.temporary_s:
                yield f"{path} is {age:.0f} s old"
        elif path in named:
            continue
        elif place == "instances":
            if age > seen.orphan_s:
                yield f"{path} has no row"
        elif seen.leftover_s is not None and age > seen.leftover_s and _job(rest) not in running:
            yield f"{path} is of no result"


def _job(path: str) -> int:
    return int(path.partition("/")[0])
