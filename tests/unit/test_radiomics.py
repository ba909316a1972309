"""Features against the IBSI digital phantom and against shapes whose values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from inference.mesh import areas_mm2, enclosed_mm3, surface_triangles
from inference.radiomics import Feature, histogram, intensity, mass, morphology, radiomics
from inference.types import SourceFrame, Volume

# The IBSI-1 digital phantom (CC BY 4.0, design: Alex Zwanenburg), (z, y, x), voxels of 2 mm; 0 is outside.
PHANTOM = np.array(
    [
        [[1, 4, 4, 1, 1], [1, 4, 6, 1, 1], [4, 1, 6, 4, 1], [4, 4, 6, 4, 1]],
        [[1, 4, 4, 1, 1], [1, 1, 6, 1, 1], [0, 1, 3, 1, 1], [4, 4, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1], [1, 1, 6, 1, 1]],
        [[1, 4, 4, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 6, 1, 1]],
    ]
)
# consensus value and tolerance of the reference manual; without a tolerance: half of its last digit
CONSENSUS = {
    "RNU0": (556, 4),
    "YEKZ": (592, 4),
    "C0JK": (388, 3),
    "2PR5": (0.698, 0.004),
    "SKGS": (0.0411, 0.0003),
    "BQWJ": (0.599, 0.004),
    "KRCK": (1.19, 0.01),
    "QCFX": (0.843, 0.005),
    "25C7": (0.186, 0.001),
    "L0JK": (13.1, 0.1),
    "TDIC": (11.4, 0.1),
    "P9VJ": (9.31, 0.06),
    "7J51": (8.54, 0.05),
    "Q3CK": (0.816, 0.005),
    "N17B": (0.749, 0.005),
    "R3ER": (0.961, 0.006),
    "7T7F": (1.03, 0.01),
    "99N0": (1200, 10),
    "Q4LE": (2.15, 0.005),
    "ECT3": (3.05, 0.005),
    "KE2A": (1.08, 0.005),
    "IPH6": (-0.355, 0.0005),
    "Y12H": (1, 0),
    "1GSF": (1, 0),
    "QG58": (1, 0),
    "8DWT": (4, 0),
    "84IY": (6, 0),
    "SALO": (3, 0),
    "2OJQ": (5, 0),
    "4FUA": (1.55, 0.005),
    "1128": (1.11, 0.005),
    "N72L": (1.15, 0.005),
    "N8CA": (567, 0),
    "5ZWQ": (2.77, 0.005),
    "TLU2": (1.27, 0.005),
    "BJ5W": (0.512, 0.0005),
}


def grid(array: NDArray[np.int64], spacing: tuple[float, float, float]) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing[::-1])[:, ::-1]
    frames = tuple(SourceFrame("1.2", str(z)) for z in range(array.shape[0]))
    return Volume(array.astype(np.int16), affine, "1", "2", "3", frames)


def by_code(features: tuple[Feature, ...]) -> dict[str, float]:
    return {feature.code: feature.value for feature in features}


@pytest.fixture(scope="module")
def phantom() -> dict[str, float]:
    found = by_code(radiomics(grid(PHANTOM, (2.0, 2.0, 2.0)), PHANTOM > 0, (0, 0, 0)))
    # the phantom isn't to be discretised: bins of 1
    return {**found, **by_code(histogram(PHANTOM[PHANTOM > 0].astype(float), bin_hu=1, lowest_hu=1))}


@pytest.mark.parametrize("code", CONSENSUS)
def test_ibsi_digital_phantom(code: str, phantom: dict[str, float]) -> None:
    value, tolerance = CONSENSUS[code]
    assert phantom[code] == pytest.approx(value, abs=tolerance + 1e-9)


def test_every_coded_feature_is_held_against_the_consensus(phantom: dict[str, float]) -> None:
    assert {code for code in phantom if code} == set(CONSENSUS)


def test_mesh_of_the_phantom_is_that_of_the_reference_implementations() -> None:
    triangles = surface_triangles(PHANTOM > 0, np.diag([2.0, 2.0, 2.0]))
    assert enclosed_mm3(triangles) == pytest.approx(556.3333, abs=1e-3)
    assert areas_mm2(triangles).sum() == pytest.approx(388.0706, abs=1e-3)


def test_a_single_voxel_is_an_octahedron() -> None:
    triangles = surface_triangles(np.ones((1, 1, 1), bool), np.diag([2.0, 3.0, 5.0]))
    assert len(triangles) == 8
    assert enclosed_mm3(triangles) == pytest.approx(2 * 3 * 5 / 6)
    assert np.abs(triangles).reshape(-1, 3).max(axis=0) == pytest.approx([1.0, 1.5, 2.5])


def test_a_box() -> None:
    found = by_code(morphology(np.ones((10, 20, 30), bool), np.diag([1.0, 0.5, 0.25])))
    # the twelve edges and eight corners are cut off between the outermost centres
    assert found["YEKZ"] == pytest.approx(750)
    assert 0.97 * 750 < found["RNU0"] < 750
    assert found["L0JK"] == pytest.approx(math.hypot(10, 10, 7.5), rel=0.05)
    assert found["R3ER"] == pytest.approx(1.0, abs=1e-6)
    assert found["7T7F"] == pytest.approx(1.0, abs=1e-6)


def ball(diameter: float, spacing: tuple[float, float, float], shift: float = 0.0) -> NDArray[np.bool_]:
    half = [math.ceil(diameter / 2 / d) + 1 for d in spacing]
    axes = np.meshgrid(*[np.arange(-h, h + 1) for h in half], indexing="ij")
    return np.asarray(
        sum(((a + shift) * d) ** 2 for a, d in zip(axes, spacing, strict=True)) < diameter**2 / 4
    )


@pytest.mark.parametrize("diameter", [6.0, 10.0, 20.0, 30.0])
def test_spheres(diameter: float) -> None:
    runs = [
        by_code(morphology(ball(diameter, (0.7, 0.7, 0.7), shift), np.diag([0.7] * 3)))
        for shift in (0.0, 0.2, 0.45)
    ]
    mean = {code: float(np.mean([run[code] for run in runs])) for code in runs[0]}
    assert mean["RNU0"] == pytest.approx(math.pi / 6 * diameter**3, rel=0.05)
    assert mean["C0JK"] / (math.pi * diameter**2) == pytest.approx(1.08, abs=0.03)
    assert mean["QCFX"] == pytest.approx(0.92, abs=0.03)
    assert mean["L0JK"] == pytest.approx(diameter, abs=0.7)
    assert mean["Q3CK"] == pytest.approx(1.0, abs=0.03)
    assert mean["TDIC"] == pytest.approx(4 * diameter / 2 / math.sqrt(5), rel=0.03)


def test_shape_doesn_t_depend_on_the_direction_of_the_axes() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((6, 7, 8)) < 0.4  # also every ambiguous face
    plain = by_code(morphology(mask, np.diag([1.0, 1.0, 1.0])))
    turned = np.array([[0.0, 0.0, 1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    for index_to_mm in (turned, -np.eye(3), turned @ np.diag([1.0, -1.0, 1.0])):
        assert by_code(morphology(mask, index_to_mm)) == pytest.approx(plain)


def test_every_surface_is_closed() -> None:
    rng = np.random.default_rng(1)
    for density in (0.1, 0.4, 0.6, 0.9):
        triangles = surface_triangles(rng.random((6, 6, 6)) < density, np.eye(3))
        edges: dict[tuple[tuple[float, ...], tuple[float, ...]], int] = {}
        for corners in triangles.round(3).tolist():
            for a, b in ((0, 1), (1, 2), (2, 0)):
                key = (tuple(corners[a]), tuple(corners[b]))
                edges[key] = edges.get(key, 0) + 1
        # each edge is run through once in each direction
        assert all(edges.get((b, a), 0) == count for (a, b), count in edges.items())


def test_a_hole_is_not_volume() -> None:
    solid = np.ones((7, 7, 7), bool)
    hollow = solid.copy()
    hollow[3, 3, 3] = False
    full, less = (by_code(morphology(m, np.eye(3)))["RNU0"] for m in (solid, hollow))
    assert full - less == pytest.approx(1 / 6)


def test_values_that_are_all_the_same() -> None:
    found = by_code(intensity(np.full(20, -50.0)))
    assert (found["ECT3"], found["KE2A"], found["IPH6"]) == (0.0, 0.0, 0.0)
    assert by_code(histogram(np.full(20, -50.0))) == {"TLU2": 0.0, "BJ5W": 1.0}


def test_one_voxel_has_a_shape() -> None:
    found = by_code(morphology(np.ones((1, 1, 1), bool), np.eye(3)))
    assert (found["TDIC"], found["Q3CK"]) == (0.0, 1.0)
    assert all(math.isfinite(value) for value in found.values())


def test_mass() -> None:
    water = mass(np.zeros(100), 2.0)
    assert (water.value, water.unit) == (200.0, "mg")
    assert mass(np.full(100, -800.0), 2.0).value == pytest.approx(40.0)
    assert mass(np.full(100, -1024.0), 2.0).value == 0.0


def test_origin_picks_the_voxels() -> None:
    array = np.zeros((5, 6, 7), np.int64)
    array[2:4, 3:5, 4:6] = 100
    found = by_code(radiomics(grid(array, (1.0, 0.7, 0.7)), np.ones((2, 2, 2), bool), (2, 3, 4)))
    assert found["Q4LE"] == 100.0
    assert found["YEKZ"] == pytest.approx(8 * 0.49)


def test_what_can_t_be_measured() -> None:
    volume = grid(np.zeros((3, 3, 3), np.int64), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="empty"):
        morphology(np.zeros((2, 2, 2), bool), np.eye(3))
    with pytest.raises(ValueError, match="outside"):
        radiomics(volume, np.ones((2, 2, 2), bool), (2, 2, 2))
    with pytest.raises(ValueError, match="three axes"):
        surface_triangles(np.ones((2, 2), bool), np.eye(3))
    assert surface_triangles(np.zeros((2, 2, 2), bool), np.eye(3)).shape == (0, 3, 3)
