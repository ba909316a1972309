"""A DICOM peer made of bytes, which can do what no library lets it do."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined] # made at run time

ECHO_CONTEXT, CT_CONTEXT = 1, 3
ABORT, REJECT, ACCEPT, RELEASED, P_DATA = 7, 3, 2, 6, 4


def association_request(
    calling: str = "PACS",
    called: str = "CTNODE",
    *,
    max_length: int = 16384,
    contexts: int = 0,
    syntax: str = ExplicitVRLittleEndian,
) -> bytes:
    """An A-ASSOCIATE-RQ for Verification and CT in `syntax`, with some more contexts if asked for."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, called
    proposed = [
        build_context(Verification, ImplicitVRLittleEndian),
        build_context(CTImageStorage, syntax),
        *(build_context(f"1.2.3.{number}", ImplicitVRLittleEndian) for number in range(contexts)),
    ]
    for number, context in enumerate(proposed):
        context.context_id = 2 * number % 256 + 1
    request.presentation_context_definition_list = proposed
    length = MaximumLengthNotification()
    length.maximum_length_received = max_length
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = "1.2.3"
    request.user_information = [length, implementation]
    return bytes(A_ASSOCIATE_RQ(request).encode())


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU with its head (PS3.8 9.3.1)."""
    return struct.pack(">BxL", kind, len(body)) + body


def value(data: bytes, context: int, *, command: bool = False, last: bool = True) -> bytes:
    """A presentation data value (PS3.8 9.3.5.1)."""
    return struct.pack(">LBB", len(data) + 2, context, command + 2 * last) + data


def command(field: int, *, data_set: bool = False, **uids: str) -> bytes:
    """A command set; `uids` are ``sop_class`` and ``sop_instance``."""
    elements = [(0x0100, struct.pack("<H", field)), (0x0110, struct.pack("<H", 7))]
    elements += [(0x0700, struct.pack("<H", 0)), (0x0800, struct.pack("<H", 1 if data_set else 0x0101))]
    for element, name in ((0x0002, "sop_class"), (0x1000, "sop_instance")):
        if name in uids:
            text = uids[name].encode()
            elements.append((element, text + b"\0" * (len(text) % 2)))
    body = b"".join(struct.pack("<HHL", 0, number, len(data)) + data for number, data in sorted(elements))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


class RawPeer:
    """A connection to a listener.

    Parameters
    ----------
    source
        Own address, e.g. another one of loopback.
    """

    def __init__(self, port: int, *, source: str = "127.0.0.1", timeout: float = 10) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout, (source, 0))

    @classmethod
    def over(cls, connection: socket.socket) -> Self:
        """Speak over a connection that is there."""
        peer = cls.__new__(cls)
        peer.connection = connection
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def send(self, *parts: bytes) -> None:
        """Send bytes as they are."""
        self.connection.sendall(b"".join(parts))

    def associate(self, *, max_length: int = 16384, syntax: str = ExplicitVRLittleEndian) -> Self:
        """Open an association as the known caller."""
        self.send(association_request(max_length=max_length, syntax=syntax))
        kind, _ = self.read()
        assert kind == ACCEPT
        return self

    def read(self) -> tuple[int, bytes]:
        """Type and content of the next PDU; type 0 where the connection ends."""
        head = self._exactly(6)
        if len(head) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxL", head)
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                part = self.connection.recv(count - len(data))
            except ConnectionResetError:
                break
            if not part:
                break
            data += part
        return data

    def echo(self) -> int:
        """C-ECHO; its status."""
        self.send(pdu(P_DATA, value(command(0x30, sop_class=Verification), ECHO_CONTEXT, command=True)))
        return self.status()

    def store(self, data: bytes, sop_class: str, sop_instance: str, parts: Sequence[int] = ()) -> int:
        """C-STORE with the data set cut at `parts`, or so that it fits into usual PDUs; its status."""
        request = command(1, data_set=True, sop_class=sop_class, sop_instance=sop_instance)
        self.send(pdu(P_DATA, value(request, CT_CONTEXT, command=True)))
        cuts = [0, *(parts or range(100_000, len(data), 100_000)), len(data)]
        for start, end in pairwise(cuts):
            self.send(pdu(P_DATA, value(data[start:end], CT_CONTEXT, last=end == len(data))))
        return self.status()

    def status(self) -> int:
        """Status of the next response."""
        kind, body = self.read()
        assert kind == P_DATA, kind
        at = body.index(b"\0\0\0\x09\x02\0\0\0")
        return int.from_bytes(body[at + 8 : at + 10], "little")

    def release(self) -> None:
        """Release, and wait for the answer."""
        self.send(pdu(5, bytes(4)))
        assert self.read()[0] == RELEASED
