"""The detector of the `full` profile: MONAI's 3D RetinaNet for lung nodules.

Network, input and choice of boxes are those of the bundle ``lung_nodule_ct_detection`` 0.6.8 (MONAI model
zoo, ``configs/inference.json``), written out here as constants: no expression of a bundle is evaluated.
Lin et al., Focal loss for dense object detection, ICCV 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.networks.nets.resnet import resnet50
from numpy.typing import NDArray
from torch import Tensor

from inference.types import Volume

SPACING_MM = (0.703125, 0.703125, 1.25)
"""Of the input, along (right, anterior, superior)."""

HU_RANGE = (-1024.0, 300.0)
SIZE_DIVISIBLE = (16, 16, 8)
ANCHORS = ((6, 8, 4), (8, 6, 5), (10, 10, 6))
SCALES = (1, 2, 4)

SCORE_THRESHOLD = 0.02
NMS_IOU = 0.22
MAX_BOXES = 300
CANDIDATES_PER_LEVEL = 1000
OVERLAP = 0.25

BUNDLE_WINDOW = (512, 512, 192)
"""Voxels a window; the bundle's own choice, for a GPU of 16 GB and more."""

SMALL_WINDOW = (192, 192, 96)
"""About the bundle's training patch: for a CPU. Boxes at its borders may differ from the large window's."""

WINDOW_STEP = (64, 64, 32)
"""So that windows of a quarter's overlap begin on whole voxels of the coarsest map."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """What the detector marks, in falling order of score.

    Parameters
    ----------
    centres_lps
        Shape (n, 3), float64, mm, DICOM patient coordinates.
    sizes_mm
        Shape (n, 3), float64: edge lengths along the patient's x, y and z axes (for axes of the volume that
        are not the patient's: along the nearest).
    scores
        Shape (n,), float32, 0..1: the detector's score, no probability of cancer.
    """

    centres_lps: NDArray[np.float64]
    sizes_mm: NDArray[np.float64]
    scores: NDArray[np.float32]


def build_network() -> RetinaNet:
    """Build the network: ResNet-50 (stem 7^3, stride 2, 2, 1), feature pyramid of layers 1 and 2 and a pool.

    Its weights are random until `inference.weights.load_into` has filled them.
    """
    backbone = resnet50(spatial_dims=3, n_input_channels=1, conv1_t_stride=[2, 2, 1], conv1_t_size=[7, 7, 7])
    extractor = resnet_fpn_feature_extractor(
        backbone, spatial_dims=3, pretrained_backbone=False, returned_layers=[1, 2]
    )
    return RetinaNet(
        spatial_dims=3,
        num_classes=1,
        num_anchors=len(ANCHORS),
        feature_extractor=extractor,
        size_divisible=SIZE_DIVISIBLE,
    )


def detect(
    network: RetinaNet,
    volume: Volume,
    *,
    device: str = "cpu",
    window: tuple[int, int, int] | None = None,
    min_score: float = SCORE_THRESHOLD,
) -> Boxes:
    """Mark nodules in a whole CT.

    Parameters
    ----------
    network
        From `build_network`, with weights; is moved to `device` and set to evaluation.
    volume
        HU.
    device
        ``cpu`` or ``cuda``.
    window
        Voxels of the sliding window along (right, anterior, superior), multiples of `WINDOW_STEP`; None for
        `BUNDLE_WINDOW` on a GPU and `SMALL_WINDOW` elsewhere. Cut to the image where that is smaller.
    min_score
        Boxes of lower score are dropped, before non-maximum suppression as in the bundle.

    Raises
    ------
    ValueError
        The window is not a multiple of `WINDOW_STEP`.
    """
    chosen = window or (BUNDLE_WINDOW if device.startswith("cuda") else SMALL_WINDOW)
    if any(size % step or size <= 0 for size, step in zip(chosen, WINDOW_STEP, strict=True)):
        raise ValueError(f"the window {chosen} must be a multiple of {WINDOW_STEP}")
    image, affine = prepare(volume)  # (1, R, A, S)
    detector = _detector(network.to(device).eval(), _fit(chosen, image.shape[1:]), min_score)
    with torch.inference_mode():
        found = detector([image.to(device)], use_inferer=True)[0]
    boxes = found["boxes"].double().cpu().numpy()  # (n, 6): lower and upper corner in voxels
    scores = found["labels_scores"].float().cpu().numpy()
    order = np.argsort(-scores, kind="stable")
    return _to_lps(boxes[order], scores[order], affine)


def _fit(window: tuple[int, int, int], shape: torch.Size) -> tuple[int, ...]:
    """Shrink the window to an image that is smaller: padding costs time and finds nothing."""
    return tuple(
        min(size, -(-extent // step) * step)
        for size, extent, step in zip(window, shape, SIZE_DIVISIBLE, strict=True)
    )


def _detector(network: RetinaNet, window: tuple[int, ...], min_score: float) -> RetinaNetDetector:
    anchors = AnchorGeneratorWithAnchorShape(feature_map_scales=SCALES, base_anchor_shapes=ANCHORS)
    detector = RetinaNetDetector(network, anchors)
    detector.eval()
    detector.set_box_selector_parameters(
        score_thresh=min_score,
        topk_candidates_per_level=CANDIDATES_PER_LEVEL,
        nms_thresh=NMS_IOU,
        detections_per_img=MAX_BOXES,
    )
    # the maps are collected on the CPU, as in the bundle: a whole CT's don't fit beside the window
    detector.set_sliding_window_inferer(
        roi_size=window, sw_batch_size=1, overlap=OVERLAP, mode="constant", device="cpu"
    )
    return detector


def prepare(volume: Volume) -> tuple[Tensor, NDArray[np.float64]]:
    """Turn a volume into the network's input.

    As ``Orientationd("RAS")``, ``Spacingd`` (linear, nearest voxel beyond the border) and
    ``ScaleIntensityRanged`` of the bundle.

    Returns
    -------
    image
        Shape (1, r, a, s), float32, 0..1; axes run to the right, to the front and to the head.
    affine
        Shape (4, 4): voxel indices (r, a, s, 1) of the image to LPS mm.
    """
    axes, flips = _nearest_axes(volume.affine_index_to_lps)
    array = torch.from_numpy(np.ascontiguousarray(volume.array, dtype=np.float32))
    array = array.permute(axes)
    to_index = np.zeros((4, 4))  # image index -> volume index
    to_index[3, 3] = 1.0
    for target, axis in enumerate(axes):
        length, spacing = volume.array.shape[axis], volume.spacing_mm[axis]
        step = SPACING_MM[target] / spacing
        to_index[axis, target] = -step if flips[target] else step
        to_index[axis, 3] = length - 1 if flips[target] else 0
        if flips[target]:
            array = array.flip(target)
        array = _resample(array, target, step)
    low, high = HU_RANGE
    image = ((array - low) / (high - low)).clamp_(0, 1)
    return image[None].contiguous(), volume.affine_index_to_lps @ to_index


def _nearest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """For R, A, S: which axis of the array runs along it, and whether against it."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)  # LPS components by array axis
    left = [0, 1, 2]
    axes: list[int] = []
    for component in range(3):
        best = max(left, key=lambda axis: abs(directions[component, axis]))
        left.remove(best)
        axes.append(best)
    # R and A are the negative L and P
    signs = (-1.0, -1.0, 1.0)
    flips = tuple(bool(signs[item] * directions[item, axes[item]] < 0) for item in range(3))
    return tuple(axes), flips


def _resample(array: Tensor, axis: int, step: float) -> Tensor:
    """Linear interpolation along one axis at 0, step, 2 step, ... voxels; the first voxel stays the first."""
    length = array.shape[axis]
    # as MONAI's Spacing: as many as the rounded extent takes, the last may lie beyond and repeats the border
    count = round((length - 1) / step) + 1
    place = (torch.arange(count, dtype=torch.float64) * step).clamp_(max=length - 1)
    lower = place.floor().long().clamp_(max=max(length - 2, 0))
    weight = (place - lower).float()
    shape = [1] * array.ndim
    shape[axis] = count
    first = array.index_select(axis, lower)
    if length == 1:
        return first
    return torch.lerp(first, array.index_select(axis, lower + 1), weight.view(shape))


def _to_lps(boxes: NDArray[np.float64], scores: NDArray[np.float32], affine: NDArray[np.float64]) -> Boxes:
    """Map voxel boxes to patient coordinates, as ``AffineBoxToWorldCoordinated``: through the affine."""
    centres = (boxes[:, :3] + boxes[:, 3:]) / 2 @ affine[:3, :3].T + affine[:3, 3]
    # image axes are the nearest to the patient's x, y, z in this order
    sizes = (boxes[:, 3:] - boxes[:, :3]) * np.linalg.norm(affine[:3, :3], axis=0)
    return Boxes(centres, sizes, scores)
