"""The pictures of a report: one look, a title that says which data and how many, research use only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from numpy.typing import NDArray

from inference.evaluate.marks import RATES, FrocCurve
from inference.evaluate.metrics import Agreement, Calibration, Floats

RESEARCH = "Research use only, not for primary diagnosis."

_INK, _SOFT, _GRID = "#1b1f24", "#6b7280", "#e3e6ea"
# blue, vermilion, green, purple, sky, orange: told apart by the colour-blind (Okabe and Ito 2008)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#e69f00")
_LOOK: Any = {  # matplotlib types the keys one by one
    "figure.dpi": 130,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so pictures are the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
}


@dataclass(frozen=True, slots=True)
class Caption:
    """What a picture shows, of which data, how many: ``"validation split, n = 120 of 60 patients"``."""

    title: str
    data: str


@dataclass(frozen=True, slots=True)
class Line:
    """A curve with the text of its legend."""

    label: str
    x: Floats
    y: Floats


def _draw(path: Path, caption: Caption, paint: Callable[[Axes], None], *, wide: bool = False) -> None:
    with rc_context(_LOOK):
        figure = Figure(figsize=(7.2, 4.6) if wide else (5.4, 5.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        paint(axes)
        axes.set_title(f"{caption.title}\n", fontsize=11)
        axes.text(0, 1.02, caption.data, transform=axes.transAxes, fontsize=8.5, color=_SOFT)
        figure.supxlabel(RESEARCH, fontsize=8, color=_SOFT, x=0.99, ha="right")
        figure.savefig(path, metadata={"Software": "pacs-node evaluate", "Description": RESEARCH})


def roc(path: Path, caption: Caption, lines: Sequence[Line]) -> None:
    """ROC curves; x is 1 - specificity, y sensitivity."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_SOFT, linestyle=":", linewidth=1)
        _curves(axes, lines)
        _unit_square(axes, "1 - specificity", "sensitivity")
        axes.legend(loc="lower right")

    _draw(path, caption, paint)


def precision_recall(path: Path, caption: Caption, lines: Sequence[Line], *, prevalence: float) -> None:
    """Precision-recall curves; x is recall, y precision. A dotted line shows the prevalence."""

    def paint(axes: Axes) -> None:
        axes.axhline(prevalence, color=_SOFT, linestyle=":", linewidth=1)
        for number, line in enumerate(lines):
            axes.step(line.x, line.y, where="post", color=_colour(number), label=line.label, clip_on=False)
        _unit_square(axes, "recall", "precision")
        axes.legend(loc="lower left")

    _draw(path, caption, paint)


def calibration(
    path: Path, caption: Caption, curves: Mapping[str, Calibration], probabilities: Floats
) -> None:
    """Reliability diagram; the area of a point is the share of its bin, ticks below are the samples."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=_SOFT, linestyle=":", linewidth=1)
        for number, (label, curve) in enumerate(curves.items()):
            colour = _colour(number)
            share = curve.weight / max(float(curve.weight.sum()), 1e-9)
            axes.plot(curve.predicted, curve.observed, color=colour, linewidth=1.4, label=label)
            axes.scatter(
                curve.predicted, curve.observed, s=30 + 500 * share, color=colour, alpha=0.75, clip_on=False
            )
        axes.plot(probabilities, np.full(len(probabilities), 0.005), "|", color=_SOFT, markersize=6)
        _unit_square(axes, "predicted probability", "observed share")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.03))

    _draw(path, caption, paint)


def froc(path: Path, caption: Caption, curves: Mapping[str, FrocCurve]) -> None:
    """FROC curves over the seven rates of LUNA16, logarithmic."""

    def paint(axes: Axes) -> None:
        rates = np.geomspace(RATES[0], RATES[-1], 400)
        for number, (label, curve) in enumerate(curves.items()):
            colour = _colour(number)
            axes.plot(rates, [curve.at(rate) for rate in rates], color=colour, label=label)
            axes.plot(RATES, [curve.at(rate) for rate in RATES], "o", color=colour, markersize=4)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(RATES))
        axes.xaxis.set_major_formatter(FixedFormatter(["1/8", "1/4", "1/2", "1", "2", "4", "8"]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel="false positives per scan", ylabel="sensitivity", ylim=(0, 1.02))
        axes.legend(loc="lower right")

    _draw(path, caption, paint, wide=True)


def histogram(path: Path, caption: Caption, values: Mapping[str, NDArray[np.float64]], xlabel: str) -> None:
    """Histograms of figures in 0..1, such as Dice, each with its mean as a dashed line."""

    def paint(axes: Axes) -> None:
        edges = [number / 25 for number in range(26)]
        for number, (label, found) in enumerate(values.items()):
            colour = _colour(number)
            if number == 0:
                axes.hist(found, bins=edges, color=colour, alpha=0.35)
            axes.hist(found, bins=edges, color=colour, histtype="step", linewidth=1.6, label=label)
            axes.axvline(float(np.mean(found)), color=colour, linestyle="--", linewidth=1.2)
        axes.set(xlabel=xlabel, ylabel="number", xlim=(0, 1))
        axes.legend(loc="upper left")

    _draw(path, caption, paint, wide=True)


def intervals(
    path: Path,
    caption: Caption,
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]],
    xlabel: str,
) -> None:
    """Figures with their intervals, one line for each label in a row; a dotted line stands at 0.

    Parameters
    ----------
    rows
        Row -> label -> value, low, high; the first row stands on top.
    """
    labels = list(dict.fromkeys(label for row in rows.values() for label in row))

    def paint(axes: Axes) -> None:
        axes.axvline(0, color=_SOFT, linestyle=":", linewidth=1)
        for number, label in enumerate(labels):
            here = [(place, row[label]) for place, row in enumerate(rows.values()) if label in row]
            heights = [place + 0.22 * (number - (len(labels) - 1) / 2) for place, _ in here]
            value, low, high = np.array([one for _, one in here]).T
            axes.errorbar(
                value,
                heights,
                xerr=np.stack([value - low, high - value]),
                fmt="os^D"[number % 4],
                color=_colour(number),
                markersize=5,
                linewidth=1.4,
                label=label,
            )
        axes.set(xlabel=xlabel, yticks=range(len(rows)), yticklabels=list(rows))
        axes.invert_yaxis()
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=max(len(labels), 1))

    _draw(path, caption, paint, wide=True)


def bland_altman(
    path: Path, caption: Caption, pairs: tuple[Floats, Floats], agreement: Agreement, units: tuple[str, str]
) -> None:
    """Difference over mean of two measurements, with bias, limits of agreement and their intervals.

    Parameters
    ----------
    pairs
        Means and differences, both of shape (n,).
    units
        Of the means and of the differences.
    """

    def paint(axes: Axes) -> None:
        axes.scatter(*pairs, s=14, color=_COLOURS[0], alpha=0.6, linewidths=0)
        axes.axhline(0, color=_SOFT, linestyle=":", linewidth=1)
        rows = ((agreement.bias, "bias"), (agreement.upper, "+1.96 SD"), (agreement.lower, "-1.96 SD"))
        for estimate, name in rows:
            colour = _INK if name == "bias" else _COLOURS[1]
            axes.axhline(
                estimate.value, color=colour, linewidth=1.3, linestyle="-" if name == "bias" else "--"
            )
            axes.axhspan(estimate.low, estimate.high, color=colour, alpha=0.10, linewidth=0)
            axes.annotate(
                f"{name} {estimate.value:+.2f}",
                (1.0, estimate.value),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8.5,
                color=colour,
            )
        axes.set(xlabel=f"mean of measured and true, {units[0]}", ylabel=f"measured - true, {units[1]}")

    _draw(path, caption, paint, wide=True)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _curves(axes: Axes, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines):
        axes.plot(line.x, line.y, color=_colour(number), label=line.label, clip_on=False)


def _unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
