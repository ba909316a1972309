"""What the report says of the study as a whole (PS3.16 TID 1500 row 12): outcome, quality, provenance ...

It stands in a container of its own, not in a measurement group: OHIF 3.13 fails on a group without an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from highdicom.sr import CodeContentItem, ContainerContentItem, ContentSequence, NumContentItem
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.content import operating_point, text
from dicom_sr.context import ResultContext
from dicom_sr.wording import ENGLISH, Wording
from inference.certainty import percent
from inference.errors import ReasonCode
from inference.types import ModelCard, Observation, Result, Volume

THICK_SLICE_MM = 2.5
"""Thicker slices limit what can be seen of small nodules."""
_LUNG_RADS = ("lung_rads", "lung_rads_version", "lung_rads_undetermined", "lung_rads_if")


@dataclass(frozen=True, slots=True)
class Millimetres:
    """A length as the value of an evaluation."""

    value: float


Row = tuple[Code, Code | Millimetres | str]
"""Concept, and its value as a code, a number or a text."""


def study_rows(volume: Volume, result: Result, wording: Wording = ENGLISH) -> list[Row]:
    """What is said of an analysed study, without comments and provenance.

    Lung-RADS is always mentioned: a category where the result has one, otherwise why there is none.
    """
    found = codes.SUCCEEDED_WITH_FINDINGS if result.findings else codes.SUCCEEDED_WITHOUT_FINDINGS
    return [
        (codes.RUN_OUTCOME, found),
        *_quality(volume, result.observations),
        *_lung_rads(result.observations, wording),
        *((codes.FINDING, observation_words(o)) for o in result.observations if not _is_coded(o)),
        *_operating_points(result.cards),
    ]


def not_analysed_rows(reason: ReasonCode) -> list[Row]:
    """What is said of a series that was not analysed, without comments and provenance."""
    return [
        (codes.RUN_OUTCOME, codes.NONE_SUCCEEDED),
        (codes.QUALITY_FINDING, codes.quality_finding(reason)),
    ]


def provenance_rows(context: ResultContext) -> list[Row]:
    """Weights of each model, input and software, for programs; the conclusion says them in words too."""
    return [
        *model_rows(context.cards),
        (codes.INPUT_DIGEST, context.input_digest),
        (codes.SOFTWARE_VERSION, context.software_version),
    ]


def model_rows(cards: Sequence[ModelCard]) -> list[Row]:
    """Name, version and sha256 of each weights file."""
    return [
        (codes.MODEL_WEIGHTS, f"{card.name} version {card.version}: {card.weights_sha256}")
        for card in cards
        if card.weights_sha256
    ]


def container(
    rows: Sequence[Row], comments: Sequence[str], wording: Wording, items: Sequence[Any] = ()
) -> ContainerContentItem:
    """The container of the given rows, then other items of its level, then a comment for each sentence."""
    item = ContainerContentItem(codes.QUALITATIVE_EVALUATIONS, relationship_type=Relation.CONTAINS)
    item.ContentSequence = ContentSequence(
        [
            *(_item(concept, value) for concept, value in rows),
            *items,
            *(text(codes.COMMENT, c, wording) for c in comments),
        ]
    )
    return item


_TITLES = {
    "screening": "Screening examination",
    "lung_rads": "Lung-RADS",
    "lung_rads_version": "Lung-RADS version",
    "lung_rads_undetermined": "Lung-RADS",
    "lung_rads_if": "Lung-RADS",
    "lung_rads_management": "Lung-RADS, recommendation",
    "lung_rads_rules": "Lung-RADS, rules that held",
    "lung_rads_rules_if": "Lung-RADS, rules that would hold",
    "fleischner_2017": "Fleischner Society 2017",
}


def observation_title(name: str) -> str:
    """What a reader calls an observation, e.g. ``Lung-RADS, rules that held``."""
    return _TITLES.get(name, name.replace("_", " "))


def observation_words(observation: Observation) -> str:
    """E.g. ``emphysema: present (probability 83 %)``."""
    chance = "" if observation.probability is None else f" (probability {percent(observation.probability)})"
    return f"{observation_title(observation.name)}: {observation.value}{chance}"


def lung_rads_category(observations: Sequence[Observation]) -> str | None:
    """The category or categories that the result has, None where it has none."""
    said = [o.value for o in observations if o.name == "lung_rads"]
    return ", ".join(said) or None


def lung_rads_undetermined(observations: Sequence[Observation], wording: Wording) -> str:
    """Why there is no category: in the words of the result, else that none is assigned."""
    said = [o.value for o in observations if o.name in {"lung_rads_undetermined", "lung_rads_if"}]
    return " ".join(said) or wording.say("lung_rads_undetermined")


def _item(concept: Code, value: Code | Millimetres | str) -> Any:
    if isinstance(value, Code):
        return CodeContentItem(concept, value, Relation.CONTAINS)
    if isinstance(value, Millimetres):
        return NumContentItem(concept, value.value, codes.MM, relationship_type=Relation.CONTAINS)
    return text(concept, value)


def is_lung_rads(observation: Observation) -> bool:
    """Whether it is a category, its edition, or why there is none; the rules that held are words beside."""
    return observation.name in _LUNG_RADS


def _is_coded(observation: Observation) -> bool:
    return is_lung_rads(observation) or _artifact(observation) is not None


def _artifact(observation: Observation) -> Code | None:
    return codes.QUALITY_OBSERVATIONS.get(observation.name) if observation.value == "present" else None


def _quality(volume: Volume, observations: Sequence[Observation]) -> Iterator[Row]:
    if max(volume.slice_thickness_mm or 0.0, volume.spacing_mm[0]) > THICK_SLICE_MM + 0.01:
        yield codes.QUALITY_FINDING, codes.LIMITED_QUALITY
    for observation in observations:
        if (artifact := _artifact(observation)) is not None:
            yield codes.QUALITY_FINDING, artifact


def _lung_rads(observations: Sequence[Observation], wording: Wording) -> Iterator[Row]:
    """RadLex says no version, so that has a row of its own; S is a second category, never instead of one."""
    said = [o for o in observations if is_lung_rads(o)]
    for one in said:
        if one.name == "lung_rads":
            yield codes.LUNG_RADS, codes.LUNG_RADS_CATEGORIES.get(one.value, one.value)
        elif one.name == "lung_rads_version":
            yield codes.LUNG_RADS_VERSION, one.value
    if not any(one.name == "lung_rads" for one in said):
        yield codes.LUNG_RADS, lung_rads_undetermined(observations, wording)


def _operating_points(cards: Sequence[ModelCard]) -> Iterator[Row]:
    for card in cards:
        if "min_diameter_mm" in card.parameters:
            yield codes.DETECTION_THRESHOLD, Millimetres(card.parameters["min_diameter_mm"])
        if card.parameters:
            yield codes.OPERATING_POINT, f"{card.name}: {operating_point(card)}"
