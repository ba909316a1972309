"""The draft narrative as sections of the structured report, and the way to hold them against the result.

TID 1500 is extensible (PS3.16 A): each section is a CONTAINER of the root with a heading of CID 7001, and
each paragraph a TEXT with a name of CID 7002, as in a Basic Diagnostic Imaging Report (TID 2000).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import highdicom as hd
from highdicom.sr import CodeContentItem, ContainerContentItem, ContentSequence
from highdicom.sr import RelationshipTypeValues as Relation
from pydicom import Dataset
from pydicom.sr.coding import Code

from dicom_sr import codes
from dicom_sr.narrative import DRAFT, Narrative, Section
from dicom_sr.wording import ENGLISH_CODE

NAMES = {
    "clinical": (Code("55752-0", "LN", "Clinical Information"), Code("11329-0", "LN", "History")),
    "technique": (
        Code("55111-9", "LN", "Current Procedure Descriptions"),
        Code("121065", "DCM", "Procedure Description"),
    ),
    "comparison": (
        Code("18834-2", "LN", "Previous Findings"),
        Code("121069", "DCM", "Previous Finding"),
    ),
    "findings": (Code("59776-5", "LN", "Findings"), codes.FINDING),
    "impression": (Code("19005-8", "LN", "Impressions"), Code("121073", "DCM", "Impression")),
}
"""Of each section of `dicom_sr.template.SECTIONS`: its heading and the name of its paragraphs."""
_HEADINGS = frozenset(heading.value for heading, _ in NAMES.values())


def section_items(narrative: Narrative) -> list[ContainerContentItem]:
    """Content items for the root of the report; each says first that it is a draft."""
    return [_container(section, narrative) for section in narrative.sections]


def _container(section: Section, narrative: Narrative) -> ContainerContentItem:
    heading, name = NAMES[section.name]
    item = ContainerContentItem(heading, relationship_type=Relation.CONTAINS)
    item.ContentSequence = ContentSequence(
        [
            _text(codes.COMMENT, DRAFT, ENGLISH_CODE),
            *(_text(codes.COMMENT, notice, narrative.language) for notice in narrative.notices[1:]),
            *(_text(name, paragraph, narrative.language) for paragraph in section.paragraphs),
        ]
    )
    return item


def _text(name: Code, value: str, language: Code) -> Any:
    item = hd.sr.TextContentItem(name, value, Relation.CONTAINS)
    if language.value != ENGLISH_CODE.value:
        item.ContentSequence = ContentSequence(
            [CodeContentItem(codes.LANGUAGE, language, Relation.HAS_CONCEPT_MOD)]
        )
    return item


def narrative_differences(report: Dataset, narrative: Narrative | None) -> Iterator[str]:
    """What the sections of a report say otherwise than the narrative of the result, paragraph by paragraph.

    Parameters
    ----------
    report
        As it was read back.
    narrative
        Of the result; None where the report must have none.
    """
    written = {
        str(item.ConceptNameCodeSequence[0].CodeValue): item
        for item in report.ContentSequence
        if item.ValueType == "CONTAINER" and item.ConceptNameCodeSequence[0].CodeValue in _HEADINGS
    }
    sections = () if narrative is None else narrative.sections
    order = [NAMES[section.name][0].value for section in sections]
    if list(written) != order:
        yield "the draft has other sections than the result's"
        return
    for section in sections:
        heading, name = NAMES[section.name]
        expected = [(codes.COMMENT.value, comment) for comment in narrative.notices] if narrative else []
        expected += [(name.value, paragraph) for paragraph in section.paragraphs]
        said = [
            (str(item.ConceptNameCodeSequence[0].CodeValue), str(item.get("TextValue", "")))
            for item in written[heading.value].get("ContentSequence", ())
        ]
        if said != expected:
            yield f"the draft's {heading.meaning} aren't those of the result"
