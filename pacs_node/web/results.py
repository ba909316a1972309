"""Reads ``result.json`` for the page. It may be of another version, cut off or gone: nothing here raises."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from inference.certainty import CERTAIN, NOT_CERTAIN
from pacs_node.web.comparison import ComparisonView, read_comparison
from pacs_node.web.fields import mapping, mappings, number, sequence, text, texts, whole
from pacs_node.web.slices import Stack, read_stack

_LARGEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sentences that exclude each other, in several wordings each, and what the image says of them.

    Parameters
    ----------
    share
        How near the image is to the positive sentences against the negative ones, 0..1.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    share: float


@dataclass(frozen=True, slots=True)
class Feature:
    """A semantic feature in words, with the probability of its likeliest value (0..1), and its origin."""

    name: str
    meaning: str
    probability: float | None
    pair: Pair | None = None


@dataclass(frozen=True, slots=True)
class FindingLine:
    """One nodule; None where the file doesn't say. Lengths in mm, volume in mm3, probabilities 0..1.

    Parameters
    ----------
    likeness
        Of the place to the sentences of each structure: ``nodule``, ``vessel`` ...; together 1.
    """

    number: str
    tracking_id: str
    site: str
    attenuation: str
    long_axis_mm: float | None
    short_axis_mm: float | None
    mean_diameter_mm: float | None
    volume_mm3: float | None
    mean_hu: float | None
    detection_probability: float | None
    malignancy: float | None
    malignancy_fused: float | None
    features: tuple[Feature, ...]
    likeness: tuple[tuple[str, float], ...]
    key_image: str
    stack: Stack | None


@dataclass(frozen=True, slots=True)
class Observation:
    """A finding of the whole study or of one structure."""

    name: str
    value: str
    probability: float | None
    title: str = ""


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model that took part; `weights_sha256` is empty for an algorithm without trained weights."""

    name: str
    version: str
    task: str
    summary: str
    intended_use: str
    limits: str
    weights_sha256: str
    performance: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResultSummary:
    """What the page shows of a result."""

    status: str
    reason: str
    findings: tuple[FindingLine, ...]
    observations: tuple[Observation, ...]
    models: tuple[ModelLine, ...]
    warnings: tuple[str, ...]
    scan: tuple[tuple[str, str], ...]
    provenance: tuple[tuple[str, str], ...]
    timings: tuple[tuple[str, float], ...]
    n_slices: int | None
    comparison: ComparisonView | None

    @property
    def analysed(self) -> bool:
        """Whether it is the result of an analysis; otherwise it says why there is none."""
        return self.status == "analysed"

    @property
    def count(self) -> str:
        """The number of findings in words."""
        return counted(len(self.findings))


def counted(findings: int) -> str:
    """A number of findings in words."""
    return "no finding" if not findings else f"{findings} finding" + ("s" if findings > 1 else "")


def read_result(path: Path) -> ResultSummary | None:
    """Read a result; None if it is gone or isn't one."""
    try:
        state = path.stat()
        return _read(path, state.st_mtime_ns, state.st_size)
    except OSError:
        return None


@lru_cache(maxsize=512)
def _read(path: Path, _changed_ns: int, size: int) -> ResultSummary | None:
    if size > _LARGEST_BYTES:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not text(found, "status"):
        return None
    reason = mapping(found, "reason")
    return ResultSummary(
        status=text(found, "status"),
        reason=": ".join(part for part in (text(reason, "code"), text(reason, "sentence")) if part),
        findings=tuple(
            _finding(item, mappings(found, "sentence_pairs")) for item in mappings(found, "findings")
        ),
        observations=tuple(
            Observation(
                text(item, "name"), text(item, "value"), number(item, "probability"), text(item, "title")
            )
            for item in mappings(found, "observations")
        ),
        models=tuple(_model(item) for item in mappings(found, "models")),
        warnings=texts(found, "warnings"),
        scan=_scan(mapping(mapping(found, "series"), "analysed")),
        provenance=_provenance(mapping(found, "provenance")),
        timings=_timings(mapping(found, "timings_s")),
        n_slices=whole(sequence(mapping(mapping(found, "series"), "analysed"), "shape"), 0),
        comparison=read_comparison(mapping(found, "comparison")),
    )


def _finding(item: dict[str, Any], sentences: Sequence[dict[str, Any]]) -> FindingLine:
    measured = mapping(item, "measurements")
    malignancy = mapping(item, "malignancy")
    pairs = _pairs(item, sentences)
    return FindingLine(
        number=text(item, "number"),
        tracking_id=text(item, "tracking_id"),
        site=text(mapping(item, "site"), "words"),
        attenuation=_kind(item),
        long_axis_mm=number(measured, "long_axis_mm"),
        short_axis_mm=number(measured, "short_axis_mm"),
        mean_diameter_mm=number(measured, "mean_diameter_mm"),
        volume_mm3=number(measured, "volume_mm3"),
        mean_hu=number(measured, "mean_hu"),
        detection_probability=number(item, "detection_probability"),
        malignancy=number(malignancy, "image_only"),
        malignancy_fused=number(malignancy, "fused"),
        features=tuple(
            Feature(
                text(feature, "name").replace("_", " "),
                _meaning(feature),
                number(feature, "probability"),
                pairs.get(text(feature, "name")),
            )
            for feature in mappings(item, "features")
        ),
        likeness=tuple(_descriptors(item, "structure sentence").items()),
        key_image=text(item, "key_image"),
        stack=read_stack(mapping(item, "stack")),
    )


def _meaning(feature: dict[str, Any]) -> str:
    chance = number(feature, "probability")
    if chance is not None and chance < CERTAIN:
        return NOT_CERTAIN
    return text(feature, "meaning") or text(feature, "value")


def _kind(item: dict[str, Any]) -> str:
    doubt = text(mapping(item, "attenuation_doubt"), "words")
    return text(item, "attenuation") or (f"{NOT_CERTAIN} ({doubt})" if doubt else "")


def _descriptors(item: dict[str, Any], source: str) -> dict[str, float]:
    values = {
        text(row, "name"): number(row, "value")
        for row in mappings(item, "descriptors")
        if text(row, "source") == source
    }
    return {name: value for name, value in values.items() if value is not None}


def _pairs(item: dict[str, Any], sentences: Sequence[dict[str, Any]]) -> dict[str, Pair]:
    shares = _descriptors(item, "sentence pair")
    return {
        feature: Pair(texts(row, "positive"), texts(row, "negative"), shares[feature])
        for row in sentences
        if (feature := text(row, "feature")) in shares and row.get("positive") and row.get("negative")
    }


def _model(item: dict[str, Any]) -> ModelLine:
    return ModelLine(
        name=text(item, "name"),
        version=text(item, "version"),
        task=text(item, "task"),
        summary=text(item, "summary"),
        intended_use=text(item, "intended_use"),
        limits=text(item, "limits"),
        weights_sha256=text(item, "weights_sha256"),
        performance=texts(item, "performance"),
    )


def _scan(series: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    shape = [value for value in sequence(series, "shape") if isinstance(value, int)]
    spacing = [value for value in sequence(series, "spacing_mm") if isinstance(value, int | float)]
    thickness = number(series, "slice_thickness_mm")
    rows = (
        ("Analysed", f"{shape[0]} slices of {shape[1]} x {shape[2]}" if len(shape) == 3 else ""),
        ("Slice distance", f"{spacing[0]:.2f} mm" if len(spacing) == 3 else ""),
        ("Slice thickness", f"{thickness:.2f} mm" if thickness is not None else ""),
        ("Kernel", text(series, "kernel")),
        ("Scanner", text(series, "scanner")),
    )
    return tuple(row for row in rows if row[1])


def _provenance(found: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    names = {
        "algorithm": "Algorithm",
        "pipeline_version": "Pipeline",
        "software_version": "Software",
        "input_digest": "Input digest",
        "device_uid": "Device UID",
    }
    rows = [(label, text(found, key)) for key, label in names.items()]
    rows.append(("Replaces", ", ".join(texts(found, "replaces"))))
    return tuple(row for row in rows if row[1])


def _timings(found: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    rows = ((stage.replace("_", " "), number(found, stage)) for stage in found)
    return tuple((stage, seconds) for stage, seconds in rows if seconds is not None)
