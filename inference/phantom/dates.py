"""The same synthetic patient on two days: nodules grow, shrink, come and go in a chest that lies otherwise.

The later chest is the earlier one deformed; its nodules are drawn anew at the places that they have moved to,
so that they keep their shape, and both days have noise of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.phantom.anatomy import (
    LABEL_FIRST_NODULE,
    LABEL_LEFT_LUNG,
    LABEL_RIGHT_LUNG,
    Plan,
    draw_table,
)
from inference.phantom.build import (
    DEFAULT_SHAPE,
    DEFAULT_SPACING_MM,
    Phantom,
    checked,
    draw_chest,
    volume_of,
)
from inference.phantom.imaging import Kernel, image
from inference.phantom.motion import Motion
from inference.phantom.nodules import Scene, draw_nodule, place
from inference.phantom.paint import Array, Grid
from inference.phantom.specs import Attachment, NoduleSpec
from inference.types import Attenuation

FOLLOW_UP: int = 500_000
"""Added to the seed for the accession number of the later study."""


@dataclass(frozen=True)
class Course:
    """What becomes of one nodule.

    Parameters
    ----------
    spec
        What it is; its diameter isn't used.
    then_mm, now_mm
        Diameters of the earlier and the later day; None where it isn't there.
    """

    spec: NoduleSpec
    then_mm: float | None
    now_mm: float | None

    def __post_init__(self) -> None:
        if self.then_mm is None and self.now_mm is None:
            raise ValueError("a nodule must be there on one of the two days")

    def on(self, *, later: bool) -> NoduleSpec | None:
        """What is drawn on one of the days."""
        size = self.now_mm if later else self.then_mm
        return None if size is None else replace(self.spec, diameter_mm=size)

    @property
    def largest(self) -> NoduleSpec:
        """What needs room."""
        return replace(self.spec, diameter_mm=max(self.then_mm or 0.0, self.now_mm or 0.0))


_SOLID = NoduleSpec(8.0)
DEFAULT_COURSES: tuple[Course, ...] = (
    Course(_SOLID, 8.0, 11.0),
    Course(_SOLID, 12.0, 12.0),
    Course(replace(_SOLID, attachment=Attachment.JUXTAVASCULAR), 10.0, 7.5),
    Course(replace(_SOLID, attenuation=Attenuation.PART_SOLID), 14.0, 17.0),
    Course(_SOLID, None, 9.0),
    Course(_SOLID, 9.0, None),
)
"""Growing, stable, shrinking, growing part-solid, new, resolved."""


@dataclass(frozen=True)
class TwoDates:
    """Two examinations of one synthetic patient and the truth about both.

    Parameters
    ----------
    prior, current
        A nodule has the same label in both.
    motion
        How the later chest lies.
    courses
        In the order of the labels.
    """

    prior: Phantom
    current: Phantom
    motion: Motion
    courses: tuple[Course, ...]

    def labels(self) -> tuple[tuple[int | None, int | None], ...]:
        """Labels (current, prior) of each course, None where the nodule isn't there."""
        return tuple(
            (
                None if course.now_mm is None else LABEL_FIRST_NODULE + number,
                None if course.then_mm is None else LABEL_FIRST_NODULE + number,
            )
            for number, course in enumerate(self.courses)
        )


@dataclass(frozen=True)
class _Chest:
    """Before nodules and imaging; copies of its arrays are drawn on."""

    seed: int
    grid: Grid
    plan: Plan
    values: Array
    labels: NDArray[np.uint8]


def grown(
    seed: int = 0,
    courses: Sequence[Course] = DEFAULT_COURSES,
    shape: tuple[int, int, int] = DEFAULT_SHAPE,
    spacing_mm: tuple[float, float, float] = DEFAULT_SPACING_MM,
    *,
    motion: Motion | None = None,
    kernel: Kernel = Kernel.STANDARD,
) -> TwoDates:
    """Make one patient's phantoms of two days. The same arguments always give the same voxels and UIDs.

    `inference.phantom.write_phantom` writes them, with one patient ID and two dates, as two studies of a
    patient.

    Parameters
    ----------
    seed
        Draws body, vessels, places, motion and noise.
    courses
        The nodules.
    shape, spacing_mm, kernel
        As for `inference.phantom.make_phantom`, the same on both days.
    motion
        How the chest lies on the later day; None to draw it.

    Raises
    ------
    ValueError
        As `inference.phantom.make_phantom`.
    """
    rng = np.random.default_rng([seed, FOLLOW_UP])
    grid = checked(Grid(shape, spacing_mm), None, 0.0)
    plan, values, labels, vessels = draw_chest(grid, rng)
    centres = place([course.largest for course in courses], labels, grid, vessels, rng)
    if motion is None:
        used = np.flatnonzero(np.isin(labels, (LABEL_RIGHT_LUNG, LABEL_LEFT_LUNG)).any(axis=(1, 2)))
        z = grid.axis(0)
        motion = Motion.draw(rng, apex_mm=float(z[used[-1]]), base_mm=float(z[used[0]]))
    before = _Chest(seed, grid, plan, values, labels)
    affine = grid.affine_index_to_lps()
    after = replace(
        before,
        values=motion.deformed(values, affine),
        labels=motion.deformed(labels, affine, order=0),
    )
    moved = [motion.to_current(centre[::-1])[::-1] for centre in centres]
    pair = [
        _examined(chest, courses, places, kernel, later=later)
        for chest, places, later in ((before, centres, False), (after, moved, True))
    ]
    return TwoDates(pair[0], pair[1], motion, tuple(courses))


def _examined(
    chest: _Chest,
    courses: Sequence[Course],
    centres: Sequence[NDArray[np.float64]],
    kernel: Kernel,
    *,
    later: bool,
) -> Phantom:
    """Draw the nodules of one day and take the image."""
    values, labels = chest.values.copy(), chest.labels.copy()
    drawn = []
    for number, (course, centre) in enumerate(zip(courses, centres, strict=True)):
        spec = course.on(later=later)
        if spec is not None:
            # of one shape on both days
            own = np.random.default_rng([chest.seed, FOLLOW_UP, number])
            scene = Scene(values, labels, chest.grid, own, chest.plan)
            drawn.append(draw_nodule(scene, spec, centre, LABEL_FIRST_NODULE + number))
    draw_table(values, chest.grid, chest.plan)
    noise = np.random.default_rng([chest.seed, FOLLOW_UP + 1, later])
    thickness = chest.grid.spacing_mm[0]
    image(values, chest.grid, kernel, thickness, noise)
    hu = np.clip(np.rint(values), -1024, 3071).astype(np.int16)
    day = "later" if later else "earlier"
    told = (str(chest.grid), str(tuple(courses)), kernel.value)
    identity = ("two dates", str(chest.seed), *told, day)
    seed = chest.seed + (FOLLOW_UP if later else 0)
    return Phantom(volume_of(hu, chest.grid, thickness, identity), labels, tuple(drawn), kernel, seed)
