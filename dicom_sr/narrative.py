"""A draft of the report in the style of a radiologist's: findings and impression.

Made of the structured result alone, the dictionary of ``result.json``: every sentence is one of a
`dicom_sr.template`, chosen by rule and filled with values of the result. Nothing is generated freely, and
what the result doesn't say isn't said. A draft for the physician who reads the study: research use only, not
for primary diagnosis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.sr.coding import Code

from dicom_sr.template import BUILT_IN, Template
from dicom_sr.wording import NOT_REVIEWED, RESEARCH_USE
from inference.certainty import CERTAIN, Percent

DRAFT = f"Draft made by software. {NOT_REVIEWED} {RESEARCH_USE}"
"""Said with every narrative, in these words: no template changes it."""
_MASS_MM = 30.0
_ITEM = re.compile(r"(?:^|(?<=, ))\w+(?= \()")
"""Name of an item of the record in ``record_items_used``."""
_DENIED = 0.7
"""From this probability on spicules or lobes are denied in words (docs/evaluation.md)."""
_GRADES = ("not {}", "not {}", "slightly {}", "{}", "{}")
_DENIALS = frozenset({"not spiculated", "not lobulated"})
_MARGIN = ("ill defined", "ill defined", "partly defined", "well defined", "well defined")
_CALCIFICATION = (
    *("popcorn calcification", "laminated calcification", "solid calcification"),
    *("non-central calcification", "central calcification", "not calcified"),
)
_WORDS_OF_FEATURES: Mapping[str, Sequence[str]] = {
    "margin": [f"margin {words}" for words in _MARGIN],
    "spiculation": [words.format("spiculated") for words in _GRADES],
    "lobular_pattern": [words.format("lobulated") for words in _GRADES],
    "calcification": _CALCIFICATION,
}
_QUALITY = {
    "motion_blur": "motion blur",
    "beam_hardening": "beam hardening",
    "other_artifact": "other artifact",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report under its heading.

    Parameters
    ----------
    name
        Of `dicom_sr.template.SECTIONS`.
    """

    name: str
    heading: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Narrative:
    """The draft of a report.

    Parameters
    ----------
    language, template
        Of the template and its name.
    sections
        In the order of the report; those with nothing to say are left out.
    site_notice
        What the site says beside `DRAFT`, such as the same in its language.
    """

    language: Code
    template: str
    sections: tuple[Section, ...]
    site_notice: str = ""

    @property
    def notices(self) -> tuple[str, ...]:
        """That it is a draft, first in the words of `DRAFT`."""
        return (DRAFT, self.site_notice) if self.site_notice else (DRAFT,)

    @property
    def text(self) -> str:
        """The whole draft as plain text."""
        parts = [f"{part.heading}\n" + "\n".join(part.paragraphs) for part in self.sections]
        return "\n\n".join([*self.notices, *parts, DRAFT]) + "\n"

    def describe(self) -> dict[str, Any]:
        """As it stands in ``result.json``."""
        return {
            "notice": " ".join(self.notices),
            "language": self.language.value,
            "template": self.template,
            "sections": [
                {"name": part.name, "heading": part.heading, "paragraphs": list(part.paragraphs)}
                for part in self.sections
            ],
        }


def compose(summary: Mapping[str, Any], template: Template = BUILT_IN) -> Narrative:
    """Write the draft of a result.

    Parameters
    ----------
    summary
        From `dicom_sr.summary.result_json` or `not_analysed_json`. What a comparison with an earlier
        examination says comes in words: ``comparison.sentences`` and ``comparison.impression``, and for a
        finding ``comparison.sentence``.

    Returns
    -------
    Narrative
        The same result and template always give the same one.
    """
    analysed = summary["status"] == "analysed"
    makers: dict[str, Callable[[Mapping[str, Any], Template], Iterator[str]]] = {
        "clinical": _clinical,
        "technique": _technique,
        "comparison": _comparison,
        "findings": _findings if analysed else _not_analysed,
        "impression": _impression if analysed else _nothing_read,
    }
    sections = []
    for name in template.sections:
        if not analysed and name in {"clinical", "comparison"}:
            continue
        paragraphs = tuple(_printable(text) for text in makers[name](summary, template) if text.strip())
        if paragraphs:
            sections.append(Section(name, template.heading(name), paragraphs))
    return Narrative(template.language, template.name, tuple(sections), template.say("notice"))


def _clinical(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    if (words := _said(summary, "screening")) is not None:
        yield template.say("screening", words=words.removesuffix("."))
    items = _said(summary, "record_items_used")
    if items is None:
        yield template.say("record_none")
    else:
        items = _ITEM.sub(lambda item: item[0].replace("_", " "), items)
        yield template.say("record_used", items=items)


def _technique(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    provenance = summary["provenance"]
    made = template.say("read_by", algorithm=provenance["algorithm"], pipeline=provenance["pipeline_version"])
    series = summary["series"]["analysed"]
    if series is None:
        yield made
        return
    slices, rows, columns = series["shape"]
    spacing, pixel, _ = series["spacing_mm"]
    parts = [
        template.say(
            "technique",
            slices=slices,
            rows=rows,
            columns=columns,
            spacing=spacing,
            pixel=pixel,
            scanner=series["scanner"],
        )
    ]
    if series["slice_thickness_mm"] is not None:
        parts.append(template.say("thickness", thickness=series["slice_thickness_mm"]))
    if series["kernel"]:
        parts.append(template.say("kernel", kernel=series["kernel"]))
    yield _joined([*parts, made])


def _comparison(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    said = (summary.get("comparison") or {}).get("sentences") or ()
    yield from (template.say("comparison", text=text) for text in said)
    if not said:
        yield template.say("comparison_none")


def _findings(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    findings, slices = summary["findings"], summary["series"]["analysed"]["shape"][0]
    if not findings:
        yield _joined([template.say("nodules_none"), template.say("not_excluded")])
    elif len(findings) == 1:
        yield template.say("nodules_one")
    else:
        yield template.say("nodules_many", count=len(findings))
    yield from (_nodule(finding, slices, summary, template) for finding in findings)
    artifacts = [words for name, words in _QUALITY.items() if _said(summary, name) == "present"]
    if artifacts:
        yield template.say("quality", words=", ".join(map(template.word, artifacts)))
    yield template.say("not_assessed")
    yield from (template.say("limitation", text=warning) for warning in summary["warnings"])


def _nodule(finding: Mapping[str, Any], slices: int, summary: Mapping[str, Any], template: Template) -> str:
    parts = [
        template.say(
            "nodule",
            **_lesion(finding, template),
            slice=finding["key_slice"]["index"] + 1,
            slices=slices,
            certainty=Percent(finding["detection_probability"]),
        )
    ]
    doubt = finding.get("attenuation_doubt")
    if doubt:
        parts.append(template.say("kind_open", words=doubt["words"]))
    elif not finding["attenuation"]:
        parts.append(template.say("kind_unknown"))
    numbers = {row["name"]: row["value"] for row in finding["descriptors"]}
    solid = numbers.get("solid part, mean diameter")
    if solid is not None and "part-solid" in (finding["attenuation"], *_options(doubt)):
        parts.append(template.say("solid_part", solid=round(solid, 1)))
    if features := [*_features(finding, template)]:
        parts.append(_capital(template.say("features", features=", ".join(features))))
    if (attached := numbers.get("pleural attachment")) is not None:
        parts.append(template.say("touches_pleura" if attached >= CERTAIN else "apart_from_pleura"))
    if (malignancy := finding["malignancy"]) is not None:
        percent, fused = Percent(malignancy["image_only"]), malignancy["fused"]
        parts.append(
            template.say("probability", percent=percent)
            if fused is None
            else template.say("probability_fused", percent=percent, fused=Percent(fused))
        )
    if (words := _said(summary, f"brock_2b_of_{finding['tracking_id']}")) is not None:
        parts.append(template.say("brock", words=words.removesuffix(".")))
    parts.append((finding.get("comparison") or {}).get("sentence") or "")
    return _joined(parts)


def _options(doubt: Mapping[str, Any] | None) -> tuple[str, ...]:
    return () if doubt is None else (doubt["read"], doubt["measured"])


def _lesion(finding: Mapping[str, Any], template: Template) -> dict[str, Any]:
    m = finding["measurements"]
    what = template.word("mass" if m["long_axis_mm"] > _MASS_MM else "nodule")
    kind = finding["attenuation"]
    return {
        "number": finding["number"],
        "name": finding["tracking_id"],
        "kind": f"{template.word(kind)} {what}" if kind else what,
        "site": template.word(finding["site"]["words"]),
        "long": round(m["long_axis_mm"], 1),
        "short": round(m["short_axis_mm"], 1),
        "mean": round(m["mean_diameter_mm"], 1),
        "greatest": round(m["max_3d_diameter_mm"], 1),
        "volume": round(m["volume_mm3"], 1),
        "hu": round(m["mean_hu"], 1),
    }


def _features(finding: Mapping[str, Any], template: Template) -> Iterator[str]:
    """Margin, spicules, lobes and calcification, where the model is more sure than not."""
    rated = {row["name"]: row["value"] for row in finding["features"] if row["probability"] >= CERTAIN}
    sure = {row["name"] for row in finding["features"] if row["probability"] >= _DENIED}
    for name, words in _WORDS_OF_FEATURES.items():
        if name in rated and 1 <= rated[name] <= len(words):
            said = words[rated[name] - 1]
            if name in sure or said not in _DENIALS:
                yield template.word(said)


def _impression(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    lines = [
        _outcome(summary["findings"], template),
        *((summary.get("comparison") or {}).get("impression") or ()),
        *_by_guidelines(summary, template),
    ]
    lines = [line for line in lines if line.strip()]
    yield from (f"{number}. {line}" for number, line in enumerate(lines, 1))


def _outcome(findings: Sequence[Mapping[str, Any]], template: Template) -> str:
    if not findings:
        return _joined([template.say("impression_none"), template.say("not_excluded")])
    largest = max(findings, key=lambda finding: float(finding["measurements"]["mean_diameter_mm"]))
    lesion = _lesion(largest, template)
    if len(findings) == 1:
        return _capital(template.say("impression_one", **lesion))
    return _capital(template.say("impression_many", count=len(findings), **lesion))


def _by_guidelines(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    """The category with what the guideline recommends, or why there is none."""
    categories = _all(summary, "lung_rads")
    fleischner = _all(summary, "fleischner_2017")
    if categories:
        version = _said(summary, "lung_rads_version") or "2022"
        parts = [template.say("lung_rads", version=version, category=", ".join(categories))]
        if (management := _said(summary, "lung_rads_management")) is not None:
            parts.append(template.say("recommendation", text=management))
        yield _joined(parts)
    # where the other guideline holds, that this one doesn't is no news
    elif (reason := _said(summary, "lung_rads_undetermined")) is not None and not fleischner:
        would = _said(summary, "lung_rads_if")
        version = _said(summary, "lung_rads_version") or "2022"
        text = reason if would is None else f"Lung-RADS v{version} is not determined. {would}"
        yield template.say("guideline_open", text=text)
    elif not fleischner:
        yield template.say("no_guideline")
    yield from (template.say("fleischner", text=_full_stop_off(text)) for text in fleischner)


def _not_analysed(summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    reason = summary["reason"]
    yield template.say("not_analysed", code=reason["code"], sentence=reason["sentence"])
    yield template.say("no_statement")
    yield from (template.say("limitation", text=warning) for warning in summary["warnings"])


def _nothing_read(_summary: Mapping[str, Any], template: Template) -> Iterator[str]:
    yield template.say("impression_not_analysed")


def _said(summary: Mapping[str, Any], name: str) -> str | None:
    return next(iter(_all(summary, name)), None)


def _all(summary: Mapping[str, Any], name: str) -> list[str]:
    return [str(row["value"]) for row in summary["observations"] if row["name"] == name]


def _joined(parts: Sequence[str]) -> str:
    return " ".join(part for part in parts if part)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _full_stop_off(text: str) -> str:
    return text.removesuffix(".")


def _printable(text: str) -> str:
    """One line: a header's texts may hold anything."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
