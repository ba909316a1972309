"""What a row of the audit record says in the terms of a DICOM audit message (PS3.15 A.5).

The same message is written as XML (`pacs_node.audit_xml`) and as FHIR (`pacs_node.audit_fhir`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pacs_node.audit import Event

DCM = "DCM"
OWN = "99CTNODULE"
RFC_3881 = "RFC-3881"


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded value."""

    code: str
    system: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the record, with the patient that its study had when it was read.

    `patient_id` is None when the row names no study, or the study's identity was erased.
    """

    seq: int
    at: datetime
    actor: str
    event: str
    code: str
    outcome: int
    study_uid: str | None
    objects: dict[str, Any]
    previous_hash: str
    hash: str
    patient_id: str | None = None
    accession_number: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """The node that tells.

    Parameters
    ----------
    ae_title
        Of its listener.
    source_id
        Name of the machine, or what the site calls the node.
    site
        Enterprise site; empty where none is configured.
    """

    ae_title: str
    source_id: str
    site: str = ""


@dataclass(frozen=True, slots=True)
class ActiveParticipant:
    """Who acted. `address` is an IP address or a host name."""

    user_id: str
    is_requestor: bool
    role: Coded | None = None
    alternative_id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class ParticipantObject:
    """What it was about. Codes of `type_code`, `role` and `life_cycle`: PS3.15 A.5.1.2."""

    object_id: str
    id_type: Coded
    type_code: str
    role: str
    name: str = ""
    life_cycle: str = ""
    query: bytes | None = None
    details: tuple[tuple[str, str], ...] = ()
    accession_number: str = ""
    instances: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """An audit message."""

    event_id: Coded
    event_types: tuple[Coded, ...]
    action: str
    at: datetime
    outcome: int
    outcome_description: str
    participants: tuple[ActiveParticipant, ...]
    objects: tuple[ParticipantObject, ...]
    origin: Origin


_APPLICATION_ACTIVITY = Coded("110100", DCM, "Application Activity")
_EVENT_IDS = {
    "110100": _APPLICATION_ACTIVITY,
    "110101": Coded("110101", DCM, "Audit Log Used"),
    "110102": Coded("110102", DCM, "Begin Transferring DICOM Instances"),
    "110103": Coded("110103", DCM, "DICOM Instances Accessed"),
    "110104": Coded("110104", DCM, "DICOM Instances Transferred"),
    "110105": Coded("110105", DCM, "DICOM Study Deleted"),
    "110106": Coded("110106", DCM, "Export"),
    "110107": Coded("110107", DCM, "Import"),
    "110112": Coded("110112", DCM, "Query"),
    "110113": Coded("110113", DCM, "Security Alert"),
    "110114": Coded("110114", DCM, "User Authentication"),
    "110120": _APPLICATION_ACTIVITY,
    "110121": _APPLICATION_ACTIVITY,
}
_USER_SECURITY = Coded("110137", DCM, "User Security Attributes Changed")
#: of single events, before those of their code
_TYPES_OF_EVENTS = {
    Event.LOGGED_IN.value[0]: Coded("110122", DCM, "Login"),
    Event.LOGIN_REFUSED.value[0]: Coded("110122", DCM, "Login"),
    Event.LOGGED_OUT.value[0]: Coded("110123", DCM, "Logout"),
    Event.LOGIN_LOCKED.value[0]: _USER_SECURITY,
    Event.ACCOUNT_CHANGED.value[0]: _USER_SECURITY,
    Event.ACCESS_DENIED.value[0]: Coded("110132", DCM, "Use of Restricted Function"),
}
_EVENT_TYPES = {
    "110120": Coded("110120", DCM, "Application Start"),
    "110121": Coded("110121", DCM, "Application Stop"),
    "110113": Coded("110126", DCM, "Node Authentication"),
}
#: EventActionCode: create, read, update, delete, execute (PS3.15 A.5.2)
_ACTIONS = {"110103": "R", "110104": "R", "110105": "D", "110106": "R", "110101": "R"}
_ACTIONS_OF_EVENTS = {Event.OPERATOR_ACTED.value[0]: "U", Event.VERDICT_GIVEN.value[0]: "C"}
#: of these a person at the page is the one who acts
_OF_PEOPLE = {
    event.value[0]
    for event in (
        Event.LOGGED_IN,
        Event.LOGGED_OUT,
        Event.LOGIN_REFUSED,
        Event.LOGIN_LOCKED,
        Event.ACCESS_DENIED,
        Event.ACCOUNT_CHANGED,
        Event.STUDIES_LISTED,
        Event.STUDY_VIEWED,
        Event.RESULT_VIEWED,
        Event.OPERATOR_ACTED,
        Event.VERDICT_GIVEN,
        Event.VERDICTS_EXPORTED,
        Event.AUDIT_READ,
        Event.AUDIT_EXPORTED,
        Event.AUDIT_CHECKED,
    )
}
#: these 110104 rows tell of objects that came here, the others of objects that went away
_RECEIVED = {
    Event.INSTANCE_REFUSED.value[0],
    Event.INSTANCE_CONFLICT.value[0],
    Event.SERIES_ARRIVED.value[0],
    Event.SERIES_CHANGED.value[0],
}

_SOURCE = Coded("110153", DCM, "Source Role ID")
_DESTINATION = Coded("110152", DCM, "Destination Role ID")
_APPLICATION = Coded("110150", DCM, "Application")

STUDY = Coded("110180", DCM, "Study Instance UID")
NODE = Coded("110182", DCM, "Node ID")
SOP_CLASS = Coded("110181", DCM, "SOP Class UID")
URI = Coded("12", RFC_3881, "URI")
PATIENT = Coded("2", RFC_3881, "Patient Number")


def message_of(entry: Entry, origin: Origin) -> Message:
    """Say a row in the terms of PS3.15 A.5.3.

    Returns
    -------
    Message
        Event types end with the row's own event name, scheme `OWN`; each value of the row is a detail of
        its study, or of the node when it names no study.
    """
    types = (*_types(entry), Coded(entry.event.replace(" ", "-"), OWN, entry.event))
    reason = entry.objects.get("reason") or entry.objects.get("reason_code")
    return Message(
        event_id=_EVENT_IDS[entry.code],
        event_types=types,
        action=_action(entry),
        at=entry.at.astimezone(UTC),
        outcome=entry.outcome,
        outcome_description=str(reason) if entry.outcome and reason else "",
        participants=_participants(entry, origin),
        objects=_objects(entry, origin),
        origin=origin,
    )


def _types(entry: Entry) -> tuple[Coded, ...]:
    found = _TYPES_OF_EVENTS.get(entry.event) or _EVENT_TYPES.get(entry.code)
    return () if found is None else (found,)


def _action(entry: Entry) -> str:
    if entry.event in _RECEIVED:
        return "C"
    return _ACTIONS_OF_EVENTS.get(entry.event) or _ACTIONS.get(entry.code, "E")


def _participants(entry: Entry, origin: Origin) -> tuple[ActiveParticipant, ...]:
    if entry.event in _OF_PEOPLE:
        return _using(entry, origin)
    return _PARTICIPANTS.get(entry.code, _accessing)(entry, origin)


def _using(entry: Entry, origin: Origin) -> tuple[ActiveParticipant, ...]:
    """A person with the address of the browser, and the page that they asked."""
    # the node is where a query goes to, and what it was asked of (PS3.15 A.5.3.10)
    asks, asked = (_SOURCE, _DESTINATION) if entry.code == "110112" else (None, None)
    person = ActiveParticipant(entry.actor, True, asks, "", str(entry.objects.get("address") or ""))
    page = ActiveParticipant("web", False, asked, f"AETITLES={origin.ae_title}", origin.source_id)
    return (person, page)


def _process(entry: Entry, origin: Origin, *, is_requestor: bool, role: Coded | None) -> ActiveParticipant:
    """The part of the node, or the person, that the row names."""
    pid = entry.objects.get("pid")
    user = f"{entry.actor}:{pid}" if pid else entry.actor
    return ActiveParticipant(user, is_requestor, role, f"AETITLES={origin.ae_title}", origin.source_id)


def _peer(entry: Entry, *, is_requestor: bool, role: Coded) -> ActiveParticipant:
    title = entry.objects.get("destination") or entry.objects.get("calling_ae") or "not known"
    address = entry.objects.get("peer_address") or entry.objects.get("address") or ""
    return ActiveParticipant(str(title), is_requestor, role, "", str(address))


def _applying(entry: Entry, origin: Origin) -> tuple[ActiveParticipant, ...]:
    return (_process(entry, origin, is_requestor=False, role=_APPLICATION),)


def _accessing(entry: Entry, origin: Origin) -> tuple[ActiveParticipant, ...]:
    return (_process(entry, origin, is_requestor=True, role=None),)


def _transferring(entry: Entry, origin: Origin) -> tuple[ActiveParticipant, ...]:
    if entry.event in _RECEIVED:
        return (
            _peer(entry, is_requestor=True, role=_SOURCE),
            _process(entry, origin, is_requestor=False, role=_DESTINATION),
        )
    return (
        _process(entry, origin, is_requestor=True, role=_SOURCE),
        _peer(entry, is_requestor=False, role=_DESTINATION),
    )


def _alarming(entry: Entry, origin: Origin) -> tuple[ActiveParticipant, ...]:
    reporting = _process(entry, origin, is_requestor=True, role=None)
    performing = _peer(entry, is_requestor=False, role=_SOURCE)
    return (reporting, performing)


_PARTICIPANTS: dict[str, Callable[[Entry, Origin], tuple[ActiveParticipant, ...]]] = {
    "110100": _applying,
    "110120": _applying,
    "110121": _applying,
    "110102": _transferring,
    "110104": _transferring,
    "110112": _transferring,
    "110113": _alarming,
}


def _objects(entry: Entry, origin: Origin) -> tuple[ParticipantObject, ...]:
    details = tuple((key, _plain(value)) for key, value in sorted(entry.objects.items()))
    chain = (("audit-seq", str(entry.seq)), ("audit-sha256", entry.hash))
    if entry.code == "110112":
        query = json.dumps(entry.objects, sort_keys=True, ensure_ascii=True).encode("ascii")
        asked = str(entry.objects.get("sop_class_uid") or "1.2.840.10008.5.1.4.1.2.2.1")
        found = ParticipantObject(asked, SOP_CLASS, "2", "24", query=query, details=chain)
        return (found, *_study(entry, ()))
    if entry.code == "110101":
        # PS3.15 A.5.3.2
        return (
            ParticipantObject("audit-record", URI, "2", "13", "Security Audit Log", details=details + chain),
        )
    if entry.study_uid is None:
        return (
            ParticipantObject(origin.source_id, NODE, "2", "13", origin.ae_title, details=details + chain),
        )
    return _study(entry, details + chain)


def _study(entry: Entry, details: tuple[tuple[str, str], ...]) -> tuple[ParticipantObject, ...]:
    if entry.study_uid is None:
        return ()
    study = ParticipantObject(
        entry.study_uid,
        STUDY,
        "2",
        "3",
        name="study",
        life_cycle="15" if entry.code == "110105" else "",
        details=details,
        accession_number=entry.accession_number or "",
        instances=_instances(entry),
    )
    if entry.patient_id is None:
        return (study,)
    return (study, ParticipantObject(entry.patient_id, PATIENT, "1", "1"))


def _instances(entry: Entry) -> tuple[tuple[str, int], ...]:
    uid = entry.objects.get("sop_instance_uid")
    count = entry.objects.get("n_instances")
    if uid:
        return ((str(uid), 1),)
    return (("", int(count)),) if isinstance(count, int) else ()


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=True)
