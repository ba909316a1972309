"""What the pipelines were used for: how many studies, when, and how scores and counts are distributed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import Session

from pacs_node.db_feedback import AnalysisSummary, PipelineCards, SummaryOutcome
from pacs_node.summaries import monday

WEEKS = 26
SCORE_EDGES = (0.2, 0.4, 0.6, 0.8)
"""Upper edges of the bins of the highest malignancy of a study; the last bin has none."""

_S = AnalysisSummary


@dataclass(frozen=True, slots=True)
class Use:
    """What one pipeline version has done.

    Parameters
    ----------
    first_at, last_at
        When it ended a job, also one that needs no model: a report that says why there is no result.
    analysed_first_at, analysed_last_at
        When its models analysed; None where they never did.
    """

    pipeline_version: str
    analysed: int
    not_analysed: int
    failed: int
    first_at: datetime
    last_at: datetime
    analysed_first_at: datetime | None
    analysed_last_at: datetime | None


@dataclass(frozen=True, slots=True)
class Week:
    """Results of one week.

    Parameters
    ----------
    week
        Its Monday.
    analysed, refused
        Results, and reports that say why there is none; failed ones among these.
    findings
        Of all results together.
    without
        Results without a finding.
    scores
        Results by the highest malignancy of their findings, in the bins of `SCORE_EDGES`.
    """

    week: str
    analysed: int
    refused: int
    findings: int
    without: int
    scores: tuple[int, ...]

    @property
    def mean_findings(self) -> float | None:
        """Findings for each result."""
        return self.findings / self.analysed if self.analysed else None

    @property
    def refused_share(self) -> float | None:
        """Share of the studies that got no analysis."""
        return self.refused / (self.analysed + self.refused) if self.analysed + self.refused else None


def uses(session: Session) -> tuple[Use, ...]:
    """Every pipeline version that has ended a job, the latest first."""
    analysed = _S.outcome == SummaryOutcome.ANALYSED.value
    rows = session.execute(
        select(
            _S.pipeline_version,
            _count(analysed),
            _count(_S.outcome == SummaryOutcome.NOT_ANALYSED.value),
            _count(_S.outcome == SummaryOutcome.FAILED.value),
            func.min(_S.finished_at),
            func.max(_S.finished_at),
            func.min(case((analysed, _S.finished_at))),
            func.max(case((analysed, _S.finished_at))),
        )
        .group_by(_S.pipeline_version)
        .order_by(func.max(_S.finished_at).desc())
    ).tuples()
    return tuple(Use(*row) for row in rows)


def cards_of(session: Session) -> dict[str, list[dict[str, Any]]]:
    """The model cards of each pipeline version that has made a result."""
    rows = session.execute(select(PipelineCards)).scalars()
    return {row.pipeline_version: row.cards for row in rows}


def weeks(session: Session, now: datetime, count: int = WEEKS) -> tuple[Week, ...]:
    """The last weeks over all versions, the oldest first; weeks without a result are there too."""
    first = monday(now - timedelta(weeks=count - 1))
    analysed = _S.outcome == SummaryOutcome.ANALYSED.value
    edges = (None, *SCORE_EDGES, None)
    rows = session.execute(
        select(
            _S.week,
            _count(analysed),
            _count(_S.outcome.in_([SummaryOutcome.NOT_ANALYSED.value, SummaryOutcome.FAILED.value])),
            func.coalesce(func.sum(_S.n_findings), 0),
            _count(analysed & (_S.n_findings == 0)),
            *(_count(_between(low, high)) for low, high in pairwise(edges)),
        )
        .where(_S.week >= first)
        .group_by(_S.week)
    ).all()
    found = {
        str(week): Week(week, int(done), int(refused), int(findings), int(without), tuple(map(int, scores)))
        for week, done, refused, findings, without, *scores in rows
    }
    names = [monday(now - timedelta(weeks=back)) for back in range(count - 1, -1, -1)]
    return tuple(found.get(name) or Week(name, 0, 0, 0, 0, (0,) * (len(edges) - 1)) for name in names)


def refusals(session: Session, now: datetime, count: int = WEEKS) -> tuple[tuple[str, int], ...]:
    """Reason codes of the studies of the last weeks that got no analysis, the most frequent first."""
    number = func.count()
    rows = session.execute(
        select(_S.reason_code, number)
        .where(
            _S.week >= monday(now - timedelta(weeks=count - 1)),
            _S.outcome.in_([SummaryOutcome.NOT_ANALYSED.value, SummaryOutcome.FAILED.value]),
        )
        .group_by(_S.reason_code)
        .order_by(number.desc(), _S.reason_code)
    ).tuples()
    return tuple(rows)


def _count(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _between(low: float | None, high: float | None) -> ColumnElement[bool]:
    limits: list[ColumnElement[bool]] = [_S.malignancy.is_not(None)]
    limits += [] if low is None else [_S.malignancy >= low]
    limits += [] if high is None else [_S.malignancy < high]
    return and_(*limits)
