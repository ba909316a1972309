"""Train the second look of the nodule detector, which says of a peak whether it is a nodule.

The trained centre network marks peaks in cubes of `inference.train.detector_samples`, each shown as another
scanner would have given it. A peak on a nodule is an example of one, a peak elsewhere in the lungs a
counterexample, and the true centres are examples too, moved a little. From these cubes of 40 mm, flipped,
turned and shown with other noise and kernel each time, `inference.detector.SecondLook` learns; it begins with
the encoder of the centre network.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from inference.detector import (
    GRID_MM,
    PATCH,
    STRIDE,
    CentreNet,
    SecondLook,
    cut_patches,
    find_peaks,
    window,
)
from inference.train.detector_samples import Sample, as_scanned

_LOG = logging.getLogger(__name__)

AT_ONCE = 8
LEAST_SCORE = 0.01
MOST_FALSE = 8
"""False peaks that are kept of a cube, highest first."""

EDGE = 6
"""Voxels at the border of a cube whose peaks lack surroundings."""

Singles = NDArray[np.float32]


@dataclass(frozen=True)
class Examples:
    """Cubes to learn from.

    Parameters
    ----------
    hu
        int16, shape (n, 32, 32, 32).
    nodule
        bool, shape (n,).
    logit
        float32, shape (n,): height of the peak; NaN for a true centre that is no peak.
    """

    hu: NDArray[np.int16]
    nodule: NDArray[np.bool_]
    logit: Singles


@torch.inference_mode()
def collect(
    network: CentreNet, draw: Callable[[np.random.Generator], Sample], rng: np.random.Generator, cubes: int
) -> Examples:
    """Find peaks in so many cubes.

    Parameters
    ----------
    network
        In evaluation mode.
    draw
        Gives a cube.
    """
    rows: list[tuple[NDArray[np.int16], bool, float]] = []
    for start in range(0, cubes, AT_ONCE):
        samples = [draw(rng) for _ in range(min(AT_ONCE, cubes - start))]
        shown = torch.stack([as_scanned(rng, torch.from_numpy(one.hu.astype(np.float32))) for one in samples])
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(window(shown))
        for sample, hu, answer in zip(samples, shown[:, 0], maps.float(), strict=True):
            rows += _examples_of(sample, hu, answer, rng)
        if start % (AT_ONCE * 25) == 0:
            _LOG.info("%d cubes, %d examples, %d nodules", start, len(rows), sum(row[1] for row in rows))
    return Examples(
        np.stack([row[0] for row in rows]),
        np.array([row[1] for row in rows]),
        np.array([row[2] for row in rows], np.float32),
    )


def _examples_of(
    sample: Sample, hu: torch.Tensor, answer: torch.Tensor, rng: np.random.Generator
) -> list[tuple[NDArray[np.int16], bool, float]]:
    """What one cube gives; `hu` (64, 64, 64) as it was shown, `answer` (2, 32, 32, 32)."""
    cell, logit, _ = find_peaks(answer, torch.from_numpy(sample.counted.copy()), most=40, least=LEAST_SCORE)
    places = (cell + 0.5) * STRIDE - 0.5
    inner = ((places > EDGE) & (places < hu.shape[-1] - 1 - EDGE)).all(axis=1)
    chosen: list[tuple[NDArray[np.float64], bool, float]] = []
    false = 0
    for place, height in zip(places[inner], logit[inner], strict=True):
        gaps = np.linalg.norm(sample.lesions[:, :3] - place, axis=1) * GRID_MM
        radii = sample.lesions[:, 3] / 2
        hit = bool((gaps < np.maximum(radii, 2.5)).any())
        doubtful = (
            np.linalg.norm(sample.unknown[:, :3] - place, axis=1) * GRID_MM < sample.unknown[:, 3] / 2 + 5
        )
        if not hit and ((gaps < radii + 5).any() or doubtful.any() or false >= MOST_FALSE):
            continue
        false += not hit
        chosen.append((place, hit, float(height)))
    for row in sample.lesions:
        place = row[:3] + rng.uniform(-1.2, 1.2, 3)
        if ((place > EDGE) & (place < hu.shape[-1] - 1 - EDGE)).all():
            chosen.append((place.astype(np.float64), True, math.nan))
    patches = cut_patches(hu, np.array([place for place, _, _ in chosen]).reshape(-1, 3))[:, 0]
    cubes = patches.clamp(-1024, 3071).numpy().astype(np.int16)
    return [(cube, hit, height) for cube, (_, hit, height) in zip(cubes, chosen, strict=True)]


@dataclass(frozen=True)
class LookPlan:
    """How long and how; the rate falls as a cosine."""

    steps: int = 700
    batch: int = 64
    nodules: float = 0.4
    """Share of nodules in a batch."""

    rate: float = 1e-3
    seed: int = 0


def new_look(network: CentreNet, seed: int = 0) -> SecondLook:
    """Its encoder is that of the centre network, its head is random."""
    torch.manual_seed(seed)
    look = SecondLook()
    for part in ("stem", "first", "second", "third"):
        getattr(look, part).load_state_dict(getattr(network, part).state_dict())
    return look.to(memory_format=torch.channels_last_3d)


def train_look(look: SecondLook, examples: Examples, plan: LookPlan) -> SecondLook:
    """Train; the answer is the moving average of the weights, in evaluation mode."""
    rng = np.random.default_rng(plan.seed)
    optimizer = torch.optim.AdamW(look.parameters(), lr=plan.rate, weight_decay=2e-2)
    average = copy.deepcopy(look).eval()
    yes, no = np.flatnonzero(examples.nodule), np.flatnonzero(~examples.nodule)
    count, losses, began = round(plan.nodules * plan.batch), [], time.monotonic()
    for step in range(plan.steps):
        rate = plan.rate * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = np.concatenate([rng.choice(yes, count), rng.choice(no, plan.batch - count)])
        images = torch.stack([_seen_anew(rng, examples.hu[one]) for one in chosen])
        look.train()
        with torch.autocast("cpu", torch.bfloat16):
            answer = look(window(images))
        truth = torch.from_numpy(examples.nodule[chosen].astype(np.float32)) * 0.96 + 0.02
        loss = functional.binary_cross_entropy_with_logits(answer, truth)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        torch.nn.utils.clip_grad_norm_(look.parameters(), 2.0)
        optimizer.step()
        _follow(average, look, min(0.99, step / (step + 10)))
        losses.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            minutes = (time.monotonic() - began) / 60
            _LOG.info("step %d, %.1f min, loss %.4f", step + 1, minutes, np.mean(losses[-50:]))
    return average


def _follow(average: SecondLook, look: SecondLook, keep: float) -> None:
    with torch.no_grad():
        for mean, now in zip(average.state_dict().values(), look.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - keep)
            else:
                mean.copy_(now)


def _seen_anew(rng: np.random.Generator, hu: NDArray[np.int16]) -> torch.Tensor:
    """Flip, turn by a quarter about z, move by a voxel, with other noise and kernel; (1, 32, 32, 32)."""
    cube = hu[np.ix_(*(np.clip(np.arange(PATCH) + move, 0, PATCH - 1) for move in rng.integers(-1, 2, 3)))]
    for axis in range(3):
        if rng.random() < 0.5:
            cube = np.flip(cube, axis)
    if rng.random() < 0.5:
        cube = cube.swapaxes(1, 2)
    image = torch.from_numpy(np.ascontiguousarray(cube, np.float32))
    return as_scanned(rng, image, share=0.5)
