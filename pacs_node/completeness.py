"""When a series has all its images: the signals, weighed. DICOM has no message that says so.

What the archive said comes as a row; nobody here waits for it. Every hold ends at a configured time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from pacs_node.config import ArchiveSettings, CompletenessSettings
from pacs_node.db import Series

ASKED_MODALITIES = frozenset({"CT", ""})
"""Of series whose images are counted: others are never analysed."""


class Signal(StrEnum):
    """What closed a series; in its row and in the audit record."""

    PROMISED = "promised"
    """Its sender asked for storage commitment to every image that came."""
    COUNTED = "counted"
    """The archive has no more images than came."""
    SETTLED = "settled"
    """Its associations were released, some seconds were silent, and its slices have no gap."""
    QUIET = "quiet"
    """A longer silence, whatever else is known."""
    PARTIAL = "partial"
    """The archive has more images, and the wait for them is over."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a series that is being received.

    Parameters
    ----------
    n_instances
        That came.
    silence
        Since the last one.
    released
        No association is open that brought it, and the last one ended well.
    promised
        How many its sender asked us to commit to, once that was every one of them.
    asked
        Whether the archive was asked since the last instance came.
    archive
        How many the archive has; None where it didn't say.
    """

    n_instances: int
    silence: timedelta
    released: bool
    promised: int | None = None
    asked: bool = False
    archive: int | None = None

    @property
    def lacking(self) -> bool:
        """Whether the archive has more than came."""
        return self.archive is not None and self.archive > self.n_instances


class Limits(NamedTuple):
    """How long silence must last; the last two are None where nobody is asked."""

    settle: timedelta
    quiet: timedelta
    answer: timedelta | None = None
    wait: timedelta | None = None

    @classmethod
    def of(cls, settings: CompletenessSettings, archive: ArchiveSettings | None = None) -> Limits:
        """As the settings say."""
        settle, quiet = settings.settle_seconds, settings.quiet_seconds
        own = timedelta(seconds=settle), timedelta(seconds=quiet)
        if archive is None or not archive.destination or not archive.count_images:
            return cls(*own)
        return cls(*own, timedelta(seconds=archive.answer_seconds), timedelta(seconds=archive.wait_seconds))

    def for_modality(self, modality: str) -> Limits:
        """The same, without the archive for series that are not counted."""
        return self if modality in ASKED_MODALITIES else Limits(self.settle, self.quiet)


def closing_signal(evidence: Evidence, limits: Limits, has_no_gaps: Callable[[], bool]) -> Signal | None:
    """Say what closes a series now, None while it stays open.

    Parameters
    ----------
    has_no_gaps
        Whether its slices are gapless; asked only where that decides, as it reads files.
    """
    asks = limits.answer is not None and limits.wait is not None
    if asks and evidence.lacking:
        return Signal.PARTIAL if evidence.silence >= (limits.wait or limits.quiet) else None
    ended = evidence.promised == evidence.n_instances or evidence.silence >= limits.quiet
    settled = evidence.released and evidence.silence >= limits.settle
    if asks and evidence.asked and evidence.archive:
        return Signal.COUNTED if ended or settled else None
    if asks and evidence.silence < (limits.answer or limits.quiet):
        return None
    if ended:
        return Signal.QUIET if evidence.silence >= limits.quiet else Signal.PROMISED
    return Signal.SETTLED if settled and has_no_gaps() else None


class Silences:
    """How long each series has been silent, by a clock that nobody sets.

    The time of day counts only for what happened before this process looked for the first time.
    """

    def __init__(
        self, clock: Callable[[], datetime], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        #: series id -> last instance, when the silence began, last look (both monotonic)
        self._known: dict[int, tuple[datetime, float, float]] = {}

    def of(self, series: Series) -> timedelta:
        """How long a series has been silent."""
        now = self._monotonic()
        last, began, looked = self._known.get(series.id, (None, now, None))
        if last != series.last_received_at:
            by_day = max(0.0, (self._clock() - series.last_received_at).total_seconds())
            # it came between the last look and this one, whatever the time of day says
            began = now - (by_day if looked is None else min(by_day, now - looked))
        self._known[series.id] = (series.last_received_at, began, now)
        return timedelta(seconds=now - began)

    def forget(self, series_ids: Iterable[int]) -> None:
        """Forget series that were judged."""
        for series_id in series_ids:
            self._known.pop(series_id, None)


def lacks_images(series: Series) -> bool:
    """Whether the archive has more images of it than came."""
    return series.archive_instances is not None and series.archive_instances > series.n_instances


def sentence_of_lack(series: Series) -> str:
    """Say so, for a report."""
    return (
        f"The archive has {series.archive_instances} images of this series; "
        f"{series.n_instances} of them had come when the wait for the others was over."
    )
