"""Audit messages as XML (PS3.15 A.5.1)."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, tostring

from pacs_node.audit_message import ActiveParticipant, Coded, Message, Origin, ParticipantObject

#: what XML 1.0 can't hold, not even escaped; and what acts in a terminal or turns the text around it
_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    "|[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)


def to_xml(message: Message) -> bytes:
    """Write a message.

    Returns
    -------
    bytes
        UTF-8 with its declaration, without an end of line but the one after the declaration; valid by the
        schema of PS3.15 A.5.1.1. Characters that XML can't hold, and those that act or
        turn text around, are written as ``[U+0000]``.
    """
    root = Element("AuditMessage")
    _event(root, message)
    for participant in message.participants:
        _participant(root, participant)
    _source(root, message.origin)
    for item in message.objects:
        _object(root, item)
    return bytes(tostring(root, encoding="UTF-8", xml_declaration=True))


def _safe(text: str) -> str:
    return _FORBIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def _line(text: str) -> str:
    return _safe(" ".join(text.split()))


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _add(parent: Element, name: str, **attributes: str) -> Element:
    element = SubElement(parent, name)
    for key, value in attributes.items():
        element.set(key, _safe(value))
    return element


def _coded(parent: Element, name: str, value: Coded) -> None:
    element = _add(parent, name)
    element.set("csd-code", _safe(value.code))
    element.set("codeSystemName", value.system)
    element.set("originalText", _safe(value.meaning))


def _event(root: Element, message: Message) -> None:
    event = _add(
        root,
        "EventIdentification",
        EventActionCode=message.action,
        EventDateTime=_time(message.at),
        EventOutcomeIndicator=str(message.outcome),
    )
    _coded(event, "EventID", message.event_id)
    for kind in message.event_types:
        _coded(event, "EventTypeCode", kind)
    if message.outcome_description:
        _add(event, "EventOutcomeDescription").text = _line(message.outcome_description)


def _participant(root: Element, participant: ActiveParticipant) -> None:
    element = _add(
        root,
        "ActiveParticipant",
        UserID=participant.user_id,
        UserIsRequestor=str(participant.is_requestor).lower(),
    )
    if participant.alternative_id:
        element.set("AlternativeUserID", _safe(participant.alternative_id))
    if participant.address:
        element.set("NetworkAccessPointID", _safe(participant.address))
        element.set("NetworkAccessPointTypeCode", "2" if is_ip_address(participant.address) else "1")
    if participant.role is not None:
        _coded(element, "RoleIDCode", participant.role)


def is_ip_address(text: str) -> bool:
    """Tell an IP address (NetworkAccessPointTypeCode 2) from a name (1)."""
    return bool(re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F:]*:[0-9a-fA-F:.]*", text))


def _source(root: Element, origin: Origin) -> None:
    element = _add(root, "AuditSourceIdentification", AuditSourceID=origin.source_id)
    if origin.site:
        element.set("AuditEnterpriseSiteID", _safe(origin.site))
    # an application server process, PS3.15 A.5.1.2.1
    _add(element, "AuditSourceTypeCode").set("csd-code", "4")


def _object(root: Element, item: ParticipantObject) -> None:
    element = _add(
        root,
        "ParticipantObjectIdentification",
        ParticipantObjectID=item.object_id,
        ParticipantObjectTypeCode=item.type_code,
        ParticipantObjectTypeCodeRole=item.role,
    )
    if item.life_cycle:
        element.set("ParticipantObjectDataLifeCycle", item.life_cycle)
    _coded(element, "ParticipantObjectIDTypeCode", item.id_type)
    if item.query is not None:
        _add(element, "ParticipantObjectQuery").text = base64.b64encode(item.query).decode("ascii")
    else:
        _add(element, "ParticipantObjectName").text = _line(item.name)
    for kind, value in item.details:
        encoded = base64.b64encode(value.encode("utf-8", "backslashreplace")).decode("ascii")
        _add(element, "ParticipantObjectDetail", type=kind, value=encoded)
    _description(element, item)


def _description(element: Element, item: ParticipantObject) -> None:
    if not item.accession_number and not item.instances:
        return
    description = _add(element, "ParticipantObjectDescription")
    if item.accession_number:
        _add(description, "Accession", Number=item.accession_number)
    for uid, count in item.instances:
        sop_class = _add(description, "SOPClass", NumberOfInstances=str(count))
        if uid:
            _add(sop_class, "Instance", UID=uid)
