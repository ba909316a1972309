"""Train the text tower of the small CLIP: ``python -m inference.train.text --out text.safetensors``.

No pretrained text tower comes with the project, so this one learns what our sentences mean before any image
is seen: from a sentence it must tell the structure, each semantic feature (positive, negative, not
mentioned), the size and the place that are named. The heads are thrown away; the tower stays frozen
afterwards (locked text tuning, Zhai et al., arXiv 2111.07991). Some minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from inference.openclip_model import REFERENCE, build_clip, tokenize
from inference.prompts import FRAMES, PAIRS, PLACES, SIZES, STRUCTURES, UNSEEN_STRUCTURES, structure_sentence
from inference.weights import write_weights

_LOG = logging.getLogger(__name__)

NAMES = tuple(STRUCTURES)
# structure (and none), then 3 answers for each pair, sizes (and none), places (and none)
CLASSES = (len(NAMES) + 1, *(3 for _ in PAIRS), len(SIZES) + 1, len(PLACES) + 1)
SCALE = 10.0

Example = tuple[str, list[int]]


def draw(rng: np.random.Generator) -> Example:
    """One sentence and what it says, a class for each of `CLASSES`; 0 is not mentioned."""
    truth = [0] * len(CLASSES)
    kind = rng.random()
    if kind < 0.35:
        name = str(rng.choice(NAMES))
        truth[0] = NAMES.index(name) + 1
        return structure_sentence(name, rng), truth
    truth[0] = NAMES.index("nodule") + 1
    if kind < 0.5:
        table, slot = (SIZES, -2) if rng.random() < 0.5 else (PLACES, -1)
        name = str(rng.choice(list(table)))
        truth[slot] = list(table).index(name) + 1
        sentence = str(rng.choice(table[name]))
        return (sentence if sentence.startswith("The") else str(rng.choice(FRAMES)).format(sentence)), truth
    chosen = rng.permutation(len(PAIRS))[: int(rng.integers(1, 4))]
    sentences = []
    for index in chosen:
        is_positive = bool(rng.random() < 0.5)
        truth[1 + index] = 1 if is_positive else 2
        sentences.append(str(rng.choice(PAIRS[index].positive if is_positive else PAIRS[index].negative)))
    return " ".join(sentences), truth


class TextTower(nn.Module):
    """The text half of a CLIP with throw-away heads."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = build_clip(REFERENCE)
        self.heads = nn.Linear(REFERENCE.embed_dim, sum(CLASSES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Logits (n, classes) for each of `CLASSES` from tokens (n, context)."""
        embedding = self.clip.encode_text(tokens, normalize=True)  # (n, 256)
        logits: Tensor = self.heads(SCALE * embedding)
        return torch.split(logits, list(CLASSES), dim=1)


def text_state(clip: nn.Module) -> dict[str, Tensor]:
    """The tensors of the text tower alone, by the keys of open_clip's CLIP."""
    return {
        key: value.detach().clone()
        for key, value in clip.state_dict().items()
        if not key.startswith("visual.") and key not in {"logit_scale", "logit_bias"}
    }


def batches(seed: int, steps: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (size, context) and truth (size, len(CLASSES)), int64."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        sentences, truths = zip(*(draw(rng) for _ in range(size)), strict=True)
        yield tokenize(sentences, REFERENCE.context_length), torch.tensor(truths)


def unseen() -> list[Example]:
    """The held-out wordings with their truth."""
    examples: list[Example] = []
    nodule = NAMES.index("nodule") + 1
    for index, pair in enumerate(PAIRS):
        for answer, sentence in enumerate(pair.unseen, start=1):
            truth = [nodule, *([0] * (len(CLASSES) - 1))]
            truth[1 + index] = answer
            examples.append((sentence, truth))
    for name, wordings in UNSEEN_STRUCTURES.items():
        examples += [(text, [NAMES.index(name) + 1, *([0] * (len(CLASSES) - 1))]) for text in wordings]
    return examples


def train(steps: int, size: int, seed: int) -> TextTower:
    """Train from scratch; the same numbers give the same tower."""
    torch.manual_seed(seed)
    tower = TextTower()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for tokens, truth in track(batches(seed, steps, size), "text tower", total=steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = tower(tokens)
        loss = torch.stack(
            [functional.cross_entropy(one.float(), truth[:, slot]) for slot, one in enumerate(logits)]
        ).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return tower.eval()


@torch.inference_mode()
def right_share(tower: TextTower, examples: list[Example]) -> float:
    """Share of sentences whose structure or named feature is told rightly."""
    logits = tower(tokenize([text for text, _ in examples], REFERENCE.context_length))
    right = 0
    for row, (_, truth) in enumerate(examples):
        named = [slot for slot, answer in enumerate(truth) if answer and slot] or [0]
        right += all(int(logits[slot][row].argmax()) == truth[slot] for slot in named)
    return right / len(examples)


def main() -> None:
    """Parse the arguments, train, measure on unseen wordings, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    tower = train(arguments.steps, arguments.batch, arguments.seed)
    rng = np.random.default_rng(arguments.seed + 1)
    seen, new = right_share(tower, [draw(rng) for _ in range(500)]), right_share(tower, unseen())
    _LOG.info("told rightly: trained wordings %.3f, unseen wordings %.3f", seen, new)
    digest = write_weights(
        text_state(tower.clip), arguments.out, {"name": "reference text tower", "seed": str(arguments.seed)}
    )
    _LOG.info("%s sha256 %s", arguments.out, digest)


if __name__ == "__main__":
    main()
