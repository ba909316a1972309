"""Put the phantom together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.phantom.anatomy import (
    LABEL_LEFT_LUNG,
    LABEL_RIGHT_LUNG,
    Plan,
    draw_bones,
    draw_slice,
    draw_table,
    draw_tubes,
)
from inference.phantom.imaging import Kernel, SliceProfile, image
from inference.phantom.nodules import Scene, draw_nodules, place
from inference.phantom.paint import Array, Grid
from inference.phantom.specs import DEFAULT_NODULES, NoduleSpec, PhantomNodule
from inference.phantom.structures import PhantomStructure, StructureSpec, draw_emphysema, draw_structures
from inference.phantom.trees import Branch, draw_trees
from inference.types import SourceFrame, Volume
from inference.uids import derived_uid

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
DEFAULT_SHAPE = (150, 320, 320)
DEFAULT_SPACING_MM = (2.0, 1.1, 1.1)


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT and the truth about it.

    Parameters
    ----------
    volume
        HU, int16, axial, feet first in array order (z ascends to the head).
    truth
        uint8, shape (z, y, x): 0 elsewhere, 1 right lung, 2 left lung, 3 airways,
        ``nodule.label`` for each nodule.
    nodules
        What was drawn.
    kernel
        Reconstruction kernel that was modelled.
    seed
        It made this phantom.
    structures
        What else was drawn that may look like a nodule, emphysema first. `truth` calls it lung.
    """

    volume: Volume
    truth: NDArray[np.uint8]
    nodules: tuple[PhantomNodule, ...]
    kernel: Kernel
    seed: int
    structures: tuple[PhantomStructure, ...] = ()


def make_phantom(
    seed: int = 0,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing_mm: tuple[float, float, float] = DEFAULT_SPACING_MM,
    nodules: Sequence[NoduleSpec] | None = None,
    *,
    kernel: Kernel = Kernel.STANDARD,
    slice_thickness_mm: float | None = None,
    slice_profile: SliceProfile = SliceProfile.GAUSSIAN,
    dose: float | None = None,
    structures: Sequence[StructureSpec] = (),
    emphysema: float = 0.0,
) -> Phantom:
    """Make a chest phantom. The same arguments always give the same voxels and UIDs.

    Parameters
    ----------
    seed
        Draws body, vessels, nodule places and noise.
    shape, spacing_mm
        Grid as (z, y, x); the whole chest needs about 300 x 250 x 350 mm.
    nodules
        What to draw; None for `DEFAULT_NODULES`, an empty sequence for none.
    kernel
        Reconstruction kernel model.
    slice_thickness_mm
        Width of the slice profile; None for the slice distance.
    slice_profile
        Its shape.
    dose
        None for noise of a fixed strength; a positive number for that of a scan with this share of the usual
        dose, which depends on slice thickness and kernel too, see `inference.phantom.imaging.image`.
    structures
        What else to draw that may look like a nodule.
    emphysema
        Share of the parenchyma that is lost, 0 to 0.6.

    Raises
    ------
    ValueError
        The grid is smaller than the chest, the lungs have no room for a nodule or a structure, or a number
        is out of its range.
    """
    grid = checked(Grid(shape, spacing_mm), dose, emphysema)
    specs = DEFAULT_NODULES if nodules is None else tuple(nodules)
    thickness = spacing_mm[0] if slice_thickness_mm is None else slice_thickness_mm
    rng = np.random.default_rng(seed)
    plan, values, labels, vessels = draw_chest(grid, rng)
    centres = place(specs, labels, grid, vessels, rng)
    # random numbers of their own: with or without them the rest stays the same
    others = Scene(values, labels, grid, np.random.default_rng([seed, 1]), plan)
    extra: tuple[PhantomStructure, ...] = (draw_emphysema(others, emphysema),) if emphysema > 0 else ()
    drawn = draw_nodules(Scene(values, labels, grid, rng, plan), list(zip(specs, centres, strict=True)))
    extra += draw_structures(others, structures, vessels)
    draw_table(values, grid, plan)
    image(values, grid, kernel, thickness, rng, profile=slice_profile, dose=dose)
    hu = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
    finer = (slice_profile, dose, tuple(structures), emphysema)
    identity = _identity(seed, grid, specs, kernel, thickness=thickness, finer=finer)
    return Phantom(volume_of(hu, grid, thickness, identity), labels, drawn, kernel, seed, extra)


def draw_chest(
    grid: Grid, rng: np.random.Generator
) -> tuple[Plan, Array, NDArray[np.uint8], tuple[Branch, ...]]:
    """A chest without nodules and before imaging: its plan, HU, labels and lung vessels."""
    plan = Plan.draw(rng)
    values, labels = _draw_body(plan, grid)
    _add_texture(values, labels, grid, rng)
    return plan, values, labels, draw_trees(values, labels, grid, rng)


def checked(grid: Grid, dose: float | None, emphysema: float) -> Grid:
    """The grid itself; ValueError where something is out of its range."""
    if dose is not None and dose <= 0:
        raise ValueError(f"a dose is positive, not {dose}")
    if not 0 <= emphysema <= 0.6:
        raise ValueError(f"emphysema takes 0 to 0.6 of the parenchyma, not {emphysema}")
    extent = [n * d for n, d in zip(grid.shape, grid.spacing_mm, strict=True)]
    if extent[0] < 250 or extent[1] < 230 or extent[2] < 330:
        size = " x ".join(f"{length:.0f}" for length in extent)
        raise ValueError(f"a chest needs 250 x 230 x 330 mm (z, y, x), the grid has {size}")
    return grid


def _identity(
    seed: int,
    grid: Grid,
    specs: Sequence[NoduleSpec],
    kernel: Kernel,
    *,
    thickness: float,
    finer: tuple[SliceProfile, float | None, tuple[StructureSpec, ...], float],
) -> tuple[str, ...]:
    """What the UIDs are made of; what is left at its default takes no part."""
    told = f"({', '.join(spec.identity for spec in specs)}{',' if len(specs) == 1 else ''})"
    parts = ("phantom", seed, grid.shape, grid.spacing_mm, told, kernel, thickness)
    identity = tuple(str(part) for part in parts)
    return identity if finer == (SliceProfile.GAUSSIAN, None, (), 0.0) else (*identity, str(finer))


def _draw_body(plan: Plan, grid: Grid) -> tuple[Array, NDArray[np.uint8]]:
    """Everything but lung vessels, nodules and table, before imaging."""
    values = np.empty(grid.shape, np.float32)
    labels = np.empty(grid.shape, np.uint8)
    y, x = grid.axis(1)[:, None], grid.axis(2)[None, :]
    for number, z in enumerate(grid.axis(0)):
        values[number], labels[number] = draw_slice(plan, float(z), y, x, grid.spacing_mm[2])
    lung_values = values[labels > 0]
    draw_tubes(values, grid, plan)
    draw_bones(values, grid, plan)
    values[labels > 0] = lung_values  # tubes and ribs bend with the body, not into the lungs
    return values, labels


def _add_texture(values: Array, labels: NDArray[np.uint8], grid: Grid, rng: np.random.Generator) -> None:
    """Slow variation of the parenchyma (about +-25 HU over 2 cm), in place."""
    knots_mm = 12
    sizes = [max(int(n * d / knots_mm), 4) for n, d in zip(grid.shape, grid.spacing_mm, strict=True)]
    texture = rng.standard_normal(sizes, dtype=np.float32)
    for axis, count in enumerate(grid.shape):
        knots = texture.shape[axis]
        hats = np.maximum(1 - np.abs(np.linspace(0, knots - 1, count)[:, None] - np.arange(knots)), 0)
        # linear interpolation along one axis as a product with hat functions
        texture = np.moveaxis(np.tensordot(hats.astype(np.float32), texture, (1, axis)), 0, axis)
    for label in (LABEL_RIGHT_LUNG, LABEL_LEFT_LUNG):
        inside = labels == label
        values[inside] += 22 * texture[inside]


def volume_of(hu: NDArray[np.int16], grid: Grid, thickness_mm: float, identity: tuple[str, ...]) -> Volume:
    """A volume whose UIDs are made of its identity."""
    frames = tuple(
        SourceFrame(CT_IMAGE_STORAGE, derived_uid(*identity, "instance", str(number)))
        for number in range(len(hu))
    )
    return Volume(
        array=hu,
        affine_index_to_lps=grid.affine_index_to_lps(),
        frame_of_reference_uid=derived_uid(*identity, "frame of reference"),
        study_uid=derived_uid(*identity, "study"),
        series_uid=derived_uid(*identity, "series"),
        frames=frames,
        slice_thickness_mm=thickness_mm,
    )
