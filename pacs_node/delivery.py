"""The way of results to their destinations: SEG, then SR, then the proof that they arrived.

Each destination has an `Outbox` with a thread of its own, so one that is away holds up nobody else.
The rows were written in the transaction that ended the job; an attempt always sends the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread

from sqlalchemy import Select, exists, select
from sqlalchemy.orm import Session, aliased, selectinload

from dicom_sr.profiles import Form, chosen
from pacs_node import jobs, leases, lifecycle, tls
from pacs_node.association import Timeouts, Tls
from pacs_node.clock import Clock, utc_now
from pacs_node.config import DeliverySettings, DicomDestination, DicomWebDestination, Settings
from pacs_node.db import Artifact, Database, Delivery, Job, Series, Study
from pacs_node.destinations import Destination, ObjectRef, Outcome, OutcomeKind
from pacs_node.dicomweb import DicomWebDestination as DicomWebClient
from pacs_node.dimse import DimseDestination
from pacs_node.errors import ConfigurationError, StaleStateError
from pacs_node.leases import LeaseWatch
from pacs_node.states import DeliveryState
from pacs_node.storage import open_database

logger = logging.getLogger(__name__)

_ACTOR = "delivery"
_IDLE_SECONDS = 0.5
_CHECK_WAIT = timedelta(seconds=2)
_CHECKS_BEFORE_RESEND = 6
_random = secrets.SystemRandom()


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
    ) -> None:
        self._database = database
        self._directory = directory
        self._destination = destination
        self._settings = settings
        self._clock = clock
        self._leases = LeaseWatch(Delivery, ticks)

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
        self._reclaim()
        batch = self._claim()
        if batch is not None:
            self._send(*batch)
            return True
        return self._verify()

    def _reclaim(self) -> None:
        """What a stopped process was sending is sent again: the receiver keeps the first copy."""
        with self._database.read() as session:
            lost = self._leases.lost(session, Delivery.destination == self._destination.name)
        if not lost:
            return
        now = self._clock()
        with self._database.write() as session:
            for delivery_id, token in lost:
                lifecycle.move_delivery(
                    session,
                    session.get_one(Delivery, delivery_id),
                    DeliveryState.PENDING,
                    at=now,
                    actor=_ACTOR,
                    token=token,
                    next_attempt_at=now,
                    lease_token=None,
                    lease_expires_at=None,
                    status="the sending process stopped",
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

    def _due(self, now: datetime) -> Select[tuple[Delivery]]:
        """Pending and due, in order; a report waits for the masks that it refers to."""
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
            .where(Delivery.state == DeliveryState.PENDING, Delivery.next_attempt_at <= now)
            .where((Artifact.kind == "seg") | ~mask_on_its_way)
            .order_by(Artifact.job_id, Delivery.id)
        )

    def _claim(self) -> tuple[list[Delivery], str] | None:
        """Take the due objects of one job and one kind under a lease."""
        now = self._clock()
        with self._database.read() as session:
            if session.execute(self._due(now).limit(1)).first() is None:
                return None
        token = leases.new_token()
        with self._database.write() as session:
            due = session.execute(self._due(now)).scalars().all()
            batch = [
                delivery
                for delivery in due
                if (delivery.artifact.job_id, delivery.artifact.kind)
                == (due[0].artifact.job_id, due[0].artifact.kind)
            ]
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
        return (batch, token) if batch else None

    def _send(self, batch: Sequence[Delivery], token: str) -> None:
        ids = [delivery.id for delivery in batch]
        with leases.heartbeat(self._database, Delivery, ids, token, self._clock):
            outcomes = {row.id: _ALTERED for row in batch if self._is_altered(row.artifact)}
            sound = [row for row in batch if row.id not in outcomes]
            if sound:
                sent = self._destination.send([self._path(row.artifact) for row in sound])
                outcomes |= zip((row.id for row in sound), sent, strict=True)
        with self._database.write() as session:
            for delivery_id, outcome in outcomes.items():
                delivery = session.get_one(Delivery, delivery_id)
                try:
                    self._note(session, delivery, token, outcome)
                except StaleStateError:
                    logger.warning("delivery lease lost", extra={"delivery": delivery_id})

    def _path(self, artifact: Artifact) -> Path:
        return self._directory / (artifact.path or "removed")

    def _is_altered(self, artifact: Artifact) -> bool:
        """Whether the file isn't what the job had written; one that is gone is the destination's to name."""
        try:
            return hashlib.sha256(self._path(artifact).read_bytes()).hexdigest() != artifact.sha256
        except OSError:
            return False

    def _note(self, session: Session, delivery: Delivery, token: str, outcome: Outcome) -> None:
        now = self._clock()
        values: dict[str, object] = {"lease_token": None, "lease_expires_at": None, "status": outcome.detail}
        if outcome.kind.stored:
            state = DeliveryState.SENT
            values |= {"sent_at": now, "checks": 0, "next_attempt_at": now}
        elif outcome.kind is OutcomeKind.PERMANENT or self._too_old(delivery, now):
            state = DeliveryState.FAILED
        else:
            state = DeliveryState.PENDING
            values["next_attempt_at"] = now + self._wait(delivery.attempts)
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

    def _wait(self, attempts: int) -> timedelta:
        """Exponential with full jitter, so that a peer that comes back is not stormed."""
        doubled = self._settings.retry_first_seconds * 2.0 ** min(attempts - 1, 32)
        longest = min(self._settings.retry_longest_seconds, doubled)
        return timedelta(seconds=_random.uniform(0.1 * longest, longest))

    def _verify(self) -> bool:
        """Ask the destination for what was sent and not yet proved; return whether anything was due."""
        now = self._clock()
        sent = (
            self._mine()
            .where(Delivery.state == DeliveryState.SENT, Delivery.next_attempt_at <= now)
            .order_by(Delivery.id)
            .limit(50)
        )
        with self._database.read() as session:
            due = session.execute(sent).scalars().all()
        if not due:
            return False
        answers = self._destination.verify([_reference(delivery.artifact) for delivery in due])
        with self._database.write() as session:
            for row in due:
                delivery = session.get_one(Delivery, row.id)
                if delivery.state is DeliveryState.SENT:
                    uid = delivery.artifact.sop_instance_uid or ""
                    self._note_answer(session, delivery, found=answers.get(uid))
        return True

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
                next_attempt_at=now + self._wait(delivery.attempts),
                status="the destination answered success, but doesn't have it",
            )
        else:
            wait = _CHECK_WAIT * 2.0 ** min(delivery.checks, 10)
            delivery.next_attempt_at = now + wait


def _reference(artifact: Artifact) -> ObjectRef:
    return ObjectRef(
        study_uid=artifact.job.series.study.study_uid,
        series_uid=artifact.series_uid or "",
        sop_instance_uid=artifact.sop_instance_uid or "",
        sop_class_uid=artifact.sop_class_uid or "",
    )


def resend_study(
    session: Session,
    study_uid: str,
    destinations: Sequence[tuple[str, Sequence[str]]],
    *,
    at: datetime,
    actor: str,
) -> int:
    """Send the latest result of a study again at an operator's word; return the number of objects.

    What was not made in the form that a destination wants today isn't sent: see `unmade`.

    Parameters
    ----------
    destinations
        Name and wanted forms of each; one that is new to the study gets its first delivery.

    Raises
    ------
    StaleStateError
        An object is being sent at this moment.
    """
    artifacts = _latest_objects(session, study_uid)
    made = {artifact.form for artifact in artifacts}
    count = 0
    for artifact in artifacts:
        for name, wanted in destinations:
            if artifact.form in chosen(wanted, made):
                _resend(session, artifact, name, at=at, actor=actor)
                count += 1
    return count


def unmade(session: Session, study_uid: str, wanted: Sequence[str]) -> tuple[str, ...]:
    """Which of the wanted forms the latest result of a study lacks: nobody wanted them when it was made."""
    made = {artifact.form for artifact in _latest_objects(session, study_uid)}
    forms = [Form.parse(name) for name in wanted]
    if not any(Form.parse(name).kind == "seg" for name in made):
        forms = [form.without_mask for form in forms if form.kind != "seg"]
    return tuple(str(form) for form in forms if made and str(form) not in made)


def _latest_objects(session: Session, study_uid: str) -> list[Artifact]:
    """The DICOM objects of the study's latest result, in the order in which they were made."""
    artifacts = (
        session.execute(
            select(Artifact)
            .join(Job, Artifact.job_id == Job.id)
            .join(Series, Job.series_id == Series.id)
            .join(Study, Series.study_id == Study.id)
            .where(Study.study_uid == study_uid, Artifact.path.is_not(None))
            .where(Artifact.sop_instance_uid.is_not(None))
            .order_by(Artifact.job_id.desc(), Artifact.id)
        )
        .scalars()
        .all()
    )
    return [artifact for artifact in artifacts if artifact.job_id == artifacts[0].job_id]


def _resend(session: Session, artifact: Artifact, destination: str, *, at: datetime, actor: str) -> None:
    known = select(Delivery).where(Delivery.artifact_id == artifact.id, Delivery.destination == destination)
    delivery = session.execute(known).scalar_one_or_none()
    if delivery is None:
        jobs.add_delivery(session, artifact, destination, at=at, actor=actor)
    elif delivery.state is DeliveryState.SENDING:
        raise StaleStateError(f"{artifact.sop_instance_uid} is being sent to {destination}")
    elif delivery.state is not DeliveryState.PENDING:
        lifecycle.move_delivery(
            session,
            delivery,
            DeliveryState.PENDING,
            at=at,
            actor=actor,
            created_at=at,
            next_attempt_at=at,
            sent_at=None,
            verified_at=None,
            status="sent again by an operator",
        )
    else:
        delivery.next_attempt_at = at


def make_destination(item: DicomDestination | DicomWebDestination, settings: Settings) -> Destination:
    """Build the client of one configured destination.

    Raises
    ------
    ConfigurationError
        A password file, or one for TLS, can't be used.
    """
    seconds = settings.delivery.timeout_seconds
    if isinstance(item, DicomDestination):
        return DimseDestination(
            item.name,
            item.host,
            item.port,
            item.ae_title,
            item.calling_ae_title or settings.listener.ae_title,
            timeouts=Timeouts(progress=seconds),
            verify="c-find" if item.verify == "c-find" else "none",
            tls=_tls(item, settings),
        )
    return DicomWebClient(
        item.name,
        item.url,
        user=item.user,
        password=_password(item),
        ca=Path(item.ca_file) if item.ca_file else None,
        verify=item.verify,
        read_timeout=seconds,
    )


def _tls(item: DicomDestination, settings: Settings) -> Tls | None:
    files = settings.client_tls_files(item)
    if files is None:
        return None
    return Tls(tls.client_context(files, f"destinations ({item.name})"), item.tls_server_name or item.host)


def _password(item: DicomWebDestination) -> str | None:
    if item.password_file is None:
        return None
    try:
        return Path(item.password_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        key = f"destinations ({item.name}).password_file"
        raise ConfigurationError(
            f"{key} = {item.password_file!r}: can't be read ({error.strerror})"
        ) from None


def run(settings: Settings, stop: Event) -> None:
    """Deliver until `stop` is set, each destination in a thread of its own."""
    database = open_database(settings)
    directory = Path(settings.storage.directory)
    threads = [
        Thread(
            target=Outbox(database, directory, make_destination(item, settings), settings.delivery).run,
            args=(stop,),
            name=f"outbox-{item.name}",
        )
        for item in settings.destinations
    ]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()
    database.dispose()
