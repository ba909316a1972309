"""The record as DICOM audit messages, FHIR resources, CSV and JSON Lines."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from sqlalchemy import func, select, update

from pacs_node import audit, audit_chain, audit_list
from pacs_node.audit_export import COLUMNS, FORMATS, Selection
from pacs_node.audit_message import Origin
from pacs_node.db import AuditEvent, Database, Study
from pacs_node.states import DeliveryState
from tests.node_story import START, Story

ORIGIN = Origin("CTNODE", "node.example", "Ward 1")
SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parents[2] / "conformance" / "audit_message.rng"))
HOSTILE = "<a>\x00\x1b\u202e\r\n&\"'=1+1"


@pytest.fixture
def told(story: Story) -> Story:
    """A study that came, was analysed and went, and somebody who was refused."""
    story.receive(3).close().queue().start().finish()
    story.deliver(DeliveryState.COMMITTED)
    story.refuse_association(HOSTILE, "10.0.0.9")
    return story


def export(database: Database, form: str, selection: Selection | None = None) -> list[str]:
    with database.read() as session:
        newest = session.scalar(select(func.max(AuditEvent.seq))) or 0
    found = audit_list.export(database, selection or Selection(), form, ORIGIN, newest)
    return [line.removesuffix("\n") for line in found]


def every_event(database: Database) -> Iterator[audit.Event]:
    """One row of each kind of event there is."""
    for event in audit.Event:
        with database.write() as session:
            audit.record(
                session,
                event,
                at=START,
                actor="test",
                study_uid="1.2.3",
                outcome=audit.Outcome.MINOR_FAILURE,
                reason=HOSTILE,
                calling_ae=HOSTILE,
                destination=HOSTILE,
                n_instances=3,
                nested={"list": [1, HOSTILE]},
            )
        yield event


def test_every_event_is_a_valid_message(database: Database, told: Story) -> None:
    count = len(list(every_event(database)))
    written = export(database, "dicom")
    assert len(written) > count
    for line in written:
        assert "\n" not in line
        assert SCHEMA.validate(etree.fromstring(line.encode())), SCHEMA.error_log


def test_the_schema_notices_what_is_wrong(database: Database, told: Story) -> None:
    message = export(database, "dicom")[0]
    for right, wrong in (("EventActionCode", "Action"), ('="0"', '="3"'), ("originalText", "displayName")):
        assert right in message
        assert not SCHEMA.validate(etree.fromstring(message.replace(right, wrong).encode()))


def of(database: Database, event: str, form: str = "dicom") -> Any:
    text = export(database, form, Selection(event=event))[-1]
    return etree.fromstring(text.encode()) if form == "dicom" else json.loads(text)


def participants(message: Any) -> list[tuple[str, str, str]]:
    """Who, whether it asked, and in which role."""
    found = []
    for element in message.findall("ActiveParticipant"):
        role = element.find("RoleIDCode")
        found.append(
            (
                element.get("UserID"),
                element.get("UserIsRequestor"),
                "" if role is None else role.get("csd-code"),
            )
        )
    return found


def test_received_objects_name_sender_study_and_patient(database: Database, told: Story) -> None:
    message = of(database, "series arrived")
    assert message.find("EventIdentification/EventID").get("csd-code") == "110104"
    assert message.find("EventIdentification").get("EventActionCode") == "C"
    assert participants(message) == [("PACS", "true", "110153"), ("listener", "false", "110152")]
    study, patient = message.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == told.study_uid
    assert study.find("ParticipantObjectIDTypeCode").get("csd-code") == "110180"
    assert study.find("ParticipantObjectDescription/Accession").get("Number") == "ACC-1"
    assert (patient.get("ParticipantObjectID"), patient.get("ParticipantObjectTypeCodeRole")) == (
        "PID-1",
        "1",
    )


def test_sent_objects_name_the_destination(database: Database, told: Story) -> None:
    message = of(database, "delivery")
    assert message.find("EventIdentification").get("EventActionCode") == "R"
    (source, _, source_role), (destination, asked, destination_role) = participants(message)
    assert (source, source_role) == ("delivery", "110153")
    assert (destination, asked, destination_role) == ("pacs", "false", "110152")


def test_refused_association_is_an_alert(database: Database, told: Story) -> None:
    message = of(database, "association refused")
    assert message.find("EventIdentification/EventID").get("csd-code") == "110113"
    assert message.find("EventIdentification/EventTypeCode").get("csd-code") == "110126"
    assert message.find("EventIdentification").get("EventOutcomeIndicator") == "4"
    performing = message.findall("ActiveParticipant")[1]
    assert performing.get("UserID") == "<a>[U+0000][U+001B][U+202E]\r\n&\"'=1+1"
    assert performing.get("NetworkAccessPointID") == "10.0.0.9"
    assert performing.get("NetworkAccessPointTypeCode") == "2"


def test_every_value_of_a_row_is_a_detail(database: Database, told: Story) -> None:
    message = of(database, "job created")
    details = {
        element.get("type"): base64.b64decode(element.get("value")).decode()
        for element in message.iter("ParticipantObjectDetail")
    }
    with database.read() as session:
        row = session.query(AuditEvent).filter_by(event="job created").one()
    assert set(details) == set(row.objects) | {"audit-seq", "audit-sha256"}
    assert details["audit-sha256"] == row.hash
    assert details["pipeline_version"] == row.objects["pipeline_version"]


def test_fhir_says_the_same(database: Database, told: Story) -> None:
    resource = of(database, "series arrived", "fhir")
    assert (resource["resourceType"], resource["action"], resource["outcome"]) == ("AuditEvent", "C", "0")
    assert resource["type"]["code"] == "110104"
    assert [agent["requestor"] for agent in resource["agent"]] == [True, False]
    assert resource["source"]["observer"]["display"] == "node.example"
    assert [item["what"]["identifier"]["value"] for item in resource["entity"]] == [told.study_uid, "PID-1"]


def test_an_erased_patient_leaves_the_rest(database: Database, told: Story) -> None:
    with database.write() as session:
        bad = audit_chain.first_bad_row(session)
        session.execute(update(Study).values(study_uid="erased", patient_id="erased"))
    assert bad is None
    message = of(database, "series arrived")
    assert len(message.findall("ParticipantObjectIdentification")) == 1
    with database.read() as session:
        assert audit_chain.first_bad_row(session) is None
    assert "PID-1" not in "".join(line for form in FORMATS for line in export(database, form))


def test_csv_is_read_back_and_holds_no_formula(database: Database, told: Story) -> None:
    with database.write() as session:
        audit.record(session, audit.Event.JOB_CHANGED, at=START, actor="=cmd()", study_uid=None)
    rows = list(csv.DictReader(export(database, "csv")))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["seq"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert rows[-1]["actor"] == "'=cmd()"
    assert json.loads(rows[0]["objects"])["modality"] == "CT"


def test_json_lines_hold_what_the_hash_was_made_of(database: Database, told: Story) -> None:
    for line in export(database, "jsonl"):
        values = json.loads(line)
        stored = set(COLUMNS) - {"patient_id", "accession_number", "at"}
        row = AuditEvent(**{key: values[key] for key in stored})
        row.at = datetime.fromisoformat(values["at"])
        assert audit.row_hash(row) == values["hash"]


@pytest.mark.parametrize(
    ("selection", "events"),
    [
        (Selection(event="job created"), {"job created"}),
        (Selection(actor="delivery"), {"delivery"}),
        (Selection(study_uid="1.2.3"), set()),
        (Selection(until=START), set()),
    ],
)
def test_selection(database: Database, told: Story, selection: Selection, events: set[str]) -> None:
    found = {json.loads(line)["event"] for line in export(database, "jsonl", selection)}
    assert found == events


def test_nothing_is_lost_between_pieces(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pacs_node.audit_export._PIECE", 3)
    monkeypatch.setattr(audit_list, "_PIECE", 4)
    with database.write() as session:
        for _ in range(10):
            audit.record(session, audit.Event.JOB_CHANGED, at=START, actor="test")
    assert [json.loads(line)["seq"] for line in export(database, "jsonl")] == list(range(1, 11))
    assert [json.loads(line)["seq"] for line in export(database, "jsonl", Selection(after_seq=8))] == [9, 10]
