"""Segmentation and reading of LIDC-IDRI nodule crops, measured without telling the models the truth.

What a model gets is *blinded*: a crop without masks, ratings and numbers of readers. And the stored strips
have their nodule in the middle, which is a truth too, so the crop is shifted before a model sees it:

centred
    A detector's candidate: the nodule's centre moved by an offset drawn evenly from the disc of
    `JITTER_MM` in the slice, and the crop shifted so that this candidate lies in its middle.
anywhere
    The nodule lies at a place drawn evenly from all at which it is inside the slices; no centre is told.
stored
    As stored, in the middle; no centre is told.
unseen
    As *centred*, with a wording of the sentence that was never trained on.
box
    As *centred*, with the box of the consensus on the slice of its largest area.

What a shift uncovers is filled by reflection; a nodule is never reflected into view by *anywhere*. Masks are
shifted back and compared on the stored grid with the 50 % consensus of the readers.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from time import monotonic
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.datasets.lidc_crops import SIDE, Mask, NoduleCrop
from inference.evaluate.metrics import dice, iou, readers_with_each_other
from inference.evaluate.report import Progress

JITTER_MM = 5.0
LEAST_READERS = 3
"""Nodules drawn by fewer readers are no target, as in the literature; they have figures of their own."""
MIDDLE = SIDE // 2
UNKNOWN_PITCH_MM = 0.7  # about the median of the collection, for a strip without spacing

Place = tuple[float, float]
"""(y, x) in pixels of a slice; pixel centres are whole numbers."""
BoxPrompt = tuple[float, float, float, float]
"""(y0, x0, y1, x1) in pixels: edges of the outermost pixels, so a single pixel at 3 spans 2.5 to 3.5."""


@dataclass(frozen=True, slots=True)
class CropReading:
    """What the classifier says about one nodule.

    Parameters
    ----------
    malignancy
        Calibrated probability, 0..1.
    features
        Set of wordings -> feature (`inference.prompts.SentencePair.feature`) -> probability of the positive
        sentence, 0..1.
    """

    malignancy: float
    features: Mapping[str, Mapping[str, float]]


class CropModels(Protocol):
    """The models as this evaluation calls them."""

    def segment(
        self,
        crop: NoduleCrop,
        sentence: str,
        *,
        centre: Place | None = None,
        box: BoxPrompt | None = None,
        key_slice: int | None = None,
    ) -> NDArray[np.bool_]:
        """Segment what a sentence names.

        Parameters
        ----------
        crop
            Blinded: no masks, no ratings.
        sentence
            The text prompt.
        centre
            The detector's candidate, None where nothing is known.
        box, key_slice
            A box on this slice, only for the figure with a box prompt.

        Returns
        -------
        ndarray
            bool, shape (n, 96, 96).
        """
        ...

    def classify(self, crop: NoduleCrop, mask: NDArray[np.bool_]) -> CropReading:
        """Read the nodule under a mask of `segment`; the mask may be empty."""
        ...


@dataclass(frozen=True, slots=True)
class Overlap:
    """3D Dice and intersection over union with the consensus."""

    dice: float
    iou: float


@dataclass(frozen=True, slots=True)
class CropOutcome:
    """Everything about one nodule.

    Parameters
    ----------
    diameter_mm
        Of the disc with the area of the consensus on its largest slice.
    ratings
        The readers' medians: truth.
    overlaps
        By ``centred``, ``anywhere``, ``stored``, ``unseen``, ``box``; all but the first only from
        `LEAST_READERS` on.
    reader_dice, reader_consensus_dice
        Mean Dice of the readers' pairs and of each with the consensus of the others; NaN for one reader.
    seconds
        Of all calls of the models.
    """

    name: str
    patient: str
    readers: int
    slices: int
    diameter_mm: float
    is_trusted: bool
    ratings: Mapping[str, float]
    overlaps: Mapping[str, Overlap]
    reader_dice: float
    reader_consensus_dice: float
    reading: CropReading
    seconds: float


@dataclass(frozen=True, slots=True)
class Frame:
    """A crop as a model sees it: shifted, blinded.

    Parameters
    ----------
    crop
        Without masks and ratings.
    shift
        (dy, dx) pixels from the stored crop to this one.
    centre
        The candidate in this crop, None where nothing is told.
    """

    crop: NoduleCrop
    shift: tuple[int, int]
    centre: Place | None

    def truth(self, mask: Mask) -> Mask:
        """A stored mask (n, 96, 96) in this frame."""
        return shifted_mask(mask, self.shift)

    def back(self, mask: Mask) -> Mask:
        """A mask (n, 96, 96) of this frame on the stored grid; what was shifted out is empty."""
        return shifted_mask(mask, (-self.shift[0], -self.shift[1]))


def evaluate_crops(
    crops: Sequence[NoduleCrop],
    models: CropModels,
    *,
    sentences: tuple[str, str],
    seed: int,
    progress: Progress | None = None,
) -> tuple[CropOutcome, ...]:
    """Measure every crop.

    Parameters
    ----------
    crops
        With their truth, which stays here.
    sentences
        The text prompt for "the nodule", the same for all, and a wording that was never trained on.
    seed
        Draws the offsets; those of a nodule depend on the seed and its name only.
    """
    report = progress or (lambda _what, _done, _total: None)
    outcomes = []
    for number, crop in enumerate(crops):
        report("crops", number, len(crops))
        outcomes.append(evaluate_crop(crop, models, sentences=sentences, seed=seed))
    report("crops", len(crops), len(crops))
    return tuple(outcomes)


def evaluate_crop(
    crop: NoduleCrop, models: CropModels, *, sentences: tuple[str, str], seed: int
) -> CropOutcome:
    """Measure one crop."""
    sentence, unseen = sentences
    rng = generator(seed, crop.name)
    truth = target(crop)
    masks = crop.reader_masks()
    centred, anywhere = centred_frame(crop, rng), anywhere_frame(crop, rng)
    start = monotonic()
    mask = segmented(models, centred, sentence)
    reading = checked(models.classify(centred.crop, mask))
    found = {"centred": centred.back(mask)}
    if crop.readers >= LEAST_READERS:
        found["anywhere"] = anywhere.back(segmented(models, anywhere, sentence))
        found["unseen"] = centred.back(segmented(models, centred, unseen))
        found["stored"] = segmented(models, Frame(blinded(crop), (0, 0), None), sentence)
        found["box"] = centred.back(_with_box(models, centred, centred.truth(truth), sentence))
    seconds = monotonic() - start
    pairs, others = readers_with_each_other(list(masks))
    return CropOutcome(
        name=crop.name,
        patient=crop.patient,
        readers=crop.readers,
        slices=len(crop.image),
        diameter_mm=diameter_mm(crop),
        is_trusted=crop.is_trusted,
        ratings=crop.ratings,
        overlaps={key: Overlap(dice(one, truth), iou(one, truth)) for key, one in found.items()},
        reader_dice=pairs,
        reader_consensus_dice=others,
        reading=reading,
        seconds=seconds,
    )


def _with_box(models: CropModels, frame: Frame, truth: Mask, sentence: str) -> Mask:
    key = int(truth.sum(axis=(1, 2)).argmax())
    ys, xs = np.nonzero(truth[key])
    if not len(ys):  # shifted out of view altogether
        return np.zeros_like(truth)
    box = float(ys.min()) - 0.5, float(xs.min()) - 0.5, float(ys.max()) + 0.5, float(xs.max()) + 0.5
    return segmented(models, replace(frame, centre=None), sentence, box=box, key_slice=key)


def segmented(
    models: CropModels,
    frame: Frame,
    sentence: str,
    *,
    box: BoxPrompt | None = None,
    key_slice: int | None = None,
) -> Mask:
    """Call the model and check what it gives.

    Raises
    ------
    ValueError
        The mask isn't bool of the crop's shape.
    """
    mask = models.segment(frame.crop, sentence, centre=frame.centre, box=box, key_slice=key_slice)
    if mask.dtype != np.bool_ or mask.shape != frame.crop.image.shape:
        raise ValueError(f"{frame.crop.name}: a mask of {mask.dtype} {mask.shape} is none of the crop")
    return mask


def checked(reading: CropReading) -> CropReading:
    """The reading itself.

    Raises
    ------
    ValueError
        A probability is none.
    """
    rows = [reading.malignancy, *(p for features in reading.features.values() for p in features.values())]
    if not all(0 <= value <= 1 for value in rows):
        raise ValueError(f"a probability outside 0..1: {[value for value in rows if not 0 <= value <= 1]}")
    return reading


# places


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one nodule, the same whichever others are evaluated."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def target(crop: NoduleCrop) -> Mask:
    """The 50 % consensus; all that any reader drew where no voxel has half of them."""
    consensus = crop.consensus()
    return consensus if consensus.any() else np.asarray(crop.mask_bits > 0)


def blinded(crop: NoduleCrop) -> NoduleCrop:
    """The crop without what only readers know."""
    return replace(crop, mask_bits=np.zeros_like(crop.mask_bits), readers=0, ratings={}, is_trusted=False)


def centred_frame(crop: NoduleCrop, rng: np.random.Generator) -> Frame:
    """The crop around a candidate within `JITTER_MM` of the nodule's centre."""
    centre = np.argwhere(target(crop))[:, 1:].mean(axis=0)
    radius, angle = JITTER_MM * np.sqrt(rng.random()), 2 * np.pi * rng.random()
    candidate = centre + radius / pitch_mm(crop) * np.array([np.sin(angle), np.cos(angle)])
    shift = np.round(MIDDLE - candidate).astype(int)
    return frame_at(crop, shift, candidate + shift)


def anywhere_frame(crop: NoduleCrop, rng: np.random.Generator) -> Frame:
    """The crop with the nodule at any place where it is wholly inside."""
    index = np.argwhere(crop.mask_bits > 0)[:, 1:]
    low, high = -index.min(axis=0), SIDE - 1 - index.max(axis=0)
    # a larger shift would show a reflection of the nodule itself
    low, high = np.maximum(low, index.max(axis=0) + 1 - SIDE), np.minimum(high, index.min(axis=0))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    return frame_at(crop, rng.integers(low, high + 1), None)


def frame_at(crop: NoduleCrop, shift: NDArray[np.int_], centre: NDArray[np.float64] | None) -> Frame:
    """A blinded crop, shifted."""
    moved = (int(shift[0]), int(shift[1]))
    seen = replace(blinded(crop), image=shifted_image(crop.image, moved))
    return Frame(seen, moved, None if centre is None else (float(centre[0]), float(centre[1])))


def shifted_image(image: NDArray[np.uint8], shift: tuple[int, int]) -> NDArray[np.uint8]:
    """Move the content of slices (n, y, x) by (dy, dx), |d| < size; the rest is filled by reflection."""
    before, window = _window(image.shape, shift)
    return np.ascontiguousarray(np.pad(image, before, mode="symmetric")[window])


def shifted_mask(mask: Mask, shift: tuple[int, int]) -> Mask:
    """Move a mask (n, y, x) by (dy, dx), |d| < size; the rest is empty."""
    before, window = _window(mask.shape, shift)
    return np.ascontiguousarray(np.pad(mask, before)[window])


def _window(
    shape: tuple[int, ...], shift: tuple[int, int]
) -> tuple[list[tuple[int, int]], tuple[slice, slice, slice]]:
    """How to pad the array, and where in it the moved one lies."""
    (dy, dx), (_, ys, xs) = shift, shape
    if abs(dy) >= ys or abs(dx) >= xs:
        raise ValueError(f"a shift of {shift} leaves nothing of {ys} x {xs} pixels")
    edges = [(0, 0), (max(dy, 0), max(-dy, 0)), (max(dx, 0), max(-dx, 0))]
    y, x = max(-dy, 0), max(-dx, 0)
    return edges, (slice(None), slice(y, y + ys), slice(x, x + xs))


def pitch_mm(crop: NoduleCrop) -> float:
    """Pixel spacing in the slice, mm."""
    return crop.spacing_mm[1] if crop.spacing_mm else UNKNOWN_PITCH_MM


def diameter_mm(crop: NoduleCrop) -> float:
    """Of the disc with the area of the consensus on its largest slice, mm; NaN without spacing."""
    area = int(target(crop).sum(axis=(1, 2)).max())
    return 2 * float(np.sqrt(area / np.pi)) * crop.spacing_mm[1] if crop.spacing_mm else nan
