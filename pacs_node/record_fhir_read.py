"""What FHIR R4 resources tell of a patient: read without trusting them.

A resource is a JSON object that a stranger wrote. An element that isn't what R4 says it is counts as absent,
so one odd element doesn't cost the rest. ``fhir.resources`` refuses a whole resource for that, has R5, R4B
and STU3 but not R4, and is 27 MB for the five resources that are read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from inference.record import Sex
from inference.record_person import Person
from pacs_node.record_codes import (
    Coding,
    is_cancer_elsewhere,
    is_emphysema,
    is_first_degree,
    is_lung_cancer,
)
from pacs_node.record_facts import CANCER, Answer, Fact, Told, day_of, observed

Resource = Mapping[str, Any]

_LONGEST = 400
_SETTLED = frozenset(("final", "amended", "corrected"))
_BIRTH = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


def elements(resource: Resource, name: str) -> list[Resource]:
    """Objects of a list element; empty where it is something else."""
    found = resource.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def element(resource: Resource, name: str) -> Resource:
    """An object element; empty where it is something else."""
    found = resource.get(name)
    return found if isinstance(found, dict) else {}


def word(resource: Resource, name: str) -> str:
    """A text element; "" where it is something else, or longer than any code or address."""
    found = resource.get(name)
    return found if isinstance(found, str) and len(found) <= _LONGEST else ""


def codings(concept: Resource) -> tuple[Coding, ...]:
    """The codes of a CodeableConcept."""
    return tuple(Coding.of(word(one, "system"), word(one, "code")) for one in elements(concept, "coding"))


def person_of(patient: Resource, patient_id: str) -> Person:
    """Whom a Patient resource is of, under the ID by which it was found."""
    born = word(patient, "birthDate")
    sex = {"female": Sex.FEMALE, "male": Sex.MALE}.get(word(patient, "gender"))
    return Person(patient_id, born.replace("-", "") if _BIRTH.fullmatch(born) else "", sex)


def has_identifier(patient: Resource, system: str, value: str) -> bool:
    """Whether a Patient has an identifier that isn't an old one: a server may ignore what it was asked."""
    return any(
        word(one, "system") == system and word(one, "value") == value and word(one, "use") != "old"
        for one in elements(patient, "identifier")
    )


def is_replaced(patient: Resource) -> bool:
    """Whether another Patient has taken its place (after a merge), or it isn't in use."""
    return patient.get("active") is False or any(
        word(one, "type") == "replaced-by" for one in elements(patient, "link")
    )


def subject_of(resource: Resource) -> str:
    """The reference to whom a resource is of."""
    name = "patient" if resource.get("resourceType") == "FamilyMemberHistory" else "subject"
    return word(element(resource, name), "reference")


def facts_of(resource: Resource, site: Mapping[Coding, str]) -> Iterator[Told]:
    """Yield what one resource tells.

    Parameters
    ----------
    site
        The site's own codes -> item.
    """
    match resource.get("resourceType"):
        case "Observation":
            yield from _observation(resource, site)
        case "Condition":
            yield from _condition(resource)
        case "FamilyMemberHistory":
            yield from _family(resource)
        case "DiagnosticReport":
            yield from _report(resource)


def _observation(resource: Resource, site: Mapping[Coding, str]) -> Iterator[Told]:
    if word(resource, "status") not in _SETTLED:
        return
    on = _day(resource)
    for part in (resource, *elements(resource, "component")):
        told = observed(codings(element(part, "code")), _answer(part), on, "FHIR Observation", site)
        if told is not None:
            yield told


def _answer(part: Resource) -> Answer:
    if element(part, "valueCodeableConcept"):
        concept = element(part, "valueCodeableConcept")
        return Answer(word(concept, "text"), codings=codings(concept))
    if element(part, "valueQuantity"):
        quantity = element(part, "valueQuantity")
        if word(quantity, "comparator"):
            return Answer()
        return Answer(quantity.get("value"), word(quantity, "code") or word(quantity, "unit"))
    for name in ("valueInteger", "valueString", "valueBoolean", "valueDateTime"):
        if isinstance(part.get(name), str | int | float | bool):
            return Answer(part[name])
    return Answer()


def _day(resource: Resource) -> date | None:
    period = element(resource, "effectivePeriod")
    choices = (
        word(resource, "effectiveDateTime"),
        word(resource, "effectiveInstant"),
        word(period, "end"),
        word(period, "start"),
        word(resource, "issued"),
    )
    return next((day for one in choices if (day := day_of(one)) is not None), None)


def _condition(resource: Resource) -> Iterator[Told]:
    status = {one.code for one in codings(element(resource, "verificationStatus"))}
    if status & {"entered-in-error", "unconfirmed", "provisional", "differential"}:
        return
    refuted = "refuted" in status
    what = codings(element(resource, "code"))
    period = element(resource, "onsetPeriod")
    begun = (word(resource, "onsetDateTime"), word(period, "start"), word(resource, "recordedDate"))
    on = next((day for one in begun if (day := day_of(one)) is not None), None)
    if any(map(is_emphysema, what)):
        yield Fact("emphysema", not refuted, on, "FHIR Condition")
    if any(map(is_cancer_elsewhere, what)) and not refuted:
        yield Fact(CANCER, True, on, "FHIR Condition")


def _family(resource: Resource) -> Iterator[Told]:
    if word(resource, "status") not in {"completed", "partial"}:
        return
    near = any(map(is_first_degree, codings(element(resource, "relationship"))))
    ill = any(
        is_lung_cancer(one)
        for condition in elements(resource, "condition")
        for one in codings(element(condition, "code"))
    )
    if near and ill:
        on = day_of(word(resource, "date"))
        yield Fact("family_history_lung_cancer", True, on, "FHIR FamilyMemberHistory")


def _report(resource: Resource) -> Iterator[Told]:
    if word(resource, "status") not in _SETTLED:
        return
    said = [one for concept in elements(resource, "conclusionCode") for one in codings(concept)]
    if any(map(is_emphysema, said)):
        yield Fact("emphysema", True, _day(resource), "FHIR DiagnosticReport")
