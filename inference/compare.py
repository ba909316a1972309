"""Whether two files under one SOP Instance UID hold the same object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom import Dataset

from inference.decode import MALFORMED_FILE, decode_frames, read_file
from inference.errors import UnsuitableSeriesError

_ENCODING_KEYWORDS = (
    "PixelData",
    "DataSetTrailingPadding",
    # where an archive notes that it compressed without loss
    "DerivationDescription",
    "DerivationCodeSequence",
)


def same_content(first: Path, second: Path) -> bool:
    """Compare two DICOM files, whatever their transfer syntax.

    Parameters
    ----------
    first, second
        PS3.10 files.

    Returns
    -------
    bool
        True if all data elements but those that tell of the encoding are equal and the pixels decode to
        equal values. False where either can't be read: what can't be compared isn't called equal.
    """
    try:
        a, b = read_file(first, pixels=True), read_file(second, pixels=True)
        if _without_pixels(a) != _without_pixels(b) or ("PixelData" in a) != ("PixelData" in b):
            return False
        if "PixelData" not in a:
            return True
        pairs = zip(decode_frames(a), decode_frames(b), strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)
    except (UnsuitableSeriesError, *MALFORMED_FILE):
        return False


def _without_pixels(ds: Dataset) -> Dataset:
    tags = [tag for tag in ds.keys() if tag.element != 0]  # noqa: SIM118 - iterating gives elements
    rest = Dataset({tag: ds.get_item(tag) for tag in tags})  # without group lengths
    for keyword in _ENCODING_KEYWORDS:
        if keyword in rest:
            delattr(rest, keyword)
    return rest
