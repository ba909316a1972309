"""Audit events at a real rsyslog, by TLS."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import pytest
from lxml import etree

from conformance.statement import read_claims
from pacs_node import audit
from pacs_node.audit_message import Origin
from pacs_node.audit_syslog import Forwarder, Server, client_context
from pacs_node.db import Database, sqlite_url
from pacs_node.errors import ConfigurationError
from tests.certificates import Certificate, make_certificate
from tests.conftest import find_free_port, find_peer
from tests.node_story import START

SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parents[2] / "conformance" / "audit_message.rng"))
CLAIMED = read_claims()["audit"]
RFC_5424 = re.compile(
    rf"<{CLAIMED['priority']}>1 2026-\d\d-\d\dT[0-9:.]+Z node\.example pacs-node \d+ "
    rf"{re.escape(CLAIMED['message_id'])} - (.*)",
    re.DOTALL,
)
CONFIGURATION = """
global(workDirectory="{directory}" maxMessageSize="64k" parser.escapeControlCharactersOnReceive="off"
  defaultNetstreamDriver="gtls" defaultNetstreamDriverCAFile="{client}"
  defaultNetstreamDriverCertFile="{certificate}" defaultNetstreamDriverKeyFile="{key}")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/certvalid")
input(type="imtcp" address="127.0.0.1" port="{port}" supportOctetCountedFraming="on")
template(name="raw" type="string" string="%rawmsg%\\n")
action(type="omfile" file="{directory}/received" template="raw")
"""

pytestmark = pytest.mark.peer("rsyslogd", "openssl")


class Rsyslog:
    """A server that keeps what it gets in a file."""

    def __init__(self, directory: Path, ours: Certificate, client: Certificate) -> None:
        self.directory, self.port, self._ours, self._client = directory, find_free_port(), ours, client
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        configuration = self.directory / "rsyslog.conf"
        configuration.write_text(
            CONFIGURATION.format(
                directory=self.directory,
                client=self._client.certificate,
                certificate=self._ours.certificate,
                key=self._ours.key,
                port=self.port,
            )
        )
        self._process = subprocess.Popen(
            [str(find_peer("rsyslogd")), "-n", "-f", configuration, "-i", self.directory / "pid"],
            stderr=subprocess.PIPE,
        )
        until(self._listens, "rsyslog listens")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._process.communicate()[1]
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.communicate(timeout=20)
            self._process = None

    def messages(self) -> list[str]:
        path = self.directory / "received"
        if not path.exists():
            return []
        found = [RFC_5424.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [match[1].removeprefix("\ufeff") for match in found if match]


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    directory = tmp_path_factory.mktemp("certificates")
    return make_certificate(directory, "rsyslog"), make_certificate(directory, "node")


@pytest.fixture
def rsyslog(tmp_path: Path, certificates: tuple[Certificate, Certificate]) -> Iterator[Rsyslog]:
    server = Rsyslog(tmp_path, *certificates)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(sqlite_url(tmp_path))
    opened.upgrade()
    yield opened
    opened.dispose()


def fill(database: Database, count: int) -> None:
    with database.write() as session:
        for number in range(count):
            audit.record(
                session,
                audit.Event.SERIES_ARRIVED,
                at=START + timedelta(seconds=number),
                actor="listener",
                study_uid=f"1.2.{number}",
                calling_ae="PÄCS<&>\n\x00",
                detail="x" * 3000,
            )


def forwarder(
    database: Database,
    port: int,
    directory: Path,
    ours: Certificate,
    server: Certificate,
    patience: float = 0.1,
) -> Forwarder:
    context = client_context(str(server.certificate), str(ours.certificate), str(ours.key))
    peer = Server("127.0.0.1", port, context, patience)
    return Forwarder(database, peer, Origin("CTNODE", "node.example"), directory / "sent.json")


def numbers(messages: list[str]) -> list[str]:
    found = []
    for message in messages:
        root = etree.fromstring(message.encode())
        assert SCHEMA.validate(root), SCHEMA.error_log
        found.append(root.find("ParticipantObjectIdentification").get("ParticipantObjectID"))
    return found


def test_every_event_arrives_once_and_in_order(
    rsyslog: Rsyslog, database: Database, certificates: tuple[Certificate, Certificate], tmp_path: Path
) -> None:
    theirs, ours = certificates
    fill(database, 230)
    sender = forwarder(database, rsyslog.port, tmp_path, ours, theirs)
    assert [sender.forward(), sender.forward(), sender.forward()] == [200, 30, 0]
    until(lambda: len(rsyslog.messages()) >= 230, "all events have arrived")
    assert numbers(rsyslog.messages()) == [f"1.2.{number}" for number in range(230)]


def test_a_server_that_was_away_gets_what_it_missed(
    rsyslog: Rsyslog,
    database: Database,
    certificates: tuple[Certificate, Certificate],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pacs_node.audit_syslog._FIRST_WAIT", 0.1)
    monkeypatch.setattr("pacs_node.audit_syslog._POLL_SECONDS", 0.1)
    theirs, ours = certificates
    fill(database, 5)
    rsyslog.stop()
    sender, stop = forwarder(database, rsyslog.port, tmp_path, ours, theirs), Event()
    thread = Thread(target=sender.run, args=(stop,))
    thread.start()
    try:
        time.sleep(0.3)
        assert sender.sent() == 0
        rsyslog.start()
        until(lambda: sender.sent() == 5, "the events are sent")
        fill(database, 2)
        until(lambda: sender.sent() == 7, "the later ones too")
    finally:
        stop.set()
        thread.join()
    until(lambda: len(rsyslog.messages()) == 7, "all have arrived")


def test_other_certificates_get_nothing(
    rsyslog: Rsyslog, database: Database, certificates: tuple[Certificate, Certificate], tmp_path: Path
) -> None:
    theirs, ours = certificates
    fill(database, 1)
    stranger = make_certificate(tmp_path, "stranger")
    with pytest.raises(ssl.SSLCertVerificationError):
        forwarder(database, rsyslog.port, tmp_path, ours, stranger).forward()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        forwarder(database, rsyslog.port, tmp_path, stranger, theirs, patience=10).forward()
    assert forwarder(database, rsyslog.port, tmp_path, ours, theirs).sent() == 0


def test_a_connection_that_is_cut_is_not_counted(
    database: Database, certificates: tuple[Certificate, Certificate], tmp_path: Path
) -> None:
    theirs, ours = certificates
    fill(database, 150)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs.certificate, theirs.key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def cut() -> None:
            connection, _ = listening.accept()
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1000)

        thread = Thread(target=cut)
        thread.start()
        sender = forwarder(database, listening.getsockname()[1], tmp_path, ours, theirs)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            sender.forward()
        thread.join()
    assert sender.sent() == 0


def test_files_that_hold_no_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("nothing")
    for name in ("file", "missing"):
        with pytest.raises(ConfigurationError, match=name):
            client_context(str(tmp_path / name), "", "")
