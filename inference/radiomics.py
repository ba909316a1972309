"""Radiomic measurements of a nodule under the names and codes of the IBSI.

Definitions: Image Biomarker Standardisation Initiative, reference manual (arXiv 1612.07003). They are taken
on the source voxels as they are: no interpolation, no re-segmentation, one mask for shape and intensity; the
histogram has fixed bins (`BIN_HU`) from `LOWEST_HU` up. On the IBSI digital phantom every feature agrees with
the consensus value within its tolerance (``tests/unit/test_radiomics.py``).

Left out on purpose: coefficient of variation (7TET), quartile coefficient of dispersion (9S40) and centre of
mass shift (KLMA). They divide by sums of intensities, which on the HU scale may be zero.

The mesh follows the steps of the voxels. Measured on drawn spheres of 10 to 30 mm (eight random places each):
area 8-9 % too large at 0.7 mm voxels and 15-18 % at 2.5 mm slices, so that a perfect ball has a sphericity of
0.92 and 0.85; its volume is right within 4 % (6 % at 6 mm). Compare nodules of like slice thickness only.
Research use only, not for primary diagnosis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from inference.mesh import areas_mm2, enclosed_mm3, surface_triangles
from inference.types import Index, Volume

BIN_HU = 25.0
LOWEST_HU = -1024.0

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Feature:
    """One measurement.

    Parameters
    ----------
    code
        IBSI identifier, e.g. ``QCFX``; "" where the IBSI has none.
    name
        As the IBSI names it.
    value
        In `unit`.
    unit
        UCUM; ``1`` for a number without unit.
    """

    code: str
    name: str
    value: float
    unit: str


def radiomics(volume: Volume, mask: Mask, origin: Index) -> tuple[Feature, ...]:
    """Measure a nodule.

    Parameters
    ----------
    volume
        HU, shape (z, y, x).
    mask
        bool, shape (z, y, x), cropped.
    origin
        Index in the volume of ``mask[0, 0, 0]``.

    Returns
    -------
    tuple of Feature
        `morphology`, `intensity` and `histogram` in this order, and the mass. The list is the same for
        every nodule.

    Raises
    ------
    ValueError
        The mask is empty or reaches outside the volume.
    """
    where = tuple(slice(o, o + n) for o, n in zip(origin, mask.shape, strict=True))
    if any(s.start < 0 or s.stop > size for s, size in zip(where, volume.array.shape, strict=True)):
        raise ValueError("the mask reaches outside the volume")
    hu = volume.array[where][mask].astype(np.float64)
    shape = morphology(mask, volume.affine_index_to_lps[:3, :3])
    mesh_mm3 = shape[0].value
    return (
        *shape,
        Feature("99N0", "Integrated intensity", mesh_mm3 * float(hu.mean()), "[hnsf'U].mm3"),
        *intensity(hu),
        *histogram(hu),
        mass(hu, volume.voxel_volume_mm3),
    )


def morphology(mask: Mask, index_to_mm: Floats) -> tuple[Feature, ...]:
    """Features of the shape (IBSI family HCUG).

    Parameters
    ----------
    mask
        bool, shape (z, y, x).
    index_to_mm
        Linear map of an index (z, y, x) to mm, shape (3, 3).

    Raises
    ------
    ValueError
        The mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask can't be measured")
    triangles = surface_triangles(mask, index_to_mm)
    volume, area = enclosed_mm3(triangles), float(areas_mm2(triangles).sum())
    voxel = abs(np.linalg.det(index_to_mm))
    compactness = 36 * math.pi * volume**2 / area**3
    hull = ConvexHull(triangles.reshape(-1, 3))
    major, minor, least = _axis_lengths(np.argwhere(mask) @ index_to_mm.T)
    return (
        Feature("RNU0", "Volume (mesh)", volume, "mm3"),
        Feature("YEKZ", "Volume (voxel counting)", float(mask.sum() * voxel), "mm3"),
        Feature("C0JK", "Surface area (mesh)", area, "mm2"),
        Feature("2PR5", "Surface to volume ratio", area / volume, "/mm"),
        Feature("SKGS", "Compactness 1", volume / (math.sqrt(math.pi) * area**1.5), "1"),
        Feature("BQWJ", "Compactness 2", compactness, "1"),
        Feature("KRCK", "Spherical disproportion", compactness ** (-1 / 3), "1"),
        Feature("QCFX", "Sphericity", compactness ** (1 / 3), "1"),
        Feature("25C7", "Asphericity", compactness ** (-1 / 3) - 1, "1"),
        Feature("L0JK", "Maximum 3D diameter", float(pdist(hull.points[hull.vertices]).max()), "mm"),
        Feature("TDIC", "Major axis length", major, "mm"),
        Feature("P9VJ", "Minor axis length", minor, "mm"),
        Feature("7J51", "Least axis length", least, "mm"),
        Feature("Q3CK", "Elongation", minor / major if major else 1.0, "1"),
        Feature("N17B", "Flatness", least / major if major else 1.0, "1"),
        Feature("R3ER", "Volume density (convex hull)", volume / float(hull.volume), "1"),
        Feature("7T7F", "Area density (convex hull)", area / float(hull.area), "1"),
    )


def _axis_lengths(points: Floats) -> tuple[float, float, float]:
    """Four standard deviations of the voxel centres along their principal axes, mm, longest first."""
    if len(points) < 2:
        return 0.0, 0.0, 0.0
    variances = np.linalg.eigvalsh(np.cov(points.T))
    least, minor, major = 4 * np.sqrt(np.maximum(variances, 0.0))
    return float(major), float(minor), float(least)


def intensity(hu: Floats) -> tuple[Feature, ...]:
    """Intensity-based statistics (IBSI family UHIW) of the values in the mask, shape (n,), HU.

    Percentiles are observed values: the least one that at least this share of the voxels doesn't exceed.
    """
    mean, deviation = float(hu.mean()), hu - hu.mean()
    variance = float((deviation**2).mean())
    median = float(np.median(hu))
    p10, p25, p75, p90 = (float(v) for v in np.percentile(hu, (10, 25, 75, 90), method="inverted_cdf"))
    middle = hu[(hu >= p10) & (hu <= p90)]
    energy = float((hu**2).sum())
    unit = "[hnsf'U]"
    return (
        Feature("Q4LE", "Mean intensity", mean, unit),
        Feature("ECT3", "Intensity variance", variance, "[hnsf'U]2"),
        Feature("KE2A", "Intensity skewness", _moment(deviation, variance, 3), "1"),
        Feature("IPH6", "(Excess) intensity kurtosis", _moment(deviation, variance, 4), "1"),
        Feature("Y12H", "Median intensity", median, unit),
        Feature("1GSF", "Minimum intensity", float(hu.min()), unit),
        Feature("QG58", "10th intensity percentile", p10, unit),
        Feature("8DWT", "90th intensity percentile", p90, unit),
        Feature("84IY", "Maximum intensity", float(hu.max()), unit),
        Feature("SALO", "Intensity interquartile range", p75 - p25, unit),
        Feature("2OJQ", "Intensity range", float(np.ptp(hu)), unit),
        Feature("4FUA", "Intensity-based mean absolute deviation", float(np.abs(deviation).mean()), unit),
        Feature(
            "1128",
            "Intensity-based robust mean absolute deviation",
            float(np.abs(middle - middle.mean()).mean()),
            unit,
        ),
        Feature("N72L", "Intensity-based median absolute deviation", float(np.abs(hu - median).mean()), unit),
        Feature("N8CA", "Intensity-based energy", energy, "[hnsf'U]2"),
        Feature("5ZWQ", "Root mean square intensity", math.sqrt(energy / len(hu)), unit),
    )


def _moment(deviation: Floats, variance: float, order: int) -> float:
    """Standardised central moment; the fourth less 3. 0 where all values are the same, as the IBSI has it."""
    if variance == 0:
        return 0.0
    moment = float((deviation**order).mean() / np.sqrt(variance) ** order)
    return moment - 3 if order == 4 else moment


def histogram(hu: Floats, *, bin_hu: float = BIN_HU, lowest_hu: float = LOWEST_HU) -> tuple[Feature, ...]:
    """Intensity histogram features (IBSI family ZVCW) with bins of fixed size.

    Parameters
    ----------
    hu
        Values in the mask, shape (n,).
    bin_hu
        Width of a bin.
    lowest_hu
        Lower edge of the first bin; lower values are counted in it.
    """
    bins = np.floor((np.maximum(hu, lowest_hu) - lowest_hu) / bin_hu).astype(np.int64)
    counts = np.unique(bins, return_counts=True)[1]
    share = counts / counts.sum()
    return (
        Feature("TLU2", "Discretised intensity entropy", float(-(share * np.log2(share)).sum()) + 0.0, "1"),
        Feature("BJ5W", "Discretised intensity uniformity", float((share**2).sum()), "1"),
    )


def mass(hu: Floats, voxel_volume_mm3: float) -> Feature:
    """Mass of the nodule, mg: tissue of h HU weighs (h + 1000) / 1000 mg for each mm3.

    de Hoop et al., Radiology 255:199-206, 2010. Not an IBSI feature.
    """
    density = np.maximum(hu + 1000, 0) / 1000
    return Feature("", "Mass", float(density.sum() * voxel_volume_mm3), "mg")
