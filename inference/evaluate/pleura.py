"""Measure pleural attachment on drawn chests: ``python -m inference.evaluate.pleura --cases 10``.

Two kinds of nodules, both with known truth. Those that the phantom itself draws, seen through the mask of
the truth. And balls of soft tissue drawn into a chest without nodules at a chosen gap from the true
pleura: the phantom's own isolated nodules keep 4 mm away from it, so they can't show what happens near by.
The lung field is always found on the voxels, never taken from the truth. A ball whose gap is below 0 is cut
by the pleura and counts as attached; a gap of 0 to 2 mm is reported apart.

``--fit`` fits the weights of `inference.pleura.attachment_probability` on seeds of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.lungs import find_lungs
from inference.phantom import Phantom, make_phantom, random_specs
from inference.pleura import FARTHEST_MM, pleural_contact
from inference.types import Index

FIT_SEED, TEST_SEED = 5000, 6000
GAPS_MM = (-3.0, -2.0, -1.0, 0.5, 1.5, 2.5, 3.5, 5.0, 8.0)
DIAMETERS_MM = (5.0, 8.0, 12.0, 20.0)
TISSUE_HU = 35
UNSURE_MM = 2.0
RIDGE = 3e-3

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """One nodule: what is true of it and what was measured."""

    seed: int
    kind: str
    gap_mm: float | None
    diameter_mm: float
    attached: bool
    distance_mm: float
    depth_mm: float
    share: float
    probability: float


@dataclass(frozen=True)
class Placed:
    """A nodule before it is measured."""

    mask: Mask
    kind: str
    gap_mm: float | None
    diameter_mm: float
    attached: bool


def drawn_cases(seed: int) -> Iterator[Case]:
    """The phantom's own nodules: attached where they touch what is neither lung nor airway."""
    phantom = make_phantom(seed, nodules=random_specs(np.random.default_rng(seed), 8))
    outside = ndimage.binary_dilation(phantom.truth == 0)
    placed = []
    for nodule in phantom.nodules:
        mask = phantom.truth == nodule.label
        placed.append(Placed(mask, "drawn", None, nodule.diameter_mm, bool((mask & outside).any())))
    yield from _measured(phantom, placed)


def ball_cases(seed: int) -> Iterator[Case]:
    """Balls at chosen gaps from the true pleura of a chest without nodules."""
    phantom = make_phantom(seed, nodules=())
    rng = np.random.default_rng(seed)
    lung = np.isin(phantom.truth, (1, 2))
    # a bronchus in the lung is no pleura
    depth = ndimage.distance_transform_edt(phantom.truth > 0, sampling=phantom.volume.spacing_mm)
    array, free = phantom.volume.array.copy(), lung.copy()
    placed = []
    for gap in GAPS_MM:
        diameter = float(rng.choice(DIAMETERS_MM))
        # depth counts to the next voxel centre, the pleura lies half a pixel before it
        wanted = diameter / 2 + gap + min(phantom.volume.spacing_mm) / 2
        options = np.argwhere((np.abs(depth - wanted) < 0.4) & free)
        options = options[np.abs(options[:, 0] - lung.shape[0] / 2) < 0.3 * lung.shape[0]]
        if len(options) == 0:
            continue
        ball = _ball(phantom, options[rng.integers(len(options))], diameter) & lung
        if not free[ball].all():
            continue
        array[ball] = TISSUE_HU + rng.normal(0, 20, int(ball.sum()))
        free &= ~ndimage.binary_dilation(ball, iterations=6)
        placed.append(Placed(ball, "ball", gap, diameter, gap < 0))
    yield from _measured(replace(phantom, volume=replace(phantom.volume, array=array)), placed)


def _ball(phantom: Phantom, centre: NDArray[np.intp], diameter: float) -> Mask:
    axes = np.ogrid[tuple(slice(size) for size in phantom.truth.shape)]
    steps = zip(axes, centre, phantom.volume.spacing_mm, strict=True)
    return np.asarray(sum(((a - c) * d) ** 2 for a, c, d in steps) < (diameter / 2) ** 2)


def _measured(phantom: Phantom, nodules: Sequence[Placed]) -> Iterator[Case]:
    lungs = find_lungs(phantom.volume)
    for nodule in nodules:
        (place,) = ndimage.find_objects(nodule.mask.astype(np.uint8))
        origin: Index = (place[0].start, place[1].start, place[2].start)
        found = pleural_contact(phantom.volume, lungs, nodule.mask[place], origin)
        if found is not None:
            yield Case(
                phantom.seed,
                nodule.kind,
                nodule.gap_mm,
                nodule.diameter_mm,
                nodule.attached,
                found.distance_mm,
                found.depth_mm,
                found.contact_share,
                found.probability,
            )


def fit(cases: list[Case]) -> dict[str, float]:
    """Ridge logistic regression on the depth by Newton's method; gaps of 0 to 2 mm are left out."""
    cases = [c for c in cases if c.gap_mm is None or not 0 <= c.gap_mm <= UNSURE_MM]
    x = np.array([[1.0, np.clip(c.depth_mm, -FARTHEST_MM, FARTHEST_MM)] for c in cases])
    y = np.array([c.attached for c in cases], float)
    beta = np.zeros(2)
    penalty = np.diag([0.0, RIDGE]) * len(cases)
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        step = np.linalg.solve(
            (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(2),
            x.T @ (p - y) + penalty @ beta,
        )
        beta -= step
        if np.abs(step).max() < 1e-9:
            break
    return {"half_mm": float(-beta[0] / beta[1]), "per_mm": float(-beta[1])}


def summary(cases: list[Case]) -> dict[str, object]:
    """Share called attached, by truth and gap."""
    groups = {
        "drawn, touching the pleura": [c for c in cases if c.kind == "drawn" and c.attached],
        "drawn, apart from it": [c for c in cases if c.kind == "drawn" and not c.attached],
        **{f"ball, gap {gap:g} mm": [c for c in cases if c.gap_mm == gap] for gap in GAPS_MM},
    }
    error = [c.distance_mm - c.gap_mm for c in cases if c.gap_mm is not None and c.gap_mm > UNSURE_MM]
    return {
        "called_attached": {
            name: {"attached": sum(c.probability >= 0.5 for c in group), "of": len(group)}
            for name, group in groups.items()
            if group
        },
        "distance_error_mm": {
            "gaps above 2 mm": len(error),
            "mean": float(np.mean(error)) if error else None,
            "sd": float(np.std(error)) if error else None,
        },
        "wrong": [
            asdict(c)
            for c in cases
            if (c.probability >= 0.5) != c.attached and not 0 <= (c.gap_mm or 9) <= UNSURE_MM
        ],
    }


def main() -> None:
    """Run from the command line; writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10, help="chests of each kind")
    parser.add_argument("--fit", action="store_true", help="fit on seeds of its own and print the weights")
    chosen = parser.parse_args()
    first = FIT_SEED if chosen.fit else TEST_SEED
    cases = [case for n in range(chosen.cases) for case in (*drawn_cases(first + n), *ball_cases(first + n))]
    report: dict[str, object] = {"cases": len(cases), "first_seed": first, **summary(cases)}
    if chosen.fit:
        report["weights"] = fit(cases)
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
