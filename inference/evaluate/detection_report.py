"""The FROC part of a report: LUNA16, inserted nodules, and cases share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.evaluate import plots
from inference.evaluate.marks import RATES, Froc
from inference.evaluate.metrics import PatientBootstrap
from inference.evaluate.report import Options, Section, Table

FROC = "froc.png"
_RATE_NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")


def froc_figures(froc: Froc, options: Options) -> dict[str, Any]:
    """Mean sensitivity at 1/8 to 8 false positives per scan, the seven, and what any mark hits."""
    bootstrap = froc.bootstrap(resamples=options.resamples, seed=options.seed)
    curve = froc.curve()
    return {
        "scans": len(froc.matches),
        "lesions": sum(len(one.hits) for one in froc.matches),
        "mean_sensitivity": froc.score(bootstrap),
        "sensitivity_at": _by_rate(froc, bootstrap),
        "found_by_any_mark": froc.found(bootstrap),
        "false_per_scan_of_all_marks": froc.false_per_scan(bootstrap),
        "curve": {
            "false_per_scan": [float(v) for v in curve.false_per_scan],
            "sensitivity": [float(v) for v in curve.sensitivity],
        },
    }


def _by_rate(froc: Froc, bootstrap: PatientBootstrap) -> dict[str, Any]:
    return {name: froc.sensitivity(rate, bootstrap) for name, rate in zip(_RATE_NAMES, RATES, strict=True)}


def froc_section(
    froc: Froc, found: Mapping[str, Any], options: Options, *, title: str, data: str, label: str
) -> Section:
    """Table and picture; draws the picture."""
    counts = f"n = {found['lesions']} lesions in {found['scans']} scans"
    plots.froc(
        options.out / FROC,
        plots.Caption(title, f"{data}; {counts}"),
        {f"{label}: {found['mean_sensitivity'].text()}": froc.curve()},
    )
    columns = ("mean", *_RATE_NAMES, "any mark", "false per scan, all marks")
    row = (
        found["mean_sensitivity"],
        *found["sensitivity_at"].values(),
        found["found_by_any_mark"],
        found["false_per_scan_of_all_marks"],
    )
    return Section(
        title,
        f"Sensitivity at false positives per scan, {counts}. Rules of LUNA16.",
        Table(columns, (row,)),
        ((FROC, "FROC curve"),),
    )
