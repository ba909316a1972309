"""A drawn report, and what its content tree says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydicom import Dataset

from dicom_sr.context import ResultContext
from dicom_sr.report import build_report
from dicom_sr.seg import build_seg
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_context, make_result, make_volume, without_pixels

CONTEXT = make_context()
HEADERS = without_pixels(make_ct_series(16))
VOLUME = make_volume(make_ct_series(16))


def report_on(
    findings: tuple[Any, ...],
    context: ResultContext = CONTEXT,
    headers: list[Dataset] = HEADERS,
    **changes: Any,
) -> Dataset:
    volume = VOLUME if headers is HEADERS else changes.pop("volume")
    seg = build_seg(volume, findings, headers, context) if findings else None
    return build_report(volume, make_result(volume, findings, context, **changes), seg, headers, context)


def walk(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from walk(child)


def named(item: Dataset, value: str) -> list[Dataset]:
    return [
        c
        for c in walk(item)
        if c.get("ConceptNameCodeSequence") and c.ConceptNameCodeSequence[0].CodeValue == value
    ]


def numbers(group: Dataset) -> dict[str, tuple[str, str]]:
    return {
        item.ConceptNameCodeSequence[0].CodeMeaning: (
            str(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    }


def conclusion(report: Dataset) -> str:
    (item,) = named(report, "121077")
    return str(item.TextValue)


def comments(container: Dataset) -> list[str]:
    return [str(item.TextValue) for item in named(container, "121106")]


def coded(item: Dataset, concept: str) -> list[str]:
    return [c.ConceptCodeSequence[0].CodeValue for c in named(item, concept)]
