"""Foreign checkpoints become safetensors of the right layout, or are refused; nothing in them is executed."""

from __future__ import annotations

import builtins
import hashlib
import io
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from inference import published
from inference.catalogue import Checkpoint, find
from inference.convert import card_text, convert, read_foreign
from inference.errors import ModelUnavailableError
from inference.full import load_network, verify_card
from inference.inventory import State, card_tables, inventory
from inference.pull import Trust, take
from inference.registry import load_pipeline
from inference.torchscript import read_torchscript
from inference.weights import read_metadata, read_weights


class Net(nn.Module):
    """Small, with all that state dicts have: nesting, a scalar, an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 2)
        self.body = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3))
        self.scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(self.stem(x)) * self.scale
        return out


def net(seed: int = 1) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published networks are large; tests/integration/test_models.py has those."""
    monkeypatch.setitem(published.BUILDERS, "small", net)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


def entry(content: bytes, kind: str = "pickle", **more: Any) -> Checkpoint:
    return replace(
        find("sam2.1-hiera-tiny"),
        name="small-net",
        network="small",
        file="small.pt",
        format=kind,  # type: ignore[arg-type]  # one of the four in every test
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        **more,
    )


def saved(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def scripted(module: nn.Module) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # deprecated for new files; OpenAI's is an old one
        warnings.filterwarnings("ignore", "`torch.jit.(script|save)` is deprecated", FutureWarning)
        torch.jit.save(torch.jit.script(module), out)
    return out.getvalue()


def published_forms() -> dict[str, tuple[bytes, dict[str, Any]]]:
    state = net().state_dict()
    script = net()
    script.register_buffer("input_resolution", torch.tensor(224))
    return {
        "pickle": (saved(state), {"key": ""}),
        "pickle under a key": (saved({"model": state, "epoch": 3}), {"key": "model"}),
        "bundle": (
            zipped({"b/models/model.pt": saved(state), "b/configs/inference.json": b'{"x": "$1/0"}'}),
            {"kind": "bundle", "member": "b/models/model.pt", "key": ""},
        ),
        "safetensors": (safetensors.torch.save(state), {"kind": "safetensors"}),
    }


@pytest.mark.parametrize("form", ["pickle", "pickle under a key", "bundle", "safetensors"])
def test_the_published_forms(form: str, folder: Path) -> None:
    content, more = published_forms()[form]
    (folder / "small.pt").write_bytes(content)
    checkpoint = entry(content, **more)
    done = convert(checkpoint, folder)
    tensors = read_weights(done.weights, done.sha256)
    for key, tensor in net().state_dict().items():
        torch.testing.assert_close(tensors[key], tensor, rtol=2**-10, atol=1e-7)
    assert 0 < done.largest_rounding < 2**-10
    assert done.size == done.weights.stat().st_size
    assert read_metadata(done.weights)["from_sha256"] == checkpoint.sha256


def test_the_card_is_complete_and_says_where_it_is_from(folder: Path) -> None:
    content = saved({"model": net().state_dict()})
    (folder / "small.pt").write_bytes(content)
    checkpoint = entry(content, limits='Has "quotes",\na line and a tick: \u2713.')
    done = convert(checkpoint, folder)
    card = load_pipeline("full", folder=folder).card("nodule-segmentation")
    assert card.weights_sha256 == done.sha256
    assert card.limits == 'Has "quotes",\na line and a tick: \u2713.'
    assert "Not for primary diagnosis" in card.intended_use
    assert "Not measured on this site" in card.performance[-1]
    [(name, table)] = card_tables(folder)
    assert table["source"] == {
        "checkpoint": "small-net",
        "network": "small",
        "url": checkpoint.url,
        "sha256": checkpoint.sha256,
        "sha256_by": "catalogue",
    }
    assert verify_card(name, table, folder) == "sha256 as recorded; the weights fit small"
    loaded = load_network("nodule-segmentation", folder)
    assert loaded.network == "small"
    assert not loaded.module.training
    torch.testing.assert_close(
        loaded.module.state_dict()["stem.weight"], net().stem.weight, rtol=1e-3, atol=1e-6
    )


def test_one_model_for_a_task(folder: Path) -> None:
    content = saved({"model": net().state_dict()})
    (folder / "small.pt").write_bytes(content)
    convert(entry(content), folder)
    convert(entry(content), folder)
    with pytest.raises(ModelUnavailableError, match=r"small-net\.toml does nodule-segmentation already"):
        convert(replace(entry(content), name="other"), folder)


# what is refused


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("import builtins; builtins.exploded = True",)


def refused(content: bytes, folder: Path, **more: Any) -> str:
    (folder / "small.pt").write_bytes(content)
    with pytest.raises(ModelUnavailableError) as caught:
        convert(entry(content, **more), folder)
    assert {item.name for item in folder.iterdir()} == {"small.pt"}
    assert not hasattr(builtins, "exploded")
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"model": {"stem.weight": Bomb()}}, r"nothing in it was executed: .*exec"),
        ({"model": net()}, r"nothing in it was executed: .*Net"),
        ({"model": {**net().state_dict(), "note": "text"}}, "holds more than tensors: note"),
        ({"state": net().state_dict()}, "no entry 'model'"),
        ([1, 2], "no entry 'model'"),
        ({"model": [1]}, "holds a list"),
        ({"model": {**net().state_dict(), "extra": torch.ones(1)}}, r"1 unknown \(extra\)"),
        ({"model": {"scale": torch.tensor(1.0)}}, "7 missing"),
        ({"model": {**net().state_dict(), "scale": torch.ones(2)}}, "1 of another shape"),
        ({"model": {**net().state_dict(), "scale": torch.tensor(float("nan"))}}, "not finite"),
    ],
)
def test_other_content_is_refused_with_the_reason(value: object, says: str, folder: Path) -> None:
    said = refused(saved(value), folder)
    assert "small.pt" in said
    assert re.search(says, said), said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(Bomb()), "nothing in it was executed"),
        (b"", "can't be read as a checkpoint"),
        (b"<html>", "small.pt: it "),
        (saved({"model": net().state_dict()})[:-200], "can't be read as a checkpoint"),
        (zipped({"a.txt": b"a"}), "can't be read as a checkpoint"),
    ],
)
def test_other_files_are_refused(content: bytes, says: str, folder: Path) -> None:
    assert says in refused(content, folder)


def test_a_wrong_hash_is_refused_before_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "small.pt").write_bytes(saved({"model": {"a": Bomb()}}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(ModelUnavailableError, match="the file was not opened"):
        convert(entry(b"another file"), folder)


def test_a_missing_file(folder: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="No such file"):
        convert(entry(b""), folder)


def test_a_bundle_without_weights_or_no_zip(folder: Path) -> None:
    more = {"kind": "bundle", "member": "b/models/model.pt", "key": ""}
    assert "the zip has no b/models/model.pt" in refused(zipped({"b/x": b""}), folder, **more)
    assert "no readable zip" in refused(b"PK\x03\x04", folder, **more)
    assert "nothing in it was executed" in refused(
        zipped({"b/models/model.pt": saved(Bomb())}), folder, **more
    )


def test_an_unknown_hash_is_asked_for_or_taken_from_the_record(folder: Path, tmp_path: Path) -> None:
    content = saved({"model": net().state_dict()})
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "small.pt").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    unknown = replace(entry(content), sha256=None, size=None, hash_source="no sha256 is known")
    with pytest.raises(ModelUnavailableError, match="pull it first, or give --sha256"):
        convert(unknown, folder, file=stick / "small.pt")
    convert(unknown, folder, file=stick / "small.pt", sha256=digest)
    assert 'sha256_by = "operator"' in (folder / "small-net.toml").read_text()
    take(unknown, stick, folder, trust_first=True)
    convert(unknown, folder)
    assert 'sha256_by = "first seen"' in (folder / "small-net.toml").read_text()
    with pytest.raises(ModelUnavailableError, match="the catalogue says"):
        convert(entry(content), folder, sha256="0" * 64)


# TorchScript


def script_net(dtype: torch.dtype = torch.float16) -> nn.Module:
    module = net().to(dtype)
    module.register_buffer("input_resolution", torch.tensor(224))
    return module


def test_a_torchscript_archive_gives_its_tensors_without_running(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = scripted(script_net())
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("ran"))
    (folder / "small.pt").write_bytes(content)
    done = convert(entry(content, "torchscript", ignored=("input_resolution",)), folder)
    tensors = read_weights(done.weights, done.sha256)
    for key, tensor in script_net().state_dict().items():
        if key != "input_resolution":
            torch.testing.assert_close(tensors[key], tensor.float() if tensor.is_floating_point() else tensor)
    assert done.largest_rounding == 0
    assert "1 unknown (input_resolution)" in refused_script(content, folder)


def refused_script(content: bytes, folder: Path) -> str:
    for item in folder.iterdir():
        item.unlink()
    return refused(content, folder, kind="torchscript")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_kind_of_storage(dtype: torch.dtype) -> None:
    module = script_net(dtype)
    read = read_torchscript(scripted(module))
    expected = module.state_dict()
    assert read.keys() == expected.keys()
    for key, tensor in expected.items():
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key], tensor)


def test_a_torchscript_archive_is_no_state_dict(folder: Path) -> None:
    said = refused(scripted(net()), folder)
    assert "has code in it" in said
    assert "clip-vit-b-32" in said


class _Asks:
    """Pickles as a call of what the reader should not know."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.what = (call, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.what


def archive(value: object, **members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        made.writestr("m/constants.pkl", b"")
        made.writestr("m/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value, protocol=2))
        for name, content in members.items():
            made.writestr(f"m/{name}", content)
    return out.getvalue()


def module_of(tensor: bytes) -> bytes:
    """A pickle of a module whose field w is what the opcodes make."""
    return b"\x80\x02c__torch__\nNet\n)\x81}X\x01\x00\x00\x00w" + tensor + b"sb."


def storage(key: bytes = b"0", count: int = 2, kind: bytes = b"FloatStorage") -> bytes:
    return (
        b"(X\x07\x00\x00\x00storagectorch\n"
        + kind
        + b"\nX\x01\x00\x00\x00"
        + key
        + b"X\x03\x00\x00\x00cpuK"
        + bytes([count])
        + b"tQ"
    )


def view(size: bytes, stride: bytes, offset: int = 0) -> bytes:
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage()
        + b"K"
        + bytes([offset])
        + size
        + stride
        + b"\x89N"
        + b"tR"
    )


def test_the_hand_made_archive_would_be_read() -> None:
    """The control for the refusals below."""
    content = archive(module_of(view(b"K\x02\x85", b"K\x01\x85")), **{"data/0": b"\0\0\x80?\0\0\0@"})
    assert read_torchscript(content)["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (archive(_Asks(exec, "import builtins; builtins.exploded = True")), "asks for __builtin__.exec"),
        (archive(_Asks(getattr, "a", "upper")), "asks for __builtin__.getattr"),
        (archive(_Asks(torch.load, "x")), "asks for torch.serialization.load"),
        (archive(OrderedDict()), "holds no module"),
        (archive(b"\x80\x02"), "can't be read"),
        (archive(module_of(b"ctorch.nn\nModule\n")), "asks for torch.nn.Module"),
        (archive(module_of(view(b"K\x02\x85", b"K\x01\x85"))), "no item named 'm/data/0'"),
        (
            archive(module_of(view(b"K\x02\x85", b"K\x01\x85")), **{"data/0": b"\0" * 4}),
            "storage 0 has 4 bytes",
        ),
        (
            archive(module_of(view(b"K\xff\x85", b"K\x00\x85")), **{"data/0": b"\0" * 8}),
            "larger than its storage",
        ),
        (archive(module_of(view(b"K\x02\x85", b"K\x01\x85", 1)), **{"data/0": b"\0" * 8}), "damaged"),
        (archive(module_of(storage(key=b".")), **{"data/.": b"\0" * 8}), "unknown kind"),
        (archive(module_of(view(b"K\x02\x85", b"K\x01\x85")), byteorder=b"big"), "big-endian"),
        (zipped({"m/constants.pkl": b"", "m/data.pkl": module_of(b"N")}), "is compressed"),
        (b"no zip", "can't be read"),
        (zipped({"a": b""}), "no single data.pkl"),
    ],
)
def test_strange_torchscript_archives_are_refused(content: bytes, says: str) -> None:
    with pytest.raises(ModelUnavailableError, match=says):
        read_torchscript(content)
    assert not hasattr(builtins, "exploded")


# inventory and cards


def test_the_inventory_follows_what_is_there(folder: Path) -> None:
    def states() -> dict[str, State]:
        return {item.name: item.state for item in inventory(folder)}

    empty = states()
    assert empty["classical"] == State.NO_WEIGHTS_NEEDED
    assert empty["medsam2"] == State.MISSING
    (folder / "MedSAM2_latest.pt").write_bytes(b"x")
    assert states()["medsam2"] == State.PULLED
    content = saved({"model": net().state_dict()})
    convert(replace(entry(content), name="medsam2"), folder, file=_put(folder, content))
    assert states()["medsam2"] == State.PRESENT
    (folder / "medsam2.safetensors").unlink()
    assert states()["medsam2"] == State.MISSING
    assert states().keys() == empty.keys()


def _put(folder: Path, content: bytes) -> Path:
    file = folder.parent / "small.pt"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("truncate", "have sha256"),
        ("remove", "are missing"),
        ("no source", "have sha256|names no network"),
        ("other network", "don't fit the network"),
    ],
)
def test_damage_after_conversion_is_found(
    folder: Path, damage: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved({"model": net().state_dict()})
    (folder / "small.pt").write_bytes(content)
    done = convert(entry(content), folder)
    if damage == "truncate":
        done.weights.write_bytes(done.weights.read_bytes()[:-9])
    elif damage == "remove":
        done.weights.unlink()
    elif damage == "no source":
        done.card.write_text(done.card.read_text().replace('network = "small"', "network = 3"))
    else:
        monkeypatch.setitem(published.BUILDERS, "small", lambda: nn.Linear(2, 2))
    [(name, table)] = card_tables(folder)
    with pytest.raises(ModelUnavailableError, match=says):
        verify_card(name, table, folder)
    with pytest.raises(ModelUnavailableError, match=says):
        load_network("nodule-segmentation", folder)


def test_no_model_for_a_task(folder: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="no model for nodule-detection; see pacs-node models"):
        load_network("nodule-detection", folder)
    with pytest.raises(ModelUnavailableError, match="no models folder"):
        load_network("nodule-detection", folder / "nowhere")


def test_unreadable_cards_are_named(folder: Path) -> None:
    (folder / "bad.toml").write_text("[card")
    with pytest.raises(ModelUnavailableError, match=r"bad\.toml is not valid TOML"):
        inventory(folder)
    (folder / "bad.toml").write_text("a = 1")
    with pytest.raises(ModelUnavailableError, match=r"bad\.toml has no \[card\]"):
        inventory(folder)


def test_the_trust_is_written_down() -> None:
    text = card_text(find("medsam2"), "0" * 64, "1" * 64, Trust.FIRST_SEEN)
    assert 'sha256_by = "first seen"' in text
    assert "CC-BY-SA-4.0" in text


def test_read_foreign_of_a_folder_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="can't be read"):
        read_foreign(entry(b""), folder, "0" * 64)


def test_the_module_is_a_command(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inference.convert", "medsam2", "--folder", str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "No such file" in done.stderr
    assert "Traceback" not in done.stderr
