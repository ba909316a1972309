"""The comparison with a prior examination as ``result.json`` has it.

::

    comparison  null | {
        prior         {study_uid, series_uid, date}
        date          of this examination
        days          between the two
        reason        null | why they could not be compared; then there are no pairs
        registration  null | {overlap, correlation, common_share}
        sentences     [sentence]  with what it was compared, or why not
        impression    [sentence]  what is new, larger, smaller, gone
        pairs         [{standing, change, words, reason, second_look, current, prior, diameter_change_mm,
                        volume_change, volume_words, doubling_days, sentence, picture,
                        stacks: {current, prior}}]
    }

`current` and `prior` are null or {number, tracking_uid, tracking_id, site, attenuation, measurements}:
`number` is that of the finding in this result, null where it has none for it. `change` is null where it isn't
known. `volume_change` is relative: 0.25 is a quarter more. Where it is at least that, `volume_words` is what
NELSON's thresholds make of it, and `doubling_days` the doubling time; else both are null. `picture` and the
stacks' `file` name files beside ``result.json``; a stack is laid out like that of a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from dicom_sr.codes import site_words
from dicom_sr.comparison import (
    change_words,
    compared,
    doubling_days,
    examined_on,
    open_reason,
    pair_of,
    volume_words,
)
from dicom_sr.conclusion import change_sentences, prior_sentence, unmarked_sentences
from dicom_sr.pairimages import PairImages
from inference.change import Change
from inference.types import Comparison, Finding, Pair, Result

_UNREMARKABLE = (Change.STABLE, None)


def comparison_json(result: Result, pictures: Sequence[PairImages] = ()) -> dict[str, Any] | None:
    """Describe the comparison of a result; see the module for the layout.

    Parameters
    ----------
    pictures
        In the order of the pairs, or none.
    """
    comparison = result.comparison
    if comparison is None:
        return None
    prior = comparison.prior
    quality = comparison.registration
    drawn: Sequence[PairImages | None] = pictures or [None] * len(comparison.pairs)
    numbers = {one.tracking_uid: number for number, one in enumerate(result.findings, start=1)}
    return {
        "prior": {
            "study_uid": prior.study_uid,
            "series_uid": prior.series_uid,
            "date": prior.examined_on.isoformat(),
        },
        "date": examined_on(comparison).isoformat(),
        "days": comparison.days,
        "reason": comparison.reason,
        "registration": None if quality is None else _rounded(asdict(quality)),
        "sentences": [prior_sentence(comparison)],
        "impression": list(_impression(comparison)),
        "pairs": [
            _pair(pair, comparison, numbers, images)
            for pair, images in zip(comparison.pairs, drawn, strict=True)
        ],
    }


def finding_comparison(result: Result, finding: Finding) -> dict[str, Any] | None:
    """What became of one finding, in a sentence; None without a comparison."""
    comparison = compared(result)
    pair = pair_of(comparison, finding)
    return None if comparison is None or pair is None else {"sentence": _sentence(pair, comparison)}


def _sentence(pair: Pair, comparison: Comparison) -> str:
    days = (comparison.prior.examined_on, examined_on(comparison))
    if pair.prior is not None and pair.current is None:
        return " ".join(unmarked_sentences(pair, pair.prior, *days))
    return " ".join(change_sentences(pair, *days))


def _impression(comparison: Comparison) -> Iterator[str]:
    for pair in comparison.pairs:
        if pair.current is None:
            yield _sentence(pair, comparison)
        elif pair.change not in _UNREMARKABLE:
            new = pair.change is Change.NEW
            words = f"new since {comparison.prior.examined_on}." if new else _sentence(pair, comparison)
            yield f"{pair.current.tracking_id}: {words}"


def _pair(
    pair: Pair, comparison: Comparison, numbers: dict[str, int], images: PairImages | None
) -> dict[str, Any]:
    return {
        "standing": str(pair.standing),
        "change": None if pair.change is None else pair.change.value,
        "words": change_words(pair),
        "reason": open_reason(pair),
        "second_look": str(pair.second_look),
        "current": _side(pair.current, numbers),
        "prior": _side(pair.prior, {}),
        "diameter_change_mm": _larger_mm(pair),
        "volume_change": None if pair.doubling is None else round(pair.doubling.change, 4),
        "volume_words": volume_words(pair),
        "doubling_days": doubling_days(pair),
        "sentence": _sentence(pair, comparison),
        "picture": None if images is None else images.picture.name,
        "stacks": {
            "current": None if images is None or images.current is None else images.current.describe(),
            "prior": None if images is None or images.prior is None else images.prior.describe(),
        },
    }


def _larger_mm(pair: Pair) -> float | None:
    if pair.current is None or pair.prior is None:
        return None
    now, before = pair.current.measurements, pair.prior.measurements
    return round(round(now.mean_diameter_mm, 1) - round(before.mean_diameter_mm, 1), 1)


def _side(finding: Finding | None, numbers: dict[str, int]) -> dict[str, Any] | None:
    if finding is None:
        return None
    return {
        "number": numbers.get(finding.tracking_uid),
        "tracking_uid": finding.tracking_uid,
        "tracking_id": finding.tracking_id,
        "site": site_words(finding.site),
        "attenuation": finding.attenuation and str(finding.attenuation),
        "measurements": _rounded(asdict(finding.measurements)),
    }


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in numbers.items()}
