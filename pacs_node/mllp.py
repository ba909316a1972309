"""Takes HL7 v2 messages by MLLP and acknowledges what is written down, and only that.

MLLP Release 1: a message stands between 0x0B and 0x1C 0x0D. Senders outside of the settings are cut off
before they are read. ``AA`` is sent after the commit; ``AE`` and ``AR`` say why a message is not taken.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from threading import BoundedSemaphore, Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from pacs_node.clinical_facts import forget, keep
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings
from pacs_node.config_record import MllpSettings
from pacs_node.db import Database
from pacs_node.hl7_ack import acknowledgement
from pacs_node.hl7_message import NOT_NOW, WRONG_TYPE, RefusedError, control_id_of, read_message
from pacs_node.record_codes import Coding
from pacs_node.storage import open_database
from pacs_node.tls import server_context

logger = logging.getLogger(__name__)

START, END = b"\x0b", b"\x1c\r"
_PIECE = 65_536
_POLL_SECONDS = 0.5
_FORGET_SECONDS = 3600.0


class _ClosedError(Exception):
    """The connection is of no more use; says why, for the log."""


class Intake:
    """Turns the bytes of a message into an answer.

    Parameters
    ----------
    database
        Takes the facts.
    settings
        ``[record]`` for the site's codes, ``[mllp]`` for how messages are read.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock = utc_now) -> None:
        self._database, self._settings, self._clock = database, settings.mllp, clock
        self._site = {
            Coding.of(*code.rsplit("|", 1)): str(item) for code, item in settings.record.codes.items()
        }

    def answer(self, data: bytes, address: str) -> bytes:
        """Take a message and return the acknowledgement."""
        now = self._clock()
        try:
            message = read_message(
                data, self._site, self._settings.accession_fields, self._settings.patient_authority
            )
            with self._database.write() as session:
                new = keep(session, message, address=address, at=now)
        except RefusedError as error:
            logger.warning(
                "message refused",
                extra={"address": address, "answer": error.code, "reason": error.sentence},
            )
            return acknowledgement(error.code, error.control_id, now, error.condition, error.sentence)
        except SQLAlchemyError:
            logger.exception("a message could not be written down")
            words = "The message can't be written down now."
            return acknowledgement("AE", control_id_of(data), now, NOT_NOW, words)
        logger.info("message taken", extra={"address": address, "facts": len(message.facts), "new": new})
        return acknowledgement("AA", message.control_id, now)

    def too_large(self, head: bytes) -> bytes:
        """Return the answer to a message that is larger than set."""
        words = f"The message is larger than {self._settings.max_message_kb} KiB."
        return acknowledgement("AR", control_id_of(head), self._clock(), WRONG_TYPE, words)

    def forget(self) -> None:
        """Remove what is older than set."""
        with self._database.write() as session:
            forget(session, self._clock() - timedelta(days=self._settings.keep_days))


class Connection:
    """One sender's connection: message, answer, message, answer.

    Parameters
    ----------
    connection
        Accepted, and TLS done where it is spoken.
    answer
        See `Intake.answer`.
    """

    def __init__(
        self, connection: socket.socket, address: str, intake: Intake, settings: MllpSettings
    ) -> None:
        self._connection, self._address = connection, address
        self._intake, self._settings = intake, settings
        self._held = b""

    def serve(self, stop: Event) -> str:
        """Answer until the sender ends, or does what it must not; return why it ended."""
        try:
            while not stop.is_set():
                data = self._message()
                self._send(self._intake.answer(data, self._address))
        except _ClosedError as error:
            return str(error)
        except OSError as error:
            return type(error).__name__
        return "the node is stopped"

    def _message(self) -> bytes:
        limit = self._settings.max_message_kb * 1024
        # between messages line ends may stand
        while not (held := self._held.lstrip(b"\r\n")):
            self._held = b""
            self._receive(time.monotonic() + self._settings.idle_seconds)
        if held[:1] != START:
            raise _ClosedError("no start of a message")
        self._held = held[1:]
        until = time.monotonic() + self._settings.message_seconds
        searched = 0
        while (end := self._held.find(END, searched)) < 0:
            if len(self._held) > limit:
                self._send(self._intake.too_large(self._held[:1024]))
                raise _ClosedError("message too large")
            searched = max(len(self._held) - 1, 0)
            self._receive(until)
        data, self._held = self._held[:end], self._held[end + len(END) :]
        if len(data) > limit:
            self._send(self._intake.too_large(data[:1024]))
            raise _ClosedError("message too large")
        return data

    def _receive(self, until: float) -> None:
        left = until - time.monotonic()
        if left <= 0:
            raise _ClosedError("too slow")
        self._connection.settimeout(left)
        try:
            piece = self._connection.recv(_PIECE)
        except TimeoutError:
            raise _ClosedError("too slow") from None
        if not piece:
            raise _ClosedError("half a message" if self._held else "closed by the sender")
        self._held += piece

    def _send(self, answer: bytes) -> None:
        self._connection.settimeout(self._settings.message_seconds)
        self._connection.sendall(START + answer + END)


class Door:
    """Listens, and lets in whom the settings name.

    Parameters
    ----------
    settings
        ``[mllp]``.
    tls
        Where TLS is spoken.
    """

    def __init__(self, settings: MllpSettings, intake: Intake, tls: ssl.SSLContext | None = None) -> None:
        self._settings, self._intake, self._tls = settings, intake, tls
        self._networks = [ipaddress.ip_network(one) for one in settings.senders]
        self._free = BoundedSemaphore(settings.max_connections)
        self._socket = socket.create_server((settings.host, settings.port), backlog=16)
        self._socket.settimeout(_POLL_SECONDS)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def run(self, stop: Event, between: Callable[[], None]) -> None:
        """Take connections until `stop` is set; `between` is called now and then."""
        with self._socket:
            while not stop.is_set():
                between()
                try:
                    connection, peer = self._socket.accept()
                except (TimeoutError, ConnectionAbortedError):
                    # nobody came, or who came is gone again
                    continue
                except OSError as error:
                    # out of descriptors or memory: who waits is taken when there is room again
                    logger.warning("a connection could not be accepted", extra={"reason": error.strerror})
                    stop.wait(_POLL_SECONDS)
                    continue
                self._admit(connection, str(peer[0]), stop)

    def _admit(self, connection: socket.socket, address: str, stop: Event) -> None:
        known = any(ipaddress.ip_address(address) in network for network in self._networks)
        if not known or not self._free.acquire(blocking=False):
            reason = "too many connections" if known else "not a sender of the settings"
            logger.warning("connection refused", extra={"address": address, "reason": reason})
            connection.close()
            return
        try:
            Thread(target=self._serve, args=(connection, address, stop), name="mllp", daemon=True).start()
        except RuntimeError:
            logger.warning("connection refused", extra={"address": address, "reason": "no thread to be had"})
            connection.close()
            self._free.release()

    def _serve(self, connection: socket.socket, address: str, stop: Event) -> None:
        try:
            connection.settimeout(self._settings.message_seconds)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            ending = Connection(connection, address, self._intake, self._settings).serve(stop)
            logger.info("connection ended", extra={"address": address, "reason": ending})
        except OSError as error:
            logger.warning("connection ended", extra={"address": address, "reason": type(error).__name__})
        except Exception:
            # a thread's loop: one sender's message must not end the others
            logger.exception("connection failed")
        finally:
            connection.close()
            self._free.release()


def run(settings: Settings, stop: Event) -> None:
    """Take messages until `stop` is set."""
    section = settings.mllp
    files = section.tls_files()
    tls = None if files is None else server_context(files, "mllp")
    database = open_database(settings)
    intake = Intake(database, settings)
    due = 0.0

    def forget_now_and_then() -> None:
        nonlocal due
        if time.monotonic() >= due:
            intake.forget()
            due = time.monotonic() + _FORGET_SECONDS

    Door(section, intake, tls).run(stop, forget_now_and_then)
    database.dispose()
