"""Train the CADx network: ``python -m inference.train.cadx --help``.

Each step draws nodules, most with a mask and some without, and structures that are none. Losses: malignancy
against the readers' mean on a soft scale (all ratings of 3 count), every sentence pair against the share of
readers for whom it holds, InfoNCE between nodules and captions where all captions that are true of a nodule
count as its own, the ratings themselves, and the structure. The text tower stays as it was trained by
`inference.train.text` but for LoRA; the image tower is trained from scratch, since none comes with the
project. Keeps a moving average of the weights. Stops by the clock and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from inference.cadx_network import REFERENCE_CADX, CadxNetwork
from inference.datasets.lidc_crops import RATINGS, Split, read_crops
from inference.digest import sha256_of
from inference.intensity import HounsfieldEstimate
from inference.lora import add_lora
from inference.openclip_model import tokenize
from inference.prompts import FRAMES, PAIRS, STRUCTURES
from inference.train.cadx_data import (
    RATED,
    STRUCTURE_NAMES,
    Drawn,
    Negatives,
    Nodule,
    Truth,
    draw_nodule,
    nodules_of,
    plain_views,
    read_negatives,
    read_readings,
    stack,
    truth_of,
)
from inference.weights import load_into, read_weights

_LOG = logging.getLogger(__name__)

MASKED, UNMASKED, NEGATIVES = 24, 6, 10  # examples in one step
VIEWS_DRAWN = 3
DESCRIBED_DROPOUT = 0.3  # of the mask's numbers as a whole, so that the views are learnt from too
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 200  # steps
AVERAGE = 0.998
SMOOTHING = 0.1
MOST_SCALE = 4.6052  # of the similarity, as in CLIP
SPREAD: Final = (1.2, 0.4, 1.2, 0.9, 1.1, 1.0, 1.0, 1.2, 1.0)  # rough deviation of each rating


class Trainee(nn.Module):
    """The network with a head that is thrown away: it must also tell the mean ratings."""

    def __init__(self) -> None:
        super().__init__()
        self.network = CadxNetwork(REFERENCE_CADX)
        self.ratings = nn.Linear(256, len(RATINGS))


@dataclass
class Batch:
    """One step's examples, nodules first.

    Parameters
    ----------
    views, described, has_mask
        As `CadxNetwork.embed_views` takes them.
    truths
        Of the nodules.
    structure
        int64, (n,): index in `STRUCTURE_NAMES`, -1 for "no nodule".
    """

    views: Tensor
    described: Tensor
    has_mask: Tensor
    truths: list[Truth]
    structure: Tensor


def draw_batch(
    nodules: Sequence[Nodule], truths: Sequence[Truth], negatives: Negatives | None, rng: np.random.Generator
) -> Batch:
    """Draw one step's examples."""
    size = REFERENCE_CADX.views
    chosen = rng.choice(len(nodules), MASKED + UNMASKED, replace=False)
    examples: list[Drawn] = [
        draw_nodule(nodules[index], size, VIEWS_DRAWN, rng, masked=row < MASKED)
        for row, index in enumerate(chosen)
    ]
    structure = [0] * len(examples)
    if negatives is not None:
        kinds = np.unique(negatives.structure)
        for kind in rng.choice(kinds, NEGATIVES):
            index = int(rng.choice(np.flatnonzero(negatives.structure == kind)))
            examples.append(negatives.draw(int(index), size, VIEWS_DRAWN, rng))
            structure.append(int(negatives.structure[index]))
    return Batch(*stack(examples), [truths[i] for i in chosen], torch.tensor(structure))


@dataclass(frozen=True, slots=True)
class Sentences:
    """Sentences of one step: a caption for each nodule, a wording of each pair and structure."""

    captions: list[str]
    mentioned: NDArray[np.int64]  # (nodules, len(RATED)): 1 positive, -1 negative, 0 not named
    positive: list[str]
    negative: list[str]
    structures: list[str]


def draw_sentences(truths: Sequence[Truth], rng: np.random.Generator) -> Sentences:
    """Draw the wordings of one step."""
    positive = [str(rng.choice(pair.positive)) for pair in PAIRS]
    negative = [str(rng.choice(pair.negative)) for pair in PAIRS]
    structures = [str(rng.choice(FRAMES)).format(rng.choice(words)) for words in STRUCTURES.values()]
    captions, mentioned = [], np.zeros((len(truths), len(RATED)), np.int64)
    for row, truth in enumerate(truths):
        chosen = rng.permutation(len(RATED))[: int(rng.integers(1, 5))]
        parts = []
        for column in chosen:
            is_positive = bool(truth.pairs[column] >= 0.5)
            pair = PAIRS[RATED[column]]
            parts.append(str(rng.choice(pair.positive if is_positive else pair.negative)))
            mentioned[row, column] = 1 if is_positive else -1
        captions.append(" ".join(parts))
    return Sentences(captions, mentioned, positive, negative, structures)


def matches(truths: Sequence[Truth], mentioned: NDArray[np.int64]) -> Tensor:
    """Which captions are true of which nodules, float32 (nodules, captions), each row summing to 1."""
    signs = np.where(np.stack([truth.pairs for truth in truths]) >= 0.5, 1, -1)  # (n, pairs)
    wrong = (mentioned[None] * signs[:, None] < 0).any(-1)  # (n, captions)
    hits = torch.from_numpy((~wrong).astype(np.float32))
    return hits / hits.sum(1, keepdim=True)


def contrast(similarity: Tensor, hits: Tensor) -> Tensor:
    """Symmetric InfoNCE with several right answers and label smoothing."""
    forth = (1 - SMOOTHING) * hits + SMOOTHING / hits.shape[1]
    back = (1 - SMOOTHING) * (hits.T / hits.T.sum(1, keepdim=True)) + SMOOTHING / hits.shape[0]
    return (functional.cross_entropy(similarity, forth) + functional.cross_entropy(similarity.T, back)) / 2


@lru_cache(maxsize=100_000)
def tokens_of(text: str) -> Tensor:
    """Tokens of one sentence, (1, context); there are few sentences and many steps."""
    return tokenize([text], REFERENCE_CADX.clip.context_length)


def losses(trainee: Trainee, batch: Batch, sentences: Sentences) -> dict[str, Tensor]:
    """Each loss by name; weights are in `WEIGHTS`."""
    network, count = trainee.network, len(batch.truths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        counted = batch.has_mask & (torch.rand(len(batch.has_mask)) >= DESCRIBED_DROPOUT)
        embedding = network.embed_views(batch.views, batch.described, counted)
        texts = [*sentences.captions, *sentences.positive, *sentences.negative, *sentences.structures]
        embedded = network.embed_tokens(torch.cat([tokens_of(text) for text in texts]))
    captions, positive, negative, structures = torch.split(
        embedded, [count, len(PAIRS), len(PAIRS), len(STRUCTURE_NAMES)]
    )
    nodule = embedding[:count]
    weight = torch.tensor([truth.weight for truth in batch.truths])
    target = torch.tensor([truth.malignancy for truth in batch.truths])
    malignancy = functional.binary_cross_entropy_with_logits(
        network.malignancy_logit(nodule), target, reduction="none"
    )
    shares = torch.from_numpy(np.stack([truth.pairs for truth in batch.truths]))
    logits = network.pair_logits(nodule, positive, negative)[:, list(RATED)]
    pairs = functional.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(1)
    ratings = torch.from_numpy(np.stack([truth.ratings for truth in batch.truths]))
    told = trainee.ratings(nodule * nodule.shape[1] ** 0.5)
    off = functional.smooth_l1_loss(told, (ratings - 3) / torch.tensor(SPREAD), reduction="none").mean(1)
    scale = network.clip.logit_scale.clamp(0, MOST_SCALE).exp()
    rated = weight > 0
    found = {
        "malignancy": (weight * malignancy).sum() / weight.sum(),
        "pairs": (weight * pairs).sum() / weight.sum(),
        "ratings": (weight * off).sum() / weight.sum(),
        "contrast": contrast(
            scale * nodule[rated] @ captions[rated].T,
            matches(
                [truth for truth in batch.truths if truth.weight > 0], sentences.mentioned[rated.numpy()]
            ),
        ),
    }
    if count < len(embedding):
        # without masks on both sides: a mask would give the nodules away
        bare = ~batch.has_mask
        logits = network.structure_logits(embedding[bare], structures)
        found["structure"] = structure_loss(logits, batch.structure[bare])
    return found


def structure_loss(logits: Tensor, structure: Tensor) -> Tensor:
    """Cross-entropy of the structure; where it is only known to be no nodule, of not being one."""
    logs = functional.log_softmax(logits, dim=1)
    other = torch.logsumexp(logs[:, 1:], dim=1)
    known = logs.gather(1, structure.clamp(min=0).unsqueeze(1)).squeeze(1)
    return -torch.where(structure < 0, other, known).mean()


WEIGHTS: Final[Mapping[str, float]] = {
    "malignancy": 1.0,
    "pairs": 1.0,
    "ratings": 0.7,
    "contrast": 0.3,
    "structure": 0.5,
}


def prepare(
    text: Path, intensity_mean: NDArray[np.float32], intensity_deviation: NDArray[np.float32]
) -> Trainee:
    """A new network with the frozen text tower and LoRA on it."""
    trainee = Trainee()
    clip = trainee.network.clip
    own = clip.state_dict()
    own.update(read_text(text))
    load_into(clip, own)
    for name, parameter in clip.named_parameters():
        if not name.startswith("visual.") and name != "logit_scale":
            parameter.requires_grad_(False)
    for parameter in add_lora(clip.transformer):
        parameter.requires_grad_(True)
    trainee.network.described_mean.copy_(torch.from_numpy(intensity_mean))
    trainee.network.described_deviation.copy_(torch.from_numpy(intensity_deviation))
    clip.visual.to(memory_format=torch.channels_last)
    return trainee


def read_text(path: Path) -> dict[str, Tensor]:
    """Tensors of the text tower, of one's own making: the hash is taken of the file itself."""
    return read_weights(path, sha256_of(path))


@torch.no_grad()
def follow(average: nn.Module, trainee: nn.Module, step: int) -> None:
    """Move the average towards the trainee; buffers too."""
    decay = min(AVERAGE, (1 + step) / (10 + step))
    frozen = {name for name, parameter in trainee.named_parameters() if not parameter.requires_grad}
    theirs = trainee.state_dict()
    for name, mine in average.state_dict().items():
        other = theirs[name]
        if name in frozen:
            continue
        if mine.is_floating_point():
            mine.lerp_(other, 1 - decay)
        else:
            mine.copy_(other)


@dataclass(frozen=True, slots=True)
class Shown:
    """Nodules drawn once, as at inference."""

    nodules: list[Nodule]
    views: Tensor
    described: Tensor


def show(nodules: Sequence[Nodule]) -> Shown:
    """Draw all nine views of each nodule with the consensus mask."""
    drawn = [plain_views(nodule, REFERENCE_CADX.views) for nodule in nodules]
    views = torch.stack([one.half() for one, _ in drawn])
    return Shown(list(nodules), views, torch.from_numpy(np.stack([numbers for _, numbers in drawn])))


@torch.inference_mode()
def embed(network: CadxNetwork, shown: Shown, *, masked: bool = True) -> Tensor:
    """Embeddings (n, 256) of shown nodules."""
    rows = []
    for start in range(0, len(shown.nodules), 16):
        views = shown.views[start : start + 16].float()
        if not masked:
            views[:, :, 2] = 0
        described = shown.described[start : start + 16] if masked else None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows.append(network.embed_views(views, described))
    return torch.cat(rows)


@torch.inference_mode()
def measure(network: CadxNetwork, shown: Shown) -> dict[str, float]:
    """AUROC of malignancy and of each sentence pair, on nodules with trusted ratings."""
    network.eval()
    embedding = embed(network, shown)
    score = network.malignancy_logit(embedding).numpy()
    truth = np.array([nodule.medians["malignancy"] for nodule in shown.nodules])
    means = np.array([truth_of(nodule).malignancy * 4 + 1 for nodule in shown.nodules])
    found = {
        "without 3": roc_auc_score(truth[truth != 3] > 3, score[truth != 3]),
        "3 benign": roc_auc_score(truth > 3, score),
        "mean without 3": roc_auc_score(means[abs(means - 3) > 0.01] > 3, score[abs(means - 3) > 0.01]),
    }
    for kind in ("seen", "unseen"):
        logits = network.pair_logits(embedding, *network.pair_sentences(unseen=kind == "unseen")).numpy()
        for index in RATED:
            pair = PAIRS[index]
            holds = np.array([pair.holds(nodule.medians[pair.rating or ""]) for nodule in shown.nodules])
            if holds.any() and not holds.all():
                found[f"{pair.feature} {kind}"] = roc_auc_score(holds, logits[:, index])
    return {name: float(value) for name, value in found.items()}


@dataclass
class Run:
    """What goes on when a training is resumed."""

    trainee: Trainee
    average: Trainee
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write a checkpoint in one step."""
        state: dict[str, Any] = {
            "trainee": self.trainee.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of one's own."""
        state = torch.load(path, weights_only=True)
        self.trainee.load_state_dict(state["trainee"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def start(trainee: Trainee) -> Run:
    """A run from step 0."""
    decayed = [p for p in trainee.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in trainee.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )
    return Run(trainee, copy.deepcopy(trainee).eval(), optimizer)


def train(
    run: Run,
    nodules: Sequence[Nodule],
    shown: Shown,
    negatives: Negatives | None,
    *,
    minutes: float,
    seed: int,
    checkpoint: Path | None,
    report_minutes: float = 6,
) -> None:
    """Train until the clock says so; the learning rate falls with the time used."""
    truths = [truth_of(nodule) for nodule in nodules]
    began, before, told = time.monotonic(), run.seconds, time.monotonic()
    sums: dict[str, float] = {}
    while run.seconds < 60 * minutes:
        rng = np.random.default_rng([seed, run.step])
        torch.manual_seed(seed + run.step)
        rate = min((run.step + 1) / WARM_UP, 1) * (
            0.02 + 0.98 * np.cos(np.pi / 2 * run.seconds / (60 * minutes)) ** 2
        )
        for group in run.optimizer.param_groups:
            group["lr"] = float(LEARNING_RATE * rate)  # a NumPy number could not be read back
        batch = draw_batch(nodules, truths, negatives, rng)
        run.trainee.train()
        found = losses(run.trainee, batch, draw_sentences(batch.truths, rng))
        loss = torch.stack([WEIGHTS[name] * value for name, value in found.items()]).sum()
        run.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        nn.utils.clip_grad_norm_(run.trainee.parameters(), 1.0)
        run.optimizer.step()
        follow(run.average, run.trainee, run.step)
        run.step += 1
        run.seconds = before + time.monotonic() - began
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        sums["steps"] = sums.get("steps", 0) + 1
        if time.monotonic() - told > 60 * report_minutes or run.seconds >= 60 * minutes:
            told = time.monotonic()
            count = sums.pop("steps")
            words = " ".join(f"{name} {value / count:.3f}" for name, value in sums.items())
            _LOG.info("step %d, %.1f min: %s", run.step, run.seconds / 60, words)
            sums = {}
            found_auc = measure(run.average.network, shown)
            _LOG.info("  val: %s", " ".join(f"{name} {value:.3f}" for name, value in found_auc.items()))
            if checkpoint is not None:
                run.save(checkpoint)


def read_nodules(arguments: argparse.Namespace) -> list[Nodule]:
    """All nodules of the collection that the arguments name."""
    estimate = HounsfieldEstimate()
    load_into(estimate, read_text(arguments.intensity))
    crops = read_crops(arguments.images, arguments.masks, arguments.table)
    hounsfield = {
        crop.name: np.clip(estimate.hounsfield(crop.image), -1100, 3000).astype(np.int16) for crop in crops
    }
    return nodules_of(crops, hounsfield, read_readings(arguments.annotations, arguments.table))


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, words in (
        ("images", "tar of strips"),
        ("masks", "NPZ of masks"),
        ("table", "CSV of ratings"),
        ("annotations", "SQLite of single ratings, unpacked"),
        ("intensity", "weights of the HU estimate"),
        ("text", "weights of the text tower"),
        ("checkpoint", "is written and gone on from"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, help=words)
    parser.add_argument("--negatives", type=Path, help="NPZ of other structures")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the training patients, for learning curves"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    nodules = read_nodules(arguments)
    _LOG.info("%d nodules", len(nodules))
    learnt = [one for one in nodules if one.split is Split.TRAIN]
    patients = sorted({one.patient for one in learnt})
    kept = set(np.random.default_rng(0).permutation(patients)[: round(len(patients) * arguments.share)])
    learnt = [one for one in learnt if one.patient in kept]
    numbers = np.stack([plain_views(one, REFERENCE_CADX.views)[1] for one in learnt if len(one.ratings)])
    torch.manual_seed(arguments.seed)
    run = start(prepare(arguments.text, numbers.mean(0), numbers.std(0) + 1e-3))
    if arguments.checkpoint.exists():
        run.resume(arguments.checkpoint)
        _LOG.info("going on at step %d", run.step)
    negatives = read_negatives(arguments.negatives) if arguments.negatives else None
    shown = show([one for one in nodules if one.split is Split.VAL and len(one.ratings)])
    train(
        run,
        learnt,
        shown,
        negatives,
        minutes=arguments.minutes,
        seed=arguments.seed,
        checkpoint=arguments.checkpoint,
    )


if __name__ == "__main__":
    main()
