"""What the reference CADx says of LIDC-IDRI nodules, written once for the training of the fusion.

    python -m inference.train.fusion_features --data DIR --out features.npz

DIR holds ``slices_images.tar``, ``slices_masks.npz``, ``slices_nodules.csv`` and
``lidc_annotations.sqlite.xz`` (docs/training.md). Each rated nodule is read under the mask that half of its
readers drew, with the weights in the package: what learns from the file sees what a node sees. A few
minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import io
import logging
import lzma
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from inference.cadx import CadxReading, NineViewReader, build_reader
from inference.datasets.lidc_crops import RATINGS, NoduleCrop, read_crops
from inference.durable import replace_file
from inference.intensity import HounsfieldEstimate
from inference.measure import measure
from inference.registry import CLASSIFICATION, HOUNSFIELD, TEXT, load_pipeline
from inference.train.cadx_data import Nodule, nodules_of, read_readings
from inference.types import SourceFrame, Volume
from inference.views import Spacing
from inference.weights import load_into, read_weights

_LOG = logging.getLogger(__name__)

CROPS_PROFILE = "crops"
"""Of the estimate of HU in scaled slices."""


def read_rated(folder: Path) -> list[Nodule]:
    """The nodules of a collection whose ratings are certain, with estimated HU."""
    table = folder / "slices_nodules.csv"
    crops = read_crops(folder / "slices_images.tar", folder / "slices_masks.npz", table)
    estimate = HounsfieldEstimate()
    load_into(estimate, read_weights(*load_pipeline(CROPS_PROFILE).weights(HOUNSFIELD)))
    with TemporaryDirectory() as place:
        database = Path(place) / "annotations.sqlite"
        with lzma.open(folder / "lidc_annotations.sqlite.xz") as packed, database.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
        readings = read_readings(database, table)
    hounsfield = {crop.name: _hounsfield(estimate, crop) for crop in track(crops, "grey values")}
    return [one for one in nodules_of(crops, hounsfield, readings) if len(one.ratings)]


def _hounsfield(estimate: HounsfieldEstimate, crop: NoduleCrop) -> NDArray[np.int16]:
    return np.clip(estimate.hounsfield(crop.image), -1100, 3000).astype(np.int16)


def reference_reader() -> NineViewReader:
    """The CADx of the profile ``reference``."""
    pipeline = load_pipeline()
    text = read_weights(*pipeline.weights(TEXT))
    return build_reader(text, read_weights(*pipeline.weights(CLASSIFICATION)))


def longest_diameter_mm(nodule: Nodule) -> float:
    """Of the mask that half of the readers drew, measured as a finding's; NaN where that mask is empty."""
    mask = nodule.consensus
    if not mask.any():
        return float("nan")
    affine = np.eye(4)
    affine[:3, :3] = np.diag(nodule.spacings[-1][::-1])[:, ::-1]
    frames = tuple(SourceFrame("", str(number)) for number in range(len(mask)))
    grid = Volume(np.zeros(mask.shape, np.int16), affine, "", "", "", frames)
    return measure(grid, mask, (0, 0, 0)).measurements.long_axis_mm


class Reader(Protocol):
    """Reads a nodule, as `inference.cadx.NineViewReader` does."""

    def read(self, hu: NDArray[Any], spacing_mm: Spacing, mask: NDArray[np.bool_]) -> CadxReading:
        """Read one nodule of a strip of slices."""
        ...


def features(nodules: Sequence[Nodule], reader: Reader) -> dict[str, NDArray[Any]]:
    """Read nodules.

    Returns
    -------
    dict
        Arrays of n nodules: ``patient``, ``nodule``, ``split``, ``image_logit`` (n,), ``embedding`` (n, 256),
        ``views`` (n, 9, 256; float16), ``ratings`` (n, 9; means of the readers in the order of `RATINGS`),
        ``malignancy`` (n,; mean) and ``diameter_mm`` (n,).
    """
    shown = [one for one in nodules if one.consensus.any()]
    read = [reader.read(one.hu, one.spacings[-1], one.consensus) for one in track(shown, "nodules")]
    ratings = np.stack([one.ratings.mean(0) for one in shown])
    return {
        "patient": np.array([one.patient for one in shown]),
        "nodule": np.array([one.name for one in shown]),
        "split": np.array([one.split.value for one in shown]),
        "image_logit": np.array([one.logit for one in read], np.float32),
        "embedding": np.stack([one.embedding for one in read]),
        "views": np.stack([one.views for one in read]).astype(np.float16),
        "ratings": ratings,
        "malignancy": ratings[:, RATINGS.index("malignancy")].astype(np.float64),
        "diameter_mm": np.array([longest_diameter_mm(one) for one in shown]),
    }


def write_features(folder: Path, out: Path) -> None:
    """Read the collection in `folder` and write the NPZ in one step."""
    found = features(read_rated(folder), reference_reader())
    content = io.BytesIO()
    np.savez_compressed(content, **found)  # type: ignore[arg-type]  # numpy's stub takes the names for its own
    replace_file(out, [content.getvalue()])
    _LOG.info("%s: %d nodules", out, len(found["patient"]))


def main() -> None:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the collection")
    parser.add_argument("--out", type=Path, required=True, help="NPZ")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    write_features(chosen.data, chosen.out)


if __name__ == "__main__":
    main()
