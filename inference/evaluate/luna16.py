"""``pacs-node evaluate luna16``: MetaImage scans against LUNA16's lists by its rules.

The lists are CSV files as LUNA16 publishes them: ``seriesuid,coordX,coordY,coordZ,diameter_mm`` for the
nodules and, optionally, for the excluded findings, and one series UID on each line for the scans that count.
LUNA16 names no patients: its interval is a bootstrap over scans, of which nearly every patient has one.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from inference.errors import UnsuitableSeriesError
from inference.evaluate.detection_report import froc_figures, froc_section
from inference.evaluate.marks import Froc, ScanMatch, Sphere, match
from inference.evaluate.metaimage import MetaImageError, read_metaimage
from inference.evaluate.report import Options, Report, Run, Section, Table
from inference.evaluate.scan_marks import Marker
from inference.registry import Pipeline

_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
Lists = Mapping[str, Sequence[Sphere]]
"""Series UID to findings."""


@dataclass(frozen=True, slots=True)
class Luna16:
    """Where the data are.

    Parameters
    ----------
    images
        Searched for ``.mhd`` and ``.mha`` through all its folders; the name of a file is its series UID.
    annotations, excluded, series
        The lists; without `series` all scans that are found count.
    """

    images: Path
    annotations: Path
    excluded: Path | None = None
    series: Path | None = None


def read_findings(path: Path) -> dict[str, list[Sphere]]:
    """Read a list of findings.

    Raises
    ------
    ValueError
        A column is missing or a value is no number; with the line.
    """
    found: dict[str, list[Sphere]] = {}
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            raise ValueError(f"{path.name}: no column {', '.join(missing)}")
        for row in rows:
            try:
                x, y, z, diameter = (float(row[name]) for name in _COLUMNS[1:])
            except (TypeError, ValueError):
                raise ValueError(f"{path.name}, line {rows.line_num}: not four numbers") from None
            found.setdefault(row["seriesuid"], []).append(Sphere((x, y, z), diameter))
    return found


def read_series(path: Path) -> tuple[str, ...]:
    """Read a list of series UIDs, one on each line; a header is passed over."""
    lines = [line.strip().strip(",") for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return tuple(dict.fromkeys(line for line in lines if line and line.lower() != "seriesuid"))


def scans(data: Luna16) -> dict[str, Path]:
    """The scans that count, by series UID.

    Raises
    ------
    ValueError
        A listed scan isn't there, or there is none at all.
    """
    found = {path.stem: path for path in sorted(data.images.rglob("*")) if path.suffix in {".mhd", ".mha"}}
    if data.series is not None:
        wanted = read_series(data.series)
        missing = [uid for uid in wanted if uid not in found]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(wanted)} listed scans aren't in {data.images}: {missing[0]} ..."
            )
        found = {uid: found[uid] for uid in wanted}
    if not found:
        raise ValueError(f"no .mhd or .mha file in {data.images}")
    return found


def evaluate(data: Luna16, pipeline: Pipeline, mark: Marker, options: Options) -> Report:
    """Mark every scan and score the marks.

    A scan that can't be analysed counts with all its nodules missed and no false positive; it is listed.

    Raises
    ------
    ValueError, OSError
        The lists or scans can't be used.
    """
    start = monotonic()
    chosen, annotations = scans(data), read_findings(data.annotations)
    excluded = read_findings(data.excluded) if data.excluded else {}
    matches, failed = _matches(chosen, annotations, excluded, mark, options)
    froc = Froc(matches)
    found = froc_figures(froc, options)
    description = f"{data.annotations.name}: {found['lesions']} nodules in {found['scans']} scans"
    section = froc_section(
        froc, found, options, title="LUNA16 FROC", data=data.annotations.name, label=pipeline.profile
    )
    return Report(
        kind="luna16",
        title="LUNA16",
        data=description,
        split="external",
        models=pipeline.cards,
        pipeline_version=pipeline.version,
        targets=(),
        sections=(section, *_failures(failed)),
        figures={**found, "not_analysed": failed, "ignored_marks": sum(one.ignored for one in matches)},
        run=Run(
            options.command,
            monotonic() - start,
            options.device,
            {"seed": options.seed, "resamples": options.resamples},
            tuple(path for path in (data.annotations, data.excluded, data.series) if path),
        ),
        limits=(
            "The interval is a bootstrap over scans: the lists name no patients.",
            "LUNA16 is part of LIDC-IDRI: the figures are a test only on scans that no model was trained on.",
        ),
    )


def _matches(
    chosen: Mapping[str, Path], annotations: Lists, excluded: Lists, mark: Marker, options: Options
) -> tuple[list[ScanMatch], dict[str, str]]:
    """The matches of all scans, and why some have no marks."""
    matches, failed = [], {}
    for number, (uid, path) in enumerate(chosen.items()):
        options.progress("scans", number, len(chosen))
        try:
            marks = mark(read_metaimage(path))
        except (UnsuitableSeriesError, MetaImageError) as error:
            failed[uid] = str(error)
            marks = ()
        matches.append(match(marks, annotations.get(uid, ()), excluded.get(uid, ()), scan=uid, patient=uid))
    options.progress("scans", len(chosen), len(chosen))
    return matches, failed


def _failures(failed: Mapping[str, str]) -> tuple[Section, ...]:
    if not failed:
        return ()
    rows = tuple(failed.items())
    return (Section("Not analysed", "Their nodules count as missed.", Table(("scan", "why"), rows)),)
