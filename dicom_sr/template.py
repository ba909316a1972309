"""The template of the draft narrative: a table of sentences that a site may edit.

A template holds no program: fixed keys, each a sentence with fixed names in braces, as `dicom_sr.wording`
has them. What a file doesn't name stays as it is built in. Which sentence is said, and with which values, is
decided in `dicom_sr.narrative`; that the text is a draft is said there too, whatever the template says.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any, NamedTuple

from pydicom.sr.coding import Code

from dicom_sr.wording import ENGLISH_CODE
from inference.certainty import SUSPICION, SUSPICIOUS

SECTIONS = ("clinical", "technique", "comparison", "findings", "impression")
"""In the order of the built-in template."""
_NEVER_LEFT_OUT = ("findings", "impression")
_LARGEST_BYTES = 64 << 10
_LONGEST = 1000
_FORMAT = re.compile(r"(\.[0-3]f)?")


class Sentence(NamedTuple):
    """A sentence as built in.

    Parameters
    ----------
    text
        English; empty where there is none unless a site writes one.
    needed
        Names in braces that a site's own sentence must have too.
    fixed
        A site may change it but not leave it out.
    more
        Names that it may use beside those of `text`.
    """

    text: str
    needed: tuple[str, ...] = ()
    fixed: bool = False
    more: tuple[str, ...] = ()


HEADINGS: Mapping[str, str] = MappingProxyType(
    {
        "clinical": "CLINICAL INFORMATION",
        "technique": "TECHNIQUE",
        "comparison": "COMPARISON",
        "findings": "FINDINGS",
        "impression": "IMPRESSION",
    }
)

_LESION = ("number", "name", "kind", "site", "long", "short", "mean", "greatest", "volume", "hu")

SENTENCES: Mapping[str, Sentence] = MappingProxyType(
    {
        "notice": Sentence(""),
        "screening": Sentence("Lung cancer screening: {words}."),
        "record_used": Sentence("Clinical record used: {items}."),
        "record_none": Sentence("No probability was made with a clinical record."),
        "technique": Sentence(
            "CT of the chest: {slices} slices, {spacing:.2f} mm apart, {rows} x {columns} pixels of "
            "{pixel:.2f} mm.",
            more=("scanner",),
        ),
        "thickness": Sentence("Slice thickness {thickness:.2f} mm."),
        "kernel": Sentence("Reconstruction kernel {kernel}."),
        "read_by": Sentence("Read by {algorithm}, pipeline version {pipeline}."),
        "comparison_none": Sentence("No earlier examination was compared.", fixed=True),
        "comparison": Sentence("{text}", needed=("text",), fixed=True),
        "nodules_none": Sentence("Lungs: no nodule was marked by the software.", fixed=True),
        "not_excluded": Sentence("This does not exclude nodules.", fixed=True),
        "nodules_one": Sentence("Lungs: one nodule was marked by the software."),
        "nodules_many": Sentence("Lungs: {count} nodules were marked by the software."),
        "nodule": Sentence(
            "{name}: {kind} in the {site}, {long:.1f} x {short:.1f} mm (mean diameter {mean:.1f} mm), "
            "{volume:.0f} mm3, on slice {slice} of {slices}.",
            needed=("name",),
            fixed=True,
            more=(*_LESION, "certainty"),
        ),
        "solid_part": Sentence("Solid part: mean diameter {solid:.1f} mm."),
        "kind_unknown": Sentence("Attenuation not assessed."),
        "kind_open": Sentence(
            "Not certain whether solid, part-solid or ground-glass ({words}).", needed=("words",), fixed=True
        ),
        "features": Sentence("{features}."),
        "touches_pleura": Sentence("It touches the pleura."),
        "apart_from_pleura": Sentence("It does not touch the pleura."),
        "probability": Sentence(f"{SUSPICIOUS} ({SUSPICION}), from the image alone: {{percent:.0f}} %."),
        "probability_fused": Sentence(
            f"{SUSPICIOUS} ({SUSPICION}), from the image alone: {{percent:.0f}} %, "
            "with the clinical record: {fused:.0f} %.",
            needed=("percent",),
        ),
        "brock": Sentence("Brock model 2b, probability of cancer: {words}."),
        "quality": Sentence("Image quality: {words}."),
        "not_assessed": Sentence(
            "Not assessed by the software, to be read by the physician: airways, pleura, mediastinum, hila, "
            "heart, vessels, bones, soft tissues and upper abdomen.",
            fixed=True,
        ),
        "limitation": Sentence("Limitation: {text}", needed=("text",), fixed=True),
        "impression_none": Sentence("No nodule was marked by the software.", fixed=True),
        "impression_one": Sentence(
            "{kind}, mean diameter {mean:.1f} mm, in the {site} ({name}).",
            needed=("name",),
            fixed=True,
            more=_LESION,
        ),
        "impression_many": Sentence(
            "{name} is the largest of {count} nodules: {kind}, mean diameter {mean:.1f} mm, in the {site}.",
            needed=("count", "name"),
            fixed=True,
            more=_LESION,
        ),
        "lung_rads": Sentence("Lung-RADS v{version}: category {category}.", needed=("category",), fixed=True),
        "recommendation": Sentence("Recommendation by the guideline: {text}", needed=("text",)),
        "guideline_open": Sentence("{text}", needed=("text",), fixed=True),
        "fleischner": Sentence("Fleischner Society 2017: {text}.", needed=("text",), fixed=True),
        "no_guideline": Sentence("No guideline was applied."),
        "not_analysed": Sentence(
            "The series was not analysed ({code}): {sentence}", needed=("sentence",), fixed=True
        ),
        "no_statement": Sentence("No statement is made on the presence or absence of nodules.", fixed=True),
        "impression_not_analysed": Sentence(
            "Not analysed by the software: the examination has to be read without it.", fixed=True
        ),
    }
)
"""By key, in the order in which they are said."""

_NUMBERS = frozenset(
    {
        *("slices", "spacing", "rows", "columns", "pixel", "thickness", "count", "number", "long", "short"),
        *("mean", "greatest", "volume", "hu", "slice", "certainty", "solid", "percent", "fused"),
    }
)

WORDS = (
    *("solid", "part-solid", "ground-glass", "nodule", "mass"),
    *("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe"),
    *("upper lobe", "lower lobe", "right lung", "left lung", "lung"),
    *("margin well defined", "margin partly defined", "margin ill defined"),
    *("spiculated", "slightly spiculated", "not spiculated"),
    *("lobulated", "slightly lobulated", "not lobulated"),
    *("not calcified", "popcorn calcification", "laminated calcification", "solid calcification"),
    *("non-central calcification", "central calcification"),
    *("motion blur", "beam hardening", "other artifact"),
)
"""What is put into the sentences."""


class TemplateError(ValueError):
    """A template can't be used; says all that is wrong with it."""


@dataclass(frozen=True, slots=True)
class Template:
    """The sentences of a narrative.

    Parameters
    ----------
    name
        What the site calls it.
    language
        RFC 5646 tag as a code.
    sections
        Of `SECTIONS`, in the order of the report; findings and impression among them.
    headings, sentences
        Those that differ from the built-in ones. An empty sentence is left out of the report.
    words
        Translations of `WORDS`; what is missing stays English.

    Raises
    ------
    TemplateError
        With everything that is wrong.
    """

    name: str = "built in"
    language: Code = ENGLISH_CODE
    sections: tuple[str, ...] = SECTIONS
    headings: Mapping[str, str] = field(default_factory=dict)
    sentences: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = [
            *_wrong_texts("template", {"name": self.name, "language": self.language.value}),
            *_wrong_sections(self.sections),
            *_wrong_table("headings", self.headings, HEADINGS),
            *_wrong_table("sentences", self.sentences, SENTENCES),
            *_wrong_table("words", self.words, dict.fromkeys(WORDS)),
            *(p for key, text in self.sentences.items() if key in SENTENCES for p in _problems(key, text)),
        ]
        if wrong:
            raise TemplateError("; ".join(wrong))

    @property
    def digest(self) -> str:
        """Changes with everything in it."""
        tables = [sorted(table.items()) for table in (self.headings, self.sentences, self.words)]
        parts = [self.name, self.language.value, self.sections, *tables]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def heading(self, section: str) -> str:
        """Of a section."""
        return self.headings.get(section, HEADINGS[section])

    def word(self, english: str) -> str:
        """A word of `WORDS`."""
        return self.words.get(english, english)

    def say(self, key: str, **values: object) -> str:
        """The sentence of this key with its values; empty where the template leaves it out."""
        return self.sentences.get(key, SENTENCES[key].text).format(**values)


def _wrong_sections(sections: tuple[str, ...]) -> Iterator[str]:
    for name in dict.fromkeys(sections):
        if name not in SECTIONS:
            yield f"sections: {name!r} is none of {', '.join(SECTIONS)}"
        elif sections.count(name) > 1:
            yield f"sections: {name} stands there twice"
    yield from (f"sections: {name} can't be left out" for name in _NEVER_LEFT_OUT if name not in sections)


def _wrong_table(title: str, table: Mapping[str, str], known: Mapping[str, object]) -> Iterator[str]:
    yield from (f"{title}.{key} is unknown" for key in table if key not in known)
    yield from _wrong_texts(title, table)


def _wrong_texts(title: str, table: Mapping[str, object]) -> Iterator[str]:
    for key, text in table.items():
        if not isinstance(text, str):
            yield f"{title}.{key} is no text"
        elif len(text) > _LONGEST:
            yield f"{title}.{key} is longer than {_LONGEST} characters"
        elif not text.isprintable():
            yield f"{title}.{key} has a line break or another control character"
        elif not text and title != "sentences":
            yield f"{title}.{key} is empty"


def _problems(key: str, text: object) -> Iterator[str]:
    """What is wrong with a site's own sentence."""
    known = SENTENCES[key]
    if not isinstance(text, str):
        return
    if not text:
        if known.fixed:
            yield f"sentences.{key} can't be left out"
        return
    try:
        fields = [part[1:] for part in Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        yield f"sentences.{key}: {error}"
        return
    allowed = {name for _, name, _, _ in Formatter().parse(known.text) if name} | set(known.more)
    for name, spec, conversion in fields:
        if name not in allowed:
            names = ", ".join(f"{{{one}}}" for one in sorted(allowed)) or "none"
            yield f"sentences.{key} has no {{{name}}}; known: {names}"
        elif conversion or not _FORMAT.fullmatch(spec or "") or (spec and name not in _NUMBERS):
            yield f"sentences.{key}: write {{{name}}}" + (f" or {{{name}:.1f}}" if name in _NUMBERS else "")
    used = {name for name, _, _ in fields}
    yield from (f"sentences.{key} needs {{{name}}}" for name in known.needed if name not in used)


BUILT_IN = Template()


def read_template(path: Path) -> Template:
    """Read a site's template from a TOML file.

    ::

        [template]
        name = "St. Example"
        language = "en-US"
        language_name = "English (United States)"
        sections = ["technique", "findings", "impression"]

        [headings]
        findings = "Findings"

        [sentences]
        read_by = ""                    # left out

        [words]
        "ground-glass" = "pure ground-glass"

    Everything is optional.

    Raises
    ------
    TemplateError
        The file can't be read, or its content doesn't fit.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise TemplateError(f"{path.name} is larger than {_LARGEST_BYTES >> 10} KiB")
        table = tomllib.loads(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise TemplateError(f"{path.name} can't be read: {error}") from error
    return _template(table)


def _template(table: Mapping[str, Any]) -> Template:
    tables = ("template", "headings", "sentences", "words")
    wrong = [f"[{name}] is unknown; known: {', '.join(tables)}" for name in table if name not in tables]
    wrong += [f"[{name}] is no table" for name in tables if not isinstance(table.get(name, {}), dict)]
    if wrong:
        raise TemplateError("; ".join(wrong))
    head: dict[str, Any] = {"name": "of the site", "language": ENGLISH_CODE.value, "sections": list(SECTIONS)}
    head |= table.get("template", {})
    sections, tag = head["sections"], head["language"]
    if unknown := head.keys() - {"name", "language", "language_name", "sections"}:
        raise TemplateError("; ".join(f"template.{name} is unknown" for name in sorted(unknown)))
    if not (isinstance(sections, list) and all(isinstance(one, str) for one in sections)):
        raise TemplateError("template.sections is no list of names")
    meaning = head.get("language_name", ENGLISH_CODE.meaning if tag == ENGLISH_CODE.value else "")
    if wrong := [*_wrong_texts("template", {"language": tag, "language_name": meaning})]:
        raise TemplateError("; ".join(wrong))
    return Template(
        head["name"],
        Code(tag, "RFC5646", meaning),
        tuple(sections),
        table.get("headings", {}),
        table.get("sentences", {}),
        table.get("words", {}),
    )


def as_toml(template: Template = BUILT_IN) -> str:
    """A template as a file that a site can edit: everything that may be changed, as it is now."""
    lines = [
        "[template]",
        f"name = {_quoted(template.name)}",
        f"language = {_quoted(template.language.value)}",
    ]
    lines += [f"language_name = {_quoted(template.language.meaning)}"]
    lines += [f"sections = [{', '.join(map(_quoted, template.sections))}]", "", "[headings]"]
    lines += [f"{name} = {_quoted(template.heading(name))}" for name in SECTIONS]
    lines += ["", "[sentences]"]
    for key, known in SENTENCES.items():
        names = {name for _, name, _, _ in Formatter().parse(known.text) if name} | set(known.more)
        notes = [f"# {', '.join(sorted(names))}"] if names else []
        notes += ["# can't be left out"] if known.fixed else []
        lines += [*notes, f"{key} = {_quoted(template.sentences.get(key, known.text))}"]
    lines += ["", "[words]", *(f"{_quoted(word)} = {_quoted(template.word(word))}" for word in WORDS)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML; the texts have no control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
