"""What a mask says about a nodule in a few robust numbers: the explainable input of the CADx network.

Mostly taken on the slice of largest area, since there they don't hang on the slice thickness, which public
strips don't always state rightly. `inference.radiomics` measures by the IBSI; these are the network's own.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

NAMES: Final = (
    "log diameter",
    "diameter",
    "log volume",
    "log extent along z",
    "axis ratio",
    "circularity",
    "inscribed share",
    "solidity",
    "radius variation",
    "mean HU",
    "deviation of HU",
    "HU percentile 5",
    "HU median",
    "HU percentile 95",
    "maximum HU",
    "share above 200 HU",
    "share below -300 HU",
    "mean HU of the largest slice",
    "HU of the core",
    "HU of the rim outside",
    "HU of the surroundings",
    "deviation of the surroundings",
    "tissue in the surroundings",
    "edge gradient",
    "deviation of the edge gradient",
    "deviation of the core",
)
"""In the order of `describe`; HU in thousands, lengths in mm."""

RIM_MM: Final = 2.0
SURROUNDINGS_MM: Final = 6.0
EDGE_MM: Final = 1.5

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def describe(hu: NDArray[Any], mask: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """Describe a nodule.

    Parameters
    ----------
    hu
        HU, shape (z, y, x).
    mask
        bool, same shape.
    spacing_mm
        Voxel pitch (z, y, x).

    Returns
    -------
    numpy.ndarray
        float32, shape (len(`NAMES`),).

    Raises
    ------
    ValueError
        The mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask can't be described")
    areas = mask.sum((1, 2))
    key = int(areas.argmax())
    pitch = float(np.sqrt(spacing_mm[1] * spacing_mm[2]))
    where = _around(mask[key], round((SURROUNDINGS_MM + 2) / pitch))
    shape, grey = mask[key][where], np.clip(hu[key][where].astype(np.float64), -1024, 2000) / 1000
    inside = np.clip(hu[mask].astype(np.float64), -1024, 2000) / 1000
    volume = mask.sum() * float(np.prod(spacing_mm))
    diameter = 2 * np.sqrt(areas[key] / np.pi) * pitch
    extent = int((areas > 0).sum()) * spacing_mm[0]
    p5, p50, p95 = np.percentile(inside, (5, 50, 95))
    return np.array(
        [
            np.log(diameter),
            diameter / 10,
            np.log(volume),
            np.log(extent),
            *_outline(shape),
            inside.mean(),
            inside.std(),
            p5,
            p50,
            p95,
            inside.max(),
            (inside > 0.2).mean(),
            (inside < -0.3).mean(),
            *_profile(grey, shape, pitch),
        ],
        dtype=np.float32,
    )


def _around(shape: Mask, margin: int) -> tuple[slice, slice]:
    """The box of a 2D mask with a margin."""
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + margin + 1),
        slice(max(0, columns[0] - margin), columns[-1] + margin + 1),
    )


def _outline(shape: Mask) -> list[float]:
    """Axis ratio, circularity, inscribed share, solidity and radius variation of a 2D mask."""
    area = float(shape.sum())
    points = np.argwhere(shape).astype(np.float64)
    spread = np.cov(points.T) if len(points) > 1 else np.zeros((2, 2))
    least, most = np.linalg.eigvalsh(spread + np.eye(2) / 12)
    rim = points[(shape & ~ndimage.binary_erosion(shape))[shape]]
    radius = np.linalg.norm(rim - points.mean(0), axis=1) + 0.5
    inscribed = float(ndimage.distance_transform_edt(np.pad(shape, 1)).max())
    # outer corners of the pixels of each row, so that one pixel has a hull too
    rows = np.flatnonzero(shape.any(1))
    ends = (shape[rows].argmax(1) - 0.5, shape.shape[1] - shape[rows, ::-1].argmax(1) - 0.5)
    corners = np.concatenate([np.stack([rows + half, end], 1) for half in (-0.5, 0.5) for end in ends])
    try:
        hull = float(ConvexHull(corners).volume)
    except QhullError:
        hull = area
    return [
        float(np.sqrt(least / most)),
        len(rim) ** 2 / (4 * np.pi * area),
        inscribed / np.sqrt(area / np.pi),
        area / hull,
        float(radius.std() / radius.mean()),
    ]


def _profile(grey: Floats, shape: Mask, pitch: float) -> list[float]:
    """Grey values from the core outwards on one slice."""
    outside = ndimage.distance_transform_edt(~shape) * pitch
    depth = ndimage.distance_transform_edt(shape) * pitch
    core = grey[depth >= 0.6 * depth.max()]
    gradient = np.hypot(*np.gradient(grey)) / pitch
    reach = max(EDGE_MM, pitch)  # coarse pixels: at least those on either side
    edge = gradient[(outside <= reach) & (depth <= reach)]
    rim = _of(grey, (outside > 0) & (outside <= RIM_MM))
    around = _of(grey, (outside > RIM_MM) & (outside <= SURROUNDINGS_MM))
    return [
        float(grey[shape].mean()),
        float(core.mean()),
        float(rim.mean()),
        float(around.mean()),
        float(around.std()),
        float((around > -0.3).mean()),
        float(edge.mean()),
        float(edge.std()),
        float(core.std()),
    ]


def _of(grey: Floats, chosen: Mask) -> Floats:
    """The chosen values; one of air where the mask fills the picture."""
    return grey[chosen] if chosen.any() else np.array([-1.0])
