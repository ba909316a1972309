"""How often somebody may ask: wrong tokens of an address, and requests of a token. Kept in memory."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

FREE_TRIES = 20
"""Wrong tokens of an address before the first lock."""

_FIRST_LOCK, _LONGEST_LOCK = timedelta(seconds=30), timedelta(hours=1)
_FORGOTTEN = timedelta(hours=24)
_REMEMBERED = 10_000


@dataclass
class _Tries:
    count: int
    last_at: datetime
    locked_until: datetime | None = None


class WrongTokens:
    """Counts wrong tokens by address; the lock doubles as that of logins does.

    A token can't be guessed, so a right one passes whatever others at its address do. The lock keeps a
    program with an old token from filling the audit record.
    """

    def __init__(self) -> None:
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self._lock = Lock()

    def locked_for(self, address: str, at: datetime) -> timedelta | None:
        """How long no wrong token of this address is looked at any more; None: they are."""
        with self._lock:
            row = self._tries.get(_network(address))
        if row is None or row.locked_until is None or row.locked_until <= at:
            return None
        return row.locked_until - at

    def count(self, address: str, at: datetime) -> bool:
        """Count one; return whether the address is locked now."""
        with self._lock:
            key = _network(address)
            row = self._tries.pop(key, None)
            if row is None or at - row.last_at > _FORGOTTEN:
                row = _Tries(0, at)
            row.count, row.last_at = row.count + 1, at
            over = row.count - FREE_TRIES
            if over >= 0:
                row.locked_until = at + min(_FIRST_LOCK * 2 ** min(over, 10), _LONGEST_LOCK)
            self._tries[key] = row
            while len(self._tries) > _REMEMBERED:
                self._tries.popitem(last=False)
        return over >= 0


def _network(address: str) -> str:
    """An IPv6 host has a whole /64 to choose its address from."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


class Rates:
    """Requests of each token: so many a minute, and as many at once (a token bucket).

    Parameters
    ----------
    a_minute
        0: no limit.
    """

    def __init__(self, a_minute: int) -> None:
        self._most = float(a_minute)
        self._left: dict[int, tuple[float, datetime]] = {}
        self._lock = Lock()

    def take(self, token_id: int, at: datetime) -> timedelta | None:
        """Count a request; return how long to wait if it is one too many, else None."""
        if not self._most:
            return None
        with self._lock:
            left, since = self._left.get(token_id, (self._most, at))
            gone = max(0.0, (at - since).total_seconds())
            left = min(self._most, left + gone * self._most / 60)
            if left < 1:
                return timedelta(seconds=(1 - left) * 60 / self._most)
            self._left[token_id] = (left - 1, at)
        return None
