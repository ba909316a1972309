"""The published checkpoints that the `full` profile can be built from: where they are, what they must be.

The data are in ``catalogue.toml``. Where nobody published a sha256, the entry has none: then the operator
gives it, or says in so many words that the first file seen is trusted. Loads no torch.
"""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from inference.digest import is_sha256
from inference.errors import ModelUnavailableError

Format = Literal["pickle", "bundle", "safetensors", "torchscript"]

PROFILE = "full"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One published file.

    Parameters
    ----------
    name
        What it is called here; names the converted weights and their card too.
    title, licence, intended_use, limits, training_data
        For the model card.
    task
        What it does in the pipeline.
    network
        A network of `inference.published`: its keys and shapes are what the file must have.
    file
        Name under which the publisher offers it, and under which it is kept.
    url
        Where; of a fixed version where the publisher has one.
    format
        ``pickle``: a state dict by ``torch.save``; ``bundle``: a MONAI bundle as a zip; ``torchscript``: an
        archive by ``torch.jit.save``; ``safetensors``.
    hash_source
        Who says so, or why there is none.
    published
        Figures of the publisher, marked as such.
    size
        Bytes, None where unknown.
    sha256
        Hex digest, None where unknown.
    key
        Key of the state dict in the pickled dictionary; empty where the dictionary is the state dict.
    member
        Path of the weights in a zip.
    ignored
        Last part of the keys of tensors in the file that are no weights.
    """

    name: str
    title: str
    task: str
    network: str
    file: str
    url: str
    format: Format
    hash_source: str
    licence: str
    intended_use: str
    limits: str
    training_data: str
    published: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    key: str = ""
    member: str = ""
    ignored: tuple[str, ...] = ()


_REQUIRED = {item.name for item in fields(Checkpoint) if item.default is MISSING}
_KNOWN = {item.name for item in fields(Checkpoint)}
_LISTS = ("published", "ignored")


@cache
def checkpoints() -> tuple[Checkpoint, ...]:
    """All entries, in the order of the file.

    Raises
    ------
    ModelUnavailableError
        The file is not what it should be.
    """
    content = (resources.files("inference") / "catalogue.toml").read_text(encoding="utf-8")
    return parse(content)


def parse(content: str) -> tuple[Checkpoint, ...]:
    """Read a catalogue.

    Raises
    ------
    ModelUnavailableError
        It is not TOML, or an entry lacks a field, has an unknown one or repeats a name.
    """
    try:
        rows = tomllib.loads(content).get("checkpoint", [])
    except tomllib.TOMLDecodeError as error:
        raise ModelUnavailableError(f"the catalogue is not valid TOML: {error}") from error
    found = tuple(_entry(row) for row in rows)
    names = [item.name for item in found]
    if len(set(names)) != len(names):
        raise ModelUnavailableError("the catalogue has a name twice")
    return found


def _entry(row: dict[str, Any]) -> Checkpoint:
    name = row.get("name", "?")
    wrong = sorted(_REQUIRED - row.keys()) + sorted(row.keys() - _KNOWN)
    wrong += [key for key, value in row.items() if not isinstance(value, _type_of(key))]
    if wrong:
        raise ModelUnavailableError(f"catalogue, {name}: missing, unknown or wrong: {', '.join(wrong)}")
    if row["format"] not in get_args(Format):
        wrong.append("format")
    if not is_sha256(row.get("sha256", "0" * 64)):
        wrong.append("sha256")
    if "/" in row["file"] or row["file"].startswith("."):
        wrong.append("file")
    if wrong:
        raise ModelUnavailableError(f"catalogue, {name}: missing, unknown or wrong: {', '.join(wrong)}")
    values: dict[str, Any] = {
        key: value.strip() if isinstance(value, str) else value for key, value in row.items()
    }
    for key in _LISTS:
        values[key] = tuple(values.get(key, ()))
    return Checkpoint(**values)


def _type_of(key: str) -> type:
    if key == "size":
        return int
    return list if key in _LISTS else str


def find(name: str) -> Checkpoint:
    """The entry of a name.

    Raises
    ------
    ModelUnavailableError
        There is none; the text lists the names.
    """
    for item in checkpoints():
        if item.name == name:
            return item
    known = ", ".join(item.name for item in checkpoints())
    raise ModelUnavailableError(f"the catalogue has no {name!r}; it has {known}")
