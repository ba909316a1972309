"""What the API says of the node: its state, destinations, models, and what the archive has besides."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dicom_sr.context import RESEARCH_USE
from inference.inventory import State
from pacs_node.accounts import Permission
from pacs_node.db_accounts import Role
from pacs_node.queries import StudyWord
from pacs_node.web.api.values import Answer, Text


class Asker(Answer):
    """The client program that asks."""

    name: str
    role: Role
    permissions: tuple[Permission, ...]
    token: str = Field(validation_alias="prefix")
    """First characters of its token."""
    expires_at: datetime | None


class Alarm(Answer):
    """Something that somebody should look at."""

    sentence: Text
    study_uid: str | None
    urgent: bool


class RunningJob(Answer):
    """What is being analysed."""

    job_id: int
    study_uid: str
    attempt: int
    started_at: datetime


class Away(Answer):
    """A destination that isn't reached."""

    since: datetime
    reason: Text
    next_probe_at: datetime


class DestinationState(Answer):
    """The outbox of one destination."""

    name: str
    pending: int
    """Objects that wait or are being sent."""
    unverified: int
    """Objects that were sent but not yet found there."""
    failed: int
    """Objects that need an operator."""
    oldest_pending: datetime | None
    last_sent: datetime | None
    last_verified: datetime | None
    last_error: Text | None
    """Status of the pending object that was tried last."""
    last_failure: Text | None
    """Status of the last object that failed for good."""
    away: Away | None
    """Since when nobody reaches it; null where its breaker is closed."""


class ConfiguredDestination(DestinationState):
    """A destination with what is configured."""

    kind: Literal["dicom", "dicomweb"] | None
    """Null: results for it are in the database, but it is configured no more."""
    profile: str | None
    """What kinds of objects it gets."""


class Destinations(Answer):
    """All destinations."""

    destinations: tuple[ConfiguredDestination, ...]


class FailedStudy(Answer):
    """A study whose analysis or delivery failed for good."""

    study_uid: str
    what: Text
    reason: Text
    at: datetime


class RefusedAssociation(Answer):
    """A peer that was turned away, with how often of late."""

    calling_ae: Text
    called_ae: Text
    address: str
    last_at: datetime
    count: int


class RefusedInstance(Answer):
    """An object that the listener didn't take."""

    calling_ae: Text
    status: Text
    reason: Text
    at: datetime


class Disk(Answer):
    """Where images are kept, bytes."""

    free: int
    total: int
    reserve: int
    low: bool
    """Images are refused."""


class Work(Answer):
    """What the node is doing."""

    now: datetime
    today: dict[StudyWord, int]
    """Studies since midnight where the node stands, by state."""
    queued: int
    oldest_queued: datetime | None
    running: tuple[RunningJob, ...]
    destinations: tuple[DestinationState, ...]
    failures: tuple[FailedStudy, ...]
    refused_associations: tuple[RefusedAssociation, ...]
    refused_instances: tuple[RefusedInstance, ...]
    last_pipeline: str | None
    """Version of the pipeline of the newest job."""


class Overview(Answer):
    """What the node is doing and what needs a person. Names no patient."""

    work: Work
    disk: Disk
    alarms: tuple[Alarm, ...]
    version: str
    notice: str = RESEARCH_USE


def _parted(value: object) -> object:
    return [part for part in value.split("\\") if part] if isinstance(value, str) else value


class MissedStudy(Answer):
    """A study that the archive has and that never came here."""

    archive: str
    study_uid: str
    accession_number: Text
    study_date: Text
    description: Text
    modalities: Annotated[tuple[Text, ...], BeforeValidator(_parted)]
    n_instances: int | None
    noticed_at: datetime
    seen_at: datetime
    """When the archive named it last."""


class Search(Answer):
    """What is asked of an archive from time to time."""

    name: str
    due_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    status: Text | None


class MissedStudies(Answer):
    """The list, the latest study first, at most 1,000."""

    studies: tuple[MissedStudy, ...]
    total: int
    searches: tuple[Search, ...]


class Model(Answer):
    """A model that the node has or could fetch, as its card or the catalogue says."""

    name: str
    title: str
    task: str
    profile: str
    state: State
    file: str | None
    size: int | None
    sha256: str | None
    licence: str
    performance: tuple[str, ...]
    """Sentences of measured performance."""


class Models(Answer):
    """All models, and the profile in use."""

    profile: str
    models: tuple[Model, ...]
    notice: str = RESEARCH_USE
