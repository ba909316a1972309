"""Whom the node exchanges objects with, as it stands: destinations with their outbox, and callers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from pacs_node import breaker
from pacs_node.breaker import Away, Position
from pacs_node.config import Caller, DestinationSettings, DicomDestination, Settings
from pacs_node.db import Association, Breaker, Delivery
from pacs_node.states import DeliveryState

DAY = timedelta(hours=24)

_WAITING = (DeliveryState.PENDING, DeliveryState.SENDING)
_ARRIVED = (DeliveryState.SENT, DeliveryState.COMMITTED)
_AT_MOST = 5000
"""Rows of one destination that are counted for the last day."""

_ASSOCIATIONS = 20_000
"""How many of the last associations tell when somebody sent last."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a destination got in the last 24 hours.

    Parameters
    ----------
    delivered, failed
        Objects that arrived, and that were given up.
    to_verified
        Median time from a result to the proof of its arrival; None where nothing was proved.
    """

    delivered: int
    failed: int
    to_verified: timedelta | None


@dataclass(frozen=True, slots=True)
class DestinationState:
    """One destination.

    Parameters
    ----------
    address
        For people, nothing secret in it.
    position, away
        Of its breaker; since when nobody answers, and why.
    waiting
        Objects that are not done by state: pending, sending, sent but not proved, failed.
    oldest
        When the oldest of those that wait to be sent was made.
    last_success
        When an object last arrived.
    last_error
        Status of an object that was tried and did not arrive, and when it is due again; of one that was
        given up, when it was due last.
    """

    name: str
    kind: str
    address: str
    profile: str
    verify: str
    encrypted: bool
    position: Position
    away: Away | None
    waiting: dict[DeliveryState, int]
    oldest: datetime | None
    last_success: datetime | None
    last_error: tuple[str, datetime] | None
    traffic: Traffic

    @property
    def unsent(self) -> int:
        """How many objects wait to be sent."""
        return sum(self.waiting[state] for state in _WAITING)


@dataclass(frozen=True, slots=True)
class CallerState:
    """Somebody who may send, and when images came from there last; None where that is long ago."""

    caller: Caller
    last_seen: datetime | None


def destination_states(session: Session, settings: Settings, now: datetime) -> tuple[DestinationState, ...]:
    """Ask for all configured destinations."""
    return tuple(_state(session, item, settings, now) for item in settings.destinations)


def destination_address(item: DestinationSettings) -> str:
    """Where a destination is, for people; a password in a URL is left out."""
    if isinstance(item, DicomDestination):
        return f"{item.ae_title} at {item.host}:{item.port}"
    scheme, _, rest = item.url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _state(
    session: Session, item: DestinationSettings, settings: Settings, now: datetime
) -> DestinationState:
    row = session.get(Breaker, item.name)
    longest = timedelta(seconds=settings.delivery.retry_longest_seconds)
    undone = [state for state in DeliveryState if state is not DeliveryState.COMMITTED]
    counts = dict(
        session.execute(
            select(Delivery.state, func.count())
            .where(Delivery.destination == item.name, Delivery.state.in_(undone))
            .group_by(Delivery.state)
        )
        .tuples()
        .all()
    )
    oldest = select(func.min(Delivery.created_at)).where(
        Delivery.destination == item.name, Delivery.state.in_(_WAITING)
    )
    is_dicom = isinstance(item, DicomDestination)
    return DestinationState(
        name=item.name,
        kind="DICOM (C-STORE)" if is_dicom else "DICOMweb (STOW-RS)",
        address=destination_address(item),
        profile=item.profile,
        verify=item.verify,
        encrypted=item.tls_ca_file is not None
        if isinstance(item, DicomDestination)
        else item.url.startswith("https:"),
        position=breaker.position(row, now, longest),
        away=breaker.away(row),
        waiting={state: counts.get(state, 0) for state in undone},
        oldest=session.execute(oldest).scalar_one(),
        last_success=_last_success(session, item.name),
        last_error=_last_error(session, item.name),
        traffic=_traffic(session, item.name, now),
    )


def _traffic(session: Session, name: str, now: datetime) -> Traffic:
    # a row is due last before it arrives, at most some while before: the index leads to those of the day
    since = now - DAY
    recent = (
        select(Delivery.created_at, Delivery.sent_at, Delivery.verified_at)
        .where(Delivery.destination == name, Delivery.state.in_(_ARRIVED))
        .where(Delivery.next_attempt_at >= since - DAY)
        .order_by(Delivery.next_attempt_at.desc())
        .limit(_AT_MOST)
    )
    rows = session.execute(recent).tuples().all()
    failed = (
        select(func.count())
        .select_from(Delivery)
        .where(Delivery.destination == name, Delivery.state == DeliveryState.FAILED)
        .where(Delivery.next_attempt_at >= since)
    )
    took = [
        (verified - made).total_seconds()
        for made, _, verified in rows
        if verified is not None and verified >= since
    ]
    return Traffic(
        delivered=sum(sent is not None and sent >= since for _, sent, _ in rows),
        failed=session.execute(failed).scalar_one(),
        to_verified=timedelta(seconds=median(took)) if took else None,
    )


def _last_success(session: Session, name: str) -> datetime | None:
    found = []
    for state in _ARRIVED:
        newest = (
            select(Delivery.sent_at)
            .where(Delivery.destination == name, Delivery.state == state)
            .order_by(Delivery.next_attempt_at.desc())
            .limit(20)
        )
        found += [sent for sent in session.execute(newest).scalars() if sent is not None]
    return max(found, default=None)


def _last_error(session: Session, name: str) -> tuple[str, datetime] | None:
    found = []
    for state in (*_WAITING, DeliveryState.FAILED):
        newest = (
            select(Delivery.status, Delivery.next_attempt_at)
            .where(Delivery.destination == name, Delivery.state == state)
            .where(Delivery.attempts > 0, Delivery.status.is_not(None))
            .order_by(Delivery.next_attempt_at.desc())
            .limit(1)
        )
        found += [(status or "", at) for status, at in session.execute(newest).tuples()]
    return max(found, key=lambda row: row[1], default=None)


def caller_states(session: Session, callers: Sequence[Caller]) -> tuple[CallerState, ...]:
    """Ask when each caller sent last, among the last associations that brought images."""
    last = session.execute(select(func.max(Association.id))).scalar_one() or 0
    rows = session.execute(
        select(Association.calling_ae, Association.address, func.max(Association.opened_at))
        .where(Association.id > last - _ASSOCIATIONS)
        .group_by(Association.calling_ae, Association.address)
    ).tuples()
    newest = {(calling_ae, address): at for calling_ae, address, at in rows}
    return tuple(
        CallerState(
            caller,
            max(
                (at for (title, address), at in newest.items() if _admits(caller, title, address)),
                default=None,
            ),
        )
        for caller in callers
    )


def _admits(caller: Caller, ae_title: str, address: str) -> bool:
    try:
        return caller.admits(ae_title, address)
    except ValueError:
        return False
