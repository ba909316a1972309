"""What the API says of the node: its state, destinations, models, and what the archive has besides."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from dicom_sr.context import RESEARCH_USE
from pacs_node.accounts import Permission
from pacs_node.breaker import Position
from pacs_node.db_accounts import Role
from pacs_node.doctor_findings import Level
from pacs_node.queries import StudyWord
from pacs_node.states import DeliveryState
from pacs_node.web.api.values import Answer, Seconds, Text


class Asker(Answer):
    """The client program that asks."""

    name: str
    role: Role
    permissions: tuple[Permission, ...]
    token: str = Field(validation_alias="prefix")
    """First characters of its token."""
    expires_at: datetime | None


class Check(Answer):
    """One part of the node."""

    name: str
    ok: bool
    why: str
    """Why not; empty where it is ready."""
    numbers: Annotated[dict[str, int], BeforeValidator(dict)]
    """What was measured."""


class Health(Answer):
    """Whether the node can take images and analyse them."""

    ready: bool
    checks: tuple[Check, ...]


class Alarm(Answer):
    """Something that somebody should look at."""

    sentence: Text
    todo: Text
    """What to do about it."""
    study_uid: str | None
    """Of the one study that it is about."""
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


class Traffic(Answer):
    """What a destination got in the last 24 hours."""

    delivered: int
    failed: int
    to_verified_s: Seconds = Field(validation_alias="to_verified")
    """Median time from a result to the proof of its arrival, seconds; null where nothing was proved."""


def _told(value: Any) -> Any:
    return {"status": value[0], "due_at": value[1]} if isinstance(value, tuple) else value


class LastError(Answer):
    """What came of an object that did not arrive, and when it is or was due."""

    status: Text
    due_at: datetime


class Destination(Answer):
    """A configured destination as it stands."""

    name: str
    kind: str
    address: str
    profile: str
    verify: str
    """How it is proved that an object arrived."""
    encrypted: bool
    position: Position
    """Of its breaker: an open one lets nothing through."""
    away: Away | None
    """Since when nobody reaches it; null where its breaker is closed."""
    waiting: dict[DeliveryState, int]
    """Objects that are not done."""
    oldest: datetime | None
    """When the oldest of those that wait to be sent was made."""
    last_success: datetime | None
    last_error: Annotated[LastError | None, BeforeValidator(_told)]
    traffic: Traffic


class Destinations(Answer):
    """All configured destinations."""

    destinations: tuple[Destination, ...]


class ExaminationFinding(Answer):
    """One thing that an examination found."""

    level: Level
    about: Text
    sentence: Text
    todo: Text
    """Empty only where nothing is to be done."""


class Examination(Answer):
    """What was found by asking."""

    subject: str
    began: datetime
    seconds: float | None
    """Null while it goes on: ask again later."""
    whole: bool
    """It came to its end."""
    findings: tuple[ExaminationFinding, ...]


class SettingLine(Answer):
    """One setting."""

    key: str
    value: str
    """As the file would have it; secrets are not shown."""
    is_default: bool
    meaning: str


class SettingTable(Answer):
    """One table of the configuration file."""

    title: str
    about: str
    lines: tuple[SettingLine, ...]


class Settings(Answer):
    """The configuration in force; it is changed in the file only."""

    tables: tuple[SettingTable, ...]


class HeldStudy(Answer):
    """An analysis that an operator stopped until somebody requeues it."""

    study_uid: str
    accession_number: Text
    study_date: Text
    description: Text
    reason: Text
    since: datetime


class DoubtfulStudy(Answer):
    """A study with images that came again with another content under the same UID."""

    study_uid: str
    accession_number: Text
    study_date: Text
    n_images: int
    last_at: datetime


class HeldStudies(Answer):
    """What waits for a person, the latest first, at most 200 each."""

    held: tuple[HeldStudy, ...]
    doubtful: tuple[DoubtfulStudy, ...]


class FailedGroup(Answer):
    """What failed at one place for one cause."""

    place: str
    """Name of a destination, or `analysis`."""
    cause: Text
    count: int
    study_uids: tuple[str, ...]
    first_at: datetime
    last_at: datetime


class Failures(Answer):
    """What failed for good, the largest group first."""

    groups: tuple[FailedGroup, ...]


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


class Percentiles(Answer):
    """Half, nine in ten, and 99 in a hundred took no longer; seconds."""

    count: int
    """Of how many."""
    p50_s: Seconds = Field(validation_alias="p50")
    p90_s: Seconds = Field(validation_alias="p90")
    p99_s: Seconds = Field(validation_alias="p99")


class Latency(Answer):
    """Times of the last 500; null where nothing was done yet."""

    waited: Percentiles | None
    """From the analysis being queued to its last start."""
    analysis: Percentiles | None
    """From its last start to its end."""
    delivery: Percentiles | None
    """From the result to the proof that it arrived."""
    whole: Percentiles | None
    """From the last image of the series to that proof."""


class Overview(Answer):
    """What the node is doing and what needs a person. Names no patient."""

    work: Work
    latency: Latency
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
