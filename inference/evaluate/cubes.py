"""Masks and attenuation types on LIDC-IDRI cubes: ``python -m inference.evaluate.cubes FILE.npz``.

The decision of the classical card was fitted on these cubes, its masks and types were not.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from inference.cade import Candidate, candidates, probability
from inference.evaluate.lidc import Cube, cube_field, read_cubes
from inference.measure import attenuation
from inference.registry import DETECTION, load_pipeline

TYPES = {1: "ground-glass", 2: "ground-glass", 3: "part-solid", 4: "part-solid", 5: "solid"}


def best_candidate(cube: Cube) -> tuple[float, Candidate | None]:
    """Dice and candidate of the best match with the reader's mask."""
    best: tuple[float, Candidate | None] = (0.0, None)
    for candidate in candidates(cube.volume, cube_field(cube.volume)):
        shared = int((cube.truth[candidate.slices()] & candidate.mask).sum())
        overlap = 2 * shared / (int(cube.truth.sum()) + int(candidate.mask.sum()))
        if overlap > best[0]:
            best = (overlap, candidate)
    return best


def main() -> None:
    """Write candidate recall, Dice, and the table of types as JSON."""
    parameters = load_pipeline("classical").card(DETECTION).parameters
    overlaps, types, kept = [], Counter[str](), 0
    for cube in read_cubes(Path(sys.argv[1])):
        overlap, candidate = best_candidate(cube)
        overlaps.append(overlap)
        if candidate is not None and overlap > 0.35:
            kept += probability(candidate.features, parameters) >= parameters["min_probability"]
            kind = attenuation(cube.volume, candidate.mask, candidate.origin)
            types[f"read as {TYPES[cube.texture]}, typed {kind.value}"] += 1
    found = np.array([overlap for overlap in overlaps if overlap > 0.35])
    report = {
        "cubes": len(overlaps),
        "with a candidate of Dice above 0.35": len(found),
        "of these kept by the decision": int(kept),
        "median Dice of these": float(np.median(found)),
        "quartiles": [float(q) for q in np.quantile(found, (0.25, 0.75))],
        "types": dict(sorted(types.items())),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
