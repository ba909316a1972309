"""FROC on scans with inserted nodules: real nodules of unseen patients in backgrounds of the reader's choice.

Each case is a background with a few nodules pasted into it (`inference.insertion`), so that many cases come
of few scans. The unit of the bootstrap is the case: nodules and places differ from case to case, the
background repeats, and the interval knows nothing of backgrounds that weren't there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic

import numpy as np

from inference.datasets.lidc_crops import NoduleCrop
from inference.errors import UnsuitableSeriesError
from inference.evaluate.case_run import series_files
from inference.evaluate.detection_report import froc_figures, froc_section
from inference.evaluate.lidc_run import Collection
from inference.evaluate.manifest import read_manifest
from inference.evaluate.marks import Froc, ScanMatch, Sphere, match
from inference.evaluate.report import Cell, Options, Report, Run, Section, Table, Target
from inference.evaluate.scan_marks import Marker, marker
from inference.insertion import Background, Implant, Places, make_case, make_implant
from inference.intensity import HounsfieldEstimate
from inference.load import load_series
from inference.lungs import find_lungs
from inference.phantom import make_phantom
from inference.registry import HOUNSFIELD, Pipeline, load_pipeline
from inference.types import Volume
from inference.weights import load_into, read_weights

NODULES_PER_CASE = 8
FIRST_SEED = 90_000
LEAST_READERS = 3
_TABLE_EDGES_MM = (0.0, 6.0, 8.0, 15.0, np.inf)


@dataclass(frozen=True, slots=True)
class Inserted:
    """A scan and what was put into it; marks on `excluded` count neither way."""

    name: str
    volume: Volume
    lesions: tuple[Sphere, ...]
    excluded: tuple[Sphere, ...] = ()


CaseMaker = Callable[[int], Inserted]
"""A seed to a case; the same seed always gives the same."""


def evaluate(
    make: CaseMaker,
    seeds: Sequence[int],
    pipeline: Pipeline,
    mark: Marker,
    options: Options,
    *,
    data: str,
    files: tuple[Path, ...] = (),
) -> Report:
    """Mark every case and score the marks.

    Parameters
    ----------
    make, seeds
        The cases.
    mark
        The candidate scoring of the pipeline.
    data
        What was inserted into what, for people.
    """
    start = monotonic()
    matches, sizes = [], []
    for number, seed in enumerate(seeds):
        options.progress("cases", number, len(seeds))
        case = make(seed)
        try:
            marks = mark(case.volume)
        except UnsuitableSeriesError:
            marks = ()  # a scan that the pipeline refuses is one in which it finds nothing
        matches.append(match(marks, case.lesions, case.excluded, scan=case.name, patient=case.name))
        sizes.append([lesion.diameter_mm for lesion in case.lesions])
    options.progress("cases", len(seeds), len(seeds))
    froc = Froc(matches)
    found = froc_figures(froc, options)
    section = froc_section(
        froc, found, options, title="FROC on inserted nodules", data=data, label=pipeline.profile
    )
    target = Target(
        "mean sensitivity at 1/8 to 8 false positives per scan, inserted nodules",
        found["mean_sensitivity"],
        ">=",
        0.85,
        "LUNA16 0.93-0.96 with full data",
    )
    return Report(
        kind="inserted",
        title="Inserted nodules",
        data=f"{data}; {found['lesions']} nodules in {found['scans']} cases",
        split="external",
        models=pipeline.cards,
        pipeline_version=pipeline.version,
        targets=(target,),
        sections=(section, _by_size(matches, sizes)),
        figures=found,
        run=Run(
            options.command,
            monotonic() - start,
            options.device,
            {"seeds": [int(seed) for seed in seeds], "seed": options.seed, "resamples": options.resamples},
            files,
        ),
        limits=("Pasted nodules are no patients' scans: real nodules in real lungs, but at drawn places.",),
    )


def _by_size(matches: Sequence[ScanMatch], sizes: Sequence[Sequence[float]]) -> Section:
    """Which sizes any mark hits."""
    pairs = [
        (size, hit is not None)
        for one, of in zip(matches, sizes, strict=True)
        for size, hit in zip(of, one.hits, strict=True)
    ]
    rows: list[tuple[Cell, ...]] = []
    for low, high in pairwise(_TABLE_EDGES_MM):
        hits = [hit for size, hit in pairs if low <= size < high]
        name = f"{low:g} mm and more" if np.isinf(high) else f"{low:g} to {high:g} mm"
        rows.append((name, sum(hits), len(hits), sum(hits) / len(hits) if hits else None))
    return Section("By size", "Hit by any mark.", Table(("diameter", "hit", "of", "share"), tuple(rows)))


# cases by inference.insertion


def insertion_cases(backgrounds: Sequence[Background], implants: Sequence[Implant]) -> CaseMaker:
    """Cases that go through the backgrounds in turn.

    Raises
    ------
    ValueError
        There is no background or no implant.
    """
    if not backgrounds or not implants:
        raise ValueError(f"{len(backgrounds)} backgrounds and {len(implants)} nodules make no case")
    places = {
        number: Places(one.volume.array, one.lungs.labels > 0, one.volume.spacing_mm)
        for number, one in enumerate(backgrounds)
    }

    def make(seed: int) -> Inserted:
        number = seed % len(backgrounds)
        case = make_case(
            seed,
            backgrounds[number],
            implants,
            count=NODULES_PER_CASE,
            scale=(1.0, 1.0),
            places=places[number],
        )
        return Inserted(
            case.name,
            case.volume,
            tuple(Sphere(one.centre_lps, one.diameter_mm) for one in case.lesions),
            tuple(Sphere(centre, 2 * radius) for centre, radius in case.excluded),
        )

    return make


def implants_of(crops: Sequence[NoduleCrop]) -> tuple[Implant, ...]:
    """Nodules of `LEAST_READERS` and more readers, in the size they have, with estimated HU.

    Raises
    ------
    ModelUnavailableError
        The estimate's weights are missing or differ.
    """
    scaled = load_pipeline("crops")
    estimate = HounsfieldEstimate()
    load_into(estimate, read_weights(*scaled.weights(HOUNSFIELD)), name=scaled.card(HOUNSFIELD).name)
    made = [
        make_implant(crop, estimate.hounsfield(crop.image)) for crop in crops if crop.readers >= LEAST_READERS
    ]
    return tuple(one for one in made if one is not None)


@dataclass(frozen=True, slots=True)
class Backgrounds:
    """Where nodules are put: series of a manifest of cases, and synthetic chests without nodules.

    All lesions that the manifest names count neither way.
    """

    manifest: Path | None = None
    phantoms: int = 0

    def read(self) -> tuple[Background, ...]:
        """Load, and find the lungs.

        Raises
        ------
        ManifestError, UnsuitableSeriesError, OSError
            A series can't be used.
        """
        found = []
        for case in read_manifest(self.manifest) if self.manifest else ():
            volume = load_series(series_files(case)).volume
            lesions = [one.on(volume) for one in (*(case.lesions or ()), *case.excluded)]
            known = tuple((lesion.centre_lps, lesion.diameter_mm / 2) for lesion in lesions)
            found.append(Background(case.name, volume, find_lungs(volume), known))
        for seed in range(FIRST_SEED, FIRST_SEED + self.phantoms):
            volume = make_phantom(seed, nodules=()).volume
            found.append(Background(f"phantom {seed}", volume, find_lungs(volume)))
        return tuple(found)


def evaluate_strips(
    strips: Collection, where: Backgrounds, count: int, pipeline: Pipeline, options: Options
) -> Report:
    """Insert nodules of a collection of strips into backgrounds and score the pipeline's candidates.

    Raises
    ------
    ModelUnavailableError
        The pipeline has no candidate scoring, or the weights of the HU estimate are missing.
    ValueError, OSError
        Strips or backgrounds can't be used.
    """
    mark = marker(pipeline, device=options.device)
    implants = implants_of(strips.read(options.seed))
    backgrounds = where.read()
    return evaluate(
        insertion_cases(backgrounds, implants),
        range(FIRST_SEED, FIRST_SEED + count),
        pipeline,
        mark,
        options,
        data=f"{strips.table.name}, split {strips.split}, in {', '.join(one.name for one in backgrounds)}",
        files=(strips.images, strips.masks, strips.table, *((where.manifest,) if where.manifest else ())),
    )
