"""What is fuzzed: functions of bytes that may end in the errors named here and in no others."""

from __future__ import annotations

import os
import socket
import struct
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from inference.decode import DECODABLE_TRANSFER_SYNTAXES, decode_frames, read_file
from inference.errors import UnsuitableSeriesError
from inference.load import read_header
from pacs_node import gate_pdu
from pacs_node.config import Caller, Settings, parse_settings
from pacs_node.errors import UnreadableInstanceError
from pacs_node.gate_association import Acceptor, Answer, Notice, StoreRequest, Terms
from pacs_node.gate_pdu import PduError
from pacs_node.gate_visitor import Visitor
from pacs_node.listener import judge
from pacs_node.reception import read_identity
from pacs_node.refusals import Refused, advice
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
_ITEMS_AT = 74
"""Of the first item of an A-ASSOCIATE-RQ (PS3.8 9.3.2)."""
_USER_INFORMATION = 0x50
_SETTINGS = Settings(callers=(Caller(ae_title="PACS", address="127.0.0.1"),))


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


def negotiation(data: bytes) -> None:
    """An association request with AE titles and user information of the peer's own making (PS3.7 annex D).

    32 bytes of AE titles, a byte that says whether the items are framed here, and the items. So what is
    mutated is what stands in them, and not only the lengths around them.
    """
    if len(data) < 33:
        return
    items = _framed(data[33:]) if data[32] % 2 else data[33:]
    request_pdu = _with_user_information(data[:32], items[:_MOST])
    gate_pdu.request_length(bytearray(request_pdu[: gate_pdu.HEADER_BYTES]))
    _admission(gate_pdu.read_request_head(request_pdu))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        Acceptor(ours, request_pdu, _TERMS, _Service()).run()


def _admission(head: gate_pdu.RequestHead) -> None:
    """What the node says of who called: refused or not, in the log, and in the lines that would admit it."""
    visitor = Visitor(head.calling_ae, head.called_ae, "127.0.0.1")
    refusal = judge(visitor, _SETTINGS.callers, "CTNODE")
    refused = Refused(visitor, refusal.sentence if refusal else "", 1, datetime.now(UTC))
    if not refused.sentence().isprintable():
        raise ValueError("a control character of a peer in a sentence")
    _, _, lines = (advice(refused, _SETTINGS) or "").partition("\n")
    if lines:
        (caller,) = parse_settings(tomllib.loads(lines), base=Path()).callers
        if not caller.admits(visitor.calling_ae, visitor.address):
            raise ValueError("the lines do not admit who was refused")


def _framed(data: bytes) -> bytes:
    """Items of a type, a length in one byte and a content, with the lengths that the standard has."""
    items, at = b"", 0
    while at + 2 <= len(data):
        content = data[at + 2 : at + 2 + data[at + 1]]
        items += struct.pack(">BxH", data[at], len(content)) + content
        at += 2 + data[at + 1]
    return items


def _with_user_information(titles: bytes, items: bytes) -> bytes:
    usual = association_request(contexts=1)
    at = _ITEMS_AT
    while usual[at] != _USER_INFORMATION:
        at += 4 + struct.unpack(">H", usual[at + 2 : at + 4])[0]
    own = struct.pack(">BxH", _USER_INFORMATION, len(items) & 0xFFFF) + items
    body = usual[6:10] + titles + usual[42:at] + own
    return struct.pack(">BxL", 1, len(body)) + body


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
    "negotiation": negotiation,
    "file": file,
}


def seeds(target: str) -> list[bytes]:
    """Inputs to begin with: pydicom's own test files, slices of the factory, hostile ones, an association."""
    own = {"identity": _data_sets, "file": _files, "negotiation": _negotiations}
    return list(own.get(target, _associations)())


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


def _negotiations() -> Iterator[bytes]:
    """Each item of annex D alone, and all of them; AE titles that are usual, long, empty, or no text."""
    uid = CTImageStorage.encode()
    named = struct.pack(">H", len(uid)) + uid
    items = [
        (0x51, struct.pack(">L", 16384)),
        (0x52, b"1.2.3"),
        (0x53, struct.pack(">HH", 1, 1)),
        (0x54, named + b"\1\1"),
        (0x55, b"FUZZ 1"),
        (0x56, named + b"\1\0\1\1"),
        (0x57, named + named + struct.pack(">H", len(named)) + named),
        (0x58, b"\1\1\0\4user\0\0"),
        (0x58, b"\2\1\0\4user\0\6secret"),
        (0x58, b"\4\0\0\x20" + b"<saml>" * 5 + b"..\0\0"),
        (0x59, b"\0\0"),
    ]
    framed = [bytes((kind, len(content))) + content for kind, content in items]
    titles = [b"CTNODE".ljust(16) + b"PACS".ljust(16), bytes(32), b"\xff" * 32, b'"]\n[[callers]]  \\' * 2]
    for title in titles:
        yield title[:32].ljust(32) + b"\1" + b"".join(framed)
    for item in framed:
        yield titles[0] + b"\1" + item
        yield titles[0] + b"\0" + _framed(item) * 3


def as_file(data: bytes, syntax: str) -> bytes:
    """A data set with preamble and the least file meta information."""
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta + data
