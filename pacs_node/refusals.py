"""Who was refused at the front door, and what to do about each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select

from pacs_node import audit
from pacs_node.config import Caller, Settings
from pacs_node.config_template import render_caller
from pacs_node.db import AuditEvent, Database
from pacs_node.gate_visitor import Visitor
from pacs_node.listener import judge

REFUSALS_OF = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Refused:
    """Somebody who was refused: why, how often, and when last."""

    visitor: Visitor
    reason: str
    count: int
    last: datetime

    def sentence(self) -> str:
        """Say so; what peers sent is quoted."""
        who = f"{self.visitor.calling_ae!r} calling {self.visitor.called_ae!r} " * bool(
            self.visitor.calling_ae
        )
        place = f"from {self.visitor.address or 'many addresses'}"
        return f"{who}{place}: {self.reason}; {self.count} times, last {self.last:%Y-%m-%d %H:%M:%S} UTC"


def refusals(database: Database, since: datetime) -> list[Refused]:
    """Read who was refused, the latest first, each sender and reason once."""
    name = audit.Event.ASSOCIATION_REFUSED.value[0]
    query = (
        select(AuditEvent).where(AuditEvent.event == name, AuditEvent.at >= since).order_by(AuditEvent.seq)
    )
    found: dict[tuple[Visitor, str], Refused] = {}
    with database.read() as session:
        for row in session.execute(query).scalars():
            fields = {key: str(row.objects.get(key, "")) for key in ("calling_ae", "called_ae", "address")}
            visitor = Visitor(**fields, certificate=str(row.objects.get("certificate", "")))
            key = (visitor, str(row.objects.get("reason", "")))
            before = found.get(key)
            count = int(row.objects.get("count", 1)) + (before.count if before else 0)
            found[key] = Refused(*key, count, row.at)
    return sorted(found.values(), key=lambda item: item.last, reverse=True)


def advice(refused: Refused, settings: Settings) -> str | None:
    """What to do about it; None where the present configuration would let the sender in."""
    visitor = refused.visitor
    if visitor.calling_ae == "":
        return _wordless_todo(refused.reason)
    if judge(visitor, settings.callers, settings.listener.ae_title) is None:
        return None
    caller = _caller(visitor, settings)
    if caller is None:
        return "its AE titles or address can't stand in a configuration: correct them at the sender"
    return "if it is your PACS, add this to the configuration and restart the node:\n" + render_caller(caller)


def _wordless_todo(reason: str) -> str:
    if "speaks TLS" in reason:
        return "switch TLS off at this sender, or set listener.tls_certificate_file and the two beside it"
    if reason.startswith("TLS:"):
        return (
            "if it is your PACS: let it speak TLS 1.2 or newer and show a certificate, and put that "
            "certificate or its authority into listener.tls_client_ca_file"
        )
    return "if this is no sender of yours, look for a port scanner, or close the port to it by a firewall"


def _caller(visitor: Visitor, settings: Settings) -> Caller | None:
    """The table of the configuration that would admit a visitor; None where there can be none."""
    called = visitor.called_ae if visitor.called_ae != settings.listener.ae_title else None
    try:
        return Caller(
            ae_title=visitor.calling_ae,
            address=visitor.address,
            called_ae_title=called,
            certificate_sha256=visitor.certificate or None,
        )
    except ValueError:
        return None
