from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from click.testing import CliRunner
from scipy import ndimage

from inference.analyse import second_look
from inference.change import Change
from inference.evaluate import priors as evaluation
from inference.evaluate.report import Options, write
from inference.evaluate.two_dates import PairCase, Seen, Truth
from inference.lungs import Lungs, find_lungs
from inference.measure import attenuation, measure
from inference.phantom import Motion, Phantom, TwoDates, grown, write_phantom
from inference.priors import Look, PriorExamination, compare, keep_tracking
from inference.priors.compare import Scan, pairs_of
from inference.priors.matching import Place, match
from inference.priors.registration import NotRegisteredError, Registration, register
from inference.registry import load_pipeline
from inference.types import Attenuation, Comparison, Finding, Pair, Point, SecondLook, Standing, Volume
from pacs_node.cli import main

SHAPE, SPACING = (75, 128, 128), (4.0, 2.75, 2.75)
GRID_MM = 5.0
DAYS = 360
GROWS, STAYS, SHRINKS, PART_SOLID, NEW, GONE = range(10, 16)
"""Labels of `inference.phantom.DEFAULT_COURSES`."""


@lru_cache(maxsize=1)
def _two() -> TwoDates:
    return grown(4, shape=SHAPE, spacing_mm=SPACING)


def _findings(phantom: Phantom, day: str) -> tuple[Finding, ...]:
    found = []
    for nodule in phantom.nodules:
        (place,) = ndimage.find_objects((phantom.truth == nodule.label).astype(np.uint8))
        mask, origin = phantom.truth[place] == nodule.label, tuple(s.start for s in place)
        measured = measure(phantom.volume, mask, origin)
        found.append(
            Finding(
                tracking_uid=f"2.25.{day}{nodule.label}",
                tracking_id=f"N{nodule.label}",
                mask=mask,
                origin=origin,
                key_slice=measured.key_slice,
                key_point=measured.key_point,
                long_axis=measured.long_axis,
                short_axis=measured.short_axis,
                measurements=measured.measurements,
                detection_probability=0.9,
                attenuation=attenuation(phantom.volume, mask, origin),
            )
        )
    return tuple(found)


@lru_cache(maxsize=1)
def _scans() -> tuple[Scan, Scan]:
    two = _two()
    current, prior = (
        Scan(one.volume, find_lungs(one.volume), _findings(one, day))
        for one, day in ((two.current, "2"), (two.prior, "1"))
    )
    return current, prior


@lru_cache(maxsize=1)
def _registered() -> Registration:
    current, prior = _scans()
    return register(current.volume, current.lungs, prior.volume, prior.lungs, grid_mm=GRID_MM)


def _pairs(
    current: Scan | None = None, prior: Scan | None = None, look: Look | None = None
) -> dict[tuple[str | None, str | None], Pair]:
    """Pairs by the tracking IDs of both."""
    now, then = _scans()
    made = pairs_of(current or now, prior or then, _registered(), DAYS, look=look)
    return {(_name(pair.current), _name(pair.prior)): pair for pair in made}


def _name(finding: Finding | None) -> str | None:
    return None if finding is None else finding.tracking_id


def _without(scan: Scan, label: int) -> Scan:
    return replace(scan, findings=tuple(one for one in scan.findings if one.tracking_id != f"N{label}"))


def _only(scan: Scan, label: int) -> Finding:
    (found,) = (one for one in scan.findings if one.tracking_id == f"N{label}")
    return found


# registration


def test_points_are_carried_where_they_truly_lie() -> None:
    two, (current, _) = _two(), _scans()
    inner = np.argwhere(ndimage.binary_erosion(current.lungs.labels > 0, iterations=2))
    points = current.volume.index_to_lps(inner[np.random.default_rng(0).choice(len(inner), 400)])
    true = two.motion.to_prior(points)
    found = _registered()
    before, after = (np.linalg.norm(one - true, axis=1) for one in (points, found.to_prior(points)))
    assert np.median(before) > 6
    assert np.median(after) < 1.5
    assert np.quantile(after, 0.95) < 4
    back = np.linalg.norm(found.to_current(found.to_prior(points)) - points, axis=1)
    assert back.max() < 0.5
    assert found.quality.overlap > 0.93
    assert found.quality.correlation > 0.8
    assert found.quality.common_share > 0.98


def test_other_lungs_are_not_compared() -> None:
    current, _ = _scans()
    # in the mirror: lungs of the same size with vessels elsewhere
    other = replace(current.volume, array=current.volume.array[:, :, ::-1].copy())
    field = replace(current.lungs, labels=current.lungs.labels[:, :, ::-1].copy())
    with pytest.raises(NotRegisteredError, match="don't fall on each other") as refused:
        register(current.volume, current.lungs, other, field, grid_mm=GRID_MM)
    assert refused.value.quality is not None
    assert refused.value.quality.correlation < 0.5


def _cut(scan: Scan, start: int, stop: int) -> Scan:
    """Some of the slices; findings that are cut are left out."""
    volume = scan.volume
    affine = volume.affine_index_to_lps.copy()
    affine[:3, 3] = volume.index_to_lps((float(start), 0.0, 0.0))
    kept = tuple(
        replace(one, origin=(one.origin[0] - start, *one.origin[1:]), key_slice=one.key_slice - start)
        for one in scan.findings
        if start <= one.origin[0] and one.origin[0] + len(one.mask) <= stop
    )
    cut = replace(
        volume,
        array=volume.array[start:stop],
        affine_index_to_lps=affine,
        frames=volume.frames[start:stop],
    )
    return Scan(cut, Lungs(scan.lungs.labels[start:stop], scan.lungs.aerated_ml), kept)


def test_what_the_prior_does_not_show_is_not_called_new() -> None:
    current, whole = _scans()
    prior = _cut(whole, 46, 75)
    found = register(current.volume, current.lungs, prior.volume, prior.lungs, grid_mm=GRID_MM)
    assert found.quality.common_share < 0.6
    lost = {one.tracking_id for one in whole.findings} - {one.tracking_id for one in prior.findings}
    pairs = pairs_of(current, prior, found, DAYS)
    outside = {
        pair.current.tracking_id
        for pair in pairs
        if pair.current is not None and pair.standing is Standing.OUTSIDE_PRIOR
    }
    assert lost == {f"N{SHRINKS}", f"N{PART_SOLID}", f"N{GONE}"}
    assert outside == {f"N{SHRINKS}", f"N{PART_SOLID}", f"N{NEW}"}
    assert all(pair.change is None for pair in pairs if pair.standing is Standing.OUTSIDE_PRIOR)
    assert all(pair.standing is not Standing.NEW for pair in pairs)


# pairs


def test_each_nodule_finds_itself_and_what_became_of_it() -> None:
    two, pairs = _two(), _pairs()
    told = {names: (pair.standing, pair.change) for names, pair in pairs.items()}
    assert told == {
        # slices of 4 mm are too thick for the change of nodules below 8 mm
        ("N10", "N10"): (Standing.MATCHED, None),
        ("N11", "N11"): (Standing.MATCHED, Change.STABLE),
        ("N12", "N12"): (Standing.MATCHED, None),
        ("N13", "N13"): (Standing.MATCHED, Change.GROWING),
        ("N14", None): (Standing.NEW, Change.NEW),
        (None, "N15"): (Standing.RESOLVED, None),
    }
    truth = {one.label: one.volume_mm3 for one in two.current.nodules}
    before = {one.label: one.volume_mm3 for one in two.prior.nodules}
    for label in (GROWS, STAYS, SHRINKS, PART_SOLID):
        pair = pairs[f"N{label}", f"N{label}"]
        assert pair.doubling is not None
        assert pair.doubling.change == pytest.approx(truth[label] / before[label] - 1, abs=1e-6)
        assert pair.current is not None
        assert pair.current.tracking_uid == f"2.25.1{label}"
    for nodule in two.current.nodules:
        (pair,) = (p for p in pairs.values() if p.current and p.current.tracking_id == f"N{nodule.label}")
        true = two.motion.to_prior(np.array(nodule.centre_lps))
        assert pair.current_point_mm is not None
        assert np.linalg.norm(np.array(pair.current_point_mm) - true) < 5


def test_a_change_on_thick_slices_is_not_told_of_a_small_nodule() -> None:
    current, prior = _scans()
    thick = replace(prior, volume=replace(prior.volume, slice_thickness_mm=8.0))
    pair = _pairs(prior=thick)["N11", "N11"]
    assert (pair.standing, pair.change) == (Standing.MATCHED, None)
    assert pair.reason == "Slices of 8 mm are too thick to tell the change of a nodule of this size."
    assert current.slice_mm == 4.0


def test_the_second_look_finds_the_partner_that_was_missed_and_nothing_else() -> None:
    current, prior = _scans()
    asked: list[Point] = []

    def look(volume: Volume, _lungs: Lungs, place: Point, _mm: float) -> Finding | None:
        asked.append(place)
        scan = current if volume is current.volume else prior
        near = [one for one in scan.findings if np.linalg.norm(scan.centre(one)[0] - place) < 8]
        return replace(near[0], tracking_uid="2.25.9", tracking_id="S1") if near else None

    missed_then = _pairs(prior=_without(prior, STAYS), look=look)["N11", "S1"]
    assert missed_then.second_look is SecondLook.SEEN_IN_PRIOR
    assert missed_then.change is Change.STABLE
    assert missed_then.prior is not None
    assert missed_then.prior.tracking_uid == _only(current, STAYS).tracking_uid
    missed_now = _pairs(current=_without(current, STAYS), look=look)["S1", "N11"]
    assert missed_now.second_look is SecondLook.SEEN_IN_CURRENT
    assert missed_now.current is not None
    assert missed_now.current.tracking_uid == _only(prior, STAYS).tracking_uid
    asked.clear()
    pairs = _pairs(look=look)
    assert pairs["N14", None].second_look is SecondLook.NOTHING
    assert pairs[None, "N15"].second_look is SecondLook.NOTHING
    assert len(asked) == 2


def test_what_the_second_look_sees_counts_only_if_it_is_no_other_finding_and_may_be_the_same() -> None:
    _, prior = _scans()
    other = replace(_only(prior, PART_SOLID), tracking_id="S1")
    assert _pairs(look=lambda *_: other)["N14", None].standing is Standing.NEW
    shape = np.ones((2, 2, 2), bool)
    speck = replace(_only(prior, STAYS), tracking_id="S1", mask=shape, origin=(2, 2, 2))
    assert _pairs(prior=_without(prior, STAYS), look=lambda *_: speck)["N11", None].standing is Standing.NEW


def test_the_tracking_uid_is_kept_and_others_keep_their_own() -> None:
    current, prior = _scans()
    earlier = PriorExamination("1.2", "1.2.3", date(2024, 1, 1), prior.volume, prior.findings)
    comparison = replace(
        compare(current.volume, current.findings, date(2023, 12, 31), earlier),
        pairs=tuple(_pairs().values()),
    )
    kept = keep_tracking(current.findings, comparison)
    assert [one.tracking_uid for one in kept] == ["2.25.110", "2.25.111", "2.25.112", "2.25.113", "2.25.214"]
    assert [one.tracking_id for one in kept] == [one.tracking_id for one in current.findings]


@pytest.mark.parametrize("day", [date(2024, 1, 1), date(2024, 1, 2)])
def test_an_examination_of_the_same_or_a_later_day_is_no_prior(day: date) -> None:
    current, prior = _scans()
    earlier = PriorExamination("1.2", "1.2.3", day, prior.volume, prior.findings)
    comparison = compare(current.volume, current.findings, date(2024, 1, 1), earlier)
    assert comparison.reason == "The other examination is not of an earlier day."
    assert comparison.pairs == ()
    assert comparison.prior == earlier.reference


def test_a_prior_without_lungs_is_said() -> None:
    current, prior = _scans()
    empty = replace(prior.volume, array=np.full_like(prior.volume.array, 40))
    earlier = PriorExamination("1.2", "1.2.3", date(2020, 1, 1), empty, ())
    comparison = compare(current.volume, current.findings, date(2024, 1, 1), earlier, lungs=current.lungs)
    assert comparison.reason is not None
    assert "aerated lung" in comparison.reason
    assert comparison.registration is None


# matching


def _place(x: float, mm: float, kind: Attenuation | None = Attenuation.SOLID) -> Place:
    return Place(np.array([x, 0.0, 0.0]), mm, kind)


@pytest.mark.parametrize(
    ("current", "prior", "pairs"),
    [
        ([], [_place(0, 8)], ()),
        ([_place(0, 8)], [], ()),
        ([_place(0, 8), _place(6, 8)], [_place(5, 8), _place(-1, 8)], ((0, 1), (1, 0))),
        ([_place(0, 8)], [_place(12, 8)], ()),
        ([_place(0, 4)], [_place(0, 17)], ()),
        # the nearer one is of another size: the pair of both
        ([_place(0, 20)], [_place(1, 6), _place(3, 19)], ((0, 1),)),
        ([_place(0, 8)], [_place(2, 8, Attenuation.GROUND_GLASS), _place(2.5, 8)], ((0, 1),)),
        # one good pair is worth more than two poor ones
        ([_place(0, 8), _place(10, 8)], [_place(0.5, 8), _place(-9, 8)], ((0, 0),)),
    ],
)
def test_pairs_are_one_to_one_near_and_alike(
    current: Sequence[Place], prior: Sequence[Place], pairs: tuple[tuple[int, int], ...]
) -> None:
    found = match(current, prior)
    assert found.pairs == pairs
    assert sorted([*found.current_only, *(a for a, _ in pairs)]) == list(range(len(current)))
    assert sorted([*found.prior_only, *(b for _, b in pairs)]) == list(range(len(prior)))


# the phantom of two dates


def test_the_phantom_of_two_dates_is_one_patient_with_two_studies(tmp_path: Path) -> None:
    two = _two()
    heads = []
    for name, one in (("then", two.prior), ("now", two.current)):
        small = replace(one.volume, array=one.volume.array[:1], frames=one.volume.frames[:1])
        heads.append(pydicom.dcmread(write_phantom(replace(one, volume=small), tmp_path / name)[0]))
    assert heads[0].PatientID == heads[1].PatientID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "AccessionNumber"):
        assert heads[0][keyword].value != heads[1][keyword].value
    assert not np.array_equal(two.prior.volume.array, two.current.volume.array)
    places = {one.label: np.array(one.centre_lps) for one in two.prior.nodules}
    for nodule in two.current.nodules:
        if nodule.label in places:
            true = two.motion.to_prior(np.array(nodule.centre_lps))
            assert np.linalg.norm(true - places[nodule.label]) < 0.01
    assert two.labels()[4:] == ((NEW, None), (None, GONE))


def test_a_motion_and_its_inverse_lead_back() -> None:
    rng = np.random.default_rng(3)
    motion = Motion.draw(rng, apex_mm=120, base_mm=-130)
    points = rng.uniform(-140, 140, (200, 3))
    assert np.abs(motion.to_prior(motion.to_current(points)) - points).max() < 1e-2
    assert np.linalg.norm(motion.to_prior(points) - points, axis=1).max() > 3


def test_the_pipeline_looks_again_at_a_place() -> None:
    two, (current, prior) = _two(), _scans()
    look = second_look(load_pipeline("classical"))
    there, gone = (
        tuple(two.motion.to_prior(current.centre(_only(current, label)))[0].tolist())
        for label in (STAYS, NEW)
    )
    seen = look(prior.volume, prior.lungs, there, 12.0)
    assert seen is not None
    truth = two.prior.truth == STAYS
    assert (truth[seen.slices()] & seen.mask).sum() > 0.5 * truth.sum()
    assert seen.tracking_id == "S1"
    assert look(prior.volume, prior.lungs, gone, 9.0) is None
    assert look(prior.volume, prior.lungs, (900.0, 0.0, 0.0), 9.0) is None


# the evaluation


def _case() -> PairCase:
    two, (current, prior) = _two(), _scans()
    seen = [
        {one.tracking_id: Seen(one.mask, one.origin, one.measurements.volume_mm3) for one in scan.findings}
        for scan in (current, prior)
    ]
    nodules = tuple(Truth(seen[0].get(name), seen[1].get(name)) for name in (f"N{n}" for n in range(10, 16)))
    return PairCase("pair", "pair", current.volume, prior.volume, nodules, two.motion)


def test_the_evaluation_counts_what_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "compare", partial(_compared_coarsely, monkeypatch))
    report = evaluation.evaluate([_case], None, Options(tmp_path, "test", resamples=5), data="one pair")
    write(report, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())["figures"]["true masks"]
    assert found["pairs"] == {"right": 4, "wrong": 0, "missed": 0, "missed_though_found_twice": 0}
    assert found["matching_f1"]["value"] == 1
    assert found["new"]["recall"]["value"] == found["resolved"]["precision"]["value"] == 1
    assert found["volume_change_error_worst"]["value"] < 1e-6
    assert 0 < found["registration_error_mm_median"]["value"] < 3
    assert (tmp_path / "registration_mm.png").stat().st_size > 1000
    assert [target.met for target in report.targets] == [True, True]


def _compared_coarsely(monkeypatch: pytest.MonkeyPatch, *told: Any, **how: Any) -> Comparison:
    module = import_module("inference.priors.compare")
    monkeypatch.setattr(module, "register", lambda *_: _registered())
    return compare(*told, **how)


def test_the_evaluation_counts_what_is_wrong() -> None:
    current, prior = _scans()
    case, pairs = _case(), _pairs()
    grows, stays = pairs.pop(("N10", "N10")), pairs.pop(("N11", "N11"))
    missed = replace(pairs.pop(("N12", "N12")), prior=None, standing=Standing.NEW, doubling=None)
    swapped = (replace(grows, prior=stays.prior), replace(stays, prior=grows.prior))
    reference = PriorExamination("1", "2", date(2020, 1, 1), prior.volume, ()).reference
    comparison = Comparison(reference, DAYS, (*swapped, missed, *pairs.values()))
    outcome = evaluation.scored(case, (current.findings, prior.findings), comparison)
    assert (outcome.right, outcome.wrong, outcome.missed, outcome.missed_found) == (1, 2, 3, 3)
    assert outcome.new == (1, 2, 1)
    assert outcome.resolved == (1, 1, 1)
    failed = evaluation.scored(case, ((), ()), Comparison(reference, DAYS, reason="Not comparable."))
    assert (failed.failed, failed.missed) == (True, 4)


def test_the_evaluation_takes_something_to_compare(tmp_path: Path) -> None:
    for asked, said in (
        (["--phantoms", "0"], "nothing to compare"),
        (["--phantoms", "0", "--inserted", "2"], "pasted nodules take --manifest"),
    ):
        answer = CliRunner().invoke(main, ["evaluate", "priors", *asked, "--out", str(tmp_path / "o")])
        assert answer.exit_code == 2
        assert said in answer.output
