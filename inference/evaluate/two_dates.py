"""Pairs of examinations of known truth: phantoms of two dates, real nodules in a real chest that moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.evaluate.metrics import Floats, Mask
from inference.insertion import (
    Background,
    Canvas,
    Implant,
    Pasted,
    Places,
    Pose,
    paste,
    random_place,
    random_pose,
)
from inference.lungs import Lungs, find_lungs
from inference.phantom import Course, Motion, grown, lung_ends, random_specs
from inference.types import Index, Volume
from inference.uids import derived_uid

COUNT = 8
SIZES_MM = (4.5, 18.0)
GROWTH = (1.1, 1.6)
"""Of the diameter, in a nodule that grows; one that shrinks does so by the inverse."""
_NOISE_HU = 12.0
_TRIES = 12


@dataclass(frozen=True, slots=True)
class Seen:
    """A nodule in one examination: its voxels, and volume as it was drawn, mm3."""

    mask: Mask
    origin: Index
    volume_mm3: float


@dataclass(frozen=True, slots=True)
class Truth:
    """One nodule in the two examinations, None where it isn't."""

    current: Seen | None
    prior: Seen | None


@dataclass(frozen=True)
class PairCase:
    """Two examinations and what is known of them.

    Parameters
    ----------
    background
        Name of the chest: the unit of the bootstrap.
    """

    name: str
    background: str
    current: Volume
    prior: Volume
    nodules: tuple[Truth, ...]
    motion: Motion


def _sizes(rng: np.random.Generator, number: int, size_mm: float) -> tuple[float | None, float | None]:
    """Diameters (then, now) of the nodule with this number: grows, stays, shrinks, is new or is gone."""
    factor = float(rng.uniform(*GROWTH))
    kinds: tuple[tuple[float | None, float | None], ...] = (
        (size_mm, size_mm * factor),
        (size_mm, size_mm),
        (size_mm * factor, size_mm),
        (None, size_mm),
        (size_mm, None),
        (size_mm, size_mm * factor),
        (size_mm, size_mm),
        (size_mm, size_mm),
    )
    return kinds[number % len(kinds)]


def phantom_pair(seed: int) -> PairCase:
    """A phantom of two dates with `COUNT` nodules of random kinds."""
    rng = np.random.default_rng([seed, 71])
    courses = []
    for number, spec in enumerate(random_specs(rng, COUNT)):
        then, now = _sizes(rng, number, float(np.exp(rng.uniform(*np.log(SIZES_MM)))))
        courses.append(Course(replace(spec, pleural_tag=False), then, now))
    two = grown(seed, courses)
    nodules = tuple(
        Truth(
            *(
                _drawn(phantom.truth, label, phantom.volume)
                for phantom, label in ((two.current, a), (two.prior, b))
            )
        )
        for a, b in two.labels()
    )
    name = f"phantom {seed}"
    return PairCase(name, name, two.current.volume, two.prior.volume, nodules, two.motion)


def _drawn(truth: NDArray[np.uint8], label: int | None, volume: Volume) -> Seen | None:
    found = ndimage.find_objects(truth, max_label=label or 0)
    place = found[-1] if label is not None and len(found) == label else None
    if place is None:
        return None
    mask = truth[place] == label
    z, y, x = (s.start for s in place)
    return Seen(mask, (z, y, x), float(mask.sum() * volume.voxel_volume_mm3))


def inserted_pair(seed: int, background: Background, implants: Sequence[Implant]) -> PairCase:
    """Real nodules in a real chest, and in the same chest deformed, turned the same way and enlarged."""
    rng = np.random.default_rng([seed, 72])
    before, lungs = background.volume, background.lungs
    apex, base = lung_ends(before, lungs.labels)
    motion = Motion.draw(rng, apex_mm=apex, base_mm=base)
    array = motion.deformed(before.array, before.affine_index_to_lps).astype(np.float32)
    array += rng.normal(0, _NOISE_HU, array.shape).astype(np.float32)
    after = replace(before, array=array)
    canvases = (_canvas(after, find_lungs(after)), _canvas(before, lungs))
    nodules = _fill(rng, background, canvases, implants, motion)
    volumes = [
        replace(
            before,
            array=np.clip(np.rint(canvas.array), -1024, 3071).astype(np.int16),
            series_uid=derived_uid("two dates", before.series_uid, str(seed), day),
            study_uid=derived_uid("two dates", before.study_uid, str(seed), day),
        )
        for canvas, day in zip(canvases, ("later", "earlier"), strict=True)
    ]
    return PairCase(f"{background.name}/{seed}", background.name, volumes[0], volumes[1], nodules, motion)


def _canvas(volume: Volume, lungs: Lungs) -> Canvas:
    return Canvas(volume.array.astype(np.float32), lungs.labels > 0, volume.spacing_mm)


def _fill(
    rng: np.random.Generator,
    background: Background,
    canvases: tuple[Canvas, Canvas],
    implants: Sequence[Implant],
    motion: Motion,
) -> tuple[Truth, ...]:
    """Paste `COUNT` nodules into both (current, prior), where both have room."""
    volume, spacing = background.volume, np.array(background.volume.spacing_mm)
    places = Places(volume.array, background.lungs.labels > 0, volume.spacing_mm)
    taken = [(volume.lps_to_index(centre) * spacing, radius + 10) for centre, radius in background.known]
    made: list[Truth] = []
    for number in rng.permutation(len(implants)):
        implant, pose, kind = implants[number], random_pose(rng, (1.0, 1.0)), random_place(rng)
        if len(made) == COUNT:
            break
        if not SIZES_MM[0] <= implant.diameter_mm <= SIZES_MM[1]:
            continue
        sizes = _sizes(rng, len(made), implant.diameter_mm)
        radius = max(size or 0.0 for size in sizes) / 2
        for _ in range(_TRIES):
            at = places.choose(rng, kind, radius, taken)
            if at is None:
                break
            later = volume.lps_to_index(motion.to_current(volume.index_to_lps(at)))
            truth = _both(rng, canvases, implant, (pose, sizes), (later, at))
            if truth is not None:
                taken.append((at * spacing, radius))
                made.append(truth)
                break
    return tuple(made)


def _both(
    rng: np.random.Generator,
    canvases: tuple[Canvas, Canvas],
    implant: Implant,
    drawn: tuple[Pose, tuple[float | None, float | None]],
    where: tuple[Floats, Floats],
) -> Truth | None:
    """Paste one nodule on both days; None, and nothing is changed, where one of them has no room."""
    pose, sizes = drawn
    seen: list[Seen | None] = []
    kept = canvases[0].array.copy()
    for canvas, size, place in zip(canvases, reversed(sizes), where, strict=True):
        if size is None:
            seen.append(None)
            continue
        pasted = paste(canvas, implant, place, replace(pose, scale=size / implant.diameter_mm), rng)
        if pasted is None or not pasted.mask.any():
            canvases[0].array[:] = kept
            return None
        seen.append(_seen(pasted))
    return Truth(*seen)


def _seen(pasted: Pasted) -> Seen:
    (place,) = ndimage.find_objects(pasted.mask.astype(np.uint8))
    z, y, x = (s.start + o for s, o in zip(place, pasted.origin, strict=True))
    return Seen(pasted.mask[place], (z, y, x), float(np.pi / 6 * pasted.diameter_mm**3))
