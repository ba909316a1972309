"""A gate at which nobody is let in: somebody answers there, as at a node's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from pacs_node.gate import Gate
from pacs_node.gate_pdu import Rejection
from pacs_node.gate_visitor import Refusal


@contextmanager
def gate() -> Iterator[int]:
    """Run one; its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    refusal = Refusal(Rejection.CALLING_AE_UNKNOWN, "nobody is let in")
    running = Gate(
        listening, judge=lambda _who: refusal, admit=lambda _admitted: None, refused=lambda *_who: None
    )
    running.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        running.stop()
