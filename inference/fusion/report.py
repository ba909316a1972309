"""What a report says of fusion: both probabilities, the items that were used, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from inference.certainty import Percent
from inference.fusion.fused import Fusion, ImageEvidence
from inference.fusion.table import brock_range, nodule_facts
from inference.record import RecordReading
from inference.risk import RiskEstimate
from inference.types import Finding, Observation

SYNTHETIC_STATEMENT: Final = (
    "The part of the model that reads the clinical record was trained and measured on synthetic records "
    "drawn from published risk models; its gain says nothing about patients."
)


def apply_record(
    findings: Sequence[Finding],
    evidence: Sequence[ImageEvidence | None],
    reading: RecordReading,
    fusion: Fusion,
) -> tuple[tuple[Finding, ...], tuple[Observation, ...]]:
    """Give each nodule its fused probability and say what the record was used for.

    Parameters
    ----------
    findings
        Of one scan; each with its image-only probability where CADx could judge it.
    evidence
        For each finding; None where there is no image-only probability.

    Returns
    -------
    findings, observations
        The findings with `Malignancy.fused` set, and what a report must say: the items used with their
        sources, `SYNTHETIC_STATEMENT`, and Brock's estimate for each nodule. Findings as they came and
        no observation where the record is empty.
    """
    record = reading.record
    if record.is_empty:
        return tuple(findings), ()
    fused: list[Finding] = []
    notes: list[Observation] = []
    for finding, seen in zip(findings, evidence, strict=True):
        facts = nodule_facts(finding, len(findings))
        changed = (
            finding if seen is None else replace(finding, malignancy=fusion.malignancy(seen, record, facts))
        )
        fused.append(changed)
        if (estimate := brock_range(record, facts)) is not None:
            notes.append(Observation(f"brock_2b_of_{finding.tracking_id}", _brock_words(*estimate)))
    observations = (
        Observation("record_items_used", reading.used_words()),
        Observation("record_model", SYNTHETIC_STATEMENT.removesuffix(".")),
        *notes,
    )
    return tuple(fused), observations


def _brock_words(low: RiskEstimate, high: RiskEstimate) -> str:
    first, last = (f"{Percent(one.probability):.1f} %" for one in (low, high))
    chance = first if first == last else f"{first} to {last}, by what is not known"
    return " ".join((f"{chance}.", *low.outside)).removesuffix(".")
