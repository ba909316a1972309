"""One outgoing association, against pynetdicom's own peer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time

from pacs_node.association import Link, Peer, Timeouts

pytestmark = pytest.mark.usefixtures("short_poll")


@pytest.fixture
def port() -> Iterator[int]:
    """A PACS that answers C-ECHO."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(Verification)
    server: Any = entity.start_server(("127.0.0.1", 0), block=False)
    yield server.server_address[1]
    server.shutdown()


def test_nothing_is_sent_behind_an_abort(port: int) -> None:
    """Pynetdicom's reactor dies of it, with an error in its thread."""
    peer = Peer("127.0.0.1", port, "PACS", "CTNODE")
    with Link(peer, [build_context(Verification)], 10.0) as link:
        association = link.association
        assert association is not None
        assert association.is_established
        late = C_ECHO()
        late.MessageID = 1
        late.AffectedSOPClassUID = Verification
        association.abort(block=False)
        association.dimse.send_msg(late, association.accepted_contexts[0].context_id or 1)
        association.dul.join(5)
        assert association.is_aborted
        assert not association.dul.is_alive()


def test_a_release_that_the_end_of_the_line_has_overtaken_is_not_waited_for(port: int) -> None:
    """The reactor may take the end of the line just as we begin to release: then no answer comes, ever."""
    peer = Peer("127.0.0.1", port, "PACS", "CTNODE", timeouts=Timeouts(association=120))
    with Link(peer, [build_context(Verification)], 200.0) as link:
        association = link.association
        assert association is not None
        transport = association.dul.socket
        assert transport is not None
        assert transport.socket is not None
        transport.socket.shutdown(socket.SHUT_RDWR)
        association.join(20)
        association.dul.join(20)
        # as the release saw it a moment before
        association.is_established = True
        release = threading.Thread(target=association.release, daemon=True)
        release.start()
        release.join(20)
        assert not release.is_alive()
        assert not association.is_established
