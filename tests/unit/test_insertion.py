"""Real nodules into real lungs: what is pasted, where, and what stays."""

from __future__ import annotations

import numpy as np
import pytest

from inference.datasets.lidc_crops import NoduleCrop
from inference.insertion import (
    Background,
    Canvas,
    Implant,
    Place,
    Places,
    Pose,
    make_case,
    make_implant,
    paste,
    random_pose,
)
from inference.lungs import RIGHT, Lungs
from inference.types import SourceFrame, Volume

UPRIGHT = Pose(np.eye(3))


def ball_crop(
    radius_mm: float = 5.0,
    hu: float = 40.0,
    spacing: tuple[float, float, float] = (1.25, 0.7, 0.7),
    readers: int = 3,
    lung: float = -860.0,
) -> tuple[NoduleCrop, np.ndarray]:
    """A strip with a ball that all readers drew, and its HU."""
    half = int(radius_mm / spacing[0])
    z, y, x = np.meshgrid(np.arange(-half, half + 1), np.arange(96) - 48, np.arange(96) - 48, indexing="ij")
    gaps = np.sqrt((z * spacing[0]) ** 2 + (y * spacing[1]) ** 2 + (x * spacing[2]) ** 2)
    drawn = gaps < radius_mm
    values = np.where(drawn, hu, lung).astype(np.float32)
    bits = (drawn * (2**readers - 1)).astype(np.uint8)
    crop = NoduleCrop("LIDC-IDRI-0004", 0, np.zeros(drawn.shape, np.uint8), bits, readers, spacing)
    return crop, values


def implant(**options: float) -> Implant:
    """A ball that can be pasted."""
    made = make_implant(*ball_crop(**options))  # type: ignore[arg-type]  # numbers only are passed here
    assert made is not None
    return made


def dice() -> np.random.Generator:
    """The same numbers for every test."""
    return np.random.default_rng(5)


def lung_canvas(
    shape: tuple[int, int, int] = (48, 64, 64),
    spacing: tuple[float, float, float] = (1.25, 1.0, 1.0),
    hu: float = -860.0,
) -> Canvas:
    """Nothing but lung."""
    return Canvas(np.full(shape, hu, np.float32), np.ones(shape, np.bool_), spacing)


def background(known: tuple[tuple[tuple[float, float, float], float], ...] = ()) -> Background:
    """A lung in a wall, with noise and a vessel; axes run to the feet and to the right."""
    rng = np.random.default_rng(0)
    shape = (60, 120, 120)  # of 2 x 1 x 1 mm
    field = np.zeros(shape, np.bool_)
    field[5:-5, 10:-10, 10:-10] = True
    array = np.where(field, -860.0, 40.0)
    array[:, 58:62, 58:62] = 40
    array += rng.normal(0, 15, shape)
    affine = np.array([[0, 0, -1.0, 50], [0, 1.0, 0, -80], [-2.0, 0, 0, 300], [0, 0, 0, 1]])
    frames = tuple(SourceFrame("", str(z)) for z in range(shape[0]))
    volume = Volume(array.astype(np.int16), affine, "1.2", "1.3", "1.4", frames)
    return Background("drawn", volume, Lungs((field * RIGHT).astype(np.uint8), (0.0, 0.0)), known)


def test_an_implant_measures_what_half_of_the_readers_drew() -> None:
    made = implant(radius_mm=5.0)
    assert made.diameter_mm == pytest.approx(10.0, abs=0.6)
    assert made.parenchyma_hu == pytest.approx(-860)
    assert made.alpha[0].max() == made.alpha[-1].max() == 0
    assert made.alpha.max() == pytest.approx(1, abs=0.01)


def test_what_one_reader_drew_or_has_no_spacing_is_no_implant() -> None:
    crop, values = ball_crop(readers=1)
    assert make_implant(crop, values) is None
    crop, values = ball_crop()
    unknown = NoduleCrop(crop.patient, 0, crop.image, crop.mask_bits, 3, None)
    assert make_implant(unknown, values) is None


def test_a_pasted_ball_lies_where_it_was_put_in_its_own_density() -> None:
    canvas = lung_canvas()
    centre = np.array([20.3, 30.0, 35.6])
    pasted = paste(canvas, implant(), centre, random_pose(np.random.default_rng(1), (1, 1.0001)), dice())
    assert pasted is not None
    assert pasted.centre == pytest.approx(centre, abs=0.4)
    assert pasted.diameter_mm == pytest.approx(10, abs=0.6)
    assert canvas.array[20, 30, 36] == pytest.approx(40, abs=1)
    weight = (canvas.array + 860) / 900
    found = [float((weight * g).sum() / weight.sum()) for g in np.indices(weight.shape)]
    assert found == pytest.approx(list(centre), abs=0.3)
    # the softened edge makes it a little larger than what was drawn
    assert float(weight.sum()) * 1.25 == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.2)


def test_ground_glass_follows_the_lung_around_and_soft_tissue_does_not() -> None:
    centre = np.array([24.0, 32, 32])
    for hu, expected in ((-600.0, -600 * 930 / 860), (40.0, 40.0)):
        canvas = lung_canvas(hu=-930)
        paste(canvas, implant(hu=hu), centre, UPRIGHT, dice())
        assert canvas.array[24, 32, 32] == pytest.approx(expected, abs=2)


def test_a_vessel_through_ground_glass_stays() -> None:
    canvas = lung_canvas()
    canvas.array[:, 32, 32] = 50
    paste(canvas, implant(hu=-600.0), np.array([24.0, 32, 32]), UPRIGHT, dice())
    assert canvas.array[24, 32, 32] == 50
    assert canvas.array[24, 34, 32] == pytest.approx(-600, abs=5)


def test_thick_slices_blur_a_thin_nodule() -> None:
    thin = implant(radius_mm=2.0, spacing=(0.6, 0.6, 0.6))  # type: ignore[arg-type]  # a spacing
    sharp, thick = lung_canvas(spacing=(0.6, 0.6, 0.6)), lung_canvas(spacing=(5.0, 0.6, 0.6))
    for canvas in (sharp, thick):
        paste(canvas, thin, np.array([24.0, 32, 32]), UPRIGHT, dice())
    assert sharp.array.max() == pytest.approx(40, abs=2)
    assert -500 < thick.array.max() < 0


def test_noise_of_the_scan_is_added() -> None:
    canvas = lung_canvas(shape=(40, 64, 64))
    np.add(canvas.array, dice().normal(0, 40, canvas.array.shape), out=canvas.array, casting="same_kind")
    smooth = implant(radius_mm=8.0)
    paste(canvas, smooth, np.array([20.0, 32, 32]), UPRIGHT, dice())
    inner = canvas.array[18:23, 28:37, 28:37]
    assert inner.std() == pytest.approx(40, rel=0.25)


def test_only_what_lies_in_the_lung_and_stands_out_is_pasted() -> None:
    canvas = lung_canvas()
    canvas.field[:, :, 34:] = False
    before = canvas.array.copy()
    pasted = paste(canvas, implant(), np.array([24.0, 32, 32]), UPRIGHT, dice())
    assert pasted is not None
    assert (canvas.array[:, :, 34:] == before[:, :, 34:]).all()
    assert pasted.diameter_mm < 9.6
    assert pasted.centre[2] < 31.5
    before = canvas.array.copy()
    assert paste(canvas, implant(), np.array([24.0, 32, 38]), UPRIGHT, dice()) is None
    assert (canvas.array == before).all()
    wall = lung_canvas(hu=40)
    assert paste(wall, implant(), np.array([24.0, 32, 32]), UPRIGHT, dice()) is None


def test_places_are_what_they_are_called() -> None:
    chest = background()
    spacing = chest.volume.spacing_mm
    places = Places(chest.volume.array, chest.lungs.labels > 0, spacing)
    free, pleural = (places.points[places.fitting(p, 5.0)] for p in (Place.FREE, Place.JUXTAPLEURAL))
    vascular = places.points[places.fitting(Place.JUXTAVASCULAR, 5.0)]
    assert len(free)
    assert len(pleural)
    assert len(vascular)

    def to_vessel(points: np.ndarray) -> np.ndarray:
        return np.asarray(np.linalg.norm(points[:, 1:] - 59.5, axis=1))

    assert to_vessel(free).min() > 6
    assert to_vessel(vascular).max() < 11
    edge = np.minimum(pleural - [5, 10, 10], [54, 109, 109] - pleural) * np.array(spacing)
    assert edge.min(axis=1).max() < 6.5
    ball = (np.array([60.0, 30, 30]), 12.0)
    inside = places.choose(dice(), Place.FREE, 3.0, within=ball)
    assert inside is not None
    assert np.linalg.norm(inside * spacing - ball[0]) < 14
    everywhere = [(np.array([60.0, 60, 60]), 200.0)]
    assert places.choose(dice(), Place.FREE, 3.0, everywhere) is None


def test_a_case_is_the_same_again_and_its_truth_is_true() -> None:
    known = (((-10.0, -20.0, 240.0), 15.0),)
    chest = background(known)
    bank = [implant(radius_mm=r) for r in (2.5, 3.0, 4.0, 5.0)]
    case, again, other = (make_case(seed, chest, bank, count=4) for seed in (3, 3, 4))
    assert (case.volume.array == again.volume.array).all()
    assert case.lesions == again.lesions
    assert case.volume.series_uid == again.volume.series_uid != other.volume.series_uid
    assert (case.volume.array != other.volume.array).any()
    assert len(case.lesions) >= 3
    assert case.excluded == known
    centres = np.array([one.centre_lps for one in case.lesions])
    changed = np.argwhere(np.abs(case.volume.array - chest.volume.array.astype(int)) > 300)
    places = case.volume.index_to_lps(changed)
    gaps = np.linalg.norm(places[:, None] - centres[None], axis=2)
    radii = np.array([one.diameter_mm / 2 for one in case.lesions])
    assert (gaps < radii + 2.5).any(axis=1).all()  # nothing else was changed
    for number, lesion in enumerate(case.lesions):
        own = places[gaps[:, number] < radii[number] + 2.5]
        assert own.mean(axis=0) == pytest.approx(np.array(lesion.centre_lps), abs=1.2)
        assert np.linalg.norm(np.array(lesion.centre_lps) - known[0][0]) > 15 + radii[number]


def test_a_case_holds_no_nodule_below_the_smallest() -> None:
    bank = [implant(radius_mm=2.0)]
    assert make_case(0, background(), bank, scale=(0.7, 0.71)).lesions == ()
