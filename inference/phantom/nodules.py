"""Place nodules in the lungs and draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.phantom.anatomy import (
    LABEL_FIRST_NODULE,
    LABEL_LEFT_LUNG,
    LABEL_RIGHT_LUNG,
    LEFT,
    RIGHT,
    Plan,
    lobe_at,
)
from inference.phantom.paint import Array, Grid, capsule, occupancy
from inference.phantom.specs import Attachment, Calcification, Content, Margin, NoduleSpec, PhantomNodule
from inference.phantom.trees import Branch
from inference.types import Attenuation, Laterality

TAG_MM = 18.0


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
            options = options[depth[tuple(index.T)] > spec.reach_mm + 4]
        else:
            allowed = depth > spec.reach_mm + 4
            if spec.pleural_tag:  # an airway is no pleura
                inside_pleura = labels[:, ::2, ::2] > 0
                below = ndimage.distance_transform_edt(inside_pleura, sampling=coarse.spacing_mm)
                allowed &= below < spec.reach_mm + TAG_MM
            options = _voxels_mm(allowed, coarse)
        keep = np.abs(options[:, 0]) < -grid.origin_mm[0] - spec.reach_mm - 4  # inside the scanned range
        for other, placed in zip(centres, specs, strict=False):
            gap = spec.reach_mm + placed.reach_mm + 12
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
    plan: Plan


def draw_nodules(
    scene: Scene, placed: Sequence[tuple[NoduleSpec, NDArray[np.float64]]]
) -> tuple[PhantomNodule, ...]:
    """Paint the nodules into the scene and return their truth."""
    return tuple(
        draw_nodule(scene, spec, centre, LABEL_FIRST_NODULE + number)
        for number, (spec, centre) in enumerate(placed)
    )


_EDGE_MM = {Attenuation.PART_SOLID: 2.5, Attenuation.GROUND_GLASS: 2.8}
_BODY_HU = {Attenuation.SOLID: 35.0, Attenuation.PART_SOLID: -560.0, Attenuation.GROUND_GLASS: -600.0}


def draw_nodule(scene: Scene, spec: NoduleSpec, centre: NDArray[np.float64], label: int) -> PhantomNodule:
    """Paint one nodule around a centre ((z, y, x) mm) and give it a label."""
    grid, rng, radius = scene.grid, scene.rng, spec.diameter_mm / 2
    box = grid.box(centre - 1.5 * spec.reach_mm - 4, centre + 1.5 * spec.reach_mm + 4)
    if box is None:
        raise ValueError("the nodule lies outside the grid")
    width = grid.spacing_mm[2]
    at = grid.coordinates(box)
    distance = _shape_distance(at, centre, spec, rng)
    in_lung = np.isin(scene.labels[box], (LABEL_RIGHT_LUNG, LABEL_LEFT_LUNG))
    drawn_in = in_lung | (ndimage.uniform_filter(in_lung.astype(np.float32), 3) > 0.4)
    if spec.margin is Margin.SPICULATED and spec.attenuation is not Attenuation.GROUND_GLASS:
        _draw_spicules(scene, centre, spec)
    texture = ndimage.gaussian_filter(rng.standard_normal(distance.shape), 1.2).astype(np.float32)
    hu = _BODY_HU[spec.attenuation] + texture * (20 if spec.attenuation is Attenuation.SOLID else 140)
    part = scene.values[box]
    part += occupancy(distance, _EDGE_MM.get(spec.attenuation, width)) * np.maximum(hu - part, 0) * drawn_in
    if spec.attenuation is Attenuation.PART_SOLID:
        shift = rng.uniform(-0.15, 0.15, 3) * radius
        solid = NoduleSpec(max(radius, 2.0), margin=Margin.LOBULATED)
        core = _shape_distance(at, centre + shift, solid, rng)
        part += occupancy(core, width) * np.maximum(20 - part, 0) * drawn_in
    if spec.content is not Content.SOFT_TISSUE:
        filled, inner_hu = _content(at, centre, spec)
        part += (
            occupancy(np.maximum(filled, distance + 1.2), width) * (np.float32(inner_hu) - part) * drawn_in
        )
    if spec.calcification is not Calcification.ABSENT:
        lime = np.maximum(_calcified(at, centre, spec, rng), distance + 0.8)
        dense = _LIME_HU[spec.calcification]
        part += occupancy(lime, width) * np.maximum(np.float32(dense) - part, 0) * drawn_in
    if spec.pleural_tag:
        _draw_tag(scene, centre, spec)
    inside = (distance < 0) & in_lung
    scene.labels[box][inside] = label
    side = LEFT if centre[2] > 0 else RIGHT
    return PhantomNodule(
        label=label,
        centre_lps=(float(centre[2]), float(centre[1]), float(centre[0])),
        diameter_mm=spec.diameter_mm,
        volume_mm3=float(inside.sum() * np.prod(grid.spacing_mm)),
        attenuation=spec.attenuation,
        margin=spec.margin,
        attachment=spec.attachment,
        laterality=Laterality.LEFT if side == LEFT else Laterality.RIGHT,
        lobe=lobe_at(scene.plan, side, centre),
        spec=spec,
    )


def _shape_distance(
    at: tuple[Array, Array, Array],
    centre: NDArray[np.float64],
    spec: NoduleSpec,
    rng: np.random.Generator,
) -> Array:
    """Rough signed distance to an ellipsoid with bumps, mm; lobulated nodules have larger ones."""
    radius = spec.diameter_mm / 2
    dz, dy, dx = (axis - np.float32(middle) for axis, middle in zip(at, centre, strict=True))
    squash = 1 + 0.09 * rng.uniform(-1, 1, 3)
    squash /= np.prod(squash) ** (1 / 3)
    length = np.sqrt((dz * squash[0]) ** 2 + (dy * squash[1]) ** 2 + (dx * squash[2]) ** 2) + np.float32(1e-3)
    size = {Margin.SMOOTH: 0.03, Margin.LOBULATED: 0.13, Margin.SPICULATED: 0.08}[spec.margin]
    bumps = np.zeros_like(length)
    for _ in range(7):
        direction = _direction(rng)
        cosine = (dz * direction[0] + dy * direction[1] + dx * direction[2]) / length
        bumps += np.exp((cosine - 1) * 7).astype(np.float32)
    if spec.elongation != 1.0:
        direction = _direction(rng) * squash
        along2 = (dz * direction[0] + dy * direction[1] + dx * direction[2]) ** 2
        across2 = np.maximum(length**2 - along2, 0)
        length = np.sqrt(along2 * spec.elongation ** (-4 / 3) + across2 * spec.elongation ** (2 / 3))
    if spec.margin is not Margin.SMOOTH:
        size *= spec.strength
    return np.asarray(length - radius * (1 + size * (bumps - 0.5)), dtype=np.float32)


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    direction = rng.standard_normal(3)
    return np.asarray(direction / np.linalg.norm(direction))


def _draw_spicules(scene: Scene, centre: NDArray[np.float64], spec: NoduleSpec) -> None:
    """Thin tapering strands that leave the surface in all directions."""
    radius = spec.diameter_mm / 2
    for _ in range(int((14 + radius) * spec.strength)):
        direction = _direction(scene.rng)
        reach = scene.rng.uniform(1.3, 1.7)
        reach += (reach - 1) * (spec.strength - 1)
        end = centre + direction * radius * reach
        start = centre + 0.7 * radius * direction
        _draw_strand(scene, start, end, (0.09 * radius + 0.3, 0.25))


def _draw_strand(
    scene: Scene, start: NDArray[np.float64], end: NDArray[np.float64], radii: tuple[float, float]
) -> None:
    found = capsule(scene.grid, start, end, radii)
    if found is not None:
        box, filled = found
        scene.values[box] += filled * np.maximum(np.float32(10) - scene.values[box], 0)


def _draw_tag(scene: Scene, centre: NDArray[np.float64], spec: NoduleSpec) -> None:
    """A strand from the nodule to the nearest place that is not lung."""
    reach = spec.reach_mm + TAG_MM + 4
    box = scene.grid.box(centre - reach, centre + reach)
    outside = np.zeros((0, 3)) if box is None else np.argwhere(scene.labels[box] == 0)
    if box is None or len(outside) == 0:
        raise ValueError("no pleura near enough for a tag")
    corner = np.array([s.start for s in box])
    points = (outside + corner) * np.array(scene.grid.spacing_mm) + np.array(scene.grid.origin_mm)
    nearest = points[np.linalg.norm(points - centre, axis=1).argmin()]
    towards = (nearest - centre) / np.linalg.norm(nearest - centre)
    _draw_strand(scene, centre + 0.7 * spec.diameter_mm / 2 * towards, nearest + towards, (1.0, 0.8))


_LIME_HU = {
    Calcification.POPCORN: 420.0,
    Calcification.LAMINATED: 380.0,
    Calcification.SOLID: 520.0,
    Calcification.NON_CENTRAL: 480.0,
    Calcification.CENTRAL: 480.0,
}


def _ball(at: tuple[Array, Array, Array], centre: NDArray[np.float64], radius: float) -> Array:
    z, y, x = (axis - np.float32(middle) for axis, middle in zip(at, centre, strict=True))
    return np.asarray(np.sqrt(z * z + y * y + x * x) - np.float32(radius), dtype=np.float32)


def _calcified(
    at: tuple[Array, Array, Array], centre: NDArray[np.float64], spec: NoduleSpec, rng: np.random.Generator
) -> Array:
    """Signed distance to the calcified part, mm; the caller keeps it below the surface."""
    radius = spec.diameter_mm / 2
    pattern = spec.calcification
    if pattern is Calcification.SOLID:
        return _ball(at, centre, 2 * spec.reach_mm)
    if pattern is Calcification.CENTRAL:
        return _ball(at, centre, max(0.4 * radius, 1.2))
    if pattern is Calcification.NON_CENTRAL:
        return _ball(at, centre + 0.58 * radius * _direction(rng), max(0.3 * radius, 1.1))
    if pattern is Calcification.LAMINATED:
        shell = np.abs(_ball(at, centre, 0.66 * radius)) - np.float32(max(0.1 * radius, 0.5))
        return np.asarray(np.minimum(shell, _ball(at, centre, 0.25 * radius)))
    grains = [  # popcorn
        _ball(
            at, centre + rng.uniform(0.25, 0.65) * radius * _direction(rng), rng.uniform(0.18, 0.28) * radius
        )
        for _ in range(7)
    ]
    return np.asarray(np.minimum.reduce(grains))


def _content(
    at: tuple[Array, Array, Array], centre: NDArray[np.float64], spec: NoduleSpec
) -> tuple[Array, float]:
    """Signed distance to what fills the nodule, mm, and its HU."""
    radius = spec.diameter_mm / 2
    share, hu = {Content.AIR: (0.5, -960.0), Content.FLUID: (0.75, 4.0), Content.FAT: (0.7, -80.0)}[
        spec.content
    ]
    return _ball(at, centre, max(share * radius, 1.2)), hu
