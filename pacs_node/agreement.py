"""How far radiologists agree with the results: by week and pipeline version, with intervals.

Only the verdict that holds counts, in the week in which it was given. Whoever judges chooses what to judge,
so these are figures of the judged studies, not of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import sqrt
from statistics import median
from typing import Any

import numpy as np
from scipy.special import bdtr, gammaincinv
from sqlalchemy import ColumnElement, func, literal, select
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
    when = Verdict.week if weekly else literal("")
    chosen = list(_standing())
    if since is not None:
        chosen.append(Verdict.week >= monday(since))
    key = (when.label("week"), Verdict.pipeline_version)
    by = (Verdict.week, Verdict.pipeline_version) if weekly else (Verdict.pipeline_version,)
    counted = select(*key, Verdict.kind, func.count()).where(*chosen).group_by(*by, Verdict.kind)
    judged = select(*key, func.count(Verdict.study_id.distinct())).where(*chosen).group_by(*by)
    edits = select(*key, Verdict.changes).where(*chosen, Verdict.kind == VerdictKind.EDITED.value)
    counts: dict[tuple[str, str], dict[VerdictKind, int]] = {}
    for week, version, kind, count in session.execute(counted).tuples():
        counts.setdefault((week, version), {})[VerdictKind(kind)] = count
    studies = {(week, version): count for week, version, count in session.execute(judged).tuples()}
    dice: dict[tuple[str, str], list[float]] = {}
    for week, version, changes in session.execute(edits).tuples():
        if isinstance(value := changes.get("dice"), float | int):
            dice.setdefault((week, version), []).append(float(value))
    return [
        _of_group(place, counts[place], studies[place], dice.get(place, ()))
        for place in sorted(counts, reverse=True)
    ]


def _of_group(
    key: tuple[str, str], counts: Mapping[VerdictKind, int], studies: int, dice: Sequence[float]
) -> Agreement:
    judged = sum(counts.get(kind, 0) for kind in _ON_FINDINGS)
    accepted, rejected, edited = (wilson(counts.get(kind, 0), judged) for kind in _ON_FINDINGS)
    return Agreement(
        week=key[0],
        pipeline_version=key[1],
        studies=studies,
        findings=judged,
        accepted=accepted,
        rejected=rejected,
        edited=edited,
        missed=counts.get(VerdictKind.MISSED, 0),
        false_positives=poisson_rate(counts.get(VerdictKind.REJECTED, 0), studies),
        dice=median_interval(dice),
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


def verdict_rows(session: Session, after: int = 0, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Every verdict with its study, the oldest first; without free text, which may name somebody.

    Parameters
    ----------
    after
        Only verdicts with a higher number.
    limit
        At most so many; None for all.
    """
    holding = set(session.scalars(select(Verdict.id).where(*_standing())))
    query = select(Verdict, Study.study_uid).join(Study, Verdict.study_id == Study.id)
    rows = session.execute(query.where(Verdict.id > after).order_by(Verdict.id).limit(limit)).tuples()
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
