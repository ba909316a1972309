"""Weights: only intact safetensors of the right hash and layout come in."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import save
from torch import Tensor, nn

from inference.errors import ModelUnavailableError
from inference.weights import check_layout, layout_of, load_into, read_metadata, read_weights, write_weights


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Linear(4, 2))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return sha256(content)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


def refused(file: Path, digest: str) -> str:
    with pytest.raises(ModelUnavailableError) as caught:
        read_weights(file, digest)
    assert file.name in str(caught.value)
    return str(caught.value)


def test_weights_come_back_in_float32_within_float16s_precision(file: Path) -> None:
    source = network(0)
    digest = write_weights(source.state_dict(), file, {"name": "net", "note": "é"})
    assert digest == sha256(file.read_bytes())
    tensors = read_weights(file, digest.upper())
    target = network(1)
    load_into(target, tensors)
    for (key, was), now in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert now.dtype == was.dtype
        torch.testing.assert_close(now, was, rtol=2**-10, atol=1e-7, msg=key)
    assert tensors["1.num_batches_tracked"].dtype == torch.int64
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32, torch.int64}
    assert read_metadata(file) == {"name": "net", "note": "é"}


def test_floats_are_stored_in_two_bytes(file: Path) -> None:
    write_weights({"a": torch.rand(10_000)}, file, {})
    assert file.stat().st_size < 20_200


@pytest.mark.parametrize("values", [[1e6, 1.0], [1.1e-6, -1e-7], [1e-12]])
def test_what_float16_cant_hold_is_stored_as_float32(file: Path, values: list[float]) -> None:
    """Running variances may be huge, layer scales begin at 1e-6."""
    digest = write_weights({"var": torch.tensor(values), "b": torch.ones(2)}, file, {})
    assert torch.equal(read_weights(file, digest)["var"], torch.tensor(values))
    assert b'"F16"' in file.read_bytes()


def test_empty_and_zero_tensors(file: Path) -> None:
    digest = write_weights({"none": torch.ones(0), "zero": torch.zeros(2)}, file, {})
    tensors = read_weights(file, digest)
    assert tensors["none"].shape == (0,)
    assert tensors["zero"].tolist() == [0, 0]


def test_the_same_tensors_give_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from pathlib import Path; from inference.weights import write_weights\n"
        "shared = torch.arange(6.0)\n"
        "tensors = {'b': shared, 'a': shared.view(2, 3).T, 'c': torch.tensor(3)}\n"
        "notes = {k: k for k in 'zyxwvu'}\n"
        "if sys.argv[2] == '1':\n"
        "    tensors, notes = dict(reversed(tensors.items())), dict(reversed(notes.items()))\n"
        "print(write_weights(tensors, Path(sys.argv[1]), notes))"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / f"{turn}.safetensors"), turn],
            check=True, capture_output=True, text=True, timeout=120,
        ).stdout
        for turn in ("0", "1")
    ]  # fmt: skip
    assert digests[0] == digests[1]
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()


def test_missing_file(file: Path) -> None:
    assert "is missing" in refused(file, "0" * 64)


def test_a_folder_is_not_weights(file: Path) -> None:
    file.mkdir()
    assert "can't be read" in refused(file, "0" * 64)


def test_wrong_hash_is_refused_before_parsing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = write_weights({"a": torch.ones(3)}, file, {})
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    monkeypatch.setattr(safetensors.torch, "load", lambda _: pytest.fail("parsed"))
    said = refused(file, digest)
    assert digest in said
    assert sha256(bytes(content)) in said


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_hash_admits_nothing(file: Path, digest: str) -> None:
    write_weights({"a": torch.ones(3)}, file, {})
    assert "is not a sha256" in refused(file, digest)


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1, -500])
@pytest.mark.parametrize("recorded", ["the whole file's", "its own"])
def test_truncated_file(file: Path, kept: int, recorded: str) -> None:
    """Whether the hash is of the whole file, or somebody recorded the hash of the truncated one."""
    digest = write_weights({"a": torch.rand(1000)}, file, {})
    content = file.read_bytes()[:kept]
    own = put(file, content)
    assert "truncated" in refused(file, digest if recorded == "the whole file's" else own)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("import builtins; builtins.exploded = True",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_the_name_of_safetensors_is_not_opened(file: Path, zipped: bool) -> None:
    torch.save({"a": torch.ones(3), "b": Bomb()}, file, _use_new_zipfile_serialization=zipped)
    for digest in (sha256(file.read_bytes()), "0" * 64):
        assert "is a pickle" in refused(file, digest)
    assert "is a pickle" in refused(file, put(file, pickle.dumps(Bomb())))
    assert not hasattr(builtins, "exploded")


def test_a_header_of_640_bytes_is_no_pickle(file: Path) -> None:
    """Its length field starts like a pickle of protocol 2."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(0x280).encode()
    digest = put(file, struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.5))
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert read_weights(file, digest)["a"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"<html>not found, said the proxy</html>", "not safetensors"),
        (struct.pack("<Q", 2**62) + b"{}", "truncated"),
        (struct.pack("<Q", 20) + b"{" * 20, "not valid safetensors"),
        (struct.pack("<Q", 2) + b"{}extra", "not valid safetensors"),
        (struct.pack("<Q", 3) + b'{"a', "not valid safetensors"),
    ],
)
def test_other_files(file: Path, content: bytes, says: str) -> None:
    assert says in refused(file, put(file, content))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["x", 4]},
    ],
)
def test_headers_that_lie(file: Path, entry: dict[str, object]) -> None:
    header = json.dumps({"a": entry}).encode()
    digest = put(file, struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert "not valid safetensors" in refused(file, digest)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(file: Path, value: float) -> None:
    digest = put(file, save({"good": torch.ones(2), "bad": torch.tensor([1.0, value]).half()}))
    assert "bad has values that are not finite" in refused(file, digest)
    with pytest.raises(ValueError, match="bad has values that are not finite"):
        write_weights({"bad": torch.tensor([value])}, file, {})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"0.bias": None}, r"1 missing \(0\.bias\)"),
        ({"head": torch.ones(1)}, r"1 unknown \(head\)"),
        ({"0.bias": torch.ones(5)}, r"1 of another shape \(0\.bias \(5,\) for \(4,\)\)"),
        ({f"{n}": torch.ones(1) for n in range(10, 20)}, r"10 unknown \(10, 11, 12, 13, 14, \.\.\.\)"),
    ],
)
def test_strange_keys_and_shapes_copy_nothing(change: dict[str, Tensor | None], says: str) -> None:
    tensors = {**{key: tensor + 1 for key, tensor in network(1).state_dict().items()}, **change}
    module = network(0)
    with pytest.raises(ModelUnavailableError, match=f"net don't fit the network: {says}"):
        load_into(module, {key: value for key, value in tensors.items() if value is not None}, name="net")
    for was, now in zip(network(0).state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(was, now)


def test_layout() -> None:
    layout = layout_of(network().state_dict())
    assert layout["0.weight"] == (4, 1, 3, 3, 3)
    check_layout(layout, network(1).state_dict())


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = write_weights({"a": torch.ones(3)}, file, {})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_weights({"a": torch.zeros(3)}, file, {})
    assert list(file.parent.iterdir()) == [file]
    assert read_weights(file, digest)["a"].tolist() == [1, 1, 1]


def test_only_safetensors_names_and_something_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        write_weights({"a": torch.ones(1)}, tmp_path / "a.pt", {})
    with pytest.raises(ValueError, match="no tensors"):
        write_weights({}, tmp_path / "a.safetensors", {})


def test_metadata_of_other_files(file: Path) -> None:
    put(file, save({"a": torch.ones(1)}, {"format": "pt"}))
    assert read_metadata(file) == {}
    for content in (b"", b"x" * 30, struct.pack("<Q", 3) + b"[1]"):
        put(file, content)
        with pytest.raises(ModelUnavailableError, match="not safetensors"):
            read_metadata(file)
    file.unlink()
    with pytest.raises(ModelUnavailableError, match="can't be read"):
        read_metadata(file)
