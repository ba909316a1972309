"""The scanner of the phantom: edges, noise and slices as its docstrings say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.phantom import Kernel, SliceProfile, make_phantom
from inference.phantom.imaging import NOISE_HU, image, projection_noise
from inference.phantom.paint import Grid

FINE = Grid((9, 64, 64), (1.0, 0.5, 0.5))
NOISE = Grid((40, 128, 128), (1.0, 0.7, 0.7))


def edge_response(kernel: Kernel) -> NDArray[np.float64]:
    """A step of 1000 HU across x as this kernel shows it, without its noise."""
    values = np.zeros(FINE.shape, np.float32)
    values[:, :, 32:] = 1000
    image(values, FINE, kernel, 1.0, np.random.default_rng(0), dose=1e8)
    return np.asarray(values[4].mean(axis=0), dtype=float)


def width_mm(response: NDArray[np.float64]) -> float:
    """Distance over which a step rises from 10 to 90 %."""
    at = np.interp([100, 900], response[20:44], np.arange(24)) * FINE.spacing_mm[2]
    return float(at[1] - at[0])


def test_sharper_kernels_have_narrower_edges_and_only_the_enhancing_one_overshoots() -> None:
    responses = {kernel: edge_response(kernel) for kernel in Kernel}
    order = (Kernel.SMOOTH, Kernel.STANDARD, Kernel.SHARP)
    # a Gaussian edge rises from 10 to 90 % over 2.563 sigma
    assert width_mm(responses[Kernel.SMOOTH]) == pytest.approx(2.563 * 0.9, rel=0.1)
    widths = [width_mm(responses[kernel]) for kernel in order]
    assert widths[0] > 1.4 * widths[1] > 1.4 * 1.3 * widths[2]
    for kernel in order:
        assert responses[kernel].max() < 1003
    assert 1060 < responses[Kernel.EDGE].max() < 1250
    assert -250 < responses[Kernel.EDGE].min() < -60


def spectrum(noise: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean power in rings of 0.05 cycles/mm from 0.01 on; the first ring is half as wide."""
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128, 0.7)] * 2))
    edges = [0.005, 0.025, *np.arange(0.05, 0.7, 0.05)]
    return np.array([power[(frequency > a) & (frequency <= b)].mean() for a, b in pairwise(edges)])


@pytest.mark.parametrize("kernel", list(Kernel))
def test_projection_noise_has_little_power_at_low_frequencies_and_its_stated_strength(kernel: Kernel) -> None:
    noise = projection_noise(NOISE, kernel, 1.0, np.random.default_rng(1))
    assert noise.std() == pytest.approx(NOISE_HU[kernel] * 2**0.5, rel=1e-3)
    power = spectrum(noise)
    assert power[0] < 0.35 * power.max()


def test_sharp_kernels_have_the_finer_grain() -> None:
    rings = {k: spectrum(projection_noise(NOISE, k, 1.0, np.random.default_rng(1))) for k in Kernel}
    share = [power[-5:].sum() / power.sum() for power in rings.values()]
    assert share == sorted(share)
    assert share[-1] > 5 * share[0]


def test_noise_falls_with_the_root_of_dose_and_thickness() -> None:
    def strength(thickness: float, dose: float) -> float:
        values = np.full(NOISE.shape, 40, np.float32)
        image(values, NOISE, Kernel.STANDARD, thickness, np.random.default_rng(2), dose=dose)
        return float(values.std())

    assert strength(1.0, 1.0) / strength(1.0, 4.0) == pytest.approx(2.0, rel=0.02)
    assert strength(1.0, 1.0) / strength(4.0, 1.0) == pytest.approx(2.0, rel=0.02)
    with pytest.raises(ValueError, match="a dose is positive"):
        make_phantom(1, dose=0.0)


@pytest.mark.parametrize("profile", list(SliceProfile))
def test_overlapping_slices_share_their_noise(profile: SliceProfile) -> None:
    for thickness, low, high in ((1.0, -0.1, 0.1), (4.0, 0.6, 0.95)):
        rng = np.random.default_rng(3)
        noise = projection_noise(NOISE, Kernel.STANDARD, thickness, rng, profile=profile)
        neighbours = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
        assert low < neighbours < high


@pytest.mark.parametrize("profile", list(SliceProfile))
@pytest.mark.parametrize("thickness", [2.0, 3.0, 5.0])
def test_a_thin_plate_shows_the_slice_profile(profile: SliceProfile, thickness: float) -> None:
    """Slices of `thickness` every 0.25 mm: the plate is as wide as the profile, and loses nothing."""
    grid = Grid((161, 8, 8), (0.25, 1.0, 1.0))
    values = np.zeros(grid.shape, np.float32)
    values[80] = 1000
    image(values, grid, Kernel.SHARP, thickness, np.random.default_rng(0), profile=profile, dose=1e9)
    response = values.mean(axis=(1, 2))
    assert response.sum() == pytest.approx(1000, rel=0.01)
    wide = np.count_nonzero(response > response.max() / 2) * 0.25
    assert wide == pytest.approx(thickness, rel=0.15)
