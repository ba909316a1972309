"""The second look: its cubes lie around the peaks, its examples are labelled right, a short run learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.detector import PATCH, Calibration, CentreNet, Detector, SecondLook, cut_patches
from inference.lungs import LEFT, Lungs
from inference.train.detector_look import Examples, LookPlan, collect, new_look, train_look
from inference.train.detector_samples import SIDE, Sample, as_scanned
from inference.types import SourceFrame, Volume

BALL, TUBE = (20.5, 24.5, 24.5), (40.5, 40.5)


class Bright(nn.Module):
    """Stands for a centre network that takes for a nodule whatever is bright."""

    def forward(self, image: Tensor) -> Tensor:
        """As `CentreNet.forward`; the size is 8 mm everywhere."""
        logit = 30 * functional.avg_pool3d(image, 2) - 12
        smooth = functional.avg_pool3d(logit, 3, stride=1, padding=1)
        return torch.cat([smooth, torch.zeros_like(smooth)], 1)


class Round(nn.Module):
    """Stands for a second look: it knows that a nodule ends above and below."""

    def forward(self, image: Tensor) -> Tensor:
        """As `SecondLook.forward`."""
        column = image[:, 0, :, 14:18, 14:18].mean((2, 3))  # (n, 32)
        return 20 * (column[:, 14:18].mean(1) - 0.5 * (column[:, :4].mean(1) + column[:, -4:].mean(1)))


def picture() -> np.ndarray:
    """A ball and a vessel along z in lung, int16, (64, 64, 64)."""
    grid = np.indices((SIDE,) * 3)
    hu = np.full((SIDE,) * 3, -860, np.int16)
    hu[sum((g - c) ** 2 for g, c in zip(grid, BALL, strict=True)) < 3.2**2] = 40
    hu[sum((g - c) ** 2 for g, c in zip(grid[1:], TUBE, strict=True)) < 3.2**2] = 40
    return hu


def sample() -> Sample:
    """It, with the truth."""
    rows = np.array([[*BALL, 8.0]], np.float32)
    return Sample(picture(), np.ones((SIDE // 2,) * 3, np.bool_), rows, np.zeros((0, 4), np.float32))


def test_a_patch_lies_around_its_place_and_repeats_the_border() -> None:
    image = torch.arange(40**3, dtype=torch.float32).reshape(40, 40, 40)
    inner, border = cut_patches(image, np.array([[20.5, 19.5, 18.5], [0.2, 20.0, 39.0]]))
    assert inner.shape == (1, PATCH, PATCH, PATCH)
    assert inner[0, 15, 15, 15] == image[20, 19, 18]
    assert inner[0, 16, 16, 16] == image[21, 20, 19]
    assert border[0, 0, 5, 5] == border[0, 10, 5, 5]
    assert cut_patches(image, np.zeros((0, 3))).shape == (0, 1, PATCH, PATCH, PATCH)


def test_the_second_look_begins_with_the_encoder_of_the_first() -> None:
    torch.manual_seed(0)
    network = CentreNet()
    look = new_look(network).eval()
    theirs, own = (one.second.state_dict() for one in (network, look))
    assert all(torch.equal(own[key], theirs[key]) for key in own)
    with torch.inference_mode():
        assert look(torch.rand(3, 1, PATCH, PATCH, PATCH)).shape == (3,)


def test_what_the_second_look_says_orders_the_marks() -> None:
    shape = (48, 64, 64)
    array = np.full(shape, -860, np.int16)
    array[:, 30:36, 44:50] = 40
    array[21:25, 30:36, 14:20] = 40
    affine = np.array([[0, 0, 1.0, 0], [0, 1.0, 0, 0], [1.5, 0, 0, 0], [0, 0, 0, 1.0]])
    frames = tuple(SourceFrame("", str(z)) for z in range(shape[0]))
    volume = Volume(array, affine, "1.2", "1.3", "1.4", frames)
    lungs = Lungs(np.full(shape, LEFT, np.uint8), (0.0, 0.0))
    networks = (Bright(), Round())
    blind = Detector(*networks, Calibration(1.0, 0.0, 0.0))  # type: ignore[arg-type]  # they stand for trained ones
    seeing = Detector(*networks, Calibration(0.0, -2.0, 1.0))  # type: ignore[arg-type]  # as above
    first = seeing.detect(volume, lungs)[0]
    assert first.index == pytest.approx((22.5, 32.5, 16.5), abs=1.0)
    assert first.probability > 0.9
    on_tube = [one for one in seeing.detect(volume, lungs) if one.index[2] > 40 and 12 < one.index[0] < 36]
    assert on_tube
    assert max(one.probability for one in on_tube) < 0.5
    assert blind.detect(volume, lungs)[0].index[2] > 40


def test_peaks_become_examples_with_the_right_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.train.detector_look.as_scanned", lambda _, hu: hu[None])
    found = collect(Bright(), lambda _: sample(), np.random.default_rng(0), 3)  # type: ignore[arg-type]  # as above
    assert found.hu.shape[1:] == (PATCH,) * 3
    ends = found.hu[:, [2, -3], 15:17, 15:17].max((1, 2, 3))
    middle = found.hu[:, 15:17, 15:17, 15:17].mean((1, 2, 3))
    assert (middle > -300).all()
    assert (ends[found.nodule] == -860).all()
    assert (ends[~found.nodule] == 40).all()
    assert np.isnan(found.logit[found.nodule]).any()  # the true centre
    assert np.isfinite(found.logit[found.nodule]).any()  # and the peak


def test_a_lesion_that_is_neither_gives_no_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.train.detector_look.as_scanned", lambda _, hu: hu[None])
    unsure = replace(sample(), lesions=np.zeros((0, 4), np.float32), unknown=sample().lesions)
    found = collect(Bright(), lambda _: unsure, np.random.default_rng(0), 1)  # type: ignore[arg-type]  # as above
    assert len(found.nodule)
    assert (found.hu[:, [2, -3], 15:17, 15:17].max((1, 2, 3)) == 40).all()


def test_a_short_run_tells_balls_from_tubes() -> None:
    rng, hu = np.random.default_rng(0), picture()
    cubes = []
    for centre in ((20, 24, 24), (32, 40, 40)):
        low = [c - PATCH // 2 + 1 for c in centre]
        cubes.append(hu[tuple(slice(max(v, 0), max(v, 0) + PATCH) for v in low)])
    examples = Examples(np.stack(cubes), np.array([True, False]), np.zeros(2, np.float32))
    torch.manual_seed(0)
    look = train_look(new_look(CentreNet()), examples, LookPlan(steps=30, batch=4, rate=2e-2))
    shown = torch.stack([as_scanned(rng, torch.from_numpy(one.astype(np.float32)), 0.0) for one in cubes])
    with torch.inference_mode():
        ball, tube = look((shown + 1000).clamp(0, 1500) / 1500)
    assert isinstance(look, SecondLook)
    assert ball > tube + 0.2
