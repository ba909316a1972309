"""What the API says of studies."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from dicom_sr.context import RESEARCH_USE
from pacs_node.db_feedback import VerdictKind, VerdictSource
from pacs_node.queries import DeliveryWord, StudyWord, Tone
from pacs_node.states import JobState
from pacs_node.study_search import FindingQuery, LungRads, NoduleKind, StudyOrder, StudyQuery
from pacs_node.web.api.values import Answer, AskedPage, Moment, Number, Plain, Seconds, Text

Day = Annotated[str, Field(pattern=r"^([0-9]{8})?$")]


class StudiesAsked(AskedPage):
    """Which studies, in which order."""

    q: Annotated[str, Plain, Field(max_length=200)] = ""
    """Words that must all occur in patient ID, patient name, accession number or Study Instance UID."""
    received_since: Moment | None = None
    """The first image came at this time or later."""
    received_until: Moment | None = None
    """The first image came before this time."""
    first_day: Day = ""
    """Of the study date, YYYYMMDD."""
    last_day: Day = ""
    """Of the study date, YYYYMMDD; itself in it."""
    state: StudyWord | None = None
    delivery: DeliveryWord | None = None
    least_diameter_mm: Annotated[float, Field(ge=0, le=500, allow_inf_nan=False)] = 0.0
    """With a nodule whose mean diameter is at least this."""
    least_malignancy: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """With a nodule whose malignancy, from the image alone, is at least this."""
    attenuation: NoduleKind | None = None
    """With a nodule of this kind; with the two before it, one nodule is all of it."""
    lung_rads: LungRads | None = None
    """Category of Lung-RADS v2022 that the node's own reading comes to, with or without the modifier S."""
    sort: StudyOrder = StudyOrder.RECEIVED
    order: Literal["ascending", "descending"] = "descending"
    limit: Annotated[int, Field(ge=1, le=200)] = 50

    def query(self) -> StudyQuery:
        """The question to the database."""
        return StudyQuery(
            words=self.q,
            since=self.received_since,
            until=self.received_until,
            first_day=self.first_day,
            last_day=self.last_day,
            state=self.state,
            delivery=self.delivery,
            finding=self._finding(),
            lung_rads=self.lung_rads,
            order=self.sort,
            descending=self.order == "descending",
        )

    def _finding(self) -> FindingQuery | None:
        asked = self.least_diameter_mm > 0 or self.least_malignancy > 0 or self.attenuation is not None
        return (
            FindingQuery(self.least_diameter_mm, self.least_malignancy, self.attenuation) if asked else None
        )


class DeliverySummary(Answer):
    """What became of the results over all destinations: the worst of them counts."""

    word: DeliveryWord
    detail: Text
    """Destination and reason where something is wrong, else empty."""
    since: datetime
    """When the last object was sent or verified; of a failing one, when the next attempt is due."""
    tone: Tone


class StudyState(Answer):
    """Where a study is on its way."""

    word: StudyWord
    detail: Text
    """A reason code with its sentence, or a count."""
    since: datetime
    tone: Tone
    """How much attention it needs."""
    finished: bool
    """Nothing will change by itself any more."""
    delivery: DeliverySummary | None


class StudySummary(Answer):
    """One study of the list; texts are as the sender wrote them."""

    study_uid: str
    """Study Instance UID (0020,000D)."""
    patient_id: Text
    patient_name: Text
    """Person name, PS3.5 6.2: components parted by `^`, groups by `=`."""
    accession_number: Text
    study_date: Text
    """As sent, YYYYMMDD."""
    description: Text
    received_at: datetime
    """When its first image came."""
    n_images: int
    modalities: tuple[Text, ...]
    state: StudyState
    n_findings: int | None
    """Nodules that the analysis found; null where that isn't known."""
    lung_rads: Text
    """Category of Lung-RADS v2022 by the node's own reading, or `undetermined`; empty if it says nothing."""


class StudyPage(Answer):
    """One page of the list of studies."""

    studies: tuple[StudySummary, ...]
    next_cursor: str | None
    """`cursor` of the next page; null on the last."""
    notice: str = RESEARCH_USE


class TimelineStep(Answer):
    """One step of a study."""

    at: datetime
    step: Text
    detail: Text
    """What, and why; no patient data."""
    duration_s: Seconds = Field(validation_alias="duration")
    """Seconds that it took; null where it takes no time."""
    failure: bool


class SeriesDecision(Answer):
    """One received series and what was decided about it."""

    number: int
    """In the order of arrival, from 1; the timeline uses it too."""
    series_uid: str
    modality: Text
    description: Text
    calling_ae: Text
    n_images: int
    last_received_at: datetime
    verdict: str
    """`chosen`, `set aside`, or the state it is in until then."""
    reason_code: str
    reason: Text
    n_conflicts: int
    """Images that came with other bytes under a known UID."""


def _is_there(path: str | None) -> bool:
    return path is not None


class ResultFile(Answer):
    """A file that a job made."""

    id: int
    """For `/artifacts/{artifact_id}`."""
    kind: str
    """seg, sr, sc, pdf, json, html, png, or another of a later version."""
    words: str
    """Kind and encoding for people."""
    name: str
    available: Annotated[bool, BeforeValidator(_is_there)] = Field(validation_alias="path")
    """False once removed by retention."""
    sha256: str
    sop_instance_uid: str | None
    """Null where it is no DICOM object."""


class Job(Answer):
    """One analysis, or the report that says why there was none."""

    id: int
    series_number: int
    kind: str
    state: JobState
    attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str
    reason: Text
    last_error: Text
    pipeline_version: str
    input_digest: str
    files: tuple[ResultFile, ...]


class Delivery(Answer):
    """One object on its way to one destination."""

    words: str
    """Kind and encoding for people."""
    job_id: int
    destination: str
    state: DeliveryWord = Field(validation_alias="word")
    """`visible in PACS`: the destination has proved that it keeps it."""
    attempts: int
    status: Text
    """Last DIMSE or HTTP status and what it means."""
    sent_at: datetime | None
    verified_at: datetime | None
    next_attempt_at: datetime | None
    """Only where it will be tried again."""


Facts = Annotated[dict[Text, Text], BeforeValidator(dict)]
Numbers = Annotated[dict[Text, Number], BeforeValidator(dict)]


class SentencePair(Answer):
    """Two sentences that exclude each other, in several wordings each."""

    positive: tuple[Text, ...]
    negative: tuple[Text, ...]
    share: Number
    """How near the image is to the positive sentences against the negative ones, 0..1."""


class Feature(Answer):
    """A semantic feature in words."""

    name: Text
    meaning: Text
    probability: Number
    """0..1."""
    pair: SentencePair | None
    """What it was read from."""


class Finding(Answer):
    """One nodule; null where the result doesn't say. Made by software, reviewed by nobody."""

    number: Text
    tracking_id: Text
    site: Text
    attenuation: Text
    long_axis_mm: Number
    short_axis_mm: Number
    mean_diameter_mm: Number
    volume_mm3: Number
    mean_hu: Number
    detection_probability: Number
    """0..1."""
    malignancy: Number
    """0..1, from the image alone: the rating that radiologists would give, not histology."""
    malignancy_fused: Number
    """The same with the clinical record."""
    features: tuple[Feature, ...]
    likeness: Numbers
    """Of the place to the sentences of each structure: nodule, vessel and so on; together 1."""
    key_image: Text
    """Name of a file of the job."""


class Observation(Answer):
    """A finding of the whole study or of one structure."""

    name: Text
    value: Text
    probability: Number


class UsedModel(Answer):
    """A model that took part."""

    name: Text
    version: Text
    task: Text
    summary: Text
    intended_use: Text
    limits: Text
    weights_sha256: Text
    """Empty for an algorithm without trained weights."""
    performance: tuple[Text, ...]


class NoduleThen(Answer):
    """A nodule on one of two dates; null where the result doesn't say."""

    name: Text
    site: Text
    marked: bool
    """Whether the result has a finding for it."""
    long_axis_mm: Number
    short_axis_mm: Number
    mean_diameter_mm: Number
    volume_mm3: Number


class NoduleChange(Answer):
    """What became of one nodule since the prior examination."""

    words: Text
    reason: Text
    """Why its change is not known."""
    volume_words: Text
    """What became of it by its volume alone; empty where that has not grown."""
    prior: NoduleThen | None
    current: NoduleThen | None
    volume_change: Number
    """Relative: 0.25 is a quarter more."""
    doubling_days: Number
    """Only where the volume has grown."""
    picture: Text
    """Name of a file of the job, with both dates."""


class PriorComparison(Answer):
    """The examination against an earlier one. Made by software, reviewed by nobody."""

    prior_study_uid: str
    prior_date: Text
    date: Text
    days: int | None
    reason: Text
    """Why the two could not be compared; then there are no pairs."""
    registration: Text
    """How well the lungs lie on each other."""
    pairs: tuple[NoduleChange, ...]


class Result(Answer):
    """What an analysis found, from its `result.json`."""

    status: Text
    reason: Text
    findings: tuple[Finding, ...]
    observations: tuple[Observation, ...]
    models: tuple[UsedModel, ...]
    warnings: tuple[Text, ...]
    scan: Facts
    provenance: Facts
    timings: Numbers
    """Seconds by stage."""
    comparison: PriorComparison | None
    """With a prior examination; null without one."""


class VerdictLine(Answer):
    """What a radiologist said of a finding."""

    at: datetime
    kind: VerdictKind
    detail: Text
    """Reason or changes in words."""
    text: Text
    source: VerdictSource
    actor: Text
    observer: Text
    """Who verified the document that it was read from, as it says."""


class JudgedNodule(Answer):
    """A finding, or a nodule that was missed, and what was said of it; the newest verdict first."""

    tracking_uid: str
    name: Text
    """As in SEG and report; empty if missed."""
    site: Text
    attenuation: Text
    long_axis_mm: Number
    verdicts: tuple[VerdictLine, ...]


class Feedback(Answer):
    """What was said of the findings of one job, and what it has missed."""

    job_id: int
    nodules: tuple[JudgedNodule, ...]
    missed: tuple[JudgedNodule, ...]


class Study(Answer):
    """Everything about one study; jobs and deliveries are the newest first."""

    study: StudySummary = Field(validation_alias="line")
    series: tuple[SeriesDecision, ...]
    jobs: tuple[Job, ...]
    deliveries: tuple[Delivery, ...]
    timeline: tuple[TimelineStep, ...]
    result: Result | None = None
    """Of the newest job that made files; null without one."""
    feedback: Feedback | None = None
    """Of the same job; null until its result was read."""
    notice: str = RESEARCH_USE
