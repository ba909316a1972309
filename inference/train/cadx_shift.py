"""How the segmenter's masks move the CADx's malignancy: ``python -m inference.train.cadx_shift --help``.

Its calibration was fitted under readers' outlines; the node reads under the segmenter's masks. On the
validation patients both are read, in crops centred as the detector delivers them, and the shift of the logit
is found that gives both the same mean probability. The readers' ratings take no part, so they can judge it:
log loss, Brier score and calibration error with and without the shift are told, with intervals by patient.
The shift goes into the card (``malignancy_shift``).
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy.optimize import brentq

from inference.datasets.lidc_crops import NoduleCrop, Split, read_crops, split_of
from inference.evaluate.crop_models import load_crop_models
from inference.evaluate.lidc_crops import CropModels, centred_frame, generator, segmented, target
from inference.evaluate.metrics import PatientBootstrap, calibration_error, least_calibration_error
from inference.stack import SENTENCE

_LOG = logging.getLogger(__name__)
_WIDEST = 10.0
_LEAST = 1e-6

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Nodules read under two masks.

    Parameters
    ----------
    patients
        Of each nodule.
    drawn, found
        Malignancy under the readers' outline and under the segmenter's mask, shape (n,).
    medians
        Of the readers' ratings, shape (n,).
    """

    patients: list[str]
    drawn: Floats
    found: Floats
    medians: Floats


def read_pairs(crops: Sequence[NoduleCrop], models: CropModels, seed: int) -> Pairs:
    """Read each nodule twice; those that the segmenter doesn't find are left out."""
    patients, rows = [], []
    for crop in track(crops, "nodules"):
        frame = centred_frame(crop, generator(seed, crop.name))
        mask = segmented(models, frame, SENTENCE)
        if mask.any():
            outline = frame.truth(target(crop))
            read = (models.classify(frame.crop, one).malignancy for one in (outline, mask))
            rows.append((*read, crop.ratings["malignancy"]))
            patients.append(crop.patient)
    return Pairs(patients, *np.array(rows, np.float64).T)


def find_shift(drawn: Floats, found: Floats, weights: Floats | None = None) -> float:
    """What to add to the logits of `found` so that its mean is that of `drawn`."""
    weights = np.ones(len(drawn)) if weights is None else weights
    aim = float(weights @ drawn)
    return float(brentq(lambda shift: float(weights @ shifted(found, shift)) - aim, -_WIDEST, _WIDEST))


def shifted(probabilities: Floats, shift: float) -> Floats:
    """Probabilities whose logits are `shift` higher."""
    clipped = np.clip(probabilities, _LEAST, 1 - _LEAST)
    return np.asarray(1 / (1 + (1 - clipped) / clipped * np.exp(-shift)))


def describe(pairs: Pairs, *, resamples: int, seed: int) -> dict[str, str]:
    """The shift, and what the ratings say of the probabilities without and with it (score 3 left out)."""
    every = PatientBootstrap(pairs.patients, resamples=resamples, seed=seed)
    shift = find_shift(pairs.drawn, pairs.found)
    told = {
        "nodules": str(len(pairs.drawn)),
        "shift": every.estimate(partial(find_shift, pairs.drawn, pairs.found)).text(),
    }
    clear = np.flatnonzero(pairs.medians != 3)
    patients = [pairs.patients[row] for row in clear]
    bootstrap = PatientBootstrap(patients, resamples=resamples, seed=seed)
    labels = pairs.medians[clear] > 3
    told["nodules rated above or below 3"] = str(len(clear))
    for words, chance in (("as it is", pairs.found[clear]), ("shifted", shifted(pairs.found[clear], shift))):
        loss = -np.log(np.clip(np.where(labels, chance, 1 - chance), _LEAST, 1))
        error = bootstrap.estimate(partial(_calibration_error, labels, chance))
        told[f"log loss, {words}"] = bootstrap.mean(loss).text()
        told[f"Brier score, {words}"] = bootstrap.mean((chance - labels) ** 2).text()
        told[f"calibration error, {words}"] = error.text()
        told[f"calibration error, {words}, of a perfect model"] = least_calibration_error(
            chance, len(set(patients)), seed=seed
        ).text()
    return told


def _calibration_error(labels: Mask, chance: Floats, weights: Floats) -> float:
    return calibration_error(labels, chance, weights=weights)


def main() -> None:
    """Parse the arguments, read, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "masks", "table"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--profile", default="reference")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of the places and of the bootstrap")
    parser.add_argument("--resamples", type=int, default=1000)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    crops = [
        crop
        for crop in read_crops(arguments.images, arguments.masks, arguments.table)
        if split_of(crop.patient) is Split.VAL and crop.is_trusted and crop.readers
    ]
    models = load_crop_models(arguments.profile, arguments.device).models
    told = describe(
        read_pairs(crops, models, arguments.seed), resamples=arguments.resamples, seed=arguments.seed
    )
    _LOG.info("%s", json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
