"""TLS in both directions: both sides show a certificate, and who stalls holds up nobody."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pacs_node import tls
from pacs_node.association import Timeouts, Tls
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import AuditEvent, Database
from pacs_node.dimse import DimseDestination
from pacs_node.errors import ConfigurationError
from pacs_node.listener import Listener
from pacs_node.spool import Spool
from tests.certificates import Certificate, make_certificate
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.raw_peer import ACCEPT, REJECT, RawPeer, association_request
from tests.small_node import TestClock

pytestmark = pytest.mark.peer("openssl")

QUICK = Timeouts(connect=10, association=10, progress=2, object=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificate]:
    directory = tmp_path_factory.mktemp("certificates")
    return {name: make_certificate(directory, name) for name in ("node", "pacs", "stranger")}


@pytest.fixture
def listening(
    made: dict[str, Certificate], database: Database, spool: Spool, clock: TestClock
) -> Iterator[Callable[..., int]]:
    listeners: list[Listener] = []

    def start(*callers: Caller) -> int:
        node, pacs = made["node"], made["pacs"]
        settings = ListenerSettings(
            port=find_free_port(),
            tls_certificate_file=str(node.certificate),
            tls_key_file=str(node.key),
            tls_client_ca_file=str(pacs.certificate),
        )
        known = callers or (Caller(ae_title="PACS", address="127.0.0.1"),)
        listeners.append(Listener(settings, known, database, spool, clock))
        return listeners[-1].start()

    yield start
    for listener in listeners:
        listener.stop()


def reasons(database: Database) -> list[str]:
    with database.read() as session:
        rows = session.execute(select(AuditEvent).where(AuditEvent.event == "association refused")).scalars()
        return [row.objects["reason"] for row in rows]


def eventually(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def destination(
    port: int, made: dict[str, Certificate], who: str = "pacs", **options: Any
) -> DimseDestination:
    files = made[who].trusting(made[options.pop("trusts", "node")])
    context = Tls(tls.client_context(files, "test"), options.pop("name", "127.0.0.1"))
    return DimseDestination(
        "node", "127.0.0.1", port, "CTNODE", "PACS", timeouts=QUICK, tls=context, **options
    )


def test_both_sides_with_their_certificates(
    listening: Callable[..., int], made: dict[str, Certificate], tmp_path: Path
) -> None:
    port = listening()
    peer = destination(port, made, verify="none")
    assert peer.echo().ok
    (ds,) = make_ct_series(1, matrix=64)
    ds.save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    assert [outcome.status for outcome in peer.send([tmp_path / "ct.dcm"] * 2)] == [0, 0]


def test_a_pinned_certificate_is_part_of_who_may_send(
    listening: Callable[..., int], made: dict[str, Certificate]
) -> None:
    right, wrong = made["pacs"].sha256, made["node"].sha256
    pinned = Caller(ae_title="PACS", address="127.0.0.1", certificate_sha256=right.upper())
    assert destination(listening(pinned), made).echo().ok
    other = Caller(ae_title="PACS", address="127.0.0.1", certificate_sha256=wrong)
    answer = destination(listening(other), made).echo()
    assert not answer.ok
    assert "Calling AE title not recognised" in answer.detail


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"who": "stranger"}, "TLS:"),
        ({"trusts": "pacs"}, "TLS:"),
        ({"name": "pacs.example"}, "TLS:"),
    ],
    ids=[
        "a certificate that we don't trust",
        "a peer that doesn't trust us",
        "a peer that wants another name",
    ],
)
def test_who_does_not_trust_stays_outside(
    listening: Callable[..., int],
    made: dict[str, Certificate],
    database: Database,
    options: dict[str, str],
    reason: str,
) -> None:
    assert not destination(listening(), made, **options).echo().ok
    eventually(lambda: any(item.startswith(reason) for item in reasons(database)))


def test_a_peer_without_a_certificate_stays_outside(
    listening: Callable[..., int], made: dict[str, Certificate], database: Database
) -> None:
    context = ssl.create_default_context(cafile=str(made["node"].certificate))

    def ask(port: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
        ):
            wrapped.sendall(association_request())
            return wrapped.recv(6)

    with contextlib.suppress(ssl.SSLError, ConnectionError):
        assert ask(listening()) == b""
    eventually(lambda: any("certificate" in item for item in reasons(database)))


def test_plain_dicom_is_no_way_around(listening: Callable[..., int], database: Database) -> None:
    with RawPeer(listening()) as peer:
        peer.send(association_request())
        assert peer.read()[0] not in {ACCEPT, REJECT}
    eventually(lambda: any(item.startswith("TLS:") for item in reasons(database)))


def test_silent_peers_keep_nobody_out(listening: Callable[..., int], made: dict[str, Certificate]) -> None:
    port = listening()
    silent = [RawPeer(port, source=f"127.0.0.{number % 5 + 2}") for number in range(50)]
    silent[0].send(b"\x16\x03\x01")
    assert destination(port, made).echo().ok
    for peer in silent:
        peer.connection.close()


def test_old_tls_is_refused(made: dict[str, Certificate]) -> None:
    for context in (
        tls.server_context(made["node"].trusting(made["pacs"]), "listener"),
        tls.client_context(made["node"].trusting(made["pacs"]), "destination"),
    ):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_a_silent_tls_peer_is_given_up(made: dict[str, Certificate]) -> None:
    """It takes the connection and never answers the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        answer = destination(silent.getsockname()[1], made).echo()
    assert not answer.ok
    assert time.monotonic() - start < 8


def test_validity_is_what_openssl_says(made: dict[str, Certificate]) -> None:
    path = made["node"].certificate
    said = subprocess.run(
        ["openssl", "x509", "-in", path, "-noout", "-startdate", "-enddate", "-fingerprint", "-sha256"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    values = dict(line.split("=", 1) for line in said.splitlines())
    begins, ends = (
        datetime.fromtimestamp(ssl.cert_time_to_seconds(values[name]), UTC)
        for name in ("notBefore", "notAfter")
    )
    validity = tls.read_validity(path)
    assert (validity.begins, validity.ends) == (begins, ends)
    assert validity.sha256 == values["sha256 Fingerprint"].replace(":", "").lower()


def test_after_2049_the_other_form_of_time_is_read(tmp_path: Path) -> None:
    late = make_certificate(tmp_path, "late", days=40 * 365)
    assert tls.read_validity(late.certificate).ends.year > 2060


@pytest.mark.parametrize(
    "content", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_is_no_certificate_is_said(tmp_path: Path, content: bytes, made: dict[str, Certificate]) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="certificate"):
        tls.read_validity(path)
    broken = tls.TlsFiles(str(path), str(made["node"].key), str(made["pacs"].certificate))
    with pytest.raises(ConfigurationError, match=r"listener: .*no certificate with its key"):
        tls.server_context(broken, "listener")


def test_a_missing_file_and_another_key_are_said(made: dict[str, Certificate], tmp_path: Path) -> None:
    node, pacs = made["node"], made["pacs"]
    with pytest.raises(ConfigurationError, match=r"no such file"):
        tls.server_context(tls.TlsFiles(str(tmp_path / "none"), str(node.key), str(pacs.certificate)), "x")
    with pytest.raises(ConfigurationError, match=r"no certificate with its key"):
        tls.server_context(tls.TlsFiles(str(node.certificate), str(pacs.key), str(pacs.certificate)), "x")
