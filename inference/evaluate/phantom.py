"""Measure a pipeline on phantoms: ``python -m inference.evaluate.phantom --cases 5``.

A finding hits a nodule when its centre of mass lies closer to the nodule's centre than the nodule's radius
(the rule of LUNA16); further hits of the same nodule count neither way. Everything else is a false positive.
Figures on drawn anatomy say that the pipeline works, not how it performs on patients.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import nan, sqrt
from typing import Any

import numpy as np
from scipy import ndimage

from inference.analyse import analyse
from inference.evaluate import plots
from inference.evaluate.marks import Froc, Mark, ScanMatch, Sphere, match
from inference.evaluate.metrics import Agreement, Floats, PatientBootstrap, bland_altman
from inference.evaluate.report import Cell, Options, Report, Run, Section, Table, Target
from inference.measure import measure
from inference.phantom import Phantom, make_phantom, random_specs
from inference.registry import Pipeline, load_pipeline
from inference.types import Finding, Result

FIRST_SEED = 1000
NODULES_PER_CASE = 6
MIN_COUNTED_MM = 6.0
MEASURED_MM = (4.0, 30.0)
"""Diameters whose measurement is judged."""

_LIMITS = (
    "Drawn anatomy says that the pipeline works, not how it performs on patients.",
    "The axes of a lobulated or cut nodule differ from the diameter of the sphere of its volume.",
)


@dataclass(frozen=True)
class NoduleOutcome:
    """What became of one drawn nodule; sizes in mm and mm3, `dice` 0 where it was missed.

    `true_diameter_mm` is that of the sphere of the true volume: of what lies in the lung where the pleura
    cuts the nodule. `true_axes_mm` is the mean of long and short axis of the drawn voxels, measured by the
    same rule as that of a finding.
    """

    seed: int
    diameter_mm: float
    attenuation: str
    margin: str
    attachment: str
    found: bool
    dice: float
    diameter_error_mm: float | None
    attenuation_right: bool | None
    true_diameter_mm: float = nan
    true_volume_mm3: float = nan
    measured_volume_mm3: float | None = None
    true_axes_mm: float = nan


@dataclass(frozen=True)
class CaseOutcome:
    """One phantom."""

    nodules: tuple[NoduleOutcome, ...]
    false_positives: int
    match: ScanMatch


def run_case(
    seed: int, pipeline: Pipeline, *, nodules: int = NODULES_PER_CASE, device: str = "cpu"
) -> CaseOutcome:
    """Make a phantom with random nodules, analyse it and compare."""
    specs = random_specs(np.random.default_rng(seed), nodules)
    phantom = make_phantom(seed, nodules=specs)
    return compare(phantom, analyse(phantom.volume, pipeline, input_digest=f"phantom {seed}", device=device))


def compare(phantom: Phantom, result: Result) -> CaseOutcome:
    """Match findings to the drawn nodules."""
    centres = [_centre(finding, phantom) for finding in result.findings]
    marks = [
        Mark((float(x), float(y), float(z)), finding.detection_probability)
        for (x, y, z), finding in zip(centres, result.findings, strict=True)
    ]
    spheres = [Sphere(nodule.centre_lps, nodule.diameter_mm) for nodule in phantom.nodules]
    used: set[int] = set()
    outcomes = []
    for nodule in phantom.nodules:
        gaps = [float(np.linalg.norm(centre - nodule.centre_lps)) for centre in centres]
        hits = [number for number, gap in enumerate(gaps) if gap < nodule.diameter_mm / 2]
        used.update(hits)
        truth = phantom.truth == nodule.label
        best = max(hits, key=lambda number: _dice(result.findings[number], truth), default=None)
        finding = None if best is None else result.findings[best]
        true_mm = _sphere_mm(nodule.volume_mm3)
        outcomes.append(
            NoduleOutcome(
                seed=phantom.seed,
                diameter_mm=nodule.diameter_mm,
                attenuation=nodule.attenuation.value,
                margin=nodule.margin.value,
                attachment=nodule.attachment.value,
                found=finding is not None,
                dice=0.0 if finding is None else _dice(finding, truth),
                diameter_error_mm=None
                if finding is None
                else finding.measurements.mean_diameter_mm - true_mm,
                attenuation_right=None if finding is None else finding.attenuation is nodule.attenuation,
                true_diameter_mm=true_mm,
                true_volume_mm3=nodule.volume_mm3,
                measured_volume_mm3=None if finding is None else finding.measurements.volume_mm3,
                true_axes_mm=_axes_mm(phantom, truth),
            )
        )
    name = f"seed {phantom.seed}"
    matched = match(marks, spheres, scan=name, patient=name)
    return CaseOutcome(tuple(outcomes), len(centres) - len(used), matched)


def _sphere_mm(volume_mm3: float) -> float:
    """Diameter of the sphere of this volume."""
    return float((6 * volume_mm3 / np.pi) ** (1 / 3))


def _axes_mm(phantom: Phantom, drawn: np.ndarray) -> float:
    """Mean of the two axes of the drawn voxels (bool, shape of the volume)."""
    (z, y, x) = ndimage.find_objects(drawn.astype(np.uint8))[0]
    measured = measure(phantom.volume, drawn[z, y, x], (z.start, y.start, x.start))
    return measured.measurements.mean_diameter_mm


def _centre(finding: Finding, phantom: Phantom) -> np.ndarray:
    return phantom.volume.index_to_lps(np.argwhere(finding.mask).mean(axis=0) + np.array(finding.origin))


def _dice(finding: Finding, truth: np.ndarray) -> float:
    shared = int((truth[finding.slices()] & finding.mask).sum())
    return 2 * shared / (int(truth.sum()) + int(finding.mask.sum()))


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    z2 = 1.96**2
    middle = (hits + z2 / 2) / (total + z2)
    half = 1.96 / (total + z2) * sqrt(hits * (total - hits) / total + z2 / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _groups(cases: Sequence[CaseOutcome]) -> dict[str, list[NoduleOutcome]]:
    """Nodules by size, and those of `MIN_COUNTED_MM` and more by what was drawn."""
    every = [n for case in cases for n in case.nodules]
    counted = [n for n in every if n.diameter_mm >= MIN_COUNTED_MM]
    groups = {
        "6 mm and more": counted,
        "less than 6 mm": [n for n in every if n.diameter_mm < MIN_COUNTED_MM],
    }
    for trait in ("attenuation", "attachment", "margin"):
        for value in sorted({getattr(n, trait) for n in counted}):
            groups[value] = [n for n in counted if getattr(n, trait) == value]
    return {name: group for name, group in groups.items() if group}


def summary(cases: Sequence[CaseOutcome]) -> dict[str, object]:
    """Sensitivity and Dice by group, false positives for each scan, size error."""
    counted = [n for case in cases for n in case.nodules if n.diameter_mm >= MIN_COUNTED_MM]
    errors = [n.diameter_error_mm for n in counted if n.diameter_error_mm is not None]
    false = np.array([case.false_positives for case in cases])
    resampled = np.random.default_rng(0).choice(false, (2000, len(false))).mean(axis=1)
    return {
        "cases": len(cases),
        "sensitivity": {name: _sensitivity(group) for name, group in _groups(cases).items()},
        "false_positives_per_scan": float(false.mean()),
        "false_positives_interval": [float(v) for v in np.quantile(resampled, (0.025, 0.975))],
        "median_dice_of_found": float(np.median([n.dice for n in counted if n.found] or [0.0])),
        "mean_diameter_error_mm": float(np.mean(errors)) if errors else None,
        "sd_diameter_error_mm": float(np.std(errors)) if errors else None,
        "attenuation_right": float(
            np.mean([bool(n.attenuation_right) for n in counted if n.found] or [False])
        ),
        "missed": [asdict(n) for n in counted if not n.found],
    }


def _sensitivity(group: Sequence[NoduleOutcome]) -> dict[str, float]:
    hits = sum(n.found for n in group)
    low, high = wilson(hits, len(group))
    return {"found": hits, "of": len(group), "share": hits / len(group), "low": low, "high": high}


Compared = tuple[Floats, Floats, Agreement]
"""Means of both, differences measured - true, and what they say."""


@dataclass(frozen=True)
class _Sizes:
    """Measured against true sizes of the found nodules of `MEASURED_MM`; volumes differ in per cent.

    Parameters
    ----------
    axes
        Mean of the two axes, against the same of the drawn voxels.
    sphere
        Diameter of the sphere of the measured volume, against that of the true one.
    mixed
        Mean of the two axes, against the diameter of the sphere of the true volume.
    drawn
        The same of the drawn voxels themselves: what `mixed` would be of perfect masks.
    """

    axes: Compared
    sphere: Compared
    mixed: Compared
    drawn: Compared
    volume: Compared
    count: int


def _sizes(cases: Sequence[CaseOutcome], options: Options) -> _Sizes:
    rows = [
        (n.true_diameter_mm + n.diameter_error_mm, n.true_axes_mm, n.measured_volume_mm3, n.true_volume_mm3)
        for n in _measured(cases)
        if n.diameter_error_mm is not None and n.measured_volume_mm3 is not None
    ]
    axes, drawn, found_mm3, true_mm3 = np.array(rows, np.float64).reshape(-1, 4).T
    bootstrap = PatientBootstrap(
        [str(n.seed) for n in _measured(cases)], resamples=options.resamples, seed=options.seed
    )

    def compared(one: Floats, other: Floats, scale: Floats | float = 1.0) -> Compared:
        return (one + other) / 2, (one - other) * scale, bland_altman((one - other) * scale, bootstrap)

    found_mm, true_mm = (np.cbrt(6 * volume / np.pi) for volume in (found_mm3, true_mm3))
    return _Sizes(
        axes=compared(axes, drawn),
        sphere=compared(found_mm, true_mm),
        mixed=compared(axes, true_mm),
        drawn=compared(drawn, true_mm),
        volume=compared(found_mm3, true_mm3, 200 / (found_mm3 + true_mm3)),
        count=len(rows),
    )


def _measured(cases: Sequence[CaseOutcome]) -> list[NoduleOutcome]:
    """The found nodules whose size is judged."""
    low, high = MEASURED_MM
    every = (n for case in cases for n in case.nodules)
    return [n for n in every if n.found and low <= n.true_diameter_mm <= high]


def evaluate(pipeline: Pipeline, options: Options, *, cases: int, first_seed: int = FIRST_SEED) -> Report:
    """Analyse phantoms, draw the pictures and make the report.

    Parameters
    ----------
    cases
        How many phantoms; their seeds begin with `first_seed`.
    """
    start = time.monotonic()
    done = []
    for number in range(cases):
        options.progress("phantoms", number, cases)
        done.append(run_case(first_seed + number, pipeline, device=options.device))
    options.progress("phantoms", cases, cases)
    return make_report(done, pipeline, options, first_seed=first_seed, seconds=time.monotonic() - start)


def make_report(
    cases: Sequence[CaseOutcome], pipeline: Pipeline, options: Options, *, first_seed: int, seconds: float
) -> Report:
    """Figures and pictures of phantoms that were analysed."""
    sizes, froc = _sizes(cases, options), Froc([case.match for case in cases])
    bootstrap = froc.bootstrap(resamples=options.resamples, seed=options.seed)
    data = f"{len(cases)} synthetic phantoms, seeds {first_seed} to {first_seed + len(cases) - 1}"
    _pictures(sizes, froc, options, data)
    figures: dict[str, Any] = {
        **summary(cases),
        "froc_of_findings": {"found": froc.found(bootstrap), "mean_sensitivity": froc.score(bootstrap)},
        "diameter_mm": _agreement(sizes.axes[2]),
        "sphere_diameter_mm": _agreement(sizes.sphere[2]),
        "axes_against_sphere_mm": _agreement(sizes.mixed[2]),
        "drawn_axes_against_sphere_mm": _agreement(sizes.drawn[2]),
        "volume_per_cent": _agreement(sizes.volume[2]),
    }
    run = Run(
        options.command,
        seconds,
        options.device,
        {
            "first_seed": first_seed,
            "cases": len(cases),
            "resamples": options.resamples,
            "bootstrap_seed": options.seed,
        },
    )
    return Report(
        kind="phantom",
        title="Synthetic phantoms",
        data=data,
        split="external",
        models=pipeline.cards,
        pipeline_version=pipeline.version,
        targets=_targets(sizes),
        sections=_sections(cases, sizes, froc, options),
        figures=figures,
        run=run,
        limits=_LIMITS,
    )


def _agreement(agreement: Agreement) -> dict[str, Any]:
    return {"bias": agreement.bias, "lower_limit": agreement.lower, "upper_limit": agreement.upper}


def _targets(sizes: _Sizes) -> tuple[Target, ...]:
    agreement = sizes.axes[2]
    low, high = MEASURED_MM
    name = f"diameter of phantom nodules of {low:g} to {high:g} mm"
    return (
        Target(f"{name}: bias without sign", agreement.bias.magnitude(), "<=", 0.3, unit="mm"),
        Target(f"{name}: the further limit of agreement", agreement.furthest, "<=", 1.5, unit="mm"),
    )


def _pictures(sizes: _Sizes, froc: Froc, options: Options, data: str) -> None:
    caption = f"{data}, n = {sizes.count} found nodules"
    if sizes.count:
        for name, (means, differences, agreement), units in (
            ("diameter", sizes.axes, ("mm", "mm")),
            ("volume", sizes.volume, ("mm3", "%")),
        ):
            plots.bland_altman(
                options.out / f"bland_altman_{name}.png",
                plots.Caption(f"Nodule {name}, measured against true", caption),
                (means, differences),
                agreement,
                units,
            )
    lesions = sum(len(one.hits) for one in froc.matches)
    plots.froc(
        options.out / "froc.png",
        plots.Caption("FROC of the findings", f"{data}, n = {lesions} nodules"),
        {"findings above the operating point": froc.curve()},
    )


def _sections(
    cases: Sequence[CaseOutcome], sizes: _Sizes, froc: Froc, options: Options
) -> tuple[Section, ...]:
    bootstrap = froc.bootstrap(resamples=options.resamples, seed=options.seed)
    rows: list[tuple[Cell, ...]] = []
    for name, group in _groups(cases).items():
        drawn = PatientBootstrap(
            [f"seed {n.seed}" for n in group], resamples=options.resamples, seed=options.seed
        )
        found = [n for n in group if n.found]
        overlap = float(np.median([n.dice for n in found])) if found else None
        rows.append((name, len(found), len(group), drawn.mean([n.found for n in group]), overlap))
    agreements = tuple(
        (name, one.bias, one.lower, one.upper)
        for name, (_, _, one) in (
            ("mean of two axes, the same of the drawn voxels, mm", sizes.axes),
            ("diameter of the sphere of equal volume, the same of the drawn one, mm", sizes.sphere),
            ("mean of two axes, diameter of the sphere of the drawn volume, mm", sizes.mixed),
            ("the drawn voxels themselves: two axes, sphere, mm", sizes.drawn),
            ("volume, %", sizes.volume),
        )
    )
    pictures = ("diameter", "volume") if sizes.count else ()
    low, high = MEASURED_MM
    return (
        Section(
            "Found",
            f"Groups count nodules of {MIN_COUNTED_MM:g} mm and more unless named otherwise.",
            Table(("group", "found", "of", "share", "median Dice of the found"), tuple(rows)),
        ),
        Section(
            "False positives",
            table=Table(
                ("per scan", "mean sensitivity at 1/8 to 8 of the findings shown"),
                ((froc.false_per_scan(bootstrap), froc.score(bootstrap)),),
            ),
            pictures=(("froc.png", "FROC curve of the findings"),),
        ),
        Section(
            "Size",
            f"{sizes.count} found nodules of {low:g} to {high:g} mm; measured - true, limits of agreement "
            "(1.96 standard deviations).",
            Table(("measured, true", "bias", "lower limit", "upper limit"), agreements),
            tuple((f"bland_altman_{name}.png", f"Bland-Altman plot of the {name}") for name in pictures),
        ),
    )


def main() -> None:
    """Run from the command line; writes the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--profile", default="classical")
    chosen = parser.parse_args()
    pipeline = load_pipeline(chosen.profile)
    cases = [run_case(chosen.first_seed + number, pipeline) for number in range(chosen.cases)]
    report = {"pipeline": pipeline.version, "first_seed": chosen.first_seed, **summary(cases)}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
