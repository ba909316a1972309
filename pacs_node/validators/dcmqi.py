"""Round trips through dcmqi: another code base reads our objects, its result must equal their content."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread

from pacs_node.validators.subjects import SEG, SR, Subject
from pacs_node.validators.tool import Tool, lines_of, needs_program, run_program
from pacs_node.validators.voxels import difference, points_by_frames, read_nrrd

_INSTALL = "pip: dcmqi (Linux on x86-64)"
_SAYS_ALWAYS = re.compile(
    r"^(dcmqi repository URL|Loading DICOM SEG file|Row direction:|Col direction:|Z direction:|Total frames"
    r"|Total overlapping frames:|Origin:|Slice extent:|Slice spacing:|Will not merge segments"
    r"|Writing itk image to|Found concept that is not known, and as such is qualitative)"
)
_MEASUREMENTS = ("126010", "DCM")
_GROUP = ("125007", "DCM")
_TRACKING_UID = ("112040", "DCM")

Numbers = list[tuple[str, str, str, float]]
"""Concept code, its scheme, unit and value of the NUM items of a group, sorted."""
Groups = list[tuple[str, int | None, Numbers]]
"""Tracking UID, referenced segment, numbers of each group in the order of the document."""


def _said(stdout: str, stderr: str) -> list[str]:
    return [line for line in lines_of(stdout, stderr) if not _SAYS_ALWAYS.match(line)]


def _segimage2itkimage(subjects: Sequence[Subject]) -> list[str]:
    """Convert the masks to NRRD and compare each voxel's place with the frames of the object."""
    seg = dcmread(subjects[0].path)
    with TemporaryDirectory(prefix="dcmqi-") as folder:
        done = run_program(
            "segimage2itkimage",
            "--inputDICOM",
            subjects[0].path,
            "--outputDirectory",
            folder,
            "--outputType",
            "nrrd",
        )
        said = _said(done.stdout, done.stderr)
        if done.returncode:
            return [*said, f"exit status {done.returncode}"]
        return said + list(_differing_segments(seg, Path(folder)))


def _differing_segments(seg: Dataset, folder: Path) -> Iterator[str]:
    expected = points_by_frames(seg)
    written = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["segmentAttributes"]
    seen = set()
    for number, group in enumerate(written, 1):
        image = read_nrrd(folder / f"{number}.nrrd")
        for segment in group:
            label = int(segment["labelID"])
            seen.add(label)
            if label not in expected:
                yield f"segment {label} is not in the object"
                continue
            answer = difference(expected[label], image.array == label, image.affine)
            if answer is not None:
                yield f"segment {label}: {answer}"
        others = np.setdiff1d(np.unique(image.array), [0, *(int(s["labelID"]) for s in group)])
        if others.size:
            yield f"file {number} has unexpected labels {others.tolist()}"
    yield from (f"segment {label} was not written" for label in sorted(expected.keys() - seen))


def _tid1500reader(subjects: Sequence[Subject]) -> list[str]:
    """Read the report and compare groups, segments and values with its content tree."""
    with TemporaryDirectory(prefix="dcmqi-") as folder:
        out = Path(folder) / "report.json"
        done = run_program("tid1500reader", "--inputDICOM", subjects[0].path, "--outputMetadata", out)
        said = _said(done.stdout, done.stderr)
        if done.returncode:
            return [*said, f"exit status {done.returncode}"]
        read = json.loads(out.read_text(encoding="utf-8"))
    return said + list(_differing_groups(groups_of(subjects[0].header), _groups_of_dcmqi(read)))


def groups_of(report: Dataset) -> Groups:
    """Read the measurement groups of a TID 1500 report from its content tree."""
    return [
        (_tracking_uid(group), _segment(group), sorted(_numbers(group)))
        for container in report.get("ContentSequence") or []
        if _name(container) == _MEASUREMENTS
        for group in container.get("ContentSequence") or []
        if _name(group) == _GROUP
    ]


def _name(item: Dataset) -> tuple[str, str]:
    names = item.get("ConceptNameCodeSequence")
    return (str(names[0].CodeValue), str(names[0].CodingSchemeDesignator)) if names else ("", "")


def _tracking_uid(group: Dataset) -> str:
    return next((str(item.UID) for item in group.ContentSequence if _name(item) == _TRACKING_UID), "")


def _segment(group: Dataset) -> int | None:
    for item in group.ContentSequence:
        for reference in item.get("ReferencedSOPSequence") or []:
            if "ReferencedSegmentNumber" in reference:
                return int(np.atleast_1d(reference.ReferencedSegmentNumber)[0])
    return None


def _numbers(group: Dataset) -> Iterator[tuple[str, str, str, float]]:
    for item in group.ContentSequence:
        if item.get("ValueType") == "NUM" and item.get("MeasuredValueSequence"):
            measured = item.MeasuredValueSequence[0]
            unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue)
            yield *_name(item), unit, float(measured.NumericValue)


def _groups_of_dcmqi(read: dict[str, Any]) -> Groups:
    groups: Groups = []
    for group in read.get("Measurements") or []:
        numbers: Numbers = []
        for item in group.get("measurementItems") or []:
            quantity, unit = item["quantity"], item["units"]["CodeValue"]
            code = quantity["CodeValue"], quantity["CodingSchemeDesignator"]
            numbers.append((*code, unit, float(item["value"])))
        tracking_uid, segment = group.get("TrackingUniqueIdentifier", ""), group.get("ReferencedSegment")
        groups.append((tracking_uid, segment, sorted(numbers)))
    return groups


def _differing_groups(expected: Groups, read: Groups) -> Iterator[str]:
    if len(expected) != len(read):
        yield f"{len(read)} measurement groups read, the document has {len(expected)}"
        return
    for number, (mine, theirs) in enumerate(zip(expected, read, strict=True), 1):
        if mine[:2] != theirs[:2]:
            yield f"group {number}: tracking UID and segment are {theirs[:2]}, in the document {mine[:2]}"
        for item in mine[2]:
            if item not in theirs[2]:
                yield f"group {number}: {item} of the document was not read"
        for item in theirs[2]:
            if item not in mine[2]:
                yield f"group {number}: {item} was read and is not in the document"


TOOLS = (
    Tool(
        "segimage2itkimage",
        "the masks through dcmqi and ITK, voxel for voxel",
        _INSTALL,
        (SEG,),
        needs_program("segimage2itkimage"),
        _segimage2itkimage,
    ),
    Tool(
        "tid1500reader",
        "groups, segments and values of a report through dcmqi",
        _INSTALL,
        (SR,),
        needs_program("tid1500reader"),
        _tid1500reader,
    ),
)
