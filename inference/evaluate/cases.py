"""``pacs-node evaluate cases``: the whole pipeline on series of a manifest, case by case.

A finding hits a lesion when its centre of mass lies in it: closer to the centre than the radius, or in the
box. Further findings on a lesion that is hit count neither way; everything else is a false positive.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from inference.evaluate import metrics
from inference.evaluate.case_run import CaseOutcome, Settings, run_alone
from inference.evaluate.detection_report import froc_figures, froc_section
from inference.evaluate.manifest import Case, read_manifest
from inference.evaluate.marks import Froc
from inference.evaluate.metrics import Estimate, Floats, PatientBootstrap
from inference.evaluate.report import Cell, Options, Report, Run, Section, Table, Target
from inference.registry import load_pipeline

MOST_FALSE = 3.0
STAGES = ("models", "load", "analyse")
_FALSE = (
    "False positives are all that the manifest doesn't name: where it is incomplete, some of them are real."
)
Runner = Callable[[Case, Settings], CaseOutcome]


def evaluate(manifest: Path, options: Options, *, profile: str, run: Runner = run_alone) -> Report:
    """Analyse every case and score it.

    Parameters
    ----------
    manifest
        See `inference.evaluate.manifest`.
    run
        Analyses one case; the default does it in a fresh process.

    Returns
    -------
    Report
        ``findings.csv`` and the picture are in ``options.out``.

    Raises
    ------
    ManifestError
        The manifest can't be used.
    ModelUnavailableError
        The profile can't run.
    """
    start = monotonic()
    cases, pipeline = read_manifest(manifest), load_pipeline(profile)
    outcomes = []
    for number, case in enumerate(cases):
        options.progress(case.name, number, len(cases))
        outcomes.append(run(case, Settings(profile, options.device)))
    options.progress("cases", len(cases), len(cases))
    found = figures(outcomes, options)
    write_findings(outcomes, options.out / "findings.csv")
    data = f"{manifest.name}: {len(cases)} series of {len({case.patient for case in cases})} patients"
    return Report(
        kind="cases",
        title="Cases",
        data=data,
        split="external",
        models=pipeline.cards,
        pipeline_version=pipeline.version,
        targets=_targets(found),
        sections=_sections(outcomes, found, options, manifest.name),
        figures={**found, "cases": [_plain(one) for one in outcomes]},
        run=Run(
            options.command,
            monotonic() - start,
            options.device,
            {"profile": profile, "seed": options.seed, "resamples": options.resamples},
            (manifest,),
        ),
        limits=(_FALSE,),
    )


def figures(outcomes: Sequence[CaseOutcome], options: Options) -> dict[str, Any]:
    """Sensitivity, false positives, FROC of the findings, overlap, malignancy, time and memory."""
    judged = [one for one in outcomes if one.match is not None]
    froc = _froc(outcomes)
    bootstrap = froc.bootstrap(resamples=options.resamples, seed=options.seed)
    analysed = [one for one in outcomes if not one.failure]
    return {
        "annotated_series": len(judged),
        "not_analysed": {one.name: one.failure for one in outcomes if one.failure},
        "found": froc.found(bootstrap),
        "false_per_scan": froc.false_per_scan(bootstrap),
        "froc_of_findings": froc_figures(froc, options) if judged else None,
        "dice_of_found": _overlap(judged, options),
        "malignancy": _malignancy(judged, options),
        "seconds": {
            stage: _spread([one.seconds[stage] for one in analysed])
            for stage in ("models", "load", "analyse")
        },
        "peak_mib": _spread([one.peak_mib for one in analysed]),
    }


def _froc(outcomes: Sequence[CaseOutcome]) -> Froc:
    return Froc([one.match for one in outcomes if one.match is not None])


def _overlap(judged: Sequence[CaseOutcome], options: Options) -> Estimate:
    pairs = [
        (one.patient, lesion.dice)
        for one in judged
        for lesion in one.lesions
        if lesion.finding is not None and not isnan(lesion.dice)
    ]
    bootstrap = PatientBootstrap(
        [patient for patient, _ in pairs], resamples=options.resamples, seed=options.seed
    )
    return bootstrap.mean([value for _, value in pairs])


def _malignancy(judged: Sequence[CaseOutcome], options: Options) -> dict[str, Estimate]:
    """AUROC over found lesions whose malignancy is known, from the image alone and with the record."""
    found = {}
    for name, key in (("image_only", "malignancy"), ("with_record", "malignancy_with_record")):
        rows = [
            (one.patient, lesion.malignant, getattr(one.findings[lesion.finding], key))
            for one in judged
            for lesion in one.lesions
            if lesion.finding is not None and lesion.malignant is not None
        ]
        rows = [row for row in rows if row[2] is not None]
        labels = np.array([row[1] for row in rows], np.bool_)
        scores = np.array([row[2] for row in rows], np.float64)
        bootstrap = PatientBootstrap([row[0] for row in rows], resamples=options.resamples, seed=options.seed)
        found[name] = bootstrap.estimate(_area(labels, scores))
    return found


def _area(labels: metrics.Mask, scores: Floats) -> metrics.Statistic:
    return lambda weights: metrics.auroc(labels, scores, weights)


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    known = [value for value in values if not isnan(value)]
    if not known:
        return {"median": None, "largest": None}
    return {"median": float(np.median(known)), "largest": float(max(known))}


def _targets(found: dict[str, Any]) -> tuple[Target, ...]:
    return (
        Target("annotated lesions found", found["found"], ">=", 1.0),
        Target("false positives per scan", found["false_per_scan"], "<=", MOST_FALSE),
    )


def _sections(
    outcomes: Sequence[CaseOutcome], found: dict[str, Any], options: Options, data: str
) -> tuple[Section, ...]:
    sections = [Section("Cases", table=Table(_CASE_COLUMNS, tuple(_case_row(one) for one in outcomes)))]
    lesions = tuple(row for one in outcomes for row in _lesion_rows(one))
    if lesions:
        sections.append(Section("Lesions", table=Table(_LESION_COLUMNS, lesions)))
    if found["froc_of_findings"] is not None:
        sections.append(
            froc_section(
                _froc(outcomes),
                found["froc_of_findings"],
                options,
                title="FROC of the findings",
                data=data,
                label="findings above the operating point",
            )
        )
    return tuple(sections)


_CASE_COLUMNS = (
    "case",
    "slices",
    "findings",
    "lesions found",
    "false positives",
    *(f"{stage}, s" for stage in STAGES),
    "peak memory, MiB",
    "not analysed because",
)


def _case_row(one: CaseOutcome) -> tuple[Cell, ...]:
    judged = one.match is not None
    hits = sum(lesion.finding is not None for lesion in one.lesions)
    return (
        one.name,
        one.slices or None,
        len(one.findings),
        f"{hits} of {len(one.lesions)}" if judged else "not annotated",
        len(one.match.false_scores) if one.match is not None else None,
        *(_number(one.seconds.get(stage, nan), 1) for stage in STAGES),
        _number(one.peak_mib, 0),
        one.failure or None,
    )


_LESION_COLUMNS = (
    "case",
    "lesion",
    "diameter, mm",
    "found with probability",
    "measured, mm",
    "Dice",
    "malignant",
    "malignancy",
    "with record",
)


def _lesion_rows(one: CaseOutcome) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for lesion in one.lesions:
        hit = None if lesion.finding is None else one.findings[lesion.finding]
        rows.append(
            (
                one.name,
                lesion.name,
                _number(lesion.diameter_mm, 1),
                "missed" if hit is None else f"{hit.probability:.2f}",
                None if hit is None else _number(hit.diameter_mm, 1),
                _number(lesion.dice, 2),
                None if lesion.malignant is None else str(lesion.malignant).lower(),
                None if hit is None or hit.malignancy is None else f"{hit.malignancy:.2f}",
                None
                if hit is None or hit.malignancy_with_record is None
                else f"{hit.malignancy_with_record:.2f}",
            )
        )
    return rows


def _number(value: float, digits: int) -> str | None:
    return None if isnan(value) else f"{value:.{digits}f}"


def _plain(one: CaseOutcome) -> dict[str, Any]:
    plain = asdict(one)
    plain["false_positives"] = None if one.match is None else len(one.match.false_scores)
    del plain["match"]
    return plain


def write_findings(outcomes: Sequence[CaseOutcome], path: Path) -> None:
    """One line for each finding, as CSV: LPS mm, and the lesion that it hit."""
    columns = ("case", "x", "y", "z", "diameter_mm", "volume_mm3", "probability", "malignancy", "lesion")
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for one in outcomes:
            names = {lesion.finding: lesion.name for lesion in one.lesions if lesion.finding is not None}
            for number, finding in enumerate(one.findings):
                writer.writerow(
                    [
                        one.name,
                        *(f"{value:.2f}" for value in finding.centre_lps),
                        f"{finding.diameter_mm:.2f}",
                        f"{finding.volume_mm3:.1f}",
                        f"{finding.probability:.4f}",
                        "" if finding.malignancy is None else f"{finding.malignancy:.4f}",
                        names.get(number, ""),
                    ]
                )
