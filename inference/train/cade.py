"""Train the text-prompted SAM 2 from scratch: ``python -m inference.train.cade --images ... --out DIR``.

Reads a collection of strips (see `inference.datasets.lidc_crops`), the frozen text tower and the estimate
of HU. Writes ``cade.safetensors`` (float16, moving average of the weights), ``checkpoint.pt`` and
``log.jsonl`` into the folder. Started again with the same folder it goes on where it was.

Cubes with what lies above and below a nodule are optional and of the training patients only.

Targets are soft: the mean of the readers' agreement and of their 50 % consensus, so that a probability of 0.5
is the consensus. First single slices, then walks through neighbouring slices with SAM 2's memory.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, track
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from inference.datasets.lidc_crops import NoduleCrop, Split, read_crops, split_of
from inference.digest import sha256_of
from inference.intensity import HounsfieldEstimate
from inference.openclip_model import REFERENCE as CLIP_REFERENCE
from inference.openclip_model import build_clip, token_embeddings, tokenize
from inference.sam2_model import REFERENCE, Frame, Prompt, Sam2Size, TextPromptedSam2
from inference.train.cade_samples import Batch, Sampler, collate
from inference.train.cade_strips import Strip, build_strip, read_cubes
from inference.weights import load_into, read_weights, write_weights

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train.

    Parameters
    ----------
    steps, minutes
        Budget: the run ends at the first of the two; None for no limit. The schedule follows it.
    images
        Slices in a batch.
    walk
        Slices of one walk.
    single_until
        Share of the run with single slices only; afterwards `single_share` of the batches are.
    rate, decay
        Greatest learning rate and weight decay of AdamW.
    average
        Of the moving average of the weights, per step.
    box_share
        Share of samples with a box prompt.
    every_minutes, validation
        Minutes between validations, which also save, and batches of 8 walks in each.
    """

    steps: int | None = None
    minutes: float | None = 60.0
    images: int = 32
    walk: int = 4
    single_until: float = 0.4
    single_share: float = 0.4
    rate: float = 8e-4
    decay: float = 0.05
    average: float = 0.998
    box_share: float = 0.2
    every_minutes: float = 5.0
    validation: int = 40
    seed: int = 0


def mask_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy (times 5) and soft Dice with squares, whose best answer is the soft target itself.

    Parameters
    ----------
    logits, target, known
        Shape (n, y, x).
    """
    share = known.mean((1, 2)).clamp(min=1e-6)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    entropy = (entropy * known).mean((1, 2)) / share.clamp(min=0.02)
    chance = logits.sigmoid() * known
    both = (chance * target).sum((1, 2))
    dice = 1 - (2 * both + 1) / (chance.square().sum((1, 2)) + target.square().sum((1, 2)) + 1)
    return (5 * entropy + dice).mean()


def frame_loss(frame: Frame, target: Tensor, known: Tensor) -> Tensor:
    """Loss of the mask, of the estimated IoU and of the presence on one slice of n objects."""
    there = (target >= 0.5).flatten(1).any(1)
    is_known = known.flatten(1).all(1).float()
    hard, guess = target >= 0.5, frame.logits.detach() > 0
    iou = (hard & guess).sum((1, 2)) / (hard | guess).sum((1, 2)).clamp(min=1)
    presence = functional.binary_cross_entropy_with_logits(frame.presence, there.float(), reduction="none")
    quality = (frame.iou - iou).abs() * there
    return mask_loss(frame.logits, target, known) + 0.3 * ((presence + quality) * is_known).mean()


class Sentences:
    """Token embeddings of sentences by the frozen text tower, each computed once."""

    def __init__(self, clip: nn.Module, context_length: int) -> None:
        self._clip, self._context = clip.eval(), context_length
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, sentences: Iterable[str]) -> Tensor:
        """Shape (n, tokens, width)."""
        wanted = list(sentences)
        for text in wanted:
            if text not in self._known:
                tokens = tokenize([text], self._context)
                self._known[text] = token_embeddings(self._clip, tokens)[0]
        return torch.stack([self._known[text] for text in wanted])


def run_batch(model: TextPromptedSam2, batch: Batch, text: Tensor) -> list[Frame]:
    """Features of all slices at once, then the walk."""
    length, number = batch.images.shape[:2]
    # on the CPU the backward pass of the default kernel takes twice the time of the math kernel's
    with torch.autocast(batch.images.device.type, dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        features = model.encode(batch.images.flatten(0, 1))
        frames = [features.take(slice(t * number, (t + 1) * number)) for t in range(length)]
        return model.sequence(frames, Prompt(text, batch.boxes), length=length)


def loss_of(model: TextPromptedSam2, batch: Batch, text: Tensor) -> Tensor:
    """Mean over the slices of the walk."""
    answers = run_batch(model, batch, text)
    losses = [frame_loss(*one) for one in zip(answers, batch.targets, batch.known, strict=True)]
    return torch.stack(losses).mean()


@torch.inference_mode()
def validate(model: TextPromptedSam2, sampler: Sampler, sentences: Sentences, walks: int) -> dict[str, float]:
    """Dice in the windows of drawn walks, pooled over the slices of each; the same draws each time."""
    rng = np.random.default_rng(1)
    scores: dict[str, list[float]] = {}
    for index in range(walks):
        box_share = float(index % 5 == 4)
        batch = collate([sampler.draw(rng, 3) for _ in range(8)], model.image_size, rng, box_share)
        frames = run_batch(model, batch, sentences(batch.sentences))
        guess = torch.stack([(one.logits > 0) & (one.presence[:, None, None] > 0) for one in frames])
        truth = batch.targets >= 0.5
        both = (guess & truth).sum((0, 2, 3))
        total = guess.sum((0, 2, 3)) + truth.sum((0, 2, 3))
        for n, kind in enumerate(batch.kinds):
            dice = float(2 * both[n] / total[n]) if total[n] else 1.0
            scores.setdefault("box" if box_share else kind, []).append(dice)
    return {kind: round(float(np.mean(values)), 4) for kind, values in sorted(scores.items())}


class Training:
    """Model, moving average, optimiser and clock of one run."""

    def __init__(self, plan: Plan, size: Sam2Size, device: torch.device) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.device = plan, device
        self.model = TextPromptedSam2(size).to(device)
        self.average = TextPromptedSam2(size).to(device).eval()
        self.average.load_state_dict(self.model.state_dict())
        several = [one for one in self.model.parameters() if one.ndim > 1]
        others = [one for one in self.model.parameters() if one.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": several, "weight_decay": plan.decay}, {"params": others, "weight_decay": 0.0}],
            lr=plan.rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.step, self.seconds = 0, 0.0

    def progress(self) -> float:
        """Share of the budget that is spent, 0..1."""
        spent = [0.0]
        if self.plan.steps is not None:
            spent.append(self.step / self.plan.steps)
        if self.plan.minutes is not None:
            spent.append(self.seconds / 60 / self.plan.minutes)
        return min(1.0, max(spent))

    def advance(self, batch: Batch, text: Tensor) -> float:
        """One step; the loss."""
        warm = min(1.0, (self.step + 1) / 200)
        rate = self.plan.rate * warm * (0.01 + 0.99 * (1 + math.cos(math.pi * self.progress())) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        started = time.monotonic()
        self.model.train()
        loss = loss_of(self.model, batch, text)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        share = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            means, values = list(self.average.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(means, values, 1 - share)
        self.seconds += time.monotonic() - started
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write a checkpoint to go on from."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same sizes."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def train(
    training: Training, sampler: Sampler, validation: Sampler, sentences: Sentences, folder: Path
) -> dict[str, float]:
    """Run to the end of the budget; log, validate and save on the way.

    Returns
    -------
    dict
        The last validation of the moving average.
    """
    plan, losses, since = training.plan, list[float](), time.monotonic()
    # a new stream after each resume, for the same samples were drawn before
    rng = np.random.default_rng([plan.seed, training.step])
    with Progress(transient=True) as bar:
        task = bar.add_task("cade", total=1.0)
        while True:
            progress = training.progress()
            is_over = progress >= 1
            if is_over or time.monotonic() - since > 60 * plan.every_minutes:
                scores = validate(training.average, validation, sentences, plan.validation)
                _note(folder, training, losses, scores)
                losses, since = [], time.monotonic()
            if is_over:
                return scores
            single = progress < plan.single_until or rng.random() < plan.single_share
            length = 1 if single else plan.walk
            drawn = [sampler.draw(rng, length) for _ in range(plan.images // length)]
            batch = collate(drawn, training.model.image_size, rng, plan.box_share).to(training.device)
            losses.append(training.advance(batch, sentences(batch.sentences).to(training.device)))
            bar.update(task, completed=progress, description=f"cade {losses[-1]:.3f}")


def _note(folder: Path, training: Training, losses: list[float], scores: dict[str, float]) -> None:
    training.save(folder / "checkpoint.pt")
    record = {
        "step": training.step,
        "minutes": round(training.seconds / 60, 2),
        "loss": round(float(np.mean(losses)), 4) if losses else None,
        "dice": scores,
    }
    _LOG.info("%s", json.dumps(record))
    with (folder / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def load_text(path: Path) -> nn.Module:
    """The reference CLIP with a trained text tower; its image tower is untrained and unused."""
    clip: nn.Module = build_clip(CLIP_REFERENCE)
    load_into(clip, {**clip.state_dict(), **read_weights(path, sha256_of(path))}, name=path.name)
    return clip


def load_estimate(path: Path) -> HounsfieldEstimate:
    """The estimate of HU."""
    estimate = HounsfieldEstimate()
    load_into(estimate, read_weights(path, sha256_of(path)), name=path.name)
    return estimate


def strips_of(crops: Iterable[NoduleCrop], split: Split, estimate: HounsfieldEstimate) -> list[Strip]:
    """Prepared nodules of one part of the collection."""
    chosen = [one for one in crops if split_of(one.patient) == split]
    made = (build_strip(one, estimate) for one in track(chosen, f"strips: {split}", transient=True))
    return [one for one in made if one is not None]


def main(
    arguments: Sequence[str] | None = None, plan: Plan | None = None, size: Sam2Size = REFERENCE
) -> None:
    """Parse the arguments, train, write the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "masks", "table", "text-weights", "hounsfield-weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("cubes", "cubes-table"):
        parser.add_argument(f"--{name}", type=Path, help="cubes of nodules with what lies above and below")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    given.out.mkdir(parents=True, exist_ok=True)
    minutes = (plan or Plan()).minutes if given.steps is None and given.minutes is None else given.minutes
    plan = replace(plan or Plan(), steps=given.steps, minutes=minutes, seed=given.seed)
    estimate = load_estimate(given.hounsfield_weights)
    crops = read_crops(given.images, given.masks, given.table)
    strips = {split: strips_of(crops, split, estimate) for split in (Split.TRAIN, Split.VAL)}
    if given.cubes and given.cubes_table:
        cubes = read_cubes(given.cubes, given.cubes_table)
        strips[Split.TRAIN] += [one for one in cubes if split_of(one.crop.patient) == Split.TRAIN]
    training = Training(plan, size, torch.device(given.device))
    checkpoint = given.out / "checkpoint.pt"
    if checkpoint.exists():
        training.resume(checkpoint)
    sentences = Sentences(load_text(given.text_weights), CLIP_REFERENCE.context_length)
    samplers = Sampler(strips[Split.TRAIN]), Sampler(strips[Split.VAL])
    scores = train(training, *samplers, sentences, given.out)
    noted = {"name": "reference CADe", "seed": str(plan.seed), "steps": str(training.step)}
    digest = write_weights(training.average.state_dict(), given.out / "cade.safetensors", noted)
    _LOG.info("dice %s sha256 %s", scores, digest)


if __name__ == "__main__":
    main()
