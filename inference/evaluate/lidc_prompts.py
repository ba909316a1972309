"""Does the sentence matter? Crops with two structures, the right sentence against the wrong one.

Two kinds of crops, both shown without any centre or box:

another structure
    Vessels or chest wall that are in the crop anyway. Right: the sentence of the nodule; wrong: that of
    the other structure. The overlap with the nodule must fall.
a second nodule
    Another patient's nodule is pasted beside the first, and the two differ in one thing that a sentence can
    name: texture, size, or their place. Each sentence is right for one of them and wrong for the other.

The sentences of the second kind follow from the readers' ratings and from what was pasted where: they are the
question, as a user would ask it, not information about the answer that another figure uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.datasets.lidc_crops import SIDE, Mask, NoduleCrop
from inference.evaluate.lidc_crops import (
    LEAST_READERS,
    CropModels,
    Frame,
    blinded,
    centred_frame,
    generator,
    segmented,
    shifted_image,
    shifted_mask,
    target,
)
from inference.evaluate.metrics import dice
from inference.evaluate.report import Progress
from inference.prompts import NODULE, PLACES, SIZES, STRUCTURES, pair

WALL_PIXELS = 600
"""Least area of a bright region at the border of the crop to be chest wall (or mediastinum)."""
VESSEL_PIXELS = (12, 300)
CLEAR_PIXELS = 4
"""Least gap between the nodule and what counts as another structure, and between two nodules."""
TISSUE_SHARE = (0.12, 0.88)
"""Part of a slice that must be tissue for its two grey levels, lung and soft tissue, to be known."""
TISSUE_CONTRAST = 50.0
"""Least difference of the two levels, of 255."""
LARGER = 1.8
LARGEST_PASTED = 15
"""Largest half width of a nodule in a pair, pixels; two must fit into a crop."""
LEAST_PASTED = 20
"""Least area of a nodule in a pair, pixels."""
MOST_PAIRS = 40
"""For each difference."""
MOST_CROPS = 120
"""With another structure; drawn by the seed."""
_MOST_BRIGHT = 0.05
_TRIES = 60
_TEXTURE = pair("texture")
_SUBSOLID = 3.0
"""Up to this median of the readers a nodule is clearly another than solid."""
_TURNS = 6
ANOTHER, SECOND = "another structure", "a second nodule"


@dataclass(frozen=True, slots=True)
class PromptOutcome:
    """Overlap with what the right sentence names, by the right and by the wrong sentence.

    Parameters
    ----------
    kind, detail
        `ANOTHER` or `SECOND`, and which structure or which difference.
    right, wrong
        3D Dice; for two nodules the mean over both.
    """

    name: str
    patient: str
    kind: str
    detail: str
    right: float
    wrong: float

    @property
    def drop(self) -> float:
        """What the wrong sentence costs."""
        return self.right - self.wrong


def evaluate_prompts(
    crops: Sequence[NoduleCrop], models: CropModels, *, seed: int, progress: Progress | None = None
) -> tuple[PromptOutcome, ...]:
    """Measure both kinds of crops.

    Parameters
    ----------
    crops
        With their truth; those of at least `LEAST_READERS` readers are used.
    seed
        Draws offsets, partners and places.
    """
    report = progress or (lambda _what, _done, _total: None)
    able = [crop for crop in crops if crop.readers >= LEAST_READERS]
    outcomes: list[PromptOutcome] = []
    drawn = generator(seed, ANOTHER).permutation(len(able))[:MOST_CROPS]
    for number, crop in enumerate(able[at] for at in sorted(drawn)):
        report("sentences, another structure", number, len(drawn))
        outcomes += another_structure(crop, models, seed=seed)
    made = list(pairs(able, seed=seed))
    for number, two in enumerate(made):
        report("sentences, a second nodule", number, len(made))
        outcomes.append(second_nodule(two, models))
    report("sentences", 1, 1)
    return tuple(outcomes)


# another structure


def another_structure(crop: NoduleCrop, models: CropModels, *, seed: int) -> Iterator[PromptOutcome]:
    """The nodule against each other structure in its crop."""
    truth = target(crop)
    key = int(truth.sum(axis=(1, 2)).argmax())
    names = structures(crop.image[key], crop.mask_bits[key] > 0)
    if not names:
        return
    frame = replace(centred_frame(crop, generator(seed, crop.name)), centre=None)
    right = dice(frame.back(segmented(models, frame, STRUCTURES[NODULE][0])), truth)
    for name in names:
        other = frame.back(segmented(models, frame, STRUCTURES[name][0]))
        yield PromptOutcome(crop.name, crop.patient, ANOTHER, name, right, dice(other, truth))


def structures(image: NDArray[np.uint8], nodule: Mask) -> tuple[str, ...]:
    """Names of the bright structures in a slice (y, x) beside the nodule: ``chest wall``, ``vessel``."""
    near = ndimage.binary_dilation(nodule, iterations=CLEAR_PIXELS)
    labels, count = ndimage.label((image > grey_levels(image).threshold) & ~near)
    found = set()
    for number in range(1, count + 1):
        region = labels == number
        area = int(region.sum())
        at_border = bool(region[[0, -1]].any() or region[:, [0, -1]].any())
        if at_border and area >= WALL_PIXELS:
            found.add("chest wall")
        elif not at_border and VESSEL_PIXELS[0] <= area <= VESSEL_PIXELS[1]:
            found.add("vessel")
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class GreyLevels:
    """Of one slice: Otsu's threshold, the medians of both sides, and the share of the bright one."""

    threshold: float
    lung: float
    tissue: float
    share: float

    @property
    def known(self) -> bool:
        """Whether there is enough of both for the levels to be lung and soft tissue."""
        enough = TISSUE_SHARE[0] <= self.share <= TISSUE_SHARE[1]
        return enough and self.tissue - self.lung >= TISSUE_CONTRAST


def grey_levels(image: NDArray[np.uint8]) -> GreyLevels:
    """Split a slice into dark and bright (Otsu, IEEE Trans SMC 9:62-66, 1979)."""
    counts = np.bincount(image.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    total, sums = below[-1], np.cumsum(counts * np.arange(256))
    dark, bright = below[:-1], total - below[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = dark * bright * (sums[:-1] / dark - (sums[-1] - sums[:-1]) / bright) ** 2
    threshold = int(np.nan_to_num(between).argmax())
    above = image > threshold
    if above.all() or not above.any():
        return GreyLevels(float(threshold), float(threshold), float(threshold), float(above.mean()))
    return GreyLevels(
        float(threshold), float(np.median(image[~above])), float(np.median(image[above])), float(above.mean())
    )


# a second nodule


@dataclass(frozen=True, slots=True)
class Pair:
    """A crop with two nodules, their masks (n, 96, 96), and the sentence of each."""

    crop: NoduleCrop
    masks: tuple[Mask, Mask]
    sentences: tuple[str, str]
    difference: str


def pairs(crops: Sequence[NoduleCrop], *, seed: int) -> Iterator[Pair]:
    """Make up to `MOST_PAIRS` pairs for each difference, the same for the same crops and seed.

    A nodule comes again, with another partner or place, only when all others had their turn.
    """
    fit = [_Part(crop, _area(crop)) for crop in crops if _half_width(crop) <= LARGEST_PASTED]
    fit = [part for part in fit if part.area >= LEAST_PASTED]
    for difference in ("texture", "size", "place"):
        made = 0
        rng = generator(seed, difference)
        order = np.concatenate([rng.permutation(len(fit)) for _ in range(_TURNS)])
        for first in (fit[number] for number in order):
            partners = [part for part in fit if _differ(first, part, difference)]
            if made == MOST_PAIRS or not partners:
                continue
            partner = partners[rng.integers(len(partners))]
            two = paste(first.crop, partner.crop, difference, rng)
            if two is not None:
                made += 1
                yield two


@dataclass(frozen=True, slots=True)
class _Part:
    """A nodule that fits into a pair; the area of its largest slice in pixels."""

    crop: NoduleCrop
    area: int


def _differ(first: _Part, second: _Part, difference: str) -> bool:
    """Whether the first is the subsolid one (there are fewer of them), or the larger one."""
    one, two = first.crop, second.crop
    if one.patient == two.patient:
        return False
    if difference == "texture":
        known = one.is_trusted and two.is_trusted
        if not known or "texture" not in one.ratings or "texture" not in two.ratings:
            return False
        return one.ratings["texture"] <= _SUBSOLID and _TEXTURE.holds(two.ratings["texture"])
    return difference != "size" or first.area >= LARGER**2 * second.area


def paste(first: NoduleCrop, second: NoduleCrop, difference: str, rng: np.random.Generator) -> Pair | None:
    """Put the second nodule beside the first, key slice on key slice.

    Grey levels are matched slice by slice through lung and soft tissue.

    Returns
    -------
    Pair or None
        None where the levels of a slice aren't known or there is no dark room for it.
    """
    image, drawn, truth = _aligned(first, second)
    used = np.flatnonzero(drawn.any(axis=(1, 2)))
    levels = {z: (grey_levels(first.image[z]), grey_levels(image[z])) for z in used}
    shift = _room(first, drawn, rng)
    if shift is None or not all(to.known and of.known for to, of in levels.values()):
        return None
    donor = shifted_image(image, shift).astype(np.float32)
    near = shifted_mask(ndimage.binary_dilation(drawn, np.ones((1, 3, 3), np.bool_), iterations=2), shift)
    out = first.image.astype(np.float32)
    for z, (to, of) in levels.items():
        like = to.lung + (donor[z] - of.lung) / (of.tissue - of.lung) * (to.tissue - to.lung)
        part = ndimage.gaussian_filter(near[z].astype(np.float32), 1.0)
        out[z] += part * (like - out[z])
    crop = replace(blinded(first), image=np.clip(np.rint(out), 0, 255).astype(np.uint8))
    masks = target(first), shifted_mask(truth, shift)
    return Pair(crop, masks, _sentences(masks, difference), difference)


def _aligned(first: NoduleCrop, second: NoduleCrop) -> tuple[NDArray[np.uint8], Mask, Mask]:
    """Image, drawn voxels and consensus of the second on the slices of the first, key slice on key slice."""
    truth, shape = target(second), first.image.shape
    shift = _key(target(first)) - _key(truth)
    low, high = max(shift, 0), min(shift + len(truth), len(first.image))
    image, drawn, wanted = np.zeros(shape, np.uint8), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    source = slice(low - shift, high - shift)
    image[low:high] = second.image[source]
    drawn[low:high] = second.mask_bits[source] > 0
    wanted[low:high] = truth[source]
    return image, drawn, wanted


def _key(mask: Mask) -> int:
    return int(mask.sum(axis=(1, 2)).argmax())


def _area(crop: NoduleCrop) -> int:
    return int(target(crop).sum(axis=(1, 2)).max())


def _half_width(crop: NoduleCrop) -> float:
    index = np.argwhere(crop.mask_bits > 0)[:, 1:]
    return float((index.max(axis=0) - index.min(axis=0) + 1).max()) / 2


def _room(first: NoduleCrop, drawn: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
    """Shift of the second nodule to the darkest of some places beside the first."""
    added: Mask = np.any(drawn, axis=0)
    own = ndimage.binary_dilation(np.any(first.mask_bits > 0, axis=0), iterations=CLEAR_PIXELS)
    key = first.image[_key(target(first))]
    bright = key > grey_levels(key).threshold
    index, centre = np.argwhere(added), np.argwhere(own).mean(axis=0)
    best: tuple[float, tuple[int, int]] | None = None
    for _ in range(_TRIES):
        angle, gap = rng.uniform(0, 2 * np.pi), rng.uniform(10, 40)
        place = centre + gap * np.array([np.sin(angle), np.cos(angle)])
        shift = np.round(place - index.mean(axis=0)).astype(int)
        if (index + shift).min() < 3 or (index + shift).max() >= SIDE - 3:
            continue
        there = shifted_mask(added[None], (int(shift[0]), int(shift[1])))[0]
        share = float(bright[ndimage.binary_dilation(there, iterations=2)].mean())
        if not (there & own).any() and share <= _MOST_BRIGHT and (best is None or share < best[0]):
            best = share, (int(shift[0]), int(shift[1]))
    return best[1] if best else None


def _sentences(masks: tuple[Mask, Mask], difference: str) -> tuple[str, str]:
    if difference == "texture":
        return _TEXTURE.negative[0], _TEXTURE.positive[0]
    if difference == "size":
        return SIZES["large"][2], SIZES["small"][2]
    first, second = (np.argwhere(mask)[:, 1:].mean(axis=0) for mask in masks)
    dy, dx = second - first
    names = ("left", "right") if abs(dx) >= abs(dy) else ("top", "bottom")
    one, two = names if (dx if abs(dx) >= abs(dy) else dy) > 0 else names[::-1]
    return PLACES[one][0], PLACES[two][0]


def second_nodule(two: Pair, models: CropModels) -> PromptOutcome:
    """Both sentences on the crop, both nodules counted."""
    frame = Frame(two.crop, (0, 0), None)
    by_first, by_second = (segmented(models, frame, sentence) for sentence in two.sentences)
    first, second = two.masks
    return PromptOutcome(
        two.crop.name,
        two.crop.patient,
        SECOND,
        two.difference,
        (dice(by_first, first) + dice(by_second, second)) / 2,
        (dice(by_second, first) + dice(by_first, second)) / 2,
    )
