"""Pictures of a nodule in two examinations: the prior one on the left, this one on the right, at one scale.

Where only one of them shows the nodule, the other picture is of the place that registration carried over,
without an outline, as there is nothing to outline. Turned as in `dicom_sr.keyimages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dicom_sr.comparison import change_words, doubling_days, examined_on, volume_percent
from dicom_sr.context import RESEARCH_USE
from dicom_sr.keyimages import (
    BACK,
    DARK,
    LEFT_OF_PATIENT,
    LUNG_WINDOW,
    MUTED,
    OUTLINE,
    TEXT,
    ZOOM,
    View,
    label_at,
    middle,
    scale_bar,
    windowed,
    write_caption,
    zoom,
)
from dicom_sr.stacks import SliceStack, render_stack
from inference.types import Comparison, Finding, Pair, Point, Volume

HEAD, CAPTION, GAP = 40, 92, 4
"""Height of the heads and of the caption, and the gap between the pictures, in picture pixels."""
_LEAST_REACH_MM = 25.0


@dataclass(frozen=True, slots=True)
class PairImages:
    """The pictures of one pair of a comparison.

    Parameters
    ----------
    picture
        PNG: above without, below with the outlines.
    caption
        What it says below, as one line; no patient data.
    prior, current
        The slices of each side for scrolling; None where that examination doesn't show the place.
    """

    picture: Path
    caption: str
    prior: SliceStack | None
    current: SliceStack | None

    @property
    def stacks(self) -> tuple[SliceStack, ...]:
        """The slices that were written."""
        return tuple(stack for stack in (self.prior, self.current) if stack is not None)


@dataclass(frozen=True, slots=True)
class _Side:
    """A nodule, or the place where it would be, in one examination.

    Parameters
    ----------
    finding
        With a box for a mask where there is no nodule.
    seen
        Whether there is one.
    """

    volume: Volume
    finding: Finding
    seen: bool


def render_pairs(
    volume: Volume, prior: Volume, comparison: Comparison, directory: Path, *, note: str = ""
) -> tuple[PairImages, ...]:
    """Write for each pair ``change-01.png``, and ``change-01-prior.webp`` and ``-current.webp`` to scroll.

    Parameters
    ----------
    volume, prior
        The examinations that were compared.
    directory
        Made if absent.
    note
        Shown in every caption, e.g. that the input is synthetic.

    Returns
    -------
    tuple of PairImages
        In the order of the pairs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    out = []
    days = (comparison.prior.examined_on, examined_on(comparison))
    for number, pair in enumerate(comparison.pairs, start=1):
        sides = _sides(volume, prior, pair)
        name = f"change-{number:02d}"
        caption = caption_lines(pair, note)
        path = directory / f"{name}.png"
        _picture(sides, caption, comparison).save(path, compress_level=4)
        stacks = [
            None if side is None else _stack(side, directory / f"{name}-{which}.webp")
            for which, side in zip(("prior", "current"), sides, strict=True)
        ]
        words = " ".join([f"Left {days[0]}, right {days[1]}.", *caption])
        out.append(PairImages(path, words, *stacks))
    return tuple(out)


def caption_lines(pair: Pair, note: str = "") -> list[str]:
    """Three lines: what became of the nodule, its volumes, and how the picture may be used."""
    seen = [one for one in (pair.prior, pair.current) if one is not None]
    sizes = " to ".join(f"{one.measurements.mean_diameter_mm:.1f}" for one in seen)
    volumes = " to ".join(f"{one.measurements.volume_mm3:.0f}" for one in seen)
    change = "" if pair.doubling is None else f" ({volume_percent(pair.doubling.change):+} %)"
    days = doubling_days(pair)
    doubles = "" if days is None else f", doubling time {days:.0f} days"
    return [
        f"{seen[-1].tracking_id}: {change_words(pair)}, mean diameter {sizes} mm",
        f"Volume {volumes} mm3{change}{doubles}. {note}".strip(),
        f"Automatic, not reviewed by a physician. {RESEARCH_USE}",
    ]


def _sides(volume: Volume, prior: Volume, pair: Pair) -> tuple[_Side | None, _Side | None]:
    """The prior examination, and this one."""
    return (
        _side(prior, pair.prior, pair.current_point_mm, volume, pair.current),
        _side(volume, pair.current, pair.prior_point_mm, prior, pair.prior),
    )


def _side(
    volume: Volume, finding: Finding | None, place: Point | None, other: Volume, partner: Finding | None
) -> _Side | None:
    if finding is not None:
        return _Side(volume, finding, seen=True)
    if place is None or partner is None:
        return None
    box = _box(volume, place, other, partner)
    return None if box is None else _Side(volume, box, seen=False)


def _box(volume: Volume, place: Point, other: Volume, partner: Finding) -> Finding | None:
    """A box of the partner's size around a place; None where the volume doesn't show the place."""
    shape = np.asarray(volume.array.shape)
    centre = np.rint(volume.lps_to_index(place)).astype(int)
    if (centre < 0).any() or (centre >= shape).any():
        return None
    mm = np.asarray(partner.mask.shape) * other.spacing_mm
    half = np.maximum(np.rint(mm / volume.spacing_mm / 2), 1).astype(int)
    first, stop = np.maximum(centre - half, 0), np.minimum(centre + half + 1, shape)
    z, y, x = first.tolist()
    return replace(
        partner,
        mask=np.ones(stop - first, dtype=bool),
        origin=(z, y, x),
        key_slice=int(centre[0]),
        key_point=(float(centre[1]), float(centre[2])),
    )


def _stack(side: _Side, path: Path) -> SliceStack:
    stack = render_stack(side.volume, side.finding, path)
    if side.seen:
        return stack
    return replace(stack, slices=tuple(replace(one, outline="") for one in stack.slices))


def _picture(
    sides: tuple[_Side | None, _Side | None], caption: Sequence[str], comparison: Comparison
) -> Image.Image:
    canvas = Image.new("RGB", (2 * ZOOM + GAP, HEAD + 2 * ZOOM + GAP + CAPTION), DARK)
    draw = ImageDraw.Draw(canvas)
    planes = [None if side is None else _plane(side) for side in sides]
    reach = max(_LEAST_REACH_MM, *(0.75 * plane.extent for plane in planes if plane is not None))
    days = (comparison.prior.examined_on, examined_on(comparison))
    for column, (side, plane, day) in enumerate(zip(sides, planes, days, strict=True)):
        left = column * (ZOOM + GAP)
        which = "this examination" if column else "prior examination"
        label_at(draw, (left + 12, HEAD // 2), f"{day}", size=20, colour=TEXT, anchor="lm")
        label_at(draw, (left + ZOOM - 12, HEAD // 2), which, size=16, colour=MUTED, anchor="rm")
        if side is None or plane is None:
            words = "does not show this place"
            label_at(draw, (left + ZOOM // 2, HEAD + ZOOM), words, size=18, colour=MUTED, anchor="mm")
            continue
        plain, outlined = zoom(plane.grey, plane.mask, plane.view, plane.centre, reach)
        canvas.paste(plain, (left, HEAD))
        canvas.paste(outlined if side.seen else plain, (left, HEAD + ZOOM + GAP))
        _marks(draw, (left, HEAD), ZOOM / (2 * reach))
        if not side.seen:
            _cross(draw, (left + ZOOM // 2, HEAD + ZOOM + GAP + ZOOM // 2), ZOOM / (2 * reach))
    write_caption(draw, HEAD + 2 * ZOOM + GAP, caption)
    return canvas


def _marks(draw: ImageDraw.ImageDraw, at: tuple[int, int], scale: float) -> None:
    """Sides of the patient and a length in the plain picture."""
    left, top = at
    label_at(draw, (left + 8, top + ZOOM // 2), "R", size=20, colour=TEXT, anchor="lm")
    label_at(draw, (left + ZOOM - 8, top + ZOOM // 2), "L", size=20, colour=TEXT, anchor="rm")
    scale_bar(draw, (left + 14, top + ZOOM - 16), 10, scale)


def _cross(draw: ImageDraw.ImageDraw, middle_at: tuple[int, int], scale: float) -> None:
    """Four strokes around a place, and what it is."""
    x, y = middle_at
    near, far = 6 * scale, 10 * scale
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        draw.line((x + dx * near, y + dy * near, x + dx * far, y + dy * far), fill=OUTLINE, width=2)
    words = "the same place, no nodule marked"
    label_at(draw, (x, y + ZOOM // 2 - 12), words, size=15, colour=TEXT, anchor="md")


@dataclass(frozen=True, slots=True)
class _Plane:
    """The key slice of a side, turned to be looked at."""

    grey: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    view: View
    centre: tuple[float, float]
    extent: float


def _plane(side: _Side) -> _Plane:
    volume, finding = side.volume, side.finding
    steps = volume.affine_index_to_lps[:3, :3]
    view = View.of(steps[:, 1], steps[:, 2], down=BACK, right=LEFT_OF_PATIENT)
    plane = volume.array[finding.key_slice]
    mask = np.zeros(plane.shape, dtype=bool)
    _, rows, columns = finding.slices()
    mask[rows, columns] = finding.key_mask()
    mask = view.turn(mask)
    centre, extent = middle(mask, view)
    return _Plane(windowed(view.turn(plane), LUNG_WINDOW), mask, view, centre, extent)
