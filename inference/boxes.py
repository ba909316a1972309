"""Where a cropped mask lies in its volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.types import Index


def box_of(mask: NDArray[np.bool_], origin: Index, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the part of a volume that a cropped mask covers.

    Parameters
    ----------
    mask
        bool, shape (z, y, x), cropped.
    origin
        Index in the volume of ``mask[0, 0, 0]``.
    shape
        Of the volume, (z, y, x).

    Raises
    ------
    ValueError
        The mask is empty or reaches outside the volume.
    """
    where = tuple(slice(o, o + n) for o, n in zip(origin, mask.shape, strict=True))
    if not mask.any():
        raise ValueError("an empty mask can't be measured")
    if any(s.start < 0 or s.stop > size for s, size in zip(where, shape, strict=True)):
        raise ValueError("the mask reaches outside the volume")
    return where
