"""How a fusion mechanism learns: first to read records by themselves, then beside the images.

CADx has seen the TRAIN nodules, so their logits are far too sure. While training each is therefore replaced
by a draw from a normal distribution of its class, fitted to the VAL logits. Before, the mechanism learns to
read records by themselves, of invented patients without images. VAL patients choose the epoch and calibrate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from inference.fusion import JointEmbedding, Mechanism, RecordParts, TextTower
from inference.fusion.contrast import PROMPTS, Contrast
from inference.fusion.distilled import Distilled
from inference.train.fusion_data import Draw, Drawer, Samples
from inference.train.fusion_losses import Batch, extra_loss
from inference.train.records import Dependence, RecordSource

MISSING = 0.25
NO_PART = 0.4
NO_IMAGE = 0.4
REHEARSED, REHEARSALS = 4000, 30
VAL_DRAWS = 10
RIDGE = 1e-3

Floats = NDArray[np.float64]
Report = Callable[[float], None]
"""Called with the share of the work that is done."""


@dataclass(frozen=True)
class Course:
    """All records of a training, drawn once: every mechanism learns from the same ones.

    Parameters
    ----------
    rehearsed
        Truth of the invented patients, float32, and their records at three levels of gaps.
    epochs
        For each: records with gaps, and the same records with all items.
    val
        `VAL_DRAWS` draws.
    """

    parts: dict[str, Samples]
    tower: TextTower | None
    rehearsed: tuple[Tensor, list[Draw]]
    epochs: list[tuple[Draw, Draw]]
    val: list[Draw] = field(default_factory=list)

    @classmethod
    def drawn(
        cls,
        parts: dict[str, Samples],
        source: RecordSource,
        tower: TextTower | None,
        *,
        epochs: int,
        seed: int,
        dependence: Dependence = Dependence.OUTCOME,
    ) -> Course:
        """Draw the records for a training of so many epochs."""
        rng = np.random.default_rng([seed, 0])
        drawer = Drawer(source, tower, seed, dependence)
        people = _invented(parts["train"], rng)
        levels = [drawer.draw(people, MISSING * level, brock=level != 1) for level in range(3)]
        shown = []
        for _ in range(epochs):
            missing = float(rng.choice((0.0, MISSING, 2 * MISSING)))
            shown.append(drawer.draw_both(parts["train"], missing, brock=bool(rng.random() >= NO_PART)))
        checked = Drawer(source, tower, seed + 1, dependence)
        val = [checked.draw(parts["val"], MISSING * (number % 2)) for number in range(VAL_DRAWS)]
        return cls(parts, tower, (torch.from_numpy(people.malignant).float(), levels), shown, val)


def _invented(train: Samples, rng: np.random.Generator) -> Samples:
    """Patients with one nodule each, as many malignant as benign."""
    halves = [np.flatnonzero(train.malignant == truth) for truth in (True, False)]
    return train.drawn(np.concatenate([rng.choice(half, REHEARSED // 2) for half in halves]))


def fit_line(x: Floats, y: NDArray[np.bool_], offset: Floats | None = None) -> tuple[float, float]:
    """Slope and intercept of a logistic regression of y on x (Platt), beside a fixed part of the logit."""
    fixed = np.zeros(len(x)) if offset is None else offset
    no_change = np.array([1.0, 0.0])

    def loss(beta: Floats) -> float:
        return loss_of(fixed + beta[0] * x + beta[1], y) + RIDGE * float(((beta - no_change) ** 2).sum())

    slope, intercept = minimize(loss, no_change).x
    return float(slope), float(intercept)


def loss_of(logit: Floats, truth: NDArray[np.bool_]) -> float:
    """Mean negative log likelihood."""
    return float(np.logaddexp(0, np.where(truth, -logit, logit)).mean())


def with_calibrated_logits(parts: dict[str, Samples]) -> tuple[dict[str, Samples], tuple[float, float]]:
    """The samples with their image logits calibrated on VAL, and the slope and intercept of that."""
    slope, intercept = fit_line(parts["val"].logit, parts["val"].malignant)
    return {
        name: Samples(**{**vars(one), "logit": slope * one.logit + intercept}) for name, one in parts.items()
    }, (slope, intercept)


def honest_logits(train: Samples, val: Samples, rng: np.random.Generator) -> Floats:
    """Logits for TRAIN nodules as they would be on unseen patients, shape (n,)."""
    logit = np.zeros(len(train.malignant))
    for truth in (False, True):
        seen = val.logit[val.malignant == truth]
        logit[train.malignant == truth] = rng.normal(
            seen.mean(), seen.std(), int((train.malignant == truth).sum())
        )
    return logit


def prior_of(samples: Samples) -> float:
    """Logit of the share of malignant nodules."""
    share = float(samples.malignant.mean())
    return float(np.log(share / (1 - share)))


def start(kind: type[Mechanism], course: Course, seed: int) -> Mechanism:
    """An untrained network that knows the scale of the embeddings and what it will be given."""
    torch.manual_seed(seed)
    network = kind()
    embedding = torch.from_numpy(course.parts["train"].embedding)
    network.image_mean.copy_(embedding.mean(0))
    network.image_deviation.copy_(embedding.std(0).clamp_min(1e-4))
    network.reads_brock.fill_(True)
    network.reads_text.fill_(course.tower is not None)
    if isinstance(network, Contrast) and course.tower is not None:
        network.prompts.copy_(torch.from_numpy(np.asarray(course.tower(PROMPTS), np.float32)))
    return network


def take_step(network: Mechanism, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step of the optimiser."""
    correction = network(batch.image, batch.record)
    loss = functional.binary_cross_entropy_with_logits(batch.given + correction, batch.truth)
    loss = loss + extra_loss(network, batch, correction)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch types it so
    optimizer.step()


def batches(count: int, size: int, rng: np.random.Generator) -> list[Tensor]:
    """All rows in random order, in batches of about `size`."""
    order = rng.permutation(count)
    return [torch.from_numpy(rows) for rows in np.array_split(order, max(1, count // size))]


def with_parts_left_out(draw: Draw, rng: np.random.Generator) -> RecordParts:
    """The records with text or table left out of some rows."""
    has_table, has_text = (torch.from_numpy(rng.random(len(draw.table)) >= NO_PART) for _ in range(2))
    return draw.parts(has_table, has_text)


def rehearse(network: Mechanism, course: Course, rng: np.random.Generator) -> Iterator[None]:
    """Learn to read records by themselves, of many invented patients; no image is shown."""
    truth, draws = course.rehearsed
    nothing = torch.zeros(len(truth), 9)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    for _ in range(REHEARSALS):
        network.train()
        for draw in draws:
            for rows in batches(len(truth), 256, rng):
                record = with_parts_left_out(draw.rows(rows), rng)
                given = torch.zeros(len(rows))
                take_step(network, optimizer, Batch(None, record, given, truth[rows], nothing[rows]))
        yield


def train_epoch(
    network: Mechanism,
    optimizer: torch.optim.Optimizer,
    course: Course,
    number: int,
    rng: np.random.Generator,
    *,
    teacher: Mechanism | None,
) -> None:
    """One pass with new records, new logits and parts left out at random."""
    network.train()
    samples, (gaps, whole) = course.parts["train"], course.epochs[number]
    logit = torch.from_numpy(honest_logits(samples, course.parts["val"], rng)).float()
    prior, image = prior_of(samples), samples.image
    truth, ratings = torch.from_numpy(samples.malignant).float(), torch.from_numpy(samples.ratings)
    for rows in batches(len(truth), 128, rng):
        # without an image only the record speaks
        seen = None if rng.random() < NO_IMAGE else image.rows(rows)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(seen, whole.rows(rows).parts())
        given = torch.full((len(rows),), prior) if seen is None else logit[rows]
        record = with_parts_left_out(gaps.rows(rows), rng)
        take_step(network, optimizer, Batch(seen, record, given, truth[rows], ratings[rows], taught))


@torch.inference_mode()
def corrections(
    network: Mechanism, samples: Samples, draw: Draw, *, parts: str = "image text table"
) -> Floats:
    """Uncalibrated correction of each nodule, shape (n,), from the named parts."""
    network.eval()
    none = torch.zeros_like(draw.has_record)
    given = draw if "text" in parts else Draw(draw.table, None, draw.has_record, draw.log_ratio)
    record = given.parts(None if "table" in parts else none)
    image = samples.image if "image" in parts else None
    return np.asarray(network(image, record).double().numpy())


def learn(
    kind: type[Mechanism], course: Course, *, seed: int, report: Report = lambda _share: None
) -> Mechanism:
    """Train one mechanism, keep the epoch with the least loss on VAL, calibrate there.

    The same course and seed always give the same network. M4 trains its teacher, the joint embedding, first.
    """
    teacher = None
    if issubclass(kind, Distilled):
        teacher = learn(JointEmbedding, course, seed=seed)
    network, rng = start(kind, course, seed), np.random.default_rng(seed)
    total = REHEARSALS + len(course.epochs)
    for done, _ in enumerate(rehearse(network, course, rng)):
        report(done / total)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(len(course.epochs), 1))
    best, state = np.inf, deepcopy(network.state_dict())
    for number in range(len(course.epochs)):
        train_epoch(network, optimizer, course, number, rng, teacher=teacher)
        schedule.step()
        if (loss := val_loss(network, course)) < best:
            best, state = loss, deepcopy(network.state_dict())
        report((REHEARSALS + number + 1) / total)
    network.load_state_dict(state)
    val = course.parts["val"]
    values = np.concatenate([corrections(network, val, draw) for draw in course.val])
    scale, offset = fit_line(values, np.tile(val.malignant, VAL_DRAWS), np.tile(val.logit, VAL_DRAWS))
    network.scale.fill_(scale)
    network.offset.fill_(offset)
    return network.eval()


def val_loss(network: Mechanism, course: Course) -> float:
    """Mean loss on the VAL patients, before calibration unless `network.scale` is fitted."""
    val = course.parts["val"]
    scale, offset = float(network.scale), float(network.offset)
    return float(
        np.mean(
            [
                loss_of(val.logit + scale * corrections(network, val, draw) + offset, val.malignant)
                for draw in course.val
            ]
        )
    )
