"""Accepted messages of the validators, each with its reason (conformance/waivers.toml)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset

from pacs_node.validators.subjects import KINDS, LABEL_MAP_STORAGE, SR, Subject

WAIVERS_FILE = Path(__file__).with_name("waivers.toml")


class WaiverError(ValueError):
    """The file of waivers can't be used; the text says which entry and why."""


@dataclass(frozen=True, slots=True)
class Waiver:
    """A message that is accepted.

    Parameters
    ----------
    tool
        Name of the validator.
    objects
        Kinds of objects it holds for, see `pacs_node.validators.subjects`.
    pattern
        Regular expression that is searched in the message.
    reason
        Why the message says nothing against the object.
    condition
        Name of a further condition on the object, one of `CONDITIONS`; empty for none.
    """

    tool: str
    objects: tuple[str, ...]
    pattern: re.Pattern[str]
    reason: str
    condition: str = ""

    def covers(self, tool: str, subject: Subject, message: str) -> bool:
        """Whether `message` of `tool` about `subject` is accepted."""
        return (
            tool == self.tool
            and subject.kind in self.objects
            and self.pattern.search(message) is not None
            and (not self.condition or CONDITIONS[self.condition](subject))
        )


@dataclass(frozen=True, slots=True)
class Waivers:
    """What stands in a file of waivers.

    Parameters
    ----------
    accepted
        Messages.
    absent
        Reason by name of the tools that may be missing.
    """

    accepted: tuple[Waiver, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


def _has_one_image_region(subject: Subject) -> bool:
    """Whether the whole report has exactly one SCOORD named Image Region (111030, DCM)."""
    return subject.kind == SR and _image_regions(subject.header) == 1


def _image_regions(item: Dataset) -> int:
    names = item.get("ConceptNameCodeSequence") or []
    own = item.get("ValueType") == "SCOORD" and any(name.get("CodeValue") == "111030" for name in names)
    return int(own) + sum(_image_regions(child) for child in item.get("ContentSequence") or [])


def _refers_to_a_label_map(subject: Subject) -> bool:
    """Whether a report has a label map among its evidence."""
    evidence = subject.header.get("CurrentRequestedProcedureEvidenceSequence") or []
    return any(
        row.get("ReferencedSOPClassUID") == LABEL_MAP_STORAGE
        for study in evidence
        for series in study.get("ReferencedSeriesSequence") or []
        for row in series.get("ReferencedSOPSequence") or []
    )


#: Conditions by the name that the file uses.
CONDITIONS: dict[str, Callable[[Subject], bool]] = {
    "one image region": _has_one_image_region,
    "refers to a label map": _refers_to_a_label_map,
}


def load_waivers(path: Path, tools: Collection[str]) -> Waivers:
    """Read a file of waivers.

    Parameters
    ----------
    tools
        Names of the known validators.

    Raises
    ------
    WaiverError
        The file can't be read, or an entry lacks a reason or names what doesn't exist.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise WaiverError(f"{path}: {error}") from error
    unknown = sorted(raw.keys() - {"waiver", "absent"})
    if unknown:
        raise WaiverError(f"{path}: unknown table {unknown[0]!r}")
    accepted = tuple(
        _waiver(entry, f"{path}: waiver {n}", tools) for n, entry in enumerate(raw.get("waiver", ()), 1)
    )
    absent = dict(
        _absent(entry, f"{path}: absent {n}", tools) for n, entry in enumerate(raw.get("absent", ()), 1)
    )
    return Waivers(accepted, absent)


def _waiver(entry: dict[str, Any], where: str, tools: Collection[str]) -> Waiver:
    _check_keys(entry, where, {"tool", "objects", "pattern", "reason"}, {"condition"})
    _check_tool(entry, where, tools)
    objects = tuple(entry["objects"])
    wrong = [kind for kind in objects if kind not in KINDS]
    if wrong or not objects:
        raise WaiverError(f"{where}: objects are some of {', '.join(KINDS)}")
    condition = str(entry.get("condition", ""))
    if condition and condition not in CONDITIONS:
        raise WaiverError(f"{where}: no condition {condition!r}; there are {', '.join(CONDITIONS)}")
    try:
        pattern = re.compile(entry["pattern"])
    except re.error as error:
        raise WaiverError(f"{where}: pattern: {error}") from error
    return Waiver(entry["tool"], objects, pattern, entry["reason"], condition)


def _absent(entry: dict[str, Any], where: str, tools: Collection[str]) -> tuple[str, str]:
    _check_keys(entry, where, {"tool", "reason"}, set())
    _check_tool(entry, where, tools)
    return entry["tool"], entry["reason"]


def _check_keys(entry: dict[str, Any], where: str, needed: set[str], allowed: set[str]) -> None:
    missing, unknown = sorted(needed - entry.keys()), sorted(entry.keys() - needed - allowed)
    if missing or unknown:
        raise WaiverError(
            f"{where}: {f'{missing[0]} is missing' if missing else f'unknown key {unknown[0]!r}'}"
        )
    if not str(entry["reason"]).strip():
        raise WaiverError(f"{where}: the reason is empty")


def _check_tool(entry: dict[str, Any], where: str, tools: Collection[str]) -> None:
    if entry["tool"] not in tools:
        raise WaiverError(f"{where}: no tool {entry['tool']!r}; there are {', '.join(tools)}")


def sort_messages(
    tool: str, subject: Subject, messages: Sequence[str], waivers: Sequence[Waiver]
) -> tuple[tuple[str, ...], tuple[Waiver, ...]]:
    """Part the messages into those that stand and the waivers that took the others."""
    standing: list[str] = []
    used: list[Waiver] = []
    for message in messages:
        covering = next((waiver for waiver in waivers if waiver.covers(tool, subject, message)), None)
        if covering is None:
            standing.append(message)
        else:
            used.append(covering)
    return tuple(standing), tuple(used)
