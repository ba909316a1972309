"""Claims about services, C-MOVE and audit messages, against the running node."""

from __future__ import annotations

import re
import ssl
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation

from conformance.statement import accepted_classes, result_classes, services
from pacs_node.archive import ArchiveError
from pacs_node.association import Peer
from pacs_node.audit import Event
from pacs_node.audit_export import Selection, entries
from pacs_node.audit_message import Origin
from pacs_node.audit_syslog import client_context, frame
from pacs_node.config_listener import ListenerSettings
from pacs_node.db import Database
from pacs_node.priors_archive import Patience
from pacs_node.priors_dimse import DimsePriors
from pacs_node.priors_move import MoveReceiver, MoveSettings
from pacs_node.priors_store import PriorFolder
from tests.certificates import make_certificate
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.unit.test_audit_export import SCHEMA, every_event
from tests.unit.test_conformance import (
    ACCEPTOR,
    CLAIMS,
    INITIATOR,
    NOT_SUPPORTED,
    SYNTAXES,
    associate,
    claimed_contexts,
    negotiate,
    proposed,
    running,
    user_information,
)

SERVICES = services(CLAIMS)
TRANSACTIONS = {row["name"] for key in ("transaction", "question", "prior") for row in CLAIMS["web"][key]}


@pytest.fixture(scope="module")
def port(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a listener with the default settings."""
    with running(tmp_path_factory.mktemp("listener") / "storage", migrated) as opened:
        yield opened


def named(*keys: str) -> list[str]:
    return [name for row in SERVICES for key in keys for name in row[key]]


def test_no_service_is_both_claimed_and_denied() -> None:
    assert max(Counter(row["name"] for row in SERVICES).values()) == 1
    for keys in (("user", "neither"), ("provider", "neither")):
        assert max(Counter(named(*keys)).values()) == 1
    for row in SERVICES:
        assert bool(row["user"] or row["provider"]) != bool(row["neither"]), row["name"]


def test_what_is_claimed_is_proposed_and_nothing_else() -> None:
    contexts = {uid for uid, _ in claimed_contexts(*INITIATOR["context"])}
    # as the provider of what comes by C-GET, on an association of its own
    contexts -= {*INITIATOR["context"]["get_storage"]["sop_classes"]}
    assert {*named("user")} == contexts | TRANSACTIONS


def test_what_is_claimed_is_accepted_and_what_is_denied_is_not(port: int) -> None:
    verification, commitment = ACCEPTOR["verification"]["sop_class"], ACCEPTOR["commitment"]["sop_class"]
    assert {*named("provider")} == {*accepted_classes(CLAIMS), verification, commitment}
    asked = sorted({*named("user", "provider", "neither")} - TRANSACTIONS)
    assert {*result_classes(CLAIMS)} < {*asked}
    answers = negotiate(port, [(uid, ["1.2.840.10008.1.2"]) for uid in asked])
    accepted = {str(context.abstract_syntax) for context in answers if context.result == 0}
    assert accepted == {*named("provider")}


# earlier examinations by C-MOVE


def mover(port: int) -> MoveSettings:
    return MoveSettings("CTPRIOR", "127.0.0.1", port, ListenerSettings())


def test_a_move_is_asked_for_as_claimed(tmp_path: Path) -> None:
    requests: list[A_ASSOCIATE] = []
    queries: list[Dataset] = []

    def refuse(event: evt.Event) -> Iterator[Any]:
        queries.append(event.identifier)
        yield None, None

    ((uid, syntaxes),) = claimed_contexts("move")
    entity = AE(ae_title="PACS")
    entity.add_supported_context(uid, syntaxes)
    handlers: Any = [
        (evt.EVT_REQUESTED, lambda event: requests.append(event.assoc.requestor.primitive)),
        (evt.EVT_C_MOVE, refuse),
    ]
    there: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    peer = Peer("127.0.0.1", int(there.server_address[1]), "PACS", "CTNODE")
    source = DimsePriors("pacs", peer, 10, mover(find_free_port()))
    folder = PriorFolder(tmp_path / "priors", max_bytes=1, reserve_bytes=0)
    for images in (["1.2.5"], ["1.2.5", "1.2.6"]):
        with pytest.raises(ArchiveError, match="A801"):
            source.fetch("1.2.3", "1.2.4", images, folder, Patience(10))
    there.shutdown()
    assert [proposed(request) for request in requests] == [[(uid, syntaxes)]] * 2
    assert all(SCP_SCU_RoleSelectionNegotiation not in user_information(request) for request in requests)
    claimed = [
        (row["level"], {"QueryRetrieveLevel", *row["keys"]}) for row in INITIATOR["retrieve"]["request"]
    ]
    assert [
        (asked.QueryRetrieveLevel, {element.keyword for element in asked}) for asked in queries
    ] == claimed


def test_a_move_brings_what_is_claimed(tmp_path: Path) -> None:
    wanted, other = make_ct_series(2, matrix=8)
    moved, at = INITIATOR["retrieve"]["moved"], find_free_port()
    folder = PriorFolder(tmp_path / "priors", max_bytes=1 << 20, reserve_bytes=0)
    archive = Peer("127.0.0.1", 104, "PACS", "CTNODE")
    asked = [(uid, syntax) for uid in moved for syntax in SYNTAXES]
    others = [MRImageStorage, ACCEPTOR["verification"]["sop_class"], ACCEPTOR["commitment"]["sop_class"]]
    contexts = [build_context(*pair) for pair in [*asked, *((uid, ExplicitVRLittleEndian) for uid in others)]]
    with MoveReceiver(mover(at), archive, [str(wanted.SOPInstanceUID)], folder, Patience(20)):
        association = associate(at, contexts, called="CTPRIOR")
        assert [
            (context.abstract_syntax, *context.transfer_syntax) for context in association.accepted_contexts
        ] == asked
        assert {context.result for context in association.rejected_contexts} == {NOT_SUPPORTED}
        statuses = [int(association.send_c_store(ds).Status) for ds in (wanted, other)]
        association.release()
    assert wanted.SOPClassUID == CTImageStorage
    assert [f"{status:04X}" for status in statuses] == ["0000", INITIATOR["retrieve"]["not_expected"]]


# audit messages


def test_audit_messages_are_as_claimed(database: Database, tmp_path: Path) -> None:
    claimed, given = CLAIMS["audit"], {}
    count = len(list(every_event(database)))
    with database.read() as session:
        rows = list(entries(session, Selection(), limit=1000))
    assert count == len(Event) <= len(rows)
    head = (
        rf"\d+ <{claimed['priority']}>1 \S+ node\.example pacs-node \d+ {re.escape(claimed['message_id'])} - "
    )
    for row in rows:
        message = frame(row, Origin("CTNODE", "node.example")).decode("utf-8")
        match = re.fullmatch(head + "\ufeff(<.*>)", message, re.DOTALL)
        assert match is not None
        xml = etree.fromstring(match[1].encode())
        assert SCHEMA.validate(xml), SCHEMA.error_log
        event = xml.find("EventIdentification/EventID")
        assert event.get("codeSystemName") == "DCM"
        given[event.get("csd-code")] = event.get("originalText")
    assert given == claimed["event"]
    authority = make_certificate(tmp_path, "syslog")
    context = client_context(str(authority.certificate), "", "")
    assert context.minimum_version.name == claimed["tls_minimum"]
    assert claimed["certificate_of_the_server"] == "required"
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
