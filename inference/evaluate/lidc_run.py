"""``pacs-node evaluate lidc-crops``: read the three files, run the models, write the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from inference.datasets.lidc_crops import NoduleCrop, Split, read_crops, split_of
from inference.evaluate import lidc_report
from inference.evaluate.lidc_crops import LEAST_READERS, CropModels, evaluate_crops, generator
from inference.evaluate.lidc_prompts import evaluate_prompts
from inference.evaluate.report import Options, Report, Run
from inference.prompts import NODULE, STRUCTURES, UNSEEN_STRUCTURES
from inference.types import ModelCard

EVERY = "all"
SENTENCES = (STRUCTURES[NODULE][0], UNSEEN_STRUCTURES[NODULE][0])


@dataclass(frozen=True, slots=True)
class Collection:
    """Three files in the format of `inference.datasets.lidc_crops`, and which part of them.

    Parameters
    ----------
    split
        `EVERY` or a value of `inference.datasets.lidc_crops.Split`.
    limit
        At most so many nodules, drawn by the seed; None for all.
    """

    images: Path
    masks: Path
    table: Path
    split: str = EVERY
    limit: int | None = None

    def read(self, seed: int) -> tuple[NoduleCrop, ...]:
        """The nodules in the order of the table, those without any reader's mask left out.

        Raises
        ------
        ValueError
            The files don't belong together, or there is no nodule of this split.
        OSError
            A file can't be read.
        """
        crops = read_crops(self.images, self.masks, self.table)
        chosen = [c for c in crops if c.readers and self.split in {EVERY, split_of(c.patient)}]
        if not chosen:
            raise ValueError(f"{self.table.name} has no nodule of the split {self.split!r}")
        if self.limit is not None and self.limit < len(chosen):
            drawn = generator(seed, "limit").permutation(len(chosen))[: self.limit]
            chosen = [chosen[number] for number in sorted(drawn)]
        return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Named:
    """Models with what a report says about them."""

    models: CropModels
    cards: tuple[ModelCard, ...]
    pipeline_version: str


def evaluate(collection: Collection, named: Named, options: Options) -> Report:
    """Measure everything and draw the pictures.

    Returns
    -------
    Report
        ``nodules.csv`` with one line for each nodule and the pictures are in ``options.out``.

    Raises
    ------
    ValueError, OSError
        As `Collection.read`.
    """
    start = monotonic()
    crops = collection.read(options.seed)
    outcomes = evaluate_crops(
        crops, named.models, sentences=SENTENCES, seed=options.seed, progress=options.progress
    )
    prompts = evaluate_prompts(crops, named.models, seed=options.seed, progress=options.progress)
    options.progress("intervals", 0, 1)
    found = lidc_report.figures(outcomes, prompts, options)
    data = describe(collection, crops)
    lidc_report.draw(outcomes, found, options, f"{collection.table.stem}, split {collection.split}")
    lidc_report.write_rows(outcomes, options.out / "nodules.csv")
    return Report(
        kind="lidc-crops",
        title="LIDC-IDRI nodule crops",
        data=data,
        split=collection.split,
        models=named.cards,
        pipeline_version=named.pipeline_version,
        targets=lidc_report.targets(found),
        sections=lidc_report.sections(found, options.out),
        figures=found,
        run=Run(
            options.command,
            monotonic() - start,
            options.device,
            {
                "sentence": SENTENCES[0],
                "unseen_sentence": SENTENCES[1],
                "seed": options.seed,
                "resamples": options.resamples,
                "limit": collection.limit,
            },
            (collection.images, collection.masks, collection.table),
        ),
        limits=(*lidc_report.LIMITS, *_trained_on(crops)),
    )


def describe(collection: Collection, crops: Sequence[NoduleCrop]) -> str:
    """How many of what, for people."""
    parts = Counter(split_of(crop.patient).value for crop in crops)
    main = sum(crop.readers >= LEAST_READERS for crop in crops)
    trusted = sum(crop.is_trusted for crop in crops)
    return (
        f"{collection.table.name}: {len(crops)} nodules of {len({crop.patient for crop in crops})} patients, "
        f"{main} drawn by {LEAST_READERS} and more readers, {trusted} with trusted ratings; by split "
        + ", ".join(f"{count} {name}" for name, count in sorted(parts.items()))
    )


def _trained_on(crops: Sequence[NoduleCrop]) -> tuple[str, ...]:
    """A warning where figures are no test."""
    seen = sum(split_of(crop.patient) in {Split.TRAIN, Split.VAL} for crop in crops)
    if not seen:
        return ()
    warning = (
        f"{seen} of {len(crops)} nodules are of patients whose number says training or validation: for "
        "models that were trained on this split, these figures are no test."
    )
    return (warning,)
