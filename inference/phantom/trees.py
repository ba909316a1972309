"""Branching vessels and airways that fill the lungs.

A branch grows towards the centroid of the points it supplies, then splits them in two along their
greatest spread: the space-filling scheme of Tawhai et al., Ann Biomed Eng 28:793-802 (2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.phantom.anatomy import CARINA_Z, LABEL_AIRWAY, LABEL_LEFT_LUNG, LABEL_RIGHT_LUNG, LEFT, RIGHT
from inference.phantom.paint import Array, Grid, mark_path

SUPPLY_POINTS = {"artery": 1500, "vein": 1000}
ROOT_RADIUS_MM = {"artery": 6.0, "vein": 5.5}
_THINNEST_MM = 0.5


@dataclass(frozen=True)
class Branch:
    """A straight piece of vessel, (z, y, x) mm, with its radii at start and end."""

    start: NDArray[np.float64]
    end: NDArray[np.float64]
    radii: tuple[float, float]


def hilum(side: int, kind: str) -> NDArray[np.float64]:
    """Where a tree enters the lung, (z, y, x) mm."""
    if kind == "artery":
        return np.array([10.0 if side == RIGHT else 18.0, 10.0, 38.0 * side])
    return np.array([-22.0, 13.0, 36.0 * side])


def grow(
    root: NDArray[np.float64], points: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> list[Branch]:
    """Grow one tree from `root` over the supply `points` ((n, 3), (z, y, x) mm)."""
    total = len(points)
    branches: list[Branch] = []
    stack = [(root, points, radius)]
    while stack:
        start, supplied, begin = stack.pop()
        to_centre = supplied.mean(axis=0) - start
        if len(supplied) == 1:
            branches.append(Branch(start, start + 0.8 * to_centre, (begin, _THINNEST_MM * 0.8)))
            continue
        reach = 0.42 + 0.08 * rng.standard_normal()
        end = start + reach * to_centre + 0.03 * np.linalg.norm(to_centre) * rng.standard_normal(3)
        finish = max(radius * (len(supplied) / total) ** 0.37, _THINNEST_MM)
        branches.append(Branch(start, end, (begin, finish)))
        spread = supplied - supplied.mean(axis=0)
        along = to_centre / (np.linalg.norm(to_centre) + 1e-9)
        flat = spread - np.outer(spread @ along, along)
        _, vectors = np.linalg.eigh(flat.T @ flat)
        position = flat @ vectors[:, -1]
        cut = np.quantile(position, float(np.clip(0.5 + 0.12 * rng.standard_normal(), 0.25, 0.75)))
        high = position > cut
        if high.all() or not high.any():
            high = np.arange(len(supplied)) % 2 == 0
        stack.extend((end, supplied[part], finish) for part in (high, ~high))
    return branches


def supply_points(
    labels: NDArray[np.uint8], grid: Grid, label: int, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw `count` points in one lung, (n, 3) (z, y, x) mm."""
    voxels = np.flatnonzero(labels == label)
    chosen = np.unravel_index(rng.choice(voxels, count, replace=False), labels.shape)
    index = np.column_stack(chosen) + rng.uniform(-0.5, 0.5, (count, 3))
    return np.asarray(index * np.array(grid.spacing_mm) + np.array(grid.origin_mm))


def airway_path(side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Trachea and one main bronchus: points (n, 3) and inner radii, mm."""
    root = hilum(side, "artery") + np.array([-4.0, 4.0, 0.0])
    carina = np.array([CARINA_Z, 14.0, -2.0])
    points = np.array([[170.0, 2.0, 0.0], [100.0, 8.0, 0.0], carina, 0.5 * (carina + root) + [2, 0, 0], root])
    radii = np.array([8.5, 8.8, 8.8, 6.8 if side == RIGHT else 6.2, 5.0])
    return points, radii


def draw_trees(
    values: Array, labels: NDArray[np.uint8], grid: Grid, rng: np.random.Generator
) -> tuple[Branch, ...]:
    """Paint arteries, veins and airways of both lungs in place.

    Returns
    -------
    tuple of Branch
        The vessels, for the placement of juxtavascular nodules.
    """
    filled = np.zeros(grid.shape, np.float32)
    vessels: list[Branch] = []
    arteries: dict[int, list[Branch]] = {}
    for side, label in ((RIGHT, LABEL_RIGHT_LUNG), (LEFT, LABEL_LEFT_LUNG)):
        if not (labels == label).any():
            continue
        for kind, count in SUPPLY_POINTS.items():
            points = supply_points(labels, grid, label, count, rng)
            tree = grow(hilum(side, kind), points, ROOT_RADIUS_MM[kind], rng)
            vessels.extend(tree)
            if kind == "artery":
                arteries[side] = tree
    for branch in vessels:
        mark_path(filled, grid, np.array([branch.start, branch.end]), np.array(branch.radii))
    values += filled * np.maximum(np.float32(45) - values, 0)
    _draw_airways(values, labels, grid, arteries)
    return tuple(vessels)


def _draw_airways(
    values: Array, labels: NDArray[np.uint8], grid: Grid, arteries: dict[int, list[Branch]]
) -> None:
    """Airways run beside the arteries: wall first, then the air-filled lumen."""
    wall = np.zeros(grid.shape, np.float32)
    lumen = np.zeros(grid.shape, np.float32)
    for side, tree in arteries.items():
        path, radii = airway_path(side)
        shift = path[-1] - hilum(side, "artery")
        for branch in tree:
            if branch.radii[1] > 1.3:
                beside = shift * (max(branch.radii) / ROOT_RADIUS_MM["artery"]) * 1.15
                begin, end = (0.8 * radius for radius in branch.radii)
                piece = Branch(branch.start + beside, branch.end + beside, (begin, end))
                _mark_airway(wall, lumen, grid, piece, 0.3 + 0.1 * begin)
    in_lung = labels > 0
    wall *= in_lung
    lumen *= in_lung
    for side in arteries:
        path, radii = airway_path(side)
        for k in range(len(path) - 1):
            piece = Branch(path[k], path[k + 1], (float(radii[k]), float(radii[k + 1])))
            _mark_airway(wall, lumen, grid, piece, 1.3)
    values += wall * np.maximum(np.float32(10) - values, 0)
    values += lumen * (np.float32(-985) - values)
    labels[lumen > 0.5] = LABEL_AIRWAY


def _mark_airway(wall: Array, lumen: Array, grid: Grid, branch: Branch, thickness_mm: float) -> None:
    ends = np.array([branch.start, branch.end])
    mark_path(wall, grid, ends, np.array(branch.radii) + thickness_mm)
    mark_path(lumen, grid, ends, np.array(branch.radii))
