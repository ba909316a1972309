"""Train the nodule detector of the reference profile.

``python -m inference.train.detector --lidc DIR --scan NAME=DIR ... --out DIR --minutes 70``

Samples are cubes of 80 mm at 1.25 mm (`inference.train.detector_samples`). A share of them is centred on
false peaks of the current network in whole scans, hard negatives, found anew every few hundred steps. Samples
are kept in a buffer and seen a few times each, flipped and turned. Loss: the focal loss of CornerNet (Law and
Deng, ECCV 2018) on the heat map, L1 on the logarithm of the diameter. At the end the height of the peaks is
calibrated on scans with nodules of the validation part; patients of the test part are never used.

Writes ``detector.safetensors`` (the moving average of the weights) and ``detector.json`` (sha256,
calibration). The last state is kept in ``state.pt`` in the same folder; the same command goes on from it.
``--start FILE`` begins with weights that are there already, of this script or of the model card: for a
further run at a rate of its own, or on the scans of a site.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inference.datasets.lidc_crops import NoduleCrop, Split, read_crops, split_of
from inference.detector import (
    Calibration,
    CentreNet,
    Detector,
)
from inference.evaluate.lidc import read_cubes
from inference.evaluate.metaimage import read_metaimage
from inference.insertion import Background, Case, Implant, make_case, make_implant
from inference.intensity import HounsfieldEstimate
from inference.load import load_series
from inference.lungs import find_lungs
from inference.phantom import make_phantom, random_specs
from inference.registry import load_pipeline
from inference.train.cade_weights import LESIONS
from inference.train.detector_samples import (
    SIZES_MM,
    Bank,
    Sample,
    Scene,
    as_image,
    cube_scene,
    draw_sample,
    phantom_scene,
    scan_scene,
    strip_scene,
    targets,
    turned,
)
from inference.weights import load_into, read_weights, write_weights

_LOG = logging.getLogger(__name__)

SHARES = {"scan": 0.48, "phantom": 0.07, "cube": 0.07, "strip": 0.38}
"""How often each kind of scene is drawn, if there are any."""

FIRST_PHANTOM = 3000
FIRST_CASE = 7000
CASES_EACH = 4
HELD_OUT = ("LIDC-IDRI-0001",)
"""Patients whose whole scan is an acceptance case: their strips and cubes are not learned from."""

Floats = NDArray[np.float64]


def loss_of(answer: Tensor, truth: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Focal loss of the heat map by number of centres, and L1 of the size; a scalar."""
    heat, weight, size, sized = truth
    logit = answer[:, 0].float()
    p = torch.sigmoid(logit).clamp(1e-5, 1 - 1e-5)
    centre = (heat >= 1).float() * weight
    hit = -centre * (1 - p) ** 2 * functional.logsigmoid(logit)
    false = -(weight - centre) * (1 - heat) ** 4 * p**2 * functional.logsigmoid(-logit)
    focal = (hit.sum() + false.sum()) / centre.sum().clamp(min=1)
    length = (sized * (answer[:, 1].float() - size).abs()).sum() / sized.sum().clamp(min=1)
    return focal + 0.3 * length


def false_peaks(network: CentreNet, background: Background, most: int = 40) -> Floats:
    """Indices of the highest peaks away from the known lesions of a scan, (n, 3)."""
    peaks = Detector(copy.deepcopy(network)).peaks(background.volume, background.lungs)
    points = background.volume.index_to_lps(peaks.index)
    away = np.ones(len(points), np.bool_)
    for centre, radius in background.known:
        away &= np.linalg.norm(points - np.array(centre), axis=1) > radius + 5
    return peaks.index[away][:most]


@dataclass
class State:
    """Everything that goes on when a training is resumed."""

    network: CentreNet
    average: CentreNet
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write for `restore`, in one step."""
        part = path.with_suffix(".part")
        torch.save(
            {
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
            },
            part,
        )
        part.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a file of `save`: tensors and numbers only, nothing in it is executed."""
        stored = torch.load(path, weights_only=True)
        self.network.load_state_dict(stored["network"])
        self.average.load_state_dict(stored["average"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step, self.seconds = stored["step"], stored["seconds"]


def new_state(seed: int) -> State:
    """A network with random weights of the seed, and AdamW."""
    torch.manual_seed(seed)
    network = CentreNet().to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    return State(network, copy.deepcopy(network).eval(), optimizer)


@dataclass(frozen=True)
class Plan:
    """How long and how: the rate falls as a cosine over steps or minutes, whichever ends first."""

    steps: int = 6000
    minutes: float = 60.0
    batch: int = 8
    buffer: int = 1536
    fresh: int = 3
    """New samples a step; the buffer gives the rest."""

    rate: float = 2e-3
    mine_every: int = 400
    save_every: int = 250
    seed: int = 0
    half: bool = True


Draw = Callable[[np.random.Generator], Sample]


def train(state: State, draw: Draw, plan: Plan, *, mine: Callable[[CentreNet], None], out: Path) -> State:
    """Train from the state on.

    Parameters
    ----------
    draw
        Gives a new sample.
    mine
        Called with the averaged network every `Plan.mine_every` steps, to find hard negatives.
    out
        Where the state is saved.
    """
    rng = np.random.default_rng([plan.seed, state.step])
    buffer = [draw(rng) for _ in range(min(plan.buffer, plan.batch * 8))]
    began, losses = time.monotonic() - state.seconds, []
    while state.step < plan.steps and state.seconds < 60 * plan.minutes:
        for _ in range(plan.fresh):
            sample = draw(rng)
            if len(buffer) < plan.buffer:
                buffer.append(sample)
            else:
                buffer[int(rng.integers(len(buffer)))] = sample
        chosen = [turned(rng, buffer[int(k)]) for k in rng.integers(len(buffer), size=plan.batch)]
        done = max(state.step / plan.steps, state.seconds / (60 * plan.minutes))
        losses.append(_step(state, rng, chosen, plan, done))
        state.seconds = time.monotonic() - began
        if state.step % 50 == 0:
            _LOG.info("step %d, %.1f min, loss %.4f", state.step, state.seconds / 60, np.mean(losses[-50:]))
        if state.step % plan.mine_every == 0:
            mine(state.average)
        if state.step % plan.save_every == 0:
            state.save(out)
    state.save(out)
    return state


def _step(state: State, rng: np.random.Generator, samples: list[Sample], plan: Plan, done: float) -> float:
    """One update of the weights and of their moving average; the loss."""
    rate = plan.rate * min(1.0, (state.step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))
    for group in state.optimizer.param_groups:
        group["lr"] = max(rate, 1e-6)
    state.network.train()
    images = as_image(rng, samples)  # (n, 1, 64, 64, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.half):
        answer = state.network(images)  # (n, 2, 32, 32, 32)
    loss = loss_of(answer, targets(samples))
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), 2.0)
    state.optimizer.step()
    state.step += 1
    keep = min(0.998, state.step / (state.step + 20))
    with torch.no_grad():
        for mean, now in zip(
            state.average.state_dict().values(), state.network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(now.to(mean.dtype), 1 - keep)
            else:
                mean.copy_(now)
    return float(loss.detach())


@dataclass(frozen=True)
class Material:
    """All there is to draw from.

    Parameters
    ----------
    backgrounds
        Real scans.
    scans, phantoms, cubes
        Scenes; `scans` in the order of `backgrounds`.
    strips
        Strips with their HU, of `Split.TRAIN`.
    implants
        Sure nodules of these, by name.
    """

    backgrounds: Sequence[Background]
    scans: Sequence[Scene]
    phantoms: Sequence[Scene]
    cubes: Sequence[Scene]
    strips: Sequence[tuple[NoduleCrop, NDArray[np.int16]]]
    implants: dict[str, Implant]


def drawing(material: Material) -> Draw:
    """The function that draws a sample from the material, by `SHARES`."""
    bank = Bank(list(material.implants.values()))
    counts = {
        "scan": len(material.scans),
        "phantom": len(material.phantoms),
        "cube": len(material.cubes),
        "strip": len(material.strips),
    }
    kinds = [kind for kind, count in counts.items() if count]
    shares = np.array([SHARES[kind] for kind in kinds])
    odds = _strip_odds(material)

    def draw(rng: np.random.Generator) -> Sample:
        while True:
            kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
            if kind == "strip":
                crop, hu = material.strips[int(rng.choice(len(odds), p=odds))]
                scene = strip_scene(crop, hu, material.implants.get(crop.name))
            else:
                scenes = {"scan": material.scans, "phantom": material.phantoms, "cube": material.cubes}[kind]
                scene = scenes[int(rng.integers(len(scenes)))]
            if scene is not None:
                return draw_sample(rng, scene, bank)

    return draw


def _strip_odds(material: Material) -> Floats:
    """Classes of size more evenly than they occur; strips of one reader seldom."""
    if not material.strips:
        return np.zeros(0)
    found = [material.implants.get(crop.name) for crop, _ in material.strips]
    kinds = np.digitize([one.diameter_mm if one else SIZES_MM[0] for one in found], SIZES_MM)
    odds = np.bincount(kinds)[kinds] ** -0.7 * np.array([1.0 if one else 0.3 for one in found])
    return np.asarray(odds / odds.sum())


def cases(
    backgrounds: Sequence[Background], implants: Sequence[Implant], *, each: int = CASES_EACH
) -> list[Case]:
    """Scans with pasted nodules that `calibrate` learns from."""
    return [
        make_case(FIRST_CASE + number, background, implants)
        for background in backgrounds
        for number in range(each)
    ]


def calibrate(detector: Detector, scans: Sequence[Case]) -> Calibration:
    """Fit the probability that a peak lies on a nodule: logistic of its height, by Newton's method.

    Raises
    ------
    ValueError
        There are no peaks on nodules, or none elsewhere.
    """
    heights, hits = [], []
    for case in scans:
        peaks = detector.peaks(case.volume, find_lungs(case.volume))
        points = case.volume.index_to_lps(peaks.index).reshape(-1, 3)
        on, known = np.zeros(len(points), np.bool_), np.zeros(len(points), np.bool_)
        for lesion in case.lesions:
            on |= np.linalg.norm(points - np.array(lesion.centre_lps), axis=1) < lesion.diameter_mm / 2
        for centre, radius in case.excluded:
            known |= np.linalg.norm(points - np.array(centre), axis=1) < radius + 5
        heights.append(peaks.logit[~known | on])
        hits.append(on[~known | on])
    x, y = np.concatenate(heights), np.concatenate(hits).astype(np.float64)
    if not 0 < y.sum() < len(y):
        raise ValueError("calibration needs peaks on nodules and elsewhere")
    design, beta = np.column_stack([x, np.ones_like(x)]), np.array([1.0, 0.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (p - y) + 1e-3 * beta
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-3 * np.eye(2)
        beta = beta - np.linalg.solve(hessian, gradient)
    return Calibration(float(beta[0]), float(beta[1]))


def read_background(name: str, path: Path) -> Background:
    """Read a scan: a folder of DICOM files or a MetaImage; its lesions are those of `LESIONS`."""
    volume = load_series(sorted(path.rglob("*.dcm"))).volume if path.is_dir() else read_metaimage(path)
    return Background(name, volume, find_lungs(volume), LESIONS.get(name, ()))


def read_strips(folder: Path) -> list[tuple[NoduleCrop, NDArray[np.int16]]]:
    """The strips of a folder in the format of `inference.datasets.lidc_crops`, with estimated HU."""
    estimate, name = HounsfieldEstimate(), "hounsfield-estimate"
    load_into(estimate, read_weights(*load_pipeline("crops").weights(name)), name=name)
    crops = read_crops(
        folder / "slices_images.tar", folder / "slices_masks.npz", folder / "slices_nodules.csv"
    )
    return [
        (crop, np.rint(np.clip(estimate.hounsfield(crop.image), -1024, 3071)).astype(np.int16))
        for crop in crops
        if crop.spacing_mm is not None
    ]


def read_material(
    strips: Sequence[tuple[NoduleCrop, NDArray[np.int16]]],
    backgrounds: Sequence[Background],
    *,
    cubes: Path | None,
    phantoms: int,
) -> Material:
    """Make scenes of everything that belongs to `Split.TRAIN`."""

    def learned(patient: str) -> bool:
        return split_of(patient) is Split.TRAIN and patient not in HELD_OUT

    kept = [(crop, hu) for crop, hu in strips if learned(crop.patient)]
    made = [make_implant(crop, hu) for crop, hu in kept]
    drawn = []
    for seed in range(FIRST_PHANTOM, FIRST_PHANTOM + phantoms):
        phantom = make_phantom(seed, nodules=random_specs(np.random.default_rng(seed), 10))
        lung = find_lungs(phantom.volume).labels > 0
        drawn.append(phantom_scene(phantom.volume, phantom.nodules, lung))
    return Material(
        backgrounds,
        [scan_scene(one) for one in backgrounds],
        drawn,
        [cube_scene(cube) for cube in read_cubes(cubes) if learned(cube.patient)] if cubes else [],
        kept,
        {one.name: one for one in made if one is not None},
    )


def mining(material: Material) -> Callable[[CentreNet], None]:
    """The function that finds the false peaks in the real scans anew."""

    def mine(network: CentreNet) -> None:
        for scene, background in zip(material.scans, material.backgrounds, strict=True):
            scene.hard = false_peaks(network, background)
        _LOG.info("false peaks: %s", {scene.name: len(scene.hard) for scene in material.scans})

    return mine


def start_from(state: State, path: Path) -> None:
    """Begin with the weights of a safetensors file.

    Raises
    ------
    OSError
        The file can't be read.
    ModelUnavailableError
        It isn't of this network.
    """
    tensors = read_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
    for network in (state.network, state.average):
        load_into(network, tensors, name=path.name)


def finish(state: State, backgrounds: Sequence[Background], implants: Sequence[Implant], out: Path) -> None:
    """Calibrate and write weights and ``detector.json``."""
    detector = Detector(copy.deepcopy(state.average))
    calibration = calibrate(detector, cases(backgrounds, implants))
    noted = {"name": "reference nodule detector", "steps": str(state.step)}
    digest = write_weights(state.average.state_dict(), out / "detector.safetensors", noted)
    found = {"sha256": digest, "steps": state.step, "seconds": state.seconds, **asdict(calibration)}
    (out / "detector.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _LOG.info("%s", found)


def main() -> None:
    """Parse the arguments, train, calibrate, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lidc", type=Path, required=True, help="folder of the strips and cubes")
    parser.add_argument(
        "--scan", action="append", required=True, help="NAME=PATH, a DICOM folder or MetaImage; repeatable"
    )
    parser.add_argument(
        "--unseen", action="append", default=[], help="NAME=PATH, for the calibration only; without, --scan"
    )
    parser.add_argument("--phantoms", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="safetensors to begin with; without, random weights")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="highest learning rate")
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    chosen.out.mkdir(parents=True, exist_ok=True)
    backgrounds, unseen = (
        [read_background(name, Path(path)) for name, path in (one.split("=", 1) for one in named)]
        for named in (chosen.scan, chosen.unseen)
    )
    strips, cubes = read_strips(chosen.lidc), chosen.lidc / "cubes_51.npz"
    material = read_material(
        strips, backgrounds, cubes=cubes if cubes.exists() else None, phantoms=chosen.phantoms
    )
    state = new_state(chosen.seed)
    if (chosen.out / "state.pt").exists():
        state.restore(chosen.out / "state.pt")
    elif chosen.start:
        start_from(state, chosen.start)
    plan = Plan(steps=chosen.steps, minutes=chosen.minutes, rate=chosen.rate, seed=chosen.seed)
    mine = mining(material)
    if chosen.start or state.step:
        mine(state.average)
    train(state, drawing(material), plan, mine=mine, out=chosen.out / "state.pt")
    others = [make_implant(crop, hu) for crop, hu in strips if split_of(crop.patient) is Split.VAL]
    finish(state, unseen or backgrounds, [one for one in others if one is not None], chosen.out)


if __name__ == "__main__":
    main()
