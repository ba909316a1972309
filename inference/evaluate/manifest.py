"""The manifest of ``pacs-node evaluate cases``: which series, and where their lesions are.

JSON (`SCHEMA`) says everything; CSV has one line for each lesion. ``docs/evaluation.md`` describes both.
Paths are relative to the manifest.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from inference.evaluate.marks import Box, Lesion, Sphere
from inference.types import Point, Volume

SCHEMA = "pacs-node.cases.v1"

CSV_COLUMNS = (
    "case", "patient", "series", "series_uid", "record", "kind", "name",
    "x", "y", "z", "diameter_mm",
    "sop_instance_uid", "x0", "y0", "x1", "y1",
    "malignant", "mask",
)  # fmt: skip
_CASE_KEYS = {"name", "patient", "series", "series_uid", "record", "lesions", "excluded"}
_LESION_KEYS = {"name", "centre_lps", "diameter_mm", "boxes", "malignant", "mask"}
LESION, EXCLUDED, NONE, UNKNOWN = "lesion", "excluded", "none", "unknown"


class ManifestError(ValueError):
    """The manifest can't be used; the text says where and why."""


@dataclass(frozen=True, slots=True)
class SliceBox:
    """A box on one image, by the columns and rows of its corner pixels (counted from 0, both inside)."""

    sop_instance_uid: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class Annotation:
    """One lesion: centre (LPS mm) and diameter, or boxes on slices.

    Parameters
    ----------
    malignant
        None where it isn't known.
    mask
        MetaImage whose voxels above 0 are the lesion; on any grid in the patient's coordinates.
    """

    name: str
    centre_lps: Point | None = None
    diameter_mm: float | None = None
    boxes: tuple[SliceBox, ...] = ()
    malignant: bool | None = None
    mask: Path | None = None

    def on(self, volume: Volume) -> Lesion:
        """The lesion on a volume.

        A box on several slices reaches from the first to the last of them; on one slice it is as thick as it
        is wide on average. Boxes on images of other series are passed over.

        Raises
        ------
        ManifestError
            No box is on an image of the volume.
        """
        if self.centre_lps is not None and self.diameter_mm is not None:
            return Sphere(self.centre_lps, self.diameter_mm)
        place = {frame.sop_instance_uid: z for z, frame in enumerate(volume.frames)}
        here = [box for box in self.boxes if box.sop_instance_uid in place]
        if not here:
            raise ManifestError(f"{self.name}: the series has no image {self.boxes[0].sop_instance_uid}")
        planes = [place[box.sop_instance_uid] for box in here]
        y0, x0 = min(box.y0 for box in here) - 0.5, min(box.x0 for box in here) - 0.5
        y1, x1 = max(box.y1 for box in here) + 0.5, max(box.x1 for box in here) + 0.5
        depth, pitch_y, pitch_x = volume.spacing_mm
        half = 0.5 if len(set(planes)) > 1 else ((y1 - y0) * pitch_y + (x1 - x0) * pitch_x) / 4 / depth
        return Box((min(planes) - half, y0, x0), (max(planes) + half, y1, x1), volume)


@dataclass(frozen=True, slots=True)
class Case:
    """One series.

    Parameters
    ----------
    series
        Folder with its DICOM files; with `series_uid` only those of this series count.
    record
        File with the clinical record, None for none.
    lesions
        All that must be found; None where the series isn't annotated: then neither hits nor false positives
        are counted.
    excluded
        Findings that count neither way.
    """

    name: str
    patient: str
    series: Path
    lesions: tuple[Annotation, ...] | None
    excluded: tuple[Annotation, ...] = ()
    series_uid: str = ""
    record: Path | None = None


def read_manifest(path: Path) -> tuple[Case, ...]:
    """Read a manifest, ``.json`` or ``.csv``.

    Raises
    ------
    ManifestError
        Where and why it can't be used: unknown fields, missing values, folders or files that don't exist.
    OSError
        It can't be read.
    """
    entries = list(_from_csv(path)) if path.suffix.lower() == ".csv" else _from_json(path)
    cases = tuple(_case(entry, path) for entry in entries)
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        raise ManifestError(f"{path.name}: two cases have the same name")
    if not cases:
        raise ManifestError(f"{path.name} names no case")
    return cases


def _from_json(path: Path) -> list[Mapping[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ManifestError(f"{path.name} is no JSON: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ManifestError(f'{path.name}: "schema" must be "{SCHEMA}"')
    cases = content.get("cases")
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise ManifestError(f'{path.name}: "cases" must be a list of objects')
    return cases


def _from_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    """Group the lines of a CSV by case; the first line of a case says what belongs to the case."""
    cases: dict[str, dict[str, Any]] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        unknown = sorted(set(rows.fieldnames or ()) - set(CSV_COLUMNS))
        if unknown or "case" not in (rows.fieldnames or ()):
            raise ManifestError(f"{path.name}: unknown or missing columns: {', '.join(unknown) or 'case'}")
        for row in rows:
            where = f"{path.name}, line {rows.line_num}"
            known = {key: value for key, value in row.items() if key and value}
            case = cases.setdefault(known.get("case", ""), _csv_case(known))
            kind = known.get("kind", LESION)
            if kind not in {LESION, EXCLUDED, NONE, UNKNOWN}:
                raise ManifestError(f"{where}: kind must be {LESION}, {EXCLUDED}, {NONE} or {UNKNOWN}")
            if kind == UNKNOWN:
                case["lesions"] = None
            elif kind != NONE:
                _add(case, "lesions" if kind == LESION else "excluded", _csv_lesion(known, where), where)
    yield from cases.values()


def _csv_case(row: Mapping[str, str]) -> dict[str, Any]:
    case: dict[str, Any] = {"name": row.get("case", ""), "lesions": [], "excluded": []}
    return {**case, **{key: row[key] for key in ("patient", "series", "series_uid", "record") if key in row}}


def _csv_lesion(row: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        lesion: dict[str, Any] = {key: row[key] for key in ("name", "mask") if key in row}
        if "malignant" in row:
            lesion["malignant"] = {"1": True, "0": False, "true": True, "false": False}[
                row["malignant"].lower()
            ]
        if "sop_instance_uid" in row:
            corners = [float(row[key]) for key in ("x0", "y0", "x1", "y1")]
            lesion["boxes"] = [{"sop_instance_uid": row["sop_instance_uid"], "corners": corners}]
        else:
            lesion["centre_lps"] = [float(row[key]) for key in "xyz"]
            lesion["diameter_mm"] = float(row["diameter_mm"])
    except (KeyError, ValueError) as error:
        raise ManifestError(f"{where}: missing or wrong: {error}") from None
    return lesion


def _add(case: dict[str, Any], key: str, lesion: dict[str, Any], where: str) -> None:
    """Add a lesion, or one more box to the lesion of the same name."""
    if case[key] is None:
        raise ManifestError(f"{where}: the case is {UNKNOWN}, so it can't have lesions")
    same = [one for one in case[key] if "name" in lesion and one.get("name") == lesion["name"]]
    if same and "boxes" in same[0] and "boxes" in lesion:
        same[0]["boxes"] += lesion["boxes"]
    else:
        case[key].append(lesion)


def _case(entry: Mapping[str, Any], path: Path) -> Case:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise ManifestError(f"{path.name}: a case has no name")
    where = f"{path.name}, case {name}"
    unknown = sorted(set(entry) - _CASE_KEYS)
    if unknown:
        raise ManifestError(f"{where}: unknown: {', '.join(unknown)}")
    if not isinstance(entry.get("series"), str):
        raise ManifestError(f'{where}: "series" must name a folder')
    if "lesions" not in entry:
        raise ManifestError(f'{where}: "lesions" must be a list, or null where they aren\'t known')
    series = path.parent / entry["series"]
    if not series.is_dir():
        raise ManifestError(f"{where}: no folder {entry['series']}")
    found = entry["lesions"]
    return Case(
        name=name,
        patient=str(entry.get("patient") or name),
        series=series,
        lesions=None if found is None else _annotations(found, where, path),
        excluded=_annotations(entry.get("excluded") or [], where, path),
        series_uid=str(entry.get("series_uid") or ""),
        record=_file(entry.get("record"), where, path),
    )


def _annotations(found: Any, where: str, path: Path) -> tuple[Annotation, ...]:
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ManifestError(f"{where}: lesions must be a list of objects")
    return tuple(_annotation(one, f"{where}, lesion {number}", path) for number, one in enumerate(found, 1))


def _annotation(entry: Mapping[str, Any], where: str, path: Path) -> Annotation:
    unknown = sorted(set(entry) - _LESION_KEYS)
    if unknown:
        raise ManifestError(f"{where}: unknown: {', '.join(unknown)}")
    by_centre = "centre_lps" in entry and "diameter_mm" in entry
    if by_centre == bool(entry.get("boxes")):
        raise ManifestError(f"{where}: give centre_lps and diameter_mm, or boxes")
    malignant = entry.get("malignant")
    if malignant is not None and not isinstance(malignant, bool):
        raise ManifestError(f"{where}: malignant must be true, false or null")
    annotation = Annotation(
        name=str(entry.get("name") or where.rpartition(" ")[2]),
        malignant=malignant,
        mask=_file(entry.get("mask"), where, path),
        boxes=tuple(_box(box, where) for box in entry.get("boxes") or ()),
    )
    if not by_centre:
        return annotation
    x, y, z = _floats(entry["centre_lps"], 3, f"{where}: centre_lps")
    diameter = _floats([entry["diameter_mm"]], 1, f"{where}: diameter_mm")[0]
    if diameter <= 0:
        raise ManifestError(f"{where}: diameter_mm must be above 0")
    return Annotation(annotation.name, (x, y, z), diameter, (), malignant, annotation.mask)


def _box(entry: Any, where: str) -> SliceBox:
    if not isinstance(entry, dict) or set(entry) != {"sop_instance_uid", "corners"}:
        raise ManifestError(f"{where}: a box has sop_instance_uid and corners")
    x0, y0, x1, y1 = _floats(entry["corners"], 4, f"{where}: corners")
    if x1 < x0 or y1 < y0:
        raise ManifestError(f"{where}: corners are x0, y0, x1, y1 with x0 <= x1 and y0 <= y1")
    return SliceBox(str(entry["sop_instance_uid"]), x0, y0, x1, y1)


def _floats(values: Any, count: int, where: str) -> Sequence[float]:
    if not isinstance(values, list) or len(values) != count:
        raise ManifestError(f"{where} must be {count} numbers")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and isfinite(v) for v in values):
        raise ManifestError(f"{where} must be numbers")
    return [float(v) for v in values]


def _file(name: Any, where: str, path: Path) -> Path | None:
    if name is None or name == "":
        return None
    file = path.parent / str(name)
    if not file.is_file():
        raise ManifestError(f"{where}: no file {name}")
    return file


def to_json(cases: Sequence[Case], folder: Path) -> str:
    """The manifest of cases whose paths lie below `folder`, in which it is to be written."""
    return (
        json.dumps({"schema": SCHEMA, "cases": [_plain_case(case, folder) for case in cases]}, indent=2)
        + "\n"
    )


def _plain_case(case: Case, folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": case.name,
        "patient": case.patient,
        "series": str(case.series.relative_to(folder)),
        "series_uid": case.series_uid,
        "record": None if case.record is None else str(case.record.relative_to(folder)),
        "lesions": None if case.lesions is None else [_plain(one, folder) for one in case.lesions],
        "excluded": [_plain(one, folder) for one in case.excluded],
    }
    return {key: value for key, value in plain.items() if value or key == "lesions"}


def _plain(one: Annotation, folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": one.name}
    if one.centre_lps is not None and one.diameter_mm is not None:
        plain["centre_lps"] = [round(float(v), 3) for v in np.array(one.centre_lps)]
        plain["diameter_mm"] = round(one.diameter_mm, 3)
    else:
        plain["boxes"] = [
            {"sop_instance_uid": box.sop_instance_uid, "corners": [box.x0, box.y0, box.x1, box.y1]}
            for box in one.boxes
        ]
    if one.malignant is not None:
        plain["malignant"] = one.malignant
    if one.mask is not None:
        plain["mask"] = str(one.mask.relative_to(folder))
    return plain
