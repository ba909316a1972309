"""Measure a pipeline on phantoms: ``python -m inference.evaluate.phantom --cases 5``.

A finding hits a nodule when its centre of mass lies closer to the nodule's centre than the nodule's radius
(the rule of LUNA16); further hits of the same nodule count neither way. Everything else is a false positive.
Figures on drawn anatomy say that the pipeline works, not how it performs on patients.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt

import numpy as np

from inference.analyse import analyse
from inference.phantom import Phantom, make_phantom, random_specs
from inference.registry import Pipeline, load_pipeline
from inference.types import Finding, Result

FIRST_SEED = 1000
NODULES_PER_CASE = 6
MIN_COUNTED_MM = 6.0


@dataclass(frozen=True)
class NoduleOutcome:
    """What became of one drawn nodule; sizes in mm, `dice` 0 where it was missed."""

    seed: int
    diameter_mm: float
    attenuation: str
    margin: str
    attachment: str
    found: bool
    dice: float
    diameter_error_mm: float | None
    attenuation_right: bool | None


@dataclass(frozen=True)
class CaseOutcome:
    """One phantom."""

    nodules: tuple[NoduleOutcome, ...]
    false_positives: int


def run_case(seed: int, pipeline: Pipeline, *, nodules: int = NODULES_PER_CASE) -> CaseOutcome:
    """Make a phantom with random nodules, analyse it and compare."""
    specs = random_specs(np.random.default_rng(seed), nodules)
    phantom = make_phantom(seed, nodules=specs)
    return compare(phantom, analyse(phantom.volume, pipeline, input_digest=f"phantom {seed}"))


def compare(phantom: Phantom, result: Result) -> CaseOutcome:
    """Match findings to the drawn nodules."""
    centres = [_centre(finding, phantom) for finding in result.findings]
    used: set[int] = set()
    outcomes = []
    for nodule in phantom.nodules:
        gaps = [float(np.linalg.norm(centre - nodule.centre_lps)) for centre in centres]
        hits = [number for number, gap in enumerate(gaps) if gap < nodule.diameter_mm / 2]
        used.update(hits)
        truth = phantom.truth == nodule.label
        best = max(hits, key=lambda number: _dice(result.findings[number], truth), default=None)
        finding = None if best is None else result.findings[best]
        # the truth of a nodule cut by the pleura is what lies in the lung
        true_mm = (6 * nodule.volume_mm3 / np.pi) ** (1 / 3)
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
            )
        )
    return CaseOutcome(tuple(outcomes), len(centres) - len(used))


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


def summary(cases: Sequence[CaseOutcome]) -> dict[str, object]:
    """Sensitivity and Dice by group, false positives for each scan, size error."""
    counted = [n for case in cases for n in case.nodules if n.diameter_mm >= MIN_COUNTED_MM]
    groups = {
        "6 mm and more": counted,
        "less than 6 mm": [n for case in cases for n in case.nodules if n.diameter_mm < MIN_COUNTED_MM],
        **{
            key: [n for n in counted if n.attenuation == key]
            for key in sorted({n.attenuation for n in counted})
        },
        **{
            key: [n for n in counted if n.attachment == key]
            for key in sorted({n.attachment for n in counted})
        },
        **{key: [n for n in counted if n.margin == key] for key in sorted({n.margin for n in counted})},
    }
    errors = [n.diameter_error_mm for n in counted if n.diameter_error_mm is not None]
    false = np.array([case.false_positives for case in cases])
    resampled = np.random.default_rng(0).choice(false, (2000, len(false))).mean(axis=1)
    return {
        "cases": len(cases),
        "sensitivity": {name: _sensitivity(group) for name, group in groups.items() if group},
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
