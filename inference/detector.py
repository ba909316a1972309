"""Nodule candidates over the whole CT: a small 3D network that marks centres and sizes.

The lung box is brought to 1.25 mm; the network gives, on a grid of 2.5 mm, a heat map of nodule centres and
the logarithm of the diameter (Zhou, Wang and Kraehenbuehl, Objects as points, arXiv 1904.07850, in three
dimensions). Peaks of the map inside the lung field are the candidates; a logistic fitted on cases that the
training didn't see turns their height into a probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from typing import Any

import numpy as np
import torch
from monai.networks.blocks import Convolution, ResidualUnit
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional

from inference.lungs import Lungs
from inference.types import Point, Volume
from inference.weights import load_into, read_weights

GRID_MM = 1.25
STRIDE = 2
"""Voxels of the input along one cell of the map."""

CELL_MM = GRID_MM * STRIDE
MULTIPLE = 8
"""The input's edges are multiples of this."""

CHANNELS = (32, 32, 64, 96)
LOW_HU, HIGH_HU = -1000.0, 500.0
FINE_MM = 0.9
"""Voxels smaller than this are smoothed before they are sampled at `GRID_MM`."""

REFERENCE_MM = 8.0
"""The diameter whose logarithm is 0."""

FIELD_MARGIN_MM = 5.0
BOX_MARGIN_MM = 20.0
SLAB = 160
HALO = 32
COARSE = 2.0
LARGE_MM = 25.0
"""A second run sees the scan as if it were half as large; what it says to measure at least this is kept."""

MAX_PEAKS = 100
LEAST_SCORE = 0.02
SAME_MM = 5.0

_RELU = ("RELU", {"inplace": True})

Singles = NDArray[np.float32]


class CentreNet(nn.Module):
    """Heat map and size from a CT box: an encoder of residual units with three levels and a way back up.

    MONAI's blocks. The first layer takes cubes of 2 x 2 x 2 voxels as eight channels: at full resolution
    nothing is computed.
    """

    def __init__(self, channels: tuple[int, int, int, int] = CHANNELS) -> None:
        super().__init__()
        stem, first, second, third = channels
        self.stem = Convolution(3, 8, stem, strides=1, norm="BATCH", act=_RELU, adn_ordering="NA")
        self.first = _unit(stem, first)
        self.second = _unit(first, second, 2)
        self.third = _unit(second, third, 2)
        self.lateral_third = nn.Conv3d(third, second, 1)
        self.up_second = _unit(second, second)
        self.lateral_second = nn.Conv3d(second, first, 1)
        self.up_first = _unit(first, first)
        self.head = nn.Conv3d(first, 2, 1)
        nn.init.constant_(self.head.bias, 0.0)  # type: ignore[arg-type]  # Conv3d declares an optional bias
        with torch.no_grad():
            self.head.bias[0] = -4.0  # type: ignore[index]  # as above; few cells are centres

    def forward(self, image: Tensor) -> Tensor:
        """Logit of the heat map and log of diameter / 8 mm.

        Parameters
        ----------
        image
            Shape (n, 1, z, y, x), 0..1, edges multiples of `MULTIPLE`.

        Returns
        -------
        Tensor
            Shape (n, 2, z / 2, y / 2, x / 2).
        """
        first = self.first(self.stem(_cubes(image)))  # (n, 32, z/2, y/2, x/2)
        second = self.second(first)  # (n, 64, z/4, ...)
        third = self.third(second)  # (n, 96, z/8, ...)
        second = self.up_second(second + _double(self.lateral_third(third)))
        first = self.up_first(first + _double(self.lateral_second(second)))
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 would make heights equal
            weight = self.head.weight.flatten(1)  # (2, 32)
            answer = functional.linear(first.movedim(1, -1).float(), weight, self.head.bias)
        return answer.movedim(-1, 1)  # as a matrix product: the gradient keeps the channels last


def _unit(entering: int, leaving: int, stride: int = 1) -> ResidualUnit:
    return ResidualUnit(
        3, entering, leaving, strides=stride, subunits=2, norm="BATCH", act=_RELU, adn_ordering="NA"
    )


def _double(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2, mode="trilinear", align_corners=False)


def _cubes(image: Tensor) -> Tensor:
    n, _, z, y, x = image.shape
    cubes = image.reshape(n, z // 2, 2, y // 2, 2, x // 2, 2).permute(0, 2, 4, 6, 1, 3, 5)
    cubes = cubes.reshape(n, 8, z // 2, y // 2, x // 2)
    return cubes.contiguous(memory_format=torch.channels_last_3d)


def window(hu: Tensor) -> Tensor:
    """-1000..500 HU to 0..1."""
    return ((hu - LOW_HU) / (HIGH_HU - LOW_HU)).clamp(0, 1)


def smooth_fine(hu: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    """Binomial smoothing (1, 2, 1) / 4 along the axes whose voxels are smaller than `FINE_MM`.

    Parameters
    ----------
    hu
        Shape (z, y, x), float32; may be changed.
    """
    for axis, spacing in enumerate(spacing_mm):
        if spacing < FINE_MM and hu.shape[axis] > 2:
            size = hu.shape[axis] - 2
            inner = hu.narrow(axis, 1, size)
            ends = hu.narrow(axis, 0, size) + hu.narrow(axis, 2, size)
            inner.mul_(0.5).add_(ends, alpha=0.25)
    return hu


@dataclass(frozen=True, slots=True)
class Detection:
    """A place that may be a nodule.

    Parameters
    ----------
    index
        Fractional voxel index (z, y, x) of the centre.
    diameter_mm
        As the network estimates it.
    probability
        0..1, calibrated.
    centre_lps
        The centre in patient coordinates, mm.
    """

    index: tuple[float, float, float]
    diameter_mm: float
    probability: float
    centre_lps: Point


@dataclass(frozen=True, slots=True)
class Calibration:
    """Probability = logistic of ``slope * logit + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, logit: float) -> float:
        """Probability of a peak of this height."""
        return float(1 / (1 + np.exp(-np.clip(self.slope * logit + self.intercept, -30, 30))))


@dataclass(frozen=True, slots=True)
class Peaks:
    """Maxima of the map, highest first.

    Parameters
    ----------
    index
        Fractional index in the volume, (n, 3).
    logit
        Height, (n,).
    diameter_mm
        (n,).
    """

    index: NDArray[np.float64]
    logit: NDArray[np.float64]
    diameter_mm: NDArray[np.float64]


class Detector:
    """The network with what turns its map into candidates.

    Parameters
    ----------
    network
        With weights; is moved to `device` and set to evaluation.
    calibration
        Of the peaks' height.
    device
        ``cpu`` or ``cuda``.
    """

    def __init__(
        self, network: CentreNet, calibration: Calibration | None = None, *, device: str = "cpu"
    ) -> None:
        self._network = network.to(device).eval().to(memory_format=torch.channels_last_3d)
        self._calibration = calibration or Calibration()
        self._device = torch.device(device)

    def detect(self, volume: Volume, lungs: Lungs) -> tuple[Detection, ...]:
        """Mark what may be a nodule of 3 to 40 mm.

        Parameters
        ----------
        volume
            CT in HU.
        lungs
            Its lung field; nothing further than about `FIELD_MARGIN_MM` outside is marked.

        Returns
        -------
        tuple of Detection
            At most `MAX_PEAKS`, in falling order of probability. The same input gives the same marks.
        """
        peaks = self.peaks(volume, lungs)
        points = volume.index_to_lps(peaks.index) if len(peaks.logit) else np.zeros((0, 3))
        return tuple(
            Detection(
                (float(index[0]), float(index[1]), float(index[2])),
                float(diameter),
                self._calibration(float(logit)),
                (float(point[0]), float(point[1]), float(point[2])),
            )
            for index, logit, diameter, point in zip(
                peaks.index, peaks.logit, peaks.diameter_mm, points, strict=True
            )
        )

    def peaks(self, volume: Volume, lungs: Lungs) -> Peaks:
        """Maxima of the map before calibration, of nodules and, from a smaller image, of masses."""
        shrunk = volume.affine_index_to_lps @ np.diag([1 / COARSE] * 3 + [1.0])
        fine = self._peaks(volume, lungs)
        coarse = self._peaks(replace(volume, affine_index_to_lps=shrunk), lungs)
        large = coarse.diameter_mm * COARSE >= LARGE_MM
        index = np.concatenate([fine.index, coarse.index[large]])
        logit = np.concatenate([fine.logit, coarse.logit[large]])
        diameter = np.concatenate([fine.diameter_mm, COARSE * coarse.diameter_mm[large]])
        order = np.argsort(-logit, kind="stable")
        kept = _apart(index[order] * np.array(volume.spacing_mm), diameter[order])[:MAX_PEAKS]
        return Peaks(index[order][kept], logit[order][kept], diameter[order][kept])

    @torch.inference_mode()
    def _peaks(self, volume: Volume, lungs: Lungs) -> Peaks:
        image, field, corner = sample_lung_box(volume, lungs)
        maps = self._maps(image)
        cells = functional.max_pool3d(field[None, None], STRIDE, ceil_mode=True)
        reach = 2 * round(FIELD_MARGIN_MM / CELL_MM) + 1
        near = functional.max_pool3d(cells, reach, stride=1, padding=reach // 2)[0, 0] > 0.5
        cell, logit, diameter = find_peaks(maps, near)
        index = (cell + 0.5) * STRIDE - 0.5  # in voxels of the sampled box
        source = corner + index * (GRID_MM / np.array(volume.spacing_mm))
        return Peaks(source, logit, diameter)

    def _maps(self, image: Tensor) -> Tensor:
        """Run the network over slabs along z; shape (2, z / 2, y / 2, x / 2), float32."""
        device, parts = self._device, []
        with torch.autocast(device.type, torch.bfloat16, enabled=_half_pays(device)):
            for start in range(0, image.shape[0], SLAB):
                low, high = max(start - HALO, 0), min(start + SLAB + HALO, image.shape[0])
                answer = self._network(window(image[None, None, low:high].to(device)))[0].float().cpu()
                skip, size = (start - low) // STRIDE, min(SLAB, image.shape[0] - start) // STRIDE
                parts.append(answer[:, skip : skip + size])
        return torch.cat(parts, 1)


def _half_pays(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware: elsewhere it is slower than float32."""
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001  # torch has no public name
    return True


def sample_lung_box(volume: Volume, lungs: Lungs) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    """Bring the lung box with a margin to `GRID_MM`.

    Returns
    -------
    image
        HU, float32, shape (z, y, x), edges multiples of `MULTIPLE`; beyond the scan its border is repeated.
    field
        float32, same shape, 1 in the lung field.
    corner
        Fractional index in the volume of the first voxel, (3,).
    """
    spacing = volume.spacing_mm
    places = [
        (max(s.start - round(BOX_MARGIN_MM / d), 0), min(s.stop + round(BOX_MARGIN_MM / d), n))
        for s, d, n in zip(lungs.bounds(), spacing, volume.array.shape, strict=True)
    ]
    box = tuple(slice(*place) for place in places)
    cut = volume.array[box], lungs.labels[box] > 0
    counts = [
        -(-int(np.ceil(size / (GRID_MM / distance))) // MULTIPLE) * MULTIPLE
        for size, distance in zip(cut[0].shape, spacing, strict=True)
    ]
    image, field = (
        _sampled(
            part,
            [
                _weights(size, distance, count, is_smooth=is_smooth)
                for size, distance, count in zip(part.shape, spacing, counts, strict=True)
            ],
        )
        for part, is_smooth in zip(cut, (True, False), strict=True)
    )
    corner = np.array([low for low, _ in places], np.float64)
    return image, field, corner


def _weights(size: int, spacing: float, count: int, *, is_smooth: bool) -> csr_array:
    """Linear interpolation at 0, `GRID_MM`, twice that, ..., the border repeated: (count, size).

    With the smoothing of `smooth_fine` in it, so that only what is sampled gets smoothed.
    """
    place = np.minimum(np.arange(count) * (GRID_MM / spacing), size - 1)
    lower = np.minimum(place.astype(np.int64), max(size - 2, 0))
    linear = np.zeros((count, size), np.float32)
    linear[np.arange(count), lower] = 1 - (place - lower)
    linear[np.arange(count), np.minimum(lower + 1, size - 1)] += (place - lower).astype(np.float32)
    if is_smooth:
        linear = linear @ smooth_fine(torch.eye(size)[:, None], (spacing, math.inf, math.inf))[:, 0].numpy()
    return csr_array(linear)


def _sampled(array: NDArray[Any], weights: list[csr_array]) -> Tensor:
    """Weighted sums along each axis, float32, one slice at a time."""
    along_z, along_y, along_x = weights
    out = np.empty([one.shape[0] for one in weights], np.float32)
    for number in range(len(out)):
        row = along_z[[number]]
        plane = np.zeros(array.shape[1:], np.float32)
        for index, weight in zip(row.indices, row.data, strict=True):
            plane += weight * array[index]
        out[number] = (along_x @ np.ascontiguousarray((along_y @ plane).T)).T
    return torch.from_numpy(out)


def find_peaks(
    maps: Tensor, near: Tensor, *, most: int = MAX_PEAKS, least: float = LEAST_SCORE
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Maxima of a map, without weaker ones of the same nodule.

    Parameters
    ----------
    maps
        float32, shape (2, z, y, x): logit and log of diameter / `REFERENCE_MM`.
    near
        bool, shape (z, y, x): where a maximum may lie.
    most, least
        How many at most; least height as a probability.

    Returns
    -------
    cell
        (n, 3), fractional, refined by the heights around the maximum.
    logit, diameter_mm
        (n,), in falling order of logit.
    """
    height = torch.sigmoid(maps[0])
    top = functional.max_pool3d(height[None, None], 3, stride=1, padding=1)[0, 0]
    at = torch.nonzero((height >= top) & near & (height > least))  # (n, 3)
    values = height[at[:, 0], at[:, 1], at[:, 2]].double().numpy()
    order = np.lexsort((*at.numpy().T[::-1], -values))[: 4 * most]
    cells = at.numpy()[order]
    sizes = REFERENCE_MM * np.exp(maps[1].numpy()[tuple(cells.T)].astype(np.float64).clip(-1.5, 2.5))
    centres = np.array([_refined(height.numpy(), cell) for cell in cells]).reshape(-1, 3)
    kept = _apart(centres * CELL_MM, sizes)[:most]
    return centres[kept], maps[0].numpy()[tuple(cells[kept].T)].astype(np.float64), sizes[kept]


def _apart(points_mm: NDArray[np.float64], sizes_mm: NDArray[np.float64]) -> list[int]:
    """Which of the places, best first, lie in no better one."""
    kept: list[int] = []
    for number in range(len(points_mm)):
        gaps = np.linalg.norm(points_mm[kept] - points_mm[number], axis=1)
        if (gaps > np.maximum(sizes_mm[kept] / 2, SAME_MM)).all():
            kept.append(number)
    return kept


def _refined(height: Singles, cell: NDArray[np.int64]) -> NDArray[np.float64]:
    """Centre of mass of the 3 x 3 x 3 heights around a maximum, less the lowest of them."""
    low, high = np.maximum(cell - 1, 0), np.minimum(cell + 2, height.shape)
    part = height[low[0] : high[0], low[1] : high[1], low[2] : high[2]].astype(np.float64)
    part = part - part.min() + 1e-9
    return np.array([(part * grid).sum() / part.sum() for grid in np.indices(part.shape)]) + low


def load_detector(
    path: Traversable, sha256: str, calibration: Calibration | None = None, *, device: str = "cpu"
) -> Detector:
    """Load the reference detector.

    Raises
    ------
    ModelUnavailableError
        The file is missing, differs from the recorded sha256, or doesn't fit the network.
    """
    network = CentreNet()
    load_into(network, read_weights(path, sha256), name=path.name)
    return Detector(network, calibration, device=device)
