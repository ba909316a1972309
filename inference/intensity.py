"""Grey values: HU windows, and the HU of slices that were scaled to 8 bit from their own minimum to maximum.

The scaling loses two numbers for each slice. `HounsfieldEstimate` reads them from the histogram: where
aerated lung (about -850 HU) and soft tissue and blood (about 0 to 50 HU) lie.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LOW_HU: Final = -1000.0
HIGH_HU: Final = 500.0
"""The window of all networks here, as of Zhuang et al. (arXiv 2504.21344)."""

LUNG_ANCHOR_HU: Final = -850.0
WATER_ANCHOR_HU: Final = 0.0

_PERCENTILES: Final = np.r_[0.1, 0.5, np.linspace(1, 99, 40), 99.5, 99.9]
_INNER_PERCENTILES: Final = np.array([0, 5, 25, 50, 75, 95, 100])
_BINS: Final = 128
FEATURES: Final = len(_PERCENTILES) + _BINS + len(_INNER_PERCENTILES) + 1


def window(hu: NDArray[Any]) -> NDArray[np.float32]:
    """Clip to -1000..500 HU and scale to 0..1, float32, shape kept."""
    return np.asarray(np.clip((hu - LOW_HU) / (HIGH_HU - LOW_HU), 0.0, 1.0), dtype=np.float32)


def describe_slice(scaled: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the estimate looks at.

    Parameters
    ----------
    scaled
        uint8, shape (y, x), about 96 x 96 at native resolution.

    Returns
    -------
    numpy.ndarray
        float32, shape (`FEATURES`,): percentiles, smoothed histogram, percentiles and mean of the middle.
    """
    height, width = scaled.shape
    values = scaled.astype(np.float32)
    inner = values[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    middle = values[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]
    histogram = np.bincount(scaled.ravel(), minlength=256) / scaled.size
    smooth = np.convolve(histogram, np.full(5, 0.2), "same").reshape(_BINS, -1).sum(1) * 20
    parts = (
        np.percentile(values, _PERCENTILES) / 255,
        smooth,
        np.percentile(inner, _INNER_PERCENTILES) / 255,
        [middle.mean() / 255],
    )
    return np.concatenate(parts).astype(np.float32)


class HounsfieldEstimate(nn.Module):
    """From the histogram of a scaled slice to the grey values of lung and water."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 128),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(128, 64),
            nn.GELU(),
            nn.Linear(64, 2),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Grey values / 255 of -850 HU and of 0 HU: (n, `FEATURES`) to (n, 2)."""
        answer: Tensor = self.layers((features - self.mean) / self.deviation)
        return answer

    @torch.inference_mode()
    def hounsfield(self, scaled: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Estimated HU of slices, each scaled by itself.

        Parameters
        ----------
        scaled
            uint8, shape (n, y, x).

        Returns
        -------
        numpy.ndarray
            float32, same shape, HU.
        """
        self.eval()
        anchors = self(torch.from_numpy(np.stack([describe_slice(one) for one in scaled]))).double().numpy()
        lung, water = anchors[:, 0], np.maximum(anchors[:, 1], anchors[:, 0] + 0.05)
        slope = (WATER_ANCHOR_HU - LUNG_ANCHOR_HU) / (255 * (water - lung))
        hu = LUNG_ANCHOR_HU + slope[:, None, None] * (scaled - 255 * lung[:, None, None])
        return np.asarray(hu, dtype=np.float32)
