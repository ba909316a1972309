"""How often network and HU tell the attenuation type of a nodule: the table of docs/evaluation.md.

python -m tests.benchmarks.nodule_type [--phantoms 21] [--lidc DIR]

Drawn nodules as the reference profile finds and outlines them. With `DIR`, a folder of LIDC-IDRI's crops and
cubes (slices_images.tar, slices_masks.npz, slices_nodules.csv, cubes_51.npz, cubes_nodules.csv), nodules of
test patients too, under the readers' masks; the truth is their median texture: 5 solid, up to 2 ground-glass.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from inference.analyse import analyse
from inference.cadx import NineViewReader, build_reader
from inference.certainty import CERTAIN
from inference.datasets.lidc_crops import read_crops, split_of
from inference.evaluate.lidc import read_cubes
from inference.intensity import HounsfieldEstimate
from inference.measure import attenuation
from inference.phantom import make_phantom, random_specs
from inference.registry import CLASSIFICATION, HOUNSFIELD, TEXT, Pipeline, load_pipeline
from inference.types import Attenuation, Finding, SourceFrame, Volume
from inference.weights import load_into, read_weights

_NODULES = 6
_FIRST_SEED = 1000


class Types(NamedTuple):
    """What was drawn or rated, and the two readings."""

    truth: Attenuation
    network: Attenuation
    hounsfield: Attenuation
    is_certain: bool


def drawn(pipeline: Pipeline, phantoms: int) -> Iterator[Types]:
    """Nodules of so many phantoms, the first that of the demo, as far as they are found."""
    for number in track(range(phantoms), description="phantoms"):
        seed = _FIRST_SEED + number - 1
        specs = random_specs(np.random.default_rng(seed), _NODULES) if number else None
        phantom = make_phantom(seed if number else 0, nodules=specs)
        findings = analyse(phantom.volume, pipeline, input_digest=f"type-{number}").findings
        for nodule in phantom.nodules:
            gaps = [
                float(np.linalg.norm(_centre(one, phantom.volume) - nodule.centre_lps)) for one in findings
            ]
            if gaps and min(gaps) < nodule.diameter_mm / 2:
                yield _of(Attenuation(nodule.attenuation), findings[int(np.argmin(gaps))])


def _centre(finding: Finding, volume: Volume) -> NDArray[np.float64]:
    return volume.index_to_lps(np.argwhere(finding.mask).mean(axis=0) + np.array(finding.origin))


def _of(truth: Attenuation, finding: Finding) -> Types:
    doubt = finding.attenuation_doubt
    if finding.attenuation is not None:
        return Types(truth, finding.attenuation, finding.attenuation, is_certain=True)
    if doubt is None:
        raise ValueError("a nodule without a type and without a doubt")
    return Types(truth, doubt.read, doubt.measured, is_certain=False)


def crops(directory: Path, reader: NineViewReader) -> Iterator[Types]:
    """Nodules of three readers and more under their consensus; HU are estimated from 8 bit."""
    estimate = HounsfieldEstimate()
    load_into(estimate, read_weights(*load_pipeline("crops").weights(HOUNSFIELD)), name=HOUNSFIELD)
    files = (directory / name for name in ("slices_images.tar", "slices_masks.npz", "slices_nodules.csv"))
    for crop in track(list(read_crops(*files)), description="crops"):
        wanted = split_of(crop.patient) == "test" and crop.is_trusted and crop.readers >= 3
        mask = crop.consensus() if wanted and crop.spacing_mm is not None else None
        if mask is None or crop.spacing_mm is None or not mask.any():
            continue
        hu = np.asarray(estimate.hounsfield(crop.image), dtype=np.float32)
        to_lps = np.diag([*crop.spacing_mm[::-1], 1.0])[:, [2, 1, 0, 3]]
        frames = tuple(SourceFrame("", str(number)) for number in range(len(hu)))
        yield _read(reader, Volume(hu, to_lps, "", "", "", frames), mask, crop.ratings["texture"])


def cubes(directory: Path, reader: NineViewReader) -> Iterator[Types]:
    """Nodules in cubes of 1 mm, under one reader's mask."""
    for cube in track(list(read_cubes(directory / "cubes_51.npz")), description="cubes"):
        if split_of(cube.patient) == "test":
            yield _read(reader, cube.volume, cube.truth, cube.texture)


def _read(reader: NineViewReader, volume: Volume, mask: NDArray[np.bool_], texture: float) -> Types:
    features = reader.read(volume.array, volume.spacing_mm, mask).features
    (rank,) = (one for one in features if one.name == "texture")
    network, hounsfield = _rated(rank.value), attenuation(volume, mask, (0, 0, 0))
    return Types(_rated(texture), network, hounsfield, network is hounsfield and rank.probability >= CERTAIN)


def _rated(texture: float) -> Attenuation:
    if texture <= 2:
        return Attenuation.GROUND_GLASS
    return Attenuation.SOLID if texture == 5 else Attenuation.PART_SOLID


def add_rows(table: Table, name: str, nodules: list[Types]) -> None:
    """Add all of them, and the part-solid ones."""
    for what, some in (
        (name, nodules),
        ("the part-solid of these", [one for one in nodules if one.truth is Attenuation.PART_SOLID]),
    ):
        certain = [one for one in some if one.is_certain]
        table.add_row(
            what,
            f"{sum(one.network is one.truth for one in some)} of {len(some)}",
            f"{sum(one.hounsfield is one.truth for one in some)} of {len(some)}",
            f"{len(certain)}",
            f"{sum(one.network is one.truth for one in certain)}",
            f"{len(some) - len(certain)}",
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="The attenuation type by network and by HU.")
    parser.add_argument("--phantoms", type=int, default=21)
    parser.add_argument("--lidc", type=Path, help="folder with the crops and cubes of LIDC-IDRI")
    arguments = parser.parse_args()
    pipeline = load_pipeline("reference")
    table = Table("nodules", "network alone", "HU alone", "certain", "of these right", "not certain")
    add_rows(table, f"drawn, {arguments.phantoms} phantoms", list(drawn(pipeline, arguments.phantoms)))
    if arguments.lidc is not None:
        reader = build_reader(
            read_weights(*pipeline.weights(TEXT)),
            read_weights(*pipeline.weights(CLASSIFICATION)),
            malignancy_shift=pipeline.card(CLASSIFICATION).parameters["malignancy_shift"],
        )
        add_rows(table, "LIDC-IDRI crops, test patients", list(crops(arguments.lidc, reader)))
        add_rows(table, "LIDC-IDRI cubes", list(cubes(arguments.lidc, reader)))
    Console().print(table)


if __name__ == "__main__":
    main()
