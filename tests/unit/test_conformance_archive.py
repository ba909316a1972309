"""Claims about storage commitment and about questions to the archive, against the running node."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation

from pacs_node.archive import ArchiveError, StudyFilter
from pacs_node.archive_dimse import DimseArchive
from pacs_node.archive_web import DicomWebArchive
from pacs_node.association import Peer
from pacs_node.commitment import Reference, Report, Request
from pacs_node.commitment_scp import judge, send_report
from pacs_node.commitment_scu import ask
from pacs_node.db import Database, sqlite_url
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.priors_archive import Patience
from pacs_node.priors_dimse import DimsePriors
from pacs_node.priors_store import PriorFolder
from pacs_node.priors_web import WebPriors
from tests.ct_factory import make_ct_series
from tests.unit.test_conformance import (
    ACCEPTOR,
    CLAIMS,
    INITIATOR,
    NO_COMMON_SYNTAX,
    associate,
    claimed_contexts,
    negotiate,
    of_type,
    proposed,
    recording_peer,
    running,
    store,
    user_information,
)
from tests.unit.test_dicomweb import Answer, server


@pytest.fixture(scope="module")
def port(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a listener with the default settings."""
    with running(tmp_path_factory.mktemp("listener") / "storage", migrated) as opened:
        yield opened


def test_commitment_is_accepted_as_claimed(port: int) -> None:
    claimed = ACCEPTOR["commitment"]
    pairs = [(claimed["sop_class"], [syntax]) for syntax in claimed["transfer_syntaxes"]]
    assert [context.result for context in negotiate(port, pairs)] == [0] * len(pairs)
    others = [syntax for syntax in of_type("Transfer Syntax") if syntax not in claimed["transfer_syntaxes"]]
    (answer,) = negotiate(port, [(claimed["sop_class"], others)])
    assert answer.result == NO_COMMON_SYNTAX
    assert ACCEPTOR["scp_scu_role_selection"] == [claimed["sop_class"]]
    for asked in ((False, True), (True, False), (True, True)):
        association = commitment_association(port, *asked)
        role = user_information(association.acceptor.primitive)[SCP_SCU_RoleSelectionNegotiation]
        association.release()
        assert (role.sop_class_uid, role.scu_role, role.scp_role) == (claimed["sop_class"], *asked)


def commitment_association(port: int, scu: bool, scp: bool) -> Any:
    uid = ACCEPTOR["commitment"]["sop_class"]
    role = build_role(uid, scu_role=scu, scp_role=scp)
    association = associate(port, [build_context(uid)], ext_neg=[role])
    assert association.is_established
    return association


def commitment_request(uid: str = "1.2.3.4", sop_class: str = CTImageStorage) -> Dataset:
    item, asked = Dataset(), Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    asked.TransactionUID, asked.ReferencedSOPSequence = "1.2.3", [item]
    return asked


def test_commitment_statuses_are_as_claimed(port: int) -> None:
    claimed = ACCEPTOR["commitment"]
    uid, instance, whole = claimed["sop_class"], claimed["instance"], commitment_request()
    empty = Dataset()
    empty.TransactionUID = "1.2.3"
    asking = commitment_association(port, scu=True, scp=False)
    telling = commitment_association(port, scu=False, scp=True)
    given = {
        "another instance": asking.send_n_action(whole, 1, uid, "1.2.3"),
        "nothing asked": asking.send_n_action(empty, 1, uid, instance),
        "another action": asking.send_n_action(whole, 2, uid, instance),
        "asked": asking.send_n_action(whole, 1, uid, instance),
        "another event": telling.send_n_event_report(whole, 3, uid, instance),
        "unknown transaction": telling.send_n_event_report(whole, 1, uid, instance),
    }
    asking.release()
    telling.release()
    codes = {case: f"{answer.Status:04X}" for case, (answer, _) in given.items()}
    # that a report is taken is shown by tests/unit/test_commitment.py, which has asked for it
    assert codes | {"reported": "0000"} == {row["case"]: row["code"] for row in claimed["status"]}


def test_failure_reasons_are_as_claimed(migrated: Path, tmp_path: Path) -> None:
    (good,) = make_ct_series(1, matrix=8)
    with running(tmp_path / "here", migrated) as there:
        assert store(there, good) == 0x0000
    database = Database(sqlite_url(tmp_path / "here"))
    known = str(good.SOPInstanceUID)
    asked = tuple(
        Reference(*pair)
        for pair in ((CTImageStorage, "1.2.3.4"), (MRImageStorage, known), (CTImageStorage, known))
    )
    with database.read() as session:
        report = judge(session, tmp_path / "here", Request("1.2.3", asked))
    database.dispose()
    assert report.committed == asked[2:]
    assert [f"{reason:04X}" for _, reason in report.failed] == ACCEPTOR["commitment"]["failure_reasons"]


def test_questions_to_the_archive_are_as_claimed(tmp_path: Path) -> None:
    requests: list[A_ASSOCIATE] = []
    queries: list[Dataset] = []
    day = date(2026, 1, 2)
    with recording_peer(tmp_path / "peer", requests, queries, []) as peer:
        archive = DimseArchive("pacs", Peer("127.0.0.1", peer.port, "PEER", "CTNODE"), 10)
        for question in (
            lambda: archive.count("1.2.3", "1.2.4"),
            lambda: archive.studies(StudyFilter(day, day, "CT")),
            lambda: archive.modalities("1.2.3"),
        ):
            with pytest.raises(ArchiveError):  # this peer answers at the IMAGE level only
                question()
    assert [proposed(request) for request in requests] == [claimed_contexts("query")] * len(queries)
    claimed = [(row["level"], {"QueryRetrieveLevel", *row["keys"]}) for row in INITIATOR["question"]]
    asked = [(query.QueryRetrieveLevel, {element.keyword for element in query}) for query in queries]
    assert asked == [row for row in claimed if row[0] != "IMAGE"]
    assert claimed[1] == ("IMAGE", {"QueryRetrieveLevel", *INITIATOR["query"]["keys"]})


def test_earlier_examinations_are_asked_for_as_claimed(tmp_path: Path) -> None:
    requests: list[A_ASSOCIATE] = []
    queries: list[Dataset] = []
    day = date(2026, 1, 2)
    with recording_peer(tmp_path / "peer", requests, queries, []) as peer:
        source = DimsePriors("pacs", Peer("127.0.0.1", peer.port, "PEER", "CTNODE"), 10)
        folder = PriorFolder(tmp_path / "priors", max_bytes=1, reserve_bytes=0)
        for question in (
            lambda: source.examinations("P1", day, day),
            lambda: source.series("1.2.3"),
            lambda: source.fetch("1.2.3", "1.2.4", ["1.2.5", "1.2.6"], folder, Patience(10)),
        ):
            with pytest.raises(ArchiveError):  # this peer answers at the IMAGE level only, and gives nothing
                question()
        source.images("1.2.3", "1.2.4")
    claimed = [(row["level"], {"QueryRetrieveLevel", *row["keys"]}) for row in INITIATOR["prior"]]
    asked = [(query.QueryRetrieveLevel, {element.keyword for element in query}) for query in queries]
    assert asked == claimed
    asking = [request for request in requests if proposed(request) != claimed_contexts("query")]
    assert [sorted(proposed(request)) for request in asking] == [claimed_contexts("get", "get_storage")]
    roles = {
        item.sop_class_uid: {"scu": item.scu_role, "scp": item.scp_role}
        for item in asking[0].user_information
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
    }
    claimed_roles = INITIATOR["context"]["get_storage"]
    assert roles == dict.fromkeys(claimed_roles["sop_classes"], claimed_roles["role"])


def test_earlier_examinations_are_asked_for_on_the_web_as_claimed(tmp_path: Path) -> None:
    day, words = date(2026, 1, 2), {"patient": "P1", "study": "1.2.3", "series": "1.2.4", "instance": "1.2.5"}
    fields = ["PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "ModalitiesInStudy"]
    words["fields"] = ",".join(sorted([*fields, "StudyDescription"]))
    with server(Answer(200, []), Answer(200, []), Answer(200, []), Answer(404)) as running_server:
        source = WebPriors(DicomWebDestination("web", running_server.url))
        source.examinations("P1", date(1900, 1, 1), day)
        source.series("1.2.3")
        source.images("1.2.3", "1.2.4")
        folder = PriorFolder(tmp_path / "priors", max_bytes=1 << 20, reserve_bytes=0)
        with pytest.raises(ArchiveError):
            source.fetch("1.2.3", "1.2.4", ["1.2.5"], folder, Patience(10))
        asked = [request.path.partition("?") for request in running_server.requests]
    for (path, _, query), claimed in zip(asked, CLAIMS["web"]["prior"], strict=True):
        assert path == "/dicom-web" + claimed["path"].format(**words)
        values: dict[str, list[str]] = {}
        for key, value in (pair.split("=", 1) for pair in unquote(query).split("&") if pair):
            values.setdefault(key, []).append(value)
        found = {key: ",".join(sorted(",".join(parts).split(","))) for key, parts in values.items()}
        assert found == {key: value.format(**words) for key, value in claimed["query"].items()}


def test_commitment_is_asked_as_claimed(port: int) -> None:
    requests: list[A_ASSOCIATE] = []
    entity = AE(ae_title="PEER")
    uid = ACCEPTOR["commitment"]["sop_class"]
    entity.add_supported_context(uid)
    handlers: Any = [(evt.EVT_REQUESTED, lambda event: requests.append(event.assoc.requestor.primitive))]
    there: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    peer = Peer("127.0.0.1", int(there.server_address[1]), "PEER", "CTNODE")
    reference = Reference(CTImageStorage, "1.2.3")
    ask(peer, Request("1.2.3", (reference,)))
    send_report(peer, Report("1.2.3", (reference,)))
    there.shutdown()
    asking, reporting = requests
    assert proposed(asking) == claimed_contexts("commitment_request")
    assert proposed(reporting) == claimed_contexts("commitment_report")
    assert SCP_SCU_RoleSelectionNegotiation not in user_information(asking)
    role = user_information(reporting)[SCP_SCU_RoleSelectionNegotiation]
    assert role.sop_class_uid == uid
    roles = {"scu": role.scu_role, "scp": role.scp_role}
    assert roles == INITIATOR["context"]["commitment_report"]["role"]


def test_web_questions_are_as_claimed() -> None:
    fields = ["StudyDescription", "RetrieveAETitle", "NumberOfStudyRelatedInstances"]
    with server(Answer(200, []), Answer(200, [])) as running_server:
        archive = DicomWebArchive(DicomWebDestination("web", running_server.url))
        assert archive.count("1.2.3", "1.2.4") == 0
        archive.studies(StudyFilter(date(2026, 1, 1), date(2026, 1, 2), "CT"))
        asked = [request.path.partition("?") for request in running_server.requests]
    words = {"study": "1.2.3", "series": "1.2.4", "fields": ",".join(sorted(fields))}
    for (path, _, query), claimed in zip(asked, CLAIMS["web"]["question"], strict=True):
        assert path == "/dicom-web" + claimed["path"].format(**words)
        values: dict[str, list[str]] = {}
        for key, value in (pair.split("=", 1) for pair in unquote(query).split("&")):
            values.setdefault(key, []).append(value)
        expected = {key: value.format(**words) for key, value in claimed["query"].items()}
        found = {key: ",".join(sorted(",".join(parts).split(","))) for key, parts in values.items()}
        assert found == expected
