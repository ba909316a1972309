"""The slices of a nodule for the viewer of the page, as `dicom_sr.stacks` describes them."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from pacs_node.web.fields import mappings, number, sequence, text, whole

_OUTLINE = re.compile(r"(M[0-9]+ [0-9]+([hv]-?[0-9]+)+z)*")


@dataclass(frozen=True, slots=True)
class Stack:
    """The slices of a nodule in one picture, one below the other; see `dicom_sr.stacks`.

    Parameters
    ----------
    rows, columns
        Of one slice, pixels; the picture is as wide as there are `windows`.
    height_mm, width_mm
        Of one slice.
    key
        Place of the key slice.
    slices
        Index in the volume, z in mm, and the path of the outline of each.
    """

    file: str
    rows: int
    columns: int
    height_mm: float
    width_mm: float
    windows: tuple[str, ...]
    key: int
    slices: tuple[tuple[int, float, str], ...]

    @property
    def as_json(self) -> str:
        """The slices for the viewer's script."""
        return json.dumps(self.slices)


def read_stack(found: dict[str, Any]) -> Stack | None:
    """Read the slices of a nodule; None where there are none, or not all that is needed."""
    rows, columns, key = (whole(found, name) for name in ("rows", "columns", "key"))
    pixel = [
        value
        for value in sequence(found, "pixel_mm")
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    slices = [_slice(one) for one in mappings(found, "slices")]
    known = [one for one in slices if one is not None]
    windows = tuple(text(one, "name") for one in mappings(found, "windows"))
    if not rows or not columns or key is None or len(pixel) != 2 or not windows:
        return None
    if len(known) != len(slices) or not 0 <= key < len(known) or min(rows, columns, *pixel) <= 0:
        return None
    return Stack(
        file=text(found, "file"),
        rows=rows,
        columns=columns,
        height_mm=round(rows * pixel[0], 3),
        width_mm=round(columns * pixel[1], 3),
        windows=windows,
        key=key,
        slices=tuple(known),
    )


def _slice(found: dict[str, Any]) -> tuple[int, float, str] | None:
    index, z_mm, outline = whole(found, "index"), number(found, "z_mm"), found.get("outline")
    if index is None or z_mm is None or not isinstance(outline, str) or not _OUTLINE.fullmatch(outline):
        return None
    return index, z_mm, outline
