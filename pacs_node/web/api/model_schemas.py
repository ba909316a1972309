"""What the API says of models: cards, use, drift and agreement with radiologists."""

from __future__ import annotations

from datetime import datetime

from dicom_sr.context import RESEARCH_USE
from inference.inventory import State
from pacs_node.web.api.values import Answer, Number, Text


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


class Use(Answer):
    """What one pipeline version has done."""

    pipeline_version: str
    analysed: int
    not_analysed: int
    failed: int
    first_at: datetime
    last_at: datetime


class Week(Answer):
    """Results of one week."""

    week: str
    """Its Monday."""
    analysed: int
    refused: int
    """Reports that say why there is no result; failed ones among these."""
    findings: int
    without: int
    """Results without a finding."""
    scores: tuple[int, ...]
    """Results by the highest malignancy of their findings, in the bins of `score_edges`."""


class ReasonCount(Answer):
    """Studies of the last weeks that got no analysis for one reason."""

    reason_code: str
    studies: int


class ModelUse(Answer):
    """Use and score distribution over time."""

    versions: tuple[Use, ...]
    """The latest first."""
    weeks: tuple[Week, ...]
    """The oldest first."""
    score_edges: tuple[float, ...]
    refusals: tuple[ReasonCount, ...]


class Comparison(Answer):
    """Recent studies against earlier ones."""

    dimension: str
    group: Text
    measure: str
    n_recent: int
    n_reference: int
    recent_mean: Number
    reference_mean: Number
    distance: Number
    """Kolmogorov-Smirnov distance, 0..1; null with too few studies."""
    chance: Number
    """How probable so large a distance is without any difference, times the number of comparisons."""
    alarm: bool


class Reading(Answer):
    """All comparisons of one moment."""

    at: datetime
    pipeline_version: str
    comparisons: tuple[Comparison, ...]


class Drift(Answer):
    """What was compared last."""

    reading: Reading | None
    """Null before the first comparison."""


class Estimate(Answer):
    """A figure with its 95 % interval and what it was counted from; null where it isn't defined."""

    value: Number
    low: Number
    high: Number
    n: int


class Agreed(Answer):
    """What radiologists said of the findings of one pipeline version in one week."""

    week: str
    """Its Monday."""
    pipeline_version: str
    studies: int
    findings: int
    accepted: Estimate
    rejected: Estimate
    edited: Estimate
    missed: int
    """Nodules that were not found."""
    false_positives: Estimate
    """Rejected findings for each study that was judged."""
    dice: Estimate
    """Median Dice of edited masks with ours."""


class Agreement(Answer):
    """Agreement over time, the newest week first."""

    weeks: tuple[Agreed, ...]
