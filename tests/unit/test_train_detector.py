"""Training the detector: samples tell the truth, a short run learns and goes on, calibration fits."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.datasets.lidc_crops import NoduleCrop
from inference.detector import CentreNet, Detector, Peaks, load_detector
from inference.evaluate.lidc import Cube
from inference.insertion import Background, Implant, make_implant
from inference.lungs import RIGHT, Lungs
from inference.registry import load_pipeline
from inference.train import detector as training
from inference.train.detector import (
    Material,
    Plan,
    cases,
    drawing,
    false_peaks,
    loss_of,
    mining,
    new_state,
    train,
)
from inference.train.detector_samples import (
    SIDE,
    Bank,
    Sample,
    Scene,
    as_image,
    cube_scene,
    draw_sample,
    scan_scene,
    strip_scene,
    targets,
    turned,
)
from inference.types import SourceFrame, Volume
from tests.lidc_collection import collection, write_collection
from tests.metaimage import write_metaimage


def crop_of_ball(radius_mm: float = 5.0, readers: int = 3) -> tuple[NoduleCrop, np.ndarray]:
    """A strip of a ball of soft tissue in lung beside a wall."""
    spacing = (1.25, 0.7, 0.7)
    half = int(radius_mm / spacing[0])
    z, y, x = np.meshgrid(np.arange(-half, half + 1), np.arange(96) - 48, np.arange(96) - 48, indexing="ij")
    drawn = np.sqrt((z * spacing[0]) ** 2 + (y * spacing[1]) ** 2 + (x * spacing[2]) ** 2) < radius_mm
    values = np.where(drawn | (np.arange(96) > 85), 40, -860)
    values = values + np.random.default_rng(0).normal(0, 15, values.shape)
    bits = (drawn * (2**readers - 1)).astype(np.uint8)
    crop = NoduleCrop("LIDC-IDRI-0004", 0, np.zeros(drawn.shape, np.uint8), bits, readers, spacing)
    return crop, values.astype(np.int16)


def ball(radius_mm: float = 5.0) -> Implant:
    """It, ready to be pasted."""
    made = make_implant(*crop_of_ball(radius_mm))
    assert made is not None
    return made


def lung_volume(hu: float = -860.0) -> tuple[Volume, Lungs]:
    """A box of lung in soft tissue."""
    shape = (40, 120, 120)
    field = np.zeros(shape, np.uint8)
    field[4:-4, 8:-8, 8:-8] = RIGHT
    array = np.where(field > 0, hu, 40).astype(np.int16)
    affine = np.array([[0, 0, 1.0, -60], [0, 1.0, 0, -60], [2.5, 0, 0, -50], [0, 0, 0, 1.0]])
    frames = tuple(SourceFrame("", str(z)) for z in range(shape[0]))
    return Volume(array, affine, "1.2", "1.3", "1.4", frames), Lungs(field, (0.0, 0.0))


def material() -> Material:
    """Little to learn from, one scene of each kind."""
    volume, lungs = lung_volume()
    chest = Background("drawn", volume, lungs)
    crop, values = crop_of_ball()
    implant = ball()
    return Material([chest], [scan_scene(chest)], [], [], [(crop, values)], {implant.name: implant})


def brightness(sample: Sample, rows: np.ndarray) -> list[int]:
    """HU at the nodules of a sample that lie well inside it."""
    return [
        int(sample.hu[tuple(np.round(row[:3]).astype(int))])
        for row in rows
        if (row[:3] > 2).all() and (row[:3] < SIDE - 3).all()
    ]


def test_the_rows_of_a_sample_point_at_its_nodules_however_it_is_turned() -> None:
    rng, bank = np.random.default_rng(3), Bank([ball(4.0), ball(6.0)])
    volume, lungs = lung_volume()
    scene = scan_scene(Background("drawn", volume, lungs))
    seen = 0
    for _ in range(8):
        sample = draw_sample(rng, scene, bank)
        for one in (sample, turned(rng, sample)):
            found = brightness(one, one.lesions)
            seen += len(found)
            assert all(value > -50 for value in found)
        inner = sample.lesions[(sample.lesions[:, :3] > 8).all(1) & (sample.lesions[:, :3] < SIDE - 9).all(1)]
        volume_mm3 = sum(np.pi / 6 * d**3 for d in inner[:, 3])
        if len(inner) == len(sample.lesions) and len(inner):
            # the wall is bright too: count only cubes without it
            bright = float((sample.hu > -400).sum()) * 1.25**3
            assert bright > 0.6 * volume_mm3
    assert seen > 8


def test_known_lesions_are_neither_nodules_nor_background() -> None:
    volume, lungs = lung_volume()
    known = (((0.0, 0.0, 0.0), 9.0),)
    scene = scan_scene(Background("drawn", volume, lungs, known))
    assert scene.lesions.shape == (0, 4)
    assert scene.unknown[0] == pytest.approx([20, 60, 60, 18])
    sample = Sample(
        np.zeros((SIDE,) * 3, np.int16),
        np.ones((32,) * 3, np.bool_),
        np.zeros((0, 4), np.float32),
        np.array([[31.5, 31.5, 31.5, 18.0]], np.float32),
    )
    weight = targets([sample])[1][0]
    assert weight[16, 16, 16] == 0
    assert weight[2, 2, 2] == 1


def test_a_strip_is_mirrored_without_its_nodule() -> None:
    crop, values = crop_of_ball()
    scene = strip_scene(crop, values, ball())
    assert scene is not None
    z, y, x, diameter = scene.lesions[0]
    assert (y, x) == pytest.approx((48, 48), abs=0.5)
    assert diameter == pytest.approx(10, abs=0.6)
    middle = round(z)
    assert scene.array[middle, 48, 48] > 0
    assert (scene.array[:, 48, 48] > -400).sum() == (crop.mask_bits[:, 48, 48] > 0).sum()
    assert (scene.array[:, 48, 90] > -400).all()  # the wall goes on
    assert scene.lung[middle, 48, 48]
    assert not scene.lung[middle, 48, 92]


def test_a_strip_of_an_unsure_nodule_counts_neither_way() -> None:
    crop, values = crop_of_ball(readers=1)
    scene = strip_scene(crop, values, make_implant(crop, values))
    assert scene is not None
    assert len(scene.lesions) == 0
    assert len(scene.unknown) == 1
    solid = np.full_like(values, 40)
    assert strip_scene(crop, solid, None) is None


def test_a_cube_is_a_scene_of_its_nodule() -> None:
    crop, _ = crop_of_ball()
    truth = np.zeros((51, 51, 51), np.bool_)
    truth[20:30, 21:31, 22:32] = True
    array = np.where(truth, 40, -860).astype(np.int16)
    frames = tuple(SourceFrame("", str(z)) for z in range(51))
    volume = Volume(array, np.eye(4)[[2, 1, 0, 3]], "", "", "x", frames)
    scene = cube_scene(Cube(crop.patient, 5, volume, truth))
    assert scene.lesions[0] == pytest.approx([24.5, 25.5, 26.5, (6000 / np.pi) ** (1 / 3)], abs=0.01)
    rng, bank = np.random.default_rng(0), Bank([ball()])
    samples = [draw_sample(rng, scene, bank) for _ in range(6)]
    found = [value for one in samples for value in brightness(one, one.lesions)]
    assert found
    assert min(found) > -100


def test_targets_mark_centres_and_sizes() -> None:
    rows = np.array([[20.5, 30.5, 40.5, 8.0], [50.5, 50.5, 10.5, 30.0]], np.float32)
    none = np.zeros((0, 4), np.float32)
    sample = Sample(np.zeros((SIDE,) * 3, np.int16), np.zeros((32,) * 3, np.bool_), rows, none)
    heat, weight, size, sized = targets([sample])
    assert heat[0, 10, 15, 20] == heat[0, 25, 25, 5] == 1
    assert 0.2 < heat[0, 11, 15, 20] < 1
    assert heat[0, 0, 0, 31] < 1e-3
    assert weight[0, 10, 15, 20] == 1  # also where the lung field misses it
    assert weight[0, 0, 0, 31] == 0
    assert size[0, 10, 15, 20] == pytest.approx(0)
    assert size[0, 25, 25, 5] == pytest.approx(np.log(30 / 8))
    assert sized[0, 0, 0, 31] == 0


def test_the_loss_wants_centres_high_and_the_rest_low() -> None:
    rows = np.array([[20.5, 30.5, 40.5, 8.0]], np.float32)
    none = np.zeros((0, 4), np.float32)
    truth = targets([Sample(np.zeros((SIDE,) * 3, np.int16), np.ones((32,) * 3, np.bool_), rows, none)])
    right = torch.full((1, 2, 32, 32, 32), -8.0)
    right[:, 1] = 0
    right[0, 0, 10, 15, 20] = 8
    missed, false = right.clone(), right.clone()
    missed[0, 0, 10, 15, 20] = -8
    false[0, 0, 28, 28, 28] = 8
    wrong_size = right.clone()
    wrong_size[0, 1, 10, 15, 20] = 2
    values = [float(loss_of(one, truth)) for one in (right, missed, false, wrong_size)]
    assert values[0] < 0.1
    assert all(value > values[0] + 0.01 for value in values[1:])


def test_a_short_run_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stuff = material()
    plan = Plan(steps=8, batch=2, buffer=6, fresh=1, rate=5e-3, mine_every=8, save_every=4)
    state = new_state(0)
    draw = drawing(stuff)
    rng = np.random.default_rng(9)
    samples = [draw(rng) for _ in range(4)]

    def loss_now() -> float:
        with torch.inference_mode():
            image = as_image(np.random.default_rng(1), samples)
            return float(loss_of(state.network.train()(image), targets(samples)))

    before = loss_now()
    train(state, draw, plan, mine=mining(stuff), out=tmp_path / "state.pt")
    assert state.step == 8
    assert loss_now() < 0.9 * before
    resumed = new_state(1)
    resumed.restore(tmp_path / "state.pt")
    assert resumed.step == 8
    kept, restored = state.average.state_dict(), resumed.average.state_dict()
    assert all(torch.equal(kept[key], restored[key]) for key in kept)
    assert stuff.scans[0].hard.shape[1] == 3
    train(
        resumed,
        draw,
        Plan(steps=10, batch=2, buffer=4, fresh=1),
        mine=mining(stuff),
        out=tmp_path / "state.pt",
    )
    assert resumed.step == 10


def test_false_peaks_leave_out_the_known_lesions() -> None:
    volume, lungs = lung_volume()
    torch.manual_seed(0)
    network = CentreNet()
    torch.nn.init.constant_(network.head.bias[:1], 0.0)  # type: ignore[index]  # it has a bias
    everywhere = false_peaks(network, Background("drawn", volume, lungs))
    known = (((0.0, 0.0, 0.0), 200.0),)
    assert len(everywhere)
    assert len(false_peaks(network, Background("drawn", volume, lungs, known))) == 0


def test_calibration_and_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, lungs = lung_volume()
    chest = Background("drawn", volume, lungs)
    monkeypatch.setattr(training, "find_lungs", lambda _: lungs)
    implants = [ball(r) for r in (3.0, 4.0, 5.0)]
    scans = cases([chest], implants, each=2)
    lesions = [one for case in scans for one in case.lesions]
    assert lesions

    class Told(Detector):
        """Marks every nodule at 4 or 0 and two other places at 0 or -4."""

        def peaks(self, volume: Volume, lungs: Lungs) -> Peaks:
            case = next(one for one in scans if one.volume is volume)
            centres = [volume.lps_to_index(one.centre_lps) for one in case.lesions]
            index = np.array([*centres, [6.0, 10, 10], [6.0, 110, 110]])
            logit = np.array([4.0] * (len(centres) - 1) + [0.0, 0.0, -4.0])
            return Peaks(index, logit, np.full(len(index), 8.0))

    fitted = training.calibrate(Told(CentreNet()), scans)
    assert fitted.slope > 0.3
    assert fitted(4.0) > 0.85
    assert fitted(-4.0) < 0.15
    state = new_state(0)
    monkeypatch.setattr(training, "calibrate", lambda *_: fitted)
    training.finish(state, [chest], implants, tmp_path)
    digest = json.loads((tmp_path / "detector.json").read_text())["sha256"]
    loaded = load_detector(tmp_path / "detector.safetensors", digest, fitted)
    assert isinstance(loaded, Detector)


def test_what_is_no_split_of_training_is_not_learned_from() -> None:
    crop, values = crop_of_ball()
    volume, lungs = lung_volume()
    chest = Background("drawn", volume, lungs)
    renamed = [
        (NoduleCrop(name, 0, crop.image, crop.mask_bits, 3, crop.spacing_mm), values)
        for name in ("LIDC-IDRI-0004", "LIDC-IDRI-0010", "LIDC-IDRI-0015", "LIDC-IDRI-0013", "LIDC-IDRI-0001")
    ]
    kept = training.read_material(renamed, [chest], cubes=None, phantoms=0)
    assert [one.patient for one, _ in kept.strips] == ["LIDC-IDRI-0004"]
    assert list(kept.implants) == ["LIDC-IDRI-0004_00"]
    assert isinstance(kept.scans[0], Scene)


def test_the_command_trains_and_writes_what_a_card_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, lungs = lung_volume()
    rng = np.random.default_rng(0)
    # vessels: something that is no nodule
    array = volume.array + rng.normal(0, 20, volume.array.shape)
    for row in range(20, 110, 15):
        array[8:30, row : row + 4, 30:34] = 0
    write_metaimage(replace(volume, array=array.astype(np.int16)), tmp_path / "chest.mha")
    monkeypatch.setattr(training, "find_lungs", lambda _: lungs)
    write_collection(tmp_path, collection(12))
    card = load_pipeline("reference").card("nodule-detection")
    weights = files("inference.cards").joinpath(str(card.weights))
    arguments = (
        f"--lidc {tmp_path} --scan chest={tmp_path / 'chest.mha'} --phantoms 0 --steps 2"
        f" --start {weights} --rate 1e-5 --out {tmp_path / 'out'}"
    )
    monkeypatch.setattr(sys, "argv", ["detector", *arguments.split()])
    training.main()
    found = json.loads((tmp_path / "out" / "detector.json").read_text())
    assert found["steps"] == 2
    assert found["slope"] > 0
    load_detector(tmp_path / "out" / "detector.safetensors", found["sha256"])
    monkeypatch.setattr(sys, "argv", ["detector", *arguments.replace("--steps 2", "--steps 3").split()])
    training.main()
    assert json.loads((tmp_path / "out" / "detector.json").read_text())["steps"] == 3
