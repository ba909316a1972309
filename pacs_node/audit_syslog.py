"""Each audit event to a syslog server: RFC 5424 in RFC 5425's TLS, as PS3.15 A.6 asks for.

The protocol knows no answer. So a batch goes over a connection of its own: a moment is left to a server
that doesn't want us, which it may say only after the handshake (TLS 1.3); then the batch is sent and the
connection closed in order. A server that closes it too has read what came before; one that hasn't breaks
it. Only then is the batch counted as sent. What is cut is sent again: an event may come twice, and carries
its number.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from threading import Event

from inference.durable import replace_file
from pacs_node.audit_export import Selection, entries
from pacs_node.audit_message import Entry, Origin, message_of
from pacs_node.audit_xml import to_xml
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.errors import ConfigurationError
from pacs_node.storage import open_database

logger = logging.getLogger(__name__)

#: facility 10 (security), severity 5 (notice), PS3.15 A.6
PRIORITY = 85
MESSAGE_ID = "DICOM+RFC3881"
_BATCH = 200
_POLL_SECONDS = 5.0
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0
_TIMEOUT_SECONDS = 30.0
_BOM = b"\xef\xbb\xbf"


def frame(entry: Entry, origin: Origin) -> bytes:
    """One syslog message with its length before it (RFC 5424; RFC 5425, 4.3)."""
    at = entry.at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    host = _name(origin.source_id, 255)
    header = f"<{PRIORITY}>1 {at} {host} pacs-node {os.getpid()} {MESSAGE_ID} - "
    message = header.encode("ascii") + _BOM + to_xml(message_of(entry, origin)).replace(b"\n", b"")
    return b"%d %s" % (len(message), message)


def _name(text: str, longest: int) -> str:
    """Printable ASCII without spaces, - for none (RFC 5424, 6)."""
    return "".join(sign for sign in text if "!" <= sign <= "~")[:longest] or "-"


@dataclass(frozen=True, slots=True)
class Server:
    """Where events go."""

    host: str
    port: int
    context: ssl.SSLContext
    #: s; what a server gets to refuse us
    patience: float = 1.0

    def send(self, frames: Iterable[bytes], timeout: float = _TIMEOUT_SECONDS) -> None:
        """Send a batch over a connection of its own and see that it was read.

        Raises
        ------
        OSError
            No connection, a certificate that isn't trusted, or an end before everything was read.
        """
        with (
            socket.create_connection((self.host, self.port), timeout) as plain,
            self.context.wrap_socket(plain, server_hostname=self.host) as connection,
        ):
            _see_that_we_are_wanted(connection, self.patience)
            connection.settimeout(timeout)
            for item in frames:
                connection.sendall(item)
            # rsyslog closes without a close_notify of its own
            with suppress(ssl.SSLEOFError):
                connection.unwrap()


def _see_that_we_are_wanted(connection: ssl.SSLSocket, patience: float) -> None:
    connection.settimeout(patience)
    with suppress(TimeoutError):
        connection.recv(1)
        raise ConnectionAbortedError("the server closed the connection after the handshake")


def client_context(ca_file: str, certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 or newer towards a server whose certificate and name are checked.

    Raises
    ------
    ConfigurationError
        A file can't be read or holds something else.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=ca_file)
        if certificate:
            context.load_cert_chain(certificate, key, password=lambda: "")
    except OSError as error:
        raise ConfigurationError(f"audit: {ca_file or certificate!r}: {error.strerror or error}") from None
    return context


class Forwarder:
    """Sends what was not sent yet, in its order.

    Parameters
    ----------
    position
        File with the number of the last event that was sent; made here.
    """

    def __init__(self, database: Database, server: Server, origin: Origin, position: Path) -> None:
        self._database, self._server, self._origin, self._position = database, server, origin, position

    def forward(self) -> int:
        """Send one batch and return its length; 0 when nothing is left.

        Raises
        ------
        OSError
            It didn't arrive as a whole, and will be sent again.
        """
        with self._database.read() as session:
            batch = list(entries(session, Selection(after_seq=self.sent()), limit=_BATCH))
        if batch:
            self._server.send(frame(entry, self._origin) for entry in batch)
            replace_file(self._position, [json.dumps({"seq": batch[-1].seq}).encode("ascii")])
        return len(batch)

    def sent(self) -> int:
        """Return the number of the last event that was sent, 0 before the first."""
        try:
            return int(json.loads(self._position.read_bytes())["seq"])
        except FileNotFoundError:
            return 0

    def run(self, stop: Event) -> None:
        """Send until `stop` is set; a server that is away is tried again ever less often."""
        wait = _FIRST_WAIT
        while not stop.is_set():
            try:
                count = self.forward()
            except OSError as error:
                logger.warning(
                    "audit events could not be sent",
                    extra={"error": type(error).__name__, "in_seconds": wait},
                )
                stop.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
                continue
            wait = _FIRST_WAIT
            if count < _BATCH:
                stop.wait(_POLL_SECONDS)


def run(settings: Settings, stop: Event) -> None:
    """Send until `stop` is set, as the settings say."""
    audit = settings.audit
    context = client_context(audit.syslog_ca_file, audit.syslog_certificate_file, audit.syslog_key_file)
    database = open_database(settings)
    origin = Origin(settings.listener.ae_title, audit.origin_name(), audit.site)
    position = Path(settings.storage.directory) / "audit-sent.json"
    Forwarder(database, Server(audit.syslog_host, audit.syslog_port, context), origin, position).run(stop)
    database.dispose()
