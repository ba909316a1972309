"""The lungs of two CTs of one patient laid onto each other.

Only what lies in the two lung fields is compared: ribs slide over the lungs when a patient breathes. First
boxes of the fields, then an affine transform by mean squares, then a displacement field by symmetric demons
(Thirion, Med Image Anal 2:243-260, 1998; Vercauteren et al., NeuroImage 45:S61-S72, 2009), all of SimpleITK.
One thread and drawn samples of a fixed seed: the same two scans always give the same transform.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy import ndimage

from inference.lungs import Lungs
from inference.types import RegistrationQuality, Volume

#: its functions have no types
sitk: Any = SimpleITK

GRID_MM: Final = 2.5
MARGIN_MM: Final = 15.0
_TISSUE_HU: Final = 0.0
_AIR_HU: Final = -1000.0
_PARENCHYMA_HU: Final = -850.0
_SAMPLED: Final = 0.15
_SEED: Final = 7
_AROUND_MM: Final = 10.0
#: heights of two lung fields that differ more are of different parts of the lungs
_ALIKE: Final = 0.85
#: (shrink factor, iterations, smoothing of the field in voxels)
_LEVELS: Final = ((4, 60, 2.0), (2, 50, 1.6), (1, 25, 1.4))

#: voxels
_STEP: Final = 2.0
_LEAST_VOXELS: Final = 16
_JUDGED_SMOOTHING_MM: Final = 7.5
_JUDGED_DEPTH_MM: Final = 10.0
_FINE_MM: Final = 1.5
_SLOW_MM: Final = 7.5
_LEAST_JUDGED_MM3: Final = 15_000.0

LEAST_OVERLAP: Final = 0.85
"""Dice of the lung fields, in what both examinations show, below which nothing is compared."""
LEAST_COMMON: Final = 0.25
"""Share of the current lung field that the prior must show."""
LEAST_CORRELATION: Final = 0.6
"""Of vessels and fissures. Measured: 0.88 and more of the same lungs, 0.35 and less of two patients'."""

Points = NDArray[np.float64]
Singles = NDArray[np.float32]
Mask = NDArray[np.bool_]


class NotRegisteredError(Exception):
    """The two lung fields could not be laid onto each other; the text is a sentence.

    `quality` says how badly; None where no transform was found at all.
    """

    def __init__(self, sentence: str, quality: RegistrationQuality | None = None) -> None:
        super().__init__(sentence)
        self.quality = quality


@dataclass(frozen=True, slots=True)
class Registration:
    """Where points of one examination lie in the other.

    Parameters
    ----------
    quality
        How well the lungs lie on each other.
    """

    quality: RegistrationQuality
    _affine: Any
    _field: Any
    _inverse: Any

    def to_prior(self, points: Points) -> Points:
        """Carry points (n, 3), LPS mm, from the current examination into the prior one."""
        return _mapped(self._affine, points + _sampled(self._field, points))

    def to_current(self, points: Points) -> Points:
        """Carry points (n, 3), LPS mm, from the prior examination into the current one.

        The inverse of `to_prior`, by fixed-point iteration.
        """
        straight = _mapped(self._inverse, points)
        found = straight.copy()
        for _ in range(20):
            found = straight - _sampled(self._field, found)
        return found


@dataclass(frozen=True, slots=True)
class _Side:
    """One examination on a grid along the patient axes, cut to what was scanned around the lungs.

    `hu` is float32, tissue outside the lung field; `field` is 1 inside it, uint8.
    """

    hu: Any
    field: Any


@dataclass(frozen=True, slots=True)
class _Moved:
    """The prior examination on the grid of the current one, and where it was scanned: arrays (z, y, x)."""

    hu: Singles
    field: Singles
    scanned: Mask


def register(
    volume: Volume, lungs: Lungs, prior: Volume, prior_lungs: Lungs, *, grid_mm: float = GRID_MM
) -> Registration:
    """Lay the lungs of a prior scan onto those of the current one.

    The two may show different parts of the lungs: what one of them doesn't show exerts no force.

    Parameters
    ----------
    grid_mm
        A coarser grid is faster and less exact.

    Raises
    ------
    NotRegisteredError
        The two don't overlap, or the lungs don't fall on each other: another patient, or lungs that have
        changed beyond recognition.
    """
    fixed, moving = _side(volume, lungs, grid_mm), _side(prior, prior_lungs, grid_mm)
    try:
        affine = _affine(fixed, moving)
        moved = _moved(fixed, moving, affine)
        field = _demons(fixed, moved)
    except RuntimeError as error:
        # all that ITK raises, e.g. that no sample lies in both scans
        raise NotRegisteredError("The lungs of the two examinations could not be registered.") from error
    found = Registration(_quality(fixed, moved, field), affine, field, affine.GetInverse())
    quality = found.quality
    if quality.common_share < LEAST_COMMON or quality.overlap < LEAST_OVERLAP:
        raise NotRegisteredError(
            f"The two examinations show too little of the same lungs: {quality.common_share:.0%} of the "
            f"current lung field, with an overlap (Dice) of {quality.overlap:.2f}.",
            quality,
        )
    if quality.correlation < LEAST_CORRELATION:
        raise NotRegisteredError(
            f"Vessels and fissures of the two examinations don't fall on each other (correlation "
            f"{quality.correlation:.2f}, at least {LEAST_CORRELATION:g} is needed).",
            quality,
        )
    return found


def _image(array: NDArray[Any], affine: Points) -> Any:
    image = sitk.GetImageFromArray(array)
    columns = affine[:3, [2, 1, 0]]  # index order of ITK: x, y, z
    spacing = np.linalg.norm(columns, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((columns / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _side(volume: Volume, lungs: Lungs, grid_mm: float) -> _Side:
    block = tuple(
        slice(max(0, s.start - round(MARGIN_MM / d)), min(n, s.stop + round(MARGIN_MM / d)))
        for s, d, n in zip(lungs.bounds(), volume.spacing_mm, volume.array.shape, strict=True)
    )
    inside = lungs.labels[block] > 0
    hu = np.clip(volume.array[block], _AIR_HU, _TISSUE_HU).astype(np.float32)
    hu[~inside] = _TISSUE_HU
    affine = np.asarray(volume.affine_index_to_lps, np.float64).copy()
    affine[:3, 3] = volume.index_to_lps(np.array([s.start for s in block]))
    ends = np.array(list(product(*((0, n - 1) for n in hu.shape))))
    corners = ends @ affine[:3, :3].T + affine[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = [max(_LEAST_VOXELS, int(n)) for n in np.floor((high - low) / grid_mm) + 1]

    def coarse(array: Singles, outside: float) -> Any:
        image = _image(array, affine)
        image = sitk.BinShrink(image, [max(1, round(grid_mm / d)) for d in image.GetSpacing()])
        frame = (low.tolist(), [grid_mm] * 3, np.eye(3).ravel().tolist())
        return sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, *frame, outside)

    field = coarse(inside.astype(np.float32), 0.0) > 0.5
    return _Side(coarse(hu, _TISSUE_HU), sitk.Cast(field, sitk.sitkUInt8))


def _box(field: Any, part: tuple[float, float]) -> tuple[Points, Points]:
    """Middle and size, LPS mm, of the box of a field between two heights."""
    inside = np.argwhere(sitk.GetArrayViewFromImage(field))[:, ::-1]
    points = inside * np.array(field.GetSpacing()) + np.array(field.GetOrigin())
    points = points[(points[:, 2] >= part[0]) & (points[:, 2] <= part[1])]
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, high - low + np.array(field.GetSpacing())


def _onto(box: tuple[Points, Points], other: tuple[Points, Points]) -> Any:
    """The affine transform that takes one box to another."""
    (middle, size), (prior_middle, prior_size) = box, other
    transform = sitk.AffineTransform(3)
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(np.diag(prior_size / size).ravel().tolist())
    transform.SetTranslation((prior_middle - middle).tolist())
    return transform


def _starts(fixed: _Side, moving: _Side) -> list[Any]:
    """Boxes of both fields onto each other; where one is much lower, its box onto either end of the other."""
    everywhere = (-np.inf, np.inf)
    boxes = [_box(side.field, everywhere) for side in (fixed, moving)]
    starts = [_onto(*boxes)]
    (bottoms, tops) = ([middle[2] + sign * size[2] / 2 for middle, size in boxes] for sign in (-1, 1))
    height = min(size[2] for _, size in boxes)
    if height < _ALIKE * max(size[2] for _, size in boxes):
        fields = (fixed.field, moving.field)
        ends = ([(top - height, top) for top in tops], [(bottom, bottom + height) for bottom in bottoms])
        starts += [_onto(*map(_box, fields, parts)) for parts in ends]
    return starts


def _affine(fixed: _Side, moving: _Side) -> Any:
    """The best that any start leads to."""
    found = [_optimised(fixed, moving, start) for start in _starts(fixed, moving)]
    return min(found, key=lambda one: one[0])[1]


def _optimised(fixed: _Side, moving: _Side, transform: Any) -> tuple[float, Any]:
    """Mean square difference, and the transform."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetMetricFixedMask(
        sitk.BinaryDilate(fixed.field, [round(_AROUND_MM / fixed.field.GetSpacing()[0])] * 3)
    )
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(_SAMPLED, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([8.0, 4.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetNumberOfThreads(1)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 80)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed.hu, moving.hu)
    return float(method.GetMetricValue()), transform


def _moved(fixed: _Side, moving: _Side, affine: Any) -> _Moved:
    def onto(image: Any, outside: float) -> Singles:
        moved = sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), fixed.hu, affine, sitk.sitkLinear, outside)
        return np.asarray(sitk.GetArrayFromImage(moved))

    everywhere = onto(moving.field * 0 + 1, 0.0)
    return _Moved(onto(moving.hu, _TISSUE_HU), onto(moving.field, 0.0), everywhere > 0.99)


def _like(array: NDArray[Any], image: Any) -> Any:
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return made


def _demons(fixed: _Side, moved: _Moved) -> Any:
    """Displacements on the grid of the current examination, from coarse to fine."""
    target = sitk.GetArrayViewFromImage(fixed.hu)
    # where the prior examination shows nothing there is no force
    images = (fixed.hu, _like(np.where(moved.scanned, moved.hu, target), fixed.hu))
    field = None
    for shrink, iterations, smoothing in _LEVELS:
        one, other = (
            image
            if shrink == 1
            else sitk.Shrink(
                sitk.SmoothingRecursiveGaussian(image, 0.5 * shrink * image.GetSpacing()[0]), [shrink] * 3
            )
            for image in images
        )
        demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
        demons.SetNumberOfIterations(iterations)
        demons.SetStandardDeviations(smoothing)
        demons.SetMaximumRMSError(0.0)
        demons.SetMaximumUpdateStepLength(_STEP)
        demons.SetNumberOfThreads(1)
        if field is None:
            field = demons.Execute(one, other)
        else:
            begin = sitk.Resample(field, one, sitk.Transform(), sitk.sitkLinear, 0.0, field.GetPixelID())
            field = demons.Execute(one, other, begin)
    return field


def _quality(fixed: _Side, moved: _Moved, field: Any) -> RegistrationQuality:
    """Judge the field smoothed once more: demons fold any two vessel trees onto each other if they may."""
    grid_mm = field.GetSpacing()[0]
    smooth = sitk.SmoothingRecursiveGaussian(field, _JUDGED_SMOOTHING_MM)
    transform = sitk.DisplacementFieldTransform(sitk.Cast(smooth, sitk.sitkVectorFloat64))

    def bent(array: Singles, outside: float) -> Singles:
        image = sitk.Resample(_like(array, fixed.hu), fixed.hu, transform, sitk.sitkLinear, outside)
        return np.asarray(sitk.GetArrayFromImage(image))

    current, prior = sitk.GetArrayViewFromImage(fixed.field) > 0, bent(moved.field, 0.0) > 0.5
    seen, prior_seen = current & moved.scanned, prior & moved.scanned
    overlap = 2 * (seen & prior).sum() / max(1, seen.sum() + prior_seen.sum())
    inner = ndimage.binary_erosion(seen & prior, iterations=round(_JUDGED_DEPTH_MM / grid_mm))
    correlation = 0.0
    if inner.sum() * grid_mm**3 > _LEAST_JUDGED_MM3:
        one = _structure(np.asarray(sitk.GetArrayViewFromImage(fixed.hu)), current, grid_mm)[inner]
        other = _structure(bent(moved.hu, _TISSUE_HU), prior, grid_mm)[inner]
        correlation = float(np.corrcoef(one, other)[0, 1])
    return RegistrationQuality(float(overlap), correlation, float(seen.sum() / max(1, current.sum())))


def _structure(hu: Singles, field: Mask, grid_mm: float) -> Singles:
    """Vessels and fissures: what is left of the HU without its slow changes in the lung field."""
    inside = field.astype(np.float32)
    lung = (hu - _PARENCHYMA_HU) * inside

    def smoothed(sigma_mm: float) -> Singles:
        sigma = sigma_mm / grid_mm
        share = ndimage.gaussian_filter(inside, sigma)
        return np.asarray(ndimage.gaussian_filter(lung, sigma) / np.maximum(share, 0.05), np.float32)

    return np.asarray(smoothed(_FINE_MM) - smoothed(_SLOW_MM), np.float32)


def _mapped(transform: Any, points: Points) -> Points:
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.array(transform.GetCenter()), np.array(transform.GetTranslation())
    return np.asarray((points - centre) @ matrix.T + centre + shift)


def _sampled(field: Any, points: Points) -> Points:
    """Displacements at points (n, 3), mm; at the border outside the grid."""
    array = sitk.GetArrayViewFromImage(field)
    index = ((points - np.array(field.GetOrigin())) / np.array(field.GetSpacing()))[:, ::-1].T
    parts = [ndimage.map_coordinates(array[..., axis], index, order=1, mode="nearest") for axis in range(3)]
    return np.stack(parts, axis=1)
