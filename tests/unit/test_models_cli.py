"""``pacs-node models``: what it says, and its exit status."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from inference import catalogue, inventory, published
from inference.catalogue import Checkpoint, find
from pacs_node.cli import main
from tests.model_server import ModelServer, Offer
from tests.serving import serving


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


@pytest.fixture
def content() -> bytes:
    out = io.BytesIO()
    torch.save({"model": network().state_dict()}, out)
    return out.getvalue()


@pytest.fixture
def server(content: bytes) -> Iterator[ModelServer]:
    with serving(ModelServer()) as running:
        running.offers["/known.pt"] = Offer(content)
        yield running


@pytest.fixture(autouse=True)
def entries(server: ModelServer, content: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkpoint, ...]:
    """A catalogue of small files: one of known hash, one of unknown."""
    known = replace(
        find("sam2.1-hiera-tiny"),
        name="known",
        network="small",
        file="known.pt",
        url=f"{server.url}/known.pt",
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    unknown = replace(
        known, name="unknown", file="unknown.pt", size=None, sha256=None, hash_source="no sha256 is known"
    )
    rows = (known, unknown)
    monkeypatch.setitem(published.BUILDERS, "small", network)
    monkeypatch.setattr(catalogue, "checkpoints", lambda: rows)
    monkeypatch.setattr(inventory, "checkpoints", lambda: rows)
    return rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def run(verb: str, folder: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["models", verb, "--folder", str(folder), *map(str, arguments)])


def states(folder: Path) -> dict[str, str]:
    done = run("list", folder, "--json")
    assert done.exit_code == 0
    return {row["name"]: row["state"] for row in json.loads(done.output)}


def test_from_nothing_to_a_verified_model(folder: Path, content: bytes) -> None:
    assert states(folder)["known"] == "missing"
    done = run("pull", folder, "known")
    assert done.exit_code == 0, done.output
    assert f"sha256 {hashlib.sha256(content).hexdigest()} (catalogue)" in done.output
    assert f"next: pacs-node models convert --folder {folder} known" in done.output
    assert states(folder)["known"] == "pulled, not converted"
    done = run("convert", folder, "known")
    assert done.exit_code == 0, done.output
    assert "known.safetensors" in done.output
    assert states(folder)["known"] == "present"
    done = run("verify", folder)
    assert done.exit_code == 0, done.output
    assert "known: ok, sha256 as recorded; the weights fit small" in done.output
    assert "classical: ok" in done.output
    assert "profile reference: ok" in done.output


def test_the_list_says_what_a_site_must_know(folder: Path) -> None:
    done = run("list", folder)
    assert done.exit_code == 0
    assert "classical: present" in done.output
    assert "performance: Phantoms (20 scans" in done.output
    assert "unknown: missing" in done.output
    assert "size unknown, sha256 unknown" in done.output
    assert "licence Apache-2.0" in done.output
    assert "Research use only, not for primary diagnosis." in done.output


def test_verify_tells_missing_from_damaged(folder: Path) -> None:
    run("pull", folder, "known")
    run("convert", folder, "known")
    weights = folder / "known.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    done = run("verify", folder, "known")
    assert done.exit_code == 4
    assert "known: FAILED" in done.output
    assert "classical" not in done.output
    weights.unlink()
    assert run("verify", folder, "known").exit_code == 3
    weights.write_bytes(whole)
    assert run("verify", folder, "known").exit_code == 0
    assert run("verify", folder, "nobody").exit_code == 3
    (folder / "known.toml").write_text("[card")
    assert run("verify", folder).exit_code == 4
    assert run("list", folder).exit_code == 4


def test_a_wrong_file_of_the_server(folder: Path, server: ModelServer, content: bytes) -> None:
    server.offers["/known.pt"] = Offer(content[::-1])
    done = run("pull", folder, "known")
    assert done.exit_code == 4
    assert "the sha256 is" in done.output
    assert "Traceback" not in done.output
    assert states(folder)["known"] == "missing"


def test_an_unknown_hash(folder: Path, server: ModelServer, content: bytes) -> None:
    done = run("pull", folder, "unknown")
    assert done.exit_code == 3
    assert "--trust-on-first-use" in done.output
    assert server.asked == []
    assert run("pull", folder, "unknown", "--sha256", "0" * 64).exit_code == 4
    done = run("pull", folder, "unknown", "--trust-on-first-use")
    assert done.exit_code == 0, done.output
    assert "(first seen)" in done.output
    assert run("convert", folder, "unknown").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("nobody",), 2, "the catalogue has no 'nobody'"),
        ((), 2, "Missing argument"),
        (("known", "unknown", "--sha256", "0" * 64), 2, "name one"),
        (("known", "--from", ".", "--url", "http://x"), 2, "exclude each other"),
        (("known", "--sha256", "0" * 64), 4, "the catalogue says"),
        (("known", "--url", "http://127.0.0.1:1/nothing"), 5, "not reached"),
    ],
)
def test_what_goes_wrong_is_one_line(
    folder: Path, arguments: tuple[str, ...], status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    done = run("pull", folder, *arguments)
    assert done.exit_code == status
    assert says in done.output


def test_a_refusing_server_and_a_full_disk(
    folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.offers["/known.pt"].statuses = [403]
    assert run("pull", folder, "known").exit_code == 5
    monkeypatch.setattr("inference.download.RESERVE_BYTES", 2**60)
    assert run("pull", folder, "known").exit_code == 6


def test_from_a_folder(folder: Path, content: bytes, server: ModelServer, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    assert run("pull", folder, "known", "--from", stick).exit_code == 3
    (stick / "known.pt").write_bytes(content)
    assert run("pull", folder, "known", "--from", stick).exit_code == 0
    assert run("pull", folder, "known", "--from", stick / "nowhere").exit_code == 2
    assert server.asked == []


def test_convert_says_what_is_missing_or_wrong(folder: Path, tmp_path: Path) -> None:
    assert run("convert", folder, "nobody").exit_code == 2
    done = run("convert", folder, "known")
    assert done.exit_code == 3
    assert "pull known first" in done.output
    other = tmp_path / "other.pt"
    other.write_bytes(b"other")
    done = run("convert", folder, "known", "--file", other)
    assert done.exit_code == 4
    assert "the file was not opened" in done.output


def test_the_folder_may_come_from_the_environment(folder: Path) -> None:
    done = CliRunner().invoke(main, ["models", "pull", "known"], env={"PACS_NODE_MODELS": str(folder)})
    assert done.exit_code == 0, done.output
    assert (folder / "known.pt").is_file()


def test_the_command_of_a_shell(folder: Path) -> None:
    """The real catalogue in a process of its own;"""

    def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pacs_node.cli", "models", *arguments, "--folder", str(folder)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    assert "sam2.1-hiera-large: missing" in shell("list").stdout
    done = shell("pull", "lung-nodule-ct-detection-bundle")
    assert done.returncode == 3
    assert "1abae7a9379861c477f7b189e0171cfcd71370b0" in done.stderr
    assert "Traceback" not in done.stderr
