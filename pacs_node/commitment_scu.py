"""Storage commitment of our results (PS3.4 J.3, SCU): the destination is asked, and reports when it likes.

It may report on the association that asked, or on one of its own to our listener; either way the report is
rows, which `CommittingDestination.verify` reads.
"""

from __future__ import annotations

import logging
import queue
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from pynetdicom import evt
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.presentation import build_context
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.association import Link, Peer
from pacs_node.clock import Clock, utc_now
from pacs_node.commitment import (
    PUSH_MODEL,
    REQUEST_COMMITMENT,
    TRANSFER_SYNTAXES,
    WELL_KNOWN,
    FailureReason,
    MalformedNoticeError,
    Reference,
    Report,
    Request,
    read_report,
)
from pacs_node.db import Artifact, Commitment, CommitmentItem, Database, Delivery
from pacs_node.destinations import EchoResult, ObjectRef, Outcome
from pacs_node.dimse import DimseDestination
from pacs_node.states import DeliveryState

logger = logging.getLogger(__name__)

_ACTOR = "delivery"
_LIMIT_S = 60.0
_INVALID_ARGUMENT = 0x0115
_SAME_ASSOCIATION_S = 2.0
"""How long the association that asked is held for a report; most peers open one of their own."""


class CommittingDestination:
    """A C-STORE destination whose results count once it has committed to them.

    Parameters
    ----------
    inner
        Stores.
    database
        Keeps what was asked and what was reported.
    patience
        Without a report after this time the objects count as not kept.
    clock
        Source of time.
    """

    def __init__(
        self, inner: DimseDestination, database: Database, patience: timedelta, clock: Clock = utc_now
    ) -> None:
        self._inner = inner
        self._database = database
        self._patience = patience
        self._clock = clock

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._inner.name

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        """Send; what was reported of earlier copies doesn't count any more."""
        outcomes = self._inner.send(paths)
        stored = [outcome.sop_instance_uid for outcome in outcomes if outcome.kind.stored]
        with self._database.write() as session:
            mine = select(Commitment.id).where(Commitment.destination == self.name)
            session.execute(
                delete(CommitmentItem).where(
                    CommitmentItem.sop_instance_uid.in_(stored), CommitmentItem.commitment_id.in_(mine)
                )
            )
        return outcomes

    def echo(self) -> EchoResult:
        """Ask whether it answers."""
        return self._inner.echo()

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Say what it has committed to, and ask for what it wasn't asked for, or refused.

        Returns
        -------
        dict
            By SOP Instance UID: True committed; False refused, or no report in time; None not reported yet.
        """
        now = self._clock()
        found: dict[str, bool | None] = {}
        to_ask: list[Reference] = []
        with self._database.read() as session:
            for item in objects:
                found[item.sop_instance_uid], ask = self._known(session, item.sop_instance_uid, now)
                if ask:
                    to_ask.append(Reference(item.sop_class_uid, item.sop_instance_uid))
        if to_ask:
            self._ask(tuple(to_ask))
            with self._database.read() as session:
                # some destinations report at once, over the association that asked or over their own
                for _, uid in to_ask:
                    if found[uid] is None:
                        found[uid], _ = self._known(session, uid, now)
        return found

    def _known(self, session: Session, uid: str, now: datetime) -> tuple[bool | None, bool]:
        """What is known of an object, and whether to ask (again)."""
        latest = (
            select(CommitmentItem)
            .join(Commitment, CommitmentItem.commitment_id == Commitment.id)
            .where(CommitmentItem.sop_instance_uid == uid, Commitment.destination == self.name)
            .order_by(CommitmentItem.id.desc())
            .limit(1)
        )
        item = session.execute(latest).scalar_one_or_none()
        if item is None:
            return None, True
        if item.committed is None and item.commitment.expires_at > now:
            return None, False
        return bool(item.committed), not item.committed

    def _ask(self, objects: tuple[Reference, ...]) -> None:
        request = Request(f"2.25.{uuid.uuid4().int}", objects)
        now = self._clock()
        with self._database.write() as session:
            # before the question goes out: its report may come by way of the listener any moment
            row = Commitment(
                destination=self.name,
                transaction_uid=request.transaction_uid,
                asked_at=now,
                expires_at=now + self._patience,
                items=[CommitmentItem(sop_class_uid=sop, sop_instance_uid=uid) for sop, uid in objects],
            )
            session.add(row)
            session.flush()
            row_id = row.id
        trouble, report = ask(self._inner.peer, request)
        with self._database.write() as session:
            if report is not None:
                mine = self._inner.peer.called_ae
                take_report(session, report, calling_ae=mine, reporters={self.name: mine}, at=self._clock())
            if trouble is not None:
                logger.warning("%s: storage commitment: %s", self.name, trouble)
                session.execute(delete(CommitmentItem).where(CommitmentItem.commitment_id == row_id))


def ask(peer: Peer, request: Request) -> tuple[str | None, Report | None]:
    """Send the N-ACTION.

    Returns
    -------
    tuple
        Why it was not accepted, None if it was; and the report, where it came on the same association.
    """
    reports: queue.Queue[Report] = queue.Queue()

    def take(event: evt.Event) -> tuple[int, None]:
        status, report = _read(event)
        if report is not None and report.transaction_uid == request.transaction_uid:
            reports.put(report)
        return status, None

    contexts = [build_context(PUSH_MODEL, list(TRANSFER_SYNTAXES))]
    handlers = [(evt.EVT_N_EVENT_REPORT, take)]
    with Link(peer, contexts, _LIMIT_S, handlers=handlers) as link:
        if link.failure is not None or link.association is None:
            return (link.failure or link.broken()).detail, None
        try:
            answer, _ = link.association.send_n_action(
                request.dataset(), REQUEST_COMMITMENT, PUSH_MODEL, WELL_KNOWN
            )
        except (RuntimeError, ValueError):  # the association ended meanwhile
            return link.broken().detail, None
        status = answer.get("Status")
        if status is None:
            return link.broken().detail, None
        if status != 0:
            return f"the peer answered the request with status {status:04X}H", None
        try:
            return None, reports.get(timeout=_SAME_ASSOCIATION_S)
        except queue.Empty:
            return None, None


def _read(event: evt.Event) -> tuple[int, Report | None]:
    """Read a report that came on the association that asked; the status to answer it with."""
    information = cast(N_EVENT_REPORT, event.request).EventInformation
    try:
        data = b"" if information is None else information.getvalue()
        return 0x0000, read_report(data, str(event.context.transfer_syntax))
    except MalformedNoticeError as error:
        logger.warning("a commitment report that can't be used: %s", error)
        return _INVALID_ARGUMENT, None


def take_report(
    session: Session, report: Report, *, calling_ae: str, reporters: Mapping[str, str], at: datetime
) -> bool:
    """Write down what a destination reports; its deliveries that wait for it are due at once.

    Parameters
    ----------
    calling_ae
        Who reports.
    reporters
        By the name of a destination, the AE title that may.

    Returns
    -------
    bool
        False where nobody asked for that transaction, or another one was asked.
    """
    known = select(Commitment).where(Commitment.transaction_uid == report.transaction_uid)
    row = session.execute(known).scalar_one_or_none()
    if row is None:
        return False
    if reporters.get(row.destination) != calling_ae:
        logger.warning(
            "a commitment report of another than was asked",
            extra={"destination": row.destination, "calling_ae": calling_ae},
        )
        return False
    reasons = {item.sop_instance_uid: reason for item, reason in report.failed}
    kept = {item.sop_instance_uid for item in report.committed}
    for item in row.items:
        if item.sop_instance_uid in reasons:
            item.committed, item.failure_reason = False, reasons[item.sop_instance_uid]
        elif item.sop_instance_uid in kept:
            item.committed = True
    row.answered_at = at
    _hasten(session, row, at)
    audit.record(
        session,
        audit.Event.COMMITMENT_ANSWERED,
        at=at,
        actor=_ACTOR,
        outcome=audit.Outcome.SERIOUS_FAILURE if reasons else audit.Outcome.SUCCESS,
        destination=row.destination,
        calling_ae=calling_ae,
        transaction_uid=row.transaction_uid,
        committed=len(kept),
        refused={uid: _words(reason) for uid, reason in sorted(reasons.items())[:20]} or None,
    )
    return True


def _hasten(session: Session, row: Commitment, at: datetime) -> None:
    objects = select(Artifact.id).where(
        Artifact.sop_instance_uid.in_([item.sop_instance_uid for item in row.items])
    )
    session.execute(
        update(Delivery)
        .where(
            Delivery.destination == row.destination,
            Delivery.state == DeliveryState.SENT,
            Delivery.artifact_id.in_(objects),
        )
        .values(next_attempt_at=at)
        .execution_options(synchronize_session=False)
    )


def _words(reason: int) -> str:
    try:
        return FailureReason(reason).name.lower().replace("_", " ")
    except ValueError:
        return f"{reason:04X}H"
