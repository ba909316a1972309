"""A requestor that can be relied on where the machine is busy.

One of pynetdicom that is rejected at once sometimes takes the end of its own reactor for a failure and calls
itself aborted, although the rejection arrived; and its own thread sometimes takes an answer that another one
waits for.
"""

from __future__ import annotations

from typing import Any

from pynetdicom import AE, evt
from pynetdicom.pdu import A_ASSOCIATE_RJ

from pacs_node.association import leave_answers


class Requestor:
    """Associates and keeps the rejection, and the answers for who asked."""

    def __init__(self, entity: AE) -> None:
        self._entity = entity

    def associate(self, address: str, port: int, **options: Any) -> Any:
        """As `pynetdicom.AE.associate`; what rejected it is in ``association.rejections``."""
        seen: list[tuple[int | None, int | None, int | None]] = []

        def note(event: Any) -> None:
            if isinstance(event.pdu, A_ASSOCIATE_RJ):
                seen.append((event.pdu.result, event.pdu.source, event.pdu.reason_diagnostic))

        association: Any = self._entity.associate(
            address, port, evt_handlers=[(evt.EVT_PDU_RECV, note)], **options
        )
        leave_answers(association)
        association.rejections = seen
        return association
