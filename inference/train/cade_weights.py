"""Fit the decision of the classical detector.

``python -m inference.train.cade_weights --cubes cubes_51.npz --scan LIDC-IDRI-0001=DIR ...``

Candidates of phantoms and of the 51 mm LIDC-IDRI cubes are labelled by their overlap with the known nodule;
candidates of whole scans away from `LESIONS` are negatives: hila and chest wall, which cubes hardly show. A
ridge-penalised logistic regression on `inference.cade.terms` is fitted to them and shifted so that
`OPERATING_POINT` becomes one half. Written as JSON: the parameters of the card, the area under the ROC curve
with patients and phantoms held out in five folds, and what each scan would show with that scan held out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.cade import Candidate, candidates, probability, terms
from inference.evaluate.lidc import cube_field, read_cubes
from inference.load import load_series
from inference.lungs import find_lungs
from inference.phantom import make_phantom, random_specs
from inference.registry import DETECTION, load_pipeline

FIRST_SEED = 2000
HIT_DICE, MISS_DICE = 0.35, 0.05
RIDGE = 4.0
FOLDS = 5
OPERATING_POINT = 0.74
SHARES = {
    ("lidc", True): 0.5,
    ("phantom", True): 0.5,
    ("lidc", False): 0.3,
    ("phantom", False): 0.2,
    ("scan", False): 0.5,
}
"""Total weight of each kind of sample."""
LESIONS: dict[str, tuple[tuple[tuple[float, float, float], float], ...]] = {
    "LIDC-IDRI-0001": (((57.0, 86.0, -115.0), 20.0),),
    "C3N-00247": (((-83.0, -195.0, -195.0), 20.0), ((106.0, -131.0, -195.0), 8.0)),
    "Lung_Dx-A0001": (((40.0, 202.0, -209.0), 48.0),),
}
"""LPS centre and radius, mm, inside which candidates of a scan are no negatives."""
HELD_OUT_PATIENTS = ("LIDC-IDRI-0001",)  # its mass, found in the whole scan, is an acceptance case

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One labelled candidate."""

    source: str
    group: str
    features: Mapping[str, float]
    is_nodule: bool


def phantom_samples(seed: int) -> Iterator[Sample]:
    """Labelled candidates of one phantom with random nodules."""
    phantom = make_phantom(seed, nodules=random_specs(np.random.default_rng(seed), 8))
    truths = [phantom.truth == nodule.label for nodule in phantom.nodules]
    found = candidates(phantom.volume, find_lungs(phantom.volume))
    yield from _labelled(found, truths, "phantom", f"seed {seed}")


def cube_samples(archive: Path) -> Iterator[Sample]:
    """Labelled candidates of the LIDC-IDRI cubes (51 mm at 1 mm, one reader's mask each)."""
    for cube in read_cubes(archive):
        if cube.patient not in HELD_OUT_PATIENTS:
            found = candidates(cube.volume, cube_field(cube.volume))
            yield from _labelled(found, [cube.truth], "lidc", cube.patient)


def scan_samples(name: str, folder: Path) -> Iterator[Sample]:
    """Candidates of a whole scan that are no lesion."""
    volume = load_series(sorted(folder.rglob("*.dcm"))).volume
    for candidate in candidates(volume, find_lungs(volume)):
        index = np.array(candidate.origin) + (np.array(candidate.mask.shape) - 1) / 2
        centre = volume.index_to_lps(index)
        if all(np.linalg.norm(centre - np.array(at)) > radius for at, radius in LESIONS[name]):
            yield Sample("scan", name, candidate.features, is_nodule=False)


def _labelled(
    found: tuple[Candidate, ...], truths: list[NDArray[np.bool_]], source: str, group: str
) -> Iterator[Sample]:
    """Sure hits and sure misses; what touches a nodule without covering it is left out."""
    for candidate in found:
        place = candidate.slices()
        best = max(
            2 * int((t[place] & candidate.mask).sum()) / (int(t.sum()) + int(candidate.mask.sum()))
            for t in truths
        )
        if best > HIT_DICE or best < MISS_DICE:
            yield Sample(source, group, candidate.features, best > HIT_DICE)


def fit(samples: list[Sample]) -> dict[str, float]:
    """Ridge logistic regression by Newton's method, samples weighted by `SHARES`."""
    names = list(terms(samples[0].features))
    x = np.array([[1.0, *terms(s.features).values()] for s in samples])
    y = np.array([s.is_nodule for s in samples], float)
    kinds = [(s.source, s.is_nodule) for s in samples]
    weight = np.array([SHARES[kind] / kinds.count(kind) for kind in kinds])
    weight *= len(samples) / weight.sum()
    penalty = np.diag([0.0, *[RIDGE] * len(names)])
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        gradient = x.T @ (weight * (p - y)) + penalty @ beta
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        beta -= step
        if np.abs(step).max() < 1e-8:
            break
    shift = float(np.log(OPERATING_POINT / (1 - OPERATING_POINT)))
    return {
        "intercept": float(beta[0]) - shift,
        **{f"weight_{n}": float(b) for n, b in zip(names, beta[1:], strict=True)},
    }


def roc_area(scores: Floats, labels: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve (Mann-Whitney), None without samples of both kinds."""
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return None
    return float(
        (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
    )


def held_out_scores(samples: list[Sample]) -> Floats:
    """Scores of each sample by weights fitted without its fold; each scan is a fold of its own."""
    groups = sorted({s.group for s in samples if s.source != "scan"})
    fold = {group: str(number % FOLDS) for number, group in enumerate(groups)}
    of = [s.group if s.source == "scan" else fold[s.group] for s in samples]
    scores = np.zeros(len(samples))
    for name in sorted(set(of)):
        weights = fit([s for s, other in zip(samples, of, strict=True) if other != name])
        for at, sample in enumerate(samples):
            if of[at] == name:
                scores[at] = probability(sample.features, weights)
    return scores


def figures(samples: list[Sample]) -> dict[str, object]:
    """What the fit and the weights of the present card do on samples that the fit didn't see."""
    current = load_pipeline("classical").card(DETECTION).parameters
    by_card = np.array([probability(s.features, current) for s in samples])
    held_out = held_out_scores(samples)
    found: dict[str, object] = {}
    for source in ("phantom", "lidc", "scan"):
        here = np.array([s.source == source for s in samples])
        labels = np.array([s.is_nodule for s in samples])[here]
        found[source] = {
            "groups": len({s.group for s in samples if s.source == source}),
            "nodules": int(labels.sum()),
            "others": int((~labels).sum()),
            "auc_held_out": roc_area(held_out[here], labels),
            "auc_of_card": roc_area(by_card[here], labels),
            "nodules_kept": int((held_out[here][labels] >= 0.5).sum()),
            "others_kept": int((held_out[here][~labels] >= 0.5).sum()),
        }
    return found


def main() -> None:
    """Fit and write parameters and figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cubes", type=Path, required=True)
    parser.add_argument("--scan", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--phantoms", type=int, default=16)
    chosen = parser.parse_args()
    samples = list(cube_samples(chosen.cubes))
    for entry in chosen.scan:
        name, folder = entry.split("=", 1)
        samples.extend(scan_samples(name, Path(folder)))
    for number in range(chosen.phantoms):
        samples.extend(phantom_samples(FIRST_SEED + number))
    low, high = (
        load_pipeline("classical").card(DETECTION).parameters[key]
        for key in ("min_diameter_mm", "max_diameter_mm")
    )
    samples = [s for s in samples if low <= s.features["diameter_mm"] <= high]
    report = {"parameters": fit(samples), "held_out": figures(samples)}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
