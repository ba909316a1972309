"""Compare the pixels of a screenshot with what the files say should be there.

Array coordinates of a picture are (row, column); x and y of the page are (column, row).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from conformance.viewer.study import Mask, Slice, Study

Picture = NDArray[np.uint8]

ALIKE = 0.98
"""Least correlation of the picture with the slice that it should show."""
COVERS = 0.9
"""Least Dice of overlay and mask; of a small nodule the edge alone may cost more, see `EDGE_PX`."""
EDGE_PX = 2
"""Overlay and mask agree where no pixel of either lies further than this from the other, along rows and
columns: the viewer draws an outline around each mask and rounds its corners."""
IN_DRAWN = 0.7
"""Least share of the overlay that lies in the drawn nodule. The node's outline is a measurement, not the
drawing: of a part-solid nodule it may hold the core alone."""
MARKER_PX = 2.0
"""Largest distance of a marker's centre from its point."""
_COLOURED = 30
_RING_PX = 11


@dataclass(frozen=True)
class Box:
    """A rectangle of the page, in CSS pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class View:
    """A viewport as it looks now.

    Parameters
    ----------
    picture
        Its pixels, (rows, columns, 3).
    covered
        What of it lies below writing and buttons, (rows, columns).
    instance_number
        That the viewer writes beside the image.
    window
        Centre and width that the viewer writes beside the image, HU.
    markers
        Patient directions that it writes at the left and at the top edge.
    """

    picture: Picture
    covered: Mask
    instance_number: int
    window: tuple[float, float]
    markers: tuple[str, str]

    def coloured(self) -> Mask:
        """Pixels that are no grey of the CT."""
        channels = self.picture.astype(np.int16)
        coloured: Mask = (channels.max(axis=2) - channels.min(axis=2) > _COLOURED) & ~self.covered
        return coloured


@dataclass(frozen=True)
class Fit:
    """Where a viewport shows an image that fills it: x = left + column * scale_x, y likewise.

    Column and row as in PS3.3 C.18.6: the first pixel reaches from 0 to 1.
    """

    left: float
    top: float
    scale_x: float
    scale_y: float
    size: tuple[int, int]

    @classmethod
    def of(cls, study: Study, size: tuple[int, int]) -> Fit:
        """Fit the images of a study into a viewport of `size` (rows, columns), centred, as OHIF does."""
        rows, columns = study.slices[0].hu.shape
        row_mm, column_mm = study.spacing_mm
        per_mm = min(size[0] / (rows * row_mm), size[1] / (columns * column_mm))
        scale_x, scale_y = per_mm * column_mm, per_mm * row_mm
        return cls((size[1] - columns * scale_x) / 2, (size[0] - rows * scale_y) / 2, scale_x, scale_y, size)

    def draw(self, array: NDArray[np.float32], *, smooth: bool = True) -> NDArray[np.float32]:
        """An image as the viewport shows it; 0 outside."""
        transform = (
            1 / self.scale_x,
            0,
            -self.left / self.scale_x,
            0,
            1 / self.scale_y,
            -self.top / self.scale_y,
        )
        how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
        shown = Image.fromarray(array).transform(self.size[::-1], Image.Transform.AFFINE, transform, how)
        return np.asarray(shown)

    def draw_mask(self, mask: Mask) -> Mask:
        """A mask as the viewport shows it."""
        return self.draw(mask.astype(np.float32), smooth=False) > 0.5

    def inside(self) -> Mask:
        """Where the viewport shows the image, a few pixels of its edge left out."""
        rows, columns = np.ogrid[: self.size[0], : self.size[1]]
        margin = 4
        return (
            (columns > self.left + margin)
            & (columns < self.size[1] - self.left - margin)
            & (rows > self.top + margin)
            & (rows < self.size[0] - self.top - margin)
        )


def dice(one: Mask, other: Mask) -> float:
    """2 |A and B| / (|A| + |B|); 0 where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 0.0


def faults_of_image(view: View, study: Study) -> list[str]:
    """Why the view isn't the slice that it says, the right way round; empty if it is.

    The slice must be more like the picture than its neighbours and its mirror images are.
    """
    slices = study.slices
    number = next((n for n, s in enumerate(slices) if s.instance_number == view.instance_number), None)
    if number is None:
        return [f"instance {view.instance_number} isn't one of the series"]
    faults = []
    if view.markers != study.markers():
        faults.append(f"marked {view.markers} at the left and the top, should be {study.markers()}")
    fit = Fit.of(study, view.covered.shape)
    usable = fit.inside() & ~view.covered & ~view.coloured()
    grey = view.picture.mean(axis=2)[usable]

    def likeness(array: NDArray[np.float32]) -> float:
        return float(np.corrcoef(fit.draw(array)[usable], grey)[0, 1])

    own = _windowed(slices[number], view.window)
    score = likeness(own)
    if not score >= ALIKE:
        faults.append(f"like its slice only to {score:.3f}")
    others = {
        f"slice {n + 1}": _windowed(slices[n], view.window)
        for n in (number - 1, number + 1)
        if 0 <= n < len(slices)
    }
    others |= {"its mirror image": own[:, ::-1], "itself upside down": own[::-1]}
    faults += [f"more like {name}" for name, array in others.items() if likeness(array) >= score]
    return faults


def faults_of_overlay(view: View, study: Study, name: str) -> list[str]:
    """Why the overlay isn't the masks of the shown slice, among them that of the nodule `name`."""
    image = next(s for s in study.slices if s.instance_number == view.instance_number)
    nodule = next(n for n in study.nodules if n.name == name)
    if image.sop_uid not in nodule.masks:
        return [f"instance {view.instance_number} has nothing of {name}"]
    fit = Fit.of(study, view.covered.shape)
    overlay = view.coloured() & fit.inside()
    if not overlay.any():
        return ["no overlay"]
    faults = []
    masks = fit.draw_mask(study.mask(image.sop_uid)) & ~view.covered
    covered = dice(overlay, masks)
    if covered < COVERS and not _agree(overlay, masks):
        faults.append(f"the overlay lies elsewhere: Dice {covered:.2f} with the masks of the slice")
    if image.sop_uid in nodule.drawn:
        drawn = fit.draw_mask(nodule.drawn[image.sop_uid])
        near = _around(drawn | fit.draw_mask(nodule.masks[image.sop_uid]))
        share = int((overlay & drawn).sum()) / max(int((overlay & near).sum()), 1)
        if share < IN_DRAWN:
            faults.append(f"the overlay isn't where {name} was drawn: {share:.0%} of it lies there")
    return faults


def _agree(one: Mask, other: Mask) -> bool:
    def beyond(mask: Mask, reach: Mask) -> bool:
        around = binary_dilation(reach, structure=np.ones((3, 3), dtype=np.bool_), iterations=EDGE_PX)
        return bool((mask & ~around).any())

    return not beyond(one, other) and not beyond(other, one)


def faults_of_marker(view: View, study: Study, name: str) -> list[str]:
    """Why no ring marks the report's point of a nodule on its key image."""
    nodule = next(n for n in study.nodules if n.name == name)
    image = study.slices[study.index(nodule.key_image)]
    if view.instance_number != image.instance_number:
        return [f"shows instance {view.instance_number}, the point of {name} is on {image.instance_number}"]
    fit = Fit.of(study, view.covered.shape)
    x, y = fit.left + nodule.point[0] * fit.scale_x, fit.top + nodule.point[1] * fit.scale_y
    rows, columns = np.nonzero(view.coloured())
    near = np.hypot(rows + 0.5 - y, columns + 0.5 - x) < _RING_PX
    if near.sum() < 12:
        return [f"nothing marks {name}"]
    away = np.hypot((rows[near] + 0.5).mean() - y, (columns[near] + 0.5).mean() - x)
    return [f"{name} is marked {away:.1f} pixels beside its point"] if away > MARKER_PX else []


def covered_by(boxes: Sequence[Box], canvas: Box) -> Mask:
    """Pixels of a viewport that lie below the boxes of a page."""
    covered = np.zeros((round(canvas.height), round(canvas.width)), dtype=np.bool_)
    for box in boxes:
        top, left = max(int(box.y - canvas.y) - 1, 0), max(int(box.x - canvas.x) - 1, 0)
        bottom, right = int(box.y + box.height - canvas.y) + 2, int(box.x + box.width - canvas.x) + 2
        covered[top : max(bottom, 0), left : max(right, 0)] = True
    return covered


def _windowed(image: Slice, window: tuple[float, float]) -> NDArray[np.float32]:
    """Grey values of a linear window (PS3.3 C.11.2.1.2)."""
    centre, width = window
    grey: NDArray[np.float32] = np.clip((image.hu - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255
    return grey


def _around(mask: Mask, margin: int = 12) -> Mask:
    rows, columns = np.nonzero(mask)
    around = np.zeros_like(mask)
    around[
        max(rows.min() - margin, 0) : rows.max() + margin,
        max(columns.min() - margin, 0) : columns.max() + margin,
    ] = True
    return around
