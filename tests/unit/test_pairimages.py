"""Pictures of a nodule in two examinations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicom_sr.keyimages import OUTLINE, ZOOM
from dicom_sr.pairimages import GAP, HEAD, PairImages, render_pairs
from inference.types import Pair, Standing, Volume
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_comparison, make_findings, make_prior_volume, make_volume

VOLUME = make_volume(make_ct_series(16))
PRIOR = make_prior_volume(VOLUME)
FINDINGS = make_findings(VOLUME, 4)
COMPARISON = make_comparison(VOLUME, FINDINGS)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairImages, ...]:
    return render_pairs(VOLUME, PRIOR, COMPARISON, tmp_path_factory.mktemp("pairs"), note="A NOTE")


def parts(images: PairImages) -> list[NDArray[np.uint8]]:
    """Prior and current without, prior and current with outlines, each without its edge."""
    with Image.open(images.picture) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    tops, lefts = (HEAD, HEAD + ZOOM + GAP), (0, ZOOM + GAP)
    return [pixels[top : top + ZOOM - 40, left : left + ZOOM] for top in tops for left in lefts]


def outlined(picture: NDArray[np.uint8]) -> int:
    return int((picture == OUTLINE).all(axis=-1).sum())


def test_both_dates_stand_side_by_side(drawn: tuple[PairImages, ...]) -> None:
    assert [images.picture.name for images in drawn] == [f"change-{n:02d}.png" for n in range(1, 8)]
    plain = [outlined(one) for one in parts(drawn[0])[:2]]
    with_outlines = [outlined(one) for one in parts(drawn[0])[2:]]
    assert plain == [0, 0]
    assert min(with_outlines) > 100
    assert [stack.path.name for stack in drawn[0].stacks] == [
        "change-01-prior.webp",
        "change-01-current.webp",
    ]
    assert all(any(one.outline for one in stack.slices) for stack in drawn[0].stacks)


def test_captions_say_what_became_of_it(drawn: tuple[PairImages, ...]) -> None:
    assert drawn[0].caption.startswith(
        "Left 2025-01-06, right 2026-01-02. Nodule 1: growing, mean diameter 5.2 to 7.1 mm Volume "
    )
    assert "(+200 %), doubling time 223 days. A NOTE" in drawn[0].caption
    assert all("Research use only, not for primary diagnosis." in images.caption for images in drawn)
    words = [images.caption.split(": ")[1].split(", mean")[0] for images in drawn]
    assert words == [
        "growing",
        "new",
        "outside what the prior examination shows",
        "change not known",
        "not seen any more",
        "outside what this examination shows",
        "slowly growing",
    ]


@pytest.mark.parametrize(("at", "empty"), [(1, "prior"), (4, "current")])
def test_the_place_of_a_nodule_that_is_not_there_has_no_outline(
    drawn: tuple[PairImages, ...], at: int, empty: str
) -> None:
    images = drawn[at]
    sides = {"prior": images.prior, "current": images.current}
    shown, other = sides.pop(empty), next(iter(sides.values()))
    assert shown is not None
    assert other is not None
    assert not any(one.outline for one in shown.slices)
    assert any(one.outline for one in other.slices)
    # the place is the key slice of the other examination, as these two lie on each other
    assert shown.slices[shown.key].index == other.slices[other.key].index
    below = dict(zip(("prior", "current"), parts(images)[2:], strict=True))
    strokes, outline = below.pop(empty), next(iter(below.values()))
    assert 0 < outlined(strokes) < outlined(outline)


def test_a_place_out_of_sight_has_no_picture(drawn: tuple[PairImages, ...]) -> None:
    assert drawn[2].prior is None
    assert drawn[5].current is None
    assert [len(images.stacks) for images in drawn] == [2, 2, 1, 2, 2, 1, 2]
    dark = parts(drawn[2])[0][:100]
    assert len(np.unique(dark.reshape(-1, 3), axis=0)) == 1


def test_a_place_beyond_the_volume_is_out_of_sight(tmp_path: Path) -> None:
    pair = Pair(FINDINGS[0], None, Standing.NEW, current_point_mm=(0.0, 0.0, 9000.0))
    (images,) = render_pairs(VOLUME, PRIOR, replace(COMPARISON, pairs=(pair,)), tmp_path)
    assert images.prior is None


def test_grids_of_two_examinations_come_to_one_scale(tmp_path: Path) -> None:
    """The prior examination in slices of half the distance: its part is as large in mm."""
    affine = PRIOR.affine_index_to_lps.copy()
    affine[:3, 0] /= 2
    fine: Volume = replace(
        PRIOR,
        array=np.repeat(PRIOR.array, 2, axis=0),
        frames=PRIOR.frames * 2,
        affine_index_to_lps=affine,
    )
    pair = COMPARISON.pairs[1]
    (images,) = render_pairs(VOLUME, fine, replace(COMPARISON, pairs=(pair,)), tmp_path)
    assert images.prior is not None
    assert images.current is not None
    assert images.prior.slices[images.prior.key].index == 2 * images.current.slices[images.current.key].index
    assert images.prior.rows * images.prior.pixel_mm[0] == pytest.approx(
        images.current.rows * images.current.pixel_mm[0]
    )
