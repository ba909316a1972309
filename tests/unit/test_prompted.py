"""From a sentence and a place to a mask: geometry, the walk, which object is meant.

The network is replaced by one that answers with what is bright, so that the truth is known to the voxel; how
well the trained one segments is measured on data, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from inference.openclip_model import REFERENCE, build_clip
from inference.prompted import PromptedSegmenter, Sight
from inference.sam2_model import Features, Frame, Prompt, TextPromptedSam2

SPACING = (2.0, 0.7, 0.7)


class Bright(TextPromptedSam2):
    """Everything above about -250 HU, whatever the sentence says; notes what it is asked."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.image_size = 96
        self.text_projection = nn.Linear(1, 1)
        self.encoded: list[int] = []
        self.boxes: list[torch.Tensor] = []
        self.tokens: list[torch.Tensor] = []

    def encode(self, images: torch.Tensor) -> Features:
        self.encoded.append(len(images))
        return Features((images,), ())

    def sequence(
        self,
        frames: Iterable[Features],
        prompt: Prompt,
        *,
        length: int = 1,
        stop: Callable[[Frame], bool] | None = None,
    ) -> list[Frame]:
        self.tokens.append(prompt.text)
        if prompt.boxes is not None:
            self.boxes.append(prompt.boxes)
        answers = []
        for features in frames:
            logits = 20 * (features.levels[0][:, 1] - 0.5)
            there = (logits > 0).flatten(1).any(1)
            answers.append(Frame(logits, torch.full((len(logits),), 0.8), torch.where(there, 10.0, -10.0)))
            if stop is not None and stop(answers[-1]):
                break
        return answers


def _segmenter() -> tuple[PromptedSegmenter, Bright]:
    model = Bright()
    torch.manual_seed(0)
    return PromptedSegmenter(model, build_clip(REFERENCE), REFERENCE.context_length), model


def _balls(
    shape: tuple[int, int, int], *balls: tuple[tuple[float, float, float], float]
) -> tuple[NDArray[np.float32], list[NDArray[np.bool_]]]:
    """Balls of 50 HU, given by index and radius in mm, in lung, and their masks."""
    hu = np.full(shape, -850, np.float32)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    masks = [(((grid - centre) * SPACING) ** 2).sum(-1) <= radius**2 for centre, radius in balls]
    for mask in masks:
        hu[mask] = 50
    return hu, masks


def _dice(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def _placed(
    mask: NDArray[np.bool_], origin: tuple[int, int, int], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    out = np.zeros(shape, np.bool_)
    out[tuple(slice(a, a + n) for a, n in zip(origin, mask.shape, strict=True))] = mask
    return out


@pytest.mark.parametrize(
    "centre", [(20.0, 100.0, 130.0), (1.0, 8.0, 150.0)], ids=["in the middle", "at a corner of the volume"]
)
@pytest.mark.parametrize("radius", [3.0, 6.0, 24.0])
def test_the_mask_lies_where_the_object_is(centre: tuple[float, float, float], radius: float) -> None:
    hu, (truth,) = _balls((40, 200, 160), (centre, radius))
    segmenter, _ = _segmenter()
    off = (centre[0] + 1, centre[1] - 3, centre[2] + 4)
    found = segmenter.segment(hu, SPACING, off, "lung nodule")
    assert found.mask.dtype == np.bool_
    # the block is tight
    assert all(found.mask.any(axis=axes).all() for axes in ((1, 2), (0, 2), (0, 1)))
    assert _dice(_placed(found.mask, found.origin, hu.shape), truth) > 0.93
    assert found.score == pytest.approx(0.8, abs=1e-3)


def test_of_two_objects_the_one_at_the_centre_is_meant() -> None:
    hu, (near, far) = _balls((30, 160, 160), ((15.0, 80.0, 70.0), 3.0), ((15.0, 80.0, 92.0), 6.0))
    segmenter, _ = _segmenter()
    found = segmenter.segment(hu, SPACING, (15.0, 81.0, 69.0), "lung nodule")
    whole = _placed(found.mask, found.origin, hu.shape)
    assert _dice(whole, near) > 0.9
    assert not (whole & far).any()


def test_a_large_object_widens_the_first_look() -> None:
    hu, (truth,) = _balls((50, 160, 160), ((25.0, 80.0, 80.0), 35.0))
    segmenter, _ = _segmenter()
    found = segmenter.segment(hu, SPACING, (25.0, 82.0, 78.0), "lung nodule")
    assert _dice(_placed(found.mask, found.origin, hu.shape), truth) > 0.95


def test_the_walk_ends_with_the_object_and_no_slice_is_encoded_twice() -> None:
    hu, (truth,) = _balls((200, 100, 100), ((100.0, 50.0, 50.0), 6.0))
    segmenter, model = _segmenter()
    segmenter.segment(hu, SPACING, (100.0, 50.0, 50.0), "lung nodule")
    slices = int(truth.any((1, 2)).sum())
    wide, *close = model.encoded
    windows = len(segmenter.sight.close)
    assert wide <= 7
    # the slices of the object, one empty one at each end, and what was encoded ahead
    assert sum(close) <= windows * (slices + 2 + 2 * 3)


def test_nothing_there_is_an_empty_mask() -> None:
    segmenter, _ = _segmenter()
    found = segmenter.segment(np.full((9, 64, 64), -850, np.int16), SPACING, (4.0, 32.0, 32.0), "lung nodule")
    assert found.mask.shape == (0, 0, 0)
    assert found.score == 0.0


def test_a_strip_is_searched_as_a_whole_or_near_a_centre() -> None:
    hu, (small, large) = _balls((8, 96, 96), ((4.0, 20.0, 24.0), 3.0), ((4.0, 70.0, 66.0), 5.0))
    segmenter, _ = _segmenter()
    anywhere = segmenter.segment_strip(hu, SPACING, "lung nodule")
    near = segmenter.segment_strip(hu, SPACING, "lung nodule", centre=(22.0, 21.0))
    assert anywhere.shape == hu.shape
    assert _dice(anywhere, large) > 0.9
    assert _dice(near, small) > 0.9


def test_a_box_is_given_in_pixels_of_each_window() -> None:
    hu, (truth,) = _balls((8, 96, 96), ((4.0, 40.0, 60.0), 5.0))
    segmenter, model = _segmenter()
    mask = segmenter.segment_strip(hu, SPACING, "lung nodule", box=(32.5, 52.5, 47.5, 67.5), key_slice=4)
    assert _dice(mask, truth) > 0.9
    for sides, box in zip(segmenter.sight.box, model.boxes[0], strict=True):
        side = max(15 * sides, segmenter.sight.least_mm / SPACING[1])
        low, high = 48 - 96 * 7.5 / side - 0.5, 48 + 96 * 7.5 / side - 0.5
        assert box.tolist() == pytest.approx([low, low, high, high], abs=1e-3)


def test_the_sentence_reaches_the_network_and_the_answer_is_always_the_same() -> None:
    hu, _ = _balls((8, 96, 96), ((4.0, 40.0, 60.0), 5.0))
    segmenter, model = _segmenter()
    first = segmenter.segment_strip(hu, SPACING, "lung nodule")
    second = segmenter.segment_strip(hu, SPACING, "lung nodule")
    assert np.array_equal(first, second)
    segmenter.segment_strip(hu, SPACING, "blood vessel")
    assert torch.equal(model.tokens[0][0], model.tokens[1][0])
    assert not torch.equal(model.tokens[0][0], model.tokens[-1][0])


def test_a_higher_threshold_gives_a_smaller_mask() -> None:
    hu, _ = _balls((8, 96, 96), ((4.0, 40.0, 60.0), 5.0))
    smooth = ndimage.gaussian_filter(hu, 1.5)
    model, clip = Bright(), build_clip(REFERENCE)
    sizes = [
        int(
            PromptedSegmenter(model, clip, REFERENCE.context_length, Sight(threshold=level))
            .segment_strip(smooth, SPACING, "lung nodule")
            .sum()
        )
        for level in (-2.0, 0.0, 2.0)
    ]
    assert sizes[0] > sizes[1] > sizes[2] > 0


def test_with_a_box_the_threshold_is_the_one_that_fits_it() -> None:
    hu, _ = _balls((8, 96, 96), ((4.0, 40.0, 60.0), 5.0))
    smooth = ndimage.gaussian_filter(hu, (0, 2, 2))
    segmenter, _ = _segmenter()
    widths = []
    for half in (2.5, 5.5, 6.5):
        box = (40 - half, 60 - half, 40 + half, 60 + half)
        mask = segmenter.segment_strip(smooth, SPACING, "lung nodule", box=box, key_slice=4)
        widths.append(int(mask[4].any(0).sum()))
        rows, columns = (np.flatnonzero(mask.any((0, axis))) for axis in (2, 1))
        # nothing more than a pixel beyond it, on any slice
        assert min(rows[0] - box[0], columns[0] - box[1]) >= -1
        assert max(rows[-1] - box[2], columns[-1] - box[3]) <= 1
    assert widths == [5, 11, 13]  # never beyond it on the slice it was drawn on
