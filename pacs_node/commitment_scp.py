"""Storage commitment for senders (PS3.4 J.3, SCP): what they ask is written down, and reported to them.

A request is a row before it is answered. What an object's report says is decided when it is sent: committed
is only what has a row and a file at that moment. How long that lasts is the retention of the configuration.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

from pynetdicom.presentation import build_context, build_role
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node import audit, tls
from pacs_node.association import Link, Peer, Timeouts, Tls
from pacs_node.clock import Clock, utc_now
from pacs_node.commitment import (
    PUSH_MODEL,
    TRANSFER_SYNTAXES,
    WELL_KNOWN,
    FailureReason,
    Reference,
    Report,
    Request,
)
from pacs_node.config import DicomDestination, Settings
from pacs_node.db import Artifact, CommitmentRequest, Database, Instance, Series
from pacs_node.errors import ConfigurationError
from pacs_node.tls import TlsFiles

logger = logging.getLogger(__name__)

_ACTOR = "commitment"
_FIRST_WAIT = timedelta(seconds=1)
_THREADS = 4
_CHUNK = 500
_LIMIT_S = 60.0
_random = secrets.SystemRandom()


def record_request(
    session: Session, request: Request, *, calling_ae: str, called_ae: str, address: str, at: datetime
) -> CommitmentRequest:
    """Write down what a sender asks; the same transaction again is reported again.

    A sender that asks about every image of a series has sent them all: that is noted with the series.
    """
    known = select(CommitmentRequest).where(
        CommitmentRequest.calling_ae == calling_ae,
        CommitmentRequest.transaction_uid == request.transaction_uid,
    )
    row = session.execute(known).scalar_one_or_none()
    if row is None:
        row = CommitmentRequest(calling_ae=calling_ae, transaction_uid=request.transaction_uid)
        session.add(row)
    row.called_ae, row.address = called_ae, address
    row.objects = [list(reference) for reference in request.objects]
    # a sender that has just asked is not listening yet: most release the association first
    row.requested_at, row.next_attempt_at = at, at + _FIRST_WAIT
    row.attempts, row.reported_at, row.refused, row.status = 0, None, None, None
    session.flush()
    _note_promises(session, request)
    audit.record(
        session,
        audit.Event.COMMITMENT_REQUESTED,
        at=at,
        actor="listener",
        calling_ae=calling_ae,
        transaction_uid=request.transaction_uid,
        objects=len(request.objects),
    )
    return row


def _note_promises(session: Session, request: Request) -> None:
    asked = [reference.sop_instance_uid for reference in request.objects]
    counts: dict[int, int] = {}
    known = 0
    for uids in _chunks(asked):
        found = select(Instance.series_id, func.count()).where(Instance.sop_instance_uid.in_(uids))
        for series_id, count in session.execute(found.group_by(Instance.series_id)):
            counts[series_id] = counts.get(series_id, 0) + count
            known += count
    if known < len(set(asked)):
        return  # it speaks of images that are not here: it hasn't sent all, or they are not images of ours
    for series_id, count in counts.items():
        series = session.get_one(Series, series_id)
        if count == series.n_instances:
            series.promised_instances = count


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def judge(session: Session, directory: Path, request: Request) -> Report:
    """Say which objects are safe here now.

    Parameters
    ----------
    directory
        The storage directory that paths of rows are relative to.
    """
    classes: dict[str, str | None] = {}
    # all that was taken under the UID: a result of ours, and other bytes that came under its UID
    paths: dict[str, list[str | None]] = {}
    for uids in _chunks([reference.sop_instance_uid for reference in request.objects]):
        for table in (Artifact, Instance):  # the class of what came counts where both have the UID
            rows = session.execute(
                select(table.sop_instance_uid, table.sop_class_uid, table.path).where(
                    table.sop_instance_uid.in_(uids)
                )
            )
            for uid, sop_class, path in rows:
                classes[str(uid)] = sop_class
                paths.setdefault(str(uid), []).append(path)
    committed: list[Reference] = []
    failed: list[tuple[Reference, int]] = []
    for reference in request.objects:
        kept = paths.get(reference.sop_instance_uid, [None])
        if not all(path is not None and (directory / path).is_file() for path in kept):
            failed.append((reference, FailureReason.NO_SUCH_OBJECT))
        elif classes[reference.sop_instance_uid] != reference.sop_class_uid:
            failed.append((reference, FailureReason.CLASS_INSTANCE_CONFLICT))
        else:
            committed.append(reference)
    return Report(request.transaction_uid, tuple(committed), tuple(failed))


def request_of(row: CommitmentRequest) -> Request:
    """What a row asks."""
    return Request(row.transaction_uid, tuple(Reference(*pair) for pair in row.objects))


def note_taken(session: Session, row: CommitmentRequest, report: Report, *, at: datetime) -> None:
    """The sender has taken the report; its objects need not be remembered any longer."""
    row.reported_at, row.next_attempt_at, row.refused = at, None, len(report.failed)
    row.status, row.objects = "taken by the sender", []
    audit.record(
        session,
        audit.Event.COMMITMENT_REPORTED,
        at=at,
        actor=_ACTOR,
        outcome=audit.Outcome.MINOR_FAILURE if report.failed else audit.Outcome.SUCCESS,
        calling_ae=row.calling_ae,
        transaction_uid=row.transaction_uid,
        committed=len(report.committed),
        refused=len(report.failed),
        attempt=row.attempts,
    )


def peer_of(settings: Settings, calling_ae: str, address: str, called_ae: str) -> Peer | None:
    """Where a sender takes reports; None where only the association that asked leads to it.

    Raises
    ------
    ConfigurationError
        Files for TLS can't be used.
    """
    timeouts = Timeouts(progress=settings.delivery.timeout_seconds)
    for caller in settings.callers:
        if caller.ae_title == calling_ae and caller.is_from(address) and caller.report_port is not None:
            host = caller.report_host or address
            files = settings.listener.tls_files()
            secure = None if files is None else Tls(tls.client_context(files, "callers"), host)
            return Peer(host, caller.report_port, calling_ae, called_ae, timeouts, tls=secure)
    for item in settings.destinations:
        if isinstance(item, DicomDestination) and item.ae_title == calling_ae:
            own: TlsFiles | None = settings.client_tls_files(item)
            name = item.tls_server_name or item.host
            secure = (
                None if own is None else Tls(tls.client_context(own, f"destinations ({item.name})"), name)
            )
            return Peer(item.host, item.port, calling_ae, called_ae, timeouts, tls=secure)
    return None


def send_report(peer: Peer, report: Report) -> str | None:
    """Report over a new association, in the role of the SCP; return why it was not taken, None if it was."""
    context = build_context(PUSH_MODEL, list(TRANSFER_SYNTAXES))
    role = build_role(PUSH_MODEL, scp_role=True)
    with Link(peer, [context], _LIMIT_S, ext_neg=[role]) as link:
        if link.failure is not None or link.association is None:
            return (link.failure or link.broken()).detail
        association = link.association
        answered = {item.sop_class_uid for item in association.acceptor.role_selection.values()}
        for accepted in association.accepted_contexts:
            # a peer that takes the context and says nothing of roles expects the report all the same
            accepted._as_scp = accepted.as_scp or PUSH_MODEL not in answered  # noqa: SLF001 - no other way
        try:
            answer, _ = association.send_n_event_report(
                report.dataset(), report.event_type, PUSH_MODEL, WELL_KNOWN
            )
        except ValueError:
            return "the peer does not accept reports: it refuses the role"
        except RuntimeError:  # the association ended meanwhile
            return link.broken().detail
        status = answer.get("Status")
        if status is None:
            return link.broken().detail
        return None if status == 0 else f"the peer answered the report with status {status:04X}H"


class Reporter:
    """Sends the reports that senders are owed; one that is away holds up no other.

    Parameters
    ----------
    database, settings
        Holds the requests; says where senders take reports, and how often to try.
    clock
        Source of time.
    send
        `send_report`, or what tests put in its place.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        clock: Clock = utc_now,
        send: Callable[[Peer, Report], str | None] = send_report,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._send = send
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="commitment")
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def tick(self) -> None:
        """Begin what is due now; returns at once."""
        with self._database.read() as session:
            due = select(CommitmentRequest.calling_ae).where(
                CommitmentRequest.next_attempt_at <= self._clock()
            )
            senders = set(session.execute(due).scalars())
        for sender in sorted(senders):
            with self._lock:
                if sender in self._busy:
                    continue
                self._busy.add(sender)
            self._threads.submit(self._serve, sender)

    def stop(self) -> None:
        """Wait for what is being sent."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _serve(self, sender: str) -> None:
        try:
            self.report_to(sender)
        except Exception:
            # a thread of a ticker: the next tick tries again
            logger.exception("commitment step failed", extra={"calling_ae": sender})
        finally:
            with self._lock:
                self._busy.discard(sender)

    def report_to(self, sender: str) -> None:
        """Report to one sender whatever is due."""
        due = (
            select(CommitmentRequest.id)
            .where(CommitmentRequest.calling_ae == sender)
            .where(CommitmentRequest.next_attempt_at <= self._clock())
            .order_by(CommitmentRequest.id)
        )
        with self._database.read() as session:
            ids = session.execute(due).scalars().all()
        for request_id in ids:
            if not self._report(request_id):
                return  # the others wait for their own next attempt: the peer is away

    def _report(self, request_id: int) -> bool:
        with self._database.read() as session:
            row = session.get_one(CommitmentRequest, request_id)
            report = judge(session, Path(self._settings.storage.directory), request_of(row))
            seen = row.requested_at
        try:
            peer = peer_of(self._settings, row.calling_ae, row.address, row.called_ae)
        except ConfigurationError as error:
            peer, trouble = None, str(error)
        else:
            trouble = (
                "no way to report: [[callers]] has no report_port for this sender" if peer is None else ""
            )
        if peer is not None:
            trouble = self._send(peer, report) or ""
        with self._database.write() as session:
            row = session.get_one(CommitmentRequest, request_id)
            if row.requested_at != seen or row.next_attempt_at is None:
                return True  # asked again meanwhile, or taken over the association that asked
            row.attempts += 1
            if not trouble:
                note_taken(session, row, report, at=self._clock())
            else:
                self._note_trouble(session, row, trouble, hopeless=peer is None)
        return not trouble

    def _note_trouble(
        self, session: Session, row: CommitmentRequest, trouble: str, *, hopeless: bool
    ) -> None:
        now, settings = self._clock(), self._settings.delivery
        doubled = settings.retry_first_seconds * 2.0 ** min(row.attempts - 1, 32)
        longest = min(settings.retry_longest_seconds, doubled)
        wait = timedelta(seconds=_random.uniform(0.1 * longest, longest))
        given_up = hopeless or now - row.requested_at > timedelta(hours=settings.give_up_hours)
        row.status, row.next_attempt_at = trouble, None if given_up else now + wait
        logger.warning("commitment report not taken", extra={"calling_ae": row.calling_ae, "detail": trouble})
        if given_up:
            audit.record(
                session,
                audit.Event.COMMITMENT_REPORTED,
                at=now,
                actor=_ACTOR,
                outcome=audit.Outcome.SERIOUS_FAILURE,
                calling_ae=row.calling_ae,
                transaction_uid=row.transaction_uid,
                attempt=row.attempts,
                reason=trouble,
            )
