"""A listener of the node that is asked for storage commitment over the network."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_role, evt

from pacs_node.association import Timeouts
from pacs_node.commitment import (
    PUSH_MODEL,
    WELL_KNOWN,
    Reference,
    Report,
    report_of,
)
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import (
    Database,
)
from pacs_node.listener import Listener
from tests.conftest import find_free_port
from tests.small_node import SmallNode

CT = "1.2.840.10008.5.1.4.1.1.2"
ONE, TWO = Reference(CT, "1.2.1"), Reference(CT, "1.2.2")
QUICK = Timeouts(connect=10, association=10, progress=10)


@dataclass
class Asker:
    """A sender's own listener, or the answer on its association."""

    reports: list[Report] = field(default_factory=list)
    status: int = 0x0000

    def take(self, event: evt.Event) -> tuple[int, None]:
        """Answer an N-EVENT-REPORT."""
        self.reports.append(report_of(event.event_information))
        return self.status, None


@dataclass
class Running:
    """A listener and its rows."""

    port: int
    database: Database
    listener: Listener

    def ask(
        self,
        asker: Asker,
        request: Dataset | None,
        *,
        action: int = 1,
        instance: str = WELL_KNOWN,
        hold: bool = True,
    ) -> int:
        """Send an N-ACTION; wait for a report on the same association where `hold` says so."""
        entity = AE(ae_title="PACS")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
        entity.add_requested_context(PUSH_MODEL)
        arrived: queue.Queue[None] = queue.Queue()

        def take(event: evt.Event) -> tuple[int, None]:
            answer = asker.take(event)
            arrived.put(None)
            return answer

        association: Any = entity.associate(
            "127.0.0.1", self.port, ae_title="CTNODE", evt_handlers=[(evt.EVT_N_EVENT_REPORT, take)]
        )
        assert association.is_established
        answer, _ = association.send_n_action(request, action, PUSH_MODEL, instance)
        if hold:
            arrived.get(timeout=60)
        association.release()
        return int(answer.Status)

    def report(self, report: Report, event_type: int | None = None) -> int:
        """Send an N-EVENT-REPORT in the role of a destination."""
        entity = AE(ae_title="PACS")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
        entity.add_requested_context(PUSH_MODEL)
        association: Any = entity.associate(
            "127.0.0.1", self.port, ae_title="CTNODE", ext_neg=[build_role(PUSH_MODEL, scp_role=True)]
        )
        assert association.is_established
        answer, _ = association.send_n_event_report(
            report.dataset(), event_type or report.event_type, PUSH_MODEL, WELL_KNOWN
        )
        association.release()
        return int(answer.Status)


@contextmanager
def running(node: SmallNode, *, reporters: dict[str, str] | None = None, **caller: Any) -> Iterator[Running]:
    """Listen for one caller until the block ends; `reporters` as `Listener` has them."""
    callers = (Caller(ae_title="PACS", address="127.0.0.1", **caller),)
    settings = ListenerSettings(port=find_free_port(), acse_timeout_seconds=60, network_timeout_seconds=60)
    listener = Listener(settings, callers, node.database, node.spool, node.clock, reporters=reporters)
    port = listener.start()
    try:
        yield Running(port, node.database, listener)
    finally:
        listener.stop()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds, a minute at most."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not happen in time")
