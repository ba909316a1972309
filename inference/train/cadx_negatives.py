"""Collect what is no nodule: ``python -m inference.train.cadx_negatives --help``.

Vessels, bronchi, bone and chest wall of real chest CT by rules of place, density and form; scars and bronchi
of phantoms, whose truth is known. Blocks of 13 x 67 x 67 mm for `inference.train.cadx`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from scipy import ndimage

from inference.load import load_series
from inference.lungs import find_lungs
from inference.phantom import make_phantom
from inference.phantom.structures import StructureKind, StructureSpec, random_structures
from inference.types import Volume

_LOG = logging.getLogger(__name__)

SHAPE: Final = (11, 96, 96)
SPACING_MM: Final = (1.25, 0.7, 0.7)
GRID_MM: Final = 1.25
LESION_RADIUS_MM: Final = 6.0
PHANTOM_STRUCTURES: Final = 24

Mask = NDArray[np.bool_]
Points = NDArray[np.float64]


def block(volume: Volume, place: Sequence[float]) -> NDArray[np.int16]:
    """The block around a place, fractional index (z, y, x); air outside the volume."""
    steps = [
        (np.arange(n) - (n - 1) / 2) * fine / coarse
        for n, fine, coarse in zip(SHAPE, SPACING_MM, volume.spacing_mm, strict=True)
    ]
    low = [int(np.floor(c + s[0])) - 1 for c, s in zip(place, steps, strict=True)]
    high = [int(np.ceil(c + s[-1])) + 2 for c, s in zip(place, steps, strict=True)]
    shape = volume.array.shape
    where = tuple(slice(max(0, lo), min(n, hi)) for lo, hi, n in zip(low, high, shape, strict=True))
    pads = [(max(0, -lo), max(0, hi - n)) for lo, hi, n in zip(low, high, shape, strict=True)]
    part = np.pad(volume.array[where].astype(np.float32), pads, constant_values=-1000)
    axes = [c + s - lo for c, s, lo in zip(place, steps, low, strict=True)]
    grid = np.meshgrid(*axes, indexing="ij")
    return np.asarray(ndimage.map_coordinates(part, grid, order=1, mode="nearest").round().astype(np.int16))


@dataclass(frozen=True)
class Scan:
    """A chest CT on a coarse isotropic grid, with its lung field."""

    hu: NDArray[np.float32]
    lung: Mask
    step: NDArray[np.float64]  # voxels of the volume for one of the grid

    @classmethod
    def of(cls, volume: Volume) -> Scan:
        """Coarsen a volume around its lungs."""
        lung = find_lungs(volume).labels > 0
        factors = np.array(volume.spacing_mm) / GRID_MM
        hu = ndimage.zoom(volume.array.astype(np.float32), factors, order=1)
        field = ndimage.zoom(lung.astype(np.float32), factors, order=1) > 0.5
        shape = np.array(volume.array.shape)
        return cls(hu, np.asarray(field), (shape - 1) / (np.array(hu.shape) - 1))

    def places(self, rng: np.random.Generator, count: int) -> Iterator[tuple[str, Points]]:
        """Structure and its places, fractional indices in the volume (n, 3)."""
        inside = ndimage.distance_transform_edt(self.lung) * GRID_MM
        outside = ndimage.distance_transform_edt(~self.lung) * GRID_MM
        bone = (self.hu > 300) & (outside > 0) & (outside < 30)
        bone = ndimage.binary_opening(bone)
        by_bone = ndimage.distance_transform_edt(~bone) * GRID_MM < 20
        wall = (abs(self.hu + 20) < 130) & (outside > 0) & (outside < 8) & by_bone
        for name, found in (
            ("bone", bone),
            ("chest wall", wall),
            ("vessel", self._vessels(inside, rng)),
            ("bronchus", self._bronchi(inside)),
        ):
            at = np.argwhere(found)
            chosen = rng.permutation(len(at))[:count]
            yield name, at[chosen] * self.step

    def _vessels(self, inside: NDArray[np.float64], rng: np.random.Generator) -> Mask:
        """Middle lines of long thin tissue in the lung, away from anything thick."""
        tissue = (self.hu > -500) & self.lung & (inside > 3)
        radius = ndimage.distance_transform_edt(tissue) * GRID_MM
        thick = ndimage.distance_transform_edt(radius < LESION_RADIUS_MM) * GRID_MM < 25
        middle = (radius == ndimage.maximum_filter(radius, 3)) & (radius >= GRID_MM) & ~thick
        found = np.zeros_like(tissue)
        at = np.argwhere(middle)
        reach = int(8 / GRID_MM)
        for z, y, x in at[rng.permutation(len(at))[:3000]]:
            low = np.maximum((z - reach, y - reach, x - reach), 0)
            box = tissue[low[0] : z + reach + 1, low[1] : y + reach + 1, low[2] : x + reach + 1]
            labels, _ = ndimage.label(box)
            own = np.argwhere(labels == labels[tuple(np.array((z, y, x)) - low)])
            if len(own) > 12:
                least, middle_one, most = np.linalg.eigvalsh(np.cov(own.T))
                found[z, y, x] = most > 3 * middle_one and least > 0
        return found

    def _bronchi(self, inside: NDArray[np.float64]) -> Mask:
        """Middles of small round lumina with a wall, slice by slice."""
        found = np.zeros(self.hu.shape, dtype=bool)
        for number, plane in enumerate(self.hu):
            labels, count = ndimage.label((plane < -930) & (inside[number] > 0))
            if not count:
                continue
            areas = ndimage.sum_labels(np.ones_like(plane), labels, np.arange(1, count + 1)) * GRID_MM**2
            for label in 1 + np.flatnonzero((areas >= 4) & (areas <= 120)):
                own = labels == label
                ring = ndimage.binary_dilation(own, iterations=2) & ~ndimage.binary_dilation(own)
                if plane[ring].mean() > -700:
                    y, x = np.argwhere(own).mean(0).round().astype(int)
                    found[number, y, x] = True
        return found


_PHANTOM_NAMES: Final = {
    StructureKind.SCAR: "scar",
    StructureKind.BRONCHUS: "bronchus",
    StructureKind.BONE_ISLAND: "bone",
    StructureKind.PLAQUE: "chest wall",
}


def of_series(folder: Path, rng: np.random.Generator, count: int) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Structures of a real series."""
    volume = load_series(sorted(folder.rglob("*.dcm"))).volume
    for name, places in Scan.of(volume).places(rng, count):
        _LOG.info("%s: %d %s", folder.name, len(places), name)
        yield from ((name, block(volume, place)) for place in places)


def of_phantom(seed: int, rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Structures of a phantom, by their truth; scars twice as many."""
    scars = tuple(StructureSpec(StructureKind.SCAR, float(rng.uniform(10, 40))) for _ in range(8))
    specs = (*random_structures(rng, PHANTOM_STRUCTURES), *scars)
    spacing = (float(rng.choice([1.25, 2.0, 2.5])), 0.8, 0.8)
    shape = (round(300 / spacing[0]), 440, 440)
    phantom = make_phantom(seed, shape, spacing, (), structures=specs)
    for item in phantom.structures:
        if item.kind in _PHANTOM_NAMES:
            place = phantom.volume.lps_to_index(item.centre_lps)
            yield _PHANTOM_NAMES[item.kind], block(phantom.volume, [float(v) for v in place])


def write(examples: Sequence[tuple[str, str, NDArray[np.int16]]], path: Path) -> None:
    """Write (source, structure, block) as the NPZ that `inference.train.cadx_data.read_negatives` reads."""
    arrays: dict[str, Any] = {
        "source": np.array([source for source, _, _ in examples]),
        "structure": np.array([name for _, name, _ in examples]),
        "hu": np.stack([hu for _, _, hu in examples]),
        "spacing_mm": np.tile(np.array(SPACING_MM, dtype=np.float32), (len(examples), 1)),
    }
    np.savez(path, **arrays)


def main() -> None:
    """Parse the arguments, collect, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=Path, nargs="*", default=[], help="folders of DICOM files")
    parser.add_argument("--phantoms", type=int, default=6)
    parser.add_argument("--count", type=int, default=90, help="of each structure in each series")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rng = np.random.default_rng(arguments.seed)
    examples = [
        (str(folder), name, hu)
        for folder in arguments.series
        for name, hu in of_series(folder, rng, arguments.count)
    ]
    for seed in track(range(arguments.phantoms), "phantoms"):
        examples += [
            (f"phantom {seed}", name, hu) for name, hu in of_phantom(1000 + arguments.seed + seed, rng)
        ]
    write(examples, arguments.out)
    _LOG.info("%s: %d blocks", arguments.out, len(examples))


if __name__ == "__main__":
    main()
