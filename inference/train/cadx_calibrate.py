"""Calibrate trained CADx networks and write the weights: ``python -m inference.train.cadx_calibrate --help``.

Everything is fitted on the validation patients but the prototypes, which are means over the training
patients. Figures of the test patients are only reported, with intervals by patient.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import Tensor

from inference.cadx import CALCIFICATION, RANKED, Calibration, pack
from inference.cadx_network import CadxNetwork
from inference.datasets.lidc_crops import RATINGS, Split
from inference.descriptors import NAMES
from inference.evaluate.metrics import PatientBootstrap, auroc, calibration_error, operating_point
from inference.prompts import PAIRS
from inference.train.cadx import Shown, embed, prepare, read_nodules, read_text, show
from inference.train.cadx_data import Nodule, truth_of
from inference.weights import write_weights

_LOG = logging.getLogger(__name__)

Floats = NDArray[np.float64]

RIDGE: Final = np.logspace(-2, 4, 13)
PSEUDO: Final = 0.5
"""Added to each count of a rank, so that a rank that nobody gave keeps a probability."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the networks say of nodules, before calibration.

    Parameters
    ----------
    logit
        Shape (n,).
    pairs
        Shape (n, len(PAIRS)); of the trained and of the unseen wordings.
    """

    nodules: list[Nodule]
    logit: Floats
    pairs: Floats
    unseen: Floats


@torch.inference_mode()
def score(members: Sequence[CadxNetwork], shown: Shown, linear: Tensor) -> Scores:
    """Mean over members, as `inference.cadx.NineViewReader` reads."""
    logits, pairs, unseen = [], [], []
    for member in members:
        embedding = embed(member, shown)
        sides = member.pair_sentences()
        logits.append(member.suspicion(embedding, *sides))
        pairs.append(member.pair_logits(embedding, *sides))
        unseen.append(member.pair_logits(embedding, *member.pair_sentences(unseen=True)))
    logit, *rest = (torch.stack(rows).mean(0).double().numpy() for rows in (logits, pairs, unseen))
    return Scores(shown.nodules, logit + linear_logit(shown.described, linear), *rest)


def linear_logit(described: Tensor, linear: Tensor) -> Floats:
    """The plain linear model of the mask's numbers, shape (n,)."""
    return np.asarray((described @ linear[:-1] + linear[-1]).double().numpy())


def fit_linear(shown: Shown) -> Tensor:
    """Ridge regression of the mean rating less 3 on the mask's numbers: weights and offset."""
    numbers = shown.described.double().numpy()
    truths = [truth_of(nodule) for nodule in shown.nodules]
    mean, deviation = numbers.mean(0), numbers.std(0) + 1e-6
    model = RidgeCV(RIDGE).fit(
        (numbers - mean) / deviation,
        [4 * truth.malignancy - 2 for truth in truths],
        sample_weight=[truth.weight for truth in truths],
    )
    weights = model.coef_ / deviation
    return torch.tensor([*weights, model.intercept_ - float(mean @ weights)], dtype=torch.float32)


def fit_malignancy(scores: Scores) -> tuple[float, float]:
    """Platt's slope and offset: the readers' median is above 3, among nodules where it isn't 3 itself."""
    medians = np.array([nodule.medians["malignancy"] for nodule in scores.nodules])
    clear = medians != 3
    model = LogisticRegression(C=1e4).fit(scores.logit[clear, None], medians[clear] > 3)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def fit_ranks(feature: str, scores: Scores) -> Floats:
    """Ranks of one feature from its pair's logit, each reader's rating an observation."""
    index = [pair.feature for pair in PAIRS].index(feature)
    column = RATINGS.index(PAIRS[index].rating or "")
    given = [nodule.ratings[:, column].astype(int) for nodule in scores.nodules]
    logits = np.repeat(scores.pairs[:, index], [len(one) for one in given])
    ratings = np.concatenate(given)
    weights = np.concatenate([np.full(len(one), 1 / np.sqrt(len(one))) for one in given])
    if feature == CALCIFICATION:
        counts = np.array([(ratings == rank).sum() for rank in range(1, 6)]) + PSEUDO
        model = LogisticRegression(C=10).fit(logits[:, None], ratings < 6, sample_weight=weights)
        return np.array([model.coef_[0, 0], model.intercept_[0], *(counts / counts.sum())])
    ranks = 4 if feature == "internal_structure" else 5
    return proportional_odds(logits, ratings, weights, ranks)


def proportional_odds(logits: Floats, ratings: NDArray[np.int64], weights: Floats, ranks: int) -> Floats:
    """Slope and falling thresholds that make the ratings most likely, with a weak prior on the slope."""
    shares = np.array([(ratings >= rank).sum() + PSEUDO for rank in range(2, ranks + 1)]) / (len(ratings) + 1)
    start = np.log(shares / (1 - shares))
    gaps = np.log(np.maximum(-np.diff(start), 0.05))

    def unpack(values: Floats) -> tuple[float, Floats]:
        falls = np.concatenate([[0.0], np.cumsum(np.exp(values[2:]))])
        return float(values[0]), values[1] - falls

    def loss(values: Floats) -> float:
        slope, thresholds = unpack(values)
        at_least = 1 / (1 + np.exp(-(slope * logits[:, None] + thresholds)))
        padded = np.concatenate([np.ones((len(logits), 1)), at_least, np.zeros((len(logits), 1))], axis=1)
        chance = (padded[:, :-1] - padded[:, 1:])[np.arange(len(logits)), ratings - 1]
        prior = 0.1 * (values[0] - 1) ** 2 + 0.01 * float((values[2:] ** 2).sum())
        return float(-(weights * np.log(np.maximum(chance, 1e-9))).sum() + prior)

    found = minimize(loss, np.concatenate([[1.0, start[0]], gaps]), method="L-BFGS-B")
    slope, thresholds = unpack(found.x)
    return np.concatenate([[slope], thresholds])


@torch.inference_mode()
def prototypes(first: CadxNetwork, shown: Shown) -> NDArray[np.float32]:
    """Mean embedding where each number is in its highest and lowest fifth, (len(NAMES), 2, 256)."""
    embedding = embed(first, shown).numpy()
    numbers = shown.described.numpy()
    rows = []
    for column in range(len(NAMES)):
        low, high = np.quantile(numbers[:, column], (0.2, 0.8))
        means = [embedding[numbers[:, column] >= high].mean(0), embedding[numbers[:, column] <= low].mean(0)]
        rows.append([mean / np.linalg.norm(mean) for mean in means])
    return np.array(rows, dtype=np.float32)


def figures(scores: Scores, calibration: tuple[float, float], resamples: int) -> dict[str, str]:
    """All figures with intervals by patient; names say the truth: the readers' median or mean."""
    medians = np.array([nodule.medians["malignancy"] for nodule in scores.nodules])
    means = np.array([4 * truth_of(nodule).malignancy + 1 for nodule in scores.nodules]).round(3)
    chance = 1 / (1 + np.exp(-(calibration[0] * scores.logit + calibration[1])))
    patients = [nodule.patient for nodule in scores.nodules]
    bootstrap = PatientBootstrap(patients, resamples=resamples)
    found: dict[str, str] = {}
    every = np.ones(len(patients))

    def tell(name: str, statistic: Callable[[Floats], float]) -> None:
        found[name] = bootstrap.estimate(statistic).text()

    for name, truth in (("median", medians), ("mean", means)):
        is_high, clear = truth > 3, (truth != 3).astype(np.float64)
        tell(f"AUROC {name}, 3 left out", partial(_weighted, auroc, is_high, scores.logit, clear))
        tell(f"AUROC {name}, 3 benign", partial(_weighted, auroc, is_high, scores.logit, every))
        tell(
            f"specificity {name}, 3 left out", partial(_weighted, _specificity, is_high, scores.logit, clear)
        )
        tell(
            f"calibration error {name}, 3 left out",
            partial(_weighted, calibration_error, is_high, chance, clear),
        )
    for kind, logits in (("trained", scores.pairs), ("unseen", scores.unseen)):
        for feature in RANKED:
            pair = PAIRS[[one.feature for one in PAIRS].index(feature)]
            ratings = [nodule.medians[pair.rating or ""] for nodule in scores.nodules]
            holds = np.array([pair.holds(rating) for rating in ratings])
            column = logits[:, PAIRS.index(pair)]
            tell(f"AUROC {feature}, {kind}", partial(_weighted, auroc, holds, column, every))
    return found


def _weighted(
    figure: Callable[..., float], labels: NDArray[np.bool_], values: Floats, counted: Floats, weights: Floats
) -> float:
    return figure(labels, values, weights=weights * counted)


def _specificity(labels: NDArray[np.bool_], scores: Floats, *, weights: Floats) -> float:
    return operating_point(labels, scores, weights=weights)[0]


def _part(scores: Scores, rows: NDArray[np.int64]) -> Scores:
    return Scores(
        [scores.nodules[i] for i in rows], scores.logit[rows], scores.pairs[rows], scores.unseen[rows]
    )


def report(scores: Scores, calibration: tuple[float, float], resamples: int) -> dict[str, Any]:
    """Figures of all nodules and of those that at least three readers drew."""
    many = np.flatnonzero([len(nodule.masks) >= 3 for nodule in scores.nodules])
    return {
        "nodules": len(scores.nodules),
        "all": figures(scores, calibration, resamples),
        "nodules of 3 or 4 readers": len(many),
        "3 or 4 readers": figures(_part(scores, many), calibration, resamples),
    }


def load_members(paths: Sequence[Path], text: Path) -> list[dict[str, Tensor]]:
    """The averaged network of each checkpoint, its state under LoRA."""
    nothing = np.zeros(len(NAMES), np.float32)
    states = []
    for path in paths:
        trainee = prepare(text, nothing, nothing + 1)
        trainee.load_state_dict(torch.load(path, weights_only=True)["average"])
        states.append(dict(trainee.network.state_dict()))
    return states


def rebuild(states: Sequence[Mapping[str, Tensor]], text: Path) -> list[CadxNetwork]:
    """Networks from states, through float16 as they are stored."""
    nothing = np.zeros(len(NAMES), np.float32)
    members = []
    for state in states:
        trainee = prepare(text, nothing, nothing + 1)
        stored = {key: one.half().float() if one.is_floating_point() else one for key, one in state.items()}
        trainee.network.load_state_dict(stored)
        members.append(trainee.network.eval())
    return members


def main() -> None:
    """Parse the arguments, fit, write, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "masks", "table", "annotations", "intensity", "text", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, nargs="+", required=True, help="one for each member")
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients, for the intervals")
    parser.add_argument("--test", action="store_true", help="report the test patients too")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    nodules = [nodule for nodule in read_nodules(arguments) if len(nodule.ratings)]
    parts = {split: [one for one in nodules if one.split is split] for split in Split}
    states = load_members(arguments.checkpoints, arguments.text)
    members = rebuild(states, arguments.text)
    learnt = show(parts[Split.TRAIN])
    linear = fit_linear(learnt)
    val = score(members, show(parts[Split.VAL]), linear)
    calibration = Calibration(
        fit_malignancy(val),
        linear.numpy(),
        {feature: fit_ranks(feature, val) for feature in RANKED},
        prototypes(members[0], learnt),
    )
    tensors = pack(states, read_text(arguments.text), calibration)
    digest = write_weights(tensors, arguments.out, {"name": "reference CADx"})
    found = {"sha256": digest, "val": report(val, calibration.malignancy, arguments.resamples)}
    if arguments.test:
        test = score(members, show(parts[Split.TEST]), linear)
        found["test"] = report(test, calibration.malignancy, arguments.resamples)
    arguments.out.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    _LOG.info("%s", json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
