from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.load import load_series
from inference.lungs import LEFT, RIGHT, find_lungs
from inference.phantom import Attachment, NoduleSpec, Phantom, make_phantom
from inference.types import Volume

SHAPE, SPACING = (75, 128, 128), (4.0, 2.75, 2.75)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    specs = (NoduleSpec(12.0, attachment=Attachment.JUXTAPLEURAL), NoduleSpec(24.0))
    return make_phantom(5, SHAPE, SPACING, specs)


def turned(volume: Volume, flips: tuple[int, ...] = (), order: tuple[int, ...] = (0, 1, 2)) -> Volume:
    """The same patient on another array layout: axes reversed, then permuted."""
    affine = volume.affine_index_to_lps.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (volume.array.shape[axis] - 1)
        affine[:3, axis] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    array = np.ascontiguousarray(np.flip(volume.array, flips).transpose(order))
    return replace(volume, array=array, affine_index_to_lps=affine, frames=volume.frames[:1] * array.shape[0])


def with_box(volume: Volume, low: tuple[float, ...], high: tuple[float, ...], hu: int) -> Volume:
    """The volume with an LPS mm box filled."""
    first, last = np.sort(np.round(volume.lps_to_index(np.array([low, high]))).astype(int), axis=0)
    array = volume.array.copy()
    array[tuple(slice(max(a, 0), b + 1) for a, b in zip(first, last, strict=True))] = hu
    return replace(volume, array=array)


def test_field_matches_the_drawn_lungs_with_nodules_in_it(phantom: Phantom) -> None:
    lungs = find_lungs(phantom.volume)
    truth = (phantom.truth > 0) & (phantom.truth != 3)
    field = lungs.labels > 0
    assert 2 * (truth & field).sum() / (truth.sum() + field.sum()) > 0.95
    for nodule in phantom.nodules:
        mask = phantom.truth == nodule.label
        assert field[mask].mean() > 0.6
    assert lungs.warnings == ()
    drawn_ml = [(phantom.truth == label).sum() * phantom.volume.voxel_volume_mm3 / 1000 for label in (1, 2)]
    assert lungs.aerated_ml == pytest.approx(drawn_ml, rel=0.1)


def test_heart_liver_and_trachea_stay_out(phantom: Phantom) -> None:
    lungs = find_lungs(phantom.volume)
    for point in ((22.0, -20.0, -40.0), (-60.0, 0.0, -110.0), (0.0, 8.0, 90.0), (0.0, 64.0, 0.0)):
        index = tuple(np.round(phantom.volume.lps_to_index(point)).astype(int))
        assert lungs.labels[index] == 0, point


@pytest.mark.parametrize(
    ("flips", "order"),
    [((0,), (0, 1, 2)), ((1, 2), (0, 1, 2)), ((0, 1, 2), (0, 1, 2)), ((2,), (0, 2, 1)), ((), (1, 0, 2))],
)
def test_sides_follow_the_patient_and_not_the_array(
    phantom: Phantom, flips: tuple[int, ...], order: tuple[int, ...]
) -> None:
    volume = turned(phantom.volume, flips, order)
    labels = find_lungs(volume).labels
    for side, sign in ((RIGHT, -1), (LEFT, 1)):
        points = volume.index_to_lps(np.argwhere(labels == side))
        assert (np.sign(points[:, 0]) == sign).mean() > 0.99


def test_pleural_mass_of_30_mm_belongs_to_the_field(phantom: Phantom) -> None:
    labels = find_lungs(phantom.volume).labels
    at = np.array(phantom.volume.lps_to_index((0.0, 10.0, 20.0))).round().astype(int)
    edge = np.flatnonzero(labels[at[0], at[1]] == LEFT).max()
    centre = phantom.volume.index_to_lps((float(at[0]), float(at[1]), float(edge))) - np.array([6.0, 0, 0])
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), axis=-1)
    ball = np.linalg.norm(phantom.volume.index_to_lps(grid) - centre, axis=-1) < 15
    mass = ball & (labels == LEFT)
    array = np.where(ball, 40, phantom.volume.array).astype(np.int16)
    field = find_lungs(replace(phantom.volume, array=array)).labels
    assert (field[mass] == LEFT).mean() > 0.85


def test_touching_lungs_are_told_apart(phantom: Phantom) -> None:
    joined = with_box(phantom.volume, (-30.0, -75.0, 20.0), (30.0, -60.0, 60.0), -860)
    labels = find_lungs(joined).labels
    for side, sign in ((RIGHT, -1), (LEFT, 1)):
        points = joined.index_to_lps(np.argwhere(labels == side))
        assert (points[:, 0] * sign > 0).mean() > 0.97


def test_lung_at_the_edge_of_a_small_field_of_view_is_kept(phantom: Phantom) -> None:
    columns = slice(20, -14)  # cuts both lungs at their side
    cut = replace(phantom.volume, array=phantom.volume.array[:, :, columns])
    affine = cut.affine_index_to_lps.copy()
    affine[:3, 3] += affine[:3, 2] * 20
    labels = find_lungs(replace(cut, affine_index_to_lps=affine)).labels
    truth = np.isin(phantom.truth[:, :, columns], (1, 2))
    assert ((labels > 0) & truth).sum() / truth.sum() > 0.93


def test_one_destroyed_lung_is_a_warning(phantom: Phantom) -> None:
    filled = np.where(phantom.truth == 2, 20, phantom.volume.array).astype(np.int16)
    lungs = find_lungs(replace(phantom.volume, array=filled))
    assert len(lungs.warnings) == 1
    assert "left" in lungs.warnings[0]


def cases_without_a_chest(phantom: Phantom) -> dict[str, tuple[str, Volume]]:
    volume = phantom.volume
    water = np.where(volume.array < -300, 0, volume.array).astype(np.int16)
    bases = np.where((phantom.truth > 0) & (np.arange(SHAPE[0]) > 18)[:, None, None], 20, volume.array)
    left_gone = np.where(phantom.truth == 2, 20, volume.array).astype(np.int16)
    left_gone[:, :64] = np.where(
        phantom.truth[:, :64] > 0, 20, left_gone[:, :64]
    )  # and half of the right one
    left_gone[36:] = np.where(phantom.truth[36:] > 0, 20, left_gone[36:])
    return {
        "no air": ("0 ml of aerated", replace(volume, array=water)),
        "nothing but air": ("0 ml of aerated", replace(volume, array=np.full_like(volume.array, -1000))),
        "a slab": ("mm of lung", replace(volume, array=volume.array[28:44], frames=volume.frames[28:44])),
        "abdomen": ("aerated lung|mm of lung", replace(volume, array=bases.astype(np.int16))),
        "quarter of one lung": ("two lungs", replace(volume, array=left_gone)),
    }


@pytest.mark.parametrize("name", ["no air", "nothing but air", "a slab", "abdomen", "quarter of one lung"])
def test_what_is_no_chest_is_refused_with_a_sentence(phantom: Phantom, name: str) -> None:
    words, volume = cases_without_a_chest(phantom)[name]
    with pytest.raises(UnsuitableSeriesError, match=words) as refusal:
        find_lungs(volume)
    assert refusal.value.code is ReasonCode.NOT_CHEST


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["LIDC-IDRI-0001", "Lung_Dx-A0001", "C3N-00247"])
def test_real_chest(name: str, real_ct: Callable[[str], Path]) -> None:
    volume = load_series(sorted(real_ct(name).rglob("*.dcm"))).volume
    lungs = find_lungs(volume)
    assert all(1200 < side < 3600 for side in lungs.aerated_ml)
    for side, sign in ((RIGHT, -1), (LEFT, 1)):
        points = volume.index_to_lps(np.argwhere(lungs.labels[::4, ::8, ::8] == side) * [4, 8, 8])
        middle = volume.index_to_lps(np.array(volume.array.shape) / 2)[0]
        assert (np.sign(points[:, 0] - middle) == sign).mean() > 0.9
    hu = volume.array[lungs.labels > 0]
    assert np.median(hu) < -750
    assert (hu > -300).mean() < 0.12
