"""What a comparison with an earlier examination takes; what comes of it are nouns of `inference.types`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from inference.lungs import Lungs
from inference.types import Finding, Point, PriorReference, Volume

Look = Callable[[Volume, Lungs, Point, float], Finding | None]
"""Look for a nodule of a diameter (mm) at a place (LPS mm) of a volume; None where nothing is."""


@dataclass(frozen=True, slots=True)
class PriorExamination:
    """An earlier CT of the same patient, loaded, and what was found on it.

    Parameters
    ----------
    study_uid, series_uid
        Which one.
    examined_on
        Day of the examination.
    volume
        HU; its frames name the instances.
    findings
        Of a result that was kept, or of running the pipeline on it.
    """

    study_uid: str
    series_uid: str
    examined_on: date
    volume: Volume
    findings: tuple[Finding, ...]

    @property
    def reference(self) -> PriorReference:
        """Which examination, without its voxels."""
        return PriorReference(self.study_uid, self.series_uid, self.examined_on)
