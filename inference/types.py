"""The nouns that travel between the stages. Voxels never travel without geometry."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.certainty import CERTAIN, percent
from inference.change import Change, Doubling

Index = tuple[int, int, int]
"""Voxel index in array order (z, y, x)."""

Point = tuple[float, float, float]
"""Patient coordinates in mm, DICOM LPS (x to the left, y to the back, z to the head)."""


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """Where one slice of a volume came from.

    Parameters
    ----------
    sop_class_uid, sop_instance_uid
        The source image.
    frame_number
        1-based frame of a multi-frame image, None for a single-frame image.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """A CT series as one regular grid.

    Parameters
    ----------
    array
        HU, shape (z, y, x), int16 or float32. Slices are in spatial order along the slice normal;
        nothing may assume that z ascends to the head: use the affine.
    affine_index_to_lps
        Shape (4, 4), float64, mm: maps the homogeneous *array* index ``[z, y, x, 1]`` of a voxel
        centre to DICOM patient coordinates (LPS; PS3.3 C.7.6.2.1.1).
    frame_of_reference_uid, study_uid, series_uid
        Identity of the source.
    frames
        One item for each slice, in the order of the first axis.
    slice_thickness_mm
        (0018,0050) where present.
    """

    array: NDArray[Any]
    affine_index_to_lps: NDArray[np.float64]
    frame_of_reference_uid: str
    study_uid: str
    series_uid: str
    frames: tuple[SourceFrame, ...]
    slice_thickness_mm: float | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise ValueError(f"a volume has three axes, not {self.array.ndim}")
        if self.affine_index_to_lps.shape != (4, 4):
            raise ValueError("affine_index_to_lps must be 4 x 4")
        if len(self.frames) != self.array.shape[0]:
            raise ValueError(f"{len(self.frames)} frames for {self.array.shape[0]} slices")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along (z, y, x), mm."""
        z, y, x = np.linalg.norm(self.affine_index_to_lps[:3, :3], axis=0)
        return float(z), float(y), float(x)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel, mm3."""
        return float(abs(np.linalg.det(self.affine_index_to_lps[:3, :3])))

    def index_to_lps(self, index: NDArray[Any] | tuple[float, ...]) -> NDArray[np.float64]:
        """Map indices (..., 3) in array order (z, y, x) to LPS mm (..., 3)."""
        points = np.asarray(index, dtype=np.float64)
        linear, offset = self.affine_index_to_lps[:3, :3], self.affine_index_to_lps[:3, 3]
        return np.asarray(points @ linear.T + offset)

    def lps_to_index(self, points: NDArray[Any] | tuple[float, ...]) -> NDArray[np.float64]:
        """Map LPS mm (..., 3) to fractional indices (..., 3) in array order (z, y, x)."""
        lps = np.asarray(points, dtype=np.float64)
        inverse = np.linalg.inv(self.affine_index_to_lps)
        return np.asarray(lps @ inverse[:3, :3].T + inverse[:3, 3])


class Attenuation(StrEnum):
    """Nodule attenuation type (RadLex RID50151, RID50152, RID50153)."""

    SOLID = "solid"
    PART_SOLID = "part-solid"
    GROUND_GLASS = "ground-glass"


@dataclass(frozen=True, slots=True)
class AttenuationDoubt:
    """Two readings of the attenuation type that differ, or of which the network's isn't certain.

    Parameters
    ----------
    read
        What the network's texture rank says.
    probability
        Of that rank, 0..1.
    measured
        What the HU of the mask say.
    """

    read: Attenuation
    probability: float
    measured: Attenuation

    @property
    def options(self) -> tuple[Attenuation, ...]:
        """What it may be, in the order of `Attenuation`: one of two that differ, else any."""
        if self.read is self.measured:
            return tuple(Attenuation)
        return tuple(one for one in Attenuation if one in (self.read, self.measured))

    @property
    def words(self) -> str:
        """Both for a reader, e.g. ``network: solid, 56 %; HU: part-solid``."""
        return f"network: {self.read}, {percent(self.probability)}; HU: {self.measured}"


class Laterality(StrEnum):
    """Side of the patient, never of the picture."""

    RIGHT = "right"
    LEFT = "left"


class Lobe(StrEnum):
    """Lobe of the lung."""

    UPPER = "upper"
    MIDDLE = "middle"
    LOWER = "lower"


@dataclass(frozen=True, slots=True)
class Site:
    """Where in the lungs. None where the pipeline can't tell."""

    laterality: Laterality | None = None
    lobe: Lobe | None = None


@dataclass(frozen=True, slots=True)
class Measurements:
    """Measured on the mask and the source voxels.

    Parameters
    ----------
    volume_mm3
        Voxel count times voxel volume.
    long_axis_mm, short_axis_mm
        On the slice of largest area: greatest distance in the outline and the greatest extent
        perpendicular to it.
    mean_diameter_mm
        Mean of the two.
    max_3d_diameter_mm
        Greatest distance between mask voxels in 3D.
    mean_hu, sd_hu, min_hu, max_hu
        Of the voxels in the mask, HU.
    """

    volume_mm3: float
    long_axis_mm: float
    short_axis_mm: float
    mean_diameter_mm: float
    max_3d_diameter_mm: float
    mean_hu: float
    sd_hu: float
    min_hu: float
    max_hu: float


@dataclass(frozen=True, slots=True)
class SemanticFeature:
    """One radiologist-style feature, e.g. name ``spiculation``, value 4 on its 1-5 scale.

    Parameters
    ----------
    name
        A row of dicom.md T3 in lower case, words joined by ``_``.
    value
        1-based rank on the feature's scale.
    probability
        Of that value, 0..1.
    """

    name: str
    value: int
    probability: float

    @property
    def is_certain(self) -> bool:
        """Whether the value may be said: it is more probable than all others together."""
        return self.probability >= CERTAIN


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A named number behind a finding, for whoever wants to know why.

    Parameters
    ----------
    name
        E.g. ``sphericity`` or ``likeness to vessel``.
    value
        In `unit`.
    unit
        UCUM; ``1`` for a number without unit.
    source
        What it is: ``measured``, ``IBSI QCFX``, ``sentence pair``, ``structure sentence``,
        ``radiomic similarity`` or ``pleura``.
    """

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, slots=True)
class Malignancy:
    """Calibrated probability, 0..1, of what the card of the model says it was trained on.

    `fused` is None where no clinical record was used.
    """

    image_only: float
    fused: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One nodule.

    Parameters
    ----------
    tracking_uid, tracking_id
        The lesion's identity; equal in SEG and SR, kept over time.
    mask
        bool, shape (z, y, x), cropped to the lesion.
    origin
        Index in the volume of ``mask[0, 0, 0]``.
    key_slice
        First-axis index in the volume of the slice with the largest area.
    key_point
        (y, x) in the volume of a voxel centre inside the mask on the key slice.
    long_axis, short_axis
        Each two (y, x) end points on the key slice, in volume index units.
    detection_probability
        0..1, as the card defines it.
    attenuation
        None where it wasn't assessed, and where it isn't certain: then `attenuation_doubt` says between what.
    malignancy, features, descriptors
        None / empty where the pipeline has no model for them: a value is never made up.
    """

    tracking_uid: str
    tracking_id: str
    mask: NDArray[np.bool_]
    origin: Index
    key_slice: int
    key_point: tuple[float, float]
    long_axis: tuple[tuple[float, float], tuple[float, float]]
    short_axis: tuple[tuple[float, float], tuple[float, float]]
    measurements: Measurements
    detection_probability: float
    attenuation: Attenuation | None = None
    site: Site = Site()
    malignancy: Malignancy | None = None
    features: tuple[SemanticFeature, ...] = ()
    descriptors: tuple[Descriptor, ...] = ()
    attenuation_doubt: AttenuationDoubt | None = None

    def slices(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in the volume."""
        z, y, x = (slice(o, o + n) for o, n in zip(self.origin, self.mask.shape, strict=True))
        return z, y, x

    def key_mask(self) -> NDArray[np.bool_]:
        """The cropped mask on the key slice, shape (y, x)."""
        return np.asarray(self.mask[self.key_slice - self.origin[0]])


class Standing(StrEnum):
    """What a comparison says of one nodule."""

    MATCHED = "seen in both examinations"
    NEW = "new"
    RESOLVED = "not seen any more"
    OUTSIDE_PRIOR = "outside what the prior examination shows"
    OUTSIDE_CURRENT = "outside what this examination shows"


class SecondLook(StrEnum):
    """What came of looking at the carried-over place of a nodule without a partner."""

    NONE = "not needed, or not possible"
    NOTHING = "looked for at its place and not seen"
    SEEN_IN_PRIOR = "seen in the prior examination only when looked for at its place"
    SEEN_IN_CURRENT = "seen in this examination only when looked for at its place"


@dataclass(frozen=True, slots=True)
class Pair:
    """One nodule in two examinations, or in one of them.

    Parameters
    ----------
    current, prior
        The nodule in each examination, None where it isn't seen. `current` bears the tracking UID of `prior`.
    standing
        What follows from the two.
    change
        By Lung-RADS; None where it can't be told: then `reason` says why.
    reason
        A short sentence, else empty.
    doubling
        Relative change of volume, and doubling time; None without two volumes.
    prior_point_mm
        The centre in the prior examination carried over into the current one, LPS mm of the current one.
    current_point_mm
        The centre in the current examination carried over into the prior one, LPS mm of the prior one.
    second_look
        Whether a partner was looked for at the carried-over place. A finding that only this look saw is no
        mark of the detector: its detection probability is the segmenter's estimate of its mask.
    """

    current: Finding | None
    prior: Finding | None
    standing: Standing
    change: Change | None = None
    reason: str = ""
    doubling: Doubling | None = None
    prior_point_mm: Point | None = None
    current_point_mm: Point | None = None
    second_look: SecondLook = SecondLook.NONE


@dataclass(frozen=True, slots=True)
class PriorReference:
    """Which earlier examination was compared."""

    study_uid: str
    series_uid: str
    examined_on: date


@dataclass(frozen=True, slots=True)
class RegistrationQuality:
    """How well the lungs of two examinations lie on each other after registration.

    Parameters
    ----------
    overlap
        Dice of the lung fields in the range that both examinations show, 0..1.
    correlation
        Of the smoothed HU in the lungs, -1..1: vessels and fissures fall on each other near 1.
    common_share
        Share of the current lung field that the prior examination shows, 0..1.
    """

    overlap: float
    correlation: float
    common_share: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """An examination against an earlier one.

    Parameters
    ----------
    prior
        The earlier one.
    days
        Between the two.
    pairs
        Nodules of the current examination in the order of its findings, then those of the prior one only.
    registration
        None where none was made.
    reason
        Why the two could not be compared, a sentence; then there are no pairs.
    """

    prior: PriorReference
    days: int
    pairs: tuple[Pair, ...] = ()
    registration: RegistrationQuality | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """A finding of the whole study or of one anatomical structure.

    Parameters
    ----------
    name
        E.g. ``emphysema`` or ``lung_rads``.
    value
        Text value, e.g. ``present`` or ``4A``.
    probability
        0..1 or None.
    """

    name: str
    value: str
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a site must know about a model; read from ``inference/cards/*.toml``.

    Parameters
    ----------
    weights, weights_sha256
        Name of the weights file beside the card and its hex digest, None for an algorithm without trained
        weights.
    performance
        Sentences of measured performance, each with its data and its interval.
    network
        Name of a published network in `inference.published`, None for ours.
    mechanism
        Of a record fusion: its name in `inference.fusion.MECHANISMS`.
    """

    name: str
    version: str
    task: str
    summary: str
    intended_use: str
    limits: str
    licence: str
    training_data: str
    performance: tuple[str, ...]
    weights_sha256: str | None = None
    parameters: dict[str, float] = field(default_factory=dict)
    weights: str | None = None
    network: str | None = None
    mechanism: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What an analysis says. No nodule is a Result too; a failure never is one.

    Parameters
    ----------
    series_uid
        The analysed series.
    findings
        In falling order of detection probability.
    pipeline_version
        Changes whenever the same input could give another result.
    warnings
        Sentences for the reader, e.g. thick slices.
    comparison
        With an earlier examination, None without one.
    """

    series_uid: str
    findings: tuple[Finding, ...]
    cards: tuple[ModelCard, ...]
    pipeline_version: str
    observations: tuple[Observation, ...] = ()
    warnings: tuple[str, ...] = ()
    comparison: Comparison | None = None
