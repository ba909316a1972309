"""Results broken on purpose: the checks must notice each of them, and for the right reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydicom import Dataset

from conformance.viewer.checks import Reason


@dataclass(frozen=True)
class Breakage:
    """One way to break a result.

    Parameters
    ----------
    name
        For people.
    modality
        The object that is broken, whose check must fail.
    spoil
        Changes that object in place.
    reason
        Why the check must fail.
    words
        What its text must say.
    """

    name: str
    modality: Literal["SEG", "SR"]
    spoil: Callable[[Dataset], None]
    reason: Reason
    words: str


def mirror(seg: Dataset) -> None:
    """Exchange left and right in each frame."""
    _turn(seg, (slice(None), slice(None), slice(None, None, -1)))


def turn_over(seg: Dataset) -> None:
    """Exchange top and bottom in each frame."""
    _turn(seg, (slice(None), slice(None, None, -1), slice(None)))


def forget_series(seg: Dataset) -> None:
    """Leave out which series was segmented (PS3.3 C.12.2.1, Referenced Series Sequence)."""
    del seg.ReferencedSeriesSequence


def rename_concept(sr: Dataset) -> None:
    """Write "Measurement group" for (125007, DCM, "Measurement Group"); viewers compare the meaning."""
    for concept in _concepts(sr):
        if concept.get("CodeValue") == "125007":
            concept.CodeMeaning = "Measurement group"


BREAKAGES = (
    Breakage("mirrored mask", "SEG", mirror, Reason.WRONG_PLACE, "the overlay lies elsewhere"),
    Breakage("mask upside down", "SEG", turn_over, Reason.WRONG_PLACE, "the overlay lies elsewhere"),
    Breakage(
        "no referenced series", "SEG", forget_series, Reason.NOT_OPENED, "ReferencedSeriesSequence is missing"
    ),
    Breakage("renamed concept", "SR", rename_concept, Reason.NOT_COMPLETE, "lists []"),
)


def _turn(seg: Dataset, how: tuple[slice, slice, slice]) -> None:
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)[how]
    # BINARY: one bit for each pixel, the first in the lowest bit (PS3.5 8.1.1), an even number of bytes
    packed = np.packbits(frames.astype(np.uint8).ravel(), bitorder="little").tobytes()
    seg.PixelData = packed + b"\0" * (len(packed) % 2)


def _concepts(item: Dataset) -> Iterator[Dataset]:
    """Concept names of a content item and of all below it."""
    yield from item.get("ConceptNameCodeSequence", [])
    for child in item.get("ContentSequence", []):
        yield from _concepts(child)
