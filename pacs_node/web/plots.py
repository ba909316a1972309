"""Plots as SVG inside the page, without script or style; the same numbers stand in a table beside."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT = 720, 170
_LEFT, _TOP, _BOTTOM = 44, 10, 26
_LABELS = 7


def bars(name: str, title: str, labels: Sequence[str], values: Sequence[float | None]) -> Markup:
    """Bars, one for each label; none where there is no value.

    Parameters
    ----------
    name
        Makes the identifiers of the plot; another one for each plot of a page.
    title
        What is shown, for people and for screen readers.
    """
    highest = _round_up(max((value for value in values if value is not None), default=0.0))
    width = (_WIDTH - _LEFT) / max(1, len(labels))
    parts = []
    for place, (label, value) in enumerate(zip(labels, values, strict=True)):
        if not value:
            continue
        height = _inner() * value / highest
        shown = f"{label}: {value:.3g}"
        parts.append(
            _rectangle((_LEFT + place * width + 1, _base() - height, width - 2, height), "mark", shown)
        )
    return _plot(name, title, labels, parts, _axis(highest))


def shares(
    name: str, title: str, labels: Sequence[str], parts: Sequence[Sequence[int]], names: Sequence[str]
) -> Markup:
    """Columns that are divided by shares, the first part at the bottom and the palest.

    Parameters
    ----------
    parts
        Counts of each column, by `names`.
    """
    width = (_WIDTH - _LEFT) / max(1, len(labels))
    drawn = []
    for place, (label, counts) in enumerate(zip(labels, parts, strict=True)):
        total, top = sum(counts), _base()
        for step, (count, part) in enumerate(zip(counts, names, strict=True)):
            height = _inner() * count / total if total else 0.0
            if not count:
                continue
            top -= height
            shown = f"{label}, {part}: {count} of {total}"
            shade = (step + 1) / len(names)
            drawn.append(
                _rectangle((_LEFT + place * width + 1, top, width - 2, height), "mark part", shown, shade)
            )
    return _plot(name, title, labels, drawn, ((0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")))


def _inner() -> float:
    return _HEIGHT - _TOP - _BOTTOM


def _base() -> float:
    return _HEIGHT - _BOTTOM


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10 ... that isn't below."""
    if value <= 0:
        return 1.0
    step = 10.0 ** (len(f"{int(value)}") - 1) if value >= 1 else 0.1
    while True:
        for factor in (1, 2, 5):
            if value <= factor * step:
                return factor * step
        step *= 10


def _axis(highest: float) -> tuple[tuple[float, str], ...]:
    return tuple((share, f"{share * highest:g}") for share in (0.0, 0.5, 1.0))


def _rectangle(box: tuple[float, float, float, float], kind: str, shown: str, shade: float = 1.0) -> Markup:
    """A part of a plot: left, top, width and height; what it stands for shows when one points at it."""
    x, y, width, height = box
    return Markup(
        '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    ).format(kind, x, y, max(width, 0.5), height, shade, shown)


def _plot(
    name: str,
    title: str,
    labels: Sequence[str],
    parts: Sequence[Markup],
    axis: Sequence[tuple[float, str]],
) -> Markup:
    lines = [
        Markup(
            '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text x="{}" y="{:.1f}" class="y">{}</text>'
        ).format(_LEFT, _WIDTH, y, y, _LEFT - 6, y + 4, text)
        for y, text in ((_base() - share * _inner(), text) for share, text in axis)
    ]
    width, every = (_WIDTH - _LEFT) / max(1, len(labels)), max(1, len(labels) // _LABELS)
    lines += [
        Markup('<text x="{:.1f}" y="{}" class="x">{}</text>').format(
            _LEFT + (place + 0.5) * width, _HEIGHT - 8, label
        )
        for place, label in enumerate(labels)
        if place % every == 0
    ]
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-labelledby="plot-{}">'
        '<title id="plot-{}">{}</title>{}{}</svg>'
    ).format(_WIDTH, _HEIGHT, name, name, title, Markup("").join(lines), Markup("").join(parts))
