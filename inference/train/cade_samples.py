"""Training samples for text-prompted segmentation: short walks through strips with a sentence and a target.

The sentence names what to segment: the nodule, another structure of the same window, or one of two nodules
(one pasted beside the other from another patient). So the prompt decides, not the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from inference.datasets.lidc_crops import SIDE
from inference.prompts import (
    LARGE_MM,
    NODULE,
    PAIRS,
    PLACES,
    SIZES,
    STRUCTURES,
    caption,
    structure_sentence,
)
from inference.train.cade_strips import OTHERS, Bytes, Floats, Strip
from inference.windows import cut, theta

_UNKNOWN: Final = tuple(name for name in STRUCTURES if name not in (NODULE, *OTHERS))
"""Structures without a rule: all that is known is that the nodule is none of them."""

_LUNG_GREY: Final = 255 * (-600 + 1000) / 1500
_SHARES: Final = {"nodule": 0.66, "other": 0.12, "unknown": 0.02, "pair": 0.17, "empty": 0.03}


@dataclass(slots=True)
class Sample:
    """A walk of T slices before it is cut out.

    Parameters
    ----------
    grey
        0..1, shape (T, 3, 96, 96): the slice and its neighbours.
    target
        0..1, shape (T, 96, 96).
    known
        Where the target is known, 0 or 1, shape (T, 96, 96); None for everywhere.
    centre, side
        Middle (y, x) and side of the window, pixels.
    turn
        (2, 2), see `inference.windows.theta`.
    sentence
        The prompt.
    kind
        ``nodule``, ``other``, ``unknown``, ``pair`` or ``empty``.
    """

    grey: Floats
    target: Floats
    known: Floats | None
    centre: tuple[float, float]
    side: float
    turn: Floats
    sentence: str
    kind: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one length T, cut out to the size of the network.

    Parameters
    ----------
    images
        Shape (T, n, 3, pixels, pixels), 0..1.
    targets, known
        Shape (T, n, pixels, pixels), 0..1.
    boxes
        (x0, y0, x1, y1) in pixels of the window, NaN for none, shape (n, 4).
    sentences, kinds
        n.
    """

    images: Tensor
    targets: Tensor
    known: Tensor
    boxes: Tensor
    sentences: list[str]
    kinds: list[str]

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on a device."""
        images, targets, known, boxes = (
            one.to(device) for one in (self.images, self.targets, self.known, self.boxes)
        )
        return Batch(images, targets, known, boxes, self.sentences, self.kinds)


class Sampler:
    """Draws samples; the same generator state gives the same samples.

    Parameters
    ----------
    strips
        Of the training patients.
    """

    def __init__(self, strips: Sequence[Strip]) -> None:
        self.strips = strips
        weights = np.array([one.weight for one in strips])
        self._share = weights / weights.sum()

    def draw(self, rng: np.random.Generator, length: int) -> Sample:
        """One walk of ``length`` slices, head first or feet first."""
        sample = self._drawn(rng, length)
        if rng.random() < 0.5:
            sample.grey = sample.grey[:, ::-1]
        return sample

    def _drawn(self, rng: np.random.Generator, length: int) -> Sample:
        strip = self.strips[rng.choice(len(self.strips), p=self._share)]
        order = _walk(strip, rng, length)
        kind = str(rng.choice(list(_SHARES), p=list(_SHARES.values())))
        if strip.has_ends:
            kind = "nodule"
        if kind == "pair":
            sample = self._pair(strip, order, rng)
            if sample is not None:
                return sample
        if kind == "other":
            return _other(strip, order, rng)
        if kind == "empty":
            sample = _empty(strip, order, rng)
            if sample is not None:
                return sample
        target = _unit(strip.target[order])
        known = None
        sentence = nodule_sentence(strip, rng)
        if kind == "unknown":
            sentence = structure_sentence(str(rng.choice(_UNKNOWN)), rng)
            known = np.asarray(target > 0, np.float32)
            target = np.zeros_like(target)
        centre, side = _field(strip, rng)
        return Sample(
            _triples(strip.grey, order),
            target,
            known,
            centre,
            side,
            _turn(rng),
            sentence,
            kind if known is not None else "nodule",
        )

    def _pair(self, strip: Strip, order: NDArray[np.intp], rng: np.random.Generator) -> Sample | None:
        """The strip's nodule and another one pasted beside it; the sentence names one of them."""
        for _ in range(6):
            donor = self.strips[rng.choice(len(self.strips), p=self._share)]
            if donor.has_ends:
                continue
            turn = _turn(rng)
            place = _free_place(strip, donor, order, rng)
            if donor.crop.patient == strip.crop.patient or place is None:
                continue
            shift = np.array(place) - donor.centre
            own = _unit(strip.target[order])
            triples, other = _paste(strip, donor, order, shift, rng)
            # (x, y) from the own nodule to the pasted one, as the window will show it
            apart = turn.T @ np.array([place[1] - strip.centre[1], place[0] - strip.centre[0]])
            is_own = bool(rng.random() < 0.5)
            sentence = _telling(strip, donor, apart, rng, is_own=is_own)
            if sentence is None:
                continue
            named = (strip.centre, strip.diameter_mm) if is_own else (place, donor.diameter_mm)
            centre, side = _pair_field(strip, place, named, donor.diameter_mm, rng)
            target = own if is_own else other
            return Sample(triples, target, None, centre, side, turn, sentence, "pair")
        return None


def _walk(strip: Strip, rng: np.random.Generator, length: int) -> NDArray[np.intp]:
    """Indices of neighbouring slices, starting on one with much of the nodule where there are several."""
    area = (strip.target >= 128).sum((1, 2))
    if length == 1:
        share = 0.3 + (area > 0)
        return np.array([rng.choice(len(area), p=share / share.sum())])
    start = int(rng.choice(np.flatnonzero(area >= 0.6 * area.max())))
    step = 1 if rng.random() < 0.5 else -1
    order = start + step * np.arange(length)
    return np.asarray(np.clip(order, 0, len(area) - 1), dtype=np.intp)


def _unit(values: Bytes) -> Floats:
    """0..255 as 0..1."""
    return np.asarray(values / np.float32(255), dtype=np.float32)


def _triples(grey: Bytes, order: NDArray[np.intp]) -> Floats:
    """Each slice between its neighbours, (T, 3, 96, 96), 0..1; the first and last slice repeat themselves."""
    around = np.clip(order[:, None] + np.array([-1, 0, 1]), 0, len(grey) - 1)
    return _unit(grey[around])


def _turn(rng: np.random.Generator) -> Floats:
    """Flips, quarter turns and up to 15 degrees."""
    angle = np.pi / 2 * rng.integers(4) + rng.uniform(-1, 1) * np.pi / 12
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(matrix * (1.0, 1.0 if rng.random() < 0.5 else -1.0), dtype=np.float32)


def _field(strip: Strip, rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Middle and side of a window, pixels: close around the nodule, wide, or wide with it anywhere."""
    kind = rng.random()
    if kind < 0.62:
        side_mm = max(strip.diameter_mm * rng.uniform(1.8, 4.0), rng.uniform(18, 24))
        shift = rng.normal(0, 0.05, 2) * side_mm
    elif kind < 0.82:
        side_mm = max(rng.uniform(32, 70), strip.diameter_mm * 1.5)
        shift = rng.uniform(-5, 5, 2)
    else:
        side_mm = max(rng.uniform(50, 70), strip.diameter_mm * 1.8)
        shift = rng.uniform(-0.5, 0.5, 2) * (side_mm - strip.diameter_mm)
    y, x = np.array(strip.centre) + shift / strip.pitch_mm
    return (float(y), float(x)), side_mm / strip.pitch_mm


def _pair_field(
    strip: Strip,
    place: tuple[float, float],
    named: tuple[tuple[float, float], float],
    other_mm: float,
    rng: np.random.Generator,
) -> tuple[tuple[float, float], float]:
    """Middle and side of a window, pixels: around both nodules, or close around the named one."""
    if rng.random() < 0.35:
        (y, x), diameter = named
        side = max(diameter * rng.uniform(1.9, 3.2), 19.0)
        shift = rng.normal(0, 0.04, 2) * side
        return (y + shift[0] / strip.pitch_mm, x + shift[1] / strip.pitch_mm), side / strip.pitch_mm
    y, x = (np.array(place) + strip.centre) / 2 + rng.normal(0, 2, 2)
    reach = np.abs(np.array(place) - strip.centre).max() * strip.pitch_mm
    side = max((reach + max(strip.diameter_mm, other_mm)) * rng.uniform(1.2, 1.8), 24.0)
    return (float(y), float(x)), side / strip.pitch_mm


def nodule_sentence(strip: Strip, rng: np.random.Generator) -> str:
    """A sentence that holds for this nodule: its name, its size, or its attributes where they are trusted."""
    kind = rng.random()
    if kind < 0.1:
        return str(rng.choice(SIZES["large" if strip.diameter_mm >= LARGE_MM else "small"]))
    if kind < 0.4 and strip.crop.is_trusted:
        return caption(strip.crop.ratings, rng, max_sentences=3)
    return structure_sentence(NODULE, rng)


def _other(strip: Strip, order: NDArray[np.intp], rng: np.random.Generator) -> Sample:
    """Another structure than the nodule, in a third of the draws one that may be absent."""
    labels = strip.structures[order]
    present = [index for index in range(len(OTHERS)) if (labels[0] == index + 1).sum() > 20]
    if not present or rng.random() < 0.3:
        present = list(range(len(OTHERS)))
    chosen = int(rng.choice(present))
    # bone is soft tissue of the wall to our rule, so both count as wall
    hit = np.isin(labels, (1, 3)) if OTHERS[chosen] == "chest wall" else labels == chosen + 1
    centre, side = _field(strip, rng)
    target = np.asarray(hit, dtype=np.float32)
    sentence = structure_sentence(OTHERS[chosen], rng)
    return Sample(_triples(strip.grey, order), target, None, centre, side, _turn(rng), sentence, "other")


def _empty(strip: Strip, order: NDArray[np.intp], rng: np.random.Generator) -> Sample | None:
    """A window beside the nodule; None where it doesn't fit."""
    side = rng.uniform(18, 28) / strip.pitch_mm
    # half a diagonal, for the window may be turned
    apart = side / np.sqrt(2) + strip.diameter_mm / strip.pitch_mm + 2
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.array(strip.centre) + apart * np.array([np.sin(angle), np.cos(angle)])
    if not (side / 3 < y < SIDE - side / 3 and side / 3 < x < SIDE - side / 3):
        return None
    target = np.zeros((len(order), SIDE, SIDE), np.float32)
    sentence = structure_sentence(NODULE, rng)
    middle = (float(y), float(x))
    return Sample(_triples(strip.grey, order), target, None, middle, side, _turn(rng), sentence, "empty")


def _free_place(
    strip: Strip, donor: Strip, order: NDArray[np.intp], rng: np.random.Generator
) -> tuple[float, float] | None:
    """A place (y, x) in lung beside the nodule for another one."""
    key = strip.grey[order[0]]
    radius = donor.diameter_mm / donor.pitch_mm / 2
    least = strip.diameter_mm / strip.pitch_mm / 2 + radius + 3
    for _ in range(12):
        angle, apart = rng.uniform(0, 2 * np.pi), least + rng.uniform(1, 14)
        y, x = np.array(strip.centre) + apart * np.array([np.sin(angle), np.cos(angle)])
        reach = int(np.ceil(radius)) + 2
        top, left = round(y) - reach, round(x) - reach
        if top < 0 or left < 0 or max(top, left) + 2 * reach >= SIDE:
            continue
        patch = key[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
        if (patch < _LUNG_GREY).mean() > 0.75:
            return float(y), float(x)
    return None


def _paste(
    strip: Strip, donor: Strip, order: NDArray[np.intp], shift: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Grey triples (T, 3, 96, 96) with the donor's nodule and its target (T, 96, 96)."""
    dy, dx = (round(float(value)) for value in shift)
    first = int((donor.target >= 128).sum((1, 2)).argmax()) - int(order[0])
    indices = order[:, None] + np.array([-1, 0, 1])
    host = _triples(strip.grey, order)
    target = np.zeros((len(order), SIDE, SIDE), np.float32)
    sharpness = rng.uniform(0.6, 1.2)
    for t, row in enumerate(indices):
        for c, index in enumerate(row):
            z = int(index) + first
            if not 0 <= z < len(donor.grey):
                continue
            mask = _moved(_unit(donor.target[z]), dy, dx)
            if c == 1:
                target[t] = mask
            if mask.max() < 0.4:
                continue
            solid = ndimage.binary_dilation(mask > 0.3, iterations=1).astype(np.float32)
            alpha = np.clip(ndimage.gaussian_filter(solid, sharpness) * 1.2, 0, 1)
            grey = _moved(_unit(donor.grey[z]), dy, dx)
            host[t, c] = (1 - alpha) * host[t, c] + alpha * np.maximum(grey, host[t, c])
    return host, target


def _moved(image: Floats, dy: int, dx: int) -> Floats:
    """Shifted by whole pixels, zeros where nothing comes from."""
    out = np.zeros_like(image)
    height, width = image.shape
    out[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = image[
        max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)
    ]
    return out


def _telling(
    own: Strip, other: Strip, apart: NDArray[np.float64], rng: np.random.Generator, *, is_own: bool
) -> str | None:
    """A sentence that is true of one of two nodules only: by place, size or one attribute."""
    options: list[tuple[str, ...]] = []
    x, y = apart if not is_own else -apart
    if max(abs(x), abs(y)) > 1.3 * min(abs(x), abs(y)):
        place = ("right" if x > 0 else "left") if abs(x) > abs(y) else ("bottom" if y > 0 else "top")
        options.append(PLACES[place])
    mine, its = (own, other) if is_own else (other, own)
    ratio = mine.diameter_mm / its.diameter_mm
    if max(ratio, 1 / ratio) > 1.4:
        options.append(SIZES["large" if ratio > 1 else "small"])
    if own.crop.is_trusted and other.crop.is_trusted:
        for item in PAIRS:
            if item.feature not in ("texture", "calcification") or item.rating is None:
                continue
            answers = [item.holds(one.crop.ratings[item.rating]) for one in (mine, its)]
            if answers[0] != answers[1]:
                options.append(item.positive if answers[0] else item.negative)
    return str(rng.choice(options[rng.integers(len(options))])) if options else None


def collate(samples: Sequence[Sample], pixels: int, rng: np.random.Generator, box_share: float) -> Batch:
    """Cut the windows, disturb the grey values, draw the boxes.

    Parameters
    ----------
    samples
        Of one length.
    pixels
        Side of the network's image.
    box_share
        Share of samples that get a box of their target.
    """
    number, length = len(samples), len(samples[0].grey)
    centres = torch.tensor([one.centre for one in samples], dtype=torch.float32)
    sides = torch.tensor([one.side for one in samples], dtype=torch.float32)
    turns = torch.from_numpy(np.stack([one.turn for one in samples]))
    affine = theta(centres, sides, (SIDE, SIDE), turns)  # (n, 2, 3)
    ones = np.ones((length, SIDE, SIDE), np.float32)
    stacked = np.stack(
        [
            np.concatenate(
                [one.grey.reshape(-1, SIDE, SIDE), one.target, ones if one.known is None else one.known]
            )
            for one in samples
        ]
    )  # (n, 5 T, 96, 96)
    windows = cut(torch.from_numpy(stacked), affine, pixels)
    images = windows[:, : 3 * length].reshape(number, length, 3, pixels, pixels).transpose(0, 1)
    targets = windows[:, 3 * length : 4 * length].transpose(0, 1)
    known = windows[:, 4 * length :].transpose(0, 1)
    boxes = torch.full((number, 4), torch.nan)
    for index in np.flatnonzero(rng.random(number) < box_share):
        boxes[index] = _box(targets[:, index] >= 0.5, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return Batch(
        _disturbed(images, generator),
        targets,
        known,
        boxes,
        [one.sentence for one in samples],
        [one.kind for one in samples],
    )


def _box(target: Tensor, rng: np.random.Generator) -> Tensor:
    """Box around a target (T, y, x) in all its slices, moved by about 3 % of its size; NaN for none."""
    rows, columns = target.any(0).any(1).nonzero()[:, 0], target.any(0).any(0).nonzero()[:, 0]
    if not len(rows):
        return torch.full((4,), torch.nan)
    box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)
    reach = float((box[2:] - box[:2]).mean())
    return box - 0.5 + torch.tensor(rng.normal(0, 0.03 * reach, 4), dtype=torch.float32)


def _disturbed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale by +-10 % and shift by +-40 HU about lung, per object; noise of up to 30 HU; sometimes blur."""
    length, number = images.shape[:2]
    draw = torch.rand(4, number, generator=generator)[:, None, :, None, None, None]
    lung = 150 / 1500
    scaled = lung + (images - lung) * (0.9 + 0.2 * draw[0]) + (draw[1] - 0.5) * 80 / 1500
    # HU of strips are estimated slice by slice, so each slice errs by itself too
    own = 1 + 0.04 * torch.randn(length, number, 3, 1, 1, generator=generator)
    noise = torch.randn(images.shape, generator=generator) * draw[2] * 30 / 1500
    return (lung + (scaled - lung) * own + noise).clamp(0, 1)
