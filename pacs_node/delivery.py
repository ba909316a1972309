"""The way of results to their destinations: one `Outbox` each, and an operator's word to send again.

Each has a thread of its own, so one that is away holds up nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event, Thread

from sqlalchemy import select
from sqlalchemy.orm import Session

from dicom_sr.profiles import Form, chosen
from pacs_node import breaker, jobs, tls
from pacs_node.association import Timeouts, Tls
from pacs_node.commitment_scu import CommittingDestination
from pacs_node.config import DicomDestination, DicomWebDestination, Settings
from pacs_node.db import Artifact, Database, Delivery, Job, Series, Study
from pacs_node.destinations import Destination
from pacs_node.dicomweb import DicomWebDestination as DicomWebClient
from pacs_node.dimse import DimseDestination
from pacs_node.errors import ConfigurationError, StaleStateError
from pacs_node.outbox import Outbox
from pacs_node.states import DeliveryState
from pacs_node.storage import open_database


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


def takers(
    session: Session, study_uid: str, destinations: Sequence[tuple[str, Sequence[str]]]
) -> tuple[str, ...]:
    """Which destinations, by name and wanted forms, want something of the latest result of a study."""
    made = {artifact.form for artifact in _latest_objects(session, study_uid)}
    return tuple(name for name, wanted in destinations if chosen(wanted, made))


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
    breaker.probe_now(session, destination, at)
    known = select(Delivery).where(Delivery.artifact_id == artifact.id, Delivery.destination == destination)
    delivery = session.execute(known).scalar_one_or_none()
    if delivery is None:
        jobs.add_delivery(session, artifact, destination, at=at, actor=actor)
    elif delivery.state is DeliveryState.SENDING:
        raise StaleStateError(f"{artifact.sop_instance_uid} is being sent to {destination}")
    elif delivery.state is not DeliveryState.PENDING:
        jobs.deliver_again(session, delivery, at=at, actor=actor, status="sent again by an operator")
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
            verify="none" if item.verify == "none" else "c-find",
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


def _proving(
    item: DicomDestination | DicomWebDestination, settings: Settings, database: Database
) -> Destination:
    """Build the client of a destination; with ``verify = "commitment"`` it needs the rows of its reports."""
    destination = make_destination(item, settings)
    if isinstance(destination, DimseDestination) and item.verify == "commitment":
        patience = timedelta(hours=settings.delivery.commitment_hours)
        return CommittingDestination(destination, database, patience)
    return destination


def run(settings: Settings, stop: Event) -> None:
    """Deliver until `stop` is set, each destination in a thread of its own."""
    database = open_database(settings)
    directory = Path(settings.storage.directory)
    threads = [
        Thread(
            target=Outbox(
                database,
                directory,
                _proving(item, settings, database),
                settings.delivery,
                asks=item.verify != "none",
            ).run,
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
