"""A short training run on made-up strips, and what the samples are made of."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from inference.datasets.lidc_crops import RATINGS, SIDE, NoduleCrop
from inference.digest import sha256_of
from inference.intensity import HounsfieldEstimate, window
from inference.openclip_model import REFERENCE as CLIP_REFERENCE
from inference.openclip_model import build_clip
from inference.prompts import PLACES, STRUCTURES
from inference.sam2_model import TextPromptedSam2
from inference.train import cade
from inference.train.cade_samples import Sample, Sampler, collate
from inference.train.cade_strips import OTHERS, Strip, label_structures, read_cubes
from inference.weights import load_into, read_metadata, read_weights, write_weights
from tests.small_networks import SMALL_SAM2

SMALL = replace(SMALL_SAM2, text_width=128)
PATIENTS = ("LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0004", "LIDC-IDRI-0005")


def _disc(y: float, x: float, radius: float) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2)


def _hu(slices: int, radius: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Chest wall with a rib on the left, a vessel at the top right, a nodule in the middle of the slices."""
    hu = np.full((slices, SIDE, SIDE), -850, np.float32)
    hu[:, :, :22] = 40
    hu[:, 30:60, 8:13] = 600
    hu[:, _disc(18, 76, 4)] = 30
    mask = np.zeros(hu.shape, np.bool_)
    mask[:] = _disc(48, 48, radius)
    hu[mask] = 20
    return hu, mask


def _strip(patient: str, radius: float, slices: int = 4, texture: float = 5) -> Strip:
    hu, mask = _hu(slices, radius)
    ratings = dict.fromkeys(RATINGS, 3.0) | {"texture": texture, "calcification": 6.0}
    bits = np.asarray(mask * 0b111, np.uint8)
    crop = NoduleCrop(patient, 1, np.zeros(hu.shape, np.uint8), bits, 3, (2.0, 0.7, 0.7), ratings, True)
    return Strip(
        crop=crop,
        grey=np.asarray(np.round(255 * window(hu)), np.uint8),
        target=np.asarray(255 * mask, np.uint8),
        structures=label_structures(hu, mask, 0.7),
        diameter_mm=2 * radius * 0.7,
        centre=(48.0, 48.0),
        weight=1.0,
    )


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler([_strip(patient, radius) for patient, radius in zip(PATIENTS, (4, 6, 9, 5), strict=True)])


def _drawn(sampler: Sampler, number: int, length: int = 2) -> dict[str, list[Sample]]:
    rng = np.random.default_rng(3)
    drawn: dict[str, list[Sample]] = {}
    for _ in range(number):
        sample = sampler.draw(rng, length)
        drawn.setdefault(sample.kind, []).append(sample)
    return drawn


def test_structures_are_told_by_place_and_density() -> None:
    hu, mask = _hu(1, 6)
    labels = label_structures(hu, mask, 0.7)[0]
    names = {0: None} | {index + 1: name for index, name in enumerate(OTHERS)}
    assert names[labels[80, 10]] == "chest wall"
    assert names[labels[45, 10]] == "bone"
    assert names[labels[18, 76]] == "vessel"
    assert names[labels[48, 48]] is None
    assert names[labels[70, 70]] is None


def test_the_sentence_names_what_the_target_shows(sampler: Sampler) -> None:
    drawn = _drawn(sampler, 300)
    assert set(drawn) == {"nodule", "other", "unknown", "pair", "empty"}
    for sample in drawn["other"]:
        named = [name for name in OTHERS if any(word in sample.sentence for word in STRUCTURES[name])]
        assert named
        assert not sample.target[:, 45:52, 45:52].any()
    assert all(not sample.target.any() and sample.known is None for sample in drawn["empty"])
    for sample in drawn["unknown"]:
        assert sample.known is not None
        assert not sample.target.any()
        # only the nodule is known to be something else
        assert 0 < sample.known.mean() < 0.1
    assert all(sample.target[:, 47:50, 47:50].all() for sample in drawn["nodule"])


def test_places_of_two_nodules_are_those_of_the_window() -> None:
    strips = [_strip(patient, 5) for patient in PATIENTS]
    for strip in strips:
        strip.grey[strip.target == 0] = 0
    rng = np.random.default_rng(5)
    seen: dict[str, int] = {}
    for sample in _drawn(Sampler(strips), 400, length=1)["pair"]:
        place = next((name for name, words in PLACES.items() if sample.sentence in words), None)
        batch = collate([sample], 96, rng, 0.0)
        target = batch.targets[0, 0] > 0.5
        other = (batch.images[0, 0, 1] > 0.5) & ~(batch.targets[0, 0] > 0.01)
        if place is None or min(int(target.sum()), int(other.sum())) < 60:
            continue  # a close window shows one of them only
        y, x = (target.nonzero().float().mean(0) - other.nonzero().float().mean(0)).tolist()
        assert {"left": x < 0, "right": x > 0, "top": y < 0, "bottom": y > 0}[place], (place, y, x)
        seen[place] = seen.get(place, 0) + 1
    assert set(seen) == set(PLACES)


def test_a_window_is_cut_for_slices_and_targets_alike(sampler: Sampler) -> None:
    rng = np.random.default_rng(0)
    samples = [one for one in _drawn(sampler, 60, length=3)["nodule"] if one.side < 50][:6]
    batch = collate(samples, 64, rng, 1.0)
    assert batch.images.shape == (3, len(samples), 3, 64, 64)
    assert batch.targets.shape == batch.known.shape == (3, len(samples), 64, 64)
    for index in range(len(samples)):
        inside, outside = batch.targets[1, index] > 0.99, batch.targets[1, index] < 0.01
        image = batch.images[1, index, 1]
        assert image[inside].mean() > image[outside].median() + 0.3
        rows, columns = (batch.targets[:, index] >= 0.5).any(0).nonzero().float().T
        x0, y0, x1, y1 = batch.boxes[index].tolist()
        tolerance = 0.1 * (x1 - x0) + 1
        assert [x0, x1] == pytest.approx(
            [float(columns.min()) - 0.5, float(columns.max()) + 0.5], abs=tolerance
        )
        assert [y0, y1] == pytest.approx([float(rows.min()) - 0.5, float(rows.max()) + 0.5], abs=tolerance)


def test_a_cube_shows_where_the_nodule_ends(tmp_path: Path) -> None:
    z, y, x = np.mgrid[:51, :51, :51]
    mask = (z - 25) ** 2 + (y - 27) ** 2 + (x - 22) ** 2 <= 36
    image = np.where(mask, 200, 60).astype(np.uint8)
    np.savez(tmp_path / "cubes.npz", name=["a"], image=image[None], mask=np.packbits(mask)[None])
    (tmp_path / "cubes.csv").write_text("name,patient\na,LIDC-IDRI-0001\n")
    every, second, third = read_cubes(tmp_path / "cubes.npz", tmp_path / "cubes.csv")
    assert [one.crop.spacing_mm for one in (every, second, third)] == [(n, 1.0, 1.0) for n in (1.0, 2.0, 3.0)]
    for strip in (every, second, third):
        there = np.asarray((strip.target > 0).any((1, 2)))
        assert not there[0]
        assert not there[-1]
        assert strip.centre == pytest.approx((27 + 22, 22 + 22), abs=0.1)
        assert strip.diameter_mm == pytest.approx(12, abs=0.5)
        # 200 / 255 * 1600 - 1200 = 55 HU
        assert strip.grey[strip.target > 0].mean() == pytest.approx(255 * 1055 / 1500, abs=1)


def test_the_best_answer_to_a_soft_target_is_the_target() -> None:
    target = torch.full((1, 8, 8), 0.3)
    known = torch.ones_like(target)

    def loss(chance: float) -> float:
        return float(cade.mask_loss(torch.full((1, 8, 8), chance).logit(), target, known))

    assert loss(0.3) < min(loss(0.2), loss(0.4), loss(0.05), loss(0.9))


def test_what_is_not_known_costs_nothing() -> None:
    target, known = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    known[:, :4] = 1
    logits = torch.full((1, 8, 8), -3.0)
    other = logits.clone()
    other[:, 4:] = 5.0
    assert cade.mask_loss(logits, target, known) == cade.mask_loss(other, target, known)


def _collection(folder: Path) -> list[str]:
    """The three files of a collection, the text tower and the estimate of HU; arguments for `cade.main`."""
    rows, masks, patients, nodules, slices = [], [], [], [], []
    with tarfile.open(folder / "images.tar", "w") as archive:
        for patient, radius in zip(PATIENTS, (4, 6, 9, 5), strict=True):
            hu, mask = _hu(3, radius)
            scaled = np.round(255 * (hu - hu.min()) / (hu.max() - hu.min())).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(scaled.reshape(-1, SIDE)).save(stream, "PNG")
            member = tarfile.TarInfo(f"{patient}_01.png")
            member.size = len(stream.getvalue())
            stream.seek(0)
            archive.addfile(member, stream)
            masks.append((mask * 0b111).astype(np.uint8))
            patients += [patient] * 3
            nodules += [1] * 3
            slices += [0, 1, 2]
            row = {"patient": patient, "nodule": 1, "pixel_spacing": 0.7, "slice_thickness": 2.0}
            rows.append(row | {"match_cost": 0.0, "raters_with_mask": 3, "n_annotations": 3})
            rows[-1] |= {f"{name}_median": 3.0 for name in RATINGS}
    np.savez(
        folder / "masks.npz", patient=patients, nodule=nodules, slice=slices, mask_bits=np.concatenate(masks)
    )
    with (folder / "table.csv").open("w", newline="") as stream_:
        writer = csv.DictWriter(stream_, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    torch.manual_seed(1)
    text = {k: v for k, v in build_clip(CLIP_REFERENCE).state_dict().items() if not k.startswith("visual.")}
    write_weights(text, folder / "text.safetensors", {})
    write_weights(HounsfieldEstimate().state_dict(), folder / "hounsfield.safetensors", {})
    names = {"images": "images.tar", "masks": "masks.npz", "table": "table.csv", "out": "out"}
    names |= {"text-weights": "text.safetensors", "hounsfield-weights": "hounsfield.safetensors"}
    return [part for name, file in names.items() for part in (f"--{name}", str(folder / file))]


def test_a_short_run_writes_weights_and_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments, plan = _collection(tmp_path), cade.Plan(images=6, walk=3, single_until=0.3, validation=1)
    cade.main([*arguments, "--steps", "4"], plan, SMALL)
    cade.main([*arguments, "--steps", "6"], plan, SMALL)
    out = tmp_path / "out"
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records] == [4, 6]
    assert all(np.isfinite(one["loss"]) for one in records)
    assert all(0 <= score <= 1 for one in records for score in one["dice"].values())
    model = TextPromptedSam2(SMALL)
    path = out / "cade.safetensors"
    load_into(model, read_weights(path, sha256_of(path)))
    assert read_metadata(path)["steps"] == "6"


def test_training_learns(sampler: Sampler) -> None:
    torch.manual_seed(0)
    sentences = cade.Sentences(build_clip(CLIP_REFERENCE), CLIP_REFERENCE.context_length)
    training = cade.Training(cade.Plan(steps=30, rate=2e-3), SMALL, torch.device("cpu"))
    rng, losses = np.random.default_rng(0), []
    for _ in range(30):
        drawn = [one for one in (sampler.draw(rng, 1) for _ in range(12)) if one.kind == "nodule"][:4]
        batch = collate(drawn, SMALL.image_size, rng, 0.0)
        losses.append(training.advance(batch, sentences(batch.sentences)))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
