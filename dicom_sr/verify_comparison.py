"""Hold what a report says of a prior examination against the comparison that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose
from typing import Any

from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.comparison import (
    ChangeRow,
    change_code,
    change_rows,
    examined_on,
    lesion_remark,
    pair_of,
    prior_rows,
    remarks,
    unmarked,
)
from inference.types import Comparison, Finding, Pair

NUMBERS = frozenset(code.value for code in (codes.DIAMETER_CHANGE, codes.VOLUME_CHANGE, codes.DOUBLING_TIME))
"""Concepts of the numbers that a measurement group has from a comparison only."""

CODED = frozenset(code.value for code in (codes.COMPARED, codes.CHANGE))
"""Concepts of the coded items that a report has from a comparison only."""


def group_differences(group: Dataset, finding: Finding, comparison: Comparison | None) -> Iterator[str]:
    """What is wrong in the TID 1411 group of a nodule.

    Parameters
    ----------
    comparison
        None where none could be made: then the group must say nothing of one.
    """
    name = finding.tracking_id
    pair = pair_of(comparison, finding)
    numbers = {_concept(item): item for item in _all(group, *NUMBERS)}
    if comparison is None or pair is None:
        if numbers or _all(group, codes.CHANGE.value, codes.TIME_POINT.value):
            yield f"{name} has a change, but nothing was compared"
        return
    moment = _one(group, codes.TIME_POINT)
    if moment is None or moment.TextValue != examined_on(comparison).isoformat():
        yield f"the time point of {name} isn't the day of its examination"
    change = _one(group, codes.CHANGE)
    if change is None or _value(change) != change_code(pair).value:
        yield f"{name}: its change isn't {change_code(pair).meaning}"
    for row in change_rows(pair):
        yield from _number_differences(numbers.pop(row.concept.value, None), row, name, comparison)
    yield from (f"{name}: the number {concept} isn't the comparison's" for concept in numbers)


def study_differences(container: Dataset | None, comparison: Comparison | None) -> Iterator[str]:
    """What is wrong of the prior examination and of its other nodules at the study level."""
    said = [] if container is None else _all(container, codes.COMPARED.value)
    lesions = [] if container is None else _all(container, codes.CHANGE.value)
    if comparison is None:
        if said or lesions:
            yield "the report speaks of a comparison that was not made"
        return
    if len(said) != 1:
        yield "the report must say once whether a prior examination was compared"
    else:
        yield from _examination_differences(said[0], comparison)
    expected = unmarked(comparison)
    if len(lesions) != len(expected):
        yield f"the report lists {len(lesions)} nodules of the prior examination only, not {len(expected)}"
    for item, (pair, prior) in zip(lesions, expected, strict=False):
        yield from _lesion_differences(item, pair, prior, comparison)


def _lesion_differences(item: Dataset, pair: Pair, prior: Finding, comparison: Comparison) -> Iterator[str]:
    name = f"{prior.tracking_id} of the prior examination"
    if _value(item) != change_code(pair).value:
        yield f"{name}: what became of it isn't {change_code(pair).meaning}"
    uid, identifier = _one(item, codes.TRACKING_UID), _one(item, codes.TRACKING_IDENTIFIER)
    if uid is None or prior.tracking_uid != uid.UID:
        yield f"{name} has another tracking UID"
    if identifier is None or identifier.TextValue != prior.tracking_id:
        yield f"{name} has another tracking identifier"
    yield from _identity_differences(item, prior, name)
    if not _is_day(_one(item, codes.STUDY_DATE), comparison):
        yield f"{name} has another date"
    for concept, value, unit in prior_rows(prior):
        if not _is_number(_one(item, concept), value, unit):
            yield f"{name}: {concept.meaning} isn't {value} {unit.value}"
    numbers = {_concept(one): one for one in _all(item, *NUMBERS)}
    for row in change_rows(pair):
        yield from _number_differences(numbers.pop(row.concept.value, None), row, name, comparison)
    yield from (f"{name}: the number {concept} isn't the comparison's" for concept in numbers)
    remark = _one(item, codes.COMMENT)
    if remark is None or remark.TextValue != lesion_remark(pair):
        yield f"{name}: the words for what became of it differ"


def _examination_differences(item: Dataset, comparison: Comparison) -> Iterator[str]:
    answer = codes.YES if comparison.reason is None else codes.NO
    if _value(item) != answer.value:
        yield f'the report doesn\'t say "{answer.meaning}" to whether a prior examination was compared'
    if not _is_day(_one(item, codes.STUDY_DATE), comparison):
        yield "the prior examination has another date"
    for concept, uid in (
        (codes.STUDY_UID, comparison.prior.study_uid),
        (codes.SERIES_UID, comparison.prior.series_uid),
    ):
        named = _one(item, concept)
        if named is None or uid != named.UID:
            yield f"the prior examination has another {concept.meaning}"
    if not _is_offset(_one(item, codes.TEMPORAL_OFFSET), comparison.days):
        yield f"the prior examination isn't {comparison.days} d before this one"
    if [str(one.TextValue) for one in _all(item, codes.COMMENT.value)] != list(remarks(comparison)):
        yield "the report doesn't say why, or how well, the examinations were compared"


def _identity_differences(item: Dataset, prior: Finding, name: str) -> Iterator[str]:
    found, site = _one(item, codes.FINDING), _one(item, codes.FINDING_SITE)
    if found is None or _value(found) != codes.finding_code(prior).value:
        yield f"{name} is another finding"
    anatomy, side = codes.site_codes(prior.site)
    laterality = None if site is None else _one(site, codes.LATERALITY)
    said = (None if site is None else _value(site), None if laterality is None else _value(laterality))
    if said != (anatomy.value, side and side.value):
        yield f"{name} has another site"


def _number_differences(
    item: Dataset | None, row: ChangeRow, name: str, comparison: Comparison
) -> Iterator[str]:
    if not _is_number(item, row.value, row.unit):
        yield f"{name}: {row.concept.meaning} isn't {row.value} {row.unit.value}"
        return
    prior = None if item is None else _one(item, row.prior_concept)
    if (
        prior is None
        or prior.RelationshipType != "INFERRED FROM"
        or not _is_number(prior, row.prior_value, row.prior_unit)
        or not _is_day(_one(prior, codes.STUDY_DATE), comparison)
    ):
        yield (
            f"{name}: {row.concept.meaning} isn't inferred from {row.prior_value} {row.prior_unit.value} of "
            f"{comparison.prior.examined_on}"
        )


def _is_number(item: Dataset | None, value: float, unit: Code) -> bool:
    if item is None or item.ValueType != "NUM":
        return False
    measured = item.MeasuredValueSequence[0]
    same = isclose(float(measured.NumericValue), value, abs_tol=1e-6)
    return same and measured.MeasurementUnitsCodeSequence[0].CodeValue == unit.value


def _is_offset(item: Dataset | None, days: int) -> bool:
    event = None if item is None else _one(item, codes.TEMPORAL_EVENT)
    known = event is not None and _value(event) == codes.PRIOR_EXAMINATION.value
    return known and _is_number(item, days, codes.DAY)


def _is_day(item: Dataset | None, comparison: Comparison) -> bool:
    return item is not None and str(item.Date) == comparison.prior.examined_on.strftime("%Y%m%d")


def _all(item: Dataset, *concepts: str) -> list[Dataset]:
    return [child for child in item.get("ContentSequence", []) if _concept(child) in concepts]


def _one(item: Dataset, concept: Code) -> Any:
    """The only direct child with this concept name, None where there is none or more than one."""
    found = _all(item, concept.value)
    return found[0] if len(found) == 1 else None


def _concept(item: Dataset) -> str | None:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else None


def _value(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeValue)
