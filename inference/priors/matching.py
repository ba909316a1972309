"""Which nodules of two examinations are the same: the one-to-one assignment of least cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from inference.types import Attenuation

REACH_MM: Final = 7.0
"""Two nodules farther apart after registration than this and half the larger diameter aren't the same."""
MOST_REACH_MM: Final = 16.0
MOST_RATIO: Final = 4.0
"""Nodules whose diameters differ more than so many times aren't the same."""
_SIZE_WEIGHT: Final = 0.5
_KIND_WEIGHT: Final = 0.15
#: of leaving one nodule without a partner
_ALONE: Final = 0.7
_FORBIDDEN: Final = 1e6


@dataclass(frozen=True, slots=True)
class Place:
    """What matching knows of a nodule.

    Parameters
    ----------
    centre_mm
        LPS mm, (3,), of both examinations in the space of the current one.
    diameter_mm
        Mean of long and short axis.
    """

    centre_mm: NDArray[np.float64]
    diameter_mm: float
    attenuation: Attenuation | None = None


@dataclass(frozen=True, slots=True)
class Matches:
    """Indices into the nodules of the current and of the prior examination.

    Parameters
    ----------
    pairs
        (current, prior), in the order of the current ones.
    """

    pairs: tuple[tuple[int, int], ...]
    current_only: tuple[int, ...]
    prior_only: tuple[int, ...]


def reach_mm(one: float, other: float) -> float:
    """How far apart the centres of nodules of these diameters (mm) may lie after registration."""
    return min(REACH_MM + max(one, other) / 2, MOST_REACH_MM)


def cost(current: Place, prior: Place) -> float:
    """How unlike two nodules are: about 0 for the same one; infinite where they can't be the same."""
    apart = float(np.linalg.norm(current.centre_mm - prior.centre_mm))
    ratio = abs(np.log(current.diameter_mm / prior.diameter_mm)) / np.log(MOST_RATIO)
    limit = reach_mm(current.diameter_mm, prior.diameter_mm)
    if apart > limit or ratio > 1:
        return float("inf")
    differ = None not in (current.attenuation, prior.attenuation) and current.attenuation != prior.attenuation
    return float(apart / limit + _SIZE_WEIGHT * ratio + (_KIND_WEIGHT if differ else 0.0))


def match(current: Sequence[Place], prior: Sequence[Place]) -> Matches:
    """Pair nodules by distance, size and attenuation; none is forced to have a partner.

    Returns
    -------
    Matches
        Of least total cost, where a nodule without a partner costs too.
    """
    n, m = len(current), len(prior)
    costs = np.zeros((n + m, n + m))
    costs[:n, m:] = np.where(np.eye(n, dtype=bool), _ALONE, _FORBIDDEN)
    costs[n:, :m] = np.where(np.eye(m, dtype=bool), _ALONE, _FORBIDDEN)
    for i, one in enumerate(current):
        for j, other in enumerate(prior):
            costs[i, j] = min(cost(one, other), _FORBIDDEN)
    rows, columns = linear_sum_assignment(costs)
    pairs = tuple((int(r), int(c)) for r, c in zip(rows, columns, strict=True) if r < n and c < m)
    taken, taken_prior = {r for r, _ in pairs}, {c for _, c in pairs}
    return Matches(
        pairs,
        tuple(i for i in range(n) if i not in taken),
        tuple(j for j in range(m) if j not in taken_prior),
    )
