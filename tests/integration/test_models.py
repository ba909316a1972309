"""Files of the published layout and size, with random weights, from a loopback server to a loaded network.

The published files themselves can't be had here. That the layout is theirs, the sizes show: a file that is
saved here from the packages' own classes has, to a few kilobytes of names, the size that was published.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from open_clip.model import convert_weights_to_fp16

from inference.catalogue import Checkpoint, find
from inference.convert import convert
from inference.digest import sha256_of
from inference.full import load_network
from inference.published import build_network
from inference.pull import pull
from inference.retinanet import detect
from inference.types import SourceFrame, Volume
from pacs_node.cli import main
from tests.model_server import ModelServer, Offer
from tests.serving import serving

NAMES_SHARE = 1e-3
"""What names and alignment in a zip may differ by, as a share of the size."""


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving(ModelServer()) as running:
        yield running


def network(name: str) -> torch.nn.Module:
    torch.manual_seed(11)
    return build_network(name)


def sam2(file: Path) -> None:
    torch.save({"model": network("sam2.1-hiera-tiny").state_dict()}, file)


def clip(file: Path) -> None:
    safetensors.torch.save_file(network("clip-vit-b-32").state_dict(), file)


def clip_torchscript(file: Path) -> None:
    """As OpenAI's: linear layers in float16, the rest in float32, and three numbers as tensors."""
    model = network("clip-vit-b-32")
    convert_weights_to_fp16(model)
    for key, value in (("input_resolution", 224), ("context_length", 77), ("vocab_size", 49408)):
        if hasattr(model, key):
            delattr(model, key)
        model.register_buffer(key, torch.tensor(value))
    with warnings.catch_warnings():
        # deprecated for new files; OpenAI's is an old one
        warnings.filterwarnings("ignore", "`torch.jit.(script|save)` is deprecated", FutureWarning)
        torch.jit.save(torch.jit.script(model), file)


def retinanet(file: Path) -> None:
    torch.save(network("monai-retinanet").state_dict(), file)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("sam2.1-hiera-tiny", sam2),
        ("clip-vit-b-32", clip),
        ("clip-vit-b-32-torchscript", clip_torchscript),
        ("lung-nodule-ct-detection", retinanet),
    ],
)
def test_from_the_server_to_the_network(
    name: str, write: Callable[[Path], None], server: ModelServer, tmp_path: Path
) -> None:
    original = tmp_path / "original"
    write(original)
    size = original.stat().st_size
    published = find(name)
    assert published.size is not None
    assert abs(size - published.size) < NAMES_SHARE * published.size
    server.offers["/f"] = Offer(original, cuts=[size // 3])
    checkpoint: Checkpoint = replace(published, url=f"{server.url}/f", size=size, sha256=sha256_of(original))
    folder = tmp_path / "models"
    pull(checkpoint, folder, wait_seconds=0)
    assert len(server.asked) == 2
    original.unlink()
    done = convert(checkpoint, folder)
    assert done.largest_rounding < 2**-10
    loaded = load_network(checkpoint.task, folder)
    assert loaded.network == checkpoint.network
    expected = network(checkpoint.network).state_dict()
    for key, tensor in loaded.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=2**-9, atol=1e-6, msg=key)


def command(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["models", *arguments, "--folder", str(folder)])


def test_the_bundle_by_the_command_line(server: ModelServer, tmp_path: Path) -> None:
    """A zip of the model zoo's layout, whose sha256 nobody published; then the network on a small volume."""
    model = tmp_path / "model.pt"
    retinanet(model)
    bundle = tmp_path / "bundle.zip"
    top = "lung_nodule_ct_detection"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.write(model, f"{top}/models/model.pt")
        archive.writestr(f"{top}/configs/metadata.json", json.dumps({"version": "0.6.8"}))
        archive.writestr(
            f"{top}/configs/inference.json", json.dumps({"imports": ["$import os", "$os.abort()"]})
        )
        archive.writestr(f"{top}/scripts/__init__.py", "raise SystemExit\n")
    model.unlink()
    server.offers["/b.zip"] = Offer(bundle, cuts=[5_000_000])
    folder, name = tmp_path / "models", "lung-nodule-ct-detection-bundle"
    done = command(folder, "pull", name, "--url", f"{server.url}/b.zip")
    assert done.exit_code == 3, done.stderr
    done = command(
        folder,
        "pull",
        name,
        "--url",
        f"{server.url}/b.zip",
        "--sha256",
        hashlib.sha256(bundle.read_bytes()).hexdigest(),
    )
    assert done.exit_code == 0, done.stderr
    assert len(server.asked) == 2
    done = command(folder, "convert", name)
    assert done.exit_code == 0, done.stderr
    done = command(folder, "verify", name)
    assert done.exit_code == 0, done.stdout
    assert "the weights fit monai-retinanet" in done.stdout

    loaded = load_network("nodule-detection", folder)
    affine = np.diag([1.25, 0.8, 0.8, 1.0])[[2, 1, 0, 3]]
    array = np.random.default_rng(2).normal(-800, 200, (16, 24, 24)).astype(np.float32)
    frames = tuple(SourceFrame("1.2", f"1.2.{n}") for n in range(16))
    found = detect(loaded.module, Volume(array, affine, "1.3", "1.4", "1.5", frames), min_score=0.0)  # type: ignore[arg-type]  # the network of this task
    assert len(found.scores) > 0
