"""The comparison of one examination with an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from inference.lungs import Lungs
from inference.priors.types import Look, PriorExamination
from inference.types import Comparison, Finding, Volume


def compare(
    volume: Volume,
    findings: Sequence[Finding],
    examined_on: date,
    prior: PriorExamination,
    *,
    lungs: Lungs | None = None,
    prior_lungs: Lungs | None = None,
    look: Look | None = None,
) -> Comparison:
    """Compare an examination with an earlier one.

    Parameters
    ----------
    volume, findings, examined_on
        The current examination.
    prior
        The earlier one.
    lungs, prior_lungs
        Lung fields, where they are known already.
    look
        How to look again for the partner of a nodule that has none, from `inference.analyse.second_look`;
        None to believe the findings.

    Returns
    -------
    Comparison
        With a reason and without pairs where the two can't be compared: not an earlier day, no lungs in one
        of them, or lungs that don't fall on each other.
    """
    raise NotImplementedError


def keep_tracking(findings: Sequence[Finding], comparison: Comparison) -> tuple[Finding, ...]:
    """Findings with the tracking UID of the prior's finding where one is matched; others keep their own.

    Parameters
    ----------
    findings
        Those that were compared.
    comparison
        Its pairs name them by their tracking ID.
    """
    kept = {
        pair.current.tracking_id: pair.current.tracking_uid
        for pair in comparison.pairs
        if pair.current is not None
    }
    return tuple(replace(one, tracking_uid=kept.get(one.tracking_id, one.tracking_uid)) for one in findings)
