"""What an evaluation leaves behind: ``report.json`` for machines, ``report.md`` with pictures for people."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from inference.evaluate.metrics import LEVEL, RESAMPLES, SEED, Estimate
from inference.evaluate.plots import RESEARCH
from inference.types import ModelCard

SCHEMA = "pacs-node.evaluation.v1"
"""Changes whenever a reader of the JSON would have to change."""

_PACKAGES = ("pacs-node", "numpy", "scipy", "scikit-learn", "torch")

Progress = Callable[[str, int, int], None]
"""What is being done, how many are done, of how many."""


def _silent(_what: str, _done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Options:
    """What every evaluation takes.

    Parameters
    ----------
    out
        An existing folder for report and pictures.
    command
        What was typed; for the report.
    resamples, seed
        Of the bootstrap; the seed also draws whatever else is drawn.
    """

    out: Path
    command: str
    device: str = "cpu"
    resamples: int = RESAMPLES
    seed: int = SEED
    progress: Progress = _silent


Cell = str | int | float | Estimate | None


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; a cell that is None shows as a dash."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report.

    Parameters
    ----------
    pictures
        File names beside the report, each with its alternative text.
    """

    title: str
    text: str = ""
    table: Table | None = None
    pictures: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """What should be reached, and what was.

    Parameters
    ----------
    relation
        How the value must stand to the limit. The point estimate decides; the interval is shown beside it.
    reference
        What others reach.
    """

    name: str
    figure: Estimate
    relation: Literal[">=", "<="]
    limit: float
    reference: str = ""
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """None where the figure is not defined."""
        if not self.figure.defined:
            return None
        value = self.figure.value
        return self._holds(value)

    def text(self) -> str:
        """The figure with as many digits as it takes to see on which side of the limit it lies."""
        digits = 3
        while digits < 6 and self.met is False and self._holds(round(self.figure.value, digits)):
            digits += 1
        return self.figure.text(digits)

    def _holds(self, value: float) -> bool:
        return value >= self.limit if self.relation == ">=" else value <= self.limit


@dataclass(frozen=True, slots=True)
class Run:
    """How the figures came about.

    Parameters
    ----------
    command
        What was typed.
    seconds
        Wall-clock time of the whole evaluation.
    device
        ``cpu`` or ``cuda``.
    settings
        Seeds, resamples, limits: all that decides the figures.
    files
        Input files; their SHA-256 goes into the report.
    """

    command: str
    seconds: float
    device: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything about one evaluation.

    Parameters
    ----------
    kind
        The verb of ``pacs-node evaluate``.
    data
        Name of the data, its split and counts, for people.
    split
        ``all``, ``train``, ``val``, ``test`` or ``external``.
    models
        Cards of what ran.
    targets, sections
        In the order of the page.
    figures
        Nested names down to `Estimate`, number, text or list; the whole of it goes into the JSON.
    """

    kind: str
    title: str
    data: str
    split: str
    models: tuple[ModelCard, ...]
    pipeline_version: str
    targets: tuple[Target, ...]
    sections: tuple[Section, ...]
    figures: Mapping[str, Any]
    run: Run
    limits: tuple[str, ...] = ()


def write(report: Report, out: Path) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.md`` into a folder that exists.

    Returns
    -------
    tuple of Path
        The two files.
    """
    facts = _facts(report)
    in_json, in_words = out / "report.json", out / "report.md"
    in_json.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    in_words.write_text(_markdown(report, facts), encoding="utf-8")
    return in_json, in_words


def plain(value: Any) -> Any:
    """Turn figures into what JSON can hold; NaN and infinity become null."""
    if isinstance(value, Estimate):
        return {
            "value": plain(value.value),
            "low": plain(value.low),
            "high": plain(value.high),
            "level": LEVEL,
            "samples": value.samples,
            "patients": value.patients,
            "undefined_resamples": value.undefined,
        }
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _facts(report: Report) -> dict[str, Any]:
    run = report.run
    return {
        "schema": SCHEMA,
        "notice": RESEARCH,
        "kind": report.kind,
        "title": report.title,
        "data": {
            "description": report.data,
            "split": report.split,
            "files": [
                {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}
                for path in run.files
            ],
        },
        "pipeline_version": report.pipeline_version,
        "models": [
            {
                "name": card.name,
                "version": card.version,
                "task": card.task,
                "weights_sha256": card.weights_sha256,
            }
            for card in report.models
        ],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": run.command,
        "seconds": round(run.seconds, 1),
        "hardware": hardware(run.device),
        "software": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "settings": plain(run.settings),
        "targets": [
            {
                "name": target.name,
                "measured": plain(target.figure),
                "relation": target.relation,
                "limit": target.limit,
                "unit": target.unit,
                "reference": target.reference,
                "met": target.met,
            }
            for target in report.targets
        ],
        "figures": plain(report.figures),
        "limits": list(report.limits),
    }


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and the GPU if one was used."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415 - only a run on a GPU needs it here

        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# Markdown


def _markdown(report: Report, facts: Mapping[str, Any]) -> str:
    parts = [f"# {report.title}", f"**{RESEARCH}**", _head(report, facts)]
    if report.targets:
        parts += ["## Targets", _targets(report.targets)]
    for section in report.sections:
        parts.append(f"## {section.title}")
        parts += [section.text] if section.text else []
        parts += [table_text(section.table)] if section.table else []
        parts += [f"![{text}]({name})" for name, text in section.pictures]
    if report.limits:
        parts += ["## What these figures don't say", "\n".join(f"- {line}" for line in report.limits)]
    return "\n\n".join(parts) + "\n"


def _head(report: Report, facts: Mapping[str, Any]) -> str:
    hard = facts["hardware"]
    models = [
        f"{card.name} {card.version}" + (f" (`{card.weights_sha256[:12]}`)" if card.weights_sha256 else "")
        for card in report.models
    ]
    rows = (
        ("data", report.data),
        ("split", report.split),
        ("pipeline", f"`{report.pipeline_version}`"),
        ("models (sha256 of the weights)", "; ".join(models) or "none"),
        ("command", f"`{report.run.command}`"),
        ("date", facts["created"]),
        (
            "hardware",
            f"{hard.get('gpu') or hard['processor']}, {hard['cores']} cores, {hard['memory_gib']} GiB",
        ),
        ("seconds", f"{report.run.seconds:.0f}"),
    )
    note = "Brackets: 95 % interval by bootstrap over patients."
    return table_text(Table(("", ""), rows)) + "\n\n" + note


def _targets(targets: Sequence[Target]) -> str:
    words = {True: "met", False: "**not met**", None: "not defined"}
    rows = tuple(
        (
            target.name,
            target.text(),
            f"{target.relation} {target.limit:g}{f' {target.unit}' if target.unit else ''}",
            words[target.met],
            f"{target.figure.samples} of {target.figure.patients}",
            target.reference,
        )
        for target in targets
    )
    return table_text(Table(("what", "measured", "target", "", "n of patients", "reference"), rows))


def table_text(table: Table) -> str:
    """A Markdown table."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, Estimate):
        return cell.text()
    if isinstance(cell, float):
        return f"{cell:.3f}" if isfinite(cell) else "-"
    return str(cell).replace("|", "\\|").replace("\n", " ")
