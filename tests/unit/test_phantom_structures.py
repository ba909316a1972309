"""What the phantom can show besides plain nodules: finer attributes, and structures that are no nodules."""

from __future__ import annotations

import numpy as np
import pytest

from inference.phantom import (
    Attachment,
    Calcification,
    Content,
    Margin,
    NoduleSpec,
    Phantom,
    PhantomNodule,
    PhantomStructure,
    StructureKind,
    StructureSpec,
    make_phantom,
    random_specs,
    random_structures,
)
from inference.phantom.anatomy import RIGHT, Plan, draw_slice, lobe_at
from inference.types import Attenuation, Laterality, Lobe

SHAPE, SPACING = (130, 230, 250), (2.0, 1.4, 1.4)
PATTERNS = [pattern for pattern in Calcification if pattern is not Calcification.ABSENT]
NODULES = (
    *(NoduleSpec(18.0, calcification=pattern) for pattern in PATTERNS),
    *(NoduleSpec(18.0, content=content) for content in (Content.FAT, Content.AIR)),
    NoduleSpec(18.0, elongation=2.0),
    NoduleSpec(18.0),
    NoduleSpec(10.0, pleural_tag=True),
)
STRUCTURES = (
    StructureSpec(StructureKind.SCAR, 35.0),
    StructureSpec(StructureKind.BRONCHUS, 12.0),
    StructureSpec(StructureKind.MUCUS_PLUG, 10.0),
    StructureSpec(StructureKind.BONE_ISLAND, 12.0),
    StructureSpec(StructureKind.PLAQUE, 40.0),
)


@pytest.fixture(scope="module")
def plain() -> Phantom:
    return make_phantom(4, SHAPE, SPACING, NODULES)


@pytest.fixture(scope="module")
def full() -> Phantom:
    return make_phantom(4, SHAPE, SPACING, NODULES, structures=STRUCTURES, emphysema=0.2, dose=1.0)


def hu_by_depth(phantom: Phantom, nodule: PhantomNodule) -> tuple[float, float, float]:
    """Mean HU in the inner third of a nodule, at two thirds, and the highest."""
    index = np.argwhere(phantom.truth == nodule.label)
    far = np.linalg.norm(phantom.volume.index_to_lps(index) - nodule.centre_lps, axis=1)
    hu = phantom.volume.array[tuple(index.T)].astype(float)
    radius = nodule.diameter_mm / 2
    core, shell = hu[far < radius / 3], hu[np.abs(far / radius - 0.66) < 0.1]
    return float(core.mean()), float(shell.mean()), float(np.percentile(hu, 99))


def named(phantom: Phantom, **wanted: object) -> PhantomNodule:
    (nodule,) = (
        n for n in phantom.nodules if all(getattr(n.spec, name) == value for name, value in wanted.items())
    )
    return nodule


def test_calcification_lies_where_its_pattern_says(plain: Phantom) -> None:
    core, shell, _ = hu_by_depth(plain, named(plain, calcification=Calcification.CENTRAL))
    assert core > 300 > 150 > shell
    core, shell, _ = hu_by_depth(plain, named(plain, calcification=Calcification.LAMINATED))
    assert core > 120
    assert shell > 150
    core, shell, _ = hu_by_depth(plain, named(plain, calcification=Calcification.SOLID))
    assert min(core, shell) > 400
    core, _, top = hu_by_depth(plain, named(plain, calcification=Calcification.NON_CENTRAL))
    assert core < 150 < 250 < top
    popcorn = plain.volume.array[plain.truth == named(plain, calcification=Calcification.POPCORN).label]
    assert 0.03 < (popcorn > 250).mean() < 0.6
    assert (popcorn < 150).mean() > 0.25


def test_only_calcified_nodules_are_dense(plain: Phantom) -> None:
    for nodule in plain.nodules:
        top = hu_by_depth(plain, nodule)[2]
        assert (top > 200) == (nodule.spec.calcification is not Calcification.ABSENT)


def test_contents_show_in_the_core(plain: Phantom) -> None:
    assert hu_by_depth(plain, named(plain, content=Content.AIR))[0] < -700
    assert -120 < hu_by_depth(plain, named(plain, content=Content.FAT))[0] < -30


def test_elongation_stretches_at_the_same_volume(plain: Phantom) -> None:
    def half_axes(nodule: PhantomNodule) -> np.ndarray:
        points = plain.volume.index_to_lps(np.argwhere(plain.truth == nodule.label))
        return np.asarray(np.sqrt(5 * np.linalg.eigvalsh(np.cov(points.T))))

    long, ball = named(plain, elongation=2.0), plain.nodules[8]
    assert half_axes(ball)[2] / half_axes(ball)[0] < 1.3
    assert 1.6 < half_axes(long)[2] / half_axes(long)[0] < 2.5
    assert long.volume_mm3 == pytest.approx(ball.volume_mm3, rel=0.1)


def median_hu_towards_the_pleura(phantom: Phantom, nodule: PhantomNodule) -> float:
    middle = np.round(phantom.volume.lps_to_index(nodule.centre_lps)).astype(int)
    low = np.maximum(middle - 24, 0)  # 34 mm and more
    near = phantom.truth[tuple(slice(a, b + 25) for a, b in zip(low, middle, strict=True))]
    outside = phantom.volume.index_to_lps(np.argwhere(near == 0) + low)
    nearest = outside[np.linalg.norm(outside - nodule.centre_lps, axis=1).argmin()]
    steps = np.linspace(0, 1, 60)[:, None]
    line = np.array(nodule.centre_lps) * (1 - steps) + nearest * steps
    index = np.round(phantom.volume.lps_to_index(line)).astype(int)
    in_lung = np.isin(phantom.truth[tuple(index.T)], (1, 2))
    assert in_lung.sum() > 5
    return float(np.median(phantom.volume.array[tuple(index[in_lung].T)]))


def test_a_tag_reaches_the_pleura(plain: Phantom) -> None:
    assert median_hu_towards_the_pleura(plain, named(plain, pleural_tag=True)) > -500
    assert median_hu_towards_the_pleura(plain, plain.nodules[8]) < -700


def test_ratings_follow_what_is_drawn() -> None:
    assert NoduleSpec(8.0).ratings() == {
        "internalStructure": 1,
        "calcification": 6,
        "sphericity": 5,
        "margin": 5,
        "lobulation": 1,
        "spiculation": 1,
        "texture": 5,
    }
    spiky = NoduleSpec(8.0, Attenuation.PART_SOLID, Margin.SPICULATED, strength=1.8, elongation=1.6).ratings()
    assert (spiky["spiculation"], spiky["lobulation"], spiky["texture"], spiky["sphericity"]) == (5, 1, 3, 3)
    assert NoduleSpec(8.0, margin=Margin.LOBULATED, strength=0.5).ratings()["lobulation"] == 3
    # nothing like a spicule is drawn on ground glass
    assert NoduleSpec(8.0, Attenuation.GROUND_GLASS, Margin.SPICULATED).ratings()["spiculation"] == 1
    assert NoduleSpec(8.0, calcification=Calcification.POPCORN).ratings()["calcification"] == 1
    assert NoduleSpec(8.0, content=Content.AIR).ratings()["internalStructure"] == 4


def test_specs_that_contradict_themselves_are_refused() -> None:
    for words, arguments in (
        ("only a solid nodule", {"attenuation": Attenuation.GROUND_GLASS, "content": Content.AIR}),
        ("only an isolated nodule", {"attachment": Attachment.JUXTAPLEURAL, "pleural_tag": True}),
        ("elongation", {"elongation": 4.0}),
        ("strength", {"strength": 0.0}),
    ):
        with pytest.raises(ValueError, match=words):
            NoduleSpec(8.0, **arguments)


def test_varied_specs_keep_what_plain_ones_are_and_show_every_attribute() -> None:
    plain_ones = random_specs(np.random.default_rng(0), 300)
    varied = random_specs(np.random.default_rng(0), 300, varied=True)
    assert [(s.diameter_mm, s.attenuation, s.margin, s.attachment) for s in varied] == [
        (s.diameter_mm, s.attenuation, s.margin, s.attachment) for s in plain_ones
    ]
    assert {s.calcification for s in varied} == set(Calcification)
    assert {s.content for s in varied} == set(Content)
    assert {s.pleural_tag for s in varied} == {True, False}
    assert len({s.identity for s in varied}) > 250


# lobes


def test_lobes_meet_at_the_fissures_that_are_drawn() -> None:
    plan, height = Plan.draw(np.random.default_rng(2)), 5.0
    y, x = np.arange(-90, 90, 0.5, dtype=np.float32), np.arange(-130, -20, 0.5, dtype=np.float32)
    hu, labels = draw_slice(plan, height, y[:, None], x[None, :], 0.5)

    def crossings(row: float) -> list[set[Lobe]]:
        """Lobes on both sides of each bright line that crosses the lung on this row."""
        number = int(np.searchsorted(y, row))
        inside = np.flatnonzero(labels[number] == 1)[8:-8]
        line = hu[number][inside]
        peaks = inside[1:-1][
            (line[1:-1] > line[:-2]) & (line[1:-1] >= line[2:]) & (line[1:-1] > line.min() + 40)
        ]
        return [
            {lobe_at(plan, RIGHT, np.array([height, row, x[peak] + shift])) for shift in (-3.0, 3.0)}
            for peak in peaks
        ]

    in_front = crossings(-40.0)
    assert in_front
    assert all(lobes == {Lobe.UPPER, Lobe.MIDDLE} for lobes in in_front)
    assert crossings(60.0) == []  # the lower lobe has no such fissure
    columns = np.flatnonzero(labels[:, 60] == 1)[12:-12]
    oblique = y[columns[hu[columns, 60].argmax()]]
    sides = [lobe_at(plan, RIGHT, np.array([height, oblique + shift, x[60]])) for shift in (-4.0, 4.0)]
    assert sides[0] is not Lobe.LOWER
    assert sides[1] is Lobe.LOWER


def test_nodules_have_lobes_and_the_left_lung_has_no_middle_one(plain: Phantom) -> None:
    for nodule in plain.nodules:
        side, (_, y, z) = nodule.laterality, nodule.centre_lps
        assert nodule.lobe is not Lobe.MIDDLE or side is Laterality.RIGHT
        if z > 70:
            assert nodule.lobe is Lobe.UPPER
        if y > 60 and z < 20:
            assert nodule.lobe is Lobe.LOWER
    assert len({nodule.lobe for nodule in plain.nodules}) > 1


# structures that are no nodules


def structure(phantom: Phantom, kind: StructureKind) -> PhantomStructure:
    (found,) = (s for s in phantom.structures if s.kind is kind)
    return found


def hu_of(phantom: Phantom, kind: StructureKind) -> np.ndarray:
    found = structure(phantom, kind)
    return np.asarray(phantom.volume.array[found.slices()][found.mask])


def test_structures_change_neither_the_nodules_nor_their_truth(plain: Phantom, full: Phantom) -> None:
    assert plain.structures == ()
    assert [s.kind for s in full.structures] == [StructureKind.EMPHYSEMA, *(s.kind for s in STRUCTURES)]
    assert full.nodules == plain.nodules
    assert np.array_equal(full.truth, plain.truth)
    assert full.volume.series_uid != plain.volume.series_uid
    taken = np.zeros(SHAPE, bool)
    for found in full.structures[1:]:
        assert not (full.truth[found.slices()][found.mask] >= 10).any()
        assert not (taken[found.slices()] & found.mask).any()
        taken[found.slices()] |= found.mask


def test_structures_look_like_what_they_are(full: Phantom) -> None:
    for kind in (StructureKind.SCAR, StructureKind.MUCUS_PLUG, StructureKind.PLAQUE):
        assert -250 < np.median(hu_of(full, kind)) < 80, kind
    assert np.median(hu_of(full, StructureKind.BONE_ISLAND)) > 500
    lumen, wall = np.percentile(hu_of(full, StructureKind.BRONCHUS), [15, 85])
    assert lumen < -800
    assert wall > -350


def test_structures_lie_where_they_belong(full: Phantom) -> None:
    for kind in (StructureKind.SCAR, StructureKind.BRONCHUS, StructureKind.MUCUS_PLUG, StructureKind.PLAQUE):
        found = structure(full, kind)
        assert np.isin(full.truth[found.slices()][found.mask], (1, 2)).all(), kind
    for kind in (StructureKind.SCAR, StructureKind.PLAQUE, StructureKind.BONE_ISLAND):
        found = structure(full, kind)
        wide = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in found.slices())
        assert (full.truth[wide] == 0).any(), kind  # at the pleura
    island = structure(full, StructureKind.BONE_ISLAND)
    assert 0.05 < np.isin(full.truth[island.slices()][island.mask], (1, 2)).mean() < 0.95


def test_emphysema_takes_its_share_and_more_of_it_above(plain: Phantom, full: Phantom) -> None:
    holes = structure(full, StructureKind.EMPHYSEMA)
    lost = np.zeros(SHAPE, bool)
    lost[holes.slices()] = holes.mask
    lungs = np.isin(plain.truth, (1, 2))
    assert lost.sum() / (lungs & (plain.volume.array < -650)).sum() == pytest.approx(0.2, abs=0.03)
    assert full.volume.array[lost].mean() < plain.volume.array[lost].mean() - 60
    above, below = (lost[part].sum() / lungs[part].sum() for part in (np.s_[75:], np.s_[:75]))
    assert above > 1.2 * below


def test_impossible_structures_are_refused() -> None:
    with pytest.raises(ValueError, match="no structure with a place"):
        StructureSpec(StructureKind.EMPHYSEMA, 10.0)
    with pytest.raises(ValueError, match="scar measures 10 to 50 mm"):
        StructureSpec(StructureKind.SCAR, 90.0)
    with pytest.raises(ValueError, match="emphysema takes"):
        make_phantom(0, emphysema=0.9)


def test_random_structures_show_every_kind() -> None:
    specs = random_structures(np.random.default_rng(0), 60)
    assert {spec.kind for spec in specs} == set(StructureKind) - {StructureKind.EMPHYSEMA}
