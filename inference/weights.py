"""Read and write weights: safetensors files only, nothing in them is ever executed.

A file is read once; its sha256 is held against the recorded one before a byte is parsed, and the bytes that
were hashed are the bytes that are parsed. Weights are stored as float16 and computed with as float32.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from inference.digest import is_sha256
from inference.durable import replace_file
from inference.errors import ModelUnavailableError

_METADATA = "pacs_node"
"""One key with JSON of sorted keys: the library writes several keys in an order that changes by process."""

_HEADER_LIMIT = 16 * 2**20
"""Longer headers are not looked into for the sake of a better sentence; SAM2's large model has 0.1 MB."""

_ROUNDING = 2**-10
"""Of the greatest value of a tensor: twice what float16 costs in its normal range (IEEE 754)."""

_MANY = 5


def read_weights(path: Traversable, sha256: str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Parameters
    ----------
    path
        The file; a `pathlib.Path` or a resource of a package.
    sha256
        Hex digest that the file must have, from the model card.

    Returns
    -------
    dict
        Tensors by key, on the CPU. Floating point ones are float32 whatever they were stored as; integers
        and booleans as stored. All values are finite.

    Raises
    ------
    ModelUnavailableError
        The file is missing, has another sha256, is truncated, is a pickle or another kind of file, or holds
        a value that is not finite.
    """
    if not is_sha256(sha256):
        raise ModelUnavailableError(f"weights {path.name}: {sha256!r} is not a sha256")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ModelUnavailableError(f"weights {path.name}: the file is missing") from None
    except OSError as error:
        raise ModelUnavailableError(f"weights {path.name} can't be read ({error.strerror})") from error
    found = hashlib.sha256(content).hexdigest()
    fault = _fault(content)
    if found != sha256.lower():
        reason = f"; {fault}" if fault else ""
        raise ModelUnavailableError(
            f"weights {path.name}: the sha256 is {found}, not {sha256.lower()}{reason}"
        )
    if fault:
        raise ModelUnavailableError(f"weights {path.name}: {fault}")
    try:
        tensors = safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelUnavailableError(f"weights {path.name} are not valid safetensors: {error}") from error
    return {name: _checked(tensor, name, path.name) for name, tensor in sorted(tensors.items())}


def _fault(content: bytes) -> str | None:
    """What is wrong with the frame of a safetensors file, from its length field and its first bytes.

    The frame: 8 bytes little-endian length of the header, the header as a JSON object, the tensors.
    """
    if content.startswith(b"version https://git-lfs"):
        return "the file is a Git LFS pointer, the weights themselves were never fetched"
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else None
    if length is not None and content[8:9] == b"{":
        return "the file is truncated" if len(content) < 8 + length + _payload(content, length) else None
    if content.startswith(b"PK\x03\x04") or (content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"):
        return "the file is a pickle, not safetensors; it was not opened"
    if len(content) < 9:
        return f"the file is truncated to {len(content)} bytes"
    return "the file is not safetensors"


def _payload(content: bytes, length: int) -> int:
    """Bytes of tensors that the header promises; 0 where the header can't be read or is unusually long."""
    if length > _HEADER_LIMIT:
        return 0
    try:
        header = json.loads(content[8 : 8 + length])
        ends = [int(item["data_offsets"][1]) for key, item in header.items() if key != "__metadata__"]
        return max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return 0


def _checked(tensor: Tensor, name: str, file: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise ModelUnavailableError(f"weights {file}: {name} has values that are not finite")
    return tensor


def read_metadata(path: Traversable) -> dict[str, str]:
    """Read what `write_weights` noted beside the tensors; empty for a file of another writer.

    Says nothing about the file's integrity: nothing may be decided by it.

    Raises
    ------
    ModelUnavailableError
        The file is missing or not safetensors.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            if len(start) < 8 or (length := struct.unpack("<Q", start)[0]) > _HEADER_LIMIT:
                raise ModelUnavailableError(f"weights {path.name} are not safetensors")
            header = json.loads(stream.read(length))
        noted: Any = json.loads(header.get("__metadata__", {}).get(_METADATA, "{}"))
        return {str(key): str(value) for key, value in noted.items()}
    except OSError as error:
        raise ModelUnavailableError(f"weights {path.name} can't be read ({error.strerror})") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelUnavailableError(f"weights {path.name} are not safetensors") from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, name: str = "weights") -> None:
    """Copy tensors into a module; keys and shapes must be exactly its own.

    Parameters
    ----------
    module
        Its parameters and persistent buffers are overwritten, in their own dtype and on their own device.
    tensors
        By key of ``module.state_dict()``.
    name
        What the weights are called in the error.

    Raises
    ------
    ModelUnavailableError
        A key is missing or unknown, or a tensor has another shape or kind; nothing was copied then.
    """
    check_layout(layout_of(module.state_dict()), tensors, name=name)
    module.load_state_dict(dict(tensors), strict=True)


def layout_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by key, in the order of the keys."""
    return {key: tuple(tensor.shape) for key, tensor in sorted(tensors.items())}


def check_layout(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], *, name: str = "weights"
) -> None:
    """Compare keys and shapes.

    Raises
    ------
    ModelUnavailableError
        They differ; the text names the first few keys of each kind of difference.
    """
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(tensors[key].shape)} for {shape}"
        for key, shape in sorted(expected.items())
        if key in tensors and tuple(tensors[key].shape) != tuple(shape)
    ]
    faults = [
        f"{len(keys)} {kind} ({_few(keys)})"
        for kind, keys in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if keys
    ]
    if faults:
        raise ModelUnavailableError(f"{name} don't fit the network: {'; '.join(faults)}")


def _few(items: list[str]) -> str:
    return ", ".join(items[:_MANY]) + (", ..." if len(items) > _MANY else "")


def write_weights(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> str:
    """Write tensors as safetensors: the same tensors and metadata give the same bytes.

    Parameters
    ----------
    tensors
        By key. Floating point ones are stored as float16; one that loses more than a thousandth of its
        greatest value by that, because it is very large (above 65504) or very small, as float32. Integers and
        booleans are stored as they are.
    path
        Ends in ``.safetensors``. An existing file is replaced in one step.
    metadata
        Noted in the header, for people. No date, if the bytes are to be reproducible.

    Returns
    -------
    str
        sha256 of the file, for the model card.

    Raises
    ------
    ValueError
        Wrong file name, no tensors, or a value that is not finite.
    OSError
        The file can't be written; nothing is left behind.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} must end in .safetensors")
    if not tensors:
        raise ValueError("there are no tensors to write")
    stored = {key: _stored(key, tensor) for key, tensor in sorted(tensors.items())}
    noted = {_METADATA: json.dumps(dict(metadata), sort_keys=True, ensure_ascii=True)} if metadata else None
    content = safetensors.torch.save(stored, noted)
    replace_file(path, [content])
    return hashlib.sha256(content).hexdigest()


def _stored(key: str, tensor: Tensor) -> Tensor:
    # a copy of its own: tensors that share memory would be refused
    tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if not tensor.is_floating_point():
        return tensor
    single, half = tensor.float(), tensor.half()
    if not bool(torch.isfinite(single).all()):
        raise ValueError(f"{key} has values that are not finite")
    if tensor.numel() and float((single - half).abs().max()) > _ROUNDING * float(single.abs().max()):
        return single
    return half
