"""What the STOW-RS client does with the answers of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread

from pacs_node import dicomweb
from pacs_node.destinations import OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from tests.ct_factory import make_ct_series, write_series
from tests.serving import serving
from tests.small_objects import reference, write_ct, write_sr


@dataclass
class Answer:
    """One scripted response; a dict or list is sent as DICOM JSON."""

    status: int
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def parts(self) -> list[bytes]:
        head = f"Content-Type: {self.headers['content-type']}\r\n\r\n".encode()
        message = message_from_bytes(head + self.body, policy=policy.HTTP)
        return [bytes(part.get_payload(decode=True)) for part in message.iter_parts()]


class Server(ThreadingHTTPServer):
    def __init__(self, answers: list[Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/dicom-web"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(headers.get("content-length", 0)))
        self.server.requests.append(Request(self.command, self.path, headers, body))
        answer = self.server.answers.pop(0)
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/dicom+json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = handle_any  # noqa: N815  # names that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # name of the base class
        pass


@contextmanager
def server(*answers: Answer) -> Iterator[Server]:
    with serving(Server(list(answers))) as running:
        yield running


def stored(*uids: str, warning: int | None = None) -> dict[str, Any]:
    extra = {"00081196": {"vr": "US", "Value": [warning]}} if warning is not None else {}
    items = [{"00081155": {"vr": "UI", "Value": [uid]}, **extra} for uid in uids]
    return {"00081199": {"vr": "SQ", "Value": items}}


def failed(uid: str, reason: int | None) -> dict[str, Any]:
    item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
    if reason is not None:
        item["00081197"] = {"vr": "US", "Value": [reason]}
    return {"00081198": {"vr": "SQ", "Value": [item]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_sr(tmp_path / "sr")


@pytest.fixture
def uid(path: Path) -> str:
    return str(dcmread(path).SOPInstanceUID)


def test_parts_are_the_bytes_of_the_files(tmp_path: Path, path: Path) -> None:
    paths = [*write_ct(tmp_path / "ct"), path]
    with server(Answer(200, stored(*(str(dcmread(each).SOPInstanceUID) for each in paths)))) as running:
        outcomes = DicomWebDestination("web", running.url + "/").send(paths)
    (request,) = running.requests
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.STORED}
    assert (request.method, request.path) == ("POST", "/dicom-web/studies")
    assert request.headers["accept"] == "application/dicom+json"
    assert request.parts() == [each.read_bytes() for each in paths]


def test_large_body_is_sent_once_and_whole_after_503(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(-1000, 1000, (1, 1024, 1024)).astype(np.int16)
    (large,) = write_series(make_ct_series(1, matrix=1024, hu=noise), tmp_path / "ct")
    with server(Answer(503)) as running:
        (outcome,) = DicomWebDestination("web", running.url).send([large])
    assert (outcome.kind, outcome.status) == (OutcomeKind.TRANSIENT, 503)
    (request,) = running.requests  # the client's own retry would send an empty body here
    assert request.headers["transfer-encoding"] == "chunked"
    assert request.parts() == [large.read_bytes()]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *(
            (status, OutcomeKind.PERMANENT)
            for status in (400, 401, 403, 404, 405, 406, 409, 411, 413, 415, 501)
        ),
        *((status, OutcomeKind.TRANSIENT) for status in (408, 425, 429, 500, 502, 503, 504, 507)),
    ],
)
def test_refusals_without_a_body(status: int, kind: OutcomeKind, path: Path, uid: str) -> None:
    with server(Answer(status), Answer(status)) as running:
        destination = DicomWebDestination("web", running.url)
        (outcome,) = destination.send([path])
        assert not destination.echo().ok
    assert (outcome.sop_instance_uid, outcome.kind, outcome.status) == (uid, kind, status)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (0xA700, OutcomeKind.TRANSIENT),
        (0x0110, OutcomeKind.TRANSIENT),
        (None, OutcomeKind.TRANSIENT),
        (0xA900, OutcomeKind.PERMANENT),
        (0xC000, OutcomeKind.PERMANENT),
        (0x0122, OutcomeKind.PERMANENT),
        (0x0124, OutcomeKind.PERMANENT),
        (0x0000, OutcomeKind.PERMANENT),  # "failed" is said by the sequence, whatever the reason
        (0xB000, OutcomeKind.PERMANENT),
        (0x0111, OutcomeKind.STORED),
    ],
)
@pytest.mark.parametrize("http", [200, 202, 409])
def test_failed_sop_sequence_decides(
    http: int, reason: int | None, kind: OutcomeKind, path: Path, uid: str
) -> None:
    with server(Answer(http, failed(uid, reason))) as running:
        (outcome,) = DicomWebDestination("web", running.url).send([path])
    assert outcome.kind is kind


@pytest.mark.parametrize("warning", [0xB000, 0xB006, 0xB007, 0xA700, 0x0111])
def test_warning_reason_is_stored_with_a_warning(warning: int, path: Path, uid: str) -> None:
    with server(Answer(202, stored(uid, warning=warning))) as running:
        (outcome,) = DicomWebDestination("web", running.url).send([path])
    assert (outcome.kind, outcome.status) == (OutcomeKind.WARNING_STORED, warning)


def test_partial_answer_is_read_for_each_object(tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct", n_slices=4)
    uids = [str(dcmread(each).SOPInstanceUID) for each in paths]
    with server(Answer(202, {**stored(uids[0], uids[3]), **failed(uids[2], 0xA701)})) as running:
        outcomes = DicomWebDestination("web", running.url).send(paths)
    assert [outcome.kind for outcome in outcomes] == [
        OutcomeKind.STORED,
        OutcomeKind.TRANSIENT,  # named nowhere: not confirmed
        OutcomeKind.TRANSIENT,
        OutcomeKind.STORED,
    ]
    assert "did not confirm" in outcomes[1].detail
    assert [outcome.sop_instance_uid for outcome in outcomes] == uids


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<NativeDicomModel/>",
        b"\xff\xfe",
        {},
        [],
        [[]],
        "text",
        17,
        None,
        {"00081199": None},
        {"00081199": {"Value": None}},
        {"00081199": {"Value": [None, 3, {"00081155": 5}, {"00081155": {"Value": [7]}}]}},
        {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]}},
    ],
)
def test_success_that_confirms_nothing_is_not_believed(body: Any, path: Path) -> None:
    with server(Answer(200, body)) as running:
        (outcome,) = DicomWebDestination("web", running.url).send([path])
    assert (outcome.kind, outcome.status) == (OutcomeKind.TRANSIENT, 200)


def test_answer_as_a_list_of_one(path: Path, uid: str) -> None:
    with server(Answer(200, [stored(uid)])) as running:
        assert DicomWebDestination("web", running.url).send([path])[0].kind is OutcomeKind.STORED


@pytest.mark.parametrize("http", [400, 409, 413, 415])
def test_refused_request_is_sent_again_object_by_object(http: int, tmp_path: Path) -> None:
    paths = write_ct(tmp_path / "ct", n_slices=2)
    first, second = (str(dcmread(each).SOPInstanceUID) for each in paths)
    with server(Answer(http), Answer(http), Answer(200, stored(second))) as running:
        outcomes = DicomWebDestination("web", running.url).send(paths)
    assert [(outcome.sop_instance_uid, outcome.kind) for outcome in outcomes] == [
        (first, OutcomeKind.PERMANENT),
        (second, OutcomeKind.STORED),
    ]
    assert [len(request.parts()) for request in running.requests] == [2, 1, 1]


def test_requests_are_cut_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_ct(tmp_path / "ct", n_slices=5)
    uids = [str(dcmread(each).SOPInstanceUID) for each in paths]
    monkeypatch.setattr(dicomweb, "MAX_BODY_BYTES", 2 * paths[0].stat().st_size + 100)
    answers = [Answer(200, stored(*uids)) for _ in range(3)]
    with server(*answers) as running:
        outcomes = DicomWebDestination("web", running.url).send(paths)
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.STORED}
    assert [len(request.parts()) for request in running.requests] == [2, 2, 1]


def test_unreadable_files_keep_their_place(tmp_path: Path, path: Path, uid: str) -> None:
    (tmp_path / "text").write_text("x" * 200)
    with server(Answer(200, stored(uid))) as running:
        outcomes = DicomWebDestination("web", running.url).send([tmp_path / "gone", path, tmp_path / "text"])
    assert [outcome.kind for outcome in outcomes] == [
        OutcomeKind.PERMANENT,
        OutcomeKind.STORED,
        OutcomeKind.PERMANENT,
    ]


def test_no_redirect_is_followed(path: Path, uid: str) -> None:
    with server(Answer(200, stored(uid)), Answer(200, [])) as elsewhere:
        away = Answer(307, headers={"Location": elsewhere.url + "/studies"})
        with server(away, away) as running:
            destination = DicomWebDestination("web", running.url, user="node", password="secret")
            (outcome,) = destination.send([path])
            assert not destination.echo().ok
    assert (outcome.kind, outcome.status) == (OutcomeKind.PERMANENT, None)
    assert "redirect" in outcome.detail
    assert not elsewhere.requests


@pytest.mark.parametrize("status", [300, 302, 304, 308])
@pytest.mark.parametrize("location", [None, "http://pacs/\xff", "http://[", "/studies"])
def test_a_redirect_to_anywhere_is_an_outcome(status: int, location: str | None, path: Path) -> None:
    """Its address may not even be text; and an empty body of it is no answer "I have nothing"."""
    away = Answer(status, headers={} if location is None else {"Location": location})
    item = reference(dcmread(path))
    with server(away, away, away) as running:
        destination = DicomWebDestination("web", running.url)
        (outcome,) = destination.send([path])
        echo = destination.echo()
        assert destination.verify([item]) == {item.sop_instance_uid: None}
        assert len(running.requests) == 3
    assert (outcome.kind, "redirect" in outcome.detail) == (OutcomeKind.PERMANENT, True)
    assert (echo.ok, "redirect" in echo.detail) == (False, True)


@pytest.mark.parametrize("body", [b"null", b"5", b"\xff", b"[" * 100_000, b'{"00080018": 1}'])
def test_an_answer_that_is_no_list_of_matches_raises_nothing(body: bytes, path: Path) -> None:
    item = reference(dcmread(path))
    with server(Answer(200, body), Answer(200, body), Answer(200, body)) as running:
        destination = DicomWebDestination("web", running.url)
        (outcome,) = destination.send([path])
        destination.echo()
        assert destination.verify([item])[item.sop_instance_uid] is not True
    assert outcome.kind is OutcomeKind.TRANSIENT


def test_credentials_headers_and_no_proxy_of_the_environment(
    path: Path, uid: str, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")
    with server(Answer(200, stored(uid)), Answer(200, stored(uid))) as running:
        DicomWebDestination("web", running.url, user="node", password="secret").send([path])
        DicomWebDestination("web", running.url, headers={"Authorization": "Bearer token"}).send([path])
    assert [request.headers["authorization"] for request in running.requests] == [
        "Basic bm9kZTpzZWNyZXQ=",
        "Bearer token",
    ]


def test_verify_reads_the_uids_of_the_matches(tmp_path: Path) -> None:
    objects = [reference(dcmread(each)) for each in write_ct(tmp_path / "ct", n_slices=6)]
    uids = [item.sop_instance_uid for item in objects]

    def match(uid: str) -> dict[str, Any]:
        return {"00080018": {"vr": "UI", "Value": [uid]}}

    answers = [
        Answer(200, [match(uids[0])]),
        Answer(204),
        Answer(200, [match(uids[0]), match("1.2.3")]),  # a server that ignores the key
        Answer(404),
        Answer(503),
        Answer(200, b"not JSON"),
    ]
    with server(*answers) as running:
        found = DicomWebDestination("web", running.url).verify(objects)
    assert list(found.values()) == [True, False, False, False, None, None]
    first = running.requests[0].path
    study, series = objects[0].study_uid, objects[0].series_uid
    assert first == f"/dicom-web/studies/{study}/series/{series}/instances?SOPInstanceUID={uids[0]}"


def test_verify_none_asks_nobody(tmp_path: Path, path: Path, free_port: int) -> None:
    item = reference(dcmread(path))
    nobody = DicomWebDestination("web", f"http://127.0.0.1:{free_port}", verify="none")
    assert nobody.verify([item]) == {item.sop_instance_uid: None}


def test_echo_asks_for_no_patient() -> None:
    with server(Answer(200, []), Answer(204), Answer(200, b"<html>")) as running:
        destination = DicomWebDestination("web", running.url)
        assert destination.echo().ok
        assert destination.echo().ok
        strange = destination.echo()
    assert (strange.ok, strange.detail) == (False, "the answer is not DICOM JSON")
    assert "StudyInstanceUID=2.25.0" in running.requests[0].path


def test_missing_ca_file_is_an_outcome(path: Path, tmp_path: Path) -> None:
    destination = DicomWebDestination("web", "https://127.0.0.1:9/dicom-web", ca=tmp_path / "gone.pem")
    (outcome,) = destination.send([path])
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert not destination.echo().ok


def test_url_of_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="https://"):
        DicomWebDestination("web", "ftp://pacs.example")
