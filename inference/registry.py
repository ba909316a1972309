"""Model cards and pipelines: what runs, in which version, with which weights.

A card is a TOML file in ``inference/cards``. Weights that a card names are safetensors files whose sha256
must match; a missing or different file is an error, never a reason for random weights.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from inference.catalogue import PROFILE as PUBLISHED_PROFILE
from inference.digest import sha256_of
from inference.errors import ModelUnavailableError
from inference.types import ModelCard

PIPELINE_VERSION = "1.1.0"
"""For people. What tells two pipelines apart for certain is the digest behind it."""

DEFAULT_PROFILE = "reference"
"""What a node and the commands use when nothing else is asked for."""

DETECTION = "nodule-detection"
SEGMENTATION = "nodule-segmentation"
CLASSIFICATION = "nodule-classification"
TEXT = "text-tower"
FUSION = "record-fusion"
HOUNSFIELD = "hounsfield-estimate"

_REPLACEABLE = (DETECTION,)
"""What a published model can do as it is; the others need training first."""

_TEXTS = ("name", "version", "task", "summary", "intended_use", "limits", "licence", "training_data")
_OPTIONAL = ("weights", "weights_sha256", "mechanism")
_NOT_COMPUTING = ("datasets", "evaluate", "phantom", "train")


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What `inference.analyse` runs.

    Parameters
    ----------
    profile
        Name of the set of cards.
    cards
        One for each stage that has parameters or weights.
    version
        Changes whenever the same input could give another result; at most 64 characters.
    folders
        Where each card and its weights are, in the order of `cards`.
    """

    profile: str
    cards: tuple[ModelCard, ...]
    version: str
    folders: tuple[Traversable, ...]

    def __hash__(self) -> int:
        """By version: cards hold tables, which have no hash of their own."""
        return hash(self.version)

    def card(self, task: str) -> ModelCard:
        """The card of one task.

        Raises
        ------
        ModelUnavailableError
            The profile has none.
        """
        for card in self.cards:
            if card.task == task:
                return card
        raise ModelUnavailableError(f"profile {self.profile} has no model for {task}")

    def has(self, task: str) -> bool:
        """Whether the profile has a model for a task."""
        return any(card.task == task for card in self.cards)

    def weights(self, task: str) -> tuple[Traversable, str]:
        """The weights file of one task and the sha256 that it must have.

        Raises
        ------
        ModelUnavailableError
            The profile has no model for the task, or one without weights.
        """
        card = self.card(task)
        if card.weights is None or card.weights_sha256 is None:
            raise ModelUnavailableError(f"{card.name} has no weights")
        return self.folders[self.cards.index(card)] / card.weights, card.weights_sha256


def load_pipeline(
    profile: str = DEFAULT_PROFILE, *, folder: Path | None = None, models: Path | None = None
) -> Pipeline:
    """Read and check the cards of a profile.

    Parameters
    ----------
    profile
        Which one; the cards that name it are taken. ``full`` is the reference profile with the published
        models of `models` in the place of those that they can replace: the detector.
    folder
        Where cards and weights are; None for those of the package.
    models
        The folder of ``pacs-node models``; only the profile ``full`` needs it.

    Raises
    ------
    ModelUnavailableError
        No card names the profile, a card is incomplete, or its weights are missing or differ.
    """
    if profile == PUBLISHED_PROFILE and folder is None:
        return _full(models)
    root: Traversable = resources.files("inference") / "cards" if folder is None else folder
    read = _read_cards(profile, root)
    return _pipeline(profile, [(card, content, root) for card, content in read])


def _full(models: Path | None) -> Pipeline:
    if models is None or not models.is_dir():
        raise ModelUnavailableError(
            f"the profile {PUBLISHED_PROFILE} needs a folder of published models, and there is no "
            f"{models or 'such setting'}; see pacs-node models pull and convert"
        )
    published = [row for row in _read_cards(PUBLISHED_PROFILE, models) if row[0].task in _REPLACEABLE]
    if not published:
        raise ModelUnavailableError(
            f"{models} has no converted model for {', '.join(_REPLACEABLE)}; see pacs-node models convert"
        )
    done = {card.task for card, _ in published}
    package: Traversable = resources.files("inference") / "cards"
    ours = [row for row in _read_cards(DEFAULT_PROFILE, package) if row[0].task not in done]
    rows = [(card, content, models) for card, content in published]
    return _pipeline(PUBLISHED_PROFILE, [*rows, *((card, content, package) for card, content in ours)])


def _read_cards(profile: str, root: Traversable) -> list[tuple[ModelCard, str]]:
    """The cards of a folder that name the profile, with their text.

    Raises
    ------
    ModelUnavailableError
        None does, or one is incomplete or its weights are missing or differ.
    """
    found: list[tuple[ModelCard, str]] = []
    for entry in sorted(root.iterdir(), key=lambda item: item.name):
        if not entry.name.endswith(".toml"):
            continue
        content = entry.read_text(encoding="utf-8")
        table = _parse(content, entry.name)
        if table.get("profile") == profile:
            found.append((read_card(table, entry.name, root), content))
    if not found:
        raise ModelUnavailableError(f"no model card names the profile {profile!r}")
    return found


def _pipeline(profile: str, rows: Sequence[tuple[ModelCard, str, Traversable]]) -> Pipeline:
    cards = tuple(card for card, _, _ in rows)
    contents = [content for _, content, _ in rows]
    version = f"{profile}-{PIPELINE_VERSION}+{_digest(contents)}"
    return Pipeline(profile, cards, version, tuple(root for _, _, root in rows))


def profiles() -> tuple[str, ...]:
    """Names of the profiles that can analyse a CT: they have a detector."""
    cards = resources.files("inference") / "cards"
    tables = [
        _parse(entry.read_text(encoding="utf-8"), entry.name)
        for entry in cards.iterdir()
        if entry.name.endswith(".toml")
    ]
    named = {
        str(table["profile"])
        for table in tables
        if "profile" in table and table.get("card", {}).get("task") == DETECTION
    }
    return tuple(sorted(named | {PUBLISHED_PROFILE}))


def _parse(content: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise ModelUnavailableError(f"model card {name} is not valid TOML: {error}") from error


def read_card(table: Mapping[str, Any], name: str, root: Traversable) -> ModelCard:
    """Turn one parsed card into a `ModelCard` and check it and its weights.

    Raises
    ------
    ModelUnavailableError
        With the field that is missing or wrong, or the file that is missing or differs.
    """
    body = table.get("card")
    if not isinstance(body, dict):
        raise ModelUnavailableError(f"model card {name} has no [card] table")
    known = {*_TEXTS, *_OPTIONAL, "performance", "parameters"}
    wrong = sorted(set(body) - known) + [
        key for key in _TEXTS if not isinstance(body.get(key), str) or not body[key].strip()
    ]
    performance, parameters = body.get("performance"), body.get("parameters", {})
    if not isinstance(performance, list) or not all(isinstance(line, str) for line in performance):
        wrong.append("performance")
    if not isinstance(parameters, dict) or not all(_is_number(value) for value in parameters.values()):
        wrong.append("parameters")
    if not isinstance(body.get("mechanism"), str | None):
        wrong.append("mechanism")
    if wrong:
        raise ModelUnavailableError(f"model card {name}: missing, unknown or wrong: {', '.join(wrong)}")
    _check_weights(body, name, root)
    return ModelCard(
        **{key: body[key].strip() for key in _TEXTS},
        performance=tuple(line.strip() for line in performance or ()),
        weights=body.get("weights"),
        weights_sha256=body.get("weights_sha256"),
        parameters={key: float(value) for key, value in parameters.items()},
        network=_network(table),
        mechanism=body.get("mechanism"),
    )


def _network(table: Mapping[str, Any]) -> str | None:
    source = table.get("source")
    network = source.get("network") if isinstance(source, dict) else None
    return network if isinstance(network, str) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_weights(body: Mapping[str, Any], name: str, root: Traversable) -> None:
    """Hold the named weights against their recorded sha256."""
    weights, expected = body.get("weights"), body.get("weights_sha256")
    if weights is None and expected is None:
        return
    if not isinstance(weights, str) or not isinstance(expected, str):
        raise ModelUnavailableError(f"model card {name}: weights and weights_sha256 belong together")
    if not weights.endswith(".safetensors") or Path(weights).name != weights:
        raise ModelUnavailableError(f"model card {name}: {weights} is not the name of a safetensors file")
    file = root / weights
    if not file.is_file():
        raise ModelUnavailableError(f"model card {name}: the weights {weights} are missing")
    try:
        found = sha256_of(file)
    except OSError as error:
        raise ModelUnavailableError(
            f"model card {name}: the weights {weights} can't be read ({error.strerror})"
        ) from error
    if found != expected.lower():
        raise ModelUnavailableError(
            f"model card {name}: the weights {weights} have sha256 {found}, not {expected}"
        )


def _digest(contents: list[str]) -> str:
    """Short digest of the cards and of all modules of this package that can take part in an analysis.

    All, so that none that computes can be forgotten. The source is read, not imported: whoever only asks
    for the version loads no torch.
    """
    sources = list(_sources(resources.files("inference")))
    return hashlib.sha256(json.dumps([contents, sources]).encode()).hexdigest()[:12]


def _sources(folder: Traversable) -> Iterator[str]:
    """The modules of a folder and of those in it, in the order of their names."""
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.is_dir() and entry.name not in _NOT_COMPUTING:
            yield from _sources(entry)
        elif entry.name.endswith(".py"):
            yield entry.read_text(encoding="utf-8")
