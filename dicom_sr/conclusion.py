"""The report in sentences, for readers whose viewer shows only text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dicom_sr.codes import feature_codes, site_words
from dicom_sr.content import observation_words
from dicom_sr.context import NOT_REVIEWED, RESEARCH_USE, OtherSeries, ResultContext
from inference.types import Finding, ModelCard, Result


def result_sentences(result: Result, context: ResultContext) -> list[str]:
    """The conclusion of an analysed series, one paragraph an item."""
    lines = [f"Automatic result. {NOT_REVIEWED} {RESEARCH_USE}"]
    if result.findings:
        count = len(result.findings)
        lines.append(f"{count} nodule{'s' if count > 1 else ''} marked automatically.")
        lines += [finding_sentence(finding) for finding in result.findings]
    else:
        lines.append(no_nodule_sentence(result.cards))
    lines += [f"{sentence}." for sentence in map(observation_words, result.observations)]
    lines += _not_assessed(result.findings)
    lines += [f"Warning: {warning}" for warning in result.warnings]
    return [*lines, *provenance_sentences(context)]


def not_analysed_sentences(reason: str, sentence: str, context: ResultContext) -> list[str]:
    """The conclusion of a series that was not analysed, one paragraph an item."""
    return [
        f"Automatic message. {NOT_REVIEWED} {RESEARCH_USE}",
        f"This series was not analysed ({reason}): {sentence}",
        "No statement is made on the presence or absence of nodules.",
        *provenance_sentences(context),
    ]


def no_nodule_sentence(cards: Sequence[ModelCard]) -> str:
    """Says that nothing was found and at which operating point, so that it can't be read as "healthy"."""
    points = "; ".join(f"{card.name}: {_parameters(card)}" for card in cards if card.parameters)
    threshold = f" Operating point: {points}." if points else ""
    return f"No nodule was found by this software.{threshold} This does not exclude nodules."


def finding_sentence(finding: Finding) -> str:
    """One nodule in words, with the values of the coded tree."""
    m = finding.measurements
    parts = [
        f"{finding.tracking_id}: {site_words(finding.site)}",
        f"{m.long_axis_mm:.1f} x {m.short_axis_mm:.1f} mm (mean {m.mean_diameter_mm:.1f} mm)",
        f"{m.volume_mm3:.1f} mm3",
        f"mean {m.mean_hu:.0f} HU",
        f"detection certainty {100 * finding.detection_probability:.1f} %",
    ]
    if finding.attenuation is not None:
        parts.insert(1, str(finding.attenuation))
    if (malignancy := finding.malignancy) is not None:
        parts.append(f"probability of cancer from the image alone {100 * malignancy.image_only:.1f} %")
        if malignancy.fused is not None:
            parts.append(f"with the clinical record {100 * malignancy.fused:.1f} %")
    for feature in finding.features:
        name, value = feature_codes(feature)
        parts.append(f"{name.meaning}: {value.meaning} (probability {100 * feature.probability:.0f} %)")
    return ", ".join(parts) + "."


def provenance_sentences(context: ResultContext) -> Iterator[str]:
    """Software, models with their weights and measured performance, input, other series, predecessors."""
    yield (
        f"Made by {context.manufacturer_model_name}, pipeline version {context.pipeline_version}, "
        f"software version {context.software_version}, {context.manufacturer}."
    )
    for card in context.cards:
        yield card_sentence(card)
    yield f"Input digest: {context.input_digest}."
    for other in context.other_series:
        yield other_series_sentence(other)
    if context.predecessors:
        uids = ", ".join(p.sop_instance_uid for p in context.predecessors)
        yield f"This result replaces an earlier one of the same series: {uids}."


def card_sentence(card: ModelCard) -> str:
    """Name, version, weights and measured performance of a model or an untrained algorithm."""
    weights = f"weights sha256 {card.weights_sha256}" if card.weights_sha256 else "no trained weights"
    parameters = f" Parameters: {_parameters(card)}." if card.parameters else ""
    measured = " ".join(card.performance) or "Its performance has not been measured."
    return f"{card.name} version {card.version} ({card.task}), {weights}.{parameters} {measured}"


def other_series_sentence(other: OtherSeries) -> str:
    """Why another series of the study was not analysed."""
    return (
        f"Other series {other.series_uid} ({other.modality or 'no modality'}): {other.code}. {other.sentence}"
    )


def _parameters(card: ModelCard) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in sorted(card.parameters.items()))


def _not_assessed(findings: Sequence[Finding]) -> Iterator[str]:
    missing = []
    if not any(f.malignancy for f in findings):
        missing.append("malignancy")
    if not any(f.features for f in findings):
        missing.append("semantic features")
    if findings and missing:
        yield f"Not assessed: {' and '.join(missing)}."
