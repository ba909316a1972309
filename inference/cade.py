"""Nodule candidates and their decision, classical: blobs in scale space, a mask grown on the source grid.

`candidates` is made for sensitivity and stays as the generator in front of trained models; `detect`
keeps the few that look like nodules. Blobs are maxima of the scale-normalised Laplacian (Lindeberg, IJCV
30:79-116, 1998); tubes and sheets are told from balls by the eigenvalues of the Hessian (Li, Sone and
Doi, Med Phys 30:2040-2051, 2003).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from inference.lungs import Lungs
from inference.segment import Segment, grow
from inference.types import Index, Volume

PARENCHYMA_HU = -860.0
CEILING_HU = 150.0

# (grid pitch mm, blob scales sigma mm); a ball of radius r answers most at sigma = r / sqrt(3)
LEVELS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1.25, (1.5, 2.1)),
    (2.0, (2.9, 4.0)),
    (4.0, (5.6, 7.8, 10.5)),
)
MIN_RESPONSE_HU = 55.0
MIN_ROUNDNESS = 0.12
MAX_PEAKS = 160  # of each scale
SAME_PLACE = 0.9  # of the larger sigma
SETTLED_SOLIDITY = 0.75  # a candidate as compact as this answers for every weaker peak inside it

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One place that may be a nodule.

    Parameters
    ----------
    mask
        bool, cropped, on the source grid.
    origin
        Index in the volume of ``mask[0, 0, 0]``.
    scale_mm
        Sigma of the strongest blob response, mm.
    features
        Named numbers that the decision weighs, see `terms`.
    score
        0..1, what `detect` ranks by.
    """

    mask: Mask
    origin: Index
    scale_mm: float
    features: Mapping[str, float]
    score: float = 0.0

    def slices(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in the volume."""
        z, y, x = (slice(o, o + n) for o, n in zip(self.origin, self.mask.shape, strict=True))
        return z, y, x


@dataclass(frozen=True)
class _Peaks:
    """Blob maxima, strongest first: index in source voxels (n, 3); the others are of shape (n,)."""

    index: NDArray[np.float64]
    sigma: NDArray[np.float64]
    response: NDArray[np.float64]
    roundness: NDArray[np.float64]


def candidates(volume: Volume, lungs: Lungs, *, device: str | torch.device = "cpu") -> tuple[Candidate, ...]:
    """Find what could be a nodule of 3 to 40 mm, many and unranked: the generator for later stages.

    Parameters
    ----------
    volume
        CT in HU.
    lungs
        Its lung field.
    device
        Where the scale space is computed.

    Returns
    -------
    tuple of Candidate
        In falling order of blob response; masks may overlap.
    """
    field = lungs.labels > 0
    peaks = _find_peaks(volume, lungs, torch.device(device))
    spacing = volume.spacing_mm
    taken = np.zeros(field.shape, np.bool_)
    found: list[Candidate] = []
    for number in range(len(peaks.sigma)):
        nearest = tuple(np.round(peaks.index[number]).astype(int))
        if taken[nearest]:
            continue
        radius = float(peaks.sigma[number]) * 3**0.5
        segment = grow(volume.array, field, peaks.index[number], radius, spacing)
        if segment is not None and segment.leaked and segment.inscribed_mm > 0.8 * radius:
            # a small maximum inside something large: look again with a wider view
            segment = grow(volume.array, field, peaks.index[number], 2 * radius, spacing)
        if segment is None or segment.leaked:
            continue
        features = describe(segment, spacing)
        features["response_hu"] = float(peaks.response[number])
        features["roundness"] = float(peaks.roundness[number])
        candidate = Candidate(segment.mask, segment.origin, float(peaks.sigma[number]), features)
        found.append(candidate)
        if features["solidity"] > SETTLED_SOLIDITY:
            taken[candidate.slices()] |= segment.mask
    return tuple(found)


def describe(segment: Segment, spacing_mm: tuple[float, float, float]) -> dict[str, float]:
    """Shape numbers of a mask: size, and how much of a ball it is."""
    points = np.argwhere(segment.mask) * np.array(spacing_mm)
    volume = len(points) * float(np.prod(spacing_mm))
    spread = np.cov(points.T) if len(points) > 3 else np.zeros((3, 3))
    # a voxel is a box: its own spread is part of the shape's
    variance = np.linalg.eigvalsh(spread + np.diag(np.array(spacing_mm) ** 2 / 12))[::-1]
    axes = np.sqrt(5 * np.maximum(variance, 1e-3))  # half-axes of the ellipsoid with these moments
    return {
        "volume_mm3": volume,
        "diameter_mm": float((6 * volume / np.pi) ** (1 / 3)),
        "elongation": float(axes[0] / axes[1]),
        "flatness": float(axes[1] / axes[2]),
        "solidity": float(volume / (4 / 3 * np.pi * np.prod(axes))),
        "inscribed_mm": segment.inscribed_mm,
        "attached": segment.attached,
        "border": segment.border,
        "contrast_hu": segment.contrast_hu,
    }


def terms(features: Mapping[str, float]) -> dict[str, float]:
    """What the decision weighs: features brought to comparable size, each bounded."""

    def logarithm(value: float, limit: float) -> float:
        return float(np.clip(np.log(max(value, 1e-3)), -limit, limit))

    return {
        "size": logarithm(features["diameter_mm"] / 8, 1.5),
        "elongation": logarithm(features["elongation"], 1.2),
        "flatness": logarithm(features["flatness"], 1.2),
        "solidity": float(np.clip(features["solidity"], 0, 1.1)),
        "ragged": float(np.clip(0.75 - features["solidity"], 0, 0.6)),
        "attached": features["attached"],
        "border": features["border"],
        "flush": float(np.clip(features["border"] - 0.35, 0, 0.6)),
        "roundness": features["roundness"],
        "contrast": float(np.clip(features["contrast_hu"] / 500, 0, 2)),
        "answer": float(np.clip(features["response_hu"] / max(features["contrast_hu"], 50), 0, 2)),
    }


def probability(features: Mapping[str, float], parameters: Mapping[str, float]) -> float:
    """Logistic of the weighted terms; the weights are the card's ``weight_*`` parameters."""
    total = parameters["intercept"] + sum(
        parameters[f"weight_{name}"] * value for name, value in terms(features).items()
    )
    return float(1 / (1 + np.exp(-np.clip(total, -30, 30))))


def detect(
    volume: Volume,
    lungs: Lungs,
    parameters: Mapping[str, float],
    *,
    device: str | torch.device = "cpu",
) -> tuple[Candidate, ...]:
    """Keep the candidates that look like nodules.

    Parameters
    ----------
    volume, lungs, device
        As for `candidates`.
    parameters
        Of the card: ``intercept`` and ``weight_*`` of the decision, ``min_probability``,
        ``min_diameter_mm``, ``max_diameter_mm``, ``min_slices`` (least diameter in slices), ``min_solidity``,
        ``max_findings``.

    Returns
    -------
    tuple of Candidate
        In falling order of `score`; masks never overlap.
    """
    # what is hardly thicker than a slice shows no shape to judge
    low = max(parameters["min_diameter_mm"], parameters["min_slices"] * max(volume.spacing_mm))
    high = parameters["max_diameter_mm"]
    scored = [
        replace(candidate, score=probability(candidate.features, parameters))
        for candidate in candidates(volume, lungs, device=device)
        if low <= candidate.features["diameter_mm"] <= high
        and candidate.features["solidity"] >= parameters["min_solidity"]  # less is a tree of vessels
    ]
    scored.sort(key=lambda candidate: (-candidate.score, candidate.origin))
    taken = np.zeros(volume.array.shape, np.bool_)
    kept: list[Candidate] = []
    for candidate in scored:
        if candidate.score < parameters["min_probability"] or len(kept) >= parameters["max_findings"]:
            break
        place = candidate.slices()
        if not (taken[place] & candidate.mask).any():
            taken[place] |= candidate.mask
            kept.append(candidate)
    return tuple(kept)


def _find_peaks(volume: Volume, lungs: Lungs, device: torch.device) -> _Peaks:
    """Blob maxima of all scales inside the lung field."""
    place = lungs.bounds()
    array, field = volume.array[place], lungs.labels[place] > 0
    base = np.where(field, np.clip(array, -1000, CEILING_HU), PARENCHYMA_HU).astype(np.float32)
    grid = torch.from_numpy(base).to(device)
    inside = torch.from_numpy(field.astype(np.float32)).to(device)
    corner = np.array([s.start for s in place], float)
    pitch = np.array(volume.spacing_mm)
    parts = []
    with torch.inference_mode():
        for step, sigmas in LEVELS:
            shape = [max(round(n * d / max(step, d)), 1) for n, d in zip(grid.shape, pitch, strict=True)]
            ratio = np.array(grid.shape) / np.array(shape)
            grid, inside = _shrink(grid, shape), _shrink(inside, shape)
            pitch = pitch * ratio
            for sigma in sigmas:
                index, response, roundness = _blobs(grid, inside > 0.5, pitch, sigma)
                in_source = (index + 0.5) * (pitch / np.array(volume.spacing_mm)) - 0.5 + corner
                parts.append((in_source, np.full(len(index), sigma), response, roundness))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return _strongest(_Peaks(*columns), volume.spacing_mm)


def _strongest(peaks: _Peaks, spacing_mm: tuple[float, float, float]) -> _Peaks:
    """Sort by strength and drop what a stronger peak of a similar scale at nearly the same place covers."""
    order = np.argsort(-peaks.response * peaks.roundness, kind="stable")
    points, sigma = peaks.index[order] * np.array(spacing_mm), peaks.sigma[order]
    gap = np.linalg.norm(points[:, None] - points[None], axis=2)
    larger = np.maximum(sigma[:, None], sigma[None])
    covered = (gap < SAME_PLACE * larger) & (larger < 2.1 * np.minimum(sigma[:, None], sigma[None]))
    keep = np.ones(len(order), bool)
    for number in range(len(order)):
        if keep[number]:
            keep[number + 1 :] &= ~covered[number, number + 1 :]
    order = order[keep]
    return _Peaks(peaks.index[order], peaks.sigma[order], peaks.response[order], peaks.roundness[order])


def _shrink(grid: torch.Tensor, shape: list[int]) -> torch.Tensor:
    if list(grid.shape) == shape:
        return grid
    return torch.nn.functional.interpolate(grid[None, None], size=shape, mode="area")[0, 0]


def _blobs(
    grid: torch.Tensor, inside: torch.Tensor, pitch: NDArray[np.float64], sigma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Maxima (n, 3), response (n,) in HU and roundness (n,) at one scale."""
    smooth = grid[None, None]
    for axis in range(3):
        smooth = _smooth_axis(smooth, sigma / float(pitch[axis]), axis)
    response = _laplacian(smooth, pitch) * -(sigma**2)
    peak = torch.nn.functional.max_pool3d(response, 3, stride=1, padding=1)
    where = (response >= peak) & (response > MIN_RESPONSE_HU) & inside[None, None]
    for axis in range(2, 5):  # a maximum on the edge has no neighbours to judge it by
        where.narrow(axis, 0, 1).fill_(False)
        where.narrow(axis, where.shape[axis] - 1, 1).fill_(False)
    index = torch.nonzero(where[0, 0])
    values = response[0, 0][where[0, 0]].double().cpu().numpy()
    roundness = _roundness(smooth[0, 0], index, pitch)
    best = np.argsort(-values * roundness, kind="stable")[:MAX_PEAKS]
    best = best[roundness[best] > MIN_ROUNDNESS]
    return index.cpu().numpy()[best].astype(float), values[best], roundness[best]


def _smooth_axis(grid: torch.Tensor, sigma: float, axis: int) -> torch.Tensor:
    """Gaussian along one axis of (1, 1, z, y, x), edges repeated."""
    half = max(int(np.ceil(3.5 * sigma)), 1)
    at = torch.arange(-half, half + 1, dtype=torch.float32, device=grid.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    shape = [1, 1, 1, 1, 1]
    shape[2 + axis] = len(at)
    pad = [0] * 6
    pad[4 - 2 * axis] = pad[5 - 2 * axis] = half
    padded = torch.nn.functional.pad(grid, pad, mode="replicate")
    return torch.nn.functional.conv3d(padded, (kernel / kernel.sum()).reshape(shape))


def _laplacian(grid: torch.Tensor, pitch: NDArray[np.float64]) -> torch.Tensor:
    """Sum of the second differences, HU / mm2; 0 on the faces."""
    total = torch.zeros_like(grid)
    for axis in range(3):
        size = grid.shape[2 + axis] - 2
        low, mid, high = (grid.narrow(2 + axis, start, size) for start in (0, 1, 2))
        total.narrow(2 + axis, 1, size).add_((low - 2 * mid + high) / float(pitch[axis]) ** 2)
    return total


def _roundness(smooth: torch.Tensor, index: torch.Tensor, pitch: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest over largest curvature at each point (n, 3): 1 for a ball, 0 for a tube or sheet."""
    if len(index) == 0:
        return np.zeros(0)
    h = torch.empty((len(index), 3, 3), dtype=torch.float64, device=smooth.device)

    def value(*offset: int) -> torch.Tensor:
        at = index + torch.tensor(offset, device=index.device)
        return smooth[at[:, 0], at[:, 1], at[:, 2]].double()

    unit = np.eye(3, dtype=int)
    for i in range(3):
        e = unit[i]
        h[:, i, i] = (value(*e) - 2 * value(0, 0, 0) + value(*-e)) / pitch[i] ** 2
        for j in range(i):
            f = unit[j]
            mixed = value(*(e + f)) - value(*(e - f)) - value(*(f - e)) + value(*(-e - f))
            h[:, i, j] = h[:, j, i] = mixed / (4 * pitch[i] * pitch[j])
    curvature = torch.linalg.eigvalsh(h).cpu().numpy()  # ascending: the strongest (negative) first
    ratio: NDArray[np.float64] = np.clip(curvature[:, 2] / np.minimum(curvature[:, 0], -1e-6), 0, 1)
    return ratio
