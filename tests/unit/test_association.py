"""One outgoing association, against pynetdicom's own peer."""

from __future__ import annotations

from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at run time

from pacs_node.association import Link, Peer

pytestmark = pytest.mark.usefixtures("short_poll")


def test_nothing_is_sent_behind_an_abort() -> None:
    """Pynetdicom's reactor dies of it, with an error in its thread."""
    entity = AE(ae_title="PACS")
    entity.add_supported_context(Verification)
    server: Any = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        peer = Peer("127.0.0.1", server.server_address[1], "PACS", "CTNODE")
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
    finally:
        server.shutdown()
