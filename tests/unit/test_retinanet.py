"""MONAI's detector: the bundle's input and choice of boxes on a volume of ours. Weights are random here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.data.box_utils import box_iou
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, ScaleIntensityRange, Spacing
from numpy.typing import NDArray

from inference import retinanet
from inference.types import SourceFrame, Volume
from inference.weights import load_into, read_weights, write_weights


def volume(
    array: NDArray[np.float32],
    affine: NDArray[np.float64] | None = None,
    spacing: tuple[float, ...] = (2.5, 0.8, 0.9),
) -> Volume:
    if affine is None:
        affine = np.eye(4)
        affine[:3, :3] = np.array([[0, 0, spacing[2]], [0, spacing[1], 0], [spacing[0], 0, 0]])
        affine[:3, 3] = (-50.0, -60.0, 30.0)
    frames = tuple(SourceFrame("1.2", f"1.2.{n}") for n in range(array.shape[0]))
    return Volume(array, affine, "1.3", "1.4", "1.5", frames)


@pytest.fixture
def noise() -> NDArray[np.float32]:
    source = np.random.default_rng(3)
    return source.normal(-500, 400, (21, 30, 26)).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> RetinaNet:
    torch.manual_seed(7)
    return retinanet.build_network()


def by_monai(given: Volume) -> MetaTensor:
    """The bundle's own transforms on the same voxels, laid out right, front, head by hand."""
    array = given.array.transpose(2, 1, 0).astype(np.float32)
    # array axes x, y, z to RAS
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ given.affine_index_to_lps @ np.eye(4)[[2, 1, 0, 3]]
    for axis in range(3):
        if ras[axis, axis] < 0:
            array = np.flip(array, axis)
            ras[axis, 3] += ras[axis, axis] * (array.shape[axis] - 1)
            ras[axis, axis] *= -1
    image = MetaTensor(torch.from_numpy(array[None].copy()), affine=torch.from_numpy(ras))
    chain = Compose(
        [
            Spacing(pixdim=(0.703125, 0.703125, 1.25)),
            ScaleIntensityRange(a_min=-1024.0, a_max=300.0, b_min=0.0, b_max=1.0, clip=True),
        ]
    )
    done = chain(image)
    assert isinstance(done, MetaTensor)
    return done


@pytest.mark.parametrize("order", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_the_input_is_that_of_the_bundle(noise: NDArray[np.float32], order: tuple[int, ...]) -> None:
    given = volume(noise)
    for axis, sign in enumerate(order):
        if sign < 0:
            given = flipped(given, axis)
    image, affine = retinanet.prepare(given)
    expected = by_monai(given)
    assert image.shape == expected.shape
    torch.testing.assert_close(image, expected.as_tensor(), atol=1e-4, rtol=0)
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    np.testing.assert_allclose(ras, expected.affine.numpy(), atol=1e-5)


def flipped(given: Volume, axis: int) -> Volume:
    """The same patient, stored the other way round along one axis."""
    affine = given.affine_index_to_lps.copy()
    affine[:3, 3] += affine[:3, axis] * (given.array.shape[axis] - 1)
    affine[:3, axis] *= -1
    return volume(np.ascontiguousarray(np.flip(given.array, axis)), affine)


def test_a_transposed_and_oblique_volume_keeps_its_place() -> None:
    """A bright blob is found at its own patient coordinates in the network's input."""
    array = np.full((24, 28, 32), -900, np.float32)
    array[13:16, 8:11, 20:23] = 200
    turn = np.radians(7)
    affine = np.eye(4)
    # array axes: y, z, x
    affine[:3, :3] = np.array(
        [[0, 0, -0.8 * np.cos(turn)], [1.1 * np.cos(turn), 0, -0.8 * np.sin(turn)], [0.1, 1.5, 0]]
    )
    given = volume(array, affine)
    image, to_lps = retinanet.prepare(given)
    weight = (image[0] - image.min()).double().numpy()
    middle = np.array([np.sum(weight * axis) / weight.sum() for axis in np.indices(weight.shape)])
    here = to_lps @ [*middle, 1]
    np.testing.assert_allclose(here[:3], given.index_to_lps((14.0, 9.0, 21.0)), atol=0.25)
    assert np.linalg.norm(to_lps[:3, :3], axis=0) == pytest.approx(retinanet.SPACING_MM)
    assert to_lps[0, 0] < 0, "runs to the right"
    assert to_lps[1, 1] < 0, "runs to the front"
    assert to_lps[2, 2] > 0, "runs to the head"


def test_the_network_is_the_bundles(network: RetinaNet) -> None:
    assert sum(item.numel() for item in network.parameters()) == 20_902_741
    state = network.state_dict()
    assert state["feature_extractor.body.conv1.weight"].shape == (64, 1, 7, 7, 7)
    assert state["classification_head.cls_logits.weight"].shape == (3, 256, 3, 3, 3)
    assert state["regression_head.bbox_reg.weight"].shape == (18, 256, 3, 3, 3)
    with torch.inference_mode():
        maps = network.eval()(torch.zeros(1, 1, 32, 32, 16))
    # strides 4 4 2, 8 8 4, 16 16 8
    assert [tuple(item.shape[1:]) for item in maps["classification"]] == [
        (3, 8, 8, 8),
        (3, 4, 4, 4),
        (3, 2, 2, 2),
    ]
    assert [item.shape[1] for item in maps["box_regression"]] == [18, 18, 18]


def test_the_weights_make_the_round_trip(network: RetinaNet, tmp_path: Path) -> None:
    file = tmp_path / "r.safetensors"
    digest = write_weights(network.state_dict(), file, {"name": "random, for a test"})
    torch.manual_seed(8)
    other = retinanet.build_network().eval()
    load_into(other, read_weights(file, digest))
    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mine, its = network.eval()(image), other(image)
    for key in ("classification", "box_regression"):
        for was, now in zip(mine[key], its[key], strict=True):
            torch.testing.assert_close(now, was, atol=0.01, rtol=0.01)


def test_boxes_are_sorted_apart_and_inside(network: RetinaNet, noise: NDArray[np.float32]) -> None:
    given = volume(noise)
    found = retinanet.detect(network, given, min_score=0.0)
    assert 1 < len(found.scores) <= retinanet.MAX_BOXES
    assert found.centres_lps.shape == found.sizes_mm.shape == (len(found.scores), 3)
    assert (np.diff(found.scores) <= 0).all()
    index = given.lps_to_index(found.centres_lps)
    assert (index > -1).all()
    assert (index < np.array(noise.shape) + 1).all()
    assert (found.sizes_mm > 0).all()
    corners = np.hstack([found.centres_lps - found.sizes_mm / 2, found.centres_lps + found.sizes_mm / 2])
    overlap = np.asarray(box_iou(corners, corners)) - np.eye(len(corners))
    assert overlap.max() <= retinanet.NMS_IOU + 1e-6


def test_boxes_lie_at_the_same_place_however_the_volume_is_stored(
    network: RetinaNet, noise: NDArray[np.float32]
) -> None:
    given = volume(noise, spacing=(1.25, 0.703125, 0.703125))
    first = retinanet.detect(network, given, min_score=0.0)
    again = retinanet.detect(network, flipped(flipped(given, 0), 2), min_score=0.0)
    np.testing.assert_allclose(again.centres_lps, first.centres_lps, atol=1e-3)
    np.testing.assert_allclose(again.sizes_mm, first.sizes_mm, atol=1e-3)


def test_a_score_threshold_drops_boxes(network: RetinaNet, noise: NDArray[np.float32]) -> None:
    assert len(retinanet.detect(network, volume(noise), min_score=1.0).scores) == 0


def test_a_sliding_window_goes_over_a_larger_image(network: RetinaNet) -> None:
    array = np.random.default_rng(5).normal(-700, 300, (24, 40, 100)).astype(np.float32)
    given = volume(array, spacing=(1.25, 0.703125, 0.703125))
    found = retinanet.detect(network, given, window=(64, 64, 32), min_score=0.0)
    x = given.lps_to_index(found.centres_lps)[:, 2]
    assert x.min() < 20
    assert x.max() > 80


@pytest.mark.parametrize("window", [(64, 64, 16), (60, 64, 32), (0, 64, 32)])
def test_windows_that_split_a_voxel_are_refused(
    network: RetinaNet, noise: NDArray[np.float32], window: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match="must be a multiple"):
        retinanet.detect(network, volume(noise), window=window)
