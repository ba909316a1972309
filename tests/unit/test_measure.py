from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.measure import attenuation, measure, site, solid_part_mm
from inference.types import Attenuation, Laterality, Site, SourceFrame, Volume

Floats = NDArray[np.float64]


def grid(
    spacing: tuple[float, float, float], shape: tuple[int, int, int], turn: Floats | None = None
) -> Volume:
    """An empty volume; `turn` is a rotation of the patient axes."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing[::-1])[:, ::-1]
    affine[:3, 3] = (-100.0, -50.0, 30.0)
    frames = tuple(SourceFrame("1.2", str(z)) for z in range(shape[0]))
    return Volume(np.zeros(shape, np.int16), affine, "1", "2", "3", frames)


def ellipsoid(
    volume: Volume, half_axes_mm: tuple[float, float, float], shift: float = 0.0
) -> NDArray[np.bool_]:
    """Voxels of an axis-aligned (z, y, x) ellipsoid around the middle of the grid."""
    middle = (np.array(volume.array.shape) - 1) / 2 + shift
    index = np.stack(np.meshgrid(*[np.arange(n) for n in volume.array.shape], indexing="ij"), axis=-1)
    offset = (index - middle) * np.array(volume.spacing_mm) / np.array(half_axes_mm)
    return np.asarray((offset**2).sum(axis=-1) < 1)


def rotation(degrees: float) -> Floats:
    """About the patient x axis: the slices become oblique."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


@pytest.mark.parametrize("spacing", [(1.0, 0.7, 0.7), (2.0, 1.1, 1.1), (2.5, 0.7, 0.7), (5.0, 0.8, 0.8)])
@pytest.mark.parametrize("diameter", [6.0, 10.0, 20.0, 30.0])
@pytest.mark.parametrize("turn", [None, rotation(20.0)])
def test_sphere(spacing: tuple[float, float, float], diameter: float, turn: Floats | None) -> None:
    shape = tuple(int(diameter / d) + 7 for d in spacing)
    volume = grid(spacing, (shape[0], shape[1], shape[2]), turn)
    mean, across = [], []
    for shift in (-0.4, -0.2, 0.0, 0.15, 0.35):
        found = measure(volume, ellipsoid(volume, (diameter / 2,) * 3, shift), (0, 0, 0)).measurements
        # the slice of largest area may lie half a slice beside the middle
        cut = (diameter**2 - spacing[0] ** 2) ** 0.5
        assert cut - 0.9 * spacing[1] < found.long_axis_mm < diameter * 1.02 + 0.9 * spacing[1]
        assert found.long_axis_mm >= found.short_axis_mm > cut - 1.2 * spacing[1]
        assert found.max_3d_diameter_mm >= found.long_axis_mm
        assert found.max_3d_diameter_mm < diameter + spacing[0]
        mean.append(found.mean_diameter_mm)
        across.append(found.volume_mm3)
    assert np.mean(mean) == pytest.approx(diameter, abs=0.45 * spacing[1] + (diameter - cut) / 2)
    assert np.mean(across) == pytest.approx(np.pi / 6 * diameter**3, rel=0.08)


def test_axes_of_an_ellipsoid_that_lies_across_the_pixels() -> None:
    volume = grid((1.0, 0.7, 0.9), (15, 61, 61))
    z, y, x = np.meshgrid(*[np.arange(n, dtype=float) for n in volume.array.shape], indexing="ij")
    along, across = np.array([0.6, 0.8]), np.array([-0.8, 0.6])  # (y, x) mm directions
    dy, dx, dz = (y - 30) * 0.7, (x - 30) * 0.9, z - 7
    a, b = dy * along[0] + dx * along[1], dy * across[0] + dx * across[1]
    mask = (a / 12) ** 2 + (b / 6) ** 2 + (dz / 5) ** 2 < 1
    found = measure(volume, mask, (0, 0, 0))
    assert found.measurements.long_axis_mm == pytest.approx(24, abs=0.8)
    assert found.measurements.short_axis_mm == pytest.approx(12, abs=0.8)
    long_mm = np.diff(np.array(found.long_axis) * [0.7, 0.9], axis=0)[0]
    short_mm = np.diff(np.array(found.short_axis) * [0.7, 0.9], axis=0)[0]
    assert np.linalg.norm(long_mm) == pytest.approx(found.measurements.long_axis_mm)
    assert np.linalg.norm(short_mm) == pytest.approx(found.measurements.short_axis_mm)
    assert abs(long_mm @ short_mm) < 1e-6 * np.linalg.norm(long_mm) * np.linalg.norm(short_mm) + 1e-9
    assert abs(long_mm / np.linalg.norm(long_mm) @ along) > 0.99
    for end in (*found.long_axis, *found.short_axis):
        assert np.abs(np.array(end) - 30).max() < 20


def test_origin_moves_key_slice_point_and_axes() -> None:
    volume = grid((1.0, 0.7, 0.7), (40, 50, 60))
    mask = ellipsoid(grid((1.0, 0.7, 0.7), (11, 13, 13)), (4.0, 4.0, 4.0))
    at_zero, moved = measure(volume, mask, (0, 0, 0)), measure(volume, mask, (20, 5, 30))
    assert moved.measurements == at_zero.measurements
    assert moved.key_slice == at_zero.key_slice + 20
    assert moved.key_point == (at_zero.key_point[0] + 5, at_zero.key_point[1] + 30)
    for one, other in zip(moved.long_axis, at_zero.long_axis, strict=True):
        assert np.allclose(np.array(one) - np.array(other), (5, 30))


def test_key_point_of_a_ring_lies_in_the_ring() -> None:
    volume = grid((1.0, 0.7, 0.7), (11, 41, 41))
    mask = ellipsoid(volume, (5.0, 12.0, 12.0)) & ~ellipsoid(volume, (9.0, 6.0, 6.0))
    found = measure(volume, mask, (0, 0, 0))
    y, x = (int(v) for v in found.key_point)
    assert mask[found.key_slice, y, x]


@pytest.mark.parametrize("voxels", [[(3, 3, 3)], [(3, 3, 3), (3, 3, 4)], [(3, 3, 3), (4, 3, 3)]])
def test_a_mask_of_one_or_two_voxels_is_measured_between_its_faces(
    voxels: list[tuple[int, int, int]],
) -> None:
    volume = grid((2.0, 1.0, 1.0), (8, 8, 8))
    mask = np.zeros(volume.array.shape, np.bool_)
    mask[tuple(np.array(voxels).T)] = True
    found = measure(volume, mask, (0, 0, 0)).measurements
    assert found.volume_mm3 == pytest.approx(2.0 * len(voxels))
    assert 1.0 <= found.short_axis_mm <= found.long_axis_mm <= 2.0 + 1e-9


def test_hu_statistics_are_those_of_the_mask() -> None:
    volume = grid((1.0, 1.0, 1.0), (9, 9, 9))
    mask = np.zeros(volume.array.shape, np.bool_)
    mask[4, 3:6, 3:6] = True
    volume.array[...] = -900
    volume.array[4, 3:6, 3:6] = np.arange(-40, 50, 10).reshape(3, 3)
    found = measure(volume, mask, (0, 0, 0)).measurements
    assert (found.min_hu, found.mean_hu, found.max_hu) == (-40, 0, 40)
    assert found.sd_hu == pytest.approx(np.arange(-40, 50, 10).std())


def test_empty_mask_and_mask_outside_are_refused() -> None:
    volume = grid((1.0, 1.0, 1.0), (9, 9, 9))
    with pytest.raises(ValueError, match="empty"):
        measure(volume, np.zeros((3, 3, 3), np.bool_), (0, 0, 0))
    with pytest.raises(ValueError, match="outside"):
        measure(volume, np.ones((3, 3, 3), np.bool_), (8, 0, 0))


@pytest.mark.parametrize(
    ("shell", "core", "expected"),
    [(20, 20, Attenuation.SOLID), (-600, 20, Attenuation.PART_SOLID), (-600, -600, Attenuation.GROUND_GLASS)],
)
def test_attenuation_type(shell: int, core: int, expected: Attenuation) -> None:
    volume = grid((1.0, 0.7, 0.7), (25, 41, 41))
    mask = ellipsoid(volume, (8.0, 8.0, 8.0))
    rng = np.random.default_rng(0)
    hu = np.where(mask, shell, -860)
    hu[ellipsoid(volume, (5.0, 5.0, 5.0))] = core
    volume.array[...] = np.clip(hu + rng.normal(0, 30, hu.shape), -1024, 3071)
    assert attenuation(volume, mask, (0, 0, 0)) is expected


@pytest.mark.parametrize("core_mm", [4.0, 6.0, 10.0])
def test_solid_part_of_a_part_solid_nodule(core_mm: float) -> None:
    volume = grid((1.0, 0.7, 0.7), (25, 41, 41))
    mask = ellipsoid(volume, (8.0, 8.0, 8.0))
    hu = np.where(mask, -600, -860)
    hu[ellipsoid(volume, (core_mm / 2,) * 3)] = 20
    hu[4, 20, 20] = 20  # a vessel elsewhere in it is not its solid part
    volume.array[...] = np.clip(hu + np.random.default_rng(0).normal(0, 30, hu.shape), -1024, 3071)
    assert solid_part_mm(volume, mask, (0, 0, 0)) == pytest.approx(core_mm, abs=0.7)
    volume.array[...] = -600
    assert solid_part_mm(volume, mask, (0, 0, 0)) is None


def test_site_is_the_side_under_most_of_the_mask() -> None:
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[:, :, :3], labels[:, :, 3:] = 1, 2
    mask = np.ones((2, 2, 3), np.bool_)
    assert site(labels, mask, (0, 0, 0)) == Site(Laterality.RIGHT)
    assert site(labels, mask, (0, 0, 2)) == Site(Laterality.LEFT)
    assert site(np.zeros_like(labels), mask, (0, 0, 0)) == Site()
