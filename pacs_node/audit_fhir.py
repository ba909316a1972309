"""Audit messages as FHIR R4 AuditEvent resources (hl7.org/fhir/R4/auditevent.html)."""

from __future__ import annotations

import base64
from datetime import UTC
from typing import Any

from inference.uids import derived_uid
from pacs_node.audit_message import DCM, OWN, RFC_3881, ActiveParticipant, Coded, Message, ParticipantObject
from pacs_node.audit_xml import is_ip_address

_SYSTEMS = {
    DCM: "http://dicom.nema.org/resources/ontology/DCM",
    RFC_3881: "http://terminology.hl7.org/CodeSystem/audit-entity-type",
    # the UID of our coding scheme (RFC 3061)
    OWN: f"urn:oid:{derived_uid('coding scheme', OWN)}",
}
_OBJECT_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_OBJECT_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_LIFE_CYCLE = "http://terminology.hl7.org/CodeSystem/dicom-audit-lifecycle"
_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"


def to_fhir(message: Message) -> dict[str, Any]:
    """Say a message as an AuditEvent, ready for `json.dumps`."""
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "type": _coding(message.event_id),
        "subtype": [_coding(kind) for kind in message.event_types],
        "action": message.action,
        "recorded": message.at.astimezone(UTC).isoformat(timespec="milliseconds"),
        "outcome": str(message.outcome),
        "agent": [_agent(participant) for participant in message.participants],
        "source": {
            "observer": {"display": message.origin.source_id},
            "type": [{"system": _SOURCE_TYPE, "code": "4", "display": "Application Server"}],
        },
        "entity": [_entity(item) for item in message.objects],
    }
    if message.origin.site:
        resource["source"]["site"] = message.origin.site
    if message.outcome_description:
        resource["outcomeDesc"] = message.outcome_description
    return resource


def _coding(value: Coded) -> dict[str, str]:
    return {"system": _SYSTEMS[value.system], "code": value.code, "display": value.meaning}


def _agent(participant: ActiveParticipant) -> dict[str, Any]:
    agent: dict[str, Any] = {
        "who": {"identifier": {"value": participant.user_id}},
        "requestor": participant.is_requestor,
    }
    if participant.role is not None:
        agent["type"] = {"coding": [_coding(participant.role)]}
    if participant.alternative_id:
        agent["altId"] = participant.alternative_id
    if participant.address:
        kind = "2" if is_ip_address(participant.address) else "1"
        agent["network"] = {"address": participant.address, "type": kind}
    return agent


def _entity(item: ParticipantObject) -> dict[str, Any]:
    entity: dict[str, Any] = {
        "what": {"identifier": {"value": item.object_id}},
        "type": {"system": _OBJECT_TYPE, "code": item.type_code},
        "role": {"system": _OBJECT_ROLE, "code": item.role},
    }
    if item.life_cycle:
        entity["lifecycle"] = {"system": _LIFE_CYCLE, "code": item.life_cycle}
    # R4, sev-1: a name or a query, not both
    if item.query is not None:
        entity["query"] = base64.b64encode(item.query).decode("ascii")
    elif item.name:
        entity["name"] = item.name
    details = [*item.details]
    if item.accession_number:
        details.append(("accession-number", item.accession_number))
    if details:
        entity["detail"] = [{"type": kind, "valueString": value} for kind, value in details if value]
    return entity
