"""Train the fusion head: ``python -m inference.train.fusion --export cadx.npz --out fusion.safetensors``.

The images are real, the records are synthetic (`inference.train.records`): one for each patient, drawn anew
each epoch by whether the patient has a nodule with a mean malignancy rating above 3. Nodules rated exactly 3
are left out. The export of ``python -m inference.train.cadx --export`` gives embedding, logit and rating of
each nodule; VAL patients choose the epoch and calibrate, TEST patients are only reported.

CADx has seen the TRAIN nodules, so their logits are far too sure. While training each is therefore replaced
by a draw from a normal distribution of its class, fitted to the VAL logits. Before, the head learns to read
records by themselves, of invented patients without images. A minute or two on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from inference.datasets.lidc_crops import read_crops
from inference.digest import sha256_of
from inference.evaluate.metrics import PatientBootstrap, brier, calibration_error
from inference.fusion import SYNTHETIC_STATEMENT, FusionNetwork, TextTower, clip_text_tower
from inference.train.fusion_data import Draw, Drawer, Samples, measured_diameters, read_export
from inference.train.records import POOL, RecordSource
from inference.weights import load_into, read_weights, write_weights

_LOG = logging.getLogger(__name__)

MISSING = 0.25
NO_PART = 0.4
NO_IMAGE = 0.4
REHEARSED, REHEARSALS = 4000, 30
VAL_DRAWS, TEST_DRAWS = 10, 10
RESAMPLES = 1000
RIDGE = 1e-3

Floats = NDArray[np.float64]


def fit_line(x: Floats, y: NDArray[np.bool_], offset: Floats | None = None) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of y on x (Platt), beside a fixed part of the logit."""
    fixed = np.zeros(len(x)) if offset is None else offset
    no_change = np.array([1.0, 0.0])

    def loss(beta: Floats) -> float:
        return loss_of(fixed + beta[0] * x + beta[1], y) + RIDGE * float(((beta - no_change) ** 2).sum())

    slope, intercept = minimize(loss, no_change).x
    return float(slope), float(intercept)


def honest_logits(train: Samples, val: Samples, rng: np.random.Generator) -> Floats:
    """Logits for TRAIN nodules as they would be on unseen patients, shape (n,)."""
    logit = np.zeros(len(train.malignant))
    for truth in (False, True):
        seen = val.logit[val.malignant == truth]
        logit[train.malignant == truth] = rng.normal(
            seen.mean(), seen.std(), int((train.malignant == truth).sum())
        )
    return logit


def start(train: Samples, seed: int) -> FusionNetwork:
    """An untrained network that knows the scale of the embeddings."""
    torch.manual_seed(seed)
    network = FusionNetwork()
    embedding = torch.from_numpy(train.embedding)
    network.image_mean.copy_(embedding.mean(0))
    network.image_deviation.copy_(embedding.std(0).clamp_min(1e-4))
    network.reads_brock.fill_(bool(train.facts))
    return network


@dataclass(frozen=True)
class Step:
    """One optimisation step: what is seen of some nodules beside their records."""

    image: Tensor | None
    given: Tensor
    truth: Tensor


def take_step(
    network: FusionNetwork, optimizer: torch.optim.Optimizer, step: Step, draw: Draw, rng: np.random.Generator
) -> None:
    """Text and table are left out of some rows at random."""
    count = len(step.truth)
    has_table = draw.has_record & torch.from_numpy(rng.random(count) >= NO_PART)
    has_text = draw.has_record & torch.from_numpy(rng.random(count) >= NO_PART)
    correction = network(step.image, draw.text, draw.table, has_text, has_table)
    loss = functional.binary_cross_entropy_with_logits(step.given + correction, step.truth)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch types it so
    optimizer.step()


def batches(count: int, size: int, rng: np.random.Generator) -> list[Tensor]:
    """All rows in random order, in batches of about `size`."""
    order = rng.permutation(count)
    return [torch.from_numpy(rows) for rows in np.array_split(order, max(1, count // size))]


def rehearse(network: FusionNetwork, samples: Samples, drawer: Drawer, rng: np.random.Generator) -> None:
    """Learn to read records by themselves, of many invented patients; no image is shown."""
    network.train()
    malignant = np.arange(REHEARSED) % 2 == 0
    facts = (
        [samples.facts[row] for row in rng.integers(len(samples.facts), size=REHEARSED)]
        if samples.facts
        else ()
    )
    patients = Samples(
        patient=np.arange(REHEARSED),
        names=(),
        malignant=malignant,
        logit=np.zeros(REHEARSED),
        embedding=np.zeros((REHEARSED, 0), np.float32),
        facts=tuple(facts),
        patient_malignant=malignant,
    )
    truth = torch.from_numpy(malignant).float()
    draws = [drawer.draw(patients, MISSING * level, brock=level != 1) for level in range(3)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    for _ in range(REHEARSALS):
        for draw in draws:
            for rows in batches(REHEARSED, 256, rng):
                step = Step(None, torch.zeros(len(rows)), truth[rows])
                take_step(network, optimizer, step, draw.rows(rows), rng)


def train_epoch(
    network: FusionNetwork,
    optimizer: torch.optim.Optimizer,
    parts: dict[str, Samples],
    drawer: Drawer,
    rng: np.random.Generator,
) -> None:
    """One pass with new records, new logits and parts left out at random."""
    network.train()
    samples = parts["train"]
    missing = float(rng.choice((0.0, MISSING, 2 * MISSING)))
    draw = drawer.draw(samples, missing, brock=bool(rng.random() >= NO_PART))
    logit = torch.from_numpy(honest_logits(samples, parts["val"], rng)).float()
    prior = float(np.log(samples.malignant.mean() / (1 - samples.malignant.mean())))
    truth, embedding = torch.from_numpy(samples.malignant).float(), torch.from_numpy(samples.embedding)
    for rows in batches(len(truth), 128, rng):
        if rng.random() < NO_IMAGE:  # only the record speaks
            step = Step(None, torch.full((len(rows),), prior), truth[rows])
        else:
            step = Step(embedding[rows], logit[rows], truth[rows])
        take_step(network, optimizer, step, draw.rows(rows), rng)


@torch.inference_mode()
def corrections(
    network: FusionNetwork, samples: Samples, draw: Draw, *, parts: str = "image text table"
) -> Floats:
    """Uncalibrated correction of each nodule, shape (n,), from the named parts."""
    network.eval()
    image = torch.from_numpy(samples.embedding) if "image" in parts else None
    none = torch.zeros_like(draw.has_record)
    has_text = draw.has_record if "text" in parts else none
    has_table = draw.has_record if "table" in parts else none
    text = draw.text if "text" in parts else None
    return np.asarray(network(image, text, draw.table, has_text, has_table).double().numpy())


def loss_of(logit: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean negative log likelihood."""
    return float(np.logaddexp(0, np.where(truth, -logit, logit)).mean())


def train(
    parts: dict[str, Samples], source: RecordSource, tower: TextTower | None, *, epochs: int, seed: int
) -> FusionNetwork:
    """Train, keep the epoch with the least loss on VAL, calibrate there.

    The same export, seed and number of epochs always give the same network.
    """
    samples, val = parts["train"], parts["val"]
    network = start(samples, seed)
    network.reads_text.fill_(tower is not None)
    drawer, rng = Drawer(source, tower, seed), np.random.default_rng(seed)
    rehearse(network, samples, drawer, rng)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    val_drawer = Drawer(source, tower, seed + 1)
    draws = [val_drawer.draw(val, MISSING * (number % 2)) for number in range(VAL_DRAWS)]
    best, state = np.inf, deepcopy(network.state_dict())
    for _ in track(range(epochs), "fusion"):
        train_epoch(network, optimizer, parts, drawer, rng)
        schedule.step()
        loss = float(
            np.mean([loss_of(val.logit + corrections(network, val, d), val.malignant) for d in draws])
        )
        if loss < best:
            best, state = loss, deepcopy(network.state_dict())
    network.load_state_dict(state)
    values = np.concatenate([corrections(network, val, draw) for draw in draws])
    scale, offset = fit_line(values, np.tile(val.malignant, VAL_DRAWS), np.tile(val.logit, VAL_DRAWS))
    network.scale.fill_(scale)
    network.offset.fill_(offset)
    return network


def ablation(
    network: FusionNetwork,
    parts: dict[str, Samples],
    source: RecordSource,
    tower: TextTower | None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Image, record and both on TEST patients, each figure over `TEST_DRAWS` draws of complete records.

    Returns
    -------
    dict
        Row -> AUROC with the 95 % interval by patient, calibration error and Brier score.
    """
    test = parts["test"]
    drawer = Drawer(source, tower, seed + 2)
    prior = float(np.log(parts["train"].malignant.mean() / (1 - parts["train"].malignant.mean())))
    scale, offset = float(network.scale), float(network.offset)
    full = [drawer.draw(test, 0.0) for _ in range(TEST_DRAWS)]
    gaps = [drawer.draw(test, 0.5) for _ in range(TEST_DRAWS)]
    plain = [drawer.draw(test, 0.0, brock=False) for _ in range(TEST_DRAWS)]
    blind = [drawer.draw(test, 0.0, blind=True) for _ in range(TEST_DRAWS)]

    def fused(draws: list[Draw], parts_used: str) -> list[Floats]:
        found = []
        for draw in draws:
            correction = scale * corrections(network, test, draw, parts=parts_used) + offset
            known = draw.has_record.numpy()
            found.append(test.logit + np.where(known, correction, 0.0))
        return found

    alone = [prior + scale * corrections(network, test, draw, parts="text table") + offset for draw in plain]
    rows = {
        "image": [test.logit] * TEST_DRAWS,
        "record": alone,
        "image and record": fused(full, "image text table"),
        "image and record table": fused(full, "image table"),
        "image and record text": fused(full, "image text") if tower is not None else [],
        "image and record without Brock": fused(plain, "image text table") if test.facts else [],
        "image and record with half of its items": fused(gaps, "image text table"),
        "image and a record drawn without regard to the truth": fused(blind, "image text table"),
        "image and exact log likelihood ratio": [test.logit + draw.log_ratio for draw in full],
    }
    patients = [test.names[row] for row in test.patient]
    bootstrap = PatientBootstrap(patients, resamples=resamples, seed=seed)
    return {name: _figures(test, logits, bootstrap) for name, logits in rows.items() if logits}


def _figures(test: Samples, logits: list[Floats], bootstrap: PatientBootstrap) -> dict[str, Any]:
    """Means over the draws; the interval resamples patients and averages over the draws each time."""
    chances = [1 / (1 + np.exp(-logit)) for logit in logits]
    sick, well = test.malignant, ~test.malignant
    # share of the draws in which each malignant nodule lies above each benign one; ties count one half
    above = np.mean([(np.sign(one[sick][:, None] - one[well][None]) + 1) / 2 for one in logits], axis=0)

    def auroc(weights: Floats) -> float:
        total = weights[sick].sum() * weights[well].sum()
        return float(weights[sick] @ above @ weights[well] / total) if total else float("nan")

    area = bootstrap.estimate(auroc)
    return {
        "auroc": area.value,
        "low": area.low,
        "high": area.high,
        "calibration_error": float(np.mean([calibration_error(test.malignant, p) for p in chances])),
        "brier": float(np.mean([brier(test.malignant, p) for p in chances])),
    }


def with_calibrated_logits(parts: dict[str, Samples]) -> tuple[dict[str, Samples], tuple[float, float]]:
    """The samples with their image logits calibrated on VAL, and the slope and intercept of that."""
    slope, intercept = fit_line(parts["val"].logit, parts["val"].malignant)
    return {
        name: Samples(**{**vars(one), "logit": slope * one.logit + intercept}) for name, one in parts.items()
    }, (slope, intercept)


_CARD = """\
profile = "{profile}"

[card]
name = "Reference fusion of image and clinical record"
version = "1.0.0"
task = "record-fusion"
summary = \"\"\"
Corrects the image-only probability by the clinical record, as far as it is known: a table of its items, \\
its sentence read by the text tower{brock}, weighted by the embedding of the image. Without any item of a \\
record the correction is exactly 0.\"\"\"
intended_use = \"\"\"
Research and technical integration. Not for primary diagnosis. It shows that a record can be joined; the \\
corrected probability is no estimate for patients.\"\"\"
limits = \"\"\"
{statement} The record was never seen together with an outcome. Radiologists' ratings, not histology, are \\
the truth of the images. The records are drawn from three published models added up, which no study \\
supports.\"\"\"
licence = "Apache-2.0"
training_data = \"\"\"
Embeddings of LIDC-IDRI nodules (CC BY 3.0) by the profile's CADx, {train} of {patients} patients; one \\
synthetic record for each patient, drawn by whether a nodule is rated above 3 (inference/train/records.py). \\
Calibrated on {val} nodules of other patients. python -m inference.train.fusion --epochs {epochs} \\
--seed {seed}.\"\"\"
performance = [
{performance}
]
weights = "{weights}"
weights_sha256 = "{sha256}"
"""


def card(report: Mapping[str, Any], weights: str, profile: str) -> str:
    """The model card of a report, as TOML.

    Parameters
    ----------
    report
        From `run`.
    weights
        Name of the weights file.
    """
    of = f"{report['nodules']['test']} LIDC-IDRI nodules of {report['patients']['test']} unseen patients"
    lines = [
        f"Synthetic records, {of}, {name}: area under the ROC curve {row['auroc']:.3f} (95 % interval "
        f"{row['low']:.3f}-{row['high']:.3f}), calibration error {row['calibration_error']:.3f}, Brier score "
        f"{row['brier']:.3f}."
        for name, row in report["test"].items()
    ]
    return _CARD.format(
        profile=profile,
        brock=", the range of Brock's model" if report["brock"] else "",
        statement=report["statement"],
        train=report["nodules"]["train"],
        patients=report["patients"]["train"],
        val=report["nodules"]["val"],
        epochs=report["epochs"],
        seed=report["seed"],
        performance="\n".join(f"  {json.dumps(line)}," for line in lines),
        weights=weights,
        sha256=report["weights_sha256"],
    )


def main() -> None:
    """Parse the arguments, train, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--export", type=Path, required=True, help="NPZ of inference.train.cadx --export")
    parser.add_argument("--out", type=Path, required=True, help="safetensors; report and card go beside it")
    parser.add_argument("--profile", default="reference", help="named in the card")
    parser.add_argument(
        "--crops",
        type=Path,
        nargs=3,
        metavar=("TAR", "NPZ", "CSV"),
        help="strips, masks and table, for Brock",
    )
    parser.add_argument("--text", type=Path, help="weights of the text tower; without it no record text")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tower = None
    if chosen.text is not None:
        tower = clip_text_tower(read_weights(chosen.text, sha256_of(chosen.text)))
    diameters = None if chosen.crops is None else measured_diameters(read_crops(*chosen.crops))
    parts = read_export(chosen.export, diameters)
    report = run(parts, chosen.out, tower, epochs=chosen.epochs, seed=chosen.seed)
    words = card(report, chosen.out.name, chosen.profile)
    chosen.out.with_suffix(".toml").write_text(words, encoding="utf-8")
    _LOG.info("%s", json.dumps(report, indent=2))


def run(
    parts: dict[str, Samples],
    out: Path,
    tower: TextTower | None,
    *,
    epochs: int,
    seed: int,
    pool: int = POOL,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Train, write the weights and, beside them as JSON, what was measured.

    Parameters
    ----------
    parts
        From `read_export`.

    Returns
    -------
    dict
        The report; it begins with `SYNTHETIC_STATEMENT`.
    """
    parts, calibration = with_calibrated_logits(parts)
    source = RecordSource(seed, pool)
    network = train(parts, source, tower, epochs=epochs, seed=seed)
    digest = write_weights(
        network.state_dict(), out, {"name": "fusion of image and record", "records": "synthetic"}
    )
    load_into(network, read_weights(out, digest))  # the figures are those of the weights as stored
    report = {
        "statement": SYNTHETIC_STATEMENT,
        "weights_sha256": digest,
        "seed": seed,
        "epochs": epochs,
        "text_tower": tower is not None,
        "brock": bool(parts["train"].facts),
        "image_calibration": {"slope": calibration[0], "intercept": calibration[1]},
        "nodules": {name: len(one.malignant) for name, one in parts.items()},
        "patients": {name: len(one.names) for name, one in parts.items()},
        "malignant": {name: int(one.malignant.sum()) for name, one in parts.items()},
        "test": ablation(network, parts, source, tower, seed=seed, resamples=resamples),
    }
    out.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


if __name__ == "__main__":
    main()
