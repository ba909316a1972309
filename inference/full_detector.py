"""The published detector of the `full` profile in the place of the reference profile's.

Everything behind it (structure, outline, reading) stays the reference profile's: nothing that could take
their place is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Final

import numpy as np
from monai.apps.detection.networks.retinanet_network import RetinaNet
from numpy.typing import NDArray

from inference.detector import FIELD_MARGIN_MM, Detection
from inference.lungs import Lungs
from inference.retinanet import build_network, detect
from inference.types import Volume
from inference.weights import load_into, read_weights

NETWORK: Final = "monai-retinanet"
"""In the card's ``[source]``, as `inference.published` names it."""


@dataclass(frozen=True, slots=True)
class PublishedDetector:
    """MONAI's RetinaNet, which marks nodules as `inference.detector.Detector` does.

    Parameters
    ----------
    network
        With its weights.
    device
        ``cpu`` or ``cuda``.
    """

    network: RetinaNet
    device: str = "cpu"

    def detect(self, volume: Volume, lungs: Lungs) -> tuple[Detection, ...]:
        """Mark nodules.

        Parameters
        ----------
        volume
            CT in HU.
        lungs
            Its lung field; what has none of it within `FIELD_MARGIN_MM` is left out.

        Returns
        -------
        tuple of Detection
            In falling order of score. ``probability`` is the network's score, which nobody calibrated here;
            ``diameter_mm`` the mean edge of its box.
        """
        boxes = detect(self.network, volume, device=self.device)
        index = volume.lps_to_index(boxes.centres_lps)
        return tuple(
            Detection(
                (float(place[0]), float(place[1]), float(place[2])),
                float(np.mean(size)),
                float(score),
                (float(point[0]), float(point[1]), float(point[2])),
            )
            for place, size, score, point in zip(
                index, boxes.sizes_mm, boxes.scores, boxes.centres_lps, strict=True
            )
            if _near(lungs, place, volume.spacing_mm)
        )


def _near(lungs: Lungs, place: NDArray[np.float64], spacing_mm: tuple[float, float, float]) -> bool:
    """Whether the lung field reaches into the cube of `FIELD_MARGIN_MM` on each side of a place."""
    reach = FIELD_MARGIN_MM / np.array(spacing_mm)
    first = np.maximum(np.floor(place - reach), 0).astype(int)
    last = np.maximum(np.ceil(place + reach) + 1, 0).astype(int)
    return bool(lungs.labels[tuple(slice(a, b) for a, b in zip(first, last, strict=True))].any())


def load_published_detector(path: Traversable, sha256: str, *, device: str = "cpu") -> PublishedDetector:
    """Load the converted weights of the bundle.

    Raises
    ------
    ModelUnavailableError
        The file is missing, differs or doesn't fit.
    """
    network = build_network()
    load_into(network, read_weights(path, sha256), name=NETWORK)
    return PublishedDetector(network, device)
