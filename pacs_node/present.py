"""Tables of a result for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inference.certainty import NOT_CERTAIN, SUSPICION, SUSPICIOUS, percent

_SHOWN: Final = 240  # characters of a measured figure


def show_result(summary: Mapping[str, Any], console: Console) -> None:
    """Print what was analysed, the findings or the reason, and which models said so.

    Parameters
    ----------
    summary
        The content of ``result.json``.
    """
    if summary["status"] == "analysed":
        _show_series(summary, console)
        _show_findings(summary, console)
    else:
        reason = summary["reason"]
        console.print(f"[bold]Not analysed[/] ({reason['code']}): {escape(reason['sentence'])}")
    for refused in summary["series"]["refused"]:
        console.print(f"  series {refused['series_uid']}: {refused['code']}: {escape(refused['sentence'])}")
    for warning in summary["warnings"]:
        console.print(f"  warning: {escape(warning)}")
    for model in summary["models"]:
        console.print(f"Model {escape(model['name'])} {model['version']}")
        for sentence in model["performance"][:1]:
            console.print(f"  measured: {escape(textwrap.shorten(sentence, _SHOWN, placeholder=' ...'))}")
    if summary["models"]:
        console.print("Whole model cards: result.json, or pacs-node models list.")
    console.print(f"[bold]{escape(summary['notice'])}[/] Not reviewed by a physician.")


def _show_series(summary: Mapping[str, Any], console: Console) -> None:
    series = summary["series"]["analysed"]
    slices, rows, columns = series["shape"]
    dz, dy, dx = series["spacing_mm"]
    console.print(
        f"Analysed: {escape(series['description'] or series['series_uid'])}, "
        f"{slices} slices of {rows} x {columns}, {dz:g} x {dy:g} x {dx:g} mm"
    )


def _show_findings(summary: Mapping[str, Any], console: Console) -> None:
    if not summary["findings"]:
        console.print("[bold]No nodule found.[/] That doesn't prove that there is none.")
        return
    # at most 80 columns: only the site breaks, and a probability with the record replaces the slice
    table = Table(title="Findings", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    table.add_column("site", min_width=10)
    table.add_column("type", no_wrap=True)
    is_rated = any(finding["malignancy"] for finding in summary["findings"])
    with_record = any(
        (finding["malignancy"] or {}).get("fused") is not None for finding in summary["findings"]
    )
    rated = (*(("suspect",) if is_rated else ()), *(("+record",) if with_record else ()))
    place = () if with_record else ("slice",)
    for heading in ("axes, mm", "mm3", "HU", *place, "found", *rated):
        table.add_column(heading, justify="right", no_wrap=True)
    for finding in summary["findings"]:
        size = finding["measurements"]
        chances = finding["malignancy"] or {}
        table.add_row(
            escape(finding["tracking_id"]),
            escape(finding["site"]["words"]),
            finding["attenuation"] or (NOT_CERTAIN if finding["attenuation_doubt"] else ""),
            f"{size['long_axis_mm']:.1f} x {size['short_axis_mm']:.1f}",
            f"{size['volume_mm3']:.0f}",
            f"{size['mean_hu']:.0f}",
            *((str(finding["key_slice"]["index"] + 1),) if place else ()),
            percent(finding["detection_probability"]),
            *((_chance(chances.get("image_only")),) if is_rated else ()),
            *((_chance(chances.get("fused")),) if with_record else ()),
        )
    console.print(table)
    legend = "found: certainty of the detection"
    if is_rated:
        legend += f"; suspect: {SUSPICIOUS.lower()}, from the image alone ({SUSPICION})"
    if with_record:
        legend += "; +record: the same with the clinical record"
    console.print(f"  {legend}")
    for observation in summary["observations"]:
        console.print(f"  {escape(observation['title'])}: {escape(observation['value'])}")


def _chance(probability: float | None) -> str:
    return "" if probability is None else percent(probability)
