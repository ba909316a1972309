"""The states of series, jobs and deliveries, and every change that is allowed.

The tables are data: `lifecycle.move` refuses what they don't name, and a test walks all pairs.
The states map to UPS procedure step states (PS3.4 CC.1.1): queued = SCHEDULED, running = IN PROGRESS,
succeeded = COMPLETED, failed and cancelled = CANCELED.
"""

from __future__ import annotations

from enum import StrEnum


class SeriesState(StrEnum):
    """A series that was received."""

    RECEIVING = "receiving"
    COMPLETE = "complete"
    QUEUED = "queued"
    INELIGIBLE = "ineligible"


class JobState(StrEnum):
    """One analysis."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class CancelCause(StrEnum):
    """Why a job was cancelled. Only what is held waits for an operator; the rest is not wanted as it is."""

    LATE = "late"
    """Its series has other images by now: the job that sees all of them will speak."""
    WITHDRAWN = "withdrawn"
    """The report "not analysed" is not true any more."""
    SET_ASIDE = "set aside"
    """Its series was found unsuitable, or another one is better."""
    HELD = "held"
    """An operator stopped it until somebody requeues it."""


class DeliveryState(StrEnum):
    """One result object on its way to one destination."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    COMMITTED = "committed"
    FAILED = "failed"


class JobOutcome(StrEnum):
    """What a job that succeeded says."""

    ANALYSED = "analysed"
    NOT_ANALYSED = "not_analysed"


SERIES_CHANGES = frozenset(
    {
        (SeriesState.RECEIVING, SeriesState.COMPLETE),
        (SeriesState.COMPLETE, SeriesState.QUEUED),
        (SeriesState.COMPLETE, SeriesState.INELIGIBLE),
        # the best series of the study failed the look at its pixels: the next one is taken
        (SeriesState.INELIGIBLE, SeriesState.QUEUED),
        (SeriesState.QUEUED, SeriesState.INELIGIBLE),
        # a late instance
        (SeriesState.COMPLETE, SeriesState.RECEIVING),
        (SeriesState.QUEUED, SeriesState.RECEIVING),
        (SeriesState.INELIGIBLE, SeriesState.RECEIVING),
    }
)

JOB_CHANGES = frozenset(
    {
        (JobState.QUEUED, JobState.RUNNING),
        (JobState.QUEUED, JobState.CANCELLED),
        (JobState.RUNNING, JobState.SUCCEEDED),
        (JobState.RUNNING, JobState.FAILED),
        (JobState.RUNNING, JobState.CANCELLED),
        # another attempt, or a lease that ran out
        (JobState.RUNNING, JobState.QUEUED),
        # an operator's requeue
        (JobState.FAILED, JobState.QUEUED),
        # an operator's requeue of what was held; or it is wanted again
        (JobState.CANCELLED, JobState.QUEUED),
    }
)

DELIVERY_CHANGES = frozenset(
    {
        (DeliveryState.PENDING, DeliveryState.SENDING),
        (DeliveryState.PENDING, DeliveryState.FAILED),
        (DeliveryState.SENDING, DeliveryState.SENT),
        (DeliveryState.SENDING, DeliveryState.PENDING),
        (DeliveryState.SENDING, DeliveryState.FAILED),
        (DeliveryState.SENT, DeliveryState.COMMITTED),
        # the peer has lost it, or an operator sends again
        (DeliveryState.SENT, DeliveryState.PENDING),
        # the peer says success again and again, but never has it
        (DeliveryState.SENT, DeliveryState.FAILED),
        (DeliveryState.COMMITTED, DeliveryState.PENDING),
        (DeliveryState.FAILED, DeliveryState.PENDING),
    }
)
