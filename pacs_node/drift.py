"""Whether recent results differ from earlier ones of the same pipeline, over all and by scanner and the like.

Each study counts once, by its latest analysis. Compared are the highest malignancy of its findings (image
alone) and the number of its findings, by the two-sample Kolmogorov-Smirnov distance: the largest difference
between the shares of studies at or below any value. An alarm needs a distance that the settings call large,
and that chance explains in less than 5 % over all comparisons made (Bonferroni). Of counts, which have
ties, the test says less than it could, never more. A new pipeline version begins anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from scipy.special import kolmogorov
from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node.clock import Clock, utc_now
from pacs_node.config_drift import DriftSettings
from pacs_node.db import Database
from pacs_node.db_feedback import AnalysisSummary, DriftReading, SummaryOutcome

MEASURES = {"malignancy": "highest malignancy of a study", "findings": "findings of a study"}
DIMENSIONS = {"all": "all studies", "scanner": "scanner", "kernel": "kernel", "thickness": "slice thickness"}
_BANDS = (1.0, 1.5, 2.5)
_MOST_GROUPS = 20
_CHANCE = 0.05
_ROW = 1


@dataclass(frozen=True, slots=True)
class Study:
    """What the latest analysis of one study says."""

    recent: bool
    scanner: str
    kernel: str
    slice_thickness_mm: float | None
    n_findings: int | None
    malignancy: float | None

    @property
    def thickness(self) -> str:
        """The band of its slice thickness."""
        mm = self.slice_thickness_mm
        if mm is None:
            return ""
        low = 0.0
        for high in _BANDS:
            if mm <= high:
                return f"up to {high:g} mm" if not low else f"{low:g} to {high:g} mm"
            low = high
        return f"more than {low:g} mm"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Recent studies against earlier ones.

    Parameters
    ----------
    dimension, group
        Which studies; a key of `DIMENSIONS` and its value.
    measure
        A key of `MEASURES`.
    n_recent, n_reference
        Studies that have the value.
    recent_mean, reference_mean
        Their means; None without any.
    distance
        Kolmogorov-Smirnov distance, 0..1; None with too few studies.
    chance
        How probable so large a distance is without any difference, times the number of comparisons.
    alarm
        Both are beyond what the settings allow.
    """

    dimension: str
    group: str
    measure: str
    n_recent: int
    n_reference: int
    recent_mean: float | None
    reference_mean: float | None
    distance: float | None = None
    chance: float | None = None
    alarm: bool = False

    @property
    def sentence(self) -> str:
        """An alarm in words."""
        where = "" if self.dimension == "all" else f" ({DIMENSIONS[self.dimension]} {self.group})"
        return (
            f"The {MEASURES[self.measure]}{where} has drifted: mean {self.recent_mean or 0:.2f} against "
            f"{self.reference_mean or 0:.2f} before, distance {self.distance or 0:.2f}, "
            f"{self.n_recent} against {self.n_reference} studies."
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """All comparisons of one moment."""

    at: datetime
    pipeline_version: str
    comparisons: tuple[Comparison, ...]

    @property
    def alarms(self) -> tuple[Comparison, ...]:
        """Those that somebody should look at."""
        return tuple(one for one in self.comparisons if one.alarm)


def distance(recent: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov distance, and how probable it is by chance.

    Returns
    -------
    tuple of float
        The distance, and the asymptotic probability with the correction for finite samples of Stephens
        (J R Stat Soc B 32:115-122, 1970).
    """
    first, second = np.sort(np.asarray(recent, float)), np.sort(np.asarray(reference, float))
    values = np.concatenate([first, second])
    shares = [np.searchsorted(one, values, side="right") / len(one) for one in (first, second)]
    largest = float(np.abs(shares[0] - shares[1]).max())
    root = np.sqrt(len(first) * len(second) / (len(first) + len(second)))
    return largest, float(kolmogorov((root + 0.12 + 0.11 / root) * largest))


def compare(studies: Sequence[Study], settings: DriftSettings) -> tuple[Comparison, ...]:
    """Compare recent studies with the others, over all and by group."""
    found = [_compared(sample, settings) for sample in _samples(studies)]
    made = sum(one.distance is not None for one in found)
    return tuple(_judged(one, made, settings) for one in found)


_Sample = tuple[str, str, str, list[float], list[float]]


def _samples(studies: Sequence[Study]) -> Iterator[_Sample]:
    keys: dict[str, Callable[[Study], str]] = {
        "all": lambda _: "",
        "scanner": lambda study: study.scanner,
        "kernel": lambda study: study.kernel,
        "thickness": lambda study: study.thickness,
    }
    values: dict[str, Callable[[Study], float | None]] = {
        "malignancy": lambda study: study.malignancy,
        "findings": lambda study: study.n_findings,
    }
    for dimension, key in keys.items():
        groups = Counter(key(study) for study in studies if study.recent)
        for group, _ in groups.most_common(_MOST_GROUPS):
            if dimension != "all" and not group:
                continue
            members = [study for study in studies if key(study) == group]
            for measure, value in values.items():
                known = [(study.recent, value(study)) for study in members]
                recent = [float(v) for new, v in known if new and v is not None]
                before = [float(v) for new, v in known if not new and v is not None]
                yield dimension, group, measure, recent, before


def _compared(sample: _Sample, settings: DriftSettings) -> Comparison:
    dimension, group, measure, recent, before = sample
    enough = min(len(recent), len(before)) >= settings.least_studies
    largest, chance = distance(recent, before) if enough else (None, None)
    return Comparison(
        dimension,
        group,
        measure,
        n_recent=len(recent),
        n_reference=len(before),
        recent_mean=float(np.mean(recent)) if recent else None,
        reference_mean=float(np.mean(before)) if before else None,
        distance=largest,
        chance=chance,
    )


def _judged(one: Comparison, made: int, settings: DriftSettings) -> Comparison:
    if one.distance is None or one.chance is None:
        return one
    chance = min(1.0, one.chance * made)
    alarm = one.distance >= settings.distance and chance < _CHANCE
    return Comparison(**{**asdict(one), "chance": chance, "alarm": alarm})


class Drift:
    """Compares from time to time and keeps the latest reading in the database.

    Parameters
    ----------
    database
        Holds summaries and the reading.
    settings
        What is compared and when it is an alarm.
    clock
        The time of day.
    """

    def __init__(self, database: Database, settings: DriftSettings, clock: Clock = utc_now) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock

    def tick(self) -> None:
        """Compare now."""
        now = self._clock()
        with self._database.read() as session:
            version = newest_version(session)
            studies = [] if version is None else _studies(session, version, self._settings, now)
        comparisons = compare(studies, self._settings)
        content = {"pipeline_version": version or "", "comparisons": [asdict(one) for one in comparisons]}
        with self._database.write() as session:
            session.merge(DriftReading(id=_ROW, at=now, content=content))


def newest_version(session: Session) -> str | None:
    """Pipeline version of the newest analysis."""
    newest = (
        select(AnalysisSummary.pipeline_version)
        .where(AnalysisSummary.outcome == SummaryOutcome.ANALYSED.value)
        .order_by(AnalysisSummary.job_id.desc())
        .limit(1)
    )
    return session.execute(newest).scalar_one_or_none()


def _studies(session: Session, version: str, settings: DriftSettings, now: datetime) -> list[Study]:
    begin = now - timedelta(days=settings.recent_days)
    rows = session.execute(
        select(
            AnalysisSummary.study_id,
            AnalysisSummary.finished_at,
            AnalysisSummary.scanner,
            AnalysisSummary.kernel,
            AnalysisSummary.slice_thickness_mm,
            AnalysisSummary.n_findings,
            AnalysisSummary.malignancy,
        )
        .where(
            AnalysisSummary.pipeline_version == version,
            AnalysisSummary.finished_at >= begin - timedelta(days=settings.reference_days),
            AnalysisSummary.outcome == SummaryOutcome.ANALYSED.value,
        )
        .order_by(AnalysisSummary.finished_at)
    ).tuples()
    # a later analysis of the same study takes the place of an earlier one
    latest = {
        study_id: Study(at >= begin, scanner, kernel, thickness, count, malignancy)
        for study_id, at, scanner, kernel, thickness, count, malignancy in rows
    }
    return list(latest.values())


def latest_reading(session: Session) -> Reading | None:
    """Return what was found last."""
    row = session.get(DriftReading, _ROW)
    if row is None:
        return None
    content: dict[str, Any] = row.content
    return Reading(
        row.at,
        str(content["pipeline_version"]),
        tuple(Comparison(**one) for one in content["comparisons"]),
    )
