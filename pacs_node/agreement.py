"""How far radiologists agree with the results: by week and pipeline version, with intervals.

Only the verdict that holds counts, in the week in which it was given. Whoever judges chooses what to judge,
so these are figures of the judged studies, not of all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import sqrt
from statistics import median
from typing import Any

import numpy as np
from scipy.special import bdtr, gammaincinv
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from pacs_node.db import Study
from pacs_node.db_feedback import Verdict, VerdictKind
from pacs_node.summaries import monday

_NORMAL_95 = 1.959963984540054
_ON_FINDINGS = (VerdictKind.ACCEPTED, VerdictKind.REJECTED, VerdictKind.EDITED)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval and what it was counted from; None where it isn't defined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was said of the findings of one pipeline version in one week, or in all.

    Parameters
    ----------
    week
        Its Monday; empty: all weeks.
    studies
        Studies with a verdict.
    findings
        Findings with a verdict.
    accepted, rejected, edited
        Shares of the judged findings.
    missed
        Nodules that were not found.
    false_positives
        Rejected findings for each study that was judged.
    dice
        Median Dice of edited masks with ours.
    """

    week: str
    pipeline_version: str
    studies: int
    findings: int
    accepted: Estimate
    rejected: Estimate
    edited: Estimate
    missed: int
    false_positives: Estimate
    dice: Estimate


def wilson(hits: int, total: int) -> Estimate:
    """A share with its interval (Wilson, J Am Stat Assoc 22:209-212, 1927)."""
    if not total:
        return Estimate(None, None, None, 0)
    share, z = hits / total, _NORMAL_95**2 / total
    centre = (share + z / 2) / (1 + z)
    half = sqrt(z) * sqrt(share * (1 - share) + z / 4) / (1 + z)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), total)


def poisson_rate(count: int, units: int) -> Estimate:
    """Events for each unit with the exact interval (Garwood, Biometrika 28:437-442, 1936)."""
    if not units:
        return Estimate(None, None, None, 0)
    low = float(gammaincinv(count, 0.025)) if count else 0.0
    return Estimate(count / units, low / units, float(gammaincinv(count + 1, 0.975)) / units, units)


def median_interval(values: Sequence[float]) -> Estimate:
    """The median with an interval of order statistics; no interval with fewer than six values."""
    if not values:
        return Estimate(None, None, None, 0)
    ranked, n = sorted(values), len(values)
    # so many of the smallest and of the largest lie outside in at most 2.5 % of samples each
    outside = int(np.count_nonzero(bdtr(np.arange(n), n, 0.5) <= 0.025))
    low, high = (ranked[outside - 1], ranked[n - outside]) if outside else (None, None)
    return Estimate(median(ranked), low, high, n)


def agreement(session: Session, *, since: datetime | None = None, weekly: bool = True) -> list[Agreement]:
    """Ask for the agreement of each version; the newest week first.

    Parameters
    ----------
    since
        Only verdicts of the weeks from this time on.
    weekly
        Otherwise one row for each version.
    """
    query = select(
        Verdict.week, Verdict.pipeline_version, Verdict.kind, Verdict.study_id, Verdict.changes
    ).where(*_standing())
    if since is not None:
        query = query.where(Verdict.week >= monday(since))
    groups: defaultdict[tuple[str, str], list[tuple[VerdictKind, int, dict[str, object]]]] = defaultdict(list)
    for week, version, kind, study_id, changes in session.execute(query).tuples():
        groups[week if weekly else "", version].append((VerdictKind(kind), study_id, changes))
    return [_of_group(*key, groups[key]) for key in sorted(groups, reverse=True)]


def _of_group(
    week: str, version: str, rows: Iterable[tuple[VerdictKind, int, dict[str, object]]]
) -> Agreement:
    rows = list(rows)
    counts = {kind: sum(row[0] is kind for row in rows) for kind in VerdictKind}
    studies = len({study_id for _, study_id, _ in rows})
    judged = sum(counts[kind] for kind in _ON_FINDINGS)
    dice = [changes.get("dice") for kind, _, changes in rows if kind is VerdictKind.EDITED]
    return Agreement(
        week=week,
        pipeline_version=version,
        studies=studies,
        findings=judged,
        accepted=wilson(counts[VerdictKind.ACCEPTED], judged),
        rejected=wilson(counts[VerdictKind.REJECTED], judged),
        edited=wilson(counts[VerdictKind.EDITED], judged),
        missed=counts[VerdictKind.MISSED],
        false_positives=poisson_rate(counts[VerdictKind.REJECTED], studies),
        dice=median_interval([value for value in dice if isinstance(value, float | int)]),
    )


def _standing() -> tuple[ColumnElement[bool], ...]:
    """Of verdicts that no later one of the same finding has replaced."""
    newest = select(func.max(Verdict.id)).group_by(Verdict.study_id, Verdict.tracking_uid)
    return Verdict.id.in_(newest), Verdict.kind != VerdictKind.WITHDRAWN.value


def given_counts(session: Session) -> dict[tuple[str, str], int]:
    """How many verdicts were ever given, by kind and source."""
    rows = session.execute(
        select(Verdict.kind, Verdict.source, func.count()).group_by(Verdict.kind, Verdict.source)
    ).tuples()
    return {(kind, source): count for kind, source, count in rows}


def verdict_rows(session: Session) -> Iterator[dict[str, Any]]:
    """Every verdict with its study, the oldest first; without free text, which may name somebody."""
    holding = set(session.scalars(select(Verdict.id).where(*_standing())))
    rows = session.execute(
        select(Verdict, Study.study_uid).join(Study, Verdict.study_id == Study.id).order_by(Verdict.id)
    ).tuples()
    for row, study_uid in rows:
        yield {
            "id": row.id,
            "at": row.at.isoformat(timespec="seconds"),
            "study_uid": study_uid,
            "job": row.job_id,
            "pipeline_version": row.pipeline_version,
            "tracking_uid": row.tracking_uid,
            "kind": row.kind,
            "reason": row.reason or "",
            "changes": row.changes,
            "source": row.source,
            "actor": row.actor,
            "sop_instance_uid": row.sop_instance_uid or "",
            "holds": row.id in holding,
        }
