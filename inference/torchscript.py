"""Read the tensors of a TorchScript archive without running anything in it.

An archive by ``torch.jit.save`` is a zip: ``data.pkl`` pickles the module tree, ``data/N`` are the storages,
``code/`` is source that ``torch.jit.load`` would compile. Here the pickle is read with a table of the few
names that such a file needs, each standing for an inert object of ours; any other name ends the reading.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.errors import ModelUnavailableError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}

_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as the archive describes it."""

    storage: Tensor
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """Stands for every class of the archive: keeps its fields, has no behaviour."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}


def _view(storage: Tensor, offset: int, size: Any, stride: Any, *_rest: Any) -> _View:
    return _View(storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _first(value: Any, *_rest: Any) -> Any:
    return value


class _Reader(pickle.Unpickler):
    """Knows the names of `find_class` and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(_member(archive, f"{root}/data.pkl")))
        self.archive = archive
        self.root = root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the archive."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return _first
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        """One storage, shape (n,)."""
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isdigit():
            raise pickle.UnpicklingError("it has a storage of unknown kind")
        if key not in self.storages:
            content = bytearray(_member(self.archive, f"{self.root}/data/{key}"))
            if len(content) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(content)} bytes")
            self.storages[key] = (
                torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            )
        return self.storages[key]


def is_torchscript(content: bytes) -> bool:
    """Whether a file is an archive by ``torch.jit.save``."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read_torchscript(content: bytes) -> dict[str, Tensor]:
    """Collect the tensors of all modules under the names that ``state_dict()`` gives them.

    Parameters
    ----------
    content
        The archive. Its hash was checked by the caller.

    Returns
    -------
    dict
        Parameters and buffers, and any other tensor that a module holds as an attribute, on the CPU in their
        own dtype.

    Raises
    ------
    ModelUnavailableError
        It is no such archive, or it asks for a name that no weights need.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            roots = [name[: -len("/data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise ModelUnavailableError("the file is no TorchScript archive: it has no single data.pkl")
            order = f"{roots[0]}/byteorder"
            if order in archive.namelist() and _member(archive, order) != b"little":
                raise ModelUnavailableError("the TorchScript archive is big-endian")
            top = _Reader(archive, roots[0]).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, KeyError, IndexError) as error:
        raise ModelUnavailableError(f"the TorchScript archive can't be read: {error}") from error
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelUnavailableError(f"the TorchScript archive is damaged: {error}") from error
    if not isinstance(top, _Module):
        raise ModelUnavailableError("the TorchScript archive holds no module")
    tensors: dict[str, Tensor] = {}
    _collect(top.fields, "", tensors, 0)
    return tensors


def _collect(fields: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ModelUnavailableError("the TorchScript archive nests too deeply")
    for key, value in fields.items():
        if isinstance(value, _View):
            tensors[f"{prefix}{key}"] = _tensor(value, f"{prefix}{key}")
        elif isinstance(value, _Module):
            _collect(value.fields, f"{prefix}{key}.", tensors, depth + 1)


def _tensor(view: _View, name: str) -> Tensor:
    # a view that repeats elements could ask for any amount of memory
    if min(view.size, default=1) < 0 or math.prod(view.size) > view.storage.numel():
        raise ModelUnavailableError(f"the TorchScript archive is damaged: {name} is larger than its storage")
    try:
        return view.storage.as_strided(view.size, view.stride, view.offset)
    except RuntimeError as error:
        raise ModelUnavailableError(f"the TorchScript archive is damaged: {name} {view.size}") from error


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"{name} is compressed, as torch never writes it")
    return archive.read(info)
