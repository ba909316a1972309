"""Damaged pixel data through the reader's child: it may die of them, and nothing else may."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from copy import deepcopy
from pathlib import Path

from pydicom import Dataset
from pydicom.encaps import encapsulate, generate_frames

from inference.errors import UnsuitableSeriesError
from pacs_node.reader import ConfinedReader
from tests.ct_factory import LOSSLESS, LOSSY, make_ct_series


def damaged(ds: Dataset, dice: random.Random) -> Dataset:
    """The same image with bytes of its compressed frame changed, its ends left alone."""
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    data = bytearray(frame)
    for _ in range(dice.choice((1, 1, 3, 20))):
        at = dice.randrange(2, len(data) - 2)
        if dice.random() < 0.1:
            del data[at : at + dice.randrange(1, 50)]
        else:
            data[at] = dice.randrange(256)
    new = deepcopy(ds)
    new.PixelData = encapsulate([bytes(data)])
    new["PixelData"].VR = "OB"
    return new


def run_decoders(count: int, seed: int, reader: ConfinedReader | None = None) -> dict[str, int]:
    """Decode `count` damaged images; how they ended."""
    dice = random.Random(seed)
    images = [make_ct_series(1, transfer_syntax=syntax)[0] for syntax in (*LOSSLESS, *LOSSY)]
    ends: Counter[str] = Counter()
    made = reader or ConfinedReader()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.dcm"
        for _ in range(count):
            damaged(dice.choice(images), dice).save_as(path, enforce_file_format=True)
            ends[_end(made, path)] += 1
    if reader is None:
        made.close()
    return dict(ends)


def _end(reader: ConfinedReader, path: Path) -> str:
    try:
        # the image with itself: decoded twice, which shows a decoder that gives what it finds in memory
        return "decoded" if reader._ask("compare", [path, path]) else "refused"
    except UnsuitableSeriesError as error:
        return error.sentence
