"""Every claim of conformance/claims.toml against the running node; pynetdicom is the peer."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, build_context, evt
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    UserIdentityNegotiation,
)
from sqlalchemy import text

from conformance.statement import STATEMENT, accepted_classes, read_claims, render, result_classes
from dicom_sr import part10
from dicom_sr.capture import build_captures, capture_result
from dicom_sr.keyimages import render_key_images
from dicom_sr.part10 import save
from dicom_sr.pdf import build_pdf, print_report
from dicom_sr.report import ReportClass, build_not_analysed_report, build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.summary import result_json
from inference.types import Malignancy, Observation, SemanticFeature
from pacs_node import __version__, spool, tls
from pacs_node.association import Peer, Timeouts, Tls
from pacs_node.config import Caller, DicomDestination, ListenerSettings
from pacs_node.db import Database, sqlite_url
from pacs_node.destinations import ObjectRef
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.dimse import DimseDestination
from pacs_node.listener import Listener
from pacs_node.peer import ReceivingPeer
from pacs_node.returned_files import REPORTS, SEGMENTATIONS
from pacs_node.spool import Spool
from tests.certificates import make_certificate
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.finding_factory import (
    TRAINED,
    make_context,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)
from tests.raw_peer import REJECT, RawPeer, association_request
from tests.rejections import Requestor
from tests.small_objects import reference, write_sr
from tests.unit.test_dicomweb import Answer, server, stored

pytestmark = pytest.mark.usefixtures("short_poll")

CLAIMS = read_claims()
ACCEPTOR: dict[str, Any] = CLAIMS["acceptor"]
INITIATOR: dict[str, Any] = CLAIMS["initiator"]
SYNTAXES: list[str] = ACCEPTOR["storage"]["transfer_syntaxes"]
STORED = accepted_classes(CLAIMS)
CALLERS = (Caller(ae_title="PACS", address="127.0.0.0/8"),)
NOT_SUPPORTED, NO_COMMON_SYNTAX = 3, 4


@contextmanager
def running(
    directory: Path, migrated: Path, *, reserve: int = 1, break_rows: bool = False, **settings: Any
) -> Iterator[int]:
    """A listener with a database of its own; yields its port."""
    directory.mkdir()
    shutil.copyfile(migrated, directory / "node.db")
    database = Database(sqlite_url(directory))
    listener = Listener(
        ListenerSettings(port=find_free_port(), **settings), CALLERS, database, Spool(directory, reserve)
    )
    try:
        port = listener.start()
        if break_rows:
            with database.write() as session:
                session.execute(text("DROP TABLE instance"))
        yield port
    finally:
        listener.stop()
        database.dispose()


@pytest.fixture(scope="module")
def port(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a listener with the default settings."""
    with running(tmp_path_factory.mktemp("listener") / "storage", migrated) as opened:
        yield opened


def associate(
    port: int, contexts: Sequence[Any], *, calling: str = "PACS", called: str = "CTNODE", **options: Any
) -> Any:
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    return Requestor(entity).associate("127.0.0.1", port, contexts=list(contexts), ae_title=called, **options)


def negotiate(port: int, pairs: Sequence[tuple[str, list[str]]]) -> list[Any]:
    """Propose each pair of abstract syntax and transfer syntaxes; the contexts as they were answered."""
    answered: list[Any] = []
    for start in range(0, len(pairs), 128):
        contexts = [build_context(abstract, syntaxes) for abstract, syntaxes in pairs[start : start + 128]]
        association = associate(port, contexts)
        answers = [*association.accepted_contexts, *association.rejected_contexts]
        assert len(answers) == len(contexts)
        answered += sorted(answers, key=lambda context: int(context.context_id))
        if association.is_established:
            association.release()
    return answered


def of_type(name: str) -> list[str]:
    return [uid for uid, entry in UID_dictionary.items() if entry[1] == name]


def test_the_statement_is_made_of_the_claims() -> None:
    assert STATEMENT.read_text(encoding="utf-8") == render(CLAIMS), "run make statement"


# the listener


def test_every_storage_context_that_is_claimed_is_accepted(port: int) -> None:
    pairs = [(uid, [syntax]) for uid in STORED for syntax in SYNTAXES]
    answers = negotiate(port, pairs)
    assert [
        (context.abstract_syntax, list(context.transfer_syntax), context.result) for context in answers
    ] == [(uid, syntaxes, 0) for uid, syntaxes in pairs]


def test_verification_is_accepted_as_claimed(port: int) -> None:
    claimed = ACCEPTOR["verification"]
    pairs = [(claimed["sop_class"], [syntax]) for syntax in claimed["transfer_syntaxes"]]
    assert [context.result for context in negotiate(port, pairs)] == [0] * len(pairs)
    others = [syntax for syntax in of_type("Transfer Syntax") if syntax not in claimed["transfer_syntaxes"]]
    (answer,) = negotiate(port, [(claimed["sop_class"], others)])
    assert answer.result == NO_COMMON_SYNTAX


def test_no_other_sop_class_is_accepted(port: int) -> None:
    known = {*of_type("SOP Class"), *of_type("Meta SOP Class"), *of_type("Service Class"), "1.2.3.4.5"}
    served = {ACCEPTOR["verification"]["sop_class"], ACCEPTOR["commitment"]["sop_class"]}
    others = sorted(known - {*STORED, *served})
    assert len(others) > 100
    answers = negotiate(port, [(uid, [ExplicitVRLittleEndian]) for uid in others])
    assert {context.result for context in answers} == {NOT_SUPPORTED}


def test_no_other_transfer_syntax_is_accepted(port: int) -> None:
    others = [syntax for syntax in of_type("Transfer Syntax") if syntax not in SYNTAXES]
    assert len(others) > 20
    answers = negotiate(port, [(uid, others) for uid in STORED])
    assert {context.result for context in answers} == {NO_COMMON_SYNTAX}


def test_the_first_claimed_syntax_is_chosen(port: int) -> None:
    for n in range(len(SYNTAXES)):
        (answer,) = negotiate(port, [(CTImageStorage, SYNTAXES[n:][::-1])])
        assert list(answer.transfer_syntax) == [SYNTAXES[n]]


def user_information(primitive: A_ASSOCIATE) -> dict[type[Any], Any]:
    return {type(item): item for item in primitive.user_information}


def test_the_acceptance_says_what_is_claimed_and_nothing_more(port: int) -> None:
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid = CTImageStorage
    role.scu_role, role.scp_role = True, True
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    identity.positive_response_requested = True
    association = associate(port, [build_context(CTImageStorage)], ext_neg=[role, window, identity])
    assert association.is_established
    said = user_information(association.acceptor.primitive)
    association.release()
    assert said.pop(MaximumLengthNotification).maximum_length_received == ACCEPTOR["max_pdu_bytes"]
    uid = said.pop(ImplementationClassUIDNotification).implementation_class_uid
    assert uid == ACCEPTOR["implementation_class_uid"]
    version = said.pop(ImplementationVersionNameNotification).implementation_version_name
    assert version == ACCEPTOR["implementation_version_name"].format(version=__version__)
    named = {
        SCP_SCU_RoleSelectionNegotiation: CTImageStorage in ACCEPTOR["scp_scu_role_selection"],
        AsynchronousOperationsWindowNegotiation: ACCEPTOR["outstanding_operations"] != 1,
        UserIdentityNegotiation: ACCEPTOR["user_identity"],
    }
    assert set(said) == {kind for kind, claimed in named.items() if claimed}
    assert not ACCEPTOR["extended_negotiation"]


def test_defaults_are_as_claimed() -> None:
    settings = ListenerSettings()
    assert {
        "ae_title": settings.ae_title,
        "port": settings.port,
        "max_pdu_bytes": settings.max_pdu_bytes,
        "max_associations": settings.max_associations,
        "association_request_seconds": settings.acse_timeout_seconds,
        "message_seconds": settings.dimse_timeout_seconds,
        "idle_seconds": settings.network_timeout_seconds,
    }.items() <= ACCEPTOR.items()


def rejection(association: Any) -> tuple[int, int, int]:
    (answer,) = association.rejections
    return answer  # type: ignore[no-any-return]  # of pynetdicom's association


def raw_rejection(port: int, request: bytes) -> tuple[int, ...]:
    """What bytes are answered with that no library sends."""
    with RawPeer(port) as peer:
        peer.send(request)
        kind, body = peer.read()
    assert kind == REJECT
    return tuple(body[1:])


def test_rejections_are_as_claimed(port: int, migrated: Path, tmp_path: Path) -> None:
    verification = [build_context(ACCEPTOR["verification"]["sop_class"])]
    request, other = association_request(), (b"10008.3.1.1.1", b"10008.3.1.1.2")
    given = {
        "stranger": rejection(associate(port, verification, calling="STRANGER")),
        "wrong called AE title": rejection(associate(port, verification, called="OTHER")),
        "another application context": raw_rejection(port, request.replace(*other)),
        "another protocol version": raw_rejection(port, request[:6] + b"\0\2" + request[8:]),
    }
    with running(tmp_path / "full", migrated, max_associations=1) as full:
        first = associate(full, verification)
        given["too many associations"] = rejection(associate(full, verification))
        first.release()
    assert given == {
        row["case"]: (row["result"], row["source"], row["reason"]) for row in ACCEPTOR["rejection"]
    }


def store(port: int, dataset: Dataset, *, as_class: str = CTImageStorage) -> int:
    """Send over a context of `as_class`, whatever the data set says of itself."""
    association = associate(port, [build_context(as_class, ExplicitVRLittleEndian)])
    assert association.is_established
    if dataset.SOPClassUID != as_class:
        # pynetdicom looks for a context by the data set's own class: tell it another one
        association.accepted_contexts[0].abstract_syntax = dataset.SOPClassUID
    status = int(association.send_c_store(dataset).Status)
    association.release()
    return status


def other_operation(port: int) -> int:
    association = associate(port, [build_context(CTImageStorage)])
    status, _ = association.send_n_get([0x00100010], CTImageStorage, "1.2.3")
    association.release()
    return int(status.Status)


def test_statuses_are_as_claimed(port: int, migrated: Path, tmp_path: Path) -> None:
    good, other, nameless = make_ct_series(3, matrix=8)
    other.SOPClassUID = MRImageStorage
    nameless.StudyInstanceUID = ""
    given = {
        "stored": store(port, good),
        "another object": store(port, other),
        "no data set": store(port, nameless),
        "another operation": other_operation(port),
    }
    assert store(port, good) == 0x0000, "the same bytes again"
    with running(tmp_path / "small", migrated, reserve=1 << 60) as full:
        given["no space"] = store(full, good)
    with running(tmp_path / "broken", migrated, break_rows=True) as broken:
        given["storage fails"] = store(broken, good)
    claimed = {row["case"]: row["code"] for row in ACCEPTOR["status"]}
    assert {case: f"{status:04X}" for case, status in given.items()} == claimed


def test_tls_is_as_claimed(migrated: Path, tmp_path: Path) -> None:
    node, pacs, stranger = (make_certificate(tmp_path, name) for name in ("node", "pacs", "stranger"))
    claimed = CLAIMS["security"]
    for context in (
        tls.server_context(node.trusting(pacs), "listener"),
        tls.client_context(pacs.trusting(node), "destination"),
    ):
        assert context.minimum_version.name == claimed["tls_minimum"]
        assert (context.verify_mode is ssl.CERT_REQUIRED) == (
            claimed["certificate_of_the_peer"] == "required"
        )
    files = node.trusting(pacs)
    settings: dict[str, Any] = {
        "tls_certificate_file": files.certificate,
        "tls_key_file": files.key,
        "tls_client_ca_file": files.authorities,
    }
    # our own client: pynetdicom's leaves its socket open where the handshake fails
    clients = [Tls(tls.client_context(who.trusting(node), "peer"), "127.0.0.1") for who in (pacs, stranger)]
    with running(tmp_path / "tls", migrated, **settings) as port:
        answers = [
            DimseDestination("node", "127.0.0.1", port, "CTNODE", "PACS", tls=client).echo().ok
            for client in (*clients, None)
        ]
    assert answers == [True, False, False]


# the initiator


@contextmanager
def recording_peer(
    directory: Path, requests: list[A_ASSOCIATE], queries: list[Dataset], answers: list[int]
) -> Iterator[ReceivingPeer]:
    """The receiving peer, which notes what it is asked."""

    class Recording(ReceivingPeer):
        def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
            queries.append(event.identifier)
            yield from super()._find(event)

    peer = Recording(directory, on_store=lambda _uid: answers.pop(0) if answers else None)
    peer._entity.add_supported_context(ACCEPTOR["verification"]["sop_class"])
    original = peer._entity.start_server

    def start_server(address: Any, **options: Any) -> Any:
        handlers = [
            *options.pop("evt_handlers"),
            (evt.EVT_REQUESTED, lambda event: requests.append(event.assoc.requestor.primitive)),
        ]
        return original(address, evt_handlers=handlers, **options)

    peer._entity.start_server = start_server  # type: ignore[assignment, method-assign]  # one more handler
    with peer:
        yield peer


def claimed_contexts(*cases: str) -> list[tuple[str, list[str]]]:
    """Contexts of the cases of [initiator.context], sorted."""
    out: list[tuple[str, list[str]]] = []
    for row in (INITIATOR["context"][case] for case in cases):
        classes = result_classes(CLAIMS) if row["sop_classes"] == "results" else row["sop_classes"]
        syntaxes = SYNTAXES if row["transfer_syntaxes"] == "accepted" else row["transfer_syntaxes"]
        for uid in classes:
            out += [(uid, [syntax]) for syntax in syntaxes] if row.get("apart") else [(uid, syntaxes)]
    return sorted(out)


def proposed(request: A_ASSOCIATE) -> list[tuple[str, list[str]]]:
    return [
        (str(context.abstract_syntax), [str(uid) for uid in context.transfer_syntax])
        for context in request.presentation_context_definition_list
    ]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Dataset]]:
    """One file of each claimed kind, and the header that it was made of."""
    directory = tmp_path_factory.mktemp("objects")
    headers = without_pixels(series := make_ct_series(16))
    context = make_context(cards=(TRAINED,))
    volume = make_volume(series)
    features = (SemanticFeature("spiculation", 4, 0.7), SemanticFeature("internal_structure", 1, 0.9))
    findings = make_findings(volume, 3)
    findings = tuple(
        type(finding)(
            **{
                **{name: getattr(finding, name) for name in finding.__dataclass_fields__},
                "features": features,
                "malignancy": Malignancy(0.3, 0.4),
            }
        )
        for finding in findings
    )
    observations = (Observation("lung_rads", "4A"),)
    seg = build_seg(volume, findings, headers, context)
    result = make_result(volume, findings, context, observations=observations)
    summary = result_json(volume, result, headers, context)
    key_images = render_key_images(volume, findings[:1], directory)
    page, key_slice = build_captures(
        capture_result(summary, volume.frames, volume, key_images), headers[0], context
    )
    made = {
        "SEG": seg,
        "SEG label map": build_seg(volume, findings, headers, context, encoding=SegEncoding.LABELMAP),
        "SR": build_report(volume, result, seg, headers, context),
        "SR enhanced": build_report(volume, result, seg, headers, context, report_class=ReportClass.ENHANCED),
        "SC": page,
        "SC key slice": key_slice,
        "PDF": build_pdf(print_report(summary, context), headers, context),
        "SR not analysed": build_not_analysed_report(
            headers, "TOO_THICK", "The slices are 8 mm thick.", context
        ),
    }
    out = {}
    for number, (kind, dataset) in enumerate(made.items()):
        path = directory / f"{number}.dcm"
        save(dataset, path)
        out[kind] = path, headers[0]
    return out


def test_associations_are_proposed_as_claimed(
    tmp_path: Path, objects: dict[str, tuple[Path, Dataset]]
) -> None:
    requests: list[A_ASSOCIATE] = []
    queries: list[Dataset] = []
    with recording_peer(tmp_path / "peer", requests, queries, []) as peer:
        destination = DimseDestination("pacs", "127.0.0.1", peer.port, "PEER", "CTNODE")
        assert destination.echo().ok
        paths = [path for path, _ in objects.values()]
        assert [outcome.status for outcome in destination.send(paths)] == [0] * len(paths)
        refs = [reference(dcmread(path)) for path in paths]
        assert set(destination.verify(refs).values()) == {True}
    echo, sending, query = requests
    assert proposed(echo) == claimed_contexts("verification")
    assert sorted(proposed(sending)) == claimed_contexts("storage")
    assert proposed(query) == claimed_contexts("query")
    for request in requests:
        said = user_information(request)
        assert said.pop(MaximumLengthNotification).maximum_length_received == INITIATOR["max_pdu_bytes"]
        uid = said.pop(ImplementationClassUIDNotification).implementation_class_uid
        assert uid == INITIATOR["implementation_class_uid"]
        version = said.pop(ImplementationVersionNameNotification).implementation_version_name
        assert version == INITIATOR["implementation_version_name"].format(version=__version__)
        assert said == {}, "no role selection, no asynchronous operations, no user identity"
    keys = {"QueryRetrieveLevel", *INITIATOR["query"]["keys"]}
    assert {frozenset(element.keyword for element in asked) for asked in queries} == {frozenset(keys)}
    assert {asked.QueryRetrieveLevel for asked in queries} == {INITIATOR["query"]["level"]}


def test_initiator_defaults_are_as_claimed() -> None:
    limits = Timeouts()
    assert {
        "max_pdu_bytes": Peer("host", 104, "A", "B").max_pdu,
        "connect_seconds": limits.connect,
        "association_seconds": limits.association,
        "no_progress_seconds": limits.progress,
        "not_analysed": DicomDestination.model_fields["not_analysed"].default,
    }.items() <= INITIATOR.items()


def test_storage_statuses_mean_what_is_claimed(tmp_path: Path) -> None:
    report = write_sr(tmp_path)
    wanted: list[tuple[int, str]] = [
        (int(code, 16), row["outcome"])
        for row in INITIATOR["storage"]["status"]
        for codes in row["codes"]
        for code in codes.split("-")
    ]
    (others,) = [row["outcome"] for row in INITIATOR["storage"]["status"] if not row["codes"]]
    wanted += [(0x1234, others), (0x0003, others)]
    answers = [code for code, _ in wanted]
    with recording_peer(tmp_path / "peer", [], [], answers) as peer:
        destination = DimseDestination("pacs", "127.0.0.1", peer.port, "PEER", "CTNODE", verify="none")
        outcomes = destination.send([report] * len(wanted))
    assert [(outcome.status, str(outcome.kind)) for outcome in outcomes] == wanted


def test_web_transactions_are_as_claimed(tmp_path: Path) -> None:
    report = write_sr(tmp_path)
    ref: ObjectRef = reference(dcmread(report))
    with server(
        Answer(200, [stored(ref.sop_instance_uid)]), Answer(200, []), Answer(200, [])
    ) as running_server:
        destination = DicomWebDestination("web", running_server.url)
        assert [outcome.status for outcome in destination.send([report])] == [0]
        destination.verify([ref])
        destination.echo()
        requests = list(running_server.requests)
    assert len(requests) == len(CLAIMS["web"]["transaction"])
    names = {"study": ref.study_uid, "series": ref.series_uid, "instance": ref.sop_instance_uid}
    for request, claimed in zip(requests, CLAIMS["web"]["transaction"], strict=True):
        path, _, query = request.path.partition("?")
        asked = dict(pair.split("=", 1) for pair in query.split("&")) if query else {}
        assert (request.method, path) == (claimed["method"], "/dicom-web" + claimed["path"].format(**names))
        assert asked == {key: value.format(**names) for key, value in claimed.get("query", {}).items()}
        for name, value in claimed["headers"].items():
            assert request.headers[name.lower()].startswith(value)
        assert request.headers.get("content-type", "").startswith(claimed.get("content_type", ""))


# the objects


def elements(dataset: Dataset, path: str) -> list[Any]:
    """The values at a path of keywords, one for each item of its sequences."""
    first, _, rest = path.partition(".")
    if not rest:
        return [dataset.get(first)]
    return [value for item in dataset.get(first) or [] for value in elements(item, rest)]


@pytest.mark.parametrize("claim", CLAIMS["object"], ids=lambda claim: str(claim["kind"]))
def test_objects_are_as_claimed(claim: dict[str, Any], objects: dict[str, tuple[Path, Dataset]]) -> None:
    path, source = objects[claim["kind"]]
    dataset = dcmread(path)
    files = CLAIMS["files"]
    assert dataset.SOPClassUID == claim["sop_class"]
    assert dataset.file_meta.TransferSyntaxUID == files["transfer_syntax"]
    assert dataset.file_meta.ImplementationClassUID == files["implementation_class_uid"]
    version = dataset.SoftwareVersions
    assert dataset.file_meta.ImplementationVersionName == files["implementation_version_name"].format(
        version=version
    )
    assert dataset.SpecificCharacterSet == files["character_set"]
    assert [element for element in dataset.iterall() if element.tag.is_private] == []
    for name, claimed in claim["attributes"].items():
        values = elements(dataset, name)
        assert values != [], name
        if claimed == "present":
            assert all(value is not None and value != "" and value != [] for value in values), name
        else:
            expected = str(source.get(name)) if claimed == "source" else claimed
            assert {str(value) for value in values} == {expected}, name
    if "template" in claim:
        assert dataset.ContentTemplateSequence[0].TemplateIdentifier == claim["template"]
        groups = [
            group.ContentTemplateSequence[0].TemplateIdentifier
            for container in dataset.ContentSequence
            for group in container.get("ContentSequence") or []
            if "ContentTemplateSequence" in group and group.ConceptNameCodeSequence[0].CodeValue == "125007"
        ]
        assert set(groups) == set(claim["groups"])


def test_coding_schemes_are_as_claimed(objects: dict[str, tuple[Path, Dataset]]) -> None:
    used = set()
    declared = {}
    for path, _ in objects.values():
        dataset = dcmread(path)
        for item in dataset.get("CodingSchemeIdentificationSequence") or []:
            declared[item.CodingSchemeDesignator] = item.CodingSchemeName
        dataset.pop("CodingSchemeIdentificationSequence", None)
        used |= {e.value for e in dataset.iterall() if e.keyword == "CodingSchemeDesignator"}
    claimed = CLAIMS["coding_schemes"]
    assert used == {*claimed["standard"], *claimed["private"]}
    assert declared == claimed["private"]


def test_names_in_the_claims_are_uids() -> None:
    assert all(UID(uid).is_valid for uid in (*STORED, *SYNTAXES))
    assert len(set(STORED)) == len(STORED)


def test_beyond_ascii_the_character_set_is_as_claimed(objects: dict[str, tuple[Path, Dataset]]) -> None:
    assert CLAIMS["files"]["character_set_beyond_ascii"] == "source"
    source = Dataset(objects["SR not analysed"][1])
    source.SpecificCharacterSet, source.PatientName = "ISO_IR 100", "Müller^Jörg"
    report = build_not_analysed_report([source], "TOO_THICK", "The slices are 8 mm thick.", make_context())
    assert report.SpecificCharacterSet == source.SpecificCharacterSet


def test_the_node_has_one_implementation_class() -> None:
    assert spool.IMPLEMENTATION_CLASS_UID == part10.IMPLEMENTATION_CLASS_UID
    assert part10.implementation_version_name(__version__) == spool.IMPLEMENTATION_VERSION_NAME
    assert len(part10.implementation_version_name("12.34.56.post7")) == 16


def test_what_may_come_back_is_what_is_read() -> None:
    assert (
        {*ACCEPTOR["storage"]["returned"]} == {*REPORTS, *SEGMENTATIONS} <= set(ACCEPTOR["storage"]["other"])
    )
