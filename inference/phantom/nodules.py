"""Nodules with known truth: size, attenuation, margin, attachment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.phantom.anatomy import LABEL_FIRST_NODULE, LABEL_LEFT_LUNG, LABEL_RIGHT_LUNG
from inference.phantom.paint import Array, Grid, capsule, occupancy
from inference.phantom.trees import Branch
from inference.types import Attenuation, Laterality, Point


class Margin(StrEnum):
    """Outline of a nodule."""

    SMOOTH = "smooth"
    LOBULATED = "lobulated"
    SPICULATED = "spiculated"


class Attachment(StrEnum):
    """What a nodule touches."""

    ISOLATED = "isolated"
    JUXTAPLEURAL = "juxtapleural"
    JUXTAVASCULAR = "juxtavascular"


@dataclass(frozen=True)
class NoduleSpec:
    """What to draw; the place is drawn from the seed."""

    diameter_mm: float
    attenuation: Attenuation = Attenuation.SOLID
    margin: Margin = Margin.SMOOTH
    attachment: Attachment = Attachment.ISOLATED

    def __post_init__(self) -> None:
        if not 2.0 <= self.diameter_mm <= 40.0:
            raise ValueError(f"a phantom nodule measures 2 to 40 mm, not {self.diameter_mm}")


@dataclass(frozen=True)
class PhantomNodule:
    """The truth of one drawn nodule.

    Parameters
    ----------
    label
        Its value in `Phantom.truth`.
    centre_lps
        Patient coordinates of the centre of the drawn shape, mm.
    diameter_mm
        Diameter of the sphere the shape was built on.
    volume_mm3
        Of the voxels of its label (spicules are not part of it).
    laterality
        Side of the patient.
    """

    label: int
    centre_lps: Point
    diameter_mm: float
    volume_mm3: float
    attenuation: Attenuation
    margin: Margin
    attachment: Attachment
    laterality: Laterality


DEFAULT_NODULES = (
    NoduleSpec(20.0, margin=Margin.SPICULATED),
    NoduleSpec(16.0, Attenuation.PART_SOLID),
    NoduleSpec(14.0, margin=Margin.LOBULATED),
    NoduleSpec(13.0, Attenuation.GROUND_GLASS),
    NoduleSpec(10.0, attachment=Attachment.JUXTAPLEURAL),
    NoduleSpec(8.0),
    NoduleSpec(7.0, attachment=Attachment.JUXTAVASCULAR),
)


def random_specs(rng: np.random.Generator, count: int) -> tuple[NoduleSpec, ...]:
    """Draw nodules of 4 to 30 mm: mostly solid and small, a third subsolid, every margin and attachment."""
    specs = []
    for _ in range(count):
        diameter = float(np.round(np.exp(rng.uniform(np.log(4), np.log(30))), 1))
        kind = rng.choice(3, p=(0.66, 0.17, 0.17))
        if kind and diameter < 7:
            diameter += 4
        margin = tuple(Margin)[rng.choice(3, p=(0.5, 0.25, 0.25))]
        attachment = tuple(Attachment)[rng.choice(3, p=(0.55, 0.25, 0.2))]
        specs.append(NoduleSpec(diameter, tuple(Attenuation)[kind], margin, attachment))
    return tuple(specs)


def place(
    specs: Sequence[NoduleSpec],
    labels: NDArray[np.uint8],
    grid: Grid,
    vessels: Sequence[Branch],
    rng: np.random.Generator,
) -> list[NDArray[np.float64]]:
    """Find a centre ((z, y, x) mm) for each nodule: apart from each other, attached as asked.

    Raises
    ------
    ValueError
        The lungs have no room for one.
    """
    lungs = (labels == LABEL_RIGHT_LUNG) | (labels == LABEL_LEFT_LUNG)
    dz, dy, dx = grid.spacing_mm
    lungs = lungs[:, ::2, ::2]  # every second pixel is enough to place a nodule
    coarse = Grid((lungs.shape[0], lungs.shape[1], lungs.shape[2]), (dz, 2 * dy, 2 * dx))
    depth = ndimage.distance_transform_edt(lungs, sampling=coarse.spacing_mm)
    centres: list[NDArray[np.float64]] = []
    for spec in specs:
        radius = spec.diameter_mm / 2
        if spec.attachment is Attachment.JUXTAPLEURAL:
            options = _voxels_mm((depth > 0.45 * radius) & (depth < 0.75 * radius + 1), coarse)
        elif spec.attachment is Attachment.JUXTAVASCULAR:
            options = _beside_vessels(radius, vessels, rng)
            index = np.round((options - np.array(coarse.origin_mm)) / np.array(coarse.spacing_mm)).astype(int)
            inside = ((index >= 0) & (index < lungs.shape)).all(axis=1)
            options, index = options[inside], index[inside]
            options = options[depth[tuple(index.T)] > radius + 4]
        else:
            options = _voxels_mm(depth > radius + 4, coarse)
        keep = np.abs(options[:, 0]) < -grid.origin_mm[0] - radius - 4  # inside the scanned range
        for other, placed in zip(centres, specs, strict=False):
            gap = radius + placed.diameter_mm / 2 + 12
            keep &= np.linalg.norm(options - other, axis=1) > gap
        options = options[keep]
        side = rng.choice((-1, 1))
        if (options[:, 2] * side > 0).any():
            options = options[options[:, 2] * side > 0]
        if len(options) == 0:
            raise ValueError(f"no room in the lungs for a {spec.diameter_mm} mm {spec.attachment} nodule")
        centres.append(options[rng.integers(len(options))] + rng.uniform(-0.5, 0.5, 3))
    return centres


def _voxels_mm(allowed: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """Coordinates (n, 3), (z, y, x) mm, of the voxels set in `allowed`."""
    index = np.column_stack(np.nonzero(allowed))
    return np.asarray(index * np.array(grid.spacing_mm) + np.array(grid.origin_mm))


def _beside_vessels(
    radius: float, vessels: Sequence[Branch], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Centres whose sphere touches a vessel of 1 to 2.5 mm radius, (n, 3)."""
    options = []
    for branch in vessels:
        if 1.0 < branch.radii[1] < 2.5:
            axis = branch.end - branch.start
            normal = np.cross(axis, rng.standard_normal(3))
            normal /= np.linalg.norm(normal) + 1e-9
            options.append(branch.start + 0.6 * axis + normal * (radius + 0.6 * branch.radii[1]))
    return np.array(options).reshape(-1, 3)


@dataclass(frozen=True)
class Scene:
    """What is drawn on: HU (float32) and labels (uint8), both (z, y, x), changed in place."""

    values: Array
    labels: NDArray[np.uint8]
    grid: Grid
    rng: np.random.Generator


def draw_nodules(
    scene: Scene, placed: Sequence[tuple[NoduleSpec, NDArray[np.float64]]]
) -> tuple[PhantomNodule, ...]:
    """Paint the nodules into the scene and return their truth."""
    return tuple(
        _draw_one(scene, spec, centre, LABEL_FIRST_NODULE + number)
        for number, (spec, centre) in enumerate(placed)
    )


_EDGE_MM = {Attenuation.PART_SOLID: 2.5, Attenuation.GROUND_GLASS: 2.8}
_BODY_HU = {Attenuation.SOLID: 35.0, Attenuation.PART_SOLID: -560.0, Attenuation.GROUND_GLASS: -600.0}


def _draw_one(scene: Scene, spec: NoduleSpec, centre: NDArray[np.float64], label: int) -> PhantomNodule:
    grid, rng, radius = scene.grid, scene.rng, spec.diameter_mm / 2
    box = grid.box(centre - 1.5 * radius - 4, centre + 1.5 * radius + 4)
    if box is None:
        raise ValueError("the nodule lies outside the grid")
    width = grid.spacing_mm[2]
    at = grid.coordinates(box)
    distance = _shape_distance(at, centre, radius, spec.margin, rng)
    in_lung = np.isin(scene.labels[box], (LABEL_RIGHT_LUNG, LABEL_LEFT_LUNG))
    drawn_in = in_lung | (ndimage.uniform_filter(in_lung.astype(np.float32), 3) > 0.4)
    if spec.margin is Margin.SPICULATED and spec.attenuation is not Attenuation.GROUND_GLASS:
        _draw_spicules(scene, centre, radius)
    texture = ndimage.gaussian_filter(rng.standard_normal(distance.shape), 1.2).astype(np.float32)
    hu = _BODY_HU[spec.attenuation] + texture * (20 if spec.attenuation is Attenuation.SOLID else 140)
    part = scene.values[box]
    part += occupancy(distance, _EDGE_MM.get(spec.attenuation, width)) * np.maximum(hu - part, 0) * drawn_in
    if spec.attenuation is Attenuation.PART_SOLID:
        shift = rng.uniform(-0.15, 0.15, 3) * radius
        core = _shape_distance(at, centre + shift, 0.5 * radius, Margin.LOBULATED, rng)
        part += occupancy(core, width) * np.maximum(20 - part, 0) * drawn_in
    inside = (distance < 0) & in_lung
    scene.labels[box][inside] = label
    return PhantomNodule(
        label=label,
        centre_lps=(float(centre[2]), float(centre[1]), float(centre[0])),
        diameter_mm=spec.diameter_mm,
        volume_mm3=float(inside.sum() * np.prod(grid.spacing_mm)),
        attenuation=spec.attenuation,
        margin=spec.margin,
        attachment=spec.attachment,
        laterality=Laterality.LEFT if centre[2] > 0 else Laterality.RIGHT,
    )


def _shape_distance(
    at: tuple[Array, Array, Array],
    centre: NDArray[np.float64],
    radius: float,
    margin: Margin,
    rng: np.random.Generator,
) -> Array:
    """Rough signed distance to a sphere with bumps, mm; lobulated nodules have larger ones."""
    z, y, x = at
    dz, dy, dx = z - np.float32(centre[0]), y - np.float32(centre[1]), x - np.float32(centre[2])
    squash = 1 + 0.09 * rng.uniform(-1, 1, 3)
    squash /= np.prod(squash) ** (1 / 3)
    length = np.sqrt((dz * squash[0]) ** 2 + (dy * squash[1]) ** 2 + (dx * squash[2]) ** 2) + np.float32(1e-3)
    size = {Margin.SMOOTH: 0.03, Margin.LOBULATED: 0.13, Margin.SPICULATED: 0.08}[margin]
    bumps = np.zeros_like(length)
    for _ in range(7):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        cosine = (dz * direction[0] + dy * direction[1] + dx * direction[2]) / length
        bumps += np.exp((cosine - 1) * 7).astype(np.float32)
    return np.asarray(length - radius * (1 + size * (bumps - 0.5)), dtype=np.float32)


def _draw_spicules(scene: Scene, centre: NDArray[np.float64], radius: float) -> None:
    """Thin tapering strands that leave the surface in all directions."""
    values, rng = scene.values, scene.rng
    for _ in range(int(14 + radius)):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        end = centre + direction * radius * rng.uniform(1.3, 1.7)
        found = capsule(scene.grid, centre + 0.7 * radius * direction, end, (0.09 * radius + 0.3, 0.25))
        if found is not None:
            box, filled = found
            values[box] += filled * np.maximum(np.float32(10) - values[box], 0)
