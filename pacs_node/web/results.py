"""Reads ``result.json`` for the page. It may be of another version, cut off or gone: nothing here raises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_LARGEST_BYTES = 16 << 20
_MOST = 1 << 31
_OUTLINE = re.compile(r"(M[0-9]+ [0-9]+([hv]-?[0-9]+)+z)*")


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
    """A semantic feature in words, with the probability of that value (0..1), and what it was read from."""

    name: str
    meaning: str
    probability: float | None
    pair: Pair | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    """The slices of a nodule in one picture, one below the other; see `dicom_sr.stacks`.

    Parameters
    ----------
    rows, columns
        Of one slice, pixels; the picture is as wide as there are `windows`.
    height_mm, width_mm
        Of one slice.
    key
        Place of the key slice.
    slices
        Index in the volume, z in mm, and the path of the outline of each.
    """

    file: str
    rows: int
    columns: int
    height_mm: float
    width_mm: float
    windows: tuple[str, ...]
    key: int
    slices: tuple[tuple[int, float, str], ...]

    @property
    def as_json(self) -> str:
        """The slices for the viewer's script."""
        return json.dumps(self.slices)


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
    if not isinstance(found, dict) or not _text(found, "status"):
        return None
    reason = _mapping(found, "reason")
    return ResultSummary(
        status=_text(found, "status"),
        reason=": ".join(part for part in (_text(reason, "code"), _text(reason, "sentence")) if part),
        findings=tuple(
            _finding(item, _mappings(found, "sentence_pairs")) for item in _mappings(found, "findings")
        ),
        observations=tuple(
            Observation(
                _text(item, "name"), _text(item, "value"), _number(item, "probability"), _text(item, "title")
            )
            for item in _mappings(found, "observations")
        ),
        models=tuple(_model(item) for item in _mappings(found, "models")),
        warnings=_texts(found, "warnings"),
        scan=_scan(_mapping(_mapping(found, "series"), "analysed")),
        provenance=_provenance(_mapping(found, "provenance")),
        timings=_timings(_mapping(found, "timings_s")),
        n_slices=_whole(_sequence(_mapping(_mapping(found, "series"), "analysed"), "shape"), 0),
    )


def _finding(item: dict[str, Any], sentences: Sequence[dict[str, Any]]) -> FindingLine:
    measured = _mapping(item, "measurements")
    malignancy = _mapping(item, "malignancy")
    pairs = _pairs(item, sentences)
    return FindingLine(
        number=_text(item, "number"),
        tracking_id=_text(item, "tracking_id"),
        site=_text(_mapping(item, "site"), "words"),
        attenuation=_text(item, "attenuation"),
        long_axis_mm=_number(measured, "long_axis_mm"),
        short_axis_mm=_number(measured, "short_axis_mm"),
        mean_diameter_mm=_number(measured, "mean_diameter_mm"),
        volume_mm3=_number(measured, "volume_mm3"),
        mean_hu=_number(measured, "mean_hu"),
        detection_probability=_number(item, "detection_probability"),
        malignancy=_number(malignancy, "image_only"),
        malignancy_fused=_number(malignancy, "fused"),
        features=tuple(
            Feature(
                _text(feature, "name").replace("_", " "),
                _text(feature, "meaning") or _text(feature, "value"),
                _number(feature, "probability"),
                pairs.get(_text(feature, "name")),
            )
            for feature in _mappings(item, "features")
        ),
        likeness=tuple(_descriptors(item, "structure sentence").items()),
        key_image=_text(item, "key_image"),
        stack=_stack(_mapping(item, "stack")),
    )


def _descriptors(item: dict[str, Any], source: str) -> dict[str, float]:
    values = {
        _text(row, "name"): _number(row, "value")
        for row in _mappings(item, "descriptors")
        if _text(row, "source") == source
    }
    return {name: value for name, value in values.items() if value is not None}


def _pairs(item: dict[str, Any], sentences: Sequence[dict[str, Any]]) -> dict[str, Pair]:
    shares = _descriptors(item, "sentence pair")
    return {
        feature: Pair(_texts(row, "positive"), _texts(row, "negative"), shares[feature])
        for row in sentences
        if (feature := _text(row, "feature")) in shares and row.get("positive") and row.get("negative")
    }


def _stack(found: dict[str, Any]) -> Stack | None:
    rows, columns, key = (_whole(found, name) for name in ("rows", "columns", "key"))
    pixel = [
        value
        for value in _sequence(found, "pixel_mm")
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    slices = [_slice(one) for one in _mappings(found, "slices")]
    known = [one for one in slices if one is not None]
    windows = tuple(_text(one, "name") for one in _mappings(found, "windows"))
    if not rows or not columns or key is None or len(pixel) != 2 or not windows:
        return None
    if len(known) != len(slices) or not 0 <= key < len(known) or min(rows, columns, *pixel) <= 0:
        return None
    return Stack(
        file=_text(found, "file"),
        rows=rows,
        columns=columns,
        height_mm=round(rows * pixel[0], 3),
        width_mm=round(columns * pixel[1], 3),
        windows=windows,
        key=key,
        slices=tuple(known),
    )


def _slice(found: dict[str, Any]) -> tuple[int, float, str] | None:
    index, z_mm, outline = _whole(found, "index"), _number(found, "z_mm"), found.get("outline")
    if index is None or z_mm is None or not isinstance(outline, str) or not _OUTLINE.fullmatch(outline):
        return None
    return index, z_mm, outline


def _model(item: dict[str, Any]) -> ModelLine:
    return ModelLine(
        name=_text(item, "name"),
        version=_text(item, "version"),
        task=_text(item, "task"),
        summary=_text(item, "summary"),
        intended_use=_text(item, "intended_use"),
        limits=_text(item, "limits"),
        weights_sha256=_text(item, "weights_sha256"),
        performance=_texts(item, "performance"),
    )


def _scan(series: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    shape = [value for value in _sequence(series, "shape") if isinstance(value, int)]
    spacing = [value for value in _sequence(series, "spacing_mm") if isinstance(value, int | float)]
    thickness = _number(series, "slice_thickness_mm")
    rows = (
        ("Analysed", f"{shape[0]} slices of {shape[1]} x {shape[2]}" if len(shape) == 3 else ""),
        ("Slice distance", f"{spacing[0]:.2f} mm" if len(spacing) == 3 else ""),
        ("Slice thickness", f"{thickness:.2f} mm" if thickness is not None else ""),
        ("Kernel", _text(series, "kernel")),
        ("Scanner", _text(series, "scanner")),
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
    rows = [(label, _text(found, key)) for key, label in names.items()]
    rows.append(("Replaces", ", ".join(_texts(found, "replaces"))))
    return tuple(row for row in rows if row[1])


def _timings(found: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    rows = ((stage.replace("_", " "), _number(found, stage)) for stage in found)
    return tuple((stage, seconds) for stage, seconds in rows if seconds is not None)


def _mapping(found: dict[str, Any], key: str) -> dict[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _sequence(found: dict[str, Any], key: str) -> Sequence[Any]:
    value = found.get(key)
    return value if isinstance(value, list) else []


def _mappings(found: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return [item for item in _sequence(found, key) if isinstance(item, dict)]


def _texts(found: dict[str, Any], key: str) -> tuple[str, ...]:
    return tuple(item for item in _sequence(found, key) if isinstance(item, str))


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    return str(value) if isinstance(value, str | int | float) else ""


def _whole(found: dict[str, Any] | Sequence[Any], key: Any) -> int | None:
    try:
        value = found[key]
    except LookupError:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST else None


def _number(found: dict[str, Any], key: str) -> float | None:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
