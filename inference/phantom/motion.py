"""How a chest lies otherwise on another day: shift, a deeper breath, and a smooth bend of everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.types import Volume

Points = NDArray[np.float64]
_WAVES = 6
_SHORTEST_MM, _LONGEST_MM = 110.0, 260.0


@dataclass(frozen=True)
class Motion:
    """Where a point of the later examination lay in the earlier one.

    Parameters
    ----------
    shift_mm
        Along x, y, z (LPS).
    breath_mm
        How much higher the base of the lungs lay; less towards the apex, with the square of the height.
    apex_mm, base_mm
        z of the ends of the lungs.
    waves
        Wave vectors (n, 3), 1/mm.
    phases, swings
        (n,) and (n, 3), mm: each wave moves a point by ``swing * cos(wave . point + phase)``.
    """

    shift_mm: tuple[float, float, float]
    breath_mm: float
    apex_mm: float
    base_mm: float
    waves: Points
    phases: Points
    swings: Points

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        *,
        apex_mm: float,
        base_mm: float,
        shift_mm: float = 10.0,
        breath_mm: float = 12.0,
        bend_mm: float = 4.0,
    ) -> Motion:
        """Draw one; the numbers are the greatest shift along an axis, breath, and bend along an axis."""
        waves = rng.standard_normal((_WAVES, 3))
        waves /= np.linalg.norm(waves, axis=1, keepdims=True)
        waves *= 2 * np.pi / rng.uniform(_SHORTEST_MM, _LONGEST_MM, (_WAVES, 1))
        x, y, z = (float(v) for v in rng.uniform(-shift_mm, shift_mm, 3))
        return cls(
            (x, y, z),
            float(rng.uniform(-breath_mm, breath_mm)),
            apex_mm,
            base_mm,
            waves,
            rng.uniform(0, 2 * np.pi, _WAVES),
            rng.uniform(-1, 1, (_WAVES, 3)) * bend_mm / _WAVES**0.5,
        )

    def to_prior(self, points: Points) -> Points:
        """Carry points (..., 3), LPS mm, into the earlier examination."""
        moved = points + np.array(self.shift_mm)
        depth = np.clip((self.apex_mm - points[..., 2]) / (self.apex_mm - self.base_mm), 0.0, 1.3)
        moved[..., 2] += self.breath_mm * depth**2
        for wave, phase, swing in zip(self.waves, self.phases, self.swings, strict=True):
            moved += np.cos(points @ wave + phase)[..., None] * swing
        return np.asarray(moved)

    def to_current(self, points: Points) -> Points:
        """Carry points (..., 3), LPS mm, of the earlier examination into the later one, to 0.001 mm."""
        found = np.array(points, dtype=np.float64)
        for _ in range(60):
            error = self.to_prior(found) - points
            found -= error
            if np.abs(error).max(initial=0.0) < 1e-3:
                break
        return found

    def deformed(
        self, array: NDArray[Any], affine_index_to_lps: Points, *, order: Literal[0, 1] = 1
    ) -> NDArray[Any]:
        """What the later examination shows of an array (z, y, x) of the earlier one, on the same grid.

        Parameters
        ----------
        affine_index_to_lps
            Of the grid, as in `inference.types.Volume`.
        order
            1 to interpolate linearly, 0 for labels.
        """
        linear, offset = affine_index_to_lps[:3, :3], affine_index_to_lps[:3, 3]
        inverse = np.linalg.inv(linear)
        y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in array.shape[1:]), indexing="ij")
        plane = y[..., None] * linear[:, 1] + x[..., None] * linear[:, 2] + offset
        made = np.empty_like(array)
        for number in range(len(array)):
            points = self.to_prior(plane + number * linear[:, 0])
            index = np.moveaxis((points - offset) @ inverse.T, -1, 0)
            low = max(0, int(index[0].min()) - 1)
            part = array[low : max(low + 1, int(index[0].max()) + 3)]
            index[0] -= low
            sampled = ndimage.map_coordinates(part, index, order=order, mode="nearest", output=np.float32)
            made[number] = np.rint(sampled) if np.issubdtype(array.dtype, np.integer) else sampled
        return made


def lung_ends(volume: Volume, lungs: NDArray[Any]) -> tuple[float, float]:
    """Height (LPS z, mm) of apex and base of a lung field (bool or labels, shape of the volume)."""
    used = np.argwhere(lungs.any(axis=2))[:, [0, 1]]
    z = volume.index_to_lps(np.column_stack([used, np.zeros(len(used))]))[:, 2]
    return float(z.max()), float(z.min())
