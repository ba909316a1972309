"""The result as A4 pages for people whose PACS shows neither SEG nor SR: set once, printed or captured.

Both outputs come from the dictionary of `dicom_sr.summary`, so the pages can't differ from the report.
The same dictionary and pictures always give the same bytes: no clock, no random identifier, and the font
that comes with matplotlib. What that font can't draw is shown as a replacement character, never left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import get_data_path, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 595.0, 842.0
"""A4, points."""
MARGIN, HEAD, FOOT = 42.0, 60.0, 48.0
"""Side, top and bottom that the flow leaves free, points."""
CAPTURE_DPI = 120

_INK, _SOFT, _LINE, _ALERT, _ALERT_BACK = "#1b1f24", "#5b6470", "#d5d9de", "#8a1f11", "#fdecea"
_REPLACEMENT = "�"


@dataclass(frozen=True, slots=True)
class Style:
    """Size in points, weight and colour of a text."""

    size: float = 9.0
    bold: bool = False
    colour: str = _INK

    @property
    def leading(self) -> float:
        """Distance of two base lines, points."""
        return 1.35 * self.size


BODY, STRONG, NOTE = Style(), Style(bold=True), Style(8.0, colour=_SOFT)
TITLE, HEADING = Style(16.0, bold=True), Style(11.0, bold=True)
CELL, CELL_HEAD = Style(8.0), Style(8.0, bold=True, colour=_SOFT)


class Pages:
    """A4 pages that are filled from top to bottom; what doesn't fit goes on to the next one.

    Parameters
    ----------
    banner
        Stands on top of every page.
    footer
        Stands at the bottom of every page, before "page 1 of 3".
    """

    def __init__(self, banner: str, footer: str) -> None:
        self._banner, self._footer = banner, footer
        self._figures: list[Figure] = []
        self._y = HEIGHT

    def space(self, points: float) -> None:
        """Leave a gap."""
        self._y += points

    def break_page(self) -> None:
        """Go on with a new page."""
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), facecolor="white")
        self._figures.append(figure)
        left, width = MARGIN, WIDTH - 2 * MARGIN
        box = Rectangle((left / WIDTH, 1 - 44 / HEIGHT), width / WIDTH, 20 / HEIGHT)
        box.set(facecolor=_ALERT_BACK, edgecolor=_ALERT, linewidth=0.8)
        figure.add_artist(box)
        self._write(self._banner, left + 8, 37.5, Style(9.5, bold=True, colour=_ALERT))
        self._y = HEAD

    def text(self, text: str, style: Style = BODY, *, indent: float = 0.0) -> None:
        """Write a paragraph over the whole width."""
        for line in wrap(text, style, WIDTH - 2 * MARGIN - indent):
            self._make_room(style.leading)
            self._y += style.leading
            self._write(line, MARGIN + indent, self._y - 0.3 * style.size, style)

    def part(self, title: str, paragraphs: Sequence[str], *, indent: float = 8.0) -> None:
        """Write paragraphs under a small title that stays with the first of them."""
        first = wrap(paragraphs[0], BODY, WIDTH - 2 * MARGIN - indent) if paragraphs else []
        self._make_room(min(STRONG.leading + len(first) * BODY.leading, HEIGHT - HEAD - FOOT))
        self.text(title, STRONG)
        for paragraph in paragraphs:
            self.text(paragraph, indent=indent)

    def heading(self, text: str) -> None:
        """Write a heading that doesn't stand alone at the end of a page."""
        self._make_room(10 + 4 * HEADING.leading)
        self.space(10)
        self.text(text, HEADING)
        self.space(2)

    def pairs(self, rows: Iterable[tuple[str, str]]) -> None:
        """Write names and values in two columns; pairs without a value are left out."""
        for name, value in rows:
            if value:
                self.row((name, value), (110.0, WIDTH - 2 * MARGIN - 110.0), (Style(colour=_SOFT), BODY))

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[float]) -> None:
        """Write a table; its header stands again on every page that it goes on to."""
        self.row(header, widths, [CELL_HEAD] * len(header), rule=True)
        for row in rows:
            before = len(self._figures)
            cells = [wrap(text, CELL, width - 6) for text, width in zip(row, widths, strict=True)]
            self._make_room(max(map(len, cells)) * CELL.leading + 4)
            if len(self._figures) > before:
                self.row(header, widths, [CELL_HEAD] * len(header), rule=True)
            self.row(row, widths, [CELL] * len(row), rule=True)

    def row(
        self, texts: Sequence[str], widths: Sequence[float], styles: Sequence[Style], *, rule: bool = False
    ) -> None:
        """Write texts beside each other, each wrapped into its column."""
        columns = [
            wrap(text, style, width - 6) for text, width, style in zip(texts, widths, styles, strict=True)
        ]
        height = max(len(lines) * style.leading for lines, style in zip(columns, styles, strict=True))
        self._make_room(height + 4)
        x = MARGIN
        for lines, width, style in zip(columns, widths, styles, strict=True):
            for number, line in enumerate(lines, start=1):
                self._write(line, x, self._y + number * style.leading - 0.3 * style.size, style)
            x += width
        self._y += height + (4 if rule else 1)
        if rule:
            self._rule()

    def picture(self, path: Path, width: float) -> None:
        """Show a picture in its own pixels, `width` points wide."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        height = width * pixels.shape[0] / pixels.shape[1]
        self._make_room(height + 8)
        box = (MARGIN / WIDTH, 1 - (self._y + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        axes = self._figures[-1].add_axes(box)
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="none", aspect="auto")
        self._y += height + 8

    def finish(self) -> list[Figure]:
        """Number the pages and return them."""
        count = len(self._figures)
        for number, figure in enumerate(self._figures, start=1):
            words = f"{self._footer}    page {number} of {count}"
            _put(figure, wrap(words, NOTE, WIDTH - 2 * MARGIN)[-1], MARGIN, HEIGHT - 26, NOTE)
        return self._figures

    def _make_room(self, height: float) -> None:
        if not self._figures or self._y + height > HEIGHT - FOOT:
            self.break_page()

    def _write(self, text: str, x: float, y: float, style: Style) -> None:
        _put(self._figures[-1], text, x, y, style)

    def _rule(self) -> None:
        y = 1 - (self._y - 1) / HEIGHT
        line = Line2D([MARGIN / WIDTH, 1 - MARGIN / WIDTH], [y, y], color=_LINE, linewidth=0.6)
        self._figures[-1].add_artist(line)


def wrap(text: str, style: Style, width: float) -> list[str]:
    """Break a text into lines of at most `width` points: at spaces, within a word only if it is longer."""
    lines = [""]
    for word in drawable(text).split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if _measure(joined, style) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and _measure(lines[-1] + character, style) > width:
                lines.append("")
            lines[-1] += character
    return lines


def drawable(text: str) -> str:
    """The text with a replacement character for each one that the font has no glyph for."""
    font = get_font(str(_font_file(bold=False)))
    spaced = "".join(c if c.isprintable() else " " for c in text)
    return "".join(c if font.get_char_index(ord(c)) else _REPLACEMENT for c in spaced)


def to_pdf(figures: Sequence[Figure], *, title: str, created_at: datetime) -> bytes:
    """Print pages as PDF with embedded fonts and searchable text; equal pages give equal bytes."""
    buffer = BytesIO()
    metadata: Any = {
        "Title": title,
        "Creator": "pacs-node",
        "CreationDate": created_at,
        "ModDate": created_at,
    }
    with rc_context({"pdf.fonttype": 42}), PdfPages(buffer, metadata=metadata) as pdf:
        for figure in figures:
            pdf.savefig(figure)
    return buffer.getvalue()


def to_pixels(figure: Figure) -> NDArray[np.uint8]:
    """A page as RGB pixels, shape (rows, columns, 3)."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=CAPTURE_DPI, format="png")
    with Image.open(buffer) as image:
        return np.array(image.convert("RGB"))


def _put(figure: Figure, text: str, x: float, y: float, style: Style) -> None:
    figure.text(
        x / WIDTH,
        1 - y / HEIGHT,
        text,
        fontproperties=_font(style),
        color=style.colour,
        ha="left",
        va="baseline",
        parse_math=False,  # a $ of a series description is a $
    )


@lru_cache(maxsize=8192)
def _measure(text: str, style: Style) -> float:
    """Width in points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(style), ismath=False)
    return float(width)


@lru_cache(maxsize=64)
def _font(style: Style) -> FontProperties:
    return FontProperties(fname=_font_file(bold=style.bold), size=style.size)


def _font_file(*, bold: bool) -> Path:
    return Path(get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
