"""What is fuzzed: functions of bytes that may end in the errors named here and in no others."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from inference.decode import DECODABLE_TRANSFER_SYNTAXES, decode_frames, read_file
from inference.errors import UnsuitableSeriesError
from inference.load import read_header
from pacs_node import gate_pdu
from pacs_node.errors import UnreadableInstanceError
from pacs_node.gate_association import Acceptor, Answer, Notice, StoreRequest, Terms
from pacs_node.gate_pdu import PduError
from pacs_node.reception import read_identity
from tests.ct_factory import LOSSLESS, LOSSY, NATIVE, make_ct_series
from tests.hostile import CORPUS
from tests.raw_peer import CT_CONTEXT, ECHO_CONTEXT, P_DATA, association_request, command, pdu, value
from tests.small_node import encoded

_TERMS = Terms(
    contexts={"1.2.840.10008.1.1": ["1.2.840.10008.1.2"], CTImageStorage: [ExplicitVRLittleEndian]},
    implementation_class_uid="1.2.3",
    implementation_version_name="FUZZ",
    max_pdu_bytes=4096,
    idle_seconds=0.05,
    grace_seconds=0.05,
)
_MOST = 1 << 16


def identity(data: bytes) -> None:
    """A data set as the listener looks at it; the first byte chooses the transfer syntax."""
    syntax = DECODABLE_TRANSFER_SYNTAXES[data[0] % len(DECODABLE_TRANSFER_SYNTAXES)] if data else ""
    try:
        read_identity(data[1:], syntax or ExplicitVRLittleEndian)
    except UnreadableInstanceError:
        return


def request(data: bytes) -> None:
    """The beginning of an association request as the gate reads it."""
    if len(data) < gate_pdu.REQUEST_HEAD_BYTES:
        return
    try:
        gate_pdu.request_length(bytearray(data[: gate_pdu.HEADER_BYTES]))
        gate_pdu.read_request_head(bytearray(data))
    except PduError:
        return


class _Sink:
    def write(self, data: memoryview) -> None:
        """Take nothing."""

    def discard(self) -> None:
        """Leave nothing."""


class _Service:
    def begin(self, _request: StoreRequest) -> _Sink:
        """Make ready."""
        return _Sink()

    def store(self, _request: StoreRequest, _sink: _Sink) -> Answer:
        """Say yes."""
        return Answer(0)

    def notice(self, _notice: Notice) -> Answer:
        """Say yes."""
        return Answer(0)

    def event_taken(self, *_taken: object) -> None:
        """Hear it."""


def association(data: bytes) -> None:
    """An association: two bytes say how long its request is, the rest comes behind it."""
    if len(data) < 2:
        return
    (length,) = struct.unpack(">H", data[:2])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[2 + length :][:_MOST])
        theirs.shutdown(socket.SHUT_WR)
        Acceptor(ours, data[2 : 2 + length], _TERMS, _Service()).run()


def file(data: bytes) -> None:
    """A whole file, header and pixels."""
    descriptor = os.memfd_create("fuzzed")
    try:
        os.write(descriptor, data)
        path = Path(f"/proc/self/fd/{descriptor}")
        read_header(path)
        for _frame in decode_frames(read_file(path, pixels=True)):
            pass
    except UnsuitableSeriesError:
        return
    finally:
        os.close(descriptor)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "identity": identity,
    "request": request,
    "association": association,
    "file": file,
}


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with: pydicom's own test files, slices of the factory, hostile ones, an association."""
    return list({"identity": _data_sets, "file": _files}.get(target, _associations)())


def _files() -> Iterator[bytes]:
    for syntax in (*NATIVE, *LOSSLESS, *LOSSY):
        (ds,) = make_ct_series(1, matrix=64, transfer_syntax=syntax)
        yield as_file(encoded(ds)[0], syntax)
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").rglob("*.dcm")):
        content = path.read_bytes()
        if len(content) < _MOST:
            yield content


def _data_sets() -> Iterator[bytes]:
    for number, syntax in enumerate(DECODABLE_TRANSFER_SYNTAXES):
        if syntax in NATIVE:
            yield bytes([number]) + encoded(make_ct_series(1, matrix=8, transfer_syntax=syntax)[0])[0]
    for item in CORPUS.values():
        if len(item.data) < _MOST:
            yield bytes([DECODABLE_TRANSFER_SYNTAXES.index(item.syntax)]) + item.data


def _associations() -> Iterator[bytes]:
    (ds,) = make_ct_series(1, matrix=8)
    data, _ = encoded(ds)
    store = command(1, data_set=True, sop_class=CTImageStorage, sop_instance=ds.SOPInstanceUID)
    stream = b"".join(
        [
            pdu(P_DATA, value(command(0x30, sop_class="1.2.840.10008.1.1"), ECHO_CONTEXT, command=True)),
            pdu(P_DATA, value(store, CT_CONTEXT, command=True)),
            pdu(P_DATA, value(data[:1000], CT_CONTEXT, last=False)),
            pdu(P_DATA, value(data[1000:3000], CT_CONTEXT)),
            pdu(5, bytes(4)),
        ]
    )
    for contexts in (0, 3):
        head = association_request(contexts=contexts)
        yield struct.pack(">H", len(head)) + head + stream
        yield head


def as_file(data: bytes, syntax: str) -> bytes:
    """A data set with preamble and the least file meta information."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + data
