"""From anatomy to an image: slice profile, reconstruction kernel, noise."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from inference.phantom.paint import Array, Grid


class Kernel(StrEnum):
    """Reconstruction kernel: how sharp the image is and what grain its noise has.

    `EDGE` enhances edges as lung and bone kernels do: they overshoot by about a tenth.
    """

    SMOOTH = "smooth"
    STANDARD = "standard"
    SHARP = "sharp"
    EDGE = "edge"


class SliceProfile(StrEnum):
    """Weight of the tissue along z in one slice: the bell of a spiral scan or a plain mean."""

    GAUSSIAN = "gaussian"
    BOX = "box"


_BLUR_MM = {Kernel.SMOOTH: 0.9, Kernel.STANDARD: 0.55, Kernel.SHARP: 0.35, Kernel.EDGE: 0.35}
_GRAIN_MM = {Kernel.SMOOTH: 1.2, Kernel.STANDARD: 0.8, Kernel.SHARP: 0.45, Kernel.EDGE: 0.4}
NOISE_HU = {Kernel.SMOOTH: 11.0, Kernel.STANDARD: 20.0, Kernel.SHARP: 38.0, Kernel.EDGE: 55.0}
"""Standard deviation in soft tissue in the middle of the scan, at dose 1 on slices of `NOISE_SLICE_MM`."""
NOISE_SLICE_MM = 2.0
_EDGE_GAIN, _EDGE_MM = 0.75, 1.0


def image(
    values: Array,
    grid: Grid,
    kernel: Kernel,
    thickness_mm: float,
    rng: np.random.Generator,
    *,
    profile: SliceProfile = SliceProfile.GAUSSIAN,
    dose: float | None = None,
) -> Array:
    """Blur `values` (HU, float32, changed in place) as a scanner would and add noise.

    Parameters
    ----------
    thickness_mm
        Full width of the slice profile at half its maximum; it may exceed the distance of the slices.
    profile
        Its shape. The width that the voxels have already is taken off the Gaussian.
    dose
        None for a grain of fixed strength, independent in each slice. A number, relative to 1, for noise as
        filtered back-projection gives it: its power vanishes at low frequencies (Riederer, Pelc and Chesler,
        Phys Med Biol 23:446-454, 1978), it falls with the root of dose and slice thickness, and overlapping
        slices share it.
    """
    _average_slices(values, grid, thickness_mm, profile)
    for axis in (1, 2):
        sigma = _BLUR_MM[kernel] / grid.spacing_mm[axis]
        ndimage.gaussian_filter1d(values, sigma, axis=axis, output=values, mode="nearest")
    if kernel is Kernel.EDGE:
        for number in range(len(values)):
            sigmas = [_EDGE_MM / d for d in grid.spacing_mm[1:]]
            soft = ndimage.gaussian_filter(values[number], sigmas, mode="nearest")
            values[number] += np.float32(_EDGE_GAIN) * (values[number] - soft)
    if dose is None:
        _add_grain(values, grid, kernel, rng)
    else:
        noise = projection_noise(grid, kernel, thickness_mm, rng, profile=profile)
        noise *= np.float32(1 / dose**0.5)
        for number, factor in enumerate(_heights(grid)):
            values[number] += noise[number] * np.float32(factor) * _less_in_air(values[number])
    return values


def _average_slices(values: Array, grid: Grid, thickness_mm: float, profile: SliceProfile) -> None:
    """Average along z with the slice profile, in place."""
    spacing = grid.spacing_mm[0]
    if profile is SliceProfile.GAUSSIAN:
        extra = max(thickness_mm**2 - spacing**2, 0.0) ** 0.5 + 0.35 * spacing
        sigma = extra / 2.355 / spacing
        ndimage.gaussian_filter1d(values, sigma, axis=0, output=values, mode="nearest")
        return
    ndimage.correlate1d(values, _box_weights(thickness_mm / spacing), axis=0, output=values, mode="nearest")


def _box_weights(width: float) -> NDArray[np.float64]:
    """Overlap of each slice position with a slab of `width` slice distances; a single 1 up to width 1."""
    half = int(np.ceil(max(width - 1, 0) / 2))
    at = np.arange(-half, half + 1)
    overlap = np.minimum(at + 0.5, max(width, 1) / 2) - np.maximum(at - 0.5, -max(width, 1) / 2)
    weights: NDArray[np.float64] = np.maximum(overlap, 0)
    return np.asarray(weights / weights.sum())


def _add_grain(values: Array, grid: Grid, kernel: Kernel, rng: np.random.Generator) -> None:
    """Add grain of a fixed strength, each slice on its own, in place."""
    sigma = _GRAIN_MM[kernel] / grid.spacing_mm[2]
    for number, factor in enumerate(_heights(grid)):
        grain = rng.standard_normal(grid.shape[1:], dtype=np.float32)
        grain = ndimage.gaussian_filter(grain, sigma)
        grain *= np.float32(NOISE_HU[kernel] * factor) / np.float32(grain.std())
        values[number] += grain * _less_in_air(values[number])


def _heights(grid: Grid) -> NDArray[np.float64]:
    """Factor of the noise on each slice: the shoulders absorb more, so it grows towards the head."""
    return np.linspace(0.9, 1.35, grid.shape[0])


def _less_in_air(plane: Array) -> Array:
    """Factor of the noise in each pixel: less signal is lost in air outside the body."""
    return np.where(plane < -950, np.float32(0.45), np.float32(1.0))


def projection_noise(
    grid: Grid,
    kernel: Kernel,
    thickness_mm: float,
    rng: np.random.Generator,
    *,
    profile: SliceProfile = SliceProfile.GAUSSIAN,
) -> Array:
    """Noise of filtered back-projection at dose 1: float32 (z, y, x), HU.

    Its power spectrum in plane is the ramp times the squared transfer of the kernel.
    """
    frequencies = [
        fft.fftfreq(grid.shape[1], grid.spacing_mm[1]),
        fft.rfftfreq(grid.shape[2], grid.spacing_mm[2]),
    ]
    squared = frequencies[0][:, None] ** 2 + frequencies[1][None, :] ** 2
    transfer = squared**0.25 * np.exp(-2 * (np.pi * _BLUR_MM[kernel]) ** 2 * squared)
    if kernel is Kernel.EDGE:
        transfer *= 1 + _EDGE_GAIN * (1 - np.exp(-2 * (np.pi * _EDGE_MM) ** 2 * squared))
    noise = np.empty(grid.shape, np.float32)
    for plane in noise:
        white = rng.standard_normal(plane.shape, dtype=np.float32)
        plane[:] = fft.irfft2(fft.rfft2(white) * transfer.astype(np.float32), plane.shape)
    if thickness_mm > grid.spacing_mm[0]:
        _average_slices(noise, grid, thickness_mm, profile)
    strength = NOISE_HU[kernel] * (NOISE_SLICE_MM / thickness_mm) ** 0.5
    noise *= np.float32(strength / float(noise.std()))
    return noise
