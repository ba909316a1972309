"""The detector: geometry of its input and its marks, peaks, weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.detector import (
    CELL_MM,
    GRID_MM,
    HALO,
    SLAB,
    Calibration,
    CentreNet,
    Detector,
    find_peaks,
    load_detector,
    sample_lung_box,
    smooth_fine,
)
from inference.errors import ModelUnavailableError
from inference.lungs import LEFT, Lungs
from inference.types import SourceFrame, Volume
from inference.weights import write_weights

AFFINES = {
    "to the head": np.array([[0, 0, 0.8, -60], [0, 0.8, 0, -70], [2.5, 0, 0, -100], [0, 0, 0, 1.0]]),
    "to the feet, to the right": np.array(
        [[0, 0, -0.8, 60], [0, 0.8, 0, -70], [-2.5, 0, 0, 80], [0, 0, 0, 1.0]]
    ),
}


class BrightBalls(nn.Module):
    """Stands for a trained network: its logit is high in the middle of bright balls of about 10 mm."""

    def forward(self, image: Tensor) -> Tensor:
        """As `CentreNet.forward`; the size is 8 mm everywhere."""
        smooth = functional.avg_pool3d(image, 5, stride=1, padding=2, count_include_pad=False)
        logit = 20 * functional.avg_pool3d(smooth, 2) - 8
        return torch.cat([logit, torch.zeros_like(logit)], 1)


class BallsOfOneSize(nn.Module):
    """Another: it doesn't see what is larger than about 30 mm."""

    def forward(self, image: Tensor) -> Tensor:
        """As `CentreNet.forward`; the size is 20 mm everywhere."""
        near, wide = (
            functional.avg_pool3d(image, side, stride=1, padding=side // 2, count_include_pad=False)
            for side in (13, 25)
        )
        logit = 24 * functional.avg_pool3d(near - wide, 2) - 8
        return torch.cat([logit, torch.full_like(logit, float(np.log(20 / 8)))], 1)


def scan(affine: np.ndarray, balls: list[tuple[float, float, float]]) -> tuple[Volume, Lungs]:
    """Lung with bright balls at fractional indices."""
    shape, spacing = (48, 150, 150), np.array([2.5, 0.8, 0.8])
    field = np.zeros(shape, np.uint8)
    field[4:-4, 15:-15, 15:-15] = LEFT
    array = np.where(field > 0, -860.0, -700.0)
    for ball in balls:
        gap = np.sqrt(
            sum(((g - c) * s) ** 2 for g, c, s in zip(np.indices(shape), ball, spacing, strict=True))
        )
        array = np.maximum(array, -860 + 900 * np.clip(5.5 - gap, 0, 1))
    frames = tuple(SourceFrame("", str(z)) for z in range(shape[0]))
    volume = Volume(array.astype(np.int16), affine, "1.2", "1.3", "1.4", frames)
    return volume, Lungs(field, (0.0, 0.0))


def bright_detector() -> Detector:
    """A detector whose network needs no training."""
    return Detector(BrightBalls())  # type: ignore[arg-type]  # it stands for a CentreNet


def test_the_map_has_a_cell_for_each_cube_of_two_voxels() -> None:
    network = CentreNet().eval()
    with torch.inference_mode():
        answer = network(torch.rand(2, 1, 16, 24, 32))
    assert answer.shape == (2, 2, 8, 12, 16)
    # at first hardly anything is a centre
    assert torch.sigmoid(answer[:, 0]).mean() < 0.2
    assert sum(p.numel() for p in network.parameters()) < 2_000_000


@pytest.mark.parametrize("name", AFFINES)
def test_marks_lie_on_the_balls_in_patient_coordinates(name: str) -> None:
    balls = [(12.0, 40.0, 50.0), (30.4, 100.3, 90.0)]
    volume, lungs = scan(AFFINES[name], balls)
    marks = bright_detector().detect(volume, lungs)
    assert len(marks) == 2
    for ball in balls:
        centre = volume.index_to_lps(ball)
        gaps = [float(np.linalg.norm(np.array(mark.centre_lps) - centre)) for mark in marks]
        nearest = marks[int(np.argmin(gaps))]
        assert min(gaps) < 1.2
        assert volume.index_to_lps(nearest.index) == pytest.approx(np.array(nearest.centre_lps))
        assert nearest.diameter_mm == pytest.approx(8)


def test_marks_come_in_falling_order_and_again_the_same() -> None:
    volume, lungs = scan(AFFINES["to the head"], [(12.0, 40.0, 50.0), (30.4, 100.3, 90.0), (20.0, 60, 110)])
    detector = bright_detector()
    marks = detector.detect(volume, lungs)
    assert [one.probability for one in marks] == sorted((one.probability for one in marks), reverse=True)
    assert marks == detector.detect(volume, lungs)


def test_a_mass_is_found_in_the_smaller_image_and_marked_once() -> None:
    volume, lungs = scan(AFFINES["to the head"], [])
    centre, spacing = np.array([24.0, 75.0, 75.0]), np.array([2.5, 0.8, 0.8])
    grid = np.moveaxis(np.indices(volume.array.shape), 0, -1)
    volume.array[np.linalg.norm((grid - centre) * spacing, axis=-1) < 18] = 40
    marks = Detector(BallsOfOneSize()).detect(volume, lungs)  # type: ignore[arg-type]  # for a CentreNet
    assert len(marks) == 1
    assert marks[0].diameter_mm == pytest.approx(40)
    assert np.linalg.norm((np.array(marks[0].index) - centre) * spacing) < 3


def test_outside_the_lung_field_nothing_is_marked() -> None:
    inside, beyond = (24.0, 75.0, 75.0), (24.0, 75.0, 146.0)
    volume, lungs = scan(AFFINES["to the head"], [inside, beyond])
    marks = bright_detector().detect(volume, lungs)
    assert len(marks) == 1
    assert marks[0].index == pytest.approx(inside, abs=1)


def test_no_ball_no_mark() -> None:
    volume, lungs = scan(AFFINES["to the head"], [])
    assert bright_detector().detect(volume, lungs) == ()


def test_slabs_leave_no_seam() -> None:
    torch.manual_seed(0)
    image = torch.rand(SLAB + 2 * HALO, 16, 16) * 1500 - 1000  # HU
    network = BrightBalls()
    detector = Detector(network)  # type: ignore[arg-type]  # it stands for a CentreNet
    whole = network(((image + 1000) / 1500)[None, None])[0]
    with torch.inference_mode():
        parts = detector._maps(image)
    assert parts.shape == whole.shape
    assert torch.allclose(parts, whole, atol=0.15)  # bfloat16, where the hardware has it


def test_the_box_shows_the_scan_at_its_own_places() -> None:
    volume, lungs = scan(AFFINES["to the head"], [(24.0, 75.0, 75.0)])
    image, field, corner = sample_lung_box(volume, lungs)
    assert image.shape == field.shape
    assert all(edge % 8 == 0 for edge in image.shape)
    at = (np.array([24.0, 75, 75]) - corner) * np.array(volume.spacing_mm) / GRID_MM
    z, y, x = np.round(at).astype(int)
    assert image[z, y, x] > 20
    assert field[z, y, x] == 1
    assert image[z, y, x + 8] == pytest.approx(-860, abs=1)


def test_only_fine_voxels_are_smoothed() -> None:
    spike = torch.zeros(5, 5, 5)
    spike[2, 2, 2] = 16
    assert torch.equal(smooth_fine(spike.clone(), (2.5, 1.4, 1.4)), spike)
    both = smooth_fine(spike.clone(), (2.5, 0.7, 0.7))
    assert both[2, 2, 2] == 4
    assert both[2, 1, 1] == 1
    assert both.sum() == 16


def test_a_weaker_peak_of_the_same_nodule_is_dropped() -> None:
    maps = torch.full((2, 20, 20, 20), -6.0)
    maps[1] = float(np.log(20 / 8))  # 20 mm everywhere
    maps[0, 5, 5, 5], maps[0, 5, 8, 5], maps[0, 15, 15, 15], maps[0, 15, 5, 15] = 3.0, 2.0, 1.0, -7.0
    near = torch.ones(20, 20, 20, dtype=torch.bool)
    near[15, 5, 15] = False
    cells, logits, diameters = find_peaks(maps, near)
    assert logits.tolist() == [3.0, 1.0]  # the second lies 7.5 mm from the first
    assert cells == pytest.approx(np.array([[5.0, 5, 5], [15, 15, 15]]), abs=0.1)
    assert diameters == pytest.approx([20, 20])
    maps[1] = float(np.log(6 / 8))
    assert find_peaks(maps, near)[1].tolist() == [3.0, 2.0, 1.0]


def test_a_peak_between_cells_is_found_between_them() -> None:
    maps = torch.full((2, 16, 16, 16), 0.0)
    centre = np.array([7.3, 8.0, 8.4])
    gaps = np.sqrt(((np.moveaxis(np.indices((16, 16, 16)), 0, -1) - centre) ** 2).sum(-1)) * CELL_MM
    heat = np.clip(np.exp(-0.5 * (gaps / 2.5) ** 2), 1e-4, 0.99)
    maps[0] = torch.from_numpy(np.log(heat / (1 - heat))).float()
    cells, _, _ = find_peaks(maps, torch.ones(16, 16, 16, dtype=torch.bool), least=0.5)
    assert cells[0] == pytest.approx(centre, abs=0.2)


def test_calibration_is_a_logistic() -> None:
    assert Calibration()(0.0) == 0.5
    assert Calibration(2.0, -1.0)(0.5) == 0.5
    assert Calibration(2.0, -1.0)(1.0) == pytest.approx(1 / (1 + np.exp(-1)))


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = CentreNet()
    path = tmp_path / "detector.safetensors"
    digest = write_weights(network.state_dict(), path, {})
    volume, lungs = scan(AFFINES["to the head"], [(24.0, 75.0, 75.0)])
    first, second = (load_detector(path, digest).peaks(volume, lungs) for _ in range(2))
    assert first.logit.tolist() == second.logit.tolist()
    with pytest.raises(ModelUnavailableError, match="sha256"):
        load_detector(path, "0" * 64)
    with pytest.raises(ModelUnavailableError, match="missing"):
        load_detector(tmp_path / "other.safetensors", digest)
    state = network.state_dict()
    state.pop("head.bias")
    partly = write_weights(state, path, {})
    with pytest.raises(ModelUnavailableError, match=r"head\.bias"):
        load_detector(path, partly)
