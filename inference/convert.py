"""Turn a published checkpoint into safetensors and a model card, offline: ``python -m inference.convert``.

The only place that opens foreign pickles, and never freely: ``torch.load(weights_only=True)`` for state
dicts, a table of inert names for TorchScript (`inference.torchscript`). The node itself reads safetensors
only. The tensors must have exactly the keys and shapes of the catalogue's network.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256 as sha256_of_bytes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.catalogue import PROFILE, Checkpoint, checkpoints, find
from inference.durable import replace_file
from inference.errors import ModelUnavailableError
from inference.inventory import card_tables
from inference.published import build_network
from inference.pull import Trust, read_record
from inference.registry import DETECTION
from inference.torchscript import is_torchscript, read_torchscript
from inference.weights import check_layout, layout_of, load_into, read_weights, write_weights

logger = logging.getLogger(__name__)

_MAX_MEMBER = 4 * 2**30

_OPERATING_POINT = (
    "# Not measured here: choose min_probability (the network's score) on scans of your own.",
    "[card.parameters]",
    "min_probability = 0.5",
    "min_likeness = 0.0",
    "min_diameter_mm = 3.0",
    "max_findings = 20",
)


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion wrote.

    Parameters
    ----------
    weights, card
        The two files.
    sha256, size
        Of the weights file.
    largest_rounding
        Greatest difference of a weight to the published one, as a share of the greatest weight of its tensor:
        what float16 costs.
    """

    weights: Path
    card: Path
    sha256: str
    size: int
    largest_rounding: float


def convert(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    file: Path | None = None,
    sha256: str | None = None,
) -> Converted:
    """Convert one checkpoint.

    Parameters
    ----------
    checkpoint
        Which one; its network says what keys and shapes the file must have.
    folder
        The models folder. ``NAME.safetensors`` and ``NAME.toml`` are written into it.
    file
        The published file; None for the one that was pulled into the folder.
    sha256
        That `file` must have, where neither catalogue nor record know it.

    Raises
    ------
    ModelUnavailableError
        The file is missing, has another or no known sha256, holds anything but tensors, or tensors of other
        keys or shapes; or another card of the folder has the same task.
    """
    other = _rival(checkpoint, folder)
    if other is not None:
        raise ModelUnavailableError(
            f"{folder / other} does {checkpoint.task} already; a folder has one model for a task: take "
            "another folder, or remove that card"
        )
    file = file or folder / checkpoint.file
    expected, trust = _expected(checkpoint, folder, sha256)
    tensors = read_foreign(checkpoint, file, expected)
    network = build_network(checkpoint.network)
    check_layout(layout_of(network.state_dict()), tensors, name=file.name)
    weights, card = folder / f"{checkpoint.name}.safetensors", folder / f"{checkpoint.name}.toml"
    notes = {"name": checkpoint.title, "from_sha256": expected, "licence": checkpoint.licence}
    try:
        written = write_weights(tensors, weights, notes)
    except ValueError as error:
        raise ModelUnavailableError(f"{file.name}: {error}") from error
    stored = read_weights(weights, written)
    load_into(network, stored, name=weights.name)
    replace_file(card, [card_text(checkpoint, written, expected, trust).encode()])
    return Converted(weights, card, written, weights.stat().st_size, _largest_rounding(tensors, stored))


def _rival(checkpoint: Checkpoint, folder: Path) -> str | None:
    """Name of another card for the same task."""
    if not folder.is_dir():
        return None
    for name, table in card_tables(folder):
        if (
            table.get("profile") == PROFILE
            and table.get("card", {}).get("task") == checkpoint.task
            and name != f"{checkpoint.name}.toml"
        ):
            return name
    return None


def _expected(checkpoint: Checkpoint, folder: Path, given: str | None) -> tuple[str, Trust]:
    """The sha256 that the published file must have, and who says so."""
    if checkpoint.sha256:
        if given and given.lower() != checkpoint.sha256:
            raise ModelUnavailableError(
                f"{checkpoint.name}: the catalogue says sha256 {checkpoint.sha256}, you say {given}"
            )
        return checkpoint.sha256, Trust.CATALOGUE
    if given:
        return given.lower(), Trust.OPERATOR
    seen = read_record(folder).get(checkpoint.name)
    if seen is None:
        raise ModelUnavailableError(
            f"{checkpoint.name}: {checkpoint.hash_source}; pull it first, or give --sha256"
        )
    return seen.sha256, seen.trust


def read_foreign(checkpoint: Checkpoint, file: Path, sha256: str) -> dict[str, Tensor]:
    """Read the tensors of a published file.

    Parameters
    ----------
    checkpoint
        Says what kind of file it is.
    file
        The file.
    sha256
        That it must have; nothing is parsed before.

    Returns
    -------
    dict
        Tensors by key, on the CPU, in the dtype of the file (safetensors: float32).

    Raises
    ------
    ModelUnavailableError
        With the reason.
    """
    if checkpoint.format == "safetensors":
        return read_weights(file, sha256)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelUnavailableError(f"{file} can't be read ({error.strerror})") from error
    found = sha256_of_bytes(content).hexdigest()
    if found != sha256.lower():
        raise ModelUnavailableError(f"{file}: the sha256 is {found}, not {sha256}; the file was not opened")
    try:
        return _tensors(checkpoint, content)
    except ModelUnavailableError as error:
        raise ModelUnavailableError(f"{file.name}: {error}") from error


def _tensors(checkpoint: Checkpoint, content: bytes) -> dict[str, Tensor]:
    if checkpoint.format == "torchscript":
        tensors = read_torchscript(content)
        return {
            key: tensor for key, tensor in tensors.items() if key.rpartition(".")[2] not in checkpoint.ignored
        }
    if checkpoint.format == "bundle":
        content = _member(content, checkpoint.member)
    return _state_dict(_load(content), checkpoint.key)


def _member(content: bytes, name: str) -> bytes:
    """The weights of a bundle; its configurations and scripts are not read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            info = archive.getinfo(name)
            if info.file_size > _MAX_MEMBER:
                raise ModelUnavailableError(f"{name} would unpack to {info.file_size} bytes")
            return archive.read(info)
    except KeyError:
        raise ModelUnavailableError(f"the zip has no {name}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelUnavailableError(f"the file is no readable zip: {error}") from error


def _load(content: bytes) -> Any:
    """Unpickle tensors and plain containers; anything else is refused by torch before it is made."""
    if is_torchscript(content):
        raise ModelUnavailableError(
            "it is a TorchScript archive, which has code in it; for CLIP take clip-vit-b-32 (safetensors) or "
            "clip-vit-b-32-torchscript"
        )
    try:
        with warnings.catch_warnings():
            # of an unusual pickle protocol; what can't be read is refused below
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnavailableError(
            f"it was refused, nothing in it was executed: {_reason(error)}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelUnavailableError(f"it can't be read as a checkpoint: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The line that says what is wrong; torch wraps it in advice to load the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error:" in line]
    text = (telling or lines or [type(error).__name__])[0]
    return text.rpartition("WeightsUnpickler error:")[2].strip()[:200]


def _state_dict(loaded: Any, key: str) -> dict[str, Tensor]:
    if key:
        if not isinstance(loaded, Mapping) or key not in loaded:
            raise ModelUnavailableError(f"it has no entry {key!r}")
        loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ModelUnavailableError(f"it holds a {type(loaded).__name__}, no state dict")
    strange = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if strange:
        raise ModelUnavailableError(f"it holds more than tensors: {', '.join(strange[:5])}")
    return {str(name): tensor for name, tensor in loaded.items()}


def _largest_rounding(published: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    shares = [0.0]
    for key, tensor in published.items():
        greatest = float(tensor.abs().max()) if tensor.is_floating_point() and tensor.numel() else 0.0
        if greatest:
            shares.append(float((tensor.float() - stored[key]).abs().max()) / greatest)
    return max(shares)


def card_text(checkpoint: Checkpoint, weights_sha256: str, from_sha256: str, trust: Trust) -> str:
    """Write the model card of a converted checkpoint as TOML."""
    card = {
        "name": checkpoint.title,
        "version": f"published sha256 {from_sha256[:12]}",
        "task": checkpoint.task,
        "summary": f"{checkpoint.title}, converted to float16 safetensors from {checkpoint.file}.",
        "intended_use": checkpoint.intended_use,
        "limits": checkpoint.limits,
        "licence": checkpoint.licence,
        "training_data": checkpoint.training_data,
        "weights": f"{checkpoint.name}.safetensors",
        "weights_sha256": weights_sha256,
    }
    source = {
        "checkpoint": checkpoint.name,
        "network": checkpoint.network,
        "url": checkpoint.url,
        "sha256": from_sha256,
        "sha256_by": str(trust),
    }
    measured = [
        *checkpoint.published,
        "Not measured on this site: run pacs-node evaluate before relying on it.",
    ]
    lines = [f"profile = {_quoted(PROFILE)}", "", "[card]"]
    lines += [f"{key} = {_quoted(value)}" for key, value in card.items()]
    lines += ["performance = [", *(f"  {_quoted(line)}," for line in measured), "]"]
    if checkpoint.task == DETECTION:
        lines += ["", *_OPERATING_POINT]
    lines += ["", "[source]"]
    lines += [f"{key} = {_quoted(value)}" for key, value in source.items()]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # a JSON string of ASCII is a TOML basic string
    return json.dumps(text, ensure_ascii=True)


def main() -> None:
    """Convert one checkpoint of the catalogue."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=[item.name for item in checkpoints()])
    parser.add_argument("--folder", type=Path, default=Path("pacs-node-models"), help="the models folder")
    parser.add_argument("--file", type=Path, help="the published file; by default the pulled one")
    parser.add_argument("--sha256", help="that the file must have, where the catalogue knows none")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        done = convert(find(chosen.name), chosen.folder, file=chosen.file, sha256=chosen.sha256)
    except ModelUnavailableError as error:
        parser.exit(4, f"{error}\n")
    logger.info("%s %s", done.weights, done.sha256)


if __name__ == "__main__":
    main()
