"""Train the HU estimate of scaled slices: ``python -m inference.train.intensity --help``.

Truth: the largest slice of the same nodule in stored values (``maxslice_raw71.npz``, 71 x 71). A strip's
slice that correlates with it above 0.998 gives slope and intercept by least squares. Two minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.datasets.lidc_crops import NoduleCrop, Split, read_crops, split_of
from inference.intensity import LUNG_ANCHOR_HU, WATER_ANCHOR_HU, HounsfieldEstimate, describe_slice
from inference.weights import write_weights

_LOG = logging.getLogger(__name__)

RAW_SIDE, CORE, SLACK = 71, 31, 4
MIN_CORRELATION = 0.998

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScaledSlice:
    """A slice whose scaling is known: HU = slope * grey value + intercept."""

    patient: str
    image: NDArray[np.uint8]
    slope: float
    intercept: float


def match(crops: Sequence[NoduleCrop], raw_file: Path, raw_table: Path) -> list[ScaledSlice]:
    """Find, for each strip, the slice that the other collection holds in stored values."""
    with np.load(raw_file, allow_pickle=False) as archive:
        raw = dict(zip(archive["noduleID"].tolist(), archive["raw"].astype(np.float64), strict=True))
    rows: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    with raw_table.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            rows[row["patient"]].append(row)
    matches = (_match_one(crop, rows[crop.patient], raw) for crop in crops)
    return [one for one in matches if one is not None]


def _match_one(
    crop: NoduleCrop, rows: Sequence[Mapping[str, str]], raw: Mapping[int, Floats]
) -> ScaledSlice | None:
    """Normalised cross-correlation of the middle 31 x 31 at shifts of up to 4 pixels, on every slice."""
    start = (crop.image.shape[1] - CORE) // 2
    field = crop.image[:, start - SLACK : start + CORE + SLACK, start - SLACK : start + CORE + SLACK]
    windows = sliding_window_view(field.astype(np.float64), (CORE, CORE), axis=(1, 2))
    windows = windows.reshape(*windows.shape[:3], -1)
    windows = windows - windows.mean(-1, keepdims=True)
    norms = np.linalg.norm(windows, axis=-1) + 1e-9
    highest = MIN_CORRELATION
    place: tuple[int, ...] = ()
    chosen: Mapping[str, str] = {}
    for row in rows:
        core = raw[int(row["noduleID"])][20 : 20 + CORE, 20 : 20 + CORE].ravel()
        core = core - core.mean()
        correlation = windows @ core / (norms * (np.linalg.norm(core) + 1e-9))
        if correlation.max() > highest:
            highest, chosen = float(correlation.max()), row
            place = tuple(int(one) for one in np.unravel_index(correlation.argmax(), correlation.shape))
    if not chosen:
        return None
    top = start + place[1] - SLACK - 20
    left = start + place[2] - SLACK - 20
    grey = crop.image[place[0], top : top + RAW_SIDE, left : left + RAW_SIDE].astype(np.float64)
    hu = raw[int(chosen["noduleID"])] + float(chosen["intercept_known"] or chosen["intercept_guess"])
    hu = hu[: grey.shape[0], : grey.shape[1]]
    inside = (grey > 2) & (grey < 253)
    slope, intercept = np.polyfit(grey[inside], hu[inside], 1)
    return ScaledSlice(crop.patient, crop.image[place[0]], float(slope), float(intercept))


def train(slices: Sequence[ScaledSlice], epochs: int, seed: int) -> HounsfieldEstimate:
    """Fit on the training patients; the same numbers give the same network."""
    torch.manual_seed(seed)
    chosen = [one for one in slices if split_of(one.patient) is Split.TRAIN]
    features = torch.from_numpy(np.stack([describe_slice(one.image) for one in chosen]))  # (n, FEATURES)
    truth = torch.from_numpy(np.stack([anchors(one) for one in chosen]))  # (n, 2)
    network = HounsfieldEstimate()
    network.mean.copy_(features.mean(0))
    network.deviation.copy_(features.std(0) + 1e-3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, total_iters=epochs)
    for _ in range(epochs):
        network.train()
        for batch in torch.split(torch.randperm(len(chosen)), 128):
            noise = 0.05 * network.deviation * torch.randn(len(batch), features.shape[1])
            loss = functional.smooth_l1_loss(network(features[batch] + noise), truth[batch], beta=0.02)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        schedule.step()
    return network.eval()


def anchors(one: ScaledSlice) -> NDArray[np.float32]:
    """Grey values / 255 of -850 HU and of 0 HU."""
    levels = np.array([LUNG_ANCHOR_HU, WATER_ANCHOR_HU])
    return np.asarray((levels - one.intercept) / (255 * one.slope), dtype=np.float32)


def errors(network: HounsfieldEstimate, slices: Sequence[ScaledSlice], level: float) -> Floats:
    """Estimated less true HU at the grey value of one true HU level, shape (n,)."""
    found: list[float] = []
    for one in slices:
        grey = (level - one.intercept) / one.slope
        hu = network.hounsfield(one.image[None])[0].ravel().astype(np.float64)
        slope, intercept = np.polyfit(one.image.ravel(), hu, 1)
        found.append(float(slope * grey + intercept - level))
    return np.array(found)


def tensors_of(network: HounsfieldEstimate) -> dict[str, Tensor]:
    """What is stored."""
    return {key: value.detach() for key, value in network.state_dict().items()}


def main() -> None:
    """Parse the arguments, match, train, measure on the other patients, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "masks", "table", "raw", "raw-table", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    crops = read_crops(arguments.images, arguments.masks, arguments.table)
    slices = match(crops, arguments.raw, arguments.raw_table)
    _LOG.info("%d of %d strips matched", len(slices), len(crops))
    network = train(slices, arguments.epochs, arguments.seed)
    for split in (Split.VAL, Split.TEST):
        part = [one for one in slices if split_of(one.patient) is split]
        for level in (-850.0, -500.0, 0.0, 300.0):
            found = errors(network, part, level)
            _LOG.info(
                "%s, %d slices, at %.0f HU: mean %.0f, mean absolute %.0f, 90th percentile of absolute %.0f",
                split, len(part), level, found.mean(), np.abs(found).mean(), np.percentile(np.abs(found), 90),
            )  # fmt: skip
    digest = write_weights(
        tensors_of(network), arguments.out, {"name": "HU of scaled slices", "seed": str(arguments.seed)}
    )
    _LOG.info("%s sha256 %s", arguments.out, digest)


if __name__ == "__main__":
    main()
