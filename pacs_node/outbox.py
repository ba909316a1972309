"""The outbox of one destination: SEG, then SR, then the proof that they arrived.

The rows were written in the transaction that ended the job; an attempt always sends the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event

from sqlalchemy import ColumnElement, Select, and_, exists, select
from sqlalchemy.orm import Session, aliased, selectinload

from pacs_node import breaker, leases, lifecycle
from pacs_node.breaker import Position, Waits
from pacs_node.clock import Clock, utc_now
from pacs_node.config import DeliverySettings
from pacs_node.db import Artifact, Breaker, Database, Delivery, Job, Series
from pacs_node.destinations import Destination, ObjectRef, Outcome, OutcomeKind
from pacs_node.errors import StaleStateError
from pacs_node.leases import LeaseWatch
from pacs_node.states import DeliveryState

logger = logging.getLogger(__name__)

_ACTOR = "delivery"
_IDLE_SECONDS = 0.5
_CHECK_WAIT = timedelta(seconds=2)
_CHECKS_DOUBLED = 10
_CHECKS_BEFORE_RESEND = 6
_LATE_CHECK = timedelta(days=1)
"""Once the time for a delivery is over: who hasn't told by then is asked for each object daily."""

_ALTERED = Outcome(
    "", OutcomeKind.PERMANENT, None, "the stored file isn't what the analysis had written; nothing was sent"
)


class Outbox:
    """Sends and verifies what is due at one destination.

    Parameters
    ----------
    database
        Holds the deliveries.
    directory
        The storage directory that artifact paths are relative to.
    destination
        Where to send.
    settings
        Waits between attempts and when to give up.
    clock
        Source of time.
    ticks
        A clock that never jumps, seconds: for leases.
    asks
        False where the destination is never asked whether it has what was sent (``verify = "none"``).
    """

    def __init__(
        self,
        database: Database,
        directory: Path,
        destination: Destination,
        settings: DeliverySettings,
        clock: Clock = utc_now,
        *,
        ticks: Callable[[], float] = time.monotonic,
        asks: bool = True,
    ) -> None:
        self._asks = asks
        self._database = database
        self._directory = directory
        self._destination = destination
        self._settings = settings
        self._clock = clock
        self._leases = LeaseWatch(Delivery, ticks)
        self._waits = Waits(settings.retry_first_seconds, settings.retry_longest_seconds)
        self._longest = timedelta(seconds=settings.retry_longest_seconds)

    def run(self, stop: Event) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            try:
                busy = self.tick()
            except Exception:
                # a tick loop: a busy database or a fault of ours must not end the thread unseen
                logger.exception("delivery step failed", extra={"destination": self._destination.name})
                busy = False
            if not busy:
                stop.wait(_IDLE_SECONDS)

    def tick(self) -> bool:
        """Do one thing that is due; return False if nothing is."""
        now = self._clock()
        position = self._look(now)
        if position is Position.OPEN:
            self._give_up(now)
            return False
        batch = self._claim(now, probe=position is Position.HALF_OPEN)
        if batch is not None:
            self._send(*batch)
            return True
        return self._asks and self._verify(now)

    def _look(self, now: datetime) -> Position:
        """Take back what a stopped process was sending (a receiver keeps the first copy); ask the breaker."""
        with self._database.read() as session:
            lost = self._leases.lost(session, Delivery.destination == self._destination.name)
            row = session.get(Breaker, self._destination.name)
            position = breaker.position(row, now, self._longest)
        if lost:
            self._take_back(lost, now)
        return position

    def _take_back(self, lost: Sequence[tuple[int, str]], now: datetime) -> None:
        with self._database.write() as session:
            for delivery_id, token in lost:
                delivery = session.get_one(Delivery, delivery_id)
                # one that ends its process each time has an end too; one that was due before the node stood
                # still for long is tried once more
                over = self._too_old(delivery, delivery.next_attempt_at)
                lifecycle.move_delivery(
                    session,
                    delivery,
                    DeliveryState.FAILED if over else DeliveryState.PENDING,
                    at=now,
                    actor=_ACTOR,
                    token=token,
                    next_attempt_at=now + self._waits.after(delivery.attempts),
                    lease_token=None,
                    lease_expires_at=None,
                    status="the sending process stopped",
                )

    def _give_up(self, now: datetime) -> None:
        """End what has waited for too long at a destination that isn't reached."""
        limit = now - timedelta(hours=self._settings.give_up_hours)
        old = self._mine().where(Delivery.state == DeliveryState.PENDING, Delivery.created_at < limit)
        with self._database.read() as session:
            if session.execute(old.limit(1)).first() is None:
                return
        with self._database.write() as session:
            away = breaker.away(session.get(Breaker, self._destination.name))
            for delivery in session.execute(old).scalars().all():
                lifecycle.move_delivery(
                    session,
                    delivery,
                    DeliveryState.FAILED,
                    at=now,
                    actor=_ACTOR,
                    status=away.reason if away is not None else delivery.status,
                )

    def _mine(self) -> Select[tuple[Delivery]]:
        return (
            select(Delivery)
            .where(Delivery.destination == self._destination.name)
            .options(
                selectinload(Delivery.artifact)
                .selectinload(Artifact.job)
                .selectinload(Job.series)
                .selectinload(Series.study)
            )
        )

    def _due(self, now: datetime, *, probe: bool) -> Select[tuple[Delivery]]:
        """Pending and due; a report waits for the masks that it refers to.

        In the order of the jobs; as a probe what was tried least comes first, so that no object of its own
        keeps a destination away.
        """
        mask, mask_artifact = aliased(Delivery), aliased(Artifact)
        mask_on_its_way = exists().where(
            mask.artifact_id == mask_artifact.id,
            mask_artifact.job_id == Artifact.job_id,
            mask_artifact.kind == "seg",
            mask.destination == Delivery.destination,
            mask.state.in_([DeliveryState.PENDING, DeliveryState.SENDING]),
        )
        return (
            self._mine()
            .join(Artifact, Delivery.artifact_id == Artifact.id)
            .where(Delivery.state == DeliveryState.PENDING, ~self._waits_at(now, self._longest))
            .where((Artifact.kind == "seg") | ~mask_on_its_way)
            .order_by(*([Delivery.attempts] if probe else []), Artifact.job_id, Delivery.id)
        )

    @staticmethod
    def _waits_at(now: datetime, longest: timedelta) -> ColumnElement[bool]:
        """Whether the next step is yet to come; a longer wait than any that is made: the clock was set."""
        return and_(Delivery.next_attempt_at > now, Delivery.next_attempt_at <= now + longest)

    def _claim(self, now: datetime, *, probe: bool = False) -> tuple[list[Delivery], str] | None:
        """Take the due objects of one job and one kind under a lease."""
        due = self._due(now, probe=probe)
        with self._database.read() as session:
            if session.execute(due.limit(1)).first() is None:
                return None
        token = leases.new_token()
        with self._database.write() as session:
            first = session.execute(due.limit(1)).scalars().first()
            if first is None:
                return None
            same = due.where(Artifact.job_id == first.artifact.job_id, Artifact.kind == first.artifact.kind)
            batch = list(session.execute(same).scalars().all())
            for delivery in batch:
                lifecycle.move_delivery(
                    session,
                    delivery,
                    DeliveryState.SENDING,
                    at=now,
                    actor=_ACTOR,
                    attempts=delivery.attempts + 1,
                    lease_token=token,
                    lease_expires_at=now + leases.LEASE,
                )
        return batch, token

    def _send(self, batch: Sequence[Delivery], token: str) -> None:
        ids = [delivery.id for delivery in batch]
        with leases.heartbeat(self._database, Delivery, ids, token, self._clock):
            outcomes = {row.id: _ALTERED for row in batch if self._is_altered(row.artifact)}
            sound = [row for row in batch if row.id not in outcomes]
            sent = self._try(sound) if sound else {}
            outcomes |= sent
        with self._database.write() as session:
            is_open = self._note_whether_reached(session, tuple(sent.values()))
            for delivery_id, outcome in outcomes.items():
                delivery = session.get_one(Delivery, delivery_id)
                try:
                    self._note(session, delivery, token, outcome, is_open=is_open)
                except StaleStateError:
                    logger.warning("delivery lease lost", extra={"delivery": delivery_id})

    def _try(self, rows: Sequence[Delivery]) -> dict[int, Outcome]:
        """Send; whatever the client raises is an outcome too, so it is counted, waited for and given up."""
        try:
            outcomes = self._destination.send([self._path(row.artifact) for row in rows])
            return dict(zip((row.id for row in rows), outcomes, strict=True))
        except Exception as error:
            logger.exception("sending failed by a fault", extra={"destination": self._destination.name})
            detail = f"a fault of this software ({type(error).__name__})"
            fault = Outcome("", OutcomeKind.TRANSIENT, None, detail)
            return {row.id: fault for row in rows}

    def _note_whether_reached(self, session: Session, sent: Sequence[Outcome]) -> bool:
        """Tell the breaker how an attempt went; return whether it is open now."""
        name, now = self._destination.name, self._clock()
        if breaker.nobody_answered(sent):
            return breaker.note_silence(session, name, sent[0].detail, self._waits, at=now, actor=_ACTOR)
        if sent:
            breaker.note_answer(session, name, at=now, actor=_ACTOR)
        return False

    def _path(self, artifact: Artifact) -> Path:
        return self._directory / (artifact.path or "removed")

    def _is_altered(self, artifact: Artifact) -> bool:
        """Whether the file isn't what the job had written; one that is gone is the destination's to name."""
        try:
            return hashlib.sha256(self._path(artifact).read_bytes()).hexdigest() != artifact.sha256
        except OSError:
            return False

    def _note(
        self, session: Session, delivery: Delivery, token: str, outcome: Outcome, *, is_open: bool
    ) -> None:
        now = self._clock()
        values: dict[str, object] = {"lease_token": None, "lease_expires_at": None, "status": outcome.detail}
        if outcome.kind.stored:
            state = DeliveryState.SENT
            values |= {"sent_at": now, "checks": 0, "next_attempt_at": now}
        elif outcome.kind is OutcomeKind.PERMANENT or self._too_old(delivery, now):
            state = DeliveryState.FAILED
        else:
            state = DeliveryState.PENDING
            # behind an open breaker the breaker waits for all
            wait = timedelta(0) if is_open else self._waits.after(delivery.attempts)
            values["next_attempt_at"] = now + wait
        lifecycle.move_delivery(session, delivery, state, at=now, actor=_ACTOR, token=token, **values)
        logger.info(
            "delivery",
            extra={
                "destination": delivery.destination,
                "object": delivery.artifact.form,
                "state": state.value,
                "attempt": delivery.attempts,
                "detail": outcome.detail,
            },
        )

    def _too_old(self, delivery: Delivery, now: datetime) -> bool:
        return now - delivery.created_at > timedelta(hours=self._settings.give_up_hours)

    def _verify(self, now: datetime) -> bool:
        """Ask the destination for what was sent and not yet proved; return whether anything was due."""
        sent = (
            self._mine()
            .where(Delivery.state == DeliveryState.SENT, ~self._waits_at(now, _LATE_CHECK))
            .order_by(Delivery.id)
            .limit(50)
        )
        with self._database.read() as session:
            due = session.execute(sent).scalars().all()
        if not due:
            return False
        answers = self._ask([_reference(delivery.artifact) for delivery in due])
        with self._database.write() as session:
            if any(answer is not None for answer in answers.values()):
                breaker.note_answer(session, self._destination.name, at=now, actor=_ACTOR)
            for row in due:
                delivery = session.get_one(Delivery, row.id)
                if delivery.state is DeliveryState.SENT:
                    uid = delivery.artifact.sop_instance_uid or ""
                    self._note_answer(session, delivery, found=answers.get(uid))
        return True

    def _ask(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Ask; where the client raises nothing is known, so each object is asked for later again."""
        try:
            return self._destination.verify(objects)
        except Exception:
            logger.exception("asking failed by a fault", extra={"destination": self._destination.name})
            return {}

    def _note_answer(self, session: Session, delivery: Delivery, *, found: bool | None) -> None:
        now = self._clock()
        delivery.checks += 1
        if found:
            lifecycle.move_delivery(
                session,
                delivery,
                DeliveryState.COMMITTED,
                at=now,
                actor=_ACTOR,
                verified_at=now,
                checks=delivery.checks,
                status="found at the destination",
            )
        elif found is False and delivery.checks >= _CHECKS_BEFORE_RESEND:
            lifecycle.move_delivery(
                session,
                delivery,
                DeliveryState.FAILED if self._too_old(delivery, now) else DeliveryState.PENDING,
                at=now,
                actor=_ACTOR,
                next_attempt_at=now + self._waits.after(delivery.attempts),
                status="the destination answered success, but doesn't have it",
            )
        else:
            late = found is None and self._too_old(delivery, now)
            wait = _LATE_CHECK if late else _CHECK_WAIT * 2.0 ** min(delivery.checks, _CHECKS_DOUBLED)
            delivery.next_attempt_at = now + wait


def _reference(artifact: Artifact) -> ObjectRef:
    return ObjectRef(
        study_uid=artifact.job.series.study.study_uid,
        series_uid=artifact.series_uid or "",
        sop_instance_uid=artifact.sop_instance_uid or "",
        sop_class_uid=artifact.sop_class_uid or "",
    )
