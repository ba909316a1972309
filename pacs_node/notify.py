"""The part that tells people and programs what happened: by webhook and by e-mail.

The audit record is what is told from, so nothing else in the node waits for a receiver or knows of one. A
message is a row until it was taken; each channel has a thread of its own, so one that is away holds up no
other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread

from sqlalchemy.exc import SQLAlchemyError

from pacs_node import notify_queue
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.notify_channels import Channel, NotTakenError, open_channels
from pacs_node.notify_messages import Message
from pacs_node.notify_queue import Collector, Wanted
from pacs_node.storage import open_database

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 300.0


class Sender:
    """Sends what waits for one channel.

    Parameters
    ----------
    name
        Of the channel.
    give_up
        A message that nobody took for so long is given up.
    """

    def __init__(
        self, database: Database, name: str, channel: Channel, give_up: timedelta, clock: Clock = utc_now
    ) -> None:
        self._database, self._name, self._channel = database, name, channel
        self._give_up, self._clock = give_up, clock

    def send(self) -> bool | None:
        """Send one batch: True if it was taken, False if not, None where nothing is due."""
        rows = notify_queue.claim(self._database, self._name, self._clock())
        if not rows:
            return None
        messages = [Message(row.message_id, row.topic, row.body) for row in rows]
        try:
            status = self._channel.send(messages)
        except NotTakenError as error:
            logger.warning("messages were not taken", extra={"channel": self._name, "reason": error.status})
            at = self._clock()
            notify_queue.note_sent(self._database, rows[: error.taken], "taken", at)
            notify_queue.note_failed(self._database, rows[error.taken :], error.status, self._give_up, at)
            return False
        notify_queue.note_sent(self._database, rows, status, self._clock())
        return True

    def run(self, stop: Event) -> None:
        """Send until `stop` is set; a receiver that is away is asked ever less often."""
        away = _FIRST_WAIT
        while not stop.is_set():
            taken = _unbroken(self.send)
            if taken is False:
                stop.wait(away)
                away = min(2 * away, _LONGEST_WAIT)
                continue
            away = _FIRST_WAIT
            if taken is None:
                stop.wait(POLL_SECONDS)


def _unbroken(work: Callable[[], bool | int | None]) -> bool | int | None:
    """Do some work; a database that can't be used for a moment ends nothing."""
    try:
        return work()
    except SQLAlchemyError:
        logger.exception("messages could not be looked at")
        return None


def wanted(settings: Settings) -> Wanted:
    """Say what the settings want to be told."""
    chosen = settings.notify
    return Wanted(
        frozenset(chosen.events),
        chosen.channels,
        settings.listener.ae_title,
        chosen.page_url,
        timedelta(hours=chosen.give_up_hours),
    )


def run(settings: Settings, stop: Event) -> None:
    """Collect and send until `stop` is set.

    Raises
    ------
    ConfigurationError
        A secret can't be read.
    """
    channels = open_channels(settings.notify, settings.listener.ae_title)
    database = open_database(settings)
    give_up = timedelta(hours=settings.notify.give_up_hours)
    for name, channel in channels.items():
        # a receiver that drips its answer must not keep the node from stopping
        sender = Sender(database, name, channel, give_up)
        Thread(target=sender.run, args=(stop,), name=name, daemon=True).start()
    collector = Collector(database, wanted(settings))
    while not stop.is_set():
        if not _unbroken(lambda: collector.collect(utc_now())):
            stop.wait(POLL_SECONDS)
