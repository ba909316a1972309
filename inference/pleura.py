"""How a nodule lies to the pleura, measured on its mask and the lung field.

The edge of the lung field stands for the pleura: chest wall, diaphragm and mediastinum. Fissures are not
seen. The field itself is found on a grid of about 2 mm, which bounds what can be told: a nodule less than
that away from the pleura looks attached.

Measured with ``python -m inference.evaluate.pleura --cases 6`` on drawn chests that the two weights were not
fitted on: attached are 8 of 8 nodules that the phantom draws at the pleura and 1 of 40 that it draws apart
from it; 17 of 17 balls that the pleura cuts, 8 of 12 at a gap of 0.5 or 1.5 mm and 0 of 24 from 2.5 mm on.
There the distance is right within 0.6 mm (standard deviation; mean error 0.0).
Research use only, not for primary diagnosis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from inference.boxes import box_of
from inference.lungs import LEFT, RIGHT, Lungs
from inference.mesh import areas_mm2, surface_triangles
from inference.types import Index, Volume

REACH_MM = 2.0
"""Surface nearer to the edge of the lung field than this counts as contact: the field's own resolution."""
_FIRST_MARGIN_MM = 15.0
FARTHEST_MM = 10.0
_HALF_MM, _PER_MM = 1.52, 2.60  # the depth of probability one half, and how steeply it falls

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PleuralContact:
    """A nodule and the pleura.

    Parameters
    ----------
    distance_mm
        From the surface of the nodule to the nearest edge of its lung's field, mm; 0 where they touch.
    contact_mm2
        Surface of the nodule within `REACH_MM` of that edge.
    contact_share
        The same as a share of its whole surface, 0..1.
    depth_mm
        Least depth of its surface in the field, mm: the distance, but negative beyond the edge.
    probability
        That it is attached, 0..1.
    """

    distance_mm: float
    contact_mm2: float
    contact_share: float
    depth_mm: float
    probability: float

    @property
    def attached(self) -> bool:
        """Whether attachment is more likely than not."""
        return self.probability >= 0.5


def pleural_contact(volume: Volume, lungs: Lungs, mask: Mask, origin: Index) -> PleuralContact | None:
    """Measure the contact of one nodule with the pleura.

    Parameters
    ----------
    volume
        The source; only its grid is used.
    lungs
        From `inference.lungs.find_lungs` of the same volume.
    mask
        bool, shape (z, y, x), cropped.
    origin
        Index in the volume of ``mask[0, 0, 0]``.

    Returns
    -------
    PleuralContact or None
        None where no voxel of the mask lies in a lung: there is no pleura to measure to.

    Raises
    ------
    ValueError
        The mask is empty or reaches outside the volume.
    """
    where = box_of(mask, origin, lungs.labels.shape)
    counts = np.bincount(lungs.labels[where][mask], minlength=3)
    if counts[RIGHT] == counts[LEFT] == 0:
        return None
    side = RIGHT if counts[RIGHT] >= counts[LEFT] else LEFT
    triangles = surface_triangles(mask, np.eye(3)) + np.array(origin)  # index units of the volume
    depth = _depth_mm(volume, lungs.labels, side, triangles.mean(axis=1), where)
    area = areas_mm2(triangles @ volume.affine_index_to_lps[:3, :3].T)
    contact = float(area[depth < REACH_MM].sum())
    nearest, share = float(depth.min()), contact / float(area.sum())
    return PleuralContact(max(nearest, 0.0), contact, share, nearest, attachment_probability(nearest))


def attachment_probability(depth_mm: float) -> float:
    """Probability of attachment from the least depth of the nodule's surface in its lung, mm.

    A logistic, fitted by ``python -m inference.evaluate.pleura --fit``; beside the depth the share of the
    surface in contact added nothing.
    """
    return 1 / (1 + math.exp(_PER_MM * (min(max(depth_mm, -FARTHEST_MM), FARTHEST_MM) - _HALF_MM)))


def _depth_mm(volume: Volume, labels: Labels, side: int, points: Floats, where: tuple[slice, ...]) -> Floats:
    """Distance of points (n, 3), index units, to the edge of the lung, mm; negative outside of it.

    Looks around the nodule first and farther away only where no edge is near.
    """
    spacing = np.array(volume.spacing_mm)
    margin = _FIRST_MARGIN_MM
    while True:
        steps = np.ceil(margin / spacing).astype(int)
        box = tuple(
            slice(max(s.start - n, 0), min(s.stop + n, size))
            for s, n, size in zip(where, steps, labels.shape, strict=True)
        )
        lung = labels[box] == side
        if not lung.all():
            depth = _interpolated(points - [s.start for s in box], _Edge(lung, spacing))
            if depth.min() < margin:
                return depth
        if lung.shape == labels.shape:
            return np.full(len(points), float(np.linalg.norm(spacing * lung.shape)))
        margin *= 3


class _Edge:
    """Signed distance of a lung's voxels to its edge, for few voxels: a transform of all takes seconds.

    Of all voxels outside the nearest to one inside has a neighbour inside, and the other way round.
    """

    def __init__(self, lung: Mask, spacing: Floats) -> None:
        self.lung, self._spacing = lung, spacing
        self._inner, self._outer = (
            cKDTree(np.argwhere(one & _beside(~one)) * spacing) for one in (lung, ~lung)
        )

    def depth_mm(self, voxels: NDArray[np.intp]) -> Floats:
        """Positive inside; the edge lies half a pixel before the first voxel outside. (n, 3) to (n,)."""
        inside = self.lung[tuple(voxels.T)]
        depth = np.empty(len(voxels))
        for chosen, tree, sign in ((inside, self._outer, 1), (~inside, self._inner, -1)):
            depth[chosen] = sign * (tree.query(voxels[chosen] * self._spacing)[0] - min(self._spacing) / 2)
        return depth


def _beside(mask: Mask) -> Mask:
    """Voxels with one of the mask among their six neighbours."""
    out = np.zeros_like(mask)
    for axis in range(3):
        one, other = np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0)
        one[1:] |= other[:-1]
        one[:-1] |= other[1:]
    return out


def _interpolated(points: Floats, edge: _Edge) -> Floats:
    """Depth at fractional places (n, 3), linear between voxels; beyond the last ones as there."""
    last = np.array(edge.lung.shape) - 1
    at = np.clip(points, 0, last)
    low = np.minimum(np.floor(at).astype(np.intp), np.maximum(last - 1, 0))
    corners = np.array(list(np.ndindex(2, 2, 2)))  # (8, 3)
    voxels = np.minimum(low[:, None] + corners, last)  # (n, 8, 3)
    part = (at - low)[:, None]
    weight = np.where(corners, part, 1 - part).prod(axis=2)
    shape = edge.lung.shape
    few, which = np.unique(np.ravel_multi_index(tuple(voxels.reshape(-1, 3).T), shape), return_inverse=True)
    depth = edge.depth_mm(np.stack(np.unravel_index(few, shape), axis=1))[which.reshape(len(points), 8)]
    return np.asarray((weight * depth).sum(axis=1))
