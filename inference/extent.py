"""What belongs to a nodule beside the part that a network outlines, and what doesn't.

The network that learnt from radiologists' outlines stops at the solid core where a wide rim of even ground
glass lies around it, and now and then takes the stub of a vessel along. Two corrections: the rim is added
up to the level half-way between it and the parenchyma, and what is thinner than a share of the nodule and
sticks out is taken off (opening with a ball, Kostis et al., IEEE TMI 22:1259-1274, 2003). The edge itself
stays where the network puts it: moved to the half-way level of each solid nodule it would lie nearer to the
drawn edge of a phantom, but readers draw more generously, and the 3D Dice on LIDC-IDRI validation patients
fell from 0.856 to 0.814 (80 nodules). These two leave it at 0.849 (151 nodules).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PARENCHYMA_HU: Final = -860.0
DARK_HU: Final = -600.0
CORE_HU: Final = 60.0
"""A core counts as no denser than this: calcium is no other tissue's measure."""
LEAST_CONTRAST_HU: Final = 350.0
"""Between core and parenchyma; less is a ground-glass nodule, which has no rim of another kind."""
RIM_HU: Final = 150.0
RIM_SHARE: Final = 0.18
"""Least density of a rim above the parenchyma in its second shell, and as a share of the core's. Around solid
nodules of LIDC-IDRI the first shell is often as dense as that, the second one hardly ever."""
FAINT_HU: Final = 50.0
"""Least density of the faintest quarter there: a rim goes all around, beside a vessel lies parenchyma."""
LEAST_VOXELS: Final = 8
NEAREST_MM: Final = 1.2
"""Where the first shell begins that is looked at: beyond the blur of the core's edge."""
THICK_MM: Final = 1.0
FARTHEST_MM: Final = 12.0
STEP_MM: Final = 0.5
CLEAR_MM: Final = 1.2
"""Around other dense tissue nothing is called rim."""
NEAR_MM: Final = 1.5
OPENING_SHARE: Final = 0.35
STUB_MM: Final = 1.5
"""What sticks out of the opened mask by less than this stays: corners and lobules."""
STUB_SHARE: Final = 0.08
"""Where more than this share of the volume would go, the mask stays: the nodule itself is ragged."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]
Spacing = tuple[float, float, float]


def corrected(hu: NDArray[Any], spacing_mm: Spacing, mask: Mask) -> Mask:
    """A nodule's mask with its ground-glass rim and without stubs.

    Parameters
    ----------
    hu
        HU, shape (z, y, x).
    spacing_mm
        (z, y, x).
    mask
        bool, same shape; may be empty.

    Returns
    -------
    numpy.ndarray
        bool, same shape.
    """
    if not mask.any():
        return mask
    margins = [int(np.ceil((FARTHEST_MM + 2) / pitch)) for pitch in spacing_mm]
    (tight,) = ndimage.find_objects(mask.astype(np.uint8))
    place = tuple(
        slice(max(0, one.start - margin), min(size, one.stop + margin))
        for one, margin, size in zip(tight, margins, mask.shape, strict=True)
    )
    out = np.zeros_like(mask)
    body = without_stubs(mask[place], spacing_mm)
    out[place] = with_rim(np.asarray(hu[place], dtype=np.float32), spacing_mm, body)
    return out


def without_stubs(mask: Mask, spacing_mm: Spacing) -> Mask:
    """Open with a ball of `OPENING_SHARE` of the largest inscribed one; corners and ragged masks stay."""
    depth = _distance(np.pad(mask, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
    cut = OPENING_SHARE * float(depth.max())
    if cut <= min(spacing_mm):
        return mask
    labels, _ = ndimage.label(depth > cut)
    kept = labels == labels[np.unravel_index(int(depth.argmax()), depth.shape)]
    away = _distance(~kept, spacing_mm) - 1.1 * cut
    parts, count = ndimage.label(mask & (away > 0))
    reach = ndimage.maximum(away, parts, np.arange(count + 1))
    kept = mask & ((parts == 0) | (reach < STUB_MM)[parts])
    return kept if kept.sum() >= (1 - STUB_SHARE) * mask.sum() else mask


def with_rim(hu: Floats, spacing_mm: Spacing, mask: Mask) -> Mask:
    """Add the ground-glass rim of a solid core, if there is one."""
    smooth = ndimage.gaussian_filter(np.clip(hu, -1024, 200), [0, *(0.7 / pitch for pitch in spacing_mm[1:])])
    core = _Core.of(smooth, spacing_mm, mask)
    if core is None:
        return mask
    near, far = core.shell(smooth, NEAREST_MM), core.shell(smooth, NEAREST_MM + THICK_MM)
    if min(near.size, far.size) < LEAST_VOXELS:
        return mask
    rim = float(np.median(near)) - core.background
    faint, wide = np.percentile(far, (25, 50)) - core.background
    if wide < max(RIM_HU, RIM_SHARE * core.contrast) or faint < FAINT_HU:
        return mask
    level = core.background + rim / 2
    end = NEAREST_MM
    while end < FARTHEST_MM:
        beyond = core.shell(smooth, end)
        if beyond.size < LEAST_VOXELS or np.median(beyond) < level:
            break
        end += STEP_MM
    else:
        return mask  # no end in sight: consolidation
    grown = ((smooth > level) & (core.distance <= end + THICK_MM) & core.free) | mask
    labels, _ = ndimage.label(grown)
    wanted = np.unique(labels[mask])
    return np.stack([ndimage.binary_fill_holes(one) for one in np.isin(labels, wanted)])


@dataclass(frozen=True)
class _Core:
    """The solid part of a nodule: distance to it in mm, and where no other dense tissue is near."""

    distance: NDArray[np.float64]
    free: Mask
    background: float
    contrast: float

    @classmethod
    def of(cls, smooth: Floats, spacing_mm: Spacing, mask: Mask) -> _Core | None:
        outside = _distance(~mask, spacing_mm)
        around = smooth[(outside > 3) & (outside < 10) & (smooth < DARK_HU)]
        background = float(np.median(around)) if around.size > 30 else PARENCHYMA_HU
        inside = _distance(np.pad(mask, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
        deep = smooth[inside >= inside.max() / 2]
        contrast = min(float(np.percentile(deep, 75)), CORE_HU) - background
        if contrast < LEAST_CONTRAST_HU:
            return None
        dense = smooth > background + contrast / 2
        others = dense & (outside > NEAR_MM)
        free = _distance(~others, spacing_mm) > CLEAR_MM if others.any() else np.ones_like(mask)
        return cls(_distance(~(dense & mask), spacing_mm), free, background, contrast)

    def shell(self, smooth: Floats, start_mm: float) -> Floats:
        """HU between two distances, other tissue left out."""
        within = (self.distance > start_mm) & (self.distance <= start_mm + THICK_MM)
        return np.asarray(smooth[within & self.free])


def _distance(mask: Mask, spacing_mm: Spacing) -> NDArray[np.float64]:
    """From each voxel of the mask to the nearest one outside it, mm."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing_mm), dtype=np.float64)
