"""Pictures of the findings for people: upright, in a lung window, with the outline of the mask.

Orientation comes from the affine alone: the patient's right is on the left of the picture, front is up
in an axial slice, head is up in the overview, whatever way the voxels were stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dicom_sr.codes import attenuation_words, site_words
from dicom_sr.context import RESEARCH_USE
from inference.certainty import percent
from inference.types import Finding, Volume

Scalar = TypeVar("Scalar", bound=np.generic)

MAIN, ZOOM, CAPTION = 768, 384, 92
"""Side of the slice picture and of the two enlargements, height of the caption, in picture pixels."""
LUNG_WINDOW = (-1350.0, 150.0)
Colour = tuple[int, int, int]
OUTLINE = (255, 196, 0)
TEXT = (240, 240, 240)
MUTED = (170, 174, 180)
DARK = (18, 20, 24)

LEFT_OF_PATIENT = np.array([1.0, 0.0, 0.0])
BACK = np.array([0.0, 1.0, 0.0])
FOOT = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, slots=True)
class KeyImage:
    """One written picture.

    Parameters
    ----------
    slice_index
        First-axis index in the volume.
    caption
        What the picture says below, as one line; no patient data.
    """

    path: Path
    tracking_id: str
    slice_index: int
    caption: str


@dataclass(frozen=True, slots=True)
class View:
    """How a plane of voxels is turned to be looked at.

    Parameters
    ----------
    transpose, flip_rows, flip_columns
        Applied in this order.
    spacing_mm
        Distance of rows and of columns after turning.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool
    spacing_mm: tuple[float, float]

    @classmethod
    def of(
        cls,
        row_step: NDArray[np.float64],
        column_step: NDArray[np.float64],
        *,
        down: NDArray[np.float64],
        right: NDArray[np.float64],
    ) -> View:
        """The view in which `down` and `right` (LPS directions) are so in the picture.

        Parameters
        ----------
        row_step, column_step
            LPS vector in mm from one row (column) of the plane to the next.
        """
        transpose = bool(abs(row_step @ down) < abs(row_step @ right))
        vertical, horizontal = (column_step, row_step) if transpose else (row_step, column_step)
        return cls(
            transpose,
            bool(vertical @ down < 0),
            bool(horizontal @ right < 0),
            (float(np.linalg.norm(vertical)), float(np.linalg.norm(horizontal))),
        )

    def turn(self, plane: NDArray[Scalar]) -> NDArray[Scalar]:
        """The plane (rows, columns) as it is to be looked at."""
        out = plane.T if self.transpose else plane
        out = out[::-1] if self.flip_rows else out
        return out[:, ::-1] if self.flip_columns else out


def render_key_images(
    volume: Volume, findings: Sequence[Finding], directory: Path, *, note: str = ""
) -> tuple[KeyImage, ...]:
    """Write one PNG for each finding: ``nodule-01.png``, ``nodule-02.png`` ...

    Left the whole key slice, right an enlargement without and one with the outline.

    Parameters
    ----------
    directory
        Made if absent.
    note
        Shown in the caption of every picture, e.g. that the input is synthetic.

    Returns
    -------
    tuple of KeyImage
        In the order of the findings.
    """
    directory.mkdir(parents=True, exist_ok=True)
    out = []
    for number, finding in enumerate(findings, start=1):
        path = directory / f"nodule-{number:02d}.png"
        caption = caption_lines(volume, finding, note)
        _key_image(volume, finding, caption).save(path, compress_level=4)
        out.append(KeyImage(path, finding.tracking_id, finding.key_slice, " ".join(caption)))
    return tuple(out)


def render_overview(volume: Volume, findings: Sequence[Finding], path: Path, *, note: str = "") -> Path:
    """Write a PNG of the whole volume seen from the front with the outline and name of every finding.

    The mean along the back-to-front axis, so that it resembles a chest radiograph.
    """
    steps = volume.affine_index_to_lps[:3, :3]
    through = int(np.argmax(np.abs(BACK @ steps)))
    rows, columns = (axis for axis in range(3) if axis != through)
    view = View.of(steps[:, rows], steps[:, columns], down=FOOT, right=LEFT_OF_PATIENT)
    mean = np.clip(volume.array, -1000, 1000).mean(axis=through, dtype=np.float32)
    low, high = np.percentile(mean, (2, 99.7))
    grey = windowed(view.turn(mean), (float(low), float(high) + 1.0))
    picture, scale = _resized(grey, view, MAIN)
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION), DARK)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for number, finding in enumerate(findings, start=1):
        shadow = np.zeros(mean.shape, dtype=bool)
        where = [s for axis, s in enumerate(finding.slices()) if axis != through]
        shadow[where[0], where[1]] = finding.mask.any(axis=through)
        outline = _outline(_scaled_mask(view.turn(shadow), picture.size), 2)
        canvas.paste(OUTLINE, (0, 0), Image.fromarray(outline.astype(np.uint8) * 255))
        ys, xs = np.nonzero(outline)
        label_at(draw, (int(xs.max()) + 6, int(ys.min()) - 6), str(number), size=18, colour=OUTLINE)
    _side_letters(draw, picture.size, top="H", bottom="F")
    scale_bar(draw, (16, picture.height - 18), 50, scale)
    lines = [
        f"{len(findings)} finding{'s' if len(findings) != 1 else ''}, seen from the front (mean projection)",
        f"Automatic, not reviewed by a physician. {note}".strip(),
        RESEARCH_USE,
    ]
    write_caption(draw, picture.height, lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, compress_level=4)
    return path


def caption_lines(volume: Volume, finding: Finding, note: str = "") -> list[str]:
    """Three lines: what, where and how it may be used."""
    m = finding.measurements
    kind = f", {words}" if (words := attenuation_words(finding)) else ""
    _, _, z = volume.index_to_lps((finding.key_slice, *finding.key_point))
    size = f"{m.long_axis_mm:.1f} x {m.short_axis_mm:.1f} mm, {m.volume_mm3:.0f} mm3"
    place = f"Slice {finding.key_slice + 1} of {volume.array.shape[0]}, z = {z:.1f} mm"
    certainty = f"detection certainty {percent(finding.detection_probability)}"
    return [
        f"{finding.tracking_id}: {size}{kind}, {site_words(finding.site)}",
        f"{place}, {certainty}. {note}".strip(),
        f"Automatic, not reviewed by a physician. {RESEARCH_USE}",
    ]


def _key_image(volume: Volume, finding: Finding, caption: Sequence[str]) -> Image.Image:
    steps = volume.affine_index_to_lps[:3, :3]
    view = View.of(steps[:, 1], steps[:, 2], down=BACK, right=LEFT_OF_PATIENT)
    plane = volume.array[finding.key_slice]
    mask = np.zeros(plane.shape, dtype=bool)
    _, rows, columns = finding.slices()
    mask[rows, columns] = finding.key_mask()
    grey, mask = windowed(view.turn(plane), LUNG_WINDOW), view.turn(mask)
    picture, scale = _resized(grey, view, MAIN)
    canvas = Image.new("RGB", (MAIN + ZOOM, MAIN + CAPTION), DARK)
    left, top = (MAIN - picture.width) // 2, (MAIN - picture.height) // 2
    canvas.paste(picture, (left, top))
    centre, extent = middle(mask, view)
    reach = max(25.0, 0.75 * extent)
    plain, outlined = zoom(grey, mask, view, centre, reach)
    canvas.paste(plain, (MAIN, 0))
    canvas.paste(outlined, (MAIN, ZOOM))
    draw = ImageDraw.Draw(canvas)
    x = left + (centre[1] + 0.5) * view.spacing_mm[1] * scale
    y = top + (centre[0] + 0.5) * view.spacing_mm[0] * scale
    half = reach * scale
    draw.rectangle((x - half, y - half, x + half, y + half), outline=OUTLINE, width=1)
    _side_letters(draw, (MAIN, MAIN), top="A", bottom="P")
    scale_bar(draw, (16, MAIN - 18), 50, scale)
    scale_bar(draw, (MAIN + 14, ZOOM - 16), 10, ZOOM / (2 * reach))
    draw.line((MAIN, 0, MAIN, MAIN), fill=DARK, width=2)
    draw.line((MAIN, ZOOM, MAIN + ZOOM, ZOOM), fill=DARK, width=2)
    write_caption(draw, MAIN, caption)
    return canvas


def middle(mask: NDArray[np.bool_], view: View) -> tuple[tuple[float, float], float]:
    """Middle (row, column) of the mask's bounding box and the box's longer side in mm."""
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0)]
    row, column = ((float(span[0]) + float(span[-1])) / 2 for span in spans)
    sides = [len(range(span[0], span[-1] + 1)) * mm for span, mm in zip(spans, view.spacing_mm, strict=True)]
    return (row, column), float(max(sides))


def windowed(hu: NDArray[np.generic], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Grey values of HU: black at the lower end of the window and below, white at the upper and above."""
    low, high = window
    scaled = (np.asarray(hu, dtype=np.float32) - low) / (high - low)
    return np.asarray(np.clip(scaled, 0, 1) * 255).round().astype(np.uint8)


def _resized(grey: NDArray[np.uint8], view: View, longest: int) -> tuple[Image.Image, float]:
    """Square millimetres; the longer side becomes `longest` picture pixels. Also pixels per mm."""
    height, width = grey.shape[0] * view.spacing_mm[0], grey.shape[1] * view.spacing_mm[1]
    scale = longest / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BICUBIC)
    return image.convert("RGB"), scale


def zoom(
    grey: NDArray[np.uint8], mask: NDArray[np.bool_], view: View, centre: tuple[float, float], reach: float
) -> tuple[Image.Image, Image.Image]:
    """`reach` mm to each side of `centre`, without and with the outline of the mask."""
    pad = [int(np.ceil(reach / spacing)) + 2 for spacing in view.spacing_mm]
    around = ((pad[0], pad[0]), (pad[1], pad[1]))
    middle = [centre[axis] + 0.5 + pad[axis] for axis in (0, 1)]
    half = [reach / spacing for spacing in view.spacing_mm]
    box = (middle[1] - half[1], middle[0] - half[0], middle[1] + half[1], middle[0] + half[0])
    picture = Image.fromarray(np.pad(grey, around)).resize((ZOOM, ZOOM), Image.Resampling.BICUBIC, box)
    stencil = Image.fromarray(np.pad(mask, around).astype(np.uint8) * 255)
    enlarged = np.asarray(stencil.resize((ZOOM, ZOOM), Image.Resampling.NEAREST, box)) > 0
    plain = picture.convert("RGB")
    outlined = plain.copy()
    outlined.paste(OUTLINE, (0, 0), Image.fromarray(_outline(enlarged, 2).astype(np.uint8) * 255))
    return plain, outlined


def _scaled_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    image = Image.fromarray(np.ascontiguousarray(mask).astype(np.uint8) * 255)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST)) > 0


def _outline(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """The pixels just outside the mask, `width` thick, so that the finding itself stays visible."""
    grown = mask
    for _ in range(width):
        padded = np.pad(grown, 1)
        grown = (
            padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
        )
    return grown & ~mask


def label_at(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    *,
    size: int,
    colour: Colour,
    anchor: str = "la",
) -> None:
    """Write a text with a dark rim, readable on any grey; `anchor` as Pillow has it."""
    font = ImageFont.load_default(size)
    draw.text(at, text, font=font, fill=colour, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _side_letters(draw: ImageDraw.ImageDraw, size: tuple[int, int], *, top: str, bottom: str) -> None:
    width, height = size
    label_at(draw, (12, height // 2), "R", size=26, colour=TEXT, anchor="lm")
    label_at(draw, (width - 12, height // 2), "L", size=26, colour=TEXT, anchor="rm")
    label_at(draw, (width // 2, 10), top, size=18, colour=MUTED, anchor="ma")
    label_at(draw, (width // 2, height - 10), bottom, size=18, colour=MUTED, anchor="md")


def scale_bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], length_mm: int, scale: float) -> None:
    """Draw a length to the right of a place; `scale` in picture pixels per mm."""
    x, y = at
    end = x + length_mm * scale
    for colour, width in ((DARK, 7), (TEXT, 3)):  # a dark rim: enlargements may be white
        grow = (width - 3) // 2
        draw.line((x - grow, y, end + grow, y), fill=colour, width=width)
        for tick in (x, end):
            draw.line((tick, y - 5 - grow, tick, y + 5 + grow), fill=colour, width=width)
    label_at(draw, (x, y - 8), f"{length_mm} mm", size=15, colour=TEXT, anchor="ld")


def write_caption(draw: ImageDraw.ImageDraw, top: int, lines: Sequence[str]) -> None:
    """Write the three lines of a caption from this row of the picture on."""
    for row, (line, size) in enumerate(zip(lines, (20, 16, 16), strict=True)):
        colour = TEXT if row == 0 else MUTED
        draw.text((14, top + 10 + 27 * row), line, font=ImageFont.load_default(size), fill=colour)
