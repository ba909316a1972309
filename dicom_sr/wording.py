"""Every sentence of the report in one table, and the way to another language.

Names and values of the content tree are coded, and their English meanings stay: viewers compare them
literally. What is said in sentences comes from a `Wording`. English is built in; another language is a table
of the same sentences, read by `read_wording`. What the analysis itself says in words (warnings, reasons,
observations, model cards) is English wherever it stands.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any

from pydicom.sr.coding import Code

from inference.certainty import CERTAIN, NOT_CERTAIN, SUSPICION, SUSPICIOUS
from inference.change import GrowthClass

RESEARCH_USE = "Research use only, not for primary diagnosis."
NOT_REVIEWED = "Not reviewed by a physician."

SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "not_reviewed": NOT_REVIEWED,
        "research_use": RESEARCH_USE,
        "automatic_result": "Automatic result.",
        "automatic_message": "Automatic message.",
        "one_nodule": "One nodule was marked.",
        "nodules": "{count} nodules were marked.",
        "no_nodule": "No nodule was found by this software.",
        "operating_point": "Operating point: {points}.",
        "nothing_excluded": "This does not exclude nodules.",
        "finding": "{name} is a {kind} in the {site}.",
        "size": "It measures {long:.1f} x {short:.1f} mm (mean diameter {mean:.1f} mm, greatest diameter in "
        "space {greatest:.1f} mm, volume {volume:.1f} mm3) and has a mean attenuation of {hu:.0f} HU.",
        "certainty": "The certainty of its detection is {percent:.0f} %.",
        "image_probability": f"{SUSPICIOUS} ({SUSPICION}), from the image alone: {{percent:.0f}} %.",
        "both_probabilities": f"{SUSPICIOUS} ({SUSPICION}), from the image alone: "
        "{percent:.0f} %, with the clinical record: {fused:.0f} %.",
        "attached": "It touches the pleura (probability {percent:.0f} %).",
        "not_attached": "It does not touch the pleura (probability {percent:.0f} %).",
        "features": "Its features: {features}.",
        "feature": "{name}: {value} (probability {percent:.0f} %)",
        "compared": "Compared with the examination of {prior}, {days} days before this one of {current}.",
        "not_compared": "An examination of {prior} could not be compared with this one of {current}: "
        "{reason}",
        "since": "Since {prior}: {change}; mean diameter from {before:.1f} to {now:.1f} mm, volume from "
        "{volume_before:.1f} to {volume_now:.1f} mm3.",
        "volume_change": "Change of volume {percent:+} %.",
        "volume_growth": "By volume: {words}.",
        "doubling_time": "Volume doubling time {days:.0f} days.",
        "new": "Not seen on {prior}: new.",
        "outside_prior": "The examination of {prior} does not show its place, so its change is not known.",
        "unknown_change": "Its change since {prior} is not known: {reason}",
        "resolved": "A nodule of {prior} ({name}, {site}, mean diameter {mean:.1f} mm, volume {volume:.1f} "
        "mm3) is not seen any more.",
        "outside_current": "This examination does not show the place of a nodule of {prior} ({name}, {site}, "
        "mean diameter {mean:.1f} mm, volume {volume:.1f} mm3).",
        "unmarked": "A nodule of {prior} ({name}, {site}, mean diameter {mean:.1f} mm, volume {volume:.1f} "
        "mm3) was not marked, but is still there.",
        "only_at_place": "It was seen on {date} only when its place was looked at again.",
        "lung_rads_undetermined": "Lung-RADS cannot be determined: it holds for screening examinations only, "
        "and this software assigns no category.",
        "lung_rads": "Lung-RADS: {category}.",
        "not_assessed": "Not assessed: {what}.",
        "warning": "Warning: {text}",
        "not_analysed": "This series was not analysed ({reason}): {sentence}",
        "no_statement": "No statement is made on the presence or absence of nodules.",
        "made_by": "Made by {model}, pipeline version {pipeline}, software version {software}, "
        "{manufacturer}.",
        "input_digest": "Input digest: {digest}.",
        "other_series": "Other series {series} ({modality}): {code}. {sentence}",
        "replaces": "This result replaces an earlier one of the same series: {uids}.",
    }
)
"""English, by key. What stands in braces is filled in."""

WORDS = (
    *("nodule", "mass", "solid", "part-solid", "ground-glass", "and", "malignancy", "semantic features"),
    *(NOT_CERTAIN,),
    *("growing", "slowly growing", "stable", "smaller", "change not known"),
    *(growth.value for growth in GrowthClass if growth is not GrowthClass.NO_GROWTH),
    *("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe"),
    *("upper lobe", "lower lobe", "right lung", "left lung", "lung", "no modality"),
)
"""What is put into the sentences, beside the meanings of codes."""

ENGLISH_CODE = Code("en-US", "RFC5646", "English (United States)")


def said_meaning(feature: Mapping[str, Any]) -> str:
    """The value of a feature of ``result.json`` as it is said: a value that isn't certain is none."""
    return str(feature["meaning"]) if feature["probability"] >= CERTAIN else NOT_CERTAIN


class WordingError(ValueError):
    """A table of sentences is incomplete, or has what English has not."""


@dataclass(frozen=True, slots=True)
class Wording:
    """The sentences of one language.

    Parameters
    ----------
    language
        RFC 5646 tag as a code, such as ``de-DE``.
    sentences
        By the keys of `SENTENCES`, all of them, with the same names in braces or fewer.
    words
        Translations of `WORDS` and of the meanings of codes; what is missing stays English.

    Raises
    ------
    WordingError
        With everything that is wrong.
    """

    language: Code = ENGLISH_CODE
    sentences: Mapping[str, str] = field(default_factory=lambda: SENTENCES)
    words: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [f"{key} is missing" for key in SENTENCES.keys() - self.sentences.keys()]
        wrong += [f"{key} is unknown" for key in self.sentences.keys() - SENTENCES.keys()]
        for key in SENTENCES.keys() & self.sentences.keys():
            try:
                extra = _fields(self.sentences[key]) - _fields(SENTENCES[key])
            except ValueError as error:
                wrong.append(f"{key}: {error}")
                continue
            wrong += [f"{key} has no {{{name}}}" for name in sorted(extra)]
        if wrong:
            raise WordingError("; ".join(sorted(wrong)))

    @property
    def is_english(self) -> bool:
        """Whether it is the language of the codes' meanings."""
        return self.language.value == ENGLISH_CODE.value

    @property
    def digest(self) -> str:
        """Changes with the language and with every sentence and word."""
        parts = [self.language.value, *sorted(self.sentences.items()), *sorted(self.words.items())]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def say(self, key: str, **values: object) -> str:
        """The sentence of this key with its values."""
        return self.sentences[key].format(**values)

    def word(self, english: str) -> str:
        """A word or the meaning of a code, in English where the table has none."""
        return self.words.get(english, english)


def _fields(sentence: str) -> set[str]:
    """Names in braces, each a plain identifier so that no attribute of a value can be reached."""
    names = {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"{{{name}}} is no plain name")
    return names


def read_wording(path: Path) -> Wording:
    """Read a language from a TOML file.

    ::

        [language]
        tag = "de-DE"
        name = "German (Germany)"

        [sentences]                     # all keys of SENTENCES
        one_nodule = "Ein Rundherd wurde markiert."

        [words]                         # optional
        "right upper lobe" = "rechter Oberlappen"

    Raises
    ------
    WordingError
        The file can't be read, or its table doesn't fit.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        tag, name = table["language"]["tag"], table["language"]["name"]
        sentences, words = table["sentences"], table.get("words", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise WordingError(f"{path.name} is no table of sentences: {error!r}") from error
    texts = [tag, name, *_values(sentences), *_values(words)]
    if not all(isinstance(text, str) and text for text in texts):
        raise WordingError(f"{path.name}: every value must be a text, and none empty")
    return Wording(Code(tag, "RFC5646", name), sentences, words)


def _values(table: object) -> list[object]:
    return list(table.values()) if isinstance(table, dict) else [table, None]


ENGLISH = Wording()
