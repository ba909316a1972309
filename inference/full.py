"""Networks of the `full` profile with their converted weights, and the check that models are what they say.

The cards in the models folder are those of `inference.convert`: their ``[source]`` names the network. A file
that is missing or differs is an error, never a reason for random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from torch import nn

from inference.catalogue import PROFILE
from inference.errors import ModelUnavailableError
from inference.inventory import card_tables
from inference.published import build_network
from inference.registry import read_card
from inference.types import ModelCard
from inference.weights import load_into, read_weights


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights.

    Parameters
    ----------
    card
        What a site must know of it.
    network
        Its name in `inference.published`.
    module
        The network in evaluation mode, float32.
    """

    card: ModelCard
    network: str
    module: nn.Module


def load_network(task: str, folder: Path, *, device: str = "cpu") -> Loaded:
    """Build the network that does a task and fill it with its weights.

    Parameters
    ----------
    task
        ``nodule-detection``, ``nodule-segmentation`` or ``image-text-embedding``.
    folder
        The models folder.
    device
        Where it goes.

    Raises
    ------
    ModelUnavailableError
        No card of the folder does the task, or its weights are missing, differ or don't fit.
    """
    if not folder.is_dir():
        raise ModelUnavailableError(f"there is no models folder {folder}")
    for name, table in card_tables(folder):
        if table.get("profile") == PROFILE and table["card"].get("task") == task:
            card = read_card(table, name, folder)
            network = _network(table, name)
            module = build_network(network)
            _fill(module, table["card"], folder)
            return Loaded(card, network, module.to(device))
    raise ModelUnavailableError(f"{folder} has no model for {task}; see pacs-node models pull and convert")


def verify_card(name: str, table: Mapping[str, Any], folder: Traversable) -> str:
    """Check a card, hash its weights, and load them.

    Parameters
    ----------
    name, table
        From `inference.inventory.card_tables`.
    folder
        Where card and weights are.

    Returns
    -------
    str
        What was done, for a person.

    Raises
    ------
    ModelUnavailableError
        With the reason.
    """
    card = read_card(table, name, folder)
    if card.weights_sha256 is None:
        return "the card is complete; it has no weights"
    if "source" in table:
        network = _network(table, name)
        _fill(build_network(network), table["card"], folder)
        return f"sha256 as recorded; the weights fit {network}"
    tensors = read_weights(folder / table["card"]["weights"], card.weights_sha256)
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"sha256 as recorded; {len(tensors)} tensors with {count} finite values"


def _network(table: Mapping[str, Any], name: str) -> str:
    source = table.get("source")
    network = source.get("network") if isinstance(source, dict) else None
    if not isinstance(network, str):
        raise ModelUnavailableError(f"model card {name}: [source] names no network")
    return network


def _fill(module: nn.Module, card: Mapping[str, Any], folder: Traversable) -> None:
    weights = str(card["weights"])
    load_into(module, read_weights(folder / weights, str(card["weights_sha256"])), name=weights)
