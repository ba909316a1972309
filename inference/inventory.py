"""Which models there are: in the package, in a models folder, and in the catalogue.

Loads no torch, hashes nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from inference.catalogue import PROFILE, Checkpoint, checkpoints
from inference.errors import ModelUnavailableError


class State(StrEnum):
    """What is there of a model."""

    PRESENT = "present"
    NO_WEIGHTS_NEEDED = "present (no weights needed)"
    MISSING = "missing"
    PULLED = "pulled, not converted"


@dataclass(frozen=True, slots=True)
class Model:
    """One model.

    Parameters
    ----------
    name
        File name of the card without suffix; for published checkpoints the name in the catalogue.
    title, task, profile, licence
        From card or catalogue.
    state
        Whether its files are there; whether they are the right ones, `inference.full.verify_card` says.
    file
        Name of the weights, or of the published file, None for an algorithm without weights.
    size
        Bytes of `file`: found, or announced by the catalogue; None where neither is known.
    sha256
        That `file` must have, None where nobody knows.
    performance
        Sentences of measured performance, empty where there is no card yet.
    """

    name: str
    title: str
    task: str
    profile: str
    state: State
    file: str | None
    size: int | None
    sha256: str | None
    licence: str
    performance: tuple[str, ...]


def package_cards() -> Traversable:
    """The folder of the cards in the package."""
    return resources.files("inference") / "cards"


def card_tables(folder: Traversable) -> list[tuple[str, dict[str, Any]]]:
    """File name and content of the cards in a folder, in the order of their names.

    Raises
    ------
    ModelUnavailableError
        One is not TOML, or has no ``[card]``.
    """
    found = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".toml"):
            continue
        try:
            table = tomllib.loads(entry.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ModelUnavailableError(f"model card {entry.name} is not valid TOML: {error}") from error
        if not isinstance(table.get("card"), dict):
            raise ModelUnavailableError(f"model card {entry.name} has no [card] table")
        found.append((entry.name, table))
    return found


def inventory(folder: Path) -> list[Model]:
    """All models: those of the package, those of the models folder, and what the catalogue offers besides.

    Parameters
    ----------
    folder
        The models folder; need not exist.

    Raises
    ------
    ModelUnavailableError
        A card can't be read.
    """
    cards = package_cards()
    models = [_from_card(name, table, cards) for name, table in card_tables(cards)]
    if folder.is_dir():
        models += [_from_card(name, table, folder) for name, table in card_tables(folder)]
    names = {model.name for model in models}
    return models + [_from_catalogue(item, folder) for item in checkpoints() if item.name not in names]


def _from_card(name: str, table: Mapping[str, Any], folder: Traversable) -> Model:
    card = table["card"]
    file = card.get("weights")
    weights = folder / str(file)
    there = file is not None and weights.is_file()
    return Model(
        name=name.removesuffix(".toml"),
        title=str(card.get("name", "?")),
        task=str(card.get("task", "?")),
        profile=str(table.get("profile", "?")),
        state=State.NO_WEIGHTS_NEEDED if file is None else State.PRESENT if there else State.MISSING,
        file=file,
        size=_size(weights) if there else None,
        sha256=card.get("weights_sha256"),
        licence=str(card.get("licence", "?")).strip(),
        performance=tuple(str(line).strip() for line in card.get("performance", ())),
    )


def _size(file: Traversable) -> int | None:
    return file.stat().st_size if isinstance(file, Path) else None


def _from_catalogue(item: Checkpoint, folder: Path) -> Model:
    pulled = (folder / item.file).is_file()
    return Model(
        name=item.name,
        title=item.title,
        task=item.task,
        profile=PROFILE,
        state=State.PULLED if pulled else State.MISSING,
        file=item.file,
        size=(folder / item.file).stat().st_size if pulled else item.size,
        sha256=item.sha256,
        licence=item.licence,
        performance=(),
    )
