"""What the report says of a comparison with a prior examination, as coded content.

A measurement group of a nodule gets the time point (PS3.16 TID 1502), the change, and numbers of the change,
each inferred from the prior's value (TID 300, INFERRED FROM) with the prior's date as its property. The prior
examination itself, and nodules that are not there any more, stand beside the other statements on the study.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import highdicom as hd
from highdicom.sr import CodeContentItem, ContentSequence, NumContentItem, TextContentItem
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom.sr.coding import Code

from dicom_sr import codes
from inference.change import GrowthClass
from inference.types import Comparison, Finding, Pair, Result, SecondLook, Standing

_PROPERTY = Relation.HAS_PROPERTIES


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One number of a change and the prior's value that it was computed from.

    Parameters
    ----------
    concept, value, unit
        Of the change.
    prior_concept, prior_value, prior_unit
        Of what was measured in the prior examination.
    """

    concept: Code
    value: float
    unit: Code
    prior_concept: Code
    prior_value: float
    prior_unit: Code


def examined_on(comparison: Comparison) -> date:
    """Day of the current examination."""
    return comparison.prior.examined_on + timedelta(days=comparison.days)


def compared(result: Result) -> Comparison | None:
    """The comparison of a result if one could be made."""
    found = result.comparison
    return None if found is None or found.reason is not None else found


def pair_of(comparison: Comparison | None, finding: Finding) -> Pair | None:
    """The pair of a nodule of the current examination; None without a comparison.

    Raises
    ------
    ValueError
        There is a comparison, but it leaves this nodule out.
    """
    if comparison is None:
        return None
    for pair in comparison.pairs:
        if pair.current is not None and pair.current.tracking_uid == finding.tracking_uid:
            return pair
    raise ValueError(f"the comparison says nothing of {finding.tracking_id}")


def unmarked(comparison: Comparison | None) -> list[tuple[Pair, Finding]]:
    """Nodules of the prior examination that the result has no finding for, each with its pair.

    They are not there any more, or out of sight, or were seen again only when their place was looked at.
    """
    pairs = () if comparison is None else comparison.pairs
    seen_late = SecondLook.SEEN_IN_CURRENT
    return [
        (pair, pair.prior)
        for pair in pairs
        if pair.prior is not None and (pair.current is None or pair.second_look is seen_late)
    ]


def change_code(pair: Pair) -> Code:
    """What became of a nodule."""
    if pair.standing is Standing.RESOLVED:
        return codes.RESOLVED
    if pair.change is None:
        return codes.UNDETERMINED
    return codes.CHANGES[pair.change]


def change_words(pair: Pair) -> str:
    """What became of a nodule, e.g. ``growing`` or ``not seen any more``."""
    if pair.change is not None:
        return pair.change.value
    return "change not known" if pair.standing is Standing.MATCHED else str(pair.standing)


def change_rows(pair: Pair) -> list[ChangeRow]:
    """Numbers of the change of a nodule that both examinations show: diameter, volume, doubling time.

    The doubling time only where the volume has grown, see `doubling_days`.
    """
    if pair.current is None or pair.prior is None:
        return []
    now, before = pair.current.measurements, pair.prior.measurements
    earlier_mm, earlier_mm3 = round(before.mean_diameter_mm, 1), round(before.volume_mm3, 1)
    larger_mm = round(round(now.mean_diameter_mm, 1) - earlier_mm, 1)
    diameter = (codes.MEAN_DIAMETER, earlier_mm, codes.MM)
    volume = (codes.VOLUME, earlier_mm3, codes.MM3)
    rows = [ChangeRow(codes.DIAMETER_CHANGE, larger_mm, codes.MM, *diameter)]
    if pair.doubling is not None:
        percent = round(100 * pair.doubling.change, 1)
        rows.append(ChangeRow(codes.VOLUME_CHANGE, percent, codes.PERCENT, *volume))
        if (days := doubling_days(pair)) is not None:
            rows.append(ChangeRow(codes.DOUBLING_TIME, days, codes.DAY, *volume))
    return rows


def doubling_days(pair: Pair) -> float | None:
    """Volume doubling time, to whole days; None where the volume has not grown.

    Below NELSON's quarter of volume it would be a number of the measurement's error.
    """
    if pair.doubling is None or pair.doubling.growth is GrowthClass.NO_GROWTH:
        return None
    return float(round(pair.doubling.days))


def volume_words(pair: Pair) -> str | None:
    """What NELSON's protocol makes of a grown volume; None where it has not grown."""
    if pair.doubling is None or pair.doubling.growth is GrowthClass.NO_GROWTH:
        return None
    words: str = pair.doubling.growth.value
    return words


def volume_percent(change: float) -> int:
    """A relative change of volume for reading, whole percent; never a negative zero."""
    return round(100 * change)


def open_reason(pair: Pair) -> str:
    """Why the change of a nodule that both examinations show is not known; else empty."""
    return pair.reason if pair.standing is Standing.MATCHED and pair.change is None else ""


@dataclass(frozen=True, slots=True)
class SincePrior:
    """What a measurement group says of its nodule's change.

    Parameters
    ----------
    time_point
        When the nodule was measured.
    change
        What became of it.
    measurements
        The change in numbers.
    """

    time_point: hd.sr.TimePointContext
    change: hd.sr.QualitativeEvaluation
    measurements: tuple[hd.sr.Measurement, ...]


def since_prior(comparison: Comparison | None, finding: Finding) -> SincePrior | None:
    """The items of a nodule's measurement group; None without a comparison."""
    pair = pair_of(comparison, finding)
    if comparison is None or pair is None:
        return None
    # without the offset in days: PixelMed takes it for a measurement; it stands at the study level
    time_point = hd.sr.TimePointContext(examined_on(comparison).isoformat())
    day = comparison.prior.examined_on
    return SincePrior(
        time_point,
        hd.sr.QualitativeEvaluation(codes.CHANGE, change_code(pair)),
        tuple(_measurement(row, day) for row in change_rows(pair)),
    )


def _measurement(row: ChangeRow, day: date) -> hd.sr.Measurement:
    measurement = hd.sr.Measurement(name=row.concept, value=row.value, unit=row.unit)
    if "ContentSequence" not in measurement[0]:
        measurement[0].ContentSequence = ContentSequence()
    measurement[0].ContentSequence.append(_inferred_from(row, day))
    return measurement


def _change(row: ChangeRow, day: date) -> Any:
    item = NumContentItem(row.concept, row.value, row.unit, relationship_type=_PROPERTY)
    item.ContentSequence = ContentSequence([_inferred_from(row, day)])
    return item


def _inferred_from(row: ChangeRow, day: date) -> Any:
    """The prior's value with its date."""
    prior = NumContentItem(
        row.prior_concept, row.prior_value, row.prior_unit, relationship_type=Relation.INFERRED_FROM
    )
    prior.ContentSequence = ContentSequence([_date(day)])
    return prior


def study_items(comparison: Comparison | None) -> list[Any]:
    """The prior examination, and each nodule that only it has as a finding, for the study level."""
    if comparison is None:
        return []
    return [_examination(comparison), *(_lesion(comparison, *row) for row in unmarked(comparison))]


def _examination(comparison: Comparison) -> Any:
    """Whether it was compared, with date, study, series, distance in time, and why not or how well."""
    answer = codes.YES if comparison.reason is None else codes.NO
    item = CodeContentItem(codes.COMPARED, answer, Relation.CONTAINS)
    days = NumContentItem(codes.TEMPORAL_OFFSET, comparison.days, codes.DAY, relationship_type=_PROPERTY)
    days.ContentSequence = ContentSequence(
        [CodeContentItem(codes.TEMPORAL_EVENT, codes.PRIOR_EXAMINATION, Relation.HAS_CONCEPT_MOD)]
    )
    item.ContentSequence = ContentSequence(
        [
            _date(comparison.prior.examined_on),
            hd.sr.UIDRefContentItem(codes.STUDY_UID, comparison.prior.study_uid, _PROPERTY),
            hd.sr.UIDRefContentItem(codes.SERIES_UID, comparison.prior.series_uid, _PROPERTY),
            days,
            *(TextContentItem(codes.COMMENT, words, _PROPERTY) for words in remarks(comparison)),
        ]
    )
    return item


def remarks(comparison: Comparison) -> Iterator[str]:
    """Why there is no comparison, or how well the two examinations lie on each other."""
    if comparison.reason is not None:
        yield comparison.reason
    elif (quality := comparison.registration) is not None:
        yield (
            f"Lungs registered: overlap {quality.overlap:.3f}, correlation {quality.correlation:.3f}; the "
            f"prior examination shows {100 * quality.common_share:.0f} % of these lungs."
        )


def _lesion(comparison: Comparison, pair: Pair, prior: Finding) -> Any:
    """A nodule that is a finding of the prior only: what became of it, who it was, and how large."""
    item = CodeContentItem(codes.CHANGE, change_code(pair), Relation.CONTAINS)
    anatomy, side = codes.site_codes(prior.site)
    site = CodeContentItem(codes.FINDING_SITE, anatomy, _PROPERTY)
    if side is not None:
        site.ContentSequence = ContentSequence(
            [CodeContentItem(codes.LATERALITY, side, Relation.HAS_CONCEPT_MOD)]
        )
    item.ContentSequence = ContentSequence(
        [
            _date(comparison.prior.examined_on),
            TextContentItem(codes.TRACKING_IDENTIFIER, prior.tracking_id, _PROPERTY),
            hd.sr.UIDRefContentItem(codes.TRACKING_UID, prior.tracking_uid, _PROPERTY),
            CodeContentItem(codes.FINDING, codes.finding_code(prior), _PROPERTY),
            site,
            *(NumContentItem(*row, relationship_type=_PROPERTY) for row in prior_rows(prior)),
            *(_change(row, comparison.prior.examined_on) for row in change_rows(pair)),
            TextContentItem(codes.COMMENT, lesion_remark(pair), _PROPERTY),
        ]
    )
    return item


def prior_rows(prior: Finding) -> list[tuple[Code, float, Code]]:
    """Concept, value and unit of what is said of a nodule that only the prior examination shows."""
    m = prior.measurements
    return [
        (codes.MEAN_DIAMETER, round(m.mean_diameter_mm, 1), codes.MM),
        (codes.VOLUME, round(m.volume_mm3, 1), codes.MM3),
    ]


def lesion_remark(pair: Pair) -> str:
    """What became of a nodule that the result has no finding for, in words."""
    late = pair.second_look is SecondLook.SEEN_IN_CURRENT
    return " ".join(
        f"{capital(words)}." for words in (pair.standing, pair.second_look if late else "") if words
    )


def capital(words: str) -> str:
    """With a capital at its beginning, and else as it is."""
    return words[:1].upper() + words[1:]


def _date(day: date) -> Any:
    """Not as observation context: below a number Enhanced SR has no such relation (PS3.3 A.35.2)."""
    return hd.sr.DateContentItem(codes.STUDY_DATE, day, _PROPERTY)
