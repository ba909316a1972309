"""The comparison of one examination with an earlier one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Final

import numpy as np
from numpy.typing import NDArray

from inference.change import Change
from inference.errors import UnsuitableSeriesError
from inference.guidelines.growth import change_of, doubling
from inference.lungs import Lungs, find_lungs
from inference.priors.matching import Place, cost, match
from inference.priors.registration import NotRegisteredError, Registration, register
from inference.priors.types import Look, PriorExamination
from inference.types import Comparison, Finding, Pair, Point, SecondLook, Standing, Volume

THICK_MM: Final = 2.5
THICK_SHARE: Final = 0.5
"""On slices thicker than `THICK_MM` and than this share of a nodule its change isn't told."""
DAYS_A_MONTH: Final = 365.25 / 12

Carry = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Scan:
    """One of the two examinations: voxels, lung field and findings."""

    volume: Volume
    lungs: Lungs
    findings: tuple[Finding, ...]

    def centre(self, finding: Finding) -> NDArray[np.float64]:
        """Centre of the mask, LPS mm, shape (1, 3)."""
        index = np.argwhere(finding.mask).mean(axis=0) + np.array(finding.origin)
        return self.volume.index_to_lps(index[None])

    def shows(self, point: NDArray[np.float64], diameter_mm: float) -> bool:
        """Whether a ball around a point (1, 3), LPS mm, lies in the scan as a whole."""
        index = self.volume.lps_to_index(point)[0]
        inside = np.minimum(index, np.array(self.volume.array.shape) - 1 - index) + 0.5
        return bool((inside * np.array(self.volume.spacing_mm) >= diameter_mm / 2).all())

    @property
    def slice_mm(self) -> float:
        """The greater of slice thickness and slice distance."""
        return max(self.volume.slice_thickness_mm or 0.0, self.volume.spacing_mm[0])


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
    days = (examined_on - prior.examined_on).days
    if days <= 0:
        return Comparison(prior.reference, days, reason="The other examination is not of an earlier day.")
    try:
        current = Scan(volume, lungs or find_lungs(volume), tuple(findings))
        earlier = Scan(prior.volume, prior_lungs or find_lungs(prior.volume), prior.findings)
        registration = register(current.volume, current.lungs, earlier.volume, earlier.lungs)
    except UnsuitableSeriesError as error:
        return Comparison(prior.reference, days, reason=error.sentence)
    except NotRegisteredError as error:
        return Comparison(prior.reference, days, registration=error.quality, reason=str(error))
    pairs = pairs_of(current, earlier, registration, days, look=look)
    return Comparison(prior.reference, days, pairs, registration.quality)


def pairs_of(
    current: Scan, prior: Scan, registration: Registration, days: int, *, look: Look | None = None
) -> tuple[Pair, ...]:
    """Pair the nodules of two registered scans, so many days apart; see `compare`."""
    return tuple(_Pairing(current, prior, registration, days, look).pairs())


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
        if pair.current is not None and pair.second_look is not SecondLook.SEEN_IN_CURRENT
    }
    return tuple(replace(one, tracking_uid=kept.get(one.tracking_id, one.tracking_uid)) for one in findings)


@dataclass(frozen=True)
class _Pairing:
    """Both examinations, registered."""

    current: Scan
    prior: Scan
    registration: Registration
    days: int
    look: Look | None

    def pairs(self) -> list[Pair]:
        """All nodules of both: those of the current one in their order, then those of the prior only."""
        to_current = self.registration.to_current
        matches = match(
            [_place(one, self.current.centre(one)) for one in self.current.findings],
            [_place(one, to_current(self.prior.centre(one))) for one in self.prior.findings],
        )
        partner = dict(matches.pairs)
        rows = [
            self._both(one, self.prior.findings[partner[number]])
            if number in partner
            else self._current_only(one)
            for number, one in enumerate(self.current.findings)
        ]
        return rows + [self._prior_only(self.prior.findings[number]) for number in matches.prior_only]

    def _both(self, current: Finding, prior: Finding, looked: SecondLook = SecondLook.NONE) -> Pair:
        change, reason = self._change(current, prior)
        now, then = current.measurements.volume_mm3, prior.measurements.volume_mm3
        return Pair(
            current=replace(current, tracking_uid=prior.tracking_uid),
            prior=prior,
            standing=Standing.MATCHED,
            change=change,
            reason=reason,
            doubling=doubling(then, now, self.days),
            prior_point_mm=_point(self.registration.to_current(self.prior.centre(prior))),
            current_point_mm=_point(self.registration.to_prior(self.current.centre(current))),
            second_look=looked,
        )

    def _change(self, current: Finding, prior: Finding) -> tuple[Change | None, str]:
        now, then = (one.measurements.mean_diameter_mm for one in (current, prior))
        slice_mm = max(self.current.slice_mm, self.prior.slice_mm)
        if slice_mm > max(THICK_MM, THICK_SHARE * min(now, then)):
            return (
                None,
                f"Slices of {slice_mm:g} mm are too thick to tell the change of a nodule of this size.",
            )
        return change_of(then, now, self.days / DAYS_A_MONTH), ""

    def _current_only(self, finding: Finding) -> Pair:
        centre = self.current.centre(finding)
        place = self.registration.to_prior(centre)
        if not self.prior.shows(place, finding.measurements.mean_diameter_mm):
            return Pair(
                finding,
                None,
                Standing.OUTSIDE_PRIOR,
                reason="The prior examination doesn't show this place.",
                current_point_mm=_point(place),
            )
        seen = self._seen(self.prior, finding, place, self.registration.to_current, centre)
        if seen is not None:
            # nobody knew it then: it is called what it is called now
            seen = replace(seen, tracking_uid=finding.tracking_uid)
            return self._both(finding, seen, SecondLook.SEEN_IN_PRIOR)
        return Pair(
            finding,
            None,
            Standing.NEW,
            change=Change.NEW,
            current_point_mm=_point(place),
            second_look=self._nothing,
        )

    def _prior_only(self, finding: Finding) -> Pair:
        centre = self.prior.centre(finding)
        place = self.registration.to_current(centre)
        if not self.current.shows(place, finding.measurements.mean_diameter_mm):
            return Pair(
                None,
                finding,
                Standing.OUTSIDE_CURRENT,
                reason="This examination doesn't show this place.",
                prior_point_mm=_point(place),
            )
        seen = self._seen(self.current, finding, place, self.registration.to_prior, centre)
        if seen is not None:
            return self._both(seen, finding, SecondLook.SEEN_IN_CURRENT)
        return Pair(
            None,
            finding,
            Standing.RESOLVED,
            reason="The nodule is not seen any more.",
            prior_point_mm=_point(place),
            second_look=self._nothing,
        )

    @property
    def _nothing(self) -> SecondLook:
        return SecondLook.NONE if self.look is None else SecondLook.NOTHING

    def _seen(
        self,
        scan: Scan,
        finding: Finding,
        place: NDArray[np.float64],
        back: Carry,
        centre: NDArray[np.float64],
    ) -> Finding | None:
        """The nodule in the scan that has no finding of it, if the second look sees one that may be the same.

        What belongs to another finding of that scan is that finding.
        """
        if self.look is None:
            return None
        seen = self.look(scan.volume, scan.lungs, _point(place), finding.measurements.mean_diameter_mm)
        if seen is None or any(_share_voxels(seen, other) for other in scan.findings):
            return None
        found = _place(seen, back(scan.centre(seen)))
        return seen if np.isfinite(cost(_place(finding, centre), found)) else None


def _place(finding: Finding, centre: NDArray[np.float64]) -> Place:
    return Place(centre[0], finding.measurements.mean_diameter_mm, finding.attenuation)


def _point(point: NDArray[np.float64]) -> Point:
    x, y, z = point[0].tolist()
    return x, y, z


def _share_voxels(one: Finding, other: Finding) -> bool:
    low = np.maximum(one.origin, other.origin)
    high = np.minimum(np.add(one.origin, one.mask.shape), np.add(other.origin, other.mask.shape))
    if (high <= low).any():
        return False
    first, second = (
        f.mask[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, f.origin, strict=True))]
        for f in (one, other)
    )
    return bool((first & second).any())
