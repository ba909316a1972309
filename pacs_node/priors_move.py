"""Takes what an archive sends by C-MOVE: a listener of its own, there only while something is expected.

What comes to the node's listener is a study to analyse; what comes here is not, and never gets a row. It
takes the images that were asked for, from the archive that was asked, and nothing else. The gate and the
associations are those of the node's listener, with all their limits.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from inference.select import CT_STORAGE
from pacs_node import tls
from pacs_node.archive import ArchiveError
from pacs_node.association import Peer
from pacs_node.config_listener import Caller, ListenerSettings
from pacs_node.destinations import OutcomeKind
from pacs_node.errors import NodeError
from pacs_node.file_meta import file_head
from pacs_node.gate import Gate
from pacs_node.gate_association import Acceptor, Answer, Notice, StoreRequest, Terms
from pacs_node.gate_pdu import Rejection
from pacs_node.gate_visitor import Admitted, Refusal, Visitor
from pacs_node.priors_archive import Patience
from pacs_node.priors_store import PriorFolder
from pacs_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_SUCCESS, _OUT_OF_RESOURCES, _NOT_EXPECTED, _NOT_KNOWN = 0x0000, 0xA700, 0xC000, 0x0211
_AGAIN_S = 0.5
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class MoveSettings:
    """Where an archive is to send to.

    Parameters
    ----------
    ae_title, host, port
        As the archive knows us for this.
    listener
        Its limits, and its files for TLS, hold here too.
    callers
        From other addresses than its own the archive may send if one of these admits it.
    """

    ae_title: str
    host: str
    port: int
    listener: ListenerSettings
    callers: tuple[Caller, ...] = ()


class _Object:
    """One object on its way: kept in memory, as large as there is room for."""

    def __init__(self, most: int) -> None:
        self.data = bytearray()
        self.too_large = False
        self._most = most

    def write(self, data: memoryview) -> None:
        """Take some bytes; those of what is too large are thrown away."""
        self.too_large = self.too_large or len(self.data) + len(data) > self._most
        if not self.too_large:
            self.data += data

    def discard(self) -> None:
        """Leave nothing behind."""
        self.data = bytearray()


class MoveReceiver:
    """Listens while the block runs.

    Parameters
    ----------
    settings
        Where.
    archive
        Who may send: by its AE title and address.
    images
        SOP Instance UIDs that were asked for.
    folder
        Where they go.
    patience
        How long to wait for the port, which another worker may have.
    """

    def __init__(
        self,
        settings: MoveSettings,
        archive: Peer,
        images: Sequence[str],
        folder: PriorFolder,
        patience: Patience,
    ) -> None:
        self._settings, self._archive, self._folder = settings, archive, folder
        self._expected, self._patience = frozenset(images), patience
        self._lock = threading.Lock()
        self._acceptors: dict[Acceptor[_Object], threading.Thread] = {}
        self._paths: dict[str, Path] = {}
        self._trouble: Exception | None = None
        self._gate: Gate | None = None
        self._addresses = frozenset[str]()

    def __enter__(self) -> Self:
        files = self._settings.listener.tls_files()
        self._addresses = _addresses(self._archive.host)
        self._gate = Gate(
            self._listen(),
            judge=self._judge,
            admit=self._admit,
            refused=lambda _visitor, _sentence: None,
            context=None if files is None else tls.server_context(files, "listener"),
        )
        self._gate.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gate is not None:
            self._gate.stop()
        with self._lock:
            running = dict(self._acceptors)
        for acceptor in running:
            acceptor.stop()
        for thread in running.values():
            thread.join(_END_S)

    def _listen(self) -> socket.socket:
        family, _, _, _, address = socket.getaddrinfo(
            self._settings.host, self._settings.port, type=socket.SOCK_STREAM
        )[0]
        where = (str(address[0]), self._settings.port)
        while True:
            try:
                return socket.create_server(where, family=family)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    sentence = f"priors.move_port can't be listened on ({error.strerror})"
                    raise ArchiveError(OutcomeKind.PERMANENT, sentence) from error
            self._patience.left()
            self._patience.over.wait(_AGAIN_S)

    def _judge(self, visitor: Visitor) -> Refusal | None:
        if visitor.calling_ae != self._archive.called_ae:
            return Refusal(Rejection.CALLING_AE_UNKNOWN, "not the archive that was asked")
        if visitor.called_ae != self._settings.ae_title:
            return Refusal(Rejection.CALLED_AE_UNKNOWN, "called by another AE title")
        known = [one for one in self._settings.callers if one.admits(visitor.calling_ae, visitor.address)]
        if any(one.certificate_sha256 in {None, visitor.certificate} for one in known):
            return None
        if known or visitor.address not in self._addresses:
            return Refusal(Rejection.CALLING_AE_UNKNOWN, "from another address, or with another certificate")
        return None

    def _admit(self, admitted: Admitted) -> None:
        acceptor = Acceptor(admitted.connection, admitted.request, _terms(self._settings.listener), self)
        thread = threading.Thread(target=self._serve, args=(acceptor,), name="moved", daemon=True)
        with self._lock:
            thread.start()
            self._acceptors[acceptor] = thread

    def _serve(self, acceptor: Acceptor[_Object]) -> None:
        acceptor.run()
        with self._lock:
            self._acceptors.pop(acceptor, None)

    def begin(self, request: StoreRequest) -> _Object:
        """Make ready for a data set."""
        return _Object(self._folder.left if request.sop_instance_uid in self._expected else 0)

    def store(self, request: StoreRequest, sink: _Object) -> Answer:
        """Keep what was asked for; once where it comes twice."""
        uid = request.sop_instance_uid
        if uid not in self._expected:
            return Answer(_NOT_EXPECTED, "not asked for")
        if sink.too_large:
            self._trouble = NodeError("an earlier examination is larger than priors.max_mb")
            return Answer(_OUT_OF_RESOURCES, "too large")
        head = file_head(request.sop_class_uid, uid, request.transfer_syntax)
        try:
            if uid not in self._paths:
                self._paths[uid] = self._folder.write(head, bytes(sink.data))
        except (OSError, NodeError) as error:
            self._trouble = error
            return Answer(_OUT_OF_RESOURCES, "no space")
        return Answer(_SUCCESS)

    def notice(self, notice: Notice) -> Answer:  # noqa: ARG002 - as a service has it
        """Serve none: no such context is accepted."""
        return Answer(_NOT_KNOWN)

    def event_taken(self, status: int) -> None:
        """Hear nothing: no event is reported."""

    @property
    def failed(self) -> bool:
        """Whether nothing more can be kept."""
        return self._trouble is not None

    def check(self) -> None:
        """Raise what happened while something was written."""
        if self._trouble is not None:
            raise self._trouble

    def paths(self) -> list[Path]:
        """The files that came."""
        return list(self._paths.values())


def _addresses(host: str) -> frozenset[str]:
    """Where the archive sends from, if it sends from where it listens."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        sentence = f"the host can't be found ({error.strerror})"
        raise ArchiveError(OutcomeKind.TRANSIENT, sentence) from error
    return frozenset(str(address[0]).removeprefix("::ffff:") for *_, address in found)


def _terms(listener: ListenerSettings) -> Terms:
    syntaxes = [str(uid) for uid in DECODABLE_TRANSFER_SYNTAXES]
    return Terms(
        contexts={str(uid): syntaxes for uid in CT_STORAGE},
        implementation_class_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version_name=IMPLEMENTATION_VERSION_NAME,
        max_pdu_bytes=listener.max_pdu_bytes,
        idle_seconds=listener.network_timeout_seconds,
        grace_seconds=listener.dimse_timeout_seconds,
        association_seconds=60 * listener.association_minutes,
    )
