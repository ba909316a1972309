"""From anatomy to an image: slice profile, reconstruction kernel, noise."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from scipy import ndimage

from inference.phantom.paint import Array, Grid


class Kernel(StrEnum):
    """Reconstruction kernel: how sharp the image is and what grain its noise has."""

    SMOOTH = "smooth"
    STANDARD = "standard"
    SHARP = "sharp"


_BLUR_MM = {Kernel.SMOOTH: 0.9, Kernel.STANDARD: 0.55, Kernel.SHARP: 0.35}
_GRAIN_MM = {Kernel.SMOOTH: 1.2, Kernel.STANDARD: 0.8, Kernel.SHARP: 0.45}
NOISE_HU = {Kernel.SMOOTH: 11.0, Kernel.STANDARD: 20.0, Kernel.SHARP: 38.0}


def image(values: Array, grid: Grid, kernel: Kernel, thickness_mm: float, rng: np.random.Generator) -> Array:
    """Blur `values` (HU, float32, changed in place) as a scanner would and add noise.

    The slice profile is a Gaussian with a full width at half maximum of `thickness_mm`, less the
    width that the voxels have already.
    """
    extra = max(thickness_mm**2 - grid.spacing_mm[0] ** 2, 0.0) ** 0.5 + 0.35 * grid.spacing_mm[0]
    sigma = extra / 2.355 / grid.spacing_mm[0]
    ndimage.gaussian_filter1d(values, sigma, axis=0, output=values, mode="nearest")
    for axis in (1, 2):
        sigma = _BLUR_MM[kernel] / grid.spacing_mm[axis]
        ndimage.gaussian_filter1d(values, sigma, axis=axis, output=values, mode="nearest")
    sigma = _GRAIN_MM[kernel] / grid.spacing_mm[2]
    # the shoulders absorb more: the noise grows towards the head
    heights = np.linspace(0.9, 1.35, grid.shape[0])
    for number, factor in enumerate(heights):
        grain = rng.standard_normal(grid.shape[1:], dtype=np.float32)
        grain = ndimage.gaussian_filter(grain, sigma)
        grain *= np.float32(NOISE_HU[kernel] * factor) / np.float32(grain.std())
        # less signal is lost in air outside the body, so less noise there
        values[number] += grain * np.where(values[number] < -950, np.float32(0.45), np.float32(1.0))
    return values
